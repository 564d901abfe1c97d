"""The HTTP server of a model, as its client sees it: answers as streams, and what its errors mean.

Owns the connection. How an answer is written is its reader's to know; how the model came to be there, nobody's here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scaler.errors import LevelUnavailable, NeverAsked, RequestRejected
from scaler.passed_on import passed_on

if TYPE_CHECKING:
    import aiohttp
    from pydantic import TypeAdapter

T = TypeVar("T")

JSON = {"Content-Type": "application/json"}
"""The header of what is sent."""
GONE_S = 1.0
"""How long after a broken connection the end of the model's process is waited for, in order to tell the cause."""
HEALTH_S = 5.0
"""A server that has not said within this that it is well is not."""
WANT_KEY = (401, 403)
"""How a server asks for an API key, or another one."""
OF_THE_SERVER = (*WANT_KEY, 404, 408, 429)
"""Refusals that say nothing of the request: the key, the model's name and the path are not its own."""
REQUEST_AT_FAULT = ("Failed to parse", "Unknown reasoning format", "image input is not", "audio input is not")
"""How llama.cpp begins to say what is wrong with a request where it sends 500 all the same."""
NOT_LOADED = re.compile(r"model is not loaded|model name=.* is not running|model '.*' not found")
"""What llama-server's router says of a model that is gone, as if it were the request's fault."""
PASSED_ON = "proxy error: "
"""How it begins to say, in plain text, that it could not pass a request on."""
SILENT, ENDED = "the model does not answer", "the model ended in the middle of the answer"
"""What became of an answer that is not whole."""
STREAMS = ("text/event-stream", "application/x-ndjson")
"""What an answer is sent as."""
REFUSAL_LIMIT_BYTES = 1024**2
"""So much of what a server says instead of an answer is read."""
SHOWN = 400
"""The characters of a server's own words that a message shows."""
TELLING = ("error", "message", "detail")
"""Where a server says what is wrong, in whichever of the usual forms; the first that is there counts."""


CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
"""Asks for what comes after the last message; without it a server begins another, or says the last one again.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server/ and https://github.com/ggml-org/llama.cpp/pull/23012
"""


def goes_on(request: Mapping[str, Any]) -> bool:
    """Whether the last message of a request is to be gone on with."""
    return bool((request.get("messages") or [{}])[-1].get("role") == "assistant")


def streamed(request: Mapping[str, Any], **besides: Any) -> dict[str, Any]:
    """The body of an OpenAI request as every server of its API is asked: streamed, with the count of tokens at the end.

    ``besides`` wins over what the request says.
    """
    going_on = CONTINUE if goes_on(request) else {}
    return {**request, **besides, "stream": True, "stream_options": {"include_usage": True}, **going_on}


def why_unconnected(error: aiohttp.ClientConnectorError) -> str:
    """Why nothing could be connected to, in the system's words.

    aiohttp's message says the address again, how it would have encrypted, and the failed call instead of the cause.
    """
    cause = error.os_error
    # What keeps a name from being looked up, or a connection from being secure, has numbers of its own.
    if cause.errno is None or isinstance(cause, socket.gaierror | ssl.SSLError):
        return cause.strerror or str(cause)
    return os.strerror(cause.errno)


def said_in(content: bytes) -> object:
    """What was said: as JSON where it is, else the text."""
    import orjson

    try:
        return orjson.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def told(said: object) -> str:
    """What a server says is wrong, on one line: its words in what was read of its JSON, or the text; empty for none."""
    while (inner := _within(said)) is not None:
        said = inner
    return in_words(str(said)) if said else ""


def _within(said: object) -> object:
    import orjson

    if isinstance(said, dict):
        return next((said[key] for key in TELLING if said.get(key)), None)
    if isinstance(said, str) and said.startswith("{"):
        # So Ollama passes on what its llama-server says.
        with contextlib.suppress(ValueError):
            return orjson.loads(said)
    return None


def in_words(text: str) -> str:
    """Other people's words on one line, as far as a message shows them."""
    return " ".join(text.split())[:SHOWN]


def why_broken(error: Exception) -> str:
    """What the HTTP client, or whoever reads JSON, says of an answer that is none; on one line."""
    import aiohttp
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return in_words(f"{place}: {first['msg']}" if place else first["msg"])
    if isinstance(error, json.JSONDecodeError):
        return in_words(f"it sends what is no JSON ({error})")
    if isinstance(error, aiohttp.ClientPayloadError) and str(error).startswith("Response payload is not completed"):
        return "the connection was broken off"
    # Its own words have the address again, and a number that no server has sent.
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return in_words(text) or type(error).__name__


def sent_elsewhere(location: str | None) -> str:
    """What to say of a server that redirects, which nobody who asks for models or answers should follow."""
    return f"it sends whoever asks on to {in_words(location or 'another address')}; correct the level's url"


class Reader(Protocol):
    """Makes chunks of one answer's bytes."""

    @property
    def ended(self) -> bool:
        """Whether the server has said that the answer has ended."""

    @property
    def whole(self) -> bool:
        """Whether nothing of the answer is missing, although the server may not have said so."""

    def feed(self, block: bytes) -> Iterator[dict[str, Any]]:
        """The chunks that end in this block, or OpenAI's object with an ``error``. ValueError behind those."""


class ModelServer:
    """Asks one server; `close` ends what is being asked."""

    def __init__(
        self,
        where: str,
        address: str,
        *,
        answers: int,
        calls: int,
        why_gone: Callable[[], Awaitable[str | None]],
        headers: Mapping[str, str] | None = None,
        runs: Callable[[], bool] = lambda: True,
        passes_on: bool = False,
    ) -> None:
        """``where`` begins every message. ``answers`` and ``calls``: how many of each may be asked for at a time.

        ``headers``: what goes with every request, such as a key. ``why_gone`` is asked when a connection broke: why the
        model has ended, None if it goes on. ``runs``: whether it is there, which a server that goes on does not tell.
        ``passes_on``: whether a server stands before the model that makes an error of its own of the model's end.
        """
        import aiohttp

        self._where, self._why_gone, self._runs, self._keyed = where, why_gone, runs, bool(headers)
        self._passes_on = passes_on
        # One connection a request: llama.cpp closes those it kept, and a request sent meanwhile would be lost.
        if address.startswith("unix://"):
            socket = address.removeprefix("unix://")
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(socket, limit=0, force_close=True)
            self._base = "http://localhost"
        else:
            connector, self._base = aiohttp.TCPConnector(limit=0, force_close=True), address
        # No limit on the whole of an answer: how long one may take is for its reader to say.
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._slots, self._calls = asyncio.Semaphore(answers), asyncio.Semaphore(calls)
        self._answers: set[aiohttp.ClientResponse] = set()
        self._closed = False
        self.heard = 0
        """How many blocks of answers have come so far."""

    async def stream(
        self, path: str, request: Mapping[str, Any], reader: Reader
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer, as ``reader`` makes them; raises LevelUnavailable, RequestRejected."""
        import aiohttp
        import orjson

        try:
            body = orjson.dumps(request)
        except orjson.JSONEncodeError as error:
            # Half of a pair of surrogates, say, which a tool call's arguments may hold.
            raise RequestRejected(f"the request cannot be written as JSON: {error}") from error
        began, kind = False, ""
        async with self._slots:
            await self._check_open()
            try:
                # Here and not with the session: what goes with a request is another for each.
                headers = {**JSON, **passed_on()}
                async with self._asked(path, data=body, headers=headers) as response:
                    kind = response.content_type
                    # Whatever has come, not a line at a time: a model that is quick sends several events at once.
                    async for block in response.content.iter_any():
                        self.heard += 1
                        for chunk in reader.feed(block):
                            if chunk.get("error") is not None:
                                status = _status_of(chunk["error"])
                                raise await self._or_gone(status, chunk, ENDED if began else SILENT)
                            began = True
                            yield chunk
                        if reader.ended:
                            return
            except (aiohttp.ClientError, ConnectionError, ValueError) as error:
                if reader.whole:
                    return
                raise await self._broken(ENDED if began else SILENT, error) from error
        if reader.whole:
            return
        if began or kind in STREAMS:
            raise await self._broken(ENDED if began else SILENT, "the stream ended early")
        raise await self._broken(SILENT, f"it sends {kind} in place of a stream; correct the level's url")

    async def post(self, path: str, body: Mapping[str, Any], schema: TypeAdapter[T]) -> T:
        """What the server answers to one call, as ``schema`` has it; raises LevelUnavailable, RequestRejected."""
        import aiohttp

        async with self._calls:
            await self._check_open()
            try:
                async with self._asked(path, json=body) as response:
                    return schema.validate_json(await response.read())
            # A ValidationError is a ValueError.
            except (aiohttp.ClientError, ConnectionError, ValueError) as error:
                raise await self._broken(SILENT, error) from error

    @contextlib.asynccontextmanager
    async def _asked(self, path: str, **what: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a POST, until `close` breaks it off. Raises LevelUnavailable, RequestRejected for a refusal."""
        async with self._session.post(f"{self._base}{path}", **what, allow_redirects=False) as response:
            self._answers.add(response)
            try:
                if response.status != 200:
                    raise await self._refusal(response)
                yield response
            finally:
                self._answers.discard(response)

    async def well(self, path: str) -> bool:
        """Whether the server answers ``path`` with 200 within 5 s."""
        import aiohttp

        if self._closed:
            return False
        try:
            async with self._session.get(
                f"{self._base}{path}", timeout=aiohttp.ClientTimeout(HEALTH_S), allow_redirects=False
            ) as response:
                return response.status == 200
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return False

    async def silent(self, path: str, within_s: float) -> bool:
        """Whether the server says nothing at all to ``path`` within so many seconds.

        False where that cannot be told: for want of descriptors no question reaches it, and that is not its fault.
        """
        import aiohttp

        if self._closed:
            return False
        try:
            async with self._session.get(f"{self._base}{path}", timeout=aiohttp.ClientTimeout(within_s)):
                return False
        except TimeoutError:
            return True
        except (aiohttp.ClientError, ConnectionError):
            return False

    async def close(self) -> None:
        """Break off what is being asked; nothing is asked any more. Safe to call twice."""
        self._closed = True
        # The session alone would not tell their readers: one that waits would wait for ever.
        for answer in tuple(self._answers):
            answer.close()
        await self._session.close()

    async def _refusal(self, response: aiohttp.ClientResponse) -> RequestRejected | LevelUnavailable:
        if response.status < 400:
            if (location := response.headers.get("Location")) is not None:
                return await self._broken(SILENT, sent_elsewhere(location))
            return await self._broken(SILENT, f"it says {response.status} and nothing more")
        content = b""
        async for block in response.content.iter_any():
            content += block
            if len(content) > REFUSAL_LIMIT_BYTES:
                break
        said = said_in(content)
        if isinstance(said, str) and said.startswith(PASSED_ON):
            return await self._broken(SILENT, said)
        refusal = await self._or_gone(response.status, said, SILENT)
        if isinstance(refusal, RequestRejected) and NOT_LOADED.fullmatch(str(refusal)):
            gone = await self._why_gone() or str(refusal)
            return NeverAsked(f"{self._where}: {SILENT}: {gone}")
        return refusal

    async def _or_gone(self, status: int, said: object, what: str) -> RequestRejected | LevelUnavailable:
        """The refusal, unless that is how a server before the model tells that it is gone."""
        refusal = self._refused(status, said)
        if not self._passes_on or status < 500 or isinstance(refusal, RequestRejected):
            return refusal
        if (gone := await self._why_gone()) is None:
            return refusal
        return LevelUnavailable(f"{self._where}: {what}: {gone}")

    def _refused(self, status: int, said: object) -> RequestRejected | LevelUnavailable:
        """``said`` is what was read of the server's JSON, else its text."""
        message = told(said) or f"HTTP {status}"
        if status in WANT_KEY:
            # What the server says may hold the beginning of the key.
            message = "it does not take the API key" if self._keyed else "it wants an API key; set the level's key_env"
        body = said if isinstance(said, dict) and isinstance(said.get("error"), dict) else None
        if 400 <= status < 500 and status not in OF_THE_SERVER:
            return RequestRejected(message, status, body)
        if message.startswith(REQUEST_AT_FAULT):
            # Said of the request, so that no other level is tried for it and none is held to have failed.
            return RequestRejected(message)
        return LevelUnavailable(f"{self._where}: the model refused to answer: {message} ({status})")

    async def _broken(self, what: str, error: Exception | str) -> LevelUnavailable:
        """What to raise when the connection broke, or something came that is no answer."""
        import aiohttp

        gone = "it was unloaded" if self._closed else await self._why_gone()
        kind = LevelUnavailable
        if isinstance(error, str):
            cause = in_words(error)
        elif isinstance(error, aiohttp.ClientConnectorError):
            cause = why_unconnected(error)
            kind = NeverAsked if gone else LevelUnavailable
        else:
            cause = why_broken(error)
        return kind(f"{self._where}: {what}: {gone or cause}")

    async def _check_open(self) -> None:
        if self._closed:
            raise NeverAsked(f"{self._where}: {SILENT}: it was unloaded")
        if not self._runs():
            raise NeverAsked(f"{self._where}: {SILENT}: {await self._why_gone()}")


def _status_of(error: Any) -> int:
    """What an error that comes instead of a chunk says; LM Studio's says no number, and Ollama's is a text."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
