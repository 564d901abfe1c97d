"""What a machine knows when another ladder or policy takes the place of its own, and where it goes from there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scaler.levels import GIB, OFF, RAM, Ladder, Level
from scaler.machine import LevelMachine
from scaler.policy import Policy
from scaler.readings import Power
from tests.decision.driver import GPU_LADDER, LADDER, TOTAL_GIB, Driver

BATTERY: dict[str, Any] = {"power": Power(False, 0.4)}


def reload(drive: Driver, ladder: Ladder = LADDER, kept: Collection[str] | None = None, **policy: Any) -> LevelMachine:
    """Have another machine take over; every level of both ladders is the same unless ``kept`` says else."""
    machine = LevelMachine(ladder, Policy(**policy), drive.switches.append, on_hurry=drive.hurried.append)
    both = set(ladder.names) & set(drive.machine.ladder.names)
    before, drive.machine = drive.machine, machine
    machine.take_over(before, both if kept is None else kept, drive.now_s)
    drive.effects()
    return machine


def without(*names: str, ladder: Ladder = LADDER) -> Ladder:
    return Ladder([level for level in ladder if level.name not in names])


# ---------------------------------------------------------------------- nothing else changes


@given(
    other=st.lists(st.tuples(st.integers(0, 22), st.integers(1, 400)), min_size=1, max_size=8),
    reloads=st.sets(st.integers(0, 7)),
)
# A near miss at the last reading, which lowers a limit from the next one on.
@example(other=[(0, 1), (0, 1), (0, 299), (11, 1)], reloads={3})
def test_the_same_configuration_read_anew_changes_no_decision(other: list[tuple[int, int]], reloads: set[int]) -> None:
    """Whatever happens before and after: it forgets nothing, and waits for nothing."""
    plain, reloaded = Driver(), Driver()
    for number, (gib, seconds) in enumerate(other):
        for drive in (plain, reloaded):
            drive.read(gib, seconds)
        if number in reloads:
            reload(reloaded)
    said = [[(s.decision.at_s, s.decision.reasons, s.beside, s.drain_s) for s in d.switches] for d in (plain, reloaded)]
    assert said[0] == said[1]
    assert plain.moves == reloaded.moves
    assert plain.machine.outlooks() == reloaded.machine.outlooks()


@given(data=st.data())
def test_no_reload_is_a_way_around_the_dwell(data: st.DataObject) -> None:
    """Whatever is changed and however often: a climb waits for it, and a reload itself leads to nothing larger."""
    drive = Driver(initial="small")
    names = list(LADDER.names)
    for _ in range(data.draw(st.integers(1, 12))):
        drive.read(data.draw(st.integers(0, 20)), data.draw(st.sampled_from([1, 7, 100, 299, 301])))
        chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        ladder = without(*(set(names) - set(chosen)))
        kept = set(data.draw(st.lists(st.sampled_from(chosen), unique=True))) & set(drive.machine.ladder.names)
        policy = data.draw(st.fixed_dictionaries({}, optional={"scale_at": st.sampled_from([0.7, 0.9])}))
        reload(drive, ladder, kept, **policy)
        assert drive.machine.settled
        assert drive.machine.serving == drive.machine.state
    size = {OFF: 0, **{level.name: level.footprint[RAM] for level in LADDER}}
    last_s = float("-inf")
    for switch in drive.switches:
        decision = switch.decision
        if decision.source != OFF and size[decision.dest] > size[decision.source]:
            # Only where a level has gone and nothing smaller is left on the ladder does something larger come at once.
            if decision.trigger == "reload":
                assert decision.source not in (level for level in LADDER.names if decision.projected.get(level))
                assert min(decision.projected, key=lambda name: size[name]) == decision.dest
            else:
                assert decision.at_s - last_s >= 300
        last_s = decision.at_s


# ---------------------------------------------------------------------- where it goes


def test_the_level_that_serves_stays_where_it_may() -> None:
    """Others may come and go around it."""
    drive = Driver(initial="medium")
    drive.read(4, 20)
    machine = reload(drive, without("small", "large"), scale_at=0.7)
    assert (machine.state, machine.serving, machine.settled, drive.moves) == ("medium", "medium", True, [])


@pytest.mark.parametrize(
    ("ladder", "kept", "other", "dest", "reason"),
    [
        (without("large"), ("small", "medium"), 4, "medium", "large is not on the ladder any more"),
        (LADDER, ("small", "medium"), 4, "large", "large has other settings now"),
        (LADDER, ("small", "medium"), 8, "medium", "large has other settings now"),
        (Ladder([Level("new", {RAM: 7 * GIB}, 0.5, 1.0)]), (), 4, "new", "large is not on the ladder any more"),
        (Ladder([Level("new", {RAM: 23 * GIB}, 0.5, 1.0)]), (), 4, OFF, "large is not on the ladder any more"),
    ],
)
def test_a_level_that_is_gone_or_another_gives_way_to_the_largest_that_fits(
    ladder: Ladder, kept: tuple[str, ...], other: float, dest: str, reason: str
) -> None:
    """As a decision, with its reason, that is performed like any other."""
    drive = Driver(initial="large")
    drive.read(other, 1)
    drive.answer = lambda _: False
    machine = reload(drive, ladder, kept)
    (switch,) = drive.switches
    decision = switch.decision
    assert (decision.trigger, decision.source, decision.dest, decision.reason) == ("reload", "large", dest, reason)
    assert decision.direction == ("same" if dest == "large" else "down")
    assert (machine.state, machine.serving, machine.settled) == (dest, OFF, False)
    machine.switched(switch.ticket, drive.now_s)
    assert (machine.serving, machine.settled) == (dest, True)


def test_what_comes_in_its_place_is_loaded_beside_it_where_both_fit() -> None:
    """The model of before still holds its memory, though no level of the ladder is it."""
    for other, beside in ((2, True), (6, False)):
        drive = Driver(initial="large", answer=lambda _: False)
        drive.read(other, 1)
        reload(drive, without("large"))
        assert drive.switches[-1].dest == "medium"
        assert drive.switches[-1].beside is beside


def test_a_level_that_the_tier_forbids_now_is_left() -> None:
    """The model stays what serves until the smaller one has come."""
    drive = Driver(initial="large", answer=lambda _: False)
    drive.read(4, 1)
    machine = reload(drive, max_level="medium")
    assert (machine.state, machine.serving) == ("medium", "large")
    assert drive.switches[-1].decision.reason == "the tier allows medium at most now"


def test_a_level_that_takes_more_now_needs_room_below_the_band_and_a_new_one_the_dwell() -> None:
    """14 GiB beside 4 are 75 %, beside 5 they are 79 %: under the limit, but not below the band."""
    more = Ladder([*LADDER[:2], Level("large", {RAM: 14 * GIB}, 1.0, 5.0)])
    for other, dest in ((4, "large"), (5, "medium")):
        drive = Driver(initial="large")
        drive.read(other, 1)
        assert reload(drive, more, LADDER.names[:2]).state == dest
    renamed = Ladder([*LADDER[:2], Level("huge", {RAM: 14 * GIB}, 1.0, 5.0)])
    drive = Driver(initial="large")
    drive.read(4, 1)
    assert reload(drive, renamed).state == "medium"
    drive.read(4, 299)
    assert drive.state == "medium"
    drive.read(4, 310)
    assert drive.state == "huge"


def test_a_reload_in_the_middle_of_a_switch_lets_it_go_on() -> None:
    """If it leads to a level that stays; else what serves stays, if that does."""
    for ladder, state, serving, settled in (
        (LADDER, "medium", "small", False),
        (without("medium"), "small", "small", False),
        (without("small"), "medium", OFF, False),
    ):
        drive = Driver(initial="small", answer=lambda _: False)
        drive.read(9, 301)
        (climb,) = drive.switches
        drive.answer = lambda _: False
        machine = reload(drive, ladder)
        assert (machine.state, machine.serving, machine.settled) == (state, serving, settled)
        last = drive.switches[-1]
        assert (last.ticket == climb.ticket) == (state == "medium")
        machine.switched(last.ticket, drive.now_s)
        assert (machine.serving, machine.settled) == (state, True)


def test_an_answer_to_a_switch_of_before_is_not_taken_for_the_new_one() -> None:
    """Tickets go on."""
    drive = Driver(initial="large", answer=lambda _: False)
    drive.read(9, 5)
    (descent,) = drive.switches
    machine = reload(drive, without("medium"))
    machine.switched(descent.ticket, drive.now_s)
    assert not machine.settled
    assert drive.switches[-1].ticket > descent.ticket


def test_other_levels_that_stand_by_are_a_switch_to_the_same_level() -> None:
    """Which loads and unloads them; what serves stays."""
    with_standby = Ladder([Level("small", {RAM: 2 * GIB}, 0.5, 1.0, standby=True), *LADDER[1:]])
    drive = Driver(initial="large")
    drive.read(4, 1)
    reload(drive, with_standby)
    assert drive.moves == [("reload", "large", "large")]
    reload(drive, with_standby)
    assert len(drive.moves) == 1
    reload(drive, with_standby, kept=("medium", "large"))
    assert drive.moves[1:] == [("reload", "large", "large")]


# ---------------------------------------------------------------------- what it knows


def test_what_was_learned_of_a_level_stays_with_its_model() -> None:
    """Footprint, failures, the pause after them; not where the model is another, and not what was declared anew."""
    drive = Driver(initial="medium")
    drive.read(4, 20, own_gib=7.5)
    drive.machine.died("medium", drive.now_s)
    drive.effects()
    before = drive.machine.evidence
    assert before.failures[1] == 1
    evidence = reload(drive, without("small"), scale_at=0.7).evidence
    assert evidence.footprints.of(0)[0] == int(7.5 * GIB)
    assert (evidence.failures[0], evidence.backoff_until_s[0]) == (1, before.backoff_until_s[1])
    more = Ladder([Level("medium", {RAM: 8 * GIB}, 0.8, 3.0)])
    evidence = reload(drive, more).evidence
    assert (evidence.footprints.of(0)[0], evidence.failures[0]) == (8 * GIB, 1)
    evidence = reload(drive, more, kept=()).evidence
    assert (evidence.failures[0], evidence.backoff_until_s[0]) == (0, float("-inf"))


def test_what_was_seen_of_others_use_stays_unless_it_would_be_seen_otherwise() -> None:
    """A forecast is not begun anew for a threshold; for another dwell, over which it is made, it is."""
    drive = Driver(initial="small")
    drive.read(4, 310)
    seen = drive.machine.evidence.peaks[0]
    assert reload(drive, scale_at=0.85).evidence.peaks[0] is seen
    assert reload(drive, scale_at=0.85, dwell_s=60.0).evidence.peaks[0] is not seen


def test_battery_power_that_lasts_is_known_still() -> None:
    """Else a reload would let it climb on battery."""
    drive = Driver(initial="medium", battery_max_level="medium")
    drive.read(4, 301, **BATTERY)
    reload(drive, battery_max_level="medium", scale_at=0.85)
    drive.read(4, 5000, **BATTERY)
    assert drive.moves == []


def test_pressure_that_lasts_is_answered_in_spite_of_reloads() -> None:
    """Reading the configuration every second does not begin the debounce anew."""
    drive = Driver(initial="large")
    drive.read(4, 1)
    began = drive.now_s
    while drive.state == "large" and drive.now_s < began + 60:
        drive.read(8, 1)
        reload(drive, scale_at=0.8 if drive.now_s % 2 else 0.79)
    assert drive.now_s - began <= 6


def test_a_pin_lasts_where_its_level_does() -> None:
    """Also at a level whose settings changed; not where the tier forbids it now."""
    drive = Driver(initial="medium")
    drive.read(4, 1)
    drive.machine.pin("medium", drive.now_s)
    assert reload(drive, without("small")).pinned == "medium"
    assert reload(drive, LADDER, kept=()).pinned == "medium"
    assert reload(drive, max_level="small").pinned is None
    drive.machine.pin(OFF, drive.now_s)
    assert reload(drive, without("large")).pinned == OFF


def test_a_resource_that_comes_and_goes() -> None:
    """The last reading is judged by the new ladder at once."""
    drive = Driver(initial="small")
    drive.read_gpu(4, 2, 20)
    evidence = reload(drive, GPU_LADDER).evidence
    assert evidence.resources == (RAM, "gpu0")
    assert evidence.projected[1] == pytest.approx(max((4 + 3) / TOTAL_GIB, (2 + 4) / 16))
    evidence = reload(drive, LADDER).evidence
    assert evidence.projected[1] == pytest.approx((4 + 6) / TOTAL_GIB)


def test_before_the_first_reading_a_reload_is_no_more_than_another_beginning() -> None:
    """Nothing is known, and nothing is loaded for it."""
    drive = Driver()
    machine = reload(drive, without("large"), scale_at=0.7)
    assert (machine.state, machine.settled, drive.moves) == (OFF, True, [])
    drive.read(4, 1)
    assert drive.state == "small"


def test_before_the_first_reading_a_reload_takes_no_limit_away_for_what_is_remembered() -> None:
    """What an incident still counts for is known once the time is: at the first reading."""
    drive = Driver()
    drive.machine.evidence.cautions[1].recall(0.05, 100.0, {"near miss": 1})
    assert reload(drive, scale_at=0.7).evidence.limits == [0.7, 0.7, 0.7]
    drive.now_s = 100.0
    drive.read(4, 1)
    assert drive.machine.evidence.limits[1] == pytest.approx(0.65, abs=1e-3)
