"""What becomes of a request that no handler answers."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from scaler.serving.refusals import in_the_dialect


async def fail(_: web.Request) -> web.Response:
    raise RuntimeError("a fault of our own")


async def break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half of it")
    raise RuntimeError("a fault of our own")


async def answers(*paths: str) -> list[tuple[int, Any]]:
    """What a server says at these paths, one after the other."""
    app = web.Application(middlewares=[in_the_dialect])
    app.add_routes([web.get("/api/chat", fail), web.get("/v1/models", fail), web.get("/broken", break_off)])
    async with TestClient(TestServer(app)) as client:
        return [(answer.status, await answer.json()) for answer in [await client.get(path) for path in paths]]


def test_a_fault_of_our_own_is_logged_and_told_in_the_dialect(caplog: pytest.LogCaptureFixture) -> None:
    """The program hears of it, the log has the traceback, and the server answers the next one."""
    ollama, openai = asyncio.run(answers("/api/chat", "/v1/models"))
    assert ollama[0] == openai[0] == 500
    assert "RuntimeError" in ollama[1]["error"]
    assert openai[1]["error"]["type"] == "server_error"
    assert caplog.text.count("RuntimeError: a fault of our own") == 2


def test_a_fault_in_the_middle_of_an_answer_breaks_it_off() -> None:
    """A second answer behind half of the first would be read as part of it."""
    with pytest.raises(aiohttp.ClientError):
        asyncio.run(answers("/broken"))


def test_who_asks_for_what_is_not_there_is_told_everything_that_is() -> None:
    """In whichever dialect: who speaks one may not know of the other."""
    for status, told in asyncio.run(answers("/nowhere", "/api/nowhere")):
        assert status == 404
        message = told["error"] if isinstance(told["error"], str) else told["error"]["message"]
        assert message.endswith("; there are: /api/chat, /broken, /v1/models")
