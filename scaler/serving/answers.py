"""What every dialect does alike: which level a model's name means, and how an answer gets to the client.

Owns the order in which headers, chunks and errors go out. Knows the form of none of them: that is for a dialect.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import web

from scaler.answering import Chunk, collect
from scaler.errors import LevelUnavailable, QueueFull, RequestRejected, RequestTimedOut, ScalerError
from scaler.manager import ModelManager

MODEL = "auto"
"""The name of whatever level serves."""
LEVEL_HEADER = "x-scaler-level"
RETRY_AFTER_S = 5
"""What a client is told to wait when no level serves: about the time in which a small level loads."""


class Form(Protocol):
    """How one answer is written in a dialect."""

    @property
    def content_type(self) -> str:
        """Of a stream."""

    def piece(self, chunk: Chunk) -> bytes:
        """A chunk as it stands in the stream; empty for one that the client does not get."""

    def end(self) -> bytes:
        """What ends a whole stream."""

    def broken(self, error: ScalerError) -> bytes:
        """What ends a stream that cannot be gone on with."""

    def whole(self, answer: Chunk) -> Any:
        """The answer in one piece, as JSON; ``answer`` is a ``chat.completion`` or ``text_completion``."""

    def refusal(self, error: ScalerError) -> Any:
        """An error as JSON, where nothing of the answer has gone out."""


class Answers:
    """Answers requests in whatever dialect they come."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may name as its model."""
        return (MODEL, *(name for name in self._manager.scaler.ladder.names if name != MODEL))

    @property
    def embedding_model(self) -> str | None:
        """What a request for embeddings may name as its model, if there is one."""
        return self._manager.embedding_model

    def level(self, name: object) -> str | None:
        """The level that a model's name insists on, None for whatever serves. Raises RequestRejected."""
        if name not in self.names:
            # Programs look for these first words, which are Ollama's.
            message = f"model {name!r} not found; there are: {', '.join(self.names)}"
            raise RequestRejected(message, HTTPStatus.NOT_FOUND)
        return None if name == MODEL else str(name)

    async def answer(
        self, request: web.Request, asked: Mapping[str, Any], level: str | None, form: Form, *, streamed: bool
    ) -> web.StreamResponse:
        """Answer what was ``asked`` (OpenAI's chat or completion), whole or streamed."""
        parts = self._manager.answer(asked, level=level, streamed=streamed, headers=request.headers)
        try:
            if streamed:
                return await _stream(request, parts, form)
            whole = await collect(parts)
        except ScalerError as error:
            return refuse(error, form.refusal(error))
        finally:
            await parts.aclose()
        return web.json_response(form.whole(whole), headers={LEVEL_HEADER: whole.level})


def refuse(error: ScalerError, body: Any) -> web.Response:
    """The response to a request that gets no answer."""
    status = _status_of(error)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return web.json_response(body, status=status, headers=headers)


def _status_of(error: ScalerError) -> int:
    if isinstance(error, RequestRejected):
        return error.status
    if isinstance(error, QueueFull | RequestTimedOut | LevelUnavailable):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR


async def _stream(request: web.Request, parts: AsyncGenerator[list[Chunk], None], form: Form) -> web.StreamResponse:
    # The first part is awaited before the headers go out: until then an error is a status, not a broken stream.
    first = await anext(parts)
    response = web.StreamResponse(
        headers={"Content-Type": form.content_type, "Cache-Control": "no-cache", LEVEL_HEADER: first[0].level}
    )
    await response.prepare(request)
    chunks: list[Chunk] | None = first
    try:
        while chunks is not None:
            if piece := b"".join(map(form.piece, chunks)):
                await response.write(piece)
            chunks = await anext(parts, None)
        await response.write(form.end())
    except ScalerError as error:
        await response.write(form.broken(error))
    await response.write_eof()
    return response
