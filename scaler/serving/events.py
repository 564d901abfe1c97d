"""What happens, as it happens: server-sent events for programs that follow a running daemon.

Owns the readers and their bounded queues. What is told is the scaler's events in the journal's form, the notices,
and for those who ask the readings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from aiohttp import web

from scaler.events import PersonTold
from scaler.journal import record_of
from scaler.monitor import ReadingTaken
from scaler.notices import Notice, Notices
from scaler.proactive import Event, ProactiveScaler
from scaler.report import status_report

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
"""After so many seconds without an event a comment is sent, so that nothing in between takes the line for dead."""
BACKLOG = 256
"""A reader with more events than this waiting is dropped."""


class _Reader:
    """One who follows: what waits for them, up to None for the end, and the line to them."""

    def __init__(self, line: asyncio.Transport | None, *, readings: bool) -> None:
        self.line, self.readings = line, readings
        self.waiting: asyncio.Queue[bytes | None] = asyncio.Queue()


class Events:
    """The handler of ``GET /events``."""

    def __init__(self, scaler: ProactiveScaler, notices: Notices, *, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._scaler, self._notices, self._keep_alive_s = scaler, notices, keep_alive_s
        self._readers: set[_Reader] = set()
        self._number = 0

    def add_to(self, app: web.Application) -> None:
        """Have ``app`` serve it, for as long as it runs."""
        app.add_routes([web.get("/events", self.follow, allow_head=False)])
        app.cleanup_ctx.append(self._listen)
        # A stream has no end of its own: without a word it would use up the whole grace of the others.
        app.on_shutdown.append(self._end)

    async def _listen(self, _: web.Application) -> AsyncGenerator[None, None]:
        loop = asyncio.get_running_loop()

        def take(event: Event | Notice) -> None:
            # On whatever thread caused it. Who comes just now misses nothing: their first event is the state after it.
            if self._readers and not loop.is_closed():
                loop.call_soon_threadsafe(self._pass_on, event, time.time())

        leave = [self._scaler.subscribe(take), self._notices.subscribe(take)]
        yield
        for way_out in leave:
            way_out()

    async def _end(self, _: web.Application) -> None:
        for reader in self._readers:
            reader.waiting.put_nowait(None)

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """The state of now, then every event from now on; readings with ``?readings=1``."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        reader = _Reader(request.transport, readings=request.query.get("readings") == "1")
        self._readers.add(reader)
        try:
            reader.waiting.put_nowait(self._numbered("status", self._status()))
            await response.prepare(request)
            while (part := await self._next(reader)) is not None:
                await response.write(part)
            await response.write_eof()
        except ConnectionResetError:
            # They hung up, or were dropped; either way there is nobody left to tell.
            pass
        finally:
            self._readers.discard(reader)
        return response

    async def _next(self, reader: _Reader) -> bytes | None:
        try:
            async with asyncio.timeout(self._keep_alive_s):
                return await reader.waiting.get()
        except TimeoutError:
            return b": still here\n\n"

    def _pass_on(self, event: Event | Notice, wall_s: float) -> None:
        readers = [one for one in self._readers if one.readings or not isinstance(event, ReadingTaken)]
        if not readers or (told := _told(event, wall_s)) is None:
            return
        part = self._numbered(*told)
        for reader in readers:
            if reader.waiting.qsize() >= BACKLOG:
                self._drop(reader)
            else:
                reader.waiting.put_nowait(part)

    def _drop(self, reader: _Reader) -> None:
        log.warning("somebody who follows /events was dropped: %d events behind", BACKLOG)
        self._readers.discard(reader)
        if reader.line is not None:
            # What was written already would wait for them for ever if the line were merely closed.
            reader.line.abort()

    def _status(self) -> dict[str, Any]:
        return status_report(self._scaler.status(), self._scaler.analyze_resource_trends())

    def _numbered(self, kind: str, data: dict[str, Any]) -> bytes:
        self._number += 1
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
        # What of a file's name is no text: written so, JSON has it all the same.
        return f"event: {kind}\nid: {self._number}\ndata: {text}\n\n".encode(errors="backslashreplace")


def _told(event: Event | Notice, wall_s: float) -> tuple[str, dict[str, Any]] | None:
    """An event's name and data on the line; None for what is not told. ``wall_s``: seconds since the epoch."""
    if isinstance(event, Notice):
        return "notice", asdict(event)
    if isinstance(event, ReadingTaken):
        return "reading", asdict(event.reading)
    # A notice is told as such; that it was is for the journal.
    record = None if isinstance(event, PersonTold) else record_of(event, wall_s)
    if record is None:
        return None
    return str(record.pop("event")), record
