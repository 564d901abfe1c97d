"""OpenAI's dialect: chat completions and completions, streamed and not, and the list of models.

The model is ``auto``: whatever level serves; those who insist name a level. Which one answered stands in the header
``x-scaler-level``, in ``model`` and in ``system_fingerprint``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any

import orjson
from aiohttp import web

from scaler.answering import Chunk
from scaler.errors import RequestRejected, ScalerError
from scaler.handoff import LIMITS
from scaler.serving.answers import MODEL, Answers, refuse
from scaler.serving.bodies import json_object
from scaler.serving.errors import body_of

NO_LIMIT = -1
"""As a token limit it means none to llama.cpp and LM Studio, and so to programs that were written for them."""
MOST_ANSWERS = 128
"""To one request, as OpenAI has it."""

_KINDS: Mapping[str, tuple[type | UnionType, str]] = {
    "stream": (bool, "true or false"),
    "stream_options": (dict, "an object"),
    "chat_template_kwargs": (dict, "an object"),
    "n": (int, f"a whole number from 1 to {MOST_ANSWERS}"),
    "stop": (str | list, "a text or a list of texts"),
    "tools": (list, "a list of objects"),
    "tool_choice": (str | dict, "a text or an object"),
    "response_format": (dict, "an object"),
    "logit_bias": (dict | list, "an object or a list"),
    "parallel_tool_calls": (bool, "true or false"),
    "grammar": (str, "a text"),
}
"""What these must be if they are set. The rest llama.cpp checks; a wrong one of these it would not notice."""


class OpenAI:
    """The handlers of the dialect."""

    def __init__(self, answers: Answers, started_s: int) -> None:
        """``started_s``: seconds since the epoch, for the list of models."""
        self._answers, self._started_s = answers, started_s

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        return [
            web.post("/v1/chat/completions", self.chat_completions),
            web.post("/v1/completions", self.completions),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model}", self.model),
        ]

    async def models(self, _: web.Request) -> web.Response:
        """``auto``, the levels, and the embedding model where there is one."""
        embedding = self._answers.embedding_model
        names = dict.fromkeys([*self._answers.names, *([embedding] if embedding is not None else [])])
        return web.json_response({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: web.Request) -> web.Response:
        """One model, by name."""
        name = request.match_info["model"]
        try:
            if name != self._answers.embedding_model:
                self._answers.level(name)
        except RequestRejected as error:
            return refuse(error, body_of(error))
        return web.json_response(self._model(name))

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
            body = checked(await request.read())
            check(body)
            level = self._answers.level(body.pop("model", MODEL))
        except RequestRejected as error:
            return refuse(error, body_of(error))
        streamed = bool(body.get("stream"))
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return await self._answers.answer(request, body, level, _Form(wants_usage), streamed=streamed)


class _Form:
    """An answer as ``chat.completion`` or ``text_completion`` objects."""

    content_type = "text/event-stream"

    def __init__(self, wants_usage: bool) -> None:
        self._wants_usage = wants_usage

    def piece(self, chunk: Chunk) -> bytes:
        level, data = chunk
        return _event(_named(data, level)) if data.get("choices") or self._wants_usage else b""

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def broken(self, error: ScalerError) -> bytes:
        return _event(body_of(error))

    def whole(self, answer: Chunk) -> dict[str, Any]:
        return _named(answer.data, answer.level)

    def refusal(self, error: ScalerError) -> dict[str, Any]:
        return body_of(error)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _named(data: dict[str, Any], level: str) -> dict[str, Any]:
    data["model"], data["system_fingerprint"] = level, f"scaler-{level}"
    return data


def checked(raw: bytes) -> dict[str, Any]:
    """A request's body, or RequestRejected with what is wrong with it. What only a runtime can judge, it judges."""
    body = json_object(raw)
    for name in LIMITS:
        value = body.get(name)
        if value == NO_LIMIT and not isinstance(value, bool):
            del body[name]
        elif value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise RequestRejected(f"{name!r} must be a whole number from 1")
    for name, (kind, words) in _KINDS.items():
        value = body.get(name)
        # To Python, true is a number as well.
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise RequestRejected(f"{name!r} must be {words}")
    if (number := body.get("n")) is not None and not 1 <= number <= MOST_ANSWERS:
        raise RequestRejected(f"'n' must be {_KINDS['n'][1]}")
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema" and not _has_schema(form):
        # llama.cpp would take it for any JSON.
        raise RequestRejected("'response_format.json_schema.schema' must be an object: a JSON schema")
    return body


def _has_schema(form: Mapping[str, Any]) -> bool:
    described = form.get("json_schema")
    return isinstance(described, dict) and isinstance(described.get("schema"), dict)


def _check_messages(body: Mapping[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise RequestRejected("'messages' must be a list of at least one message object")
    if "prompt" in body:
        raise RequestRejected("'prompt' is for /v1/completions; here it is 'messages'")


def _check_prompt(body: Mapping[str, Any]) -> None:
    if not isinstance(body.get("prompt"), str | list):
        raise RequestRejected("'prompt' must be a text, or a list of texts or tokens")
