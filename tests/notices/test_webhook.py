"""The webhook against a real server that takes it, refuses it, or hangs up; no test waits."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from scaler.errors import MissingExtra
from scaler.notices import Notice
from scaler.notify.webhook import ATTEMPTS, Webhook

PATIENCE_S = 60.0
NOTICE = Notice("downgrade", "medium", "large gives way to medium → why", 2)
HANG_UP = 0


class Server:
    """Answers with one status after the other, then with 204; HANG_UP breaks the connection off."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)
        self.taken: list[Any] = []
        self.tries = 0
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        """Take a notice, or not."""
        self.tries += 1
        status = self._statuses.pop(0) if self._statuses else 204
        if status == HANG_UP:
            assert request.transport is not None
            request.transport.abort()
        elif status == 204:
            assert request.content_type == "application/json"
            self.taken.append(json.loads(await request.read()))
        return web.Response(status=status or 500, headers={"Location": "/elsewhere"} if status == 302 else {})


@asynccontextmanager
async def server(*statuses: int) -> AsyncGenerator[Server, None]:
    """One that listens."""
    one = Server(*statuses)
    app = web.Application()
    app.add_routes([web.post("/hooks/secret", one.take)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/secret"
    try:
        yield one
    finally:
        await runner.cleanup()


class Wait:
    """Sleeping that takes no time."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waits_s.append(seconds)


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, PATIENCE_S))


async def posted(url: str, chance: float = 0.5) -> list[float]:
    """Post the notice; how long it waited in between, in seconds."""
    wait = Wait()
    webhook = Webhook(url, sleep=wait, chance=lambda: chance)
    try:
        await webhook.deliver(NOTICE)
    finally:
        await webhook.close()
    return wait.waits_s


@pytest.mark.parametrize("failures", [(), (503, 500), (429, 429), (HANG_UP, 502)], ids=str)
def test_what_passes_is_tried_again_until_it_is_taken(
    failures: Sequence[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A server that restarts costs no notice, and nobody is bothered with it."""

    async def body() -> None:
        async with server(*failures) as one:
            assert await posted(one.url) == [1.0, 2.0][: len(failures)]
            expected = {"kind": "downgrade", "level": "medium", "text": NOTICE.text, "times": 2}
            assert (one.taken, one.tries) == ([expected], len(failures) + 1)

    with caplog.at_level(logging.WARNING):
        run(body())
    assert not caplog.records


@pytest.mark.parametrize("status", [302, 400, 401, 404, 410])
def test_what_is_refused_is_told_at_once(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Asking again would change nothing. What is logged must not give the URL's secret away."""

    async def body() -> None:
        async with server(status) as one:
            assert await posted(one.url) == []
            assert (one.taken, one.tries) == ([], 1)

    with caplog.at_level(logging.WARNING):
        run(body())
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"webhook 127.0.0.1: not told after 1 attempts, the answer was {status} ")
    assert NOTICE.text in message
    assert "secret" not in caplog.text


@pytest.mark.parametrize(("chance", "waits_s"), [(0.0, [0.5, 1.0, 2.0, 4.0]), (1.0, [1.5, 3.0, 6.0, 12.0])])
def test_the_attempts_and_the_waits_are_bounded(
    chance: float, waits_s: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is gone for good holds nothing up for ever."""

    async def body() -> None:
        async with server(*[500] * 99) as one:
            assert await posted(one.url, chance) == waits_s
            assert one.tries == ATTEMPTS

    with caplog.at_level(logging.WARNING):
        run(body())
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "not told after 5 attempts, the answer was 500 Internal Server Error"
    ]


@pytest.mark.parametrize(
    ("url", "waits", "words"),
    [
        ("http://127.0.0.1:1/secret", 4, "after 5 attempts, ClientConnectorError"),
        ("http://[::1]:1/secret", 4, "after 5 attempts, "),
        (f"http://{'a' * 80}.{'b' * 200}/secret", 0, "after 1 attempts, the URL cannot be used"),
    ],
)
def test_nobody_there_is_no_error_of_ours(url: str, waits: int, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the daemon goes on."""

    async def body() -> None:
        assert len(await posted(url)) == waits

    with caplog.at_level(logging.WARNING):
        run(body())
    (record,) = caplog.records
    assert words in record.getMessage()
    assert "secret" not in caplog.text


def test_without_an_http_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[server\]'"):
        Webhook("http://127.0.0.1/")
