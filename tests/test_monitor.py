"""The resource monitor: its loop, its subscribers, and sensors that fail or hang."""

from __future__ import annotations

import itertools
import logging
import math
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scaler
from scaler.errors import ConfigError, SensorFailed
from scaler.monitor import (
    MonitorEvent,
    ReadingTaken,
    ResourceMonitor,
    SensorLost,
    SensorRecovered,
    next_due,
)
from scaler.readings import Gpu, Memory, ModelLoad, Power, Pressure, Reading, Stall, Swap
from scaler.sensors import Sensor
from scaler.sensors.memory import MemorySensor

MEMORY = Memory(16, 12)
NEVER_S = 3600.0
"""An interval or a limit so long that a test which waits for its end fails by its own time limit."""
LIMIT_S = 5.0
"""A limit that a test waits for, though a busy machine must not reach it with the sensors that answer."""

pytestmark = pytest.mark.timeout(30)


class FakeSensor:
    """Answers what it is told to: a value, or an exception to raise, or a function to call."""

    def __init__(self, name: str = "memory", answer: object = MEMORY) -> None:
        self.name = name
        self.answer = answer
        self.calls = 0

    def read(self) -> object:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer() if callable(self.answer) else self.answer


class StuckSensor(FakeSensor):
    """Hangs in every call until it is released."""

    def __init__(self, name: str = "gpus") -> None:
        super().__init__(name, self.wait)
        self.entered = threading.Event()
        self.released = threading.Event()

    def wait(self) -> None:
        self.entered.set()
        self.released.wait()


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Listener:
    """Keeps every event and lets a test wait for the next one."""

    def __init__(self, monitor: ResourceMonitor) -> None:
        self.events: queue.SimpleQueue[MonitorEvent] = queue.SimpleQueue()
        self.leave = monitor.subscribe(self.events.put)

    def reading(self) -> Reading:
        """The next reading that is published."""
        while True:
            event = self.events.get(timeout=20)
            if isinstance(event, ReadingTaken):
                return event.reading

    def all(self) -> list[MonitorEvent]:
        """Everything that was published so far and not looked at."""
        return [self.events.get() for _ in range(self.events.qsize())]


Make = Callable[..., ResourceMonitor]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make monitors that never read again by themselves; stop them, and find that no thread of theirs is left."""
    made: list[ResourceMonitor] = []
    before = set(threading.enumerate())

    def make_one(*sensors: Sensor, **settings: object) -> ResourceMonitor:
        settings = {"interval_s": NEVER_S, "sensor_timeout_s": 20.0, "retry_max_s": NEVER_S} | settings
        monitor = ResourceMonitor(sensors=sensors, **settings)  # type: ignore[arg-type]
        made.append(monitor)
        return monitor

    yield make_one
    for monitor in made:
        monitor.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=20)
        assert not thread.is_alive()


# ---------------------------------------------------------------- readings


def test_a_reading_holds_what_the_sensors_saw_and_when(make: Make) -> None:
    """Each sensor fills its field; the monotonic clock is for calculation, the wall clock for people."""
    clock = Clock()
    monitor = make(
        FakeSensor(), FakeSensor("own_bytes", 7), FakeSensor("swap", Swap(8, 1)), clock=clock, wall_clock=lambda: 5.0
    )
    expected = Reading(at_s=1000.0, wall_s=5.0, memory=MEMORY, own_bytes=7, swap=Swap(8, 1))
    assert monitor.latest is None
    assert monitor.read_now() == expected
    assert monitor.latest == expected


def test_what_the_machine_lacks_is_not_missing(make: Make) -> None:
    """A machine without a GPU is no broken machine."""
    reading = make(FakeSensor("gpus", None), FakeSensor("power", Power(True))).read_now()
    assert reading.gpus is None
    assert reading.missing == ()


def test_what_could_not_be_read_is_missing_and_never_zero(make: Make, tmp_path: Path) -> None:
    """A memory sensor that fails must not read as an empty or a full machine."""
    reading = make(MemorySensor(proc=tmp_path), FakeSensor("power", Power(True))).read_now()
    assert reading.memory is None
    assert reading.missing == ("memory",)
    assert reading.power == Power(True)


def test_processes_that_cannot_be_named_make_own_missing() -> None:
    """Without knowing which processes are ours, nothing that is split into own and other is known."""

    def forgotten() -> tuple[int, ...]:
        raise SensorFailed("no list of processes")

    monitor = ResourceMonitor(own_pids=forgotten, sensor_timeout_s=20.0)
    reading = monitor.read_now()
    assert reading.own_bytes is None
    assert {"own_bytes", "cpu"} <= set(reading.missing)
    assert reading.memory is not None


def test_a_real_child_is_read_as_our_own() -> None:
    """Every sensor of this machine, and 64 MiB in a process of ours."""
    program = "held = bytearray(b'x') * (64 << 20); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        reading = ResourceMonitor(own_pids=lambda: (child.pid,), sensor_timeout_s=20.0).read_now()
        child.communicate("\n")
    assert reading.missing == ()
    usage = reading.usage("ram")
    assert usage is not None
    assert 64 * 2**20 <= usage.own_bytes < 96 * 2**20


def test_importing_the_monitor_loads_no_gpu_library() -> None:
    """A machine without a GPU should not pay for it."""
    program = "import sys, scaler.monitor; sys.exit('pynvml' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(scaler.__file__).parents[1], check=True)


# ---------------------------------------------------------------- sensors that fail


def test_a_failure_is_told_once_with_its_reason_and_so_is_the_recovery(make: Make) -> None:
    """A sensor that stays broken must not fill the log."""
    clock = Clock()
    sensor = FakeSensor(answer=SensorFailed("/proc/meminfo: gone"))
    monitor = make(sensor, clock=clock, interval_s=1.0)
    listener = Listener(monitor)
    for _ in range(5):
        assert monitor.read_now().missing == ("memory",)
        clock.now += 60
    sensor.answer = MEMORY
    assert monitor.read_now().memory == MEMORY
    told = [event for event in listener.all() if not isinstance(event, ReadingTaken)]
    assert told == [SensorLost("memory", "/proc/meminfo: gone", 1.0), SensorRecovered("memory")]


def test_an_unforeseen_error_is_told_with_its_kind(make: Make) -> None:
    """The message of a KeyError alone says nothing."""
    monitor = make(FakeSensor(answer=KeyError("avg10")))
    listener = Listener(monitor)
    monitor.read_now()
    assert listener.all()[0] == SensorLost("memory", "KeyError: 'avg10'", NEVER_S)


@pytest.mark.parametrize(
    ("field", "odd", "where", "sound"),
    [
        ("memory", Memory(16, math.nan), "memory.available_bytes is nan", MEMORY),  # type: ignore[arg-type]
        ("own_bytes", math.inf, "own_bytes is inf", 7),
        ("power", Power(True, math.nan), "power.battery_ratio is nan", Power(True, 0.5)),
        ("pressure", Pressure(Stall(-math.inf)), "pressure.memory.some_avg10_ratio is -inf", Pressure(Stall(0.1))),
        ("model", ModelLoad(1, 0, math.nan), "model.cache_ratio is nan", ModelLoad(1, 0, 0.5)),
        (
            "gpus",
            (Gpu(0, "one", 8, 1, 7, 0, 0.5, 60.0), Gpu(1, "two", 8, 1, 7, 0, 0.5, math.nan)),
            "gpus[1].temperature_c is nan",
            (Gpu(0, "one", 8, 1, 7, 0, 0.5, 60.0),),
        ),
    ],
)
def test_a_figure_that_is_no_number_is_missing(make: Make, field: str, odd: object, where: str, sound: object) -> None:
    """Nothing can be concluded from it, so that it counts as not read; which it was is told."""
    clock, sensor = Clock(), FakeSensor(field, odd)
    monitor = make(sensor, clock=clock, interval_s=1.0)
    listener = Listener(monitor)
    reading = monitor.read_now()
    assert (getattr(reading, field), reading.missing) == (None, (field,))
    assert listener.all()[0] == SensorLost(field, f"it answered what is no number: {where}", 1.0)
    sensor.answer = sound
    clock.now += 1.0
    assert getattr(monitor.read_now(), field) == sound


def test_what_happened_to_a_sensor_is_told_before_the_reading(make: Make) -> None:
    """A subscriber then knows why the reading lacks something."""
    monitor = make(FakeSensor(answer=OSError("broken")))
    listener = Listener(monitor)
    monitor.read_now()
    assert [type(event) for event in listener.all()] == [SensorLost, ReadingTaken]


@pytest.mark.parametrize("jitter_s", [0.0, 0.01, -0.01])
def test_a_failed_sensor_is_tried_again_after_doubling_pauses_with_a_bound(make: Make, jitter_s: float) -> None:
    """Once an interval at first, then 2, 4 and 8 intervals apart, though a reading may come a little early or late."""
    clock = Clock()
    sensor = FakeSensor(answer=OSError("broken"))
    monitor = make(sensor, clock=clock, interval_s=1.0, retry_max_s=8.0)
    tried = []
    for second in range(32):
        clock.now = 1000.0 + second + (jitter_s if second % 2 else 0.0)
        calls = sensor.calls
        monitor.read_now()
        if sensor.calls > calls:
            tried.append(second)
    assert tried == [0, 1, 3, 7, 15, 23, 31]


def test_a_recovered_sensor_that_fails_again_starts_with_the_short_pause(make: Make) -> None:
    """What is healed is healed."""
    clock = Clock()
    sensor = FakeSensor()
    monitor = make(sensor, clock=clock, interval_s=1.0)
    listener = Listener(monitor)
    for answer in (OSError("a"), OSError("b"), OSError("c"), MEMORY, OSError("d")):
        sensor.answer = answer
        monitor.read_now()
        clock.now += 60
    lost = [event for event in listener.all() if isinstance(event, SensorLost)]
    assert lost == [SensorLost("memory", "OSError: a", 1.0), SensorLost("memory", "OSError: d", 1.0)]


def test_a_sensor_that_hangs_costs_the_others_nothing(make: Make) -> None:
    """The reading is complete but for the one, when the limit has passed."""
    stuck = StuckSensor()
    monitor = make(stuck, FakeSensor(), sensor_timeout_s=LIMIT_S)
    listener = Listener(monitor)
    reading = monitor.read_now()
    stuck.released.set()
    assert (reading.memory, reading.gpus, reading.missing) == (MEMORY, None, ("gpus",))
    assert listener.all()[0] == SensorLost("gpus", "no answer within 5 s", NEVER_S)


def test_a_slow_sensor_does_not_hold_up_those_after_it(make: Make) -> None:
    """The first answers only when the second has: both answer, within the limit."""
    gate = threading.Event()

    def wait() -> Swap:
        gate.wait()
        return Swap(8, 1)

    def release() -> Memory:
        gate.set()
        return MEMORY

    reading = make(FakeSensor("swap", wait), FakeSensor("memory", release)).read_now()
    assert (reading.swap, reading.memory, reading.missing) == (Swap(8, 1), MEMORY, ())


def test_a_stuck_sensor_is_not_called_again_and_threads_do_not_pile_up(make: Make) -> None:
    """A driver that hangs for a day must cost one thread, not one each second; nor another wait for the limit."""
    clock = Clock()
    stuck = StuckSensor()
    monitor = make(stuck, FakeSensor(), clock=clock, interval_s=1.0, sensor_timeout_s=LIMIT_S)
    listener = Listener(monitor)
    monitor.read_now()
    threads = threading.active_count()
    for _ in range(20):
        clock.now += NEVER_S
        assert monitor.read_now().missing == ("gpus",)
    assert stuck.calls == 1
    assert threading.active_count() <= threads
    stuck.released.set()
    while monitor.read_now().missing:
        clock.now += NEVER_S
    told = [event for event in listener.all() if not isinstance(event, ReadingTaken)]
    assert told == [SensorLost("gpus", "no answer within 5 s", 1.0), SensorRecovered("gpus")]


def test_an_answer_that_comes_too_late_is_not_taken_for_a_new_one(make: Make) -> None:
    """What a stuck call finally says is as old as its question."""
    clock = Clock()
    stuck = StuckSensor("own_bytes")
    answers = itertools.count()

    def count() -> int:
        stuck.wait()
        return next(answers)

    stuck.answer = count
    monitor = make(stuck, clock=clock, interval_s=1.0, sensor_timeout_s=0.5)
    monitor.read_now()
    stuck.released.set()
    while monitor.read_now().missing:
        clock.now += NEVER_S
    assert monitor.latest is not None
    assert monitor.latest.own_bytes is not None
    # 0 is the stuck one's. Where the machine is busy, more answers may come too late.
    assert monitor.latest.own_bytes > 0


NO_THREAD = (
    "not asked, because no thread could be started (can't start new thread); memory is short, or this user may have no "
    "more processes (ulimit -u)"
)


class Threads:
    """Whether the system starts threads of a name, or refuses to, as where memory is short."""

    def __init__(self) -> None:
        self.lacking = False
        self.name = "scaler-sensors"
        self.refused = threading.Event()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """Starts them until the test says otherwise."""
    threads, start = Threads(), threading.Thread.start

    def start_if_possible(thread: threading.Thread) -> None:
        if threads.lacking and thread.name == threads.name:
            threads.refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_possible)
    return threads


def test_a_slow_sensor_is_waited_for_where_no_other_thread_can_be_started(make: Make, threads: Threads) -> None:
    """As while the machine swaps: the reading is whole, if late, and the loop goes on."""

    def slow() -> Swap:
        threads.refused.wait()
        return Swap(8, 1)

    swap = FakeSensor("swap", Swap(8, 0))
    monitor = make(swap, FakeSensor())
    listener = Listener(monitor)
    monitor.start()
    listener.reading()
    threads.lacking, swap.answer = True, slow
    for _ in range(2):
        monitor.nudge()
        reading = listener.reading()
        assert (reading.swap, reading.memory, reading.missing) == (Swap(8, 1), MEMORY, ())
    assert monitor.running


def test_what_a_stuck_sensor_kept_from_being_asked_is_asked_as_soon_as_there_is_a_thread(
    make: Make, threads: Threads
) -> None:
    """Without a doubled pause: nothing was wrong with it. Why it is missing is told."""
    clock, stuck = Clock(), StuckSensor()

    def stay() -> None:
        threads.lacking = True
        stuck.wait()

    stuck.answer = stay
    monitor = make(stuck, FakeSensor(), clock=clock, sensor_timeout_s=LIMIT_S)
    listener = Listener(monitor)
    monitor.start()
    told = [listener.events.get(timeout=20) for _ in range(3)]
    assert told[0] == SensorLost("gpus", "no answer within 5 s", NEVER_S)
    assert told[1] == SensorLost("memory", NO_THREAD, NEVER_S)
    clock.now += NEVER_S
    assert monitor.read_now().missing == ("gpus", "memory")
    threads.lacking = False
    clock.now += NEVER_S
    reading = monitor.read_now()
    stuck.released.set()
    assert (reading.memory, reading.missing) == (MEMORY, ("gpus",))


def test_where_no_thread_can_be_started_at_all_every_sensor_is_missing_and_asked_again(
    make: Make, threads: Threads
) -> None:
    """The monitor does not end of it, and sees the machine again once it can."""
    threads.lacking = True
    monitor = make(FakeSensor(), FakeSensor("swap", Swap(8, 1)), interval_s=1.0)
    listener = Listener(monitor)
    for _ in range(2):
        assert monitor.read_now().missing == ("memory", "swap")
    threads.lacking = False
    reading = monitor.read_now()
    assert (reading.memory, reading.swap, reading.missing) == (MEMORY, Swap(8, 1), ())
    told = [event for event in listener.all() if not isinstance(event, ReadingTaken)]
    lost = [SensorLost("memory", NO_THREAD, 1.0), SensorLost("swap", NO_THREAD, 1.0)]
    assert told == [*lost, SensorRecovered("memory"), SensorRecovered("swap")]


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_monitor_whose_own_thread_cannot_be_started_does_not_run_and_starts_later(
    make: Make, threads: Threads, ran_before: bool
) -> None:
    """Whoever asks is told that nobody watches; to stop it is no fault."""
    threads.name = "scaler-monitor"
    monitor = make(FakeSensor())
    listener = Listener(monitor)
    if ran_before:
        monitor.start()
        listener.reading()
        monitor.stop()
    threads.lacking = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="can't start new thread"):
            monitor.start()
        assert not monitor.running
        monitor.stop()
    threads.lacking = False
    monitor.start()
    assert listener.reading().memory == MEMORY
    assert monitor.running


# ---------------------------------------------------------------- subscribers


def test_a_subscriber_that_fails_is_logged_and_stops_nobody(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The others hear everything, and the log holds the traceback."""

    def broken(event: MonitorEvent) -> None:
        raise RuntimeError("my own fault")

    monitor = make(FakeSensor())
    monitor.subscribe(broken)
    listener = Listener(monitor)
    with caplog.at_level(logging.ERROR):
        monitor.start()
        first = listener.reading()
        monitor.nudge()
        second = listener.reading()
    assert first.at_s <= second.at_s
    assert monitor.running
    assert "my own fault" in caplog.text
    assert "Traceback" in caplog.text


def test_who_left_hears_nothing_more(make: Make) -> None:
    """Leaving twice does no harm, and the same callback may listen twice."""
    monitor = make(FakeSensor())
    heard: list[MonitorEvent] = []
    leave = monitor.subscribe(heard.append)
    monitor.subscribe(heard.append)
    monitor.read_now()
    leave()
    leave()
    monitor.read_now()
    assert len(heard) == 3


def test_every_subscriber_hears_every_reading_in_order_whoever_took_it(make: Make) -> None:
    """Readings from many threads at once reach all in the order of their clock."""
    ticks = itertools.count()
    monitor = make(FakeSensor(), clock=lambda: float(next(ticks)))
    listeners = [Listener(monitor), Listener(monitor)]
    taken: queue.SimpleQueue[float] = queue.SimpleQueue()

    def read() -> None:
        for _ in range(25):
            taken.put(monitor.read_now().at_s)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sorted(taken.get() for _ in range(100))
    for listener in listeners:
        assert [listener.reading().at_s for _ in range(100)] == expected


def test_a_subscriber_may_read_and_the_order_holds(make: Make) -> None:
    """The reading that it asks for is delivered after the one that it was called with, to everyone."""
    ticks = itertools.count()
    monitor = make(FakeSensor(), clock=lambda: float(next(ticks)))
    nested: list[Reading] = []

    def curious(event: MonitorEvent) -> None:
        if not nested:
            nested.append(monitor.read_now())

    monitor.subscribe(curious)
    listener = Listener(monitor)
    first = monitor.read_now()
    assert [listener.reading(), listener.reading()] == [first, nested[0]]


# ---------------------------------------------------------------- start, stop, nudge


def test_the_first_reading_is_taken_at_once_and_the_next_when_nudged(make: Make) -> None:
    """Nobody waits for an interval that has not begun, nor for one that was cut short."""
    monitor = make(FakeSensor())
    listener = Listener(monitor)
    monitor.start()
    first = listener.reading()
    monitor.nudge()
    second = listener.reading()
    assert first.at_s < second.at_s


def test_readings_follow_each_other_by_themselves(make: Make) -> None:
    """One an interval, with nobody asking."""
    monitor = make(FakeSensor(), interval_s=0.01)
    listener = Listener(monitor)
    monitor.start()
    at_s = [listener.reading().at_s for _ in range(5)]
    assert at_s == sorted(set(at_s))


def test_a_nudge_during_a_reading_brings_another(make: Make) -> None:
    """What the nudge was for may have happened after the sensor looked."""
    sensor = StuckSensor("gpus")
    monitor = make(sensor)
    listener = Listener(monitor)
    monitor.start()
    sensor.entered.wait()
    monitor.nudge()
    sensor.released.set()
    listener.reading()
    listener.reading()
    assert sensor.calls == 2


def test_starting_twice_starts_once(make: Make) -> None:
    """Two loops would read twice an interval."""
    monitor = make(FakeSensor())
    monitor.start()
    monitor.start()
    assert sum(thread.name == "scaler-monitor" for thread in threading.enumerate()) == 1


def test_stop_does_not_wait_for_the_interval_and_leaves_no_thread(make: Make) -> None:
    """An hour is left of this one; stopping twice, or before a start, does nothing."""
    before = set(threading.enumerate())
    monitor = make(FakeSensor())
    monitor.stop()
    listener = Listener(monitor)
    monitor.start()
    listener.reading()
    assert monitor.running
    monitor.stop()
    monitor.stop()
    assert not monitor.running
    assert set(threading.enumerate()) <= before


@pytest.mark.timeout(10)
def test_stop_does_not_wait_for_a_sensor_that_hangs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour is left of its time limit; the reading is given up and nothing is told about it."""
    # The loop must not happen to wake because it moves on to the next sensor.
    monkeypatch.setattr("scaler.monitor.HEAD_START_S", NEVER_S)
    stuck = StuckSensor()
    monitor = make(FakeSensor(), stuck, sensor_timeout_s=NEVER_S)
    listener = Listener(monitor)
    monitor.start()
    stuck.entered.wait()
    monitor.stop()
    assert listener.all() == []
    stuck.released.set()


def test_a_call_that_outlives_a_stop_does_not_count_against_the_sensor(make: Make) -> None:
    """Starting again right away waits for it like for any other."""
    stuck = StuckSensor("own_bytes")

    def seven() -> int:
        stuck.wait()
        return 7

    stuck.answer = seven
    asked_again = threading.Event()
    memory = FakeSensor()
    monitor = make(stuck, memory)
    listener = Listener(monitor)
    monitor.start()
    stuck.entered.wait()
    monitor.stop()

    # It comes after the stuck one: when it is read, that one was asked, too.
    def signal() -> Memory:
        asked_again.set()
        return MEMORY

    memory.answer = signal
    monitor.start()
    asked_again.wait()
    stuck.released.set()
    reading = listener.reading()
    assert (reading.own_bytes, reading.memory, reading.missing) == (7, MEMORY, ())
    assert stuck.calls == 1


def test_a_stopped_monitor_starts_again(make: Make) -> None:
    """A configuration that is loaded anew does this."""
    monitor = make(FakeSensor())
    listener = Listener(monitor)
    readings = []
    for _ in range(3):
        monitor.start()
        readings.append(listener.reading())
        monitor.stop()
    assert [reading.at_s for reading in readings] == sorted(reading.at_s for reading in readings)


def test_a_subscriber_may_stop_the_monitor(make: Make) -> None:
    """It runs in the thread that would have to be waited for."""
    monitor = make(FakeSensor())
    stopped = threading.Event()

    def enough(event: MonitorEvent) -> None:
        monitor.stop()
        stopped.set()

    monitor.subscribe(enough)
    monitor.start()
    assert stopped.wait(20)
    assert not monitor.running
    monitor.stop()
    assert all(thread.name != "scaler-monitor" for thread in threading.enumerate())


def test_a_subscriber_and_another_thread_may_stop_at_the_same_time(make: Make) -> None:
    """The other one waits for the loop, which waits for the subscriber, which must wait for nobody."""
    monitor = make(FakeSensor())
    inside, other_stops = threading.Event(), threading.Event()

    def enough(event: MonitorEvent) -> None:
        inside.set()
        other_stops.wait()
        monitor.stop()

    monitor.subscribe(enough)
    monitor.start()
    inside.wait()

    def stop() -> None:
        other_stops.set()
        monitor.stop()

    other = threading.Thread(target=stop)
    other.start()
    other.join(timeout=20)
    assert not other.is_alive()
    assert not monitor.running


def test_a_subscriber_may_start_the_monitor_again(make: Make) -> None:
    """The new loop reads while the old one ends."""
    monitor = make(FakeSensor())
    again: list[bool] = []

    def restart(event: MonitorEvent) -> None:
        if not again:
            again.append(True)
            monitor.stop()
            monitor.start()

    monitor.subscribe(restart)
    listener = Listener(monitor)
    monitor.start()
    assert listener.reading().at_s <= listener.reading().at_s
    assert monitor.running


def test_reading_without_the_loop_leaves_no_thread(make: Make) -> None:
    """A command that only wants one reading."""
    before = set(threading.enumerate())
    monitor = make(FakeSensor())
    monitor.read_now()
    assert set(threading.enumerate()) <= before
    assert not monitor.running


def test_reading_on_demand_works_beside_the_loop(make: Make) -> None:
    """From other threads, while the loop reads as fast as it can."""
    monitor = make(FakeSensor("pressure", Pressure()), FakeSensor(), interval_s=0.001)
    listener = Listener(monitor)
    monitor.start()
    taken = [monitor.read_now() for _ in range(50)]
    monitor.stop()
    published = [event.reading for event in listener.all() if isinstance(event, ReadingTaken)]
    assert [reading for reading in published if reading in taken] == taken


# ---------------------------------------------------------------- the schedule

SECONDS = st.floats(0.01, 3600)


@given(due=st.floats(0, 1e6), late_s=st.floats(0, 1e6), interval_s=SECONDS)
def test_the_next_reading_lies_ahead_on_the_same_grid(due: float, late_s: float, interval_s: float) -> None:
    """However late: no drift, no burst to catch up after a suspend, and never more than an interval to wait."""
    now = due + late_s
    following = next_due(due, now, interval_s)
    steps = (following - due) / interval_s
    assert now - 1e-6 < following <= now + interval_s
    assert following > due
    assert steps == pytest.approx(round(steps), abs=1e-3)


@given(due=st.floats(0, 1e6), back_s=st.floats(0, 1e6), interval_s=SECONDS)
def test_a_clock_set_back_does_not_stop_the_readings(due: float, back_s: float, interval_s: float) -> None:
    """The next one is at most an interval away."""
    now = due - back_s
    assert now < next_due(due, now, interval_s) <= now + interval_s


@given(interval_s=SECONDS, delays=st.lists(st.floats(0, 0.9), min_size=1, max_size=50))
def test_readings_that_take_time_do_not_push_the_schedule(interval_s: float, delays: list[float]) -> None:
    """After n readings the schedule stands at n intervals, however long each took within its own."""
    due = 0.0
    for delay in delays:
        due = next_due(due, due + delay * interval_s, interval_s)
    assert due == pytest.approx(len(delays) * interval_s)


@pytest.mark.parametrize("setting", ["interval_s", "sensor_timeout_s", "retry_max_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_no_thread_can_wait_is_refused(setting: str, value: float) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match=setting):
        ResourceMonitor(sensors=(), **{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("memory", "memory"), ("at_s",), ("weather",)])
def test_sensors_must_fill_different_fields_of_a_reading(names: tuple[str, ...]) -> None:
    """Two answers to one question, or an answer to none, is a mistake of whoever set it up."""
    with pytest.raises(ConfigError, match=names[-1]):
        ResourceMonitor(sensors=[FakeSensor(name) for name in names])
