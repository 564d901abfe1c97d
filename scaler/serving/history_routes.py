"""What happened lately, for the page, `scaler top` and other programs: the readings of the last hours, and the days."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web

from scaler import past
from scaler.errors import RecordingError
from scaler.journal import JournalError
from scaler.manager import ModelManager
from scaler.recent import KEPT_S, Point, Recent
from scaler.serving.errors import error_body

log = logging.getLogger(__name__)

LAST_S = (1, 3600, int(KEPT_S))
"""``last_s``: the least, what is taken for none, the most."""
DAYS = (1, 14, 366)


class History:
    """The handlers of ``GET /history`` and ``GET /history/days``; files are read on a thread, for one at a time."""

    def __init__(self, manager: ModelManager, wall_clock: Callable[[], float] = time.time) -> None:
        self._manager, self._wall_clock = manager, wall_clock
        self._began_s = wall_clock()
        self._recent = Recent()
        self._filled = False
        self._reader = ThreadPoolExecutor(1, "scaler-history")

    def add_to(self, app: web.Application) -> None:
        """Have ``app`` serve them, for as long as it runs."""
        app.add_routes([web.get("/history", self.lately), web.get("/history/days", self.days)])
        app.cleanup_ctx.append(self._listen)

    async def _listen(self, _: web.Application) -> AsyncGenerator[None, None]:
        scaler = self._manager.scaler
        leave = scaler.subscribe(self._recent.take)
        self._recent.begin(scaler.status().serving)
        yield
        leave()
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def lately(self, request: web.Request) -> web.Response:
        """Readings and events of the last ``last_s`` seconds."""
        last_s = _asked(request, "last_s", LAST_S)
        return await self._answer(lambda: self._lately(last_s))

    async def days(self, request: web.Request) -> web.Response:
        """The last ``days`` days."""
        count = _asked(request, "days", DAYS)
        return await self._answer(lambda: self._days(count))

    async def _answer(self, tell: Callable[[], dict[str, Any]]) -> web.Response:
        # Made into text there, too: a day's decisions are a megabyte.
        work = asyncio.get_running_loop().run_in_executor(self._reader, lambda: _json(tell()))
        try:
            return web.Response(body=await work, content_type="application/json")
        except JournalError as error:
            return web.json_response(error_body(str(error), "server_error"), status=HTTPStatus.SERVICE_UNAVAILABLE)

    def _lately(self, last_s: int) -> dict[str, Any]:
        now_s = self._wall_clock()
        if not self._filled:
            self._fill(now_s)
            self._filled = True
        since_s = now_s - last_s
        interval_s, points = self._recent.points(last_s, now_s)
        return {
            "now": now_s,
            "interval_s": interval_s,
            "points": [_told(point) for point in points],
            "events": [
                {**event, **dict(zip(("what", "why"), past.what_and_why(event), strict=True))}
                for event in past.joined(self._records(since_s), since_s=since_s)
            ],
        }

    def _fill(self, now_s: float) -> None:
        settings, since_s = self._manager.settings, now_s - KEPT_S
        if not settings.recording.enabled:
            return
        try:
            self._recent.fill(past.recorded(settings.recording.path, self._records(since_s), since_s))
        except RecordingError as error:
            # What is recorded from now on is no worse for it, and `scaler replay` is refused with the same words.
            log.warning("what was before the start is not shown: %s", error)

    def _days(self, count: int) -> dict[str, Any]:
        now_s = self._wall_clock()
        settings = self._manager.settings
        records = self._records(now_s - (count + 1) * KEPT_S)
        stretches = past.watched(settings.recording.path, self._began_s, now_s)
        ladder = [level.name for level in self._manager.scaler.ladder]
        return {"days": past.days(records, ladder, stretches, now_s, count)}

    def _records(self, since_s: float) -> Iterator[dict[str, Any]]:
        """The journal's, but for those of other programs."""
        records = past.records(self._manager.journal.path, since_s=since_s)
        return past.own(records, self._manager.writer, self._began_s)


def _asked(request: web.Request, name: str, bounds: tuple[int, int, int]) -> int:
    """A whole number of the query. Raises HTTPBadRequest."""
    least, usual, most = bounds
    match request.query.getall(name, []):
        case []:
            return usual
        case [text] if text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most:
            return int(text)
        case texts:
            told = ", ".join(map(repr, texts))
            raise web.HTTPBadRequest(text=f"{name}: {told} cannot be used; expected a whole number, {least} to {most}")


def _json(told: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(told)
    except orjson.JSONEncodeError:
        # Such as of a file whose name is no text: the journal has it, and a browser takes it.
        return json.dumps(told).encode()


def _told(point: Point) -> dict[str, Any]:
    usage = {
        name: {"total_bytes": part.total_bytes, "own_bytes": part.own_bytes, "other_bytes": part.other_bytes}
        for name, part in point.usage
    }
    return {"at": point.at_s, "serving": point.serving, "usage": usage}
