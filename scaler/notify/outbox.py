"""Notices on their way to one receiver: in order, a bounded number, and nobody who brings one ever waits.

Owns the queue and the task that empties it. Knows nothing of how a receiver is reached.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from scaler.notices import Notice

log = logging.getLogger(__name__)

LIMIT = 100
"""So many notices wait at the most; then the oldest is dropped."""
PATIENCE_S = 2.0
"""For so many seconds what still waits is given the time to go when scaler ends."""


class Receiver(Protocol):
    """Takes one notice after the other, on one event loop."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    async def deliver(self, notice: Notice) -> None:
        """Hand ``notice`` over; says by itself when it cannot."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Outbox:
    """What waits for one receiver. All but `take` is to be called on the loop of `start`."""

    def __init__(self, receiver: Receiver, *, limit: int = LIMIT, patience_s: float = PATIENCE_S) -> None:
        self._receiver, self._limit, self._patience_s = receiver, limit, patience_s
        self._waiting: asyncio.Queue[Notice] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to deliver."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._work(), name=f"notices to the {self._receiver.name}")

    def take(self, notice: Notice) -> None:
        """Have ``notice`` delivered. From any thread; returns at once."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put, notice)

    async def close(self) -> None:
        """Deliver what waits as far as the patience goes, and end. Safe to call twice."""
        task, self._task = self._task, None
        if task is None:
            return
        await asyncio.sleep(0)  # what was taken just before is on the loop, but not in the queue yet
        try:
            async with asyncio.timeout(self._patience_s):
                await self._waiting.join()
        except TimeoutError:
            count = 1 + self._waiting.qsize()
            log.warning("%s: %d notices were not told before scaler ended", self._receiver.name, count)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._receiver.close()

    def _put(self, notice: Notice) -> None:
        if self._waiting.qsize() >= self._limit:
            oldest = self._waiting.get_nowait()
            self._waiting.task_done()
            log.warning("%s: %d notices wait, the oldest is dropped: %s", self._receiver.name, self._limit, oldest.text)
        self._waiting.put_nowait(notice)

    async def _work(self) -> None:
        while True:
            notice = await self._waiting.get()
            try:
                await self._receiver.deliver(notice)
            except Exception:
                # A fault that the receiver did not foresee must not keep the notices after this one.
                log.exception("%s: a notice was lost: %s", self._receiver.name, notice.text)
            self._waiting.task_done()
