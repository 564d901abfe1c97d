"""An event loop whose time is a number, and whose order among tasks that are ready is a seed's."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

BEGIN_S = 1000.0
"""Where monotonic time begins: as on a machine that was started a quarter of an hour ago."""


SPINS = 20_000
"""So many steps in which no time passes are a circle that has no end."""


class Reached(Exception):
    """The step at which the run was to stop."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs one handle a step, and never waits: where nothing is ready it is the time of the next timer.

    asyncio promises that callbacks run in the order in which they were registered, and says nothing of when another
    program answers. So a task's next step may be taken before that of another, and callbacks keep their order.
    """

    def __init__(self, dice: random.Random, *, disorder: float = 0.0, until: int | None = None) -> None:
        """``disorder``: how often the next step is that of another task than the one that has waited longest.

        ``until``: the step before which `Reached` is raised.
        """
        super().__init__()
        self.steps = 0
        self.broken: Exception | None = None
        """Raised after the step that set it."""
        self.on_fault: Callable[[str], None] = lambda _: None
        """Told of what nobody handled: an error in a callback, or in a task that nobody asked for its outcome."""
        self.late: Callable[[], float] = lambda: 0.0
        """For how many seconds work that is given to a thread is under way there."""
        self._now = BEGIN_S
        self._dice, self._disorder, self._until = dice, disorder, until
        self._digest = hashlib.blake2b(digest_size=8)
        self._named = 0
        self.numbers: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        """Which task each is, in the order in which they began."""
        self._left = False
        self._still = (BEGIN_S, 0)
        """The latest time, and the step at which it came."""
        self._elsewhere: set[asyncio.Future[Any]] = set()
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[Any]

    @property
    def trace(self) -> str:
        """A digest of every step so far: its time, and whose it was."""
        return self._digest.hexdigest()

    def time(self) -> float:
        """Monotonic seconds."""
        return self._now

    def sleep_through(self, seconds: float) -> None:
        """Let so much time pass at once, as a machine does that was suspended and whose clock went on."""
        self._now += seconds

    def create_task(self, coro: Any, *, name: Any = None, **kwargs: Any) -> asyncio.Task[Any]:
        """As every loop does; names count from the loop's beginning, for two runs of a seed to be alike."""
        self._named += 1
        task = super().create_task(
            coro, name=f"{name or getattr(coro, '__qualname__', 'closing')} #{self._named}", **kwargs
        )
        self.numbers[task] = self._named
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Do it on the loop, after as long as a thread may take."""
        done = self.create_future()
        self._elsewhere.add(done)

        def work() -> None:
            self._elsewhere.discard(done)
            try:
                outcome = func(*args)
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(outcome)

        self.call_later(self.late(), work)
        return done

    async def shutdown_asyncgens(self) -> None:
        """As every loop does; but another manager may live on this one after it."""
        await super().shutdown_asyncgens()
        self._asyncgens_shutdown_called = False

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # the loop's own name
        """Wait for what is under way in threads."""
        while self._elsewhere:
            await asyncio.sleep(0.1)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nothing may end up here."""
        self.on_fault(f"{context.get('message')}: {context.get('exception')!r}")

    def leave(self) -> None:
        """Cancel what a run that was broken off has left behind, and close."""
        self._left = True
        self.on_fault = lambda _: None
        for _ in range(3):
            for task in asyncio.all_tasks(self):
                task.cancel()
            self.run_until_complete(asyncio.sleep(300))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()

    def _write_to_self(self) -> None:
        """Nobody else is there who would have to wake it up."""

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and (scheduled[0].cancelled() or scheduled[0].when() <= self._now):
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if not timer.cancelled():
                ready.append(timer)
        if not ready:
            if not scheduled:
                raise RuntimeError("nothing is ready, no timer is set, and somebody waits")
            self._now = scheduled[0].when()
            return
        handle = ready.popleft()
        if ready and self._disorder and self._dice.random() < self._disorder:
            handle = self._another(handle)
        if handle.cancelled():
            return
        if self._left:
            handle._run()
            return
        if self.steps == self._until:
            raise Reached
        self.steps += 1
        if self._now != self._still[0]:
            self._still = (self._now, self.steps)
        elif self.steps - self._still[1] > SPINS:
            self.on_fault(f"{SPINS} steps in which no time passes, the last of {_whose(handle)}")
        self._digest.update(f"{self._now!r} {_whose(handle)}\n".encode())
        handle._run()
        if self.broken is not None:
            raise self.broken

    def _another(self, first: asyncio.Handle) -> asyncio.Handle:
        """The step of a task that is ready, in place of that of the one whose turn it is."""
        ready = self._ready
        if _task(first) is None:
            return first
        tasks = [position for position, handle in enumerate(ready) if _task(handle) is not None]
        if (position := self._dice.choice([None, *tasks])) is None:
            return first
        chosen, ready[position] = ready[position], first
        return chosen


def _task(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    """The task that a handle is a step of."""
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner if isinstance(owner, asyncio.Task) else None


def _whose(handle: asyncio.Handle) -> str:
    if (task := _task(handle)) is not None:
        return task.get_name()
    callback = handle._callback  # type: ignore[attr-defined]
    return str(getattr(callback, "__qualname__", type(callback).__name__))
