"""What a plain install leaves out: which extra brings it, and the command that installs it here.

Owns the sentence that a person reads when a library is missing; knows no library.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from scaler.errors import MissingExtra

DISTRIBUTION = "capability-scaler"
"""What installers know scaler by."""
_INSTALLERS = (
    ("pipx_metadata.json", f"pipx runpip {DISTRIBUTION} install"),
    ("uv-receipt.toml", "uv tool install"),
)
"""The file by which an environment tells that it belongs to an installer, and how that one installs into it."""


def require(extra: str, *modules: str) -> None:
    """Raises MissingExtra when one of ``modules``, which ``extra`` brings, is not installed; imports none of them."""
    for module in modules:
        if find_spec(module) is None:
            raise missing(module, extra)


@contextmanager
def importing(*extras: str) -> Iterator[None]:
    """For a block that imports what ``extras`` bring: raises MissingExtra when one of it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        # A module of scaler's own that is not there is a broken install, which no extra mends.
        if error.name is None or error.name.partition(".")[0] == __package__:
            raise
        raise missing(error.name, *extras) from error


def missing(module: str, *extras: str) -> MissingExtra:
    """What to raise for a module that is not installed: it ends with the command that installs it here."""
    how = next((how for mark, how in _INSTALLERS if Path(sys.prefix, mark).exists()), "pip install")
    return MissingExtra(f"{module} is not installed; install it with: {how} '{DISTRIBUTION}[{','.join(extras)}]'")
