"""What outlives the process: a crash is no way around the dwell, a back-off or what was learned."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.levels import GIB, OFF, RAM, Ladder, Level
from scaler.machine import Switch
from scaler.policy import Policy
from scaler.remembered import Remembered, passed_s, recall, remember
from scaler.remembering import parsed
from tests.decision.driver import GPU_LADDER, LADDER, Driver, at_once

MARKS = {name: f"mark of {name}" for name in ("small", "medium", "large")}


def kept(drive: Driver, *, ended: bool = False, boot: str | None = "one") -> Remembered:
    """What the machine of a driver leaves behind, through a file."""
    told = remember(drive.machine, MARKS, boot, drive.now_s, ended=ended, failed={"large": "no such file"})
    again = parsed(json.dumps({"version": 1, **asdict(told)}, allow_nan=False).encode())
    assert again == told
    return again


def next_life(
    remembered: Remembered,
    now_s: float,
    *,
    boot: str | None = "one",
    marks: dict[str, str] = MARKS,
    ladder: Ladder = LADDER,
    answer: Any = at_once,
    **policy: Any,
) -> Driver:
    """The machine that comes up next and knows it."""
    drive = Driver(ladder, now_s=now_s, answer=answer, **policy)
    recall(drive.machine, remembered, marks, boot, now_s)
    return drive


def climbed(**policy: Any) -> Driver:
    """A machine that has just gone up to large."""
    drive = Driver(**policy)
    drive.read(2, 400, until=lambda: drive.state == "large")
    assert drive.state == "large"
    return drive


# ------------------------------------------------------------------------------------------------------ time


@given(
    lives=st.lists(st.tuples(st.floats(0, 1e5), st.booleans(), st.floats(0, 1e6)), min_size=1, max_size=6),
    tells=st.booleans(),
)
def test_no_more_time_is_ever_said_to_have_passed_than_has(lives: list[tuple[float, bool, float]], tells: bool) -> None:
    """Whatever restarts and boots lie between, and nobody asks a wall clock; within one boot it is exact."""
    true_s, booted_s, boot = 0.0, 0.0, 0
    before: tuple[Remembered, float, int] | None = None
    for ran_s, reboots, away_s in lives:
        true_s += away_s
        if reboots:
            boot, booted_s = boot + 1, true_s
        true_s += ran_s
        at_s, name = true_s - booted_s, f"{boot}" if tells else None
        if before is not None:
            remembered, then_s, earlier = before
            passed = passed_s(remembered, name, at_s)
            assert 0 <= passed <= true_s - then_s + 1e-6
            if boot == earlier:
                assert passed == pytest.approx(true_s - then_s, abs=1e-6)
        before = replace(kept(Driver()), at_s=at_s, boot=name), true_s, boot


@pytest.mark.parametrize(("boot", "now_s", "held_s"), [("one", 1500.0, 100.0), ("two", 100.0, 500.0), ("two", 900, 0)])
def test_a_back_off_goes_on_where_it_was(boot: str, now_s: float, held_s: float) -> None:
    """Within a boot to the second; after another one, by the time that the machine has been up since."""
    drive = Driver(initial="small", backoff_s=600.0)
    drive.machine.evidence.fail(2, 1000.0)
    again = next_life(kept(drive), now_s, boot=boot, backoff_s=600.0)
    assert again.machine.evidence.failures == [0, 0, 1]
    assert max(0.0, again.machine.evidence.backoff_until_s[2] - now_s) == held_s


def test_a_clock_from_nowhere_makes_no_pause_longer_than_the_longest() -> None:
    """A file that says a level is to be left alone for years."""
    told = kept(Driver(initial="small"))
    levels = {**told.levels, "large": replace(told.levels["large"], failures=1, backoff_until_s=9e9)}
    again = next_life(replace(told, levels=levels), 1000.0, backoff_max_s=3600.0)
    assert again.machine.evidence.backoff_until_s[2] == 4600.0


# ------------------------------------------------------------------------------------------------------ the dwell


@settings(max_examples=settings().max_examples // 4)  # each is half an hour of readings
@given(
    crash_s=st.integers(1, 900),
    away_s=st.floats(0, 5000),
    ended=st.booleans(),
    reboots=st.booleans(),
    others=st.lists(st.tuples(st.integers(1, 250), st.sampled_from([2.0, 8.0, 14.0, 18.0])), max_size=4),
    wrong=st.integers(0, 400),
)
def test_a_restart_is_no_way_around_the_dwell(
    crash_s: int, away_s: float, ended: bool, reboots: bool, others: list[tuple[int, float]], wrong: int
) -> None:
    """At whatever moment it ends, however, and whenever it comes back: over both lives, no climb comes early."""
    drive = Driver(dwell_s=300.0)
    changes: list[tuple[float, str, str]] = []

    def live(drive: Driver, seconds: int, shift_s: float) -> None:
        for number in range(seconds):
            gib = 2.0
            for length, other in others:
                if number % 500 < length:
                    gib = other
            count = len(drive.switches)
            drive.read(gib, 1)
            changes.extend((drive.now_s + shift_s, s.decision.source, s.decision.dest) for s in drive.switches[count:])

    live(drive, crash_s, 0.0)
    told = kept(drive, ended=ended)
    # What the crash took with it is a change, too: what was loaded is gone.
    true_s = drive.now_s + away_s
    changes.append((true_s, drive.state, OFF))
    now_s, boot = (1.0 + wrong, "two") if reboots else (true_s, "one")
    again = next_life(told, now_s, boot=boot, dwell_s=300.0)
    live(again, 900, true_s - now_s)
    for (before_s, _, _), (at_s, source, dest) in pairwise(changes):
        if OFF not in (source, dest) and LADDER.index(dest) > LADDER.index(source):
            assert at_s - before_s >= 300.0 - 1e-6


def test_a_wasted_climb_lengthens_the_dwell_of_the_next_life_as_well() -> None:
    """Else a crash would be the way back to five minutes."""
    drive = climbed(dwell_s=300.0)
    drive.read(8, 10)
    assert drive.machine.evidence.wasted == [0, 0, 1]
    again = next_life(kept(drive, ended=True), drive.now_s + 5, dwell_s=300.0, sureness=0.5)
    began_s = again.now_s
    again.read(2, 2000, until=lambda: again.state == "large")
    assert again.now_s - began_s >= 600


def test_what_the_daemon_did_not_survive_counts_as_wasted_or_failed() -> None:
    """The kernel kills whoever takes too much: the same climb again five minutes later would be the same end."""
    crashed = next_life(kept(climbed()), 2000.0)
    assert crashed.machine.evidence.wasted == [0, 0, 1]
    assert crashed.machine.evidence.failures == [0, 0, 0]

    def loading(switch: Switch) -> bool:
        return switch.dest != "large"

    drive = Driver(answer=loading)
    drive.read(2, 400, until=lambda: drive.state == "large")
    crashed = next_life(kept(drive), 2000.0)
    assert crashed.machine.evidence.wasted == [0, 0, 0]
    assert crashed.machine.evidence.failures == [0, 0, 1]
    assert crashed.machine.evidence.backoff_until_s[2] == 2000.0 + Policy().backoff_s
    for told in (kept(climbed(), ended=True), kept(drive, ended=True)):
        asked = next_life(told, 2000.0)
        assert (asked.machine.evidence.wasted, asked.machine.evidence.failures) == ([0, 0, 0], [0, 0, 0])


def test_a_climb_that_has_lasted_is_not_blamed_for_a_power_cut() -> None:
    """Nor is the smallest level, which is what there is."""
    drive = climbed(wasted_within_s=100.0)
    drive.read(2, 101)
    assert next_life(kept(drive), 2000.0).machine.evidence.wasted == [0, 0, 0]
    drive = Driver(answer=lambda _: False)
    drive.read(2, 2)
    assert drive.state == "small"
    again = next_life(kept(drive), 2000.0)
    assert again.machine.evidence.failures == [0, 0, 0]
    again.read(2, 12)
    assert again.state == "small"


# ------------------------------------------------------------------------------------------------------ the start


@pytest.mark.parametrize(
    ("ended", "other_gib", "waits_s"), [(True, 2.0, 0), (False, 2.0, 10), (True, 23.5, 10), (False, 23.5, 10)]
)
def test_only_a_crash_and_an_end_at_off_are_recovered_from(ended: bool, other_gib: float, waits_s: int) -> None:
    """Whoever restarts it to change a setting is served at once; memory may be what ended it otherwise."""
    drive = Driver(recovery_s=10.0)
    drive.read(2, 5)
    drive.read(other_gib, 30)
    assert (drive.state == OFF) == (other_gib > 20)
    again = next_life(kept(drive, ended=ended), drive.now_s + 3, recovery_s=10.0)
    began_s = again.now_s
    again.read(2, 60, until=lambda: again.state != OFF)
    assert (again.state, again.now_s - began_s) == ("small", waits_s + 1)


def test_a_daemon_that_never_loaded_anything_begins_as_if_for_the_first_time() -> None:
    """There was nothing to recover from."""
    again = next_life(kept(Driver()), 1000.0)
    again.read(2, 1)
    assert again.state == "small"


@pytest.mark.parametrize(("pinned", "reached"), [("medium", "medium"), (OFF, OFF), (None, "large")])
def test_a_pin_holds_until_it_is_released(pinned: str | None, reached: str) -> None:
    """It is a person's word, and no person took it back."""
    drive = climbed()
    if pinned is not None:
        drive.machine.pin(pinned, drive.now_s)
        drive.effects()
    again = next_life(kept(drive), 5000.0, sureness=0.5)
    assert again.machine.pinned == pinned
    again.read(2, 1500)
    assert again.state == reached
    again.machine.unpin()
    assert kept(again).pinned is None


def test_a_pin_that_can_no_longer_be_is_let_go() -> None:
    """The tier allows less now, or the level is gone from the ladder."""
    drive = climbed()
    drive.machine.pin("large", drive.now_s)
    told = kept(drive)
    assert next_life(told, 5000.0, max_level="medium").machine.pinned is None
    shorter = Ladder(LADDER[:2])
    assert next_life(told, 5000.0, ladder=shorter).machine.pinned is None


# ------------------------------------------------------------------------------------------------------ what is known


def test_a_learned_footprint_is_known_before_the_level_is_loaded() -> None:
    """Declared 12 GiB, seen to take 15: with 6 GiB of others it fits by what was declared only."""
    drive = climbed()
    drive.read(2, 20, own_gib=15)
    again = next_life(kept(drive), 2000.0, sureness=0.5)
    assert again.machine.evidence.footprints.of(2) == [15 * GIB]
    again.read(6, 700)
    assert again.state == "medium"
    again = next_life(kept(drive), 2000.0, marks={**MARKS, "large": "another model"}, sureness=0.5)
    again.read(6, 700)
    assert again.state == "large"


def test_what_was_learned_falls_from_then_on_as_it_always_does() -> None:
    """Not at once with the first reading, which comes before the model is warm."""
    drive = climbed()
    drive.read(2, 20, own_gib=15)
    again = next_life(kept(drive, ended=True), 9e5, footprint_half_life_s=600.0)
    again.machine.evidence.state = again.machine.evidence.serving = 2
    again.read(2, 1, own_gib=12)
    assert again.machine.evidence.footprints.of(2)[0] > 14.9 * GIB


def test_where_a_level_changed_nothing_of_it_is_true_any_more() -> None:
    """Whoever gave it another model may try that at once; the other levels keep what they know."""
    drive = climbed()
    evidence = drive.machine.evidence
    for position in (1, 2):
        evidence.fail(position, drive.now_s)
        evidence.wasted[position] = 2
        evidence.load_s[position] = 77.0
        evidence.cautions[position].incident("near miss", drive.now_s)
    again = next_life(kept(drive, ended=True), drive.now_s, marks={**MARKS, "large": "changed"}).machine.evidence
    assert (again.failures, again.wasted) == ([0, 1, 0], [0, 2, 0])
    assert again.load_s == [1.0, 77.0, 5.0]
    assert again.backoff_until_s == [-math.inf, drive.now_s + Policy().backoff_s, -math.inf]
    assert [caution.incidents for caution in again.cautions] == [{}, {"near miss": 1}, {}]
    assert again.cautions[1].at(drive.now_s) == Policy().caution_step


def test_a_resource_that_the_level_does_not_take_is_not_learned_from_a_file() -> None:
    """As of a ladder that had a GPU."""
    drive = Driver(GPU_LADDER, initial="large")
    drive.read_gpu(2, 1, 5)
    told = kept(drive)
    assert set(told.levels["large"].footprint) == {RAM, "gpu0"}
    again = next_life(told, 2000.0)
    assert again.machine.evidence.footprints.learned(2) == {RAM: 4 * GIB}


@settings(max_examples=settings().max_examples // 4)
@given(st.data())
def test_what_was_remembered_is_remembered_again(data: st.DataObject) -> None:
    """Any number of restarts in a row loses and invents nothing."""
    drive = Driver(answer=lambda _: data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(0, 4))):
        drive.read(data.draw(st.sampled_from([2.0, 8.0, 14.0, 21.0])), data.draw(st.integers(1, 320)))
        if not drive.machine.settled:
            drive.fail(drive.machine.serving)
    told = kept(drive, ended=True)
    again = next_life(told, drive.now_s)
    assert kept(again, ended=True) == replace(told, state=OFF, loading=None, climbed=None)


FAULTS: list[dict[str, Any]] = [
    {"version": 2},
    {"at_s": "soon"},
    {"at_s": float("nan")},
    {"changed_at_s": float("inf")},
    {"levels": []},
    {"levels": {"small": {"mark": "a", "load_s": -1.0}}},
    {"levels": {"small": {"mark": "a", "load_s": 1.0, "failures": -1}}},
    {"levels": {"small": {"mark": "a", "load_s": 1.0, "footprint": {"ram": -5}}}},
    {"more": 1},
]


@pytest.mark.parametrize("changed", FAULTS, ids=str)
def test_what_this_scaler_did_not_write_is_a_fault(changed: dict[str, Any]) -> None:
    """Never a figure that decides something."""
    whole = {"version": 1, **asdict(remember(climbed().machine, MARKS, "one", 1.0))}
    parsed(json.dumps(whole).encode())
    with pytest.raises(ValueError, match=r"."):
        parsed(json.dumps({**whole, **changed}).encode())


def test_a_ladder_with_other_names_begins_anew() -> None:
    """Nothing of the old one is anybody's."""
    ladder = Ladder([Level("tiny", {RAM: GIB}, 0.5, 1.0)])
    again = next_life(kept(climbed()), 2000.0, ladder=ladder, marks={"tiny": "t"})
    assert again.machine.evidence.footprints.of(0) == [GIB]
    again.read(2, 30)
    assert again.state == "tiny"
