"""Asks a place what it is: GET only, briefly, never more than a bounded answer, and no redirect is followed.

Owns how a place may misbehave. What the answers mean is each kind's to know.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from scaler.discovery.found import printable
from scaler.discovery.places import Place
from scaler.errors import ScalerError

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

NEAR_S, FAR_S = 1.0, 5.0
"""So long an answer may take, from this machine and from elsewhere."""
ANSWER_LIMIT_BYTES = 4 * 1024**2
"""The longest answer that is read: a list of many hundreds of models."""


class Unanswered(ScalerError):
    """A place that cannot be asked: says what it does instead of answering."""


class Absent(Unanswered):
    """Nothing listens there."""


class Locked(Unanswered):
    """It wants an API key, or another one."""


class Forbidden(Locked):
    """It says no more than that it will not, as some do of paths that they do not have."""


class Elsewhere(Unanswered):
    """It sends whoever asks on to another address, as some do from paths that they do not have."""


@dataclass(frozen=True)
class Asking:
    """Asks one place, in one session."""

    place: Place
    session: aiohttp.ClientSession

    @property
    def limit_s(self) -> float:
        """How long an answer may take."""
        return NEAR_S if self.place.near else FAR_S

    async def get(self, path: str, schema: TypeAdapter[T]) -> T | None:
        """What the place answers to ``GET path``; None where that is not what ``schema`` says. Raises Unanswered."""
        import aiohttp

        content = b""
        try:
            async with self.session.get(
                f"{self.place.root}{path}",
                headers=self.place.authorization(),
                timeout=aiohttp.ClientTimeout(self.limit_s),
                allow_redirects=False,
            ) as response:
                async for block in response.content.iter_any():
                    content += block
                    if len(content) > ANSWER_LIMIT_BYTES:
                        return None
                status, location = response.status, response.headers.get("Location")
        except TimeoutError as error:
            raise Unanswered(f"accepts connections and does not answer within {self.limit_s:g} s") from error
        except (aiohttp.ClientConnectorError, ConnectionRefusedError) as error:
            raise Absent(f"nothing answers there ({_cause(error)})") from error
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise Unanswered(f"answers, and not as a web server does ({type(error).__name__})") from error
        # Unasked for, 403 means nothing of the kind: it is how a Mac's AirPlay answers at port 5000.
        if status == HTTPStatus.UNAUTHORIZED or (status == HTTPStatus.FORBIDDEN and self.place.named):
            wrong = self.place.key_env and f"the key in {self.place.key_env} is not the right one"
            kind = Locked if status == HTTPStatus.UNAUTHORIZED else Forbidden
            raise kind(wrong or "wants an API key: name it with --url and --key-env")
        if status // 100 == 3 and location is not None and self.place.named:
            raise Elsewhere(f"sends whoever asks on to {printable(location, 200)}; name that address")
        if status != HTTPStatus.OK:
            return None
        try:
            return schema.validate_json(content)
        except ValidationError:
            return None


def _cause(error: OSError) -> str:
    """The system's word for it; the HTTP client adds the address again, and how it would have encrypted."""
    cause: OSError = getattr(error, "os_error", error)
    # What kept a name from being looked up has numbers of its own.
    if cause.errno is None or isinstance(cause, socket.gaierror):
        return str(cause.strerror or cause)
    return os.strerror(cause.errno)


def each(schema: TypeAdapter[T], entries: Iterable[object]) -> list[T]:
    """Those of a list that are what ``schema`` says: one odd entry does not spoil the others."""
    found = []
    for entry in entries:
        with contextlib.suppress(ValidationError):
            found.append(schema.validate_python(entry))
    return found
