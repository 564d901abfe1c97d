"""The resource monitor: asks the sensors once an interval and tells its subscribers what they saw.

Owns the loop's thread, the schedule, the time limit on a reading and the order of events. Must not know what
a reading means or who listens.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from scaler.errors import ConfigError
from scaler.readings import Reading
from scaler.sensors import Sensor, default_sensors
from scaler.sensors.watch import SensorLost, SensorRecovered, Watch, Worker

__all__ = ["MonitorEvent", "ReadingTaken", "ResourceMonitor", "SensorLost", "SensorRecovered", "next_due"]

log = logging.getLogger(__name__)

# How long the sensors may take one after the other before the rest moves on without the one that is being read.
# Each in a thread of its own they took 2.7 ms of processor time a reading, in one 1.1 ms: they fight for the
# interpreter.
HEAD_START_S = 0.02


@dataclass(frozen=True, slots=True)
class ReadingTaken:
    """The machine was read."""

    reading: Reading


MonitorEvent = ReadingTaken | SensorLost | SensorRecovered


class ResourceMonitor:
    """Reads the machine once an interval in a thread of its own; every method may be called from any thread.

    ``interval_s`` is the time from one reading to the next, ``own_pids`` returns the roots of our model's
    process trees, ``sensor_timeout_s`` is how long a reading waits for its sensors, and ``retry_max_s`` bounds
    the pause after a sensor's failures, which begins at one interval and doubles. Raises ConfigError when one
    of these is not above 0, or when two ``sensors`` fill the same field of a reading. ``clock`` is monotonic and
    ``wall_clock`` that of people, both in seconds; ``worker`` makes the thread that asks the sensors.
    """

    def __init__(
        self,
        *,
        interval_s: float = 1.0,
        own_pids: Callable[[], Collection[int]] = lambda: (),
        sensors: Sequence[Sensor] | None = None,
        sensor_timeout_s: float = 2.0,
        retry_max_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        worker: Callable[[], Worker] = Worker,
    ) -> None:
        sensors = default_sensors(own_pids) if sensors is None else sensors
        _check({"interval_s": interval_s, "sensor_timeout_s": sensor_timeout_s, "retry_max_s": retry_max_s}, sensors)
        self._interval_s = interval_s
        self._sensor_timeout_s = sensor_timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._watches = [Watch(sensor, pause_s=interval_s, pause_max_s=retry_max_s) for sensor in sensors]
        self._new_worker = worker
        self._worker: Worker | None = None
        self._reading_lock = threading.Lock()
        self._changed = threading.Condition()
        self._run_lock = threading.Lock()
        self._run: _Run | None = None
        self._latest: Reading | None = None
        self._outbox_lock = threading.Lock()
        self._outbox: deque[MonitorEvent] = deque()
        self._delivering = False
        self._subscribers: dict[object, Callable[[MonitorEvent], None]] = {}

    @property
    def running(self) -> bool:
        """Whether the loop runs and has not been asked to stop."""
        run = self._run
        return run is not None and not run.stopping

    @property
    def sensors(self) -> tuple[str, ...]:
        """The names of those that are asked, as `Reading.missing` has them."""
        return tuple(watch.name for watch in self._watches)

    @property
    def latest(self) -> Reading | None:
        """The newest reading; ``None`` before the first."""
        return self._latest

    def start(self) -> None:
        """Begin to read, with one reading at once; does nothing when running already.

        Raises RuntimeError where the system has no thread for it; it can be started again then.
        """
        with self._run_lock:
            if self.running:
                return
            before, self._run = self._run, (run := _Run())
            # Daemon threads throughout: neither a stuck driver nor a forgotten stop() may keep Python from ending.
            run.thread = threading.Thread(target=self._loop, args=(run,), name="scaler-monitor", daemon=True)
            try:
                run.thread.start()
            except RuntimeError:
                self._run = before
                raise

    def stop(self) -> None:
        """End the loop without waiting for the next reading or a slow sensor; return when its threads have ended.

        A sensor's call that is still running cannot be ended: its thread ends when the call returns. Called from
        a subscriber, this returns at once and the threads end when the subscriber has returned. A reading that
        was taken already is still delivered. Only a read_now() under way in another thread is waited for.
        """
        with self._run_lock:
            run = self._run
        if run is None:
            return
        run.stopping = True
        run.wake.set()
        with self._changed:
            self._changed.notify_all()
        if run.thread is not threading.current_thread():
            run.thread.join()

    def set_interval(self, interval_s: float) -> None:
        """Read every ``interval_s`` seconds from now on. Raises ConfigError when that is not above 0."""
        _check_seconds({"interval_s": interval_s})
        if interval_s != self._interval_s:
            self._interval_s = interval_s
            for watch in self._watches:
                watch.set_pause(interval_s)
            self.nudge()

    def nudge(self) -> None:
        """Ask the loop to read now instead of at the end of the interval; does nothing when not running."""
        run = self._run
        if run is not None:
            run.wake.set()

    def read_now(self) -> Reading:
        """Take a reading in the calling thread, publish it, and return it; works without the loop, too.

        Waits at most twice ``sensor_timeout_s``: for a reading that is being taken, and for its own. When
        another thread is delivering events, that one delivers these as well.
        """
        with self._reading_lock:
            round_ = self._ask(None)
            reading = self._conclude(round_)
            if not self.running:
                self._retire_worker()
        self._deliver()
        return reading

    def subscribe(self, callback: Callable[[MonitorEvent], None]) -> Callable[[], None]:
        """Call ``callback`` with every event from now on, in order; return what ends that.

        It is called in the loop's thread or that of read_now(), which waits for it: it must be quick.
        """
        token = object()
        with self._outbox_lock:
            self._subscribers[token] = callback

        def unsubscribe() -> None:
            with self._outbox_lock:
                self._subscribers.pop(token, None)

        return unsubscribe

    # ------------------------------------------------------------------ the loop

    def _loop(self, run: _Run) -> None:
        try:
            due = self._clock()
            while not run.stopping:
                with self._reading_lock:
                    round_ = self._ask(run)
                    if run.stopping:
                        break
                    self._conclude(round_)
                self._deliver()
                now = self._clock()
                due = next_due(due, now, self._interval_s)
                if run.wake.wait(due - now):
                    run.wake.clear()
                    due = self._clock()
        finally:
            run.stopping = True
            with self._reading_lock:
                self._retire_worker()

    def _ask(self, run: _Run | None) -> _Round:
        """Put the question to every sensor; wait for the answers, the time limit, or until ``run`` is stopping."""
        at_s = self._clock()
        if self._worker is None:
            self._worker = self._new_worker()
        asked = ((watch, watch.ask(at_s, self._worker)) for watch in self._watches)
        round_ = _Round(at_s, self._wall_clock(), {watch: answer for watch, answer in asked if answer is not None})
        open_answers = len(round_.answers)

        def on_answer(_: Future[object]) -> None:
            nonlocal open_answers
            with self._changed:
                open_answers -= 1
                if not open_answers:
                    self._changed.notify_all()

        for answer in round_.answers.values():
            answer.add_done_callback(on_answer)

        def settled() -> bool:
            return not open_answers or (run is not None and run.stopping)

        # In real time, whatever the clock that was handed in: a thread can wait for nothing else.
        deadline = time.monotonic() + self._sensor_timeout_s
        with self._changed:
            while not settled() and (left_s := deadline - time.monotonic()) > 0:
                patience_s = min(HEAD_START_S, left_s) if self._worker.busy else left_s
                if not self._changed.wait_for(settled, patience_s) and self._worker.busy:
                    self._worker = self._worker.replace()
        if not settled() and self._worker.busy:
            self._worker.give_up()
        return round_

    def _conclude(self, round_: _Round) -> Reading:
        """Judge the answers, make the reading of them, and queue what there is to tell."""
        events: list[MonitorEvent] = []
        values: dict[str, Any] = {}
        for watch, answer in round_.answers.items():
            change = watch.judge(answer, round_.at_s, self._sensor_timeout_s)
            if change is not None:
                events.append(change)
            if not watch.lost:
                values[watch.name] = answer.result()
        missing = tuple(watch.name for watch in self._watches if watch.lost)
        self._latest = reading = Reading(at_s=round_.at_s, wall_s=round_.wall_s, missing=missing, **values)
        # Still under the reading lock, or a later reading of another thread could be queued before this one.
        with self._outbox_lock:
            self._outbox.extend([*events, ReadingTaken(reading)])
        return reading

    def _retire_worker(self) -> None:
        if self._worker is not None:
            self._worker.retire()
            self._worker = None

    def _deliver(self) -> None:
        """Deliver what is queued, in order; a delivery under way in another thread, or above this one, goes on.

        No lock is held meanwhile, so a subscriber may call any method of the monitor.
        """
        with self._outbox_lock:
            if self._delivering:
                return
            self._delivering = True
        try:
            while (next_delivery := self._next_delivery()) is not None:
                event, callbacks = next_delivery
                for callback in callbacks:
                    try:
                        callback(event)
                    except Exception:
                        # The one place that reports and goes on: the fault is the subscriber's, nobody above
                        # could mend it, and the machine must stay watched for the others.
                        log.exception("A subscriber of the resource monitor failed on %s", type(event).__name__)
        except BaseException:
            with self._outbox_lock:
                self._delivering = False
            raise

    def _next_delivery(self) -> tuple[MonitorEvent, tuple[Callable[[MonitorEvent], None], ...]] | None:
        with self._outbox_lock:
            if not self._outbox:
                self._delivering = False
                return None
            return self._outbox.popleft(), tuple(self._subscribers.values())


def next_due(due: float, now: float, interval_s: float) -> float:
    """When to read next: the first point of the grid ``due + n * interval_s`` after ``now``, n at least 1.

    Points that went by while the machine slept or a reading took long are left out, not made up for. Never
    further than an interval from ``now``, should the clock have been set back.
    """
    passed = max(math.floor((now - due) / interval_s), 0)
    return min(due + (passed + 1) * interval_s, now + interval_s)


class _Run:
    """One start of the loop, up to its stop."""

    def __init__(self) -> None:
        self.stopping = False
        self.wake = threading.Event()
        self.thread: threading.Thread


class _Round(NamedTuple):
    """The questions of one reading; sensors in a pause have none."""

    at_s: float
    wall_s: float
    answers: dict[Watch, Future[object]]


def _check_seconds(positive: dict[str, float]) -> None:
    for name, value in positive.items():
        if not 0 < value <= threading.TIMEOUT_MAX:
            raise ConfigError(f"monitor: {name} is {value}; expected seconds, more than 0")


def _check(positive: dict[str, float], sensors: Sequence[Sensor]) -> None:
    _check_seconds(positive)
    known = {field.name for field in fields(Reading)} - {"at_s", "wall_s", "missing"}
    names = [sensor.name for sensor in sensors]
    for position, name in enumerate(names):
        if name not in known or name in names[:position]:
            raise ConfigError(
                f"monitor: sensor {name!r}; expected one sensor each for any of {', '.join(sorted(known))}"
            )
