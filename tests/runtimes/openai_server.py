"""A server with OpenAI's API and nothing more, as a thread of the test, strict about what it takes."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from types import TracebackType
from typing import Any, Self

from aiohttp import web

TAKEN = {
    *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature"),
    *("continue_final_message", "add_generation_prompt"),
    *("top_p", "n", "stop", "tools", "tool_choice", "response_format", "seed", "user"),
}
"""What a request may have; anything else is refused, as OpenAI's own server does."""


class OpenAIServer:
    """Knows the models in ``models``, by what they say; "Count." has each count to 999."""

    def __init__(self, **models: str) -> None:
        self.models = models
        self.key: str | None = None
        """Asked for with every request."""
        self.lists = True
        """Whether it has a list of its models."""
        self.fails: dict[str, int] = {}
        """The status that it answers to ``everything``, or to requests for ``answers``."""
        self.renames_limit = False
        """Whether it refuses a chat's ``max_tokens``, as OpenAI does for the models that think."""
        self.token_s = 0.0
        self.raw: bytes | None = None
        """What it answers to everything instead."""
        self.pieces: list[bytes] | None = None
        """What it answers to requests for answers instead, each piece by itself."""
        self.kind, self.status = "text/event-stream", 200
        """How it calls those, and the status that goes with them."""
        self.elsewhere: str | None = None
        """Where it sends those who ask for answers."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        """Of the requests."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="OpenAI's API")
        self._runner: web.AppRunner | None = None
        self._listening: socket.socket
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.stop()
        # What was broken off is closed at the loop's next turn.
        self._do(asyncio.sleep(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stop(self) -> None:
        """Listen no more, and break off what is being answered."""
        if self._runner is not None:
            self._do(self._end(self._runner))
            self._runner = None

    def _do(self, what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._guarded])
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await self._runner.setup()
        self._listening = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(self._runner, self._listening).start()
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    async def _end(self, runner: web.AppRunner) -> None:
        # What asyncio has accepted and not yet made a connection of, which takes it three turns, it never closes once
        # it has stopped to listen. So nothing more is accepted first.
        self._loop.remove_reader(self._listening)
        for _ in range(3):
            await asyncio.sleep(0)
        assert runner.server is not None
        for connection in runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.raw is not None:
            return web.Response(body=self.raw, content_type="text/html")
        asked_for = "answers" if request.method == "POST" else "models"
        if (status := self.fails.get("everything", self.fails.get(asked_for))) is not None:
            return _error(status, "it cannot be had now")
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "Incorrect API key provided")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _models(self, _: web.Request) -> web.Response:
        if not self.lists:
            return _error(404, "no such path")
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append(asked)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.elsewhere is not None:
            raise web.HTTPTemporaryRedirect(self.elsewhere)
        if self.pieces is not None:
            response = web.StreamResponse(status=self.status, headers={"Content-Type": self.kind})
            await response.prepare(request)
            for piece in self.pieces:
                await response.write(piece)
                await asyncio.sleep(0)
            return response
        if foreign := sorted(set(asked) - TAKEN):
            return _error(400, f"Unrecognized request argument supplied: {', '.join(foreign)}")
        if asked["model"] not in self.models:
            return _error(404, f"The model `{asked['model']}` does not exist")
        if self.renames_limit and "messages" in asked and "max_tokens" in asked:
            return _error(
                400,
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
            )
        messages = asked.get("messages", [{"role": "user", "content": asked.get("prompt")}])
        counts = any(message["content"] == "Count." for message in messages)
        text = "".join(f" {number}" for number in range(1, 1000)) if counts else self.models[asked["model"]]
        goes_on = asked.get("continue_final_message") and asked.get("add_generation_prompt") is False
        if messages[-1]["role"] == "assistant" and goes_on:
            text = text.removeprefix(messages[-1]["content"])
        words = [f" {word}" for word in text.split()][: asked.get("max_completion_tokens", asked.get("max_tokens"))]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        ended = {"completion_tokens": len(words), "prompt_tokens": 1, "total_tokens": len(words) + 1}
        for place, word in enumerate([*words, None]):
            said = {"content": word} if word is not None else {}
            choice: dict[str, Any] = {"index": 0, "finish_reason": None if word is not None else "stop"}
            choice |= {"delta": said} if "messages" in asked else {"text": word or ""}
            chunk = {"id": "1", "object": "chunk", "created": 1, "model": asked["model"], "choices": [choice]}
            await _send(response, chunk | ({"usage": ended} if place == len(words) else {}))
            await asyncio.sleep(self.token_s)
        await response.write(b"data: [DONE]\n\n")
        return response


async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=status)
