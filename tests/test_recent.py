"""The readings of the last day in memory: which are kept, and what becomes of them when time goes strange ways."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

from scaler.events import ModelDied, SwitchDone, SwitchFailed
from scaler.levels import GIB
from scaler.monitor import ReadingTaken
from scaler.readings import Gpu, Memory, Reading
from scaler.recent import INTERVAL_S, KEPT_S, Recent, point_of

TOTAL = 16 * GIB
START_S = 1_796_000_000.0


def taken(wall_s: float, other_gib: float = 4.0, own_gib: float = 1.0) -> ReadingTaken:
    return ReadingTaken(
        Reading(0.0, wall_s, Memory(TOTAL, TOTAL - int((other_gib + own_gib) * GIB)), int(own_gib * GIB))
    )


def begun(serving: str = "small") -> Recent:
    recent = Recent()
    recent.begin(serving)
    return recent


def test_of_ten_seconds_the_fullest_reading_is_kept() -> None:
    """A short rise is what a decision was made for: it must not fall between two points."""
    recent = begun()
    for second in range(60):
        recent.take(taken(START_S + second, other_gib=12.0 if second == 33 else 4.0))
    interval_s, points = recent.points(3600, START_S + 60)
    assert interval_s == INTERVAL_S
    assert len(points) == 6
    assert [point.usage[0][1].other_bytes // GIB for point in points] == [4, 4, 4, 12, 4, 4]
    assert points[3].at_s == START_S + 33


def test_each_point_knows_which_level_answered() -> None:
    """From the switches, as they were done, failed, or were undone by a death."""
    recent = Recent()
    recent.take(taken(START_S))
    recent.take(SwitchDone(1, "off", "small", 1.0, 1.0))
    recent.begin("what was asked for too late to know better")
    recent.take(taken(START_S + 10))
    recent.take(SwitchDone(2, "small", "large", 1.0, 1.0))
    recent.take(taken(START_S + 20))
    recent.take(SwitchFailed(3, "medium", "small", "no such file"))
    recent.take(taken(START_S + 30))
    recent.take(ModelDied("large", "stood by only"))
    recent.take(taken(START_S + 40))
    recent.take(ModelDied("small", "killed"))
    recent.take(taken(START_S + 50))
    _, points = recent.points(3600, START_S + 60)
    assert [point.serving for point in points] == ["small", "large", "small", "small", "off"]


def test_what_was_not_read_is_no_point() -> None:
    """A missing reading is a gap, and a GPU that was not read is absent."""
    recent = begun()
    recent.take(ReadingTaken(Reading(0.0, START_S, None, 0)))
    recent.take(ReadingTaken(Reading(0.0, START_S + 10, Memory(TOTAL, TOTAL), None)))
    assert recent.points(3600, START_S + 20)[1] == []
    gpus = (Gpu(0, "", 8 * GIB, GIB, 7 * GIB, None), Gpu(1, "", 8 * GIB, GIB, 7 * GIB, 0))
    point = point_of(Reading(0.0, START_S, Memory(TOTAL, TOTAL), 0, gpus=gpus), "small")
    assert point is not None
    assert [name for name, _ in point.usage] == ["ram", "gpu1"]


def test_a_longer_time_is_told_in_longer_stretches() -> None:
    """So that a day is no larger an answer than two hours, and its peaks are still there."""
    recent = begun()
    for step in range(int(KEPT_S / INTERVAL_S)):
        recent.take(taken(START_S + step * INTERVAL_S, other_gib=13.0 if step == 4321 else 4.0))
    interval_s, points = recent.points(KEPT_S, START_S + KEPT_S)
    assert interval_s == 120
    assert len(points) <= 721
    assert max(point.usage[0][1].other_bytes for point in points) == 13 * GIB
    assert all(one.at_s < other.at_s for one, other in pairwise(points))


def test_it_stays_within_a_day_and_a_few_mebibytes() -> None:
    """However long the daemon runs."""
    tracemalloc.start()
    recent = begun()
    for step in range(int(2 * KEPT_S / INTERVAL_S)):
        recent.take(taken(START_S + step * INTERVAL_S))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 6 * 1024**2
    now_s = START_S + 2 * KEPT_S
    _, points = recent.points(10 * KEPT_S, now_s)
    assert points[0].at_s >= now_s - KEPT_S - INTERVAL_S


def test_a_clock_that_is_set_back_leaves_no_future_behind() -> None:
    """Points stay in order, and what happens now is seen now."""
    recent = begun()
    for second in range(0, 600, 10):
        recent.take(taken(START_S + second))
    recent.take(taken(START_S + 95))
    _, points = recent.points(3600, START_S + 100)
    assert [point.at_s - START_S for point in points] == [0, 10, 20, 30, 40, 50, 60, 70, 80, 95]


def test_what_was_before_comes_in_front_and_nothing_twice() -> None:
    """The recording reaches into the present run."""
    recent = begun("large")
    for second in range(100, 200, 10):
        recent.take(taken(START_S + second))
    before = [point_of(taken(START_S + second, other_gib=2.0).reading, "small") for second in range(150)]
    recent.fill(point for point in before if point is not None)
    _, points = recent.points(3600, START_S + 200)
    assert [point.serving for point in points] == ["small"] * 10 + ["large"] * 10
