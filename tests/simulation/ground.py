"""What the real manager stands on in a simulation: one loop without threads, a monitor that is stepped, a disk that
runs full.
"""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from scaler.assembly import Parts
from scaler.errors import ScalerError
from scaler.events import DecisionMade, ModelDied, PinChanged, Reconfigured, SwitchFailed
from scaler.journal import Journal
from scaler.loop_thread import SHUT_DOWN, LoopThread
from scaler.monitor import ResourceMonitor
from scaler.proactive import Event, ProactiveScaler
from scaler.remembered import Remembered
from scaler.remembering import EVERY_S, Remembering
from scaler.sensors.watch import Question, Worker
from tests.simulation.faults import Faults
from tests.simulation.loop import VirtualLoop
from tests.simulation.machine import Late

T = TypeVar("T")
MATTERS = (DecisionMade, SwitchFailed, ModelDied, PinChanged, Reconfigured)
"""What the next manager must know of."""


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
        others = sorted((task for task in asyncio.all_tasks() if task is not me), key=self.loop.numbers.__getitem__)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        await self.loop.shutdown_default_executor()


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


@dataclass(frozen=True, slots=True)
class Known:
    """What a scaler knew when it was written down, with times of the loop, and the bytes that say so."""

    text: bytes
    start: int
    at_s: float
    ended: bool
    state: str
    loading: str | None
    climbed: str | None
    pinned: str | None
    changed_s: float
    parts: Parts
    footprints: Mapping[str, Mapping[str, int]]
    load_s: Mapping[str, float]
    failures: Mapping[str, int]
    backoff_s: Mapping[str, float]
    wasted: Mapping[str, int]


class Disk:
    """Where the journal and what is remembered are kept; full at times. Nothing is written any more once it is cut."""

    def __init__(self, dice: random.Random, faults: Faults, loop: VirtualLoop) -> None:
        self.full = False
        self.was_full = False
        self.freed_s = 0.0
        """Since when it is not full any more."""
        self.cut = False
        """Whether the manager that writes on it was killed."""
        self.known: list[Known] = []
        """What the file has said, with one from before and the latest at the end."""
        self.start = 0
        """Which start of the machine this is, and when its clock began."""
        self.booted_s = 0.0
        self.tells_boots = True
        """Whether the system tells its starts apart."""
        self.remembering: DiskRemembering | None = None
        self.every_s: Callable[[], float] = lambda: EVERY_S
        """How often it is written down what is learned in small steps."""
        self._dice, self._faults, self._loop = dice, faults, loop
        self._journals: list[Journal] = []

    def journal(self, *args: Any, **kwargs: Any) -> Journal:
        """A journal on it."""
        self._journals.append(journal := DiskJournal(self, *args, **kwargs))
        return journal

    def remembers(self, path: Path, scaler: ProactiveScaler, marks: Mapping[str, str]) -> Remembering:
        """What is remembered, on it."""
        self.remembering = DiskRemembering(self, path, scaler, marks)
        return self.remembering

    @property
    def boot(self) -> str | None:
        """What the system calls this start."""
        return f"start {self.start}" if self.tells_boots else None

    def clock(self) -> float:
        """Monotonic seconds: those since the machine was started."""
        return self._loop.time() - self.booted_s

    def close(self) -> None:
        """Close what a manager that was not shut down has left open."""
        for journal in self._journals:
            journal.close()
        if self.remembering is not None:
            self.remembering.end()

    @contextmanager
    def growing(self, fault: str, size: int) -> Iterator[None]:
        """On a full disk the kernel itself refuses to let a file of this size grow by much."""
        if not self.full:
            yield
            return
        self.was_full = True
        self._faults.note(fault)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python has SIGXFSZ ignored: a write that is too much fails with EFBIG, and what fits is written.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + self._dice.randrange(400), before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class DiskJournal(Journal):
    """The real journal, whose last line may be cut in its middle."""

    def __init__(self, disk: Disk, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._disk = disk

    def write(self, record: Mapping[str, Any]) -> None:
        """As on any disk."""
        if self._disk.cut:
            return
        size = self.path.stat().st_size if self._disk.full and self.path.exists() else 0
        with self._disk.growing("journal full", size):
            super().write(record)


class DiskRemembering(Remembering):
    """The real one, but for its thread: the loop has it write, as late as a thread may be."""

    def __init__(self, disk: Disk, path: Path, scaler: ProactiveScaler, marks: Mapping[str, str]) -> None:
        super().__init__(path, scaler, marks)
        self._boot = disk.boot
        self.due_s: float | None = None
        """Since when something that has happened is not in the file."""
        self.parts: Callable[[], Parts]
        """The configuration in force."""
        self.recalled: tuple[Any, ...] | None = None
        """What the machine was told to know."""
        self._disk, self._steps = disk, disk._loop
        self._next: asyncio.Handle | None = None
        self._soon = False

    def begin(self) -> Remembered | None:
        """As in a thread."""
        known = super().begin()
        if known is not None:
            self.recalled = known, self._marks, self._boot, self._disk.clock()
        self.due_s = self._steps.time()
        self._hurry()
        return known

    def end(self) -> None:
        """What the kernel does to whoever is killed: locks go, and nothing is written."""
        self._ending = True
        if self._next is not None:
            self._next.cancel()
        self._unlock()

    def close(self) -> None:
        """As ever, and for good."""
        super().close()
        self.end()

    def _work(self) -> None:
        """The loop does it."""

    def _take(self, event: Event) -> None:
        super()._take(event)
        if isinstance(event, MATTERS) and self.due_s is None:
            self.due_s = self._steps.time()
        self._hurry()

    def _hurry(self) -> None:
        """What wakes the thread up."""
        if self._happened.is_set() and not self._soon and not self._ending:
            self._soon = True
            self._in(self._steps.late())

    def _in(self, seconds: float) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = self._steps.call_later(seconds, self._turn)

    def _turn(self) -> None:
        self._happened.clear()
        self._soon = False
        if not self._ending:
            self._keep(ended=False)
            self._in(self._disk.every_s())

    def _keep(self, *, ended: bool) -> None:
        before = self._kept
        with self._disk.growing("remembered full", 0):
            super()._keep(ended=ended)
        if self._failed and (before is None or not self._says_so(before, ended=ended)):
            return
        self.due_s = None
        if self._kept is not None and self._kept is not before:
            # An early one stays, for somebody to put it back.
            known, kept = self._known(self._kept), self._disk.known
            self._disk.known = [*kept[: 1 if self._disk._dice.random() < 0.9 else 0], known][-2:]

    def _says_so(self, before: Remembered, *, ended: bool) -> bool:
        """Whether the file says already what is known: what could not be written is true no more."""
        now = self._scaler.remember(self._marks, self._boot, ended=ended)
        return replace(now, at_s=before.at_s) == before

    def _known(self, kept: Remembered) -> Known:
        machine, booted_s = self._scaler._machine, self._disk.booted_s
        evidence, names = machine.evidence, machine.ladder.names
        return Known(
            text=self._path.read_bytes(),
            start=self._disk.start,
            at_s=self._steps.time(),
            ended=kept.ended,
            state=machine.state,
            loading=kept.loading,
            climbed=kept.climbed,
            pinned=machine.pinned,
            changed_s=evidence.changed_at_s + booted_s,
            parts=self.parts(),
            footprints={name: evidence.footprints.learned(place) for place, name in enumerate(names)},
            load_s=dict(zip(names, evidence.load_s, strict=True)),
            failures=dict(zip(names, evidence.failures, strict=True)),
            backoff_s={name: at_s + booted_s for name, at_s in zip(names, evidence.backoff_until_s, strict=True)},
            wasted=dict(zip(names, evidence.wasted, strict=True)),
        )
