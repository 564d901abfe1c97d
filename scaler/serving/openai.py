"""OpenAI's dialect: chat completions and completions, streamed and not, and the list of models.

The model is ``auto``: whatever level serves; those who insist name a level. Which one answered stands in the header
``x-scaler-level``, in ``model`` and in ``system_fingerprint``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from scaler.answering import Chunk, collect
from scaler.errors import LevelUnavailable, RequestRejected, ScalerError
from scaler.manager import ModelManager
from scaler.serving.errors import RETRY_AFTER_S, body_of, error_body, status_of

MODEL = "auto"
LEVEL_HEADER = "x-scaler-level"
LIMITS = ("max_tokens", "max_completion_tokens")


class OpenAI:
    """The handlers of the dialect."""

    def __init__(self, manager: ModelManager, started_s: int) -> None:
        """``started_s``: seconds since the epoch, for the list of models."""
        self._manager, self._started_s = manager, started_s

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        return [
            web.post("/v1/chat/completions", self.chat_completions),
            web.post("/v1/completions", self.completions),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model}", self.model),
        ]

    async def models(self, _: web.Request) -> web.Response:
        """``auto``, and the levels."""
        return web.json_response({"object": "list", "data": [self._model(name) for name in self._names]})

    async def model(self, request: web.Request) -> web.Response:
        """One model, by name."""
        name = request.match_info["model"]
        if name not in self._names:
            return _refuse(HTTPStatus.NOT_FOUND, self._unknown(name))
        return web.json_response(self._model(name))

    @property
    def _names(self) -> tuple[str, ...]:
        return (MODEL, *(name for name in self._manager.scaler.ladder.names if name != MODEL))

    def _unknown(self, name: object) -> str:
        return f"there is no model {name!r}; there are: {', '.join(self._names)}"

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started_s, "owned_by": "scaler"}

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat, whole or as server-sent events."""
        return await self._answer(request, _check_messages)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Complete a prompt, whole or as server-sent events."""
        return await self._answer(request, _check_prompt)

    async def _answer(self, request: web.Request, check: Callable[[Mapping[str, Any]], None]) -> web.StreamResponse:
        try:
            body = _checked(await request.read())
            check(body)
            name = body.pop("model", MODEL)
            if name not in self._names:
                raise RequestRejected(self._unknown(name), HTTPStatus.NOT_FOUND)
        except RequestRejected as error:
            return _refuse(error.status, str(error))
        streamed = bool(body.get("stream"))
        chunks = self._manager.answer(body, level=None if name == MODEL else name, streamed=streamed)
        try:
            if streamed:
                return await self._stream(request, body, chunks)
            level, whole = await collect(chunks)
        except ScalerError as error:
            status = status_of(error)
            headers = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
            return web.json_response(body_of(error), status=status, headers=headers)
        finally:
            await chunks.aclose()
        return web.json_response(_named(whole, level), headers={LEVEL_HEADER: level})

    async def _stream(
        self, request: web.Request, body: dict[str, Any], chunks: AsyncGenerator[Chunk, None]
    ) -> web.StreamResponse:
        # The first chunk is awaited before the headers go out: until then an error is a status, not a broken stream.
        first = await anext(chunks, None)
        if first is None:
            raise LevelUnavailable("the model ended its answer without a word; try again")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", LEVEL_HEADER: first.level}
        )
        await response.prepare(request)
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        try:
            async for level, data in _beginning_with(first, chunks):
                if data.get("choices") or wants_usage:
                    await response.write(_event(_named(data, level)))
            await response.write(b"data: [DONE]\n\n")
        except ScalerError as error:
            await response.write(_event(body_of(error)))
        await response.write_eof()
        return response


async def _beginning_with(first: Chunk, rest: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    yield first
    async for chunk in rest:
        yield chunk


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def _named(data: dict[str, Any], level: str) -> dict[str, Any]:
    return {**data, "model": level, "system_fingerprint": f"scaler-{level}"}


def _checked(raw: bytes) -> dict[str, Any]:
    """The request, or RequestRejected with what is wrong with it. What only a runtime can judge, it judges."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RequestRejected(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestRejected("the body must be a JSON object")
    for name in LIMITS:
        value = body.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise RequestRejected(f"{name!r} must be a whole number from 1")
    if not isinstance(body.get("stream_options") or {}, dict):
        raise RequestRejected("'stream_options' must be an object")
    if not isinstance(body.get("chat_template_kwargs") or {}, dict):
        raise RequestRejected("'chat_template_kwargs' must be an object")
    return body


def _check_messages(body: Mapping[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise RequestRejected("'messages' must be a list of at least one message object")
    if "prompt" in body:
        raise RequestRejected("'prompt' is for /v1/completions; here it is 'messages'")


def _check_prompt(body: Mapping[str, Any]) -> None:
    if not isinstance(body.get("prompt"), str | list):
        raise RequestRejected("'prompt' must be a text, or a list of texts or tokens")


def _refuse(status: int, message: str) -> web.Response:
    code = "model_not_found" if status == HTTPStatus.NOT_FOUND else None
    return web.json_response(error_body(message, code=code), status=status)
