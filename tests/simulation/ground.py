"""What the real manager stands on in a simulation: one loop without threads, a monitor that is stepped, a disk that
runs full.
"""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from scaler.errors import ScalerError
from scaler.journal import Journal
from scaler.loop_thread import SHUT_DOWN, LoopThread
from scaler.monitor import ResourceMonitor
from scaler.sensors.watch import Question, Worker
from tests.simulation.faults import Faults
from tests.simulation.loop import VirtualLoop
from tests.simulation.machine import Late

T = TypeVar("T")


class OneLoop(LoopThread):
    """The virtual loop, run whenever somebody who is not on it waits for something."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop: VirtualLoop = loop
        self._stopping = False

    @property
    def running(self) -> bool:
        """Whether it still takes work."""
        return not self._stopping

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Nobody is on another thread."""
        raise NotImplementedError

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end, and all others meanwhile."""
        if not self.running:
            work.close()
            raise ScalerError(SHUT_DOWN)
        return self.loop.run_until_complete(work)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await it."""
        if not self.running:
            work.close()
            raise ScalerError(SHUT_DOWN)
        return await work

    async def iterate(self, items: AsyncGenerator[T, None]) -> AsyncIterator[T]:
        """Yield what it yields."""
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    def stop(self) -> None:
        """Cancel what runs, in the order in which it began."""
        if self.running:
            self._stopping = True
            self.loop.run_until_complete(self._end())

    async def _end(self) -> None:
        me = asyncio.current_task()
        others = sorted((task for task in asyncio.all_tasks() if task is not me), key=_number)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        await self.loop.shutdown_default_executor()


def _number(task: asyncio.Task[Any]) -> int:
    return int(task.get_name().rpartition("#")[2])


class InlineWorker(Worker):
    """Reads a sensor at once; one that is late answers when its time has come."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    @property
    def busy(self) -> bool:
        """No question waits behind another."""
        return False

    def put(self, question: Question) -> None:
        """Read it."""
        answer = question.answer
        try:
            value = question.sensor.read()
        except Late as late:
            self._loop.call_later(late.seconds, answer.set_exception, TimeoutError("too late"))
        except Exception as error:
            answer.set_exception(error)
        else:
            answer.set_result(value)

    def retire(self) -> None:
        """There is no thread to end."""


class SteppedMonitor(ResourceMonitor):
    """The real monitor, but for its threads: the loop has it read, and no sensor is waited for in real time."""

    def __init__(self, loop: VirtualLoop, pace_s: Callable[[], float], after: Callable[[], None], **told: Any) -> None:
        """``pace_s``: for how long until the next reading. ``after`` is called behind each."""
        super().__init__(**told, worker=lambda: InlineWorker(loop), sensor_timeout_s=1e-9)
        self._steps, self._pace_s, self._after = loop, pace_s, after
        self._next: asyncio.Handle | None = None

    @property
    def running(self) -> bool:
        """Whether the loop has it read."""
        return self._next is not None

    def start(self) -> None:
        """Begin to read."""
        if self._next is None:
            self._next = self._steps.call_soon(self._step)

    def stop(self) -> None:
        """End that."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def nudge(self) -> None:
        """Read now."""
        if self._next is not None:
            self._next.cancel()
            self._next = self._steps.call_soon(self._step)

    def _step(self) -> None:
        # Before the reading, for what it leads to may end all reading, or ask for the next one.
        self._next = self._steps.call_later(self._pace_s(), self._step)
        self.read_now()
        self._after()


class Disk:
    """Where the journal is kept; full at times."""

    def __init__(self, dice: random.Random, faults: Faults) -> None:
        self.full = False
        self.was_full = False
        self._dice, self._faults = dice, faults
        self._journals: list[Journal] = []

    def journal(self, *args: Any, **kwargs: Any) -> Journal:
        """A journal on it."""
        self._journals.append(journal := DiskJournal(self, *args, **kwargs))
        return journal

    def close(self) -> None:
        """Close what a manager that was not shut down has left open."""
        for journal in self._journals:
            journal.close()


class DiskJournal(Journal):
    """The real journal. On a full disk the kernel itself refuses to let its file grow, in the middle of a line."""

    def __init__(self, disk: Disk, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._disk = disk

    def write(self, record: Mapping[str, Any]) -> None:
        """As on any disk."""
        disk = self._disk
        if not disk.full:
            super().write(record)
            return
        disk.was_full = True
        disk._faults.note("journal full")
        size = self.path.stat().st_size if self.path.exists() else 0
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python has SIGXFSZ ignored: a write that is too much fails with EFBIG, and what fits is written.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + disk._dice.randrange(400), before[1]))
        try:
            super().write(record)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
