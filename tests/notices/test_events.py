"""``GET /events`` over real connections, with a scaler that is fed by hand."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from scaler.levels import GIB, RAM, Ladder, Level
from scaler.monitor import ResourceMonitor
from scaler.notices import Notice, Notices
from scaler.policy import Policy
from scaler.proactive import ProactiveScaler
from scaler.readings import Memory, Reading
from scaler.serving.events import BACKLOG, Events

LADDER = Ladder([Level("small", {RAM: 1 * GIB}, 0.5, 1.0), Level("large", {RAM: 8 * GIB}, 1.0, 4.0)])
PATIENCE_S = 60.0
"""Only a failing test waits that long."""


class Roomy:
    """A sensor of 16 GiB, of which 2 are used."""

    name = "memory"

    def read(self) -> Memory:
        """RAM."""
        return Memory(16 * GIB, 14 * GIB)


class Daemon:
    """A server with nothing but ``/events``."""

    def __init__(self, keep_alive_s: float) -> None:
        self.scaler = ProactiveScaler(ladder=LADDER, policy=Policy(), monitor=ResourceMonitor(sensors=[Roomy()]))
        self.notices = Notices()
        self.events = Events(self.scaler, self.notices, keep_alive_s=keep_alive_s)
        app = web.Application()
        self.events.add_to(app)
        self.lines: list[Line] = []
        self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None)

    async def follow(self, query: str = "", *, method: str = "GET", buffer: int | None = None) -> Line:
        """Begin to follow; ``buffer`` bytes are kept for a reader who does not read."""
        line = socket.socket()
        if buffer is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        line.setblocking(False)
        await asyncio.get_running_loop().sock_connect(line, self.runner.addresses[0])
        reader, writer = await asyncio.open_connection(sock=line, limit=2 * 1024 if buffer else 2**20)
        writer.write(f"{method} /events{query} HTTP/1.0\r\n\r\n".encode())
        self.lines.append(Line(reader, writer))
        return self.lines[-1]


class Line:
    """What comes over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def head(self) -> str:
        """The status and the headers."""
        return (await self.until(b"\r\n\r\n")).decode().lower()

    async def until(self, end: bytes) -> bytes:
        """The bytes up to ``end``."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.readuntil(end)

    async def event(self) -> tuple[str, int, Any]:
        """The next event: its name, number and data."""
        lines = (await self.until(b"\n\n")).decode().splitlines()
        told = dict(line.split(": ", 1) for line in lines if line)
        assert list(told) == ["event", "id", "data"]
        return told["event"], int(told["id"]), json.loads(told["data"])

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.read()

    async def hang_up(self) -> None:
        """Close it."""
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


@asynccontextmanager
async def daemon(keep_alive_s: float = PATIENCE_S) -> AsyncGenerator[Daemon, None]:
    """One that runs."""
    one = Daemon(keep_alive_s)
    await one.runner.setup()
    await web.TCPSite(one.runner, "127.0.0.1", 0).start()
    try:
        yield one
    finally:
        await asyncio.gather(one.runner.cleanup(), *(line.hang_up() for line in one.lines))


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), PATIENCE_S))


def test_the_state_comes_first_and_then_what_happens_in_order() -> None:
    """A program that follows needs no other request."""

    async def body() -> None:
        async with daemon() as one:
            line = await one.follow()
            head = await line.head()
            assert head.startswith("http/1.0 200")
            assert "content-type: text/event-stream" in head
            kind, first, status = await line.event()
            assert (kind, status["state"], status["pinned"]) == ("status", "off", None)
            one.scaler.want(False)
            one.scaler.observe(Reading(time.monotonic(), None, Roomy().read(), own_bytes=0))
            one.scaler.pin("large")
            one.notices.tell(Notice("failure", "large", "large died → again", 2))
            one.scaler.unpin()
            told = [await line.event() for _ in range(5)]
            assert [kind for kind, _, _ in told] == ["pin", "decision", "switched", "notice", "pin"]
            assert [number for _, number, _ in told] == list(range(first + 1, first + 6))
            pinned, decision, switched, notice, unpinned = (data for _, _, data in told)
            assert (pinned["level"], unpinned["level"]) == ("large", None)
            assert (decision["source"], decision["dest"], decision["trigger"]) == ("off", "large", "pin")
            assert (switched["level"], switched["ticket"]) == ("large", decision["ticket"])
            assert notice == {"kind": "failure", "level": "large", "text": "large died → again", "times": 2}

    run(body)


def test_readings_come_only_to_those_who_ask() -> None:
    """One a second is more than most want."""

    async def body() -> None:
        async with daemon() as one:
            one.scaler.start_continuous_monitoring()
            with_readings, without = await one.follow("?readings=1"), await one.follow()
            for line in (with_readings, without):
                await line.head()
                assert (await line.event())[0] == "status"
            one.scaler.monitor.read_now()
            kind, _, reading = await with_readings.event()
            assert (kind, reading["memory"]["total_bytes"]) == ("reading", 16 * GIB)
            one.scaler.stop_continuous_monitoring()
            one.notices.tell(Notice("failure", "large", "x"))
            assert (await without.event())[0] == "notice"

    run(body)


def test_events_of_other_threads_arrive() -> None:
    """The monitor and the effects each tell from a thread of their own."""

    async def body() -> None:
        async with daemon() as one:
            line = await one.follow()
            await line.head()
            await line.event()
            threads = [threading.Thread(target=one.scaler.unpin) for _ in range(20)]
            for thread in threads:
                thread.start()
            numbers = [(await line.event())[1] for _ in threads]
            assert numbers == sorted(set(numbers))
            for thread in threads:
                thread.join()

    run(body)


def test_a_quiet_line_is_kept_alive_by_comments() -> None:
    """What stands in between takes a silent line for a dead one."""

    async def body() -> None:
        async with daemon(keep_alive_s=0.001) as one:
            line = await one.follow()
            await line.head()
            await line.event()
            for _ in range(3):
                assert (await line.until(b"\n\n")).startswith(b": ")

    run(body)


def test_a_reader_who_does_not_read_is_dropped_and_nobody_else_notices(caplog: pytest.LogCaptureFixture) -> None:
    """Memory is what scaler is careful with; its own as well."""

    async def body() -> None:
        async with daemon() as one:
            slow, quick = await one.follow(buffer=4096), await one.follow()
            await quick.head()
            await quick.event()
            text = "x" * 100_000
            sent = 0
            while "dropped" not in caplog.text:
                one.notices.tell(Notice("failure", str(sent), text))
                kind, _, notice = await quick.event()
                assert (kind, notice["level"]) == ("notice", str(sent))
                sent += 1
            assert sent >= BACKLOG
            # The connection is broken off: what was on its way comes, or an error, and then the end.
            await asyncio.gather(slow.rest(), return_exceptions=True)
            one.notices.tell(Notice("failure", "still", "there"))
            assert (await quick.event())[2]["level"] == "still"

    with caplog.at_level(logging.WARNING):
        run(body)
    assert caplog.text.count(f"dropped: {BACKLOG} events behind") == 1


def test_who_hangs_up_is_forgotten_and_the_end_of_the_daemon_ends_the_line() -> None:
    """Neither leaves anything behind, and the end is no error."""

    async def body() -> None:
        async with daemon() as one:
            gone, stays = await one.follow(), await one.follow()
            for line in (gone, stays):
                await line.head()
                await line.event()
            await gone.hang_up()
            while len(one.events._readers) > 1:
                await asyncio.sleep(0)
            await one.runner.cleanup()
            assert await stays.rest() == b""
            assert not one.events._readers
            one.scaler.unpin()

    run(body)


def test_a_request_for_the_head_alone_is_not_left_hanging() -> None:
    """It would otherwise follow for ever and be told nothing."""

    async def body() -> None:
        async with daemon() as one:
            line = await one.follow(method="HEAD")
            assert (await line.head()).startswith("http/1.0 405")

    run(body)
