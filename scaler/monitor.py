"""The resource monitor: asks the sensors once an interval and tells its subscribers what they saw.

Owns the loop's thread, one worker thread a sensor, the time limit on a sensor's answer, the pauses after
failures and the order of events. Must not know what a reading means or who listens.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from queue import SimpleQueue
from typing import Any

from scaler.errors import ConfigError, ScalerError
from scaler.readings import Reading
from scaler.sensors import Sensor, default_sensors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReadingTaken:
    """The machine was read."""

    reading: Reading


@dataclass(frozen=True, slots=True)
class SensorLost:
    """A sensor failed or did not answer in time; told once, until it has recovered."""

    sensor: str
    reason: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class SensorRecovered:
    """A sensor that was lost answers again."""

    sensor: str


MonitorEvent = ReadingTaken | SensorLost | SensorRecovered


class ResourceMonitor:
    """Reads the machine once an interval in a thread of its own; every method may be called from any thread.

    ``interval_s`` is the time from one reading to the next, ``own_pids`` returns the roots of our model's
    process trees, ``sensor_timeout_s`` is how long a reading waits for its sensors, and ``retry_max_s`` bounds
    the pause after a sensor's failures, which begins at one interval and doubles. Raises ConfigError when one
    of these is not above 0, or when two sensors fill the same field of a reading.
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
    ) -> None:
        sensors = default_sensors(own_pids) if sensors is None else sensors
        _check({"interval_s": interval_s, "sensor_timeout_s": sensor_timeout_s, "retry_max_s": retry_max_s}, sensors)
        self._interval_s = interval_s
        self._sensor_timeout_s = sensor_timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._watches = [_Watch(sensor, interval_s, retry_max_s) for sensor in sensors]
        self._reading_lock = threading.Lock()
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
    def latest(self) -> Reading | None:
        """The newest reading; ``None`` before the first."""
        return self._latest

    def start(self) -> None:
        """Begin to read, with one reading at once; does nothing when running already."""
        with self._run_lock:
            if self.running:
                return
            self._run = _Run()
            # Daemon threads throughout: neither a stuck driver nor a forgotten stop() may keep Python from ending.
            thread = threading.Thread(target=self._loop, args=(self._run,), name="scaler-monitor", daemon=True)
            self._run.thread = thread
            thread.start()

    def stop(self) -> None:
        """End the loop without waiting for the next reading or a slow sensor; return when its threads have ended.

        A sensor's call that is stuck cannot be ended: its thread ends when the call returns. Called from a
        subscriber, this returns at once and the threads end when the subscriber has returned. A reading that
        was taken already is still delivered.
        """
        with self._run_lock:
            run = self._run
        if run is None:
            return
        run.stopping = True
        run.wake.set()
        with run.answered:
            run.answered.notify_all()
        if run.thread is not threading.current_thread():
            run.thread.join()

    def nudge(self) -> None:
        """Ask the loop to read now instead of at the end of the interval; does nothing when not running."""
        run = self._run
        if run is not None:
            run.wake.set()

    def read_now(self) -> Reading:
        """Take a reading in the calling thread, publish it, and return it; works without the loop, too.

        Waits at most twice ``sensor_timeout_s``: for a reading that is being taken, and for its own.
        """
        with self._reading_lock:
            taken = self._take(None)
            if not self.running:
                self._retire_workers()
        assert taken is not None  # only a loop that stops gives a reading up
        reading, events = taken
        self._publish(events)
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
                    taken = self._take(run)
                if taken is None:
                    break
                self._publish(taken[1])
                now = self._clock()
                due = next_due(due, now, self._interval_s)
                if run.wake.wait(due - now):
                    run.wake.clear()
                    due = self._clock()
        finally:
            with self._reading_lock:
                self._retire_workers()

    def _take(self, run: _Run | None) -> tuple[Reading, list[MonitorEvent]] | None:
        """Ask every sensor at once and wait for all of them; ``None`` when ``run`` is stopping."""
        at_s, wall_s = self._clock(), self._wall_clock()
        answered = threading.Condition() if run is None else run.answered
        calls = {watch: call for watch in self._watches if (call := watch.ask(at_s, answered)) is not None}

        def settled() -> bool:
            return all(call.done for call in calls.values()) or (run is not None and run.stopping)

        with answered:
            # In real time, whatever the clock that was handed in: a thread can wait for nothing else.
            answered.wait_for(settled, self._sensor_timeout_s)
        if run is not None and run.stopping:
            return None
        events: list[MonitorEvent] = []
        values: dict[str, Any] = {}
        for watch in self._watches:
            failure = watch.judge(calls.get(watch), at_s, self._sensor_timeout_s)
            if failure is not None:
                events.append(failure)
            if not watch.failures and watch in calls:
                values[watch.name] = calls[watch].value
        missing = tuple(watch.name for watch in self._watches if watch.failures)
        self._latest = reading = Reading(at_s=at_s, wall_s=wall_s, missing=missing, **values)
        events.append(ReadingTaken(reading))
        return reading, events

    def _retire_workers(self) -> None:
        for watch in self._watches:
            watch.retire()

    def _publish(self, events: Iterable[MonitorEvent]) -> None:
        """Deliver in the order of publishing: who finds a delivery under way leaves its events to that one.

        No lock is held meanwhile, so a subscriber may call any method of the monitor.
        """
        with self._outbox_lock:
            self._outbox.extend(events)
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
        self.answered = threading.Condition()
        self.thread: threading.Thread


class _Call:
    """One question to a sensor, and its answer or failure."""

    def __init__(self, answered: threading.Condition) -> None:
        self._answered = answered
        self.done = False
        self.value: object = None
        self.error: Exception | None = None

    def ask(self, sensor: Sensor) -> None:
        """Have the sensor read and wake who waits; a failure is kept for whoever judges the answer."""
        try:
            self.value = sensor.read()
        except Exception as error:
            self.error = error
        with self._answered:
            self.done = True
            self._answered.notify_all()


class _Watch:
    """One sensor with its worker, its failures in a row and its next try. Used under the reading lock."""

    def __init__(self, sensor: Sensor, pause_s: float, pause_max_s: float) -> None:
        self.name = sensor.name
        self.failures = 0
        self._sensor = sensor
        self._pause_s = pause_s
        self._pause_max_s = pause_max_s
        self._retry_at = -math.inf
        self._call: _Call | None = None
        self._questions: SimpleQueue[_Call | None] = SimpleQueue()
        self._worker: threading.Thread | None = None

    def ask(self, now: float, answered: threading.Condition) -> _Call | None:
        """Put the question to the sensor's worker; ``None`` in a pause."""
        # Half an interval of grace: a reading that comes a little early would otherwise miss its turn.
        if now + self._pause_s / 2 < self._retry_at:
            return None
        if self._stuck:
            # The call that got stuck stands for this one: a second would need a second thread, and a third.
            return self._call
        if self._worker is None:
            self._questions = SimpleQueue()
            self._worker = threading.Thread(
                target=_work, args=(self._sensor, self._questions), name=f"scaler-sensor-{self.name}", daemon=True
            )
            self._worker.start()
        self._call = _Call(answered)
        self._questions.put(self._call)
        return self._call

    def judge(self, call: _Call | None, now: float, timeout_s: float) -> SensorLost | SensorRecovered | None:
        """Note what became of the call; return what there is to tell."""
        if call is None:
            return None
        if call.done and call.error is None:
            recovered, self.failures = self.failures > 0, 0
            return SensorRecovered(self.name) if recovered else None
        pause_s = min(self._pause_s * 2.0**self.failures, self._pause_max_s)
        self._retry_at = now + pause_s
        self.failures += 1
        if self.failures > 1:
            return None
        reason = _describe(call.error) if call.error is not None else f"no answer within {timeout_s:g} s"
        return SensorLost(self.name, reason, pause_s)

    def retire(self) -> None:
        """End the worker; one that is stuck in a call ends by itself when the call returns."""
        if self._worker is not None:
            self._questions.put(None)
            if not self._stuck:
                self._worker.join()
            self._worker = None

    @property
    def _stuck(self) -> bool:
        return self._call is not None and not self._call.done


def _work(sensor: Sensor, questions: SimpleQueue[_Call | None]) -> None:
    while (call := questions.get()) is not None:
        call.ask(sensor)


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, ScalerError) else f"{type(error).__name__}: {error}"


def _check(positive: dict[str, float], sensors: Sequence[Sensor]) -> None:
    for name, value in positive.items():
        if not value > 0:
            raise ConfigError(f"monitor: {name} is {value}; expected more than 0 s")
    known = {field.name for field in fields(Reading)} - {"at_s", "wall_s", "missing"}
    names = [sensor.name for sensor in sensors]
    for position, name in enumerate(names):
        if name not in known or name in names[:position]:
            raise ConfigError(f"monitor: sensor {name!r}; expected one sensor each for any of {', '.join(sorted(known))}")
