"""Tells the server in which other people's levels live what to do, and reads what it says, in JSON over HTTP.

Owns the words for everything that such a server may do wrong. What is asked of it is each runtime's to know; answers to
requests are not asked for here but by `model_server`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from scaler import extras
from scaler.errors import LevelUnavailable
from scaler.level_settings import ServedLevel
from scaler.runtimes.model_server import WANT_KEY, said_in, sent_elsewhere, told, why_broken, why_unconnected

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

ASK_S = 10.0
"""Within this a server says what it has and what is loaded; a load has its own time."""
ANSWER_LIMIT_BYTES = 16 * 1024**2
"""The longest answer that is read: a list of some thousand models."""
LACKS_HERE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Why no connection can be begun at all: it says nothing of the server."""

NOTHING: TypeAdapter[None] = TypeAdapter(None)
"""For answers that say no more than that it was done."""


class Unreachable(LevelUnavailable):
    """Nothing listens there."""


class Refused(LevelUnavailable):
    """The server understood, and will not; ``status`` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Steering:
    """Asks the server of one level. Every failure is a LevelUnavailable that names level, model and address."""

    settings: ServedLevel
    what: str
    """What kind of server it is, for people."""
    start: str
    """How a person starts it, as the end of a sentence."""

    @property
    def where(self) -> str:
        """How messages begin."""
        return f"{self.settings.name}: {self.settings.model} of {self.what} at {self.settings.address}"

    async def ask(
        self,
        method: str,
        path: str,
        schema: TypeAdapter[T],
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = ASK_S,
    ) -> T:
        """What the server answers, as ``schema`` has it. Raises LevelUnavailable; `Refused` for an error that it tells.

        ``path`` may hold a query. With `NOTHING` the answer's body is not looked at.
        """
        content = await self._content(method, path, body, timeout_s)
        if schema is NOTHING:
            return schema.validate_python(None)
        try:
            return schema.validate_json(content)
        except ValidationError as error:
            raise self._foreign(path, why_broken(error)) from error

    async def text(self, path: str, *, timeout_s: float = ASK_S) -> str:
        """What the server answers to a GET, as it is. Raises LevelUnavailable, `Refused`."""
        return (await self._content("GET", path, None, timeout_s)).decode(errors="replace")

    async def _content(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> bytes:
        import aiohttp

        timeout = aiohttp.ClientTimeout(timeout_s)
        try:
            # Neither a proxy nor a .netrc that the environment names.
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=authorization(self.settings)) as session,
                session.request(method, f"{self.settings.address}{path}", json=body, allow_redirects=False) as response,
            ):
                content = b""
                async for block in response.content.iter_any():
                    content += block
                    if len(content) > ANSWER_LIMIT_BYTES:
                        raise self._foreign(path, f"more than {ANSWER_LIMIT_BYTES // 1024**2} MiB")
                if response.status >= 300:
                    raise self._refused(path, response, content)
        except TimeoutError as error:
            raise LevelUnavailable(
                f"{self.where}: {path} was not answered within {timeout_s:g} s; look at the server's log"
                + (", or raise load_timeout_s" if timeout_s != ASK_S else "")
            ) from error
        except aiohttp.ClientSSLError as error:
            raise LevelUnavailable(
                f"{self.where}: no secure connection could be made ({why_unconnected(error)}); correct the level's "
                "url, or the server's certificate"
            ) from error
        except aiohttp.ClientConnectorError as error:
            if error.os_error.errno in LACKS_HERE:
                raise LevelUnavailable(
                    f"{self.where}: {path} cannot be asked for ({why_unconnected(error)}); end some programs, or raise "
                    "the limit on open files (ulimit -n)"
                ) from error
            raise Unreachable(
                f"{self.where}: nothing answers there ({why_unconnected(error)}); {self.start}"
            ) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as error:
            raise Unreachable(f"{self.where}: {path} was broken off ({error}); look at the server's log") from error
        except aiohttp.ClientError as error:
            raise self._foreign(path, why_broken(error)) from error
        return content

    def _refused(self, path: str, response: aiohttp.ClientResponse, content: bytes) -> Refused:
        status = response.status
        if status in WANT_KEY:
            why = wants_key(self.settings)
        elif status < 400:
            why = sent_elsewhere(response.headers.get("Location"))
        else:
            why = told(said_in(content)) or "nothing more"
        return Refused(f"{self.where}: {path} was answered {status}: {why}", status)

    def _foreign(self, path: str, detail: str) -> LevelUnavailable:
        return LevelUnavailable(
            f"{self.where}: what answers there does not speak the API of {self.what} ({path}: {detail}); correct the "
            "level's url, or bring the server up to date"
        )


def wants_key(settings: ServedLevel) -> str:
    """What to do about a server that asks for an API key, or another one."""
    if settings.key_env is None:
        return "set key_env to the environment variable that holds its API key"
    return f"the key in {settings.key_env} is not the right one"


def authorization(settings: ServedLevel) -> dict[str, str]:
    """The header with the server's API key, if there is one. Raises LevelUnavailable when the variable is not set."""
    if settings.key_env is None:
        return {}
    if not (key := os.environ.get(settings.key_env, "").strip()):
        raise LevelUnavailable(
            f"{settings.name}: the environment variable {settings.key_env} is not set; set it to the API key of "
            f"{settings.address}, or leave key_env out"
        )
    if not is_key(key):
        # Not shown: most of it may be right.
        raise LevelUnavailable(
            f"{settings.name}: the environment variable {settings.key_env} holds what no API key can, such as the end "
            "of a line; set it to the key alone"
        )
    return {"Authorization": f"Bearer {key}"}


def is_key(text: str) -> bool:
    """Whether a header can hold it."""
    return text.isascii() and text.isprintable()


def require_client() -> None:
    """Raises MissingExtra when the HTTP client is not installed."""
    extras.require("server", "aiohttp", "orjson")


def at_once(asking: Coroutine[Any, Any, T]) -> T:
    """What ``asking`` returns, for callers without an event loop, and on one that they may not leave."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asking).result()
