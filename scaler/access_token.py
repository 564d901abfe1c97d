"""The token that opens a daemon's door: where it is found, and whether what a client brings is the same.

Nothing here ever shows it.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from pathlib import Path

from scaler.errors import ConfigError

VARIABLE = "SCALER_TOKEN"
"""The environment variable that holds the token; it goes before ``server.token_file``."""
LEAST = 16
"""A shorter token could be tried out; in characters."""
MOST_BYTES = 4096
HOW_TO_MAKE = "(umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > TOKEN_FILE)"
"""A command line that makes one."""
_ALLOWED = re.compile(r"[!-~]+")
"""What a header can carry in one word."""


class AccessToken:
    """A token; its text is in no repr and no message."""

    def __init__(self, text: str, source: str) -> None:
        """``source`` is where it was found, for messages. Raises ConfigError for one that cannot be used."""
        if len(text) < LEAST or not _ALLOWED.fullmatch(text):
            raise ConfigError(
                f"{source}: what is there is no token; expected {LEAST} or more letters, digits and signs without a "
                f"space, as this makes: {HOW_TO_MAKE}"
            )
        self.source = source
        self._text = text

    def opens(self, authorization: str) -> bool:
        """Whether a request with this ``Authorization`` brings it; takes as long whatever is wrong with it."""
        kind, _, brought = authorization.partition(" ")
        same = hmac.compare_digest(brought.strip().encode("utf-8", "surrogatepass"), self._text.encode())
        return same and kind.lower() == "bearer"

    @property
    def authorization(self) -> str:
        """The ``Authorization`` to bring."""
        return f"Bearer {self._text}"


def found(file: Path | None) -> AccessToken | None:
    """The token of the environment, or of ``file``; None where there is neither. Raises ConfigError."""
    if text := os.environ.get(VARIABLE, "").strip():
        return AccessToken(text, f"${VARIABLE}")
    return None if file is None else _read(file)


def _read(path: Path) -> AccessToken:
    where = f"{path} (server.token_file)"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); make one with: {HOW_TO_MAKE}") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{where}: others may read or write it (its mode is {stat.S_IMODE(mode):04o}); chmod 600 it")
    # What is no ASCII becomes a character that no token has.
    return AccessToken(content.decode("ascii", "replace").strip(), where)
