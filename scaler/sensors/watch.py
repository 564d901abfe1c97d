"""Putting questions to sensors that may fail or hang: worker threads, and each sensor's health.

Owns how a stuck call is kept from stopping the others and when a failed sensor is tried again. Knows
neither what is read nor who waits for it. Used by one thread at a time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

from scaler.errors import ScalerError, SensorFailed
from scaler.sensors import Sensor

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What ``call`` returns, in a thread of its own; raises what it raises, and TimeoutError after so many seconds.

    A call that hangs goes on in its thread, which keeps nothing from ending.
    """
    answer = Future[T]()

    def work() -> None:
        try:
            value = call()
        except BaseException as error:  # noqa: BLE001  # not swallowed: whoever waits gets it
            answer.set_exception(error)
        else:
            answer.set_result(value)

    threading.Thread(target=work, name="scaler-within", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        if answer.done():
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from error


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


class NoThread(SensorFailed):
    """A sensor was not asked, since no thread could be started for that: no fault of its own."""

    def __init__(self, cause: RuntimeError) -> None:
        super().__init__(
            f"not asked, because no thread could be started ({cause}); memory is short, or this user may have no more "
            "processes (ulimit -u)"
        )


class Question(NamedTuple):
    """A sensor to be read, and the place for what it answers."""

    sensor: Sensor
    answer: Future[object]


class Worker:
    """A thread that reads sensors one after the other.

    One for all of them, because a hand-over between threads costs as much as a sensor does; a sensor that is
    slow keeps the thread that it is in, and the questions behind it move to a new one.
    """

    def __init__(self) -> None:
        self._questions: SimpleQueue[Question | None] = SimpleQueue()
        self._answers: list[Future[object]] = []
        self._predecessors: list[Worker] = []
        self._thread: threading.Thread | None = None
        self._irreplaceable: NoThread | None = None

    @property
    def busy(self) -> bool:
        """Whether a question that was put to this worker has no answer yet."""
        return any(not answer.done() for answer in self._answers)

    def put(self, question: Question) -> None:
        """Have the question answered after those before it; by NoThread where no thread can be started for them."""
        if self._thread is None:
            try:
                self._begin()
            except RuntimeError as error:
                question.answer.set_exception(NoThread(error))
                return
        self._answers = [answer for answer in self._answers if not answer.done()]
        self._answers.append(question.answer)
        self._questions.put(question)

    def replace(self) -> Worker:
        """Move the questions that were not begun to a new worker and return it; this one ends with its own.

        Where no thread can be started, all stays as it is, and this one is returned.
        """
        successor = Worker()
        try:
            successor._begin()
        except RuntimeError as error:
            self._irreplaceable = NoThread(error)
            return self
        successor._predecessors = [
            worker for worker in (*self._predecessors, self) if worker._thread is not None and worker._thread.is_alive()
        ]
        for question in self._drain():
            self._answers.remove(question.answer)
            successor.put(question)
        self._questions.put(None)
        return successor

    def give_up(self) -> None:
        """Have the questions that were not begun answered by why they were not, if this one could not be replaced."""
        if self._irreplaceable is not None:
            for question in self._drain():
                question.answer.set_exception(self._irreplaceable)

    def retire(self) -> None:
        """Drop the questions that were not begun and end, as those replaced before; return when all have ended.

        A sensor that is being read is not waited for: its thread ends with the call.
        """
        for question in self._drain():
            question.answer.cancel()
        self._questions.put(None)
        for worker in (*self._predecessors, self):
            if worker._thread is not None and not worker.busy:
                worker._thread.join()

    def _begin(self) -> None:
        """Start the thread; raises RuntimeError for want of memory, or of processes that this user may have."""
        # A daemon: a stuck driver may not keep Python from ending.
        thread = threading.Thread(target=self._work, name="scaler-sensors", daemon=True)
        thread.start()
        self._thread = thread

    def _drain(self) -> Iterator[Question]:
        while True:
            try:
                question = self._questions.get_nowait()
            except Empty:
                return
            if question is not None:
                yield question

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            try:
                value = question.sensor.read()
            except BaseException as error:  # noqa: BLE001  # not swallowed: it is the answer, and the watch judges it
                question.answer.set_exception(error)
            else:
                question.answer.set_result(value)


class Watch:
    """One sensor's health: whether it is lost, and when it is asked again.

    The pause after a failure is ``pause_s`` seconds and doubles with each failure in a row up to ``pause_max_s``.
    """

    def __init__(self, sensor: Sensor, *, pause_s: float, pause_max_s: float) -> None:
        self.name = sensor.name
        self.lost = False
        self._sensor = sensor
        self._first_pause_s = pause_s
        self._pause_max_s = pause_max_s
        self._pause_s = pause_s
        self._retry_at = -math.inf
        self._answer: Future[object] | None = None

    def set_pause(self, pause_s: float) -> None:
        """Begin the pauses at this length; one that has begun stays as it is."""
        if not self.lost:
            self._pause_s = pause_s
        self._first_pause_s = pause_s

    def ask(self, now: float, worker: Worker) -> Future[object] | None:
        """Put the question to ``worker``; ``None`` in a pause, and while the last call is stuck."""
        # Half a pause of grace: a reading that comes a little early would otherwise miss its turn.
        if now + self._first_pause_s / 2 < self._retry_at:
            return None
        if self._answer is not None and not self._answer.done():
            if not self.lost:
                # A stop left this call running and a start came before its answer: wait for it now.
                return self._answer
            # Another call would need another thread, and the next one a third.
            self._postpone(now)
            return None
        self._answer = Future()
        worker.put(Question(self._sensor, self._answer))
        return self._answer

    def judge(self, answer: Future[object], now: float, timeout_s: float) -> SensorLost | SensorRecovered | None:
        """Note what became of the question after at most ``timeout_s`` seconds; return what there is to tell."""
        was_lost = self.lost
        error = self._fault(answer, timeout_s)
        self.lost = error is not None
        if error is None:
            self._pause_s = self._first_pause_s
            return SensorRecovered(self.name) if was_lost else None
        pause_s = self._first_pause_s if isinstance(error, NoThread) else self._postpone(now)
        if was_lost:
            return None
        reason = str(error) if isinstance(error, ScalerError | TimeoutError) else f"{type(error).__name__}: {error}"
        return SensorLost(self.name, reason, pause_s)

    def _fault(self, answer: Future[object], timeout_s: float) -> BaseException | None:
        if not answer.done():
            return TimeoutError(f"no answer within {timeout_s:g} s")
        if (error := answer.exception()) is not None:
            return error
        where = _no_number(answer.result())
        return None if where is None else SensorFailed(f"it answered what is no number: {self.name}{where}")

    def _postpone(self, now: float) -> float:
        pause_s = min(self._pause_s, self._pause_max_s)
        self._pause_s = pause_s * 2
        self._retry_at = now + pause_s
        return pause_s


def _no_number(value: object) -> str | None:
    """Which figure in a part of a reading is NaN or infinite, as ``.busy_ratio is nan``; None where none is."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f" is {value}"
    if isinstance(value, tuple):
        for position, one in enumerate(value):
            if (where := _no_number(one)) is not None:
                return f"[{position}]{where}"
    # Not by `fields`, which makes a tuple each time, and this is done with every reading.
    for name in getattr(value, "__dataclass_fields__", ()):
        if (where := _no_number(getattr(value, name))) is not None:
            return f".{name}{where}"
    return None
