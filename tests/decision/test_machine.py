"""What the machine does with readings and with the answers of the effects."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.errors import PinRefused
from scaler.levels import GIB, OFF, RAM, Ladder, Level
from scaler.machine import Switch, table
from scaler.policy import Policy
from scaler.readings import Cpu, Memory, Reading
from tests.decision.driver import GPU_LADDER, LADDER, TOTAL_GIB, Driver, stalls


def never(_: Switch) -> bool:
    return False


# ---------------------------------------------------------------------- going up


def test_the_first_reading_loads_the_smallest_level_at_once() -> None:
    """Nobody waits for a model on a machine with room."""
    drive = Driver()
    drive.read(4)
    assert drive.moves == [("observe", OFF, "small")]


def test_a_climb_skips_to_the_largest_level_that_fits() -> None:
    """Three switches where one does would be three interruptions."""
    drive = Driver()
    drive.read(4, 400)
    assert drive.moves == [("observe", OFF, "small"), ("observe", "small", "large")]


def test_an_upgrade_waits_for_the_whole_dwell_since_the_last_change() -> None:
    """Five minutes, to the second, however long there has been room."""
    drive = Driver()
    drive.read(4)
    changed_s = drive.now_s
    drive.read(4, 299)
    assert drive.state == "small"
    drive.read(4)
    assert (drive.state, drive.now_s - changed_s) == ("large", 300)


def test_an_upgrade_waits_until_the_level_has_fitted_for_the_whole_dwell() -> None:
    """The room must have stayed, however long ago the last change was."""
    drive = Driver(initial="small")
    drive.read(18, 1000)
    fitted_s = drive.now_s + 1
    drive.read(4, 300)
    assert drive.state == "small"
    drive.read(4)
    assert (drive.state, drive.now_s - fitted_s) == ("large", 300)


def test_one_reading_over_the_band_starts_the_dwell_anew() -> None:
    """Room that comes and goes is no room."""
    drive = Driver(initial="medium")
    drive.read(6, 299)
    drive.read(6.6)
    drive.read(6, 300)
    assert drive.state == "medium"
    drive.read(6)
    assert drive.state == "large"


def test_between_the_band_and_the_limit_a_level_stays_and_is_not_climbed_to() -> None:
    """The hysteresis: what would be just under the limit is not worth a switch."""
    other_gib = 0.785 * TOTAL_GIB - 12
    below, at = Driver(initial="medium"), Driver(initial="large")
    below.read(other_gib, 2000)
    at.read(other_gib, 2000)
    assert below.moves == at.moves == []


def test_exactly_at_the_band_is_room_enough_and_exactly_at_scale_at_is_not_over() -> None:
    """The comparisons are those of the documentation: at most, and above."""
    drive = Driver(initial="small", scale_at=0.75, band=0.25, band_max=0.25)
    drive.read(0, 301)
    assert drive.machine.evidence.projected[2] == 0.5
    assert drive.state == "large"
    drive.read(6, 1000)
    assert drive.machine.evidence.projected[2] == 0.75
    assert drive.state == "large"


def test_exactly_at_critical_is_critical() -> None:
    """From that mark on people feel it: at it, not only beyond it."""
    drive = Driver(initial="small", scale_at=0.5, critical_at=0.75)
    drive.read(16)
    assert drive.machine.evidence.projected[0] == 0.75
    assert drive.moves == [("observe", "small", OFF)]


def test_a_gradual_rise_of_free_memory_ends_in_one_upgrade_a_dwell_after_the_room_came() -> None:
    """A program that gives its memory back slowly makes one switch, and not before the last of it has stayed."""
    drive = Driver(Ladder([LADDER[0], LADDER[2]]), initial="small")
    came_s = None
    for second in range(2000):
        other_gib = max(4.0, 18 - second * 0.05)
        drive.read(other_gib)
        if came_s is None and other_gib + 12 <= 0.77 * TOTAL_GIB:
            came_s = drive.now_s
    assert came_s is not None
    assert [(s.dest, s.decision.at_s) for s in drive.switches] == [("large", came_s + 300)]


def test_on_a_longer_ladder_the_second_climb_waits_for_a_dwell_of_its_own() -> None:
    """However quickly the room came: each change is watched before the next."""
    drive = Driver(initial="small")
    drive.read(18, 100)
    for second in range(1000):
        drive.read(max(4.0, 18 - second))
    assert [s.dest for s in drive.switches] == ["medium", "large"]
    assert drive.switches[1].decision.at_s - drive.switches[0].decision.at_s == 300


def test_a_forecast_of_growth_keeps_a_level_that_fits_now_from_being_climbed_to() -> None:
    """Loading takes time; the room must be there at its end."""
    steady, growing = Driver(initial="medium"), Driver(initial="medium")
    for second in range(301):
        steady.read(6.2)
        growing.read(max(0.2, 6.2 - (300 - second) * 0.12))
    assert steady.state == "large"
    assert growing.state == "medium"
    assert growing.machine.evidence.projected[2] == pytest.approx(steady.machine.evidence.projected[2])
    (lacking,) = growing.outlook("large").lacking
    assert re.fullmatch(
        r"usage at large would be 8\d\.\d % of 24 GiB in 13 s if this goes on; the limit is 80 %", lacking
    )


def test_a_climb_looks_as_far_ahead_as_the_descent_that_could_follow_it() -> None:
    """Where the smaller level loads slowly, the way back begins early: a climb into it would be undone at once."""
    ladder = Ladder([Level("small", {RAM: 2 * GIB}, 0.5, 60.0), Level("large", {RAM: 7 * GIB}, 1.0, 1.0)])
    drive = Driver(ladder, initial="small", dwell_s=10.0)
    for second in range(25):
        drive.read(second * 0.2)
    assert drive.moves == []


def test_memory_stalls_keep_the_level_where_it_is() -> None:
    """Tasks that wait for memory say more than a figure with room in it."""
    drive = Driver(initial="small")
    drive.read(4, 400, pressure=stalls(0.11))
    assert drive.state == "small"
    assert drive.outlook("large").lacking == ("tasks wait for memory 11 % of the time; the limit is 10 %",)
    drive.read(4, pressure=stalls(0.10))
    assert drive.state == "large"


def test_nothing_is_climbed_beyond_what_the_tier_allows() -> None:
    """The tier's word is final, for climbs, pins and recovery."""
    drive = Driver(max_level="medium")
    drive.read(1, 2000)
    assert drive.state == "medium"
    assert drive.outlook("large").lacking == ("the tier allows medium at most",)
    with pytest.raises(PinRefused, match="cannot pin large: the tier allows medium at most"):
        drive.machine.pin("large", drive.now_s)


# ---------------------------------------------------------------------- going down


def test_what_the_model_itself_takes_never_causes_a_step_down() -> None:
    """The prototype's first mistake: total usage has the model in it, and the level above it must be judged without."""
    drive = Driver(initial="large")
    drive.read(7, 600)
    drive.read(7, 600, cpu=Cpu(4, busy_ratio=1.0, own_ratio=0.99))
    assert drive.machine.evidence.projected[2] == pytest.approx(19 / 24)
    assert drive.moves == []


def test_after_stepping_down_the_room_that_the_model_gave_back_is_not_climbed_into() -> None:
    """The cycle for ever of the prototype: after a descent total usage looks fine, projected usage does not."""
    drive = Driver(initial="large")
    drive.read(8, 3600)
    assert drive.moves == [("observe", "large", "medium")]


def test_usage_above_the_limit_is_watched_for_the_debounce() -> None:
    """A needle over the limit is none of the model's business."""
    drive = Driver(initial="large")
    drive.read(6, 60)
    for _ in range(20):
        drive.read(7.3, 3)
        drive.read(6, 1)
    assert drive.moves == []
    drive.read(7.3, 4)
    assert drive.state == "large"
    drive.read(7.3)
    assert drive.state == "medium"


@given(st.floats(0.8001, 0.9499))
def test_the_debounce_shrinks_in_a_straight_line_to_nothing_at_critical(ratio: float) -> None:
    """The closer to exhaustion, the less there is to wait for."""
    drive = Driver(initial="large", debounce_s=10.0)
    other_gib = ratio * TOTAL_GIB - 12
    drive.read(other_gib, 20, every_s=0.25, until=lambda: drive.state != "large")
    asked_s = 10.0 * (0.95 - ratio) / 0.15
    # The first reading over the limit came a quarter of a second after the start.
    assert asked_s <= drive.now_s - 1000.25 < asked_s + 0.2501


def test_a_sudden_loss_of_all_room_is_answered_by_the_same_reading() -> None:
    """At critical-at people feel it already."""
    drive = Driver(initial="large")
    drive.read(4, 60)
    drive.read(11)
    assert drive.moves == [("observe", "large", "medium")]


def test_the_step_goes_to_the_largest_level_that_fits() -> None:
    """No more capability is given up than has to be."""
    drive = Driver(initial="large")
    drive.read(13.5)
    assert drive.moves == [("observe", "large", "small")]


def test_a_steep_rise_is_answered_before_it_arrives() -> None:
    """The forecast: a switch takes time, and so it must begin while there is some."""
    drive = Driver(initial="large", debounce_s=1000.0)
    for second in range(60):
        drive.read(3.0 + second * 0.2, until=lambda: drive.state != "large")
    assert drive.state == "medium"
    usage = drive.machine.evidence.projected[2]
    assert usage is not None
    assert usage < 0.95
    reason = drive.switches[-1].decision.reason
    assert re.fullmatch(
        r"usage at large will be [\d.]+ % of 24 GiB in 8 s if this goes on; at 99.5 % nothing is left", reason
    )


def test_a_steep_rise_leads_to_the_level_that_still_fits_at_its_end() -> None:
    """How fast it goes says how far down to step: else one switch follows upon the other."""
    slow, fast = Driver(initial="large"), Driver(initial="large")
    for second in range(40):
        slow.read(5.0 + second * 0.1, until=lambda: slow.state != "large")
        fast.read(5.0 + second * 1.2, until=lambda: fast.state != "large")
    assert slow.moves == [("observe", "large", "medium")]
    assert fast.moves == [("observe", "large", "small")]


def test_where_a_rise_leaves_room_for_nothing_off_is_reached_before_it_arrives() -> None:
    """Near the top of memory a minute without a model is cheaper than one that is killed."""
    drive = Driver(initial="small")
    for second in range(20):
        drive.read(10.0 + second * 0.8, until=lambda: drive.state != "small")
    assert drive.moves == [("observe", "small", OFF)]
    usage = drive.machine.evidence.projected[0]
    assert usage is not None
    assert usage < 0.95
    drive.read(21, 60)
    assert drive.state == OFF


def test_one_jump_is_no_steady_rise() -> None:
    """A program that was started does not go on growing at that rate."""
    drive = Driver(initial="large")
    drive.read(2, 20)
    drive.read(6, 600)
    assert drive.moves == []


def test_where_nothing_fits_the_smallest_that_stays_under_critical_serves() -> None:
    """An answer from a small model under pressure is worth more than none."""
    drive = Driver(initial="large")
    drive.read(18, 3600)
    assert drive.moves == [("observe", "large", "small")]
    assert drive.machine.evidence.projected[0] == pytest.approx(20 / 24)


def test_where_not_even_the_smallest_stays_under_critical_nothing_is_loaded() -> None:
    """Memory that others need is theirs."""
    for initial in LADDER.names:
        drive = Driver(initial=initial)
        drive.read(21, 600)
        assert drive.moves == [("observe", initial, OFF)]


def test_from_off_the_smallest_level_returns_after_the_recovery_time_even_under_pressure() -> None:
    """The last resort again: just below critical-at, the smallest serves."""
    drive = Driver(initial="small")
    drive.read(21)
    assert drive.state == OFF
    drive.read(20.75, 600)
    assert drive.state == OFF
    drive.read(19.9, 10)
    assert drive.state == OFF
    drive.read(19.9)
    assert drive.moves[-1] == ("observe", OFF, "small")


def test_a_descent_is_possible_in_the_middle_of_a_switch_and_a_climb_is_not() -> None:
    """Pressure does not wait for a load to end; an upgrade can."""
    drive = Driver(initial="small", answer=never)
    drive.read(4, 300)
    drive.read(4)
    assert drive.moves == [("observe", "small", "large")]
    drive.read(4, 1000)
    drive.read(13.5)
    assert drive.moves[1:] == [("observe", "large", "small")]
    drive.read(1, 1000)
    assert len(drive.moves) == 2


def test_hours_of_stable_usage_bring_no_switch_after_the_first_settling() -> None:
    """Whoever leaves the machine alone is left alone."""
    drive = Driver()
    drive.read(5, 301)
    settled = list(drive.moves)
    for second in range(3600):
        drive.read(5 + 0.05 * (-1) ** second)
    assert drive.moves == settled


# ---------------------------------------------------------------------- readings that cannot be used


def useless(drive: Driver) -> list[Reading]:
    """Readings that say nothing, or nothing that can be."""
    good = drive.reading(4)
    total = int(TOTAL_GIB * GIB)
    full = {"memory": Memory(total, 0), "own_bytes": 0}
    nan, endless = float("nan"), float("inf")
    return [
        Reading(drive.now_s + 0.5, missing=("memory",)),
        Reading(drive.now_s + 0.5, memory=Memory(total, 0), own_bytes=None),
        Reading(drive.now_s + 0.5, memory=None, own_bytes=5),
        Reading(drive.now_s + 0.5, memory=Memory(0, 0), own_bytes=0),
        Reading(drive.now_s + 0.5, memory=Memory(-total, 0), own_bytes=0),
        Reading(drive.now_s + 0.5, memory=Memory(total, 2 * total), own_bytes=0),
        Reading(drive.now_s + 0.5, memory=Memory(total, 0), own_bytes=-1),
        Reading(drive.now_s + 0.5, memory=Memory(total, nan), own_bytes=0),  # type: ignore[arg-type]
        Reading(drive.now_s + 0.5, memory=Memory(nan, 0), own_bytes=0),  # type: ignore[arg-type]
        Reading(drive.now_s + 0.5, memory=Memory(total, 0), own_bytes=nan),  # type: ignore[arg-type]
        Reading(drive.now_s + 0.5, memory=Memory(endless, 0), own_bytes=0),  # type: ignore[arg-type]
        Reading(drive.now_s + 0.5, memory=Memory(total, -endless), own_bytes=0),  # type: ignore[arg-type]
        Reading(drive.now_s + 0.5, memory=Memory(total, 0), own_bytes=endless),  # type: ignore[arg-type]
        Reading(nan, **full),  # type: ignore[arg-type]
        Reading(float("inf"), **full),  # type: ignore[arg-type]
        Reading(float("-inf"), **full),  # type: ignore[arg-type]
        Reading(1e18, **full),  # type: ignore[arg-type]
        Reading(-1e18, **full),  # type: ignore[arg-type]
        Reading(good.at_s, **full),  # type: ignore[arg-type]
        Reading(good.at_s - 1e-6, **full),  # type: ignore[arg-type]
        Reading(good.at_s - 1e6, **full),  # type: ignore[arg-type]
    ]


def test_readings_that_are_missing_absurd_or_out_of_order_change_nothing() -> None:
    """A sensor that fails is not a full machine, and not an empty one (the prototype's ninth mistake)."""
    drive = Driver(initial="medium")
    drive.read(6, 100)
    for reading in useless(drive):
        drive.observe(reading)
    assert drive.moves == []
    assert drive.machine.evidence.now_s == drive.now_s
    assert drive.machine.evidence.footprints.of(1) == [6 * GIB]
    drive.read(6, 201)
    assert drive.state == "large"


def test_a_first_reading_of_no_time_at_all_keeps_nobody_waiting() -> None:
    """As of a program that counts in nanoseconds once: the next good reading decides, and the dwell goes by."""
    for at_s in (1e18, -1e18, 1e308, -1e308):
        drive = Driver()
        drive.observe(drive.reading(4, at_s=at_s))
        assert (drive.moves, drive.machine.evidence.reading) == ([], None)
        drive.read(4, 400)
        assert drive.state == "large"


def test_a_gap_in_the_readings_breaks_the_evidence_for_an_upgrade() -> None:
    """Nobody knows what happened meanwhile."""
    watched, gapped = Driver(initial="small"), Driver(initial="small")
    for drive, gap_s in ((watched, 10.0), (gapped, 10.5)):
        drive.read(4, 200)
        drive.now_s += gap_s - 1
        drive.read(4, 92)
    assert watched.state == "large"
    assert gapped.state == "small"
    gapped.read(4, 208)
    assert gapped.state == "small"
    gapped.read(4)
    assert gapped.state == "large"


def test_missing_readings_for_longer_than_that_break_it_too() -> None:
    """A reading without figures is no watch."""
    drive = Driver(initial="small")
    drive.read(4, 290)
    for _ in range(11):
        drive.now_s += 1
        drive.observe(Reading(drive.now_s, missing=("memory",)))
    drive.read(4, 250)
    assert drive.state == "small"


def test_late_readings_do_not_delay_a_descent() -> None:
    """Under pressure sensors are slow; that must not keep the pressure up."""
    drive = Driver(initial="large", stale_after_s=2.0)
    drive.read(7.3, 9, every_s=3.0)
    assert drive.state == "medium"


def test_steps_of_the_wall_clock_mean_nothing() -> None:
    """Somebody sets the time, or daylight saving does; durations come from the monotonic clock."""
    steady, stepped = Driver(), Driver()
    for second in range(700):
        steady.read(4 if second < 400 else 8, wall_s=1.7e9 + second)
        stepped.read(4 if second < 400 else 8, wall_s=1.7e9 - 86_400 * (second % 7))
    assert stepped.moves == steady.moves
    assert [s.decision.at_s for s in stepped.switches] == [s.decision.at_s for s in steady.switches]


# ---------------------------------------------------------------------- switches that fail, models that die


def test_a_failed_climb_returns_to_what_still_serves() -> None:
    """The prototype's third mistake: its idea of the level and the level were apart for good."""
    drive = Driver(initial="small", answer=lambda switch: switch.dest != "large")
    drive.read(4, 301)
    assert (drive.state, drive.machine.serving, drive.machine.settled) == ("large", "small", False)
    drive.fail("small")
    assert (drive.state, drive.machine.serving, drive.machine.settled) == ("small", "small", True)
    assert drive.moves[-1] == ("switch_failed", "large", "small")
    decision = drive.switches[-1].decision
    assert (decision.reason, decision.reasons) == ("large could not be loaded", ("small still serves",))


def test_a_failed_climb_with_nothing_left_serving_tries_the_next_lower_levels_then_off() -> None:
    """One broken file must not take the service down while another level would do."""
    drive = Driver(initial="small", answer=never)
    drive.read(4, 301)
    for dest in ("medium", "small", OFF):
        drive.fail(OFF)
        assert drive.state == dest
    assert [move[0] for move in drive.moves[1:]] == ["switch_failed"] * 3
    drive.machine.switched(drive.switches[-1].ticket, drive.now_s)
    assert (drive.machine.settled, drive.machine.serving) == (True, OFF)


def test_an_upgrade_waits_the_whole_dwell_after_a_failed_load() -> None:
    """A failed switch is a change too."""
    drive = Driver(initial="small", answer=lambda switch: switch.dest != "large", backoff_s=0.0)
    drive.read(4, 301)
    drive.fail("small")
    failed_s = drive.now_s
    drive.read(4, 1000, until=lambda: drive.state != "small")
    assert (drive.state, drive.now_s - failed_s) == ("large", 300)


def test_a_level_that_failed_is_left_alone_twice_as_long_each_time_up_to_the_bound() -> None:
    """A file that is broken stays broken; one that was only in use gets its chance."""
    drive = Driver(
        initial="small",
        answer=lambda switch: switch.dest == "small",
        dwell_s=1.0,
        dwell_max_s=1.0,
        backoff_s=60.0,
        backoff_max_s=400.0,
        max_level="medium",
    )
    pauses = []
    for _ in range(6):
        drive.read(4, 5000, until=lambda: drive.state == "medium")
        asked_s = drive.now_s
        drive.fail("small")
        drive.read(4, 5000, until=lambda: drive.state == "medium")
        pauses.append(drive.now_s - asked_s)
    assert pauses == [60, 120, 240, 400, 400, 400]


def test_a_level_that_serves_for_a_dwell_is_forgiven_its_failures() -> None:
    """What works now must not be punished for last week."""
    drive = Driver(initial="small", backoff_s=100.0, backoff_max_s=1000.0)
    drive.answer = lambda switch: switch.dest == "small"
    drive.read(4, 301)
    drive.fail("small")
    drive.answer = lambda _: True
    drive.read(4, 600, until=lambda: drive.state == "large")
    drive.read(4, 299)
    assert drive.machine.evidence.failures[2] == 1
    drive.read(4, 1)
    assert drive.machine.evidence.failures[2] == 0
    drive.machine.died("large", drive.now_s)
    assert drive.machine.evidence.backoff_until_s[2] == drive.now_s + 100


def test_a_model_that_dies_makes_the_state_off_and_the_next_that_may_be_loaded_follows() -> None:
    """The service recovers by itself, and not with the level that was just killed."""
    drive = Driver(initial="large")
    drive.read(4, 20)
    drive.machine.died("large", drive.now_s)
    drive.effects()
    assert drive.moves == [("died", "large", OFF)]
    assert drive.switches[-1].decision.reason == "the model of large died"
    died_s = drive.now_s
    drive.read(4, 30, until=lambda: drive.state != OFF)
    assert (drive.state, drive.now_s - died_s) == ("small", 1)


def test_recovery_after_pressure_waits_for_the_recovery_time() -> None:
    """A machine that was just full gets a moment."""
    drive = Driver(initial="small")
    drive.read(21, 30)
    drive.read(4, 30, until=lambda: drive.state != OFF)
    assert drive.now_s - 1030 == 11


def test_from_off_a_level_that_backs_off_is_passed_over() -> None:
    """When the smallest is broken, the next one serves."""
    drive = Driver(initial="small")
    drive.read(4, 20)
    drive.machine.died("small", drive.now_s)
    drive.effects()
    drive.read(4, 20)
    assert drive.moves == [("died", "small", OFF), ("observe", OFF, "medium")]


def test_the_death_of_a_level_that_does_not_serve_only_makes_it_back_off() -> None:
    """News of a model that was on its way out anyway."""
    drive = Driver(initial="medium")
    drive.read(6, 20)
    drive.machine.died("large", drive.now_s)
    assert (drive.state, drive.machine.serving, drive.moves) == ("medium", "medium", [])
    drive.machine.died(OFF, drive.now_s)
    assert drive.moves == []
    drive.read(6, 1000, until=lambda: drive.state == "large")
    assert drive.state == "large"


def test_when_what_served_dies_during_a_climb_the_climb_goes_on() -> None:
    """The new level is being loaded already."""
    drive = Driver(initial="small", answer=never)
    drive.read(4, 301)
    drive.machine.died("small", drive.now_s)
    assert (drive.state, drive.machine.serving, drive.machine.settled) == ("large", OFF, False)
    drive.machine.switched(drive.switches[-1].ticket, drive.now_s)
    assert drive.machine.serving == "large"


def test_a_failed_unload_returns_to_the_level_that_still_serves() -> None:
    """The state never lies for long: what could not be unloaded is still there."""
    drive = Driver(initial="small", answer=never)
    drive.read(21)
    assert drive.state == OFF
    drive.fail("small")
    assert (drive.state, drive.machine.serving) == ("small", "small")
    assert drive.switches[-1].decision.reason == "small could not be unloaded"
    assert drive.machine.evidence.failures == [0, 0, 0]


def test_a_switch_whose_level_serves_after_all_is_done() -> None:
    """Whatever failed, it was not the level."""
    drive = Driver(initial="small", answer=never)
    drive.read(4, 301)
    drive.fail("large")
    assert (drive.state, drive.machine.serving, drive.machine.settled) == ("large", "large", True)
    assert drive.machine.evidence.failures == [0, 0, 0]


@pytest.mark.parametrize("answer", ["switched", "failed"])
def test_the_answer_to_a_switch_that_was_overtaken_changes_nothing(answer: str) -> None:
    """Effects run beside the decision; what they say of yesterday's switch is not about today's."""
    drive = Driver(initial="small", answer=never)
    drive.read(4, 301)
    overtaken = drive.switches[-1].ticket
    drive.read(13.5)
    assert drive.moves[-1] == ("observe", "large", "small")
    for ticket in (overtaken, -1, 999):
        if answer == "switched":
            drive.machine.switched(ticket, drive.now_s, took_s=77.0)
        else:
            drive.machine.switch_failed(ticket, OFF, drive.now_s)
    assert (drive.state, drive.machine.settled, drive.machine.serving) == ("small", False, "small")
    drive.machine.switched(drive.switches[-1].ticket, drive.now_s)
    drive.machine.switch_failed(drive.switches[-1].ticket, OFF, drive.now_s)
    assert (drive.state, drive.machine.settled, drive.machine.serving) == ("small", True, "small")
    assert drive.machine.evidence.load_s == [1.0, 3.0, 5.0]


def test_how_long_a_load_took_is_learned_for_the_forecast() -> None:
    """A slow disk makes the forecast look further ahead."""
    drive = Driver(initial="small", answer=never, switch_margin_s=5.0)
    drive.read(4, 301)
    drive.machine.switched(drive.switches[-1].ticket, drive.now_s, took_s=20.0)
    assert drive.machine.evidence.horizon_s(2) == 25.0


# ---------------------------------------------------------------------- people


def test_a_pinned_level_stays_over_the_limit_and_gives_way_at_critical_only() -> None:
    """A person's override, as far as the machine can bear it; a forecast does not end it."""
    drive = Driver(initial="small")
    drive.read(4)
    drive.machine.pin("large", drive.now_s)
    drive.effects()
    assert drive.moves == [("pin", "small", "large")]
    for step in range(130):
        drive.read(4 + step * 0.05)
    assert drive.machine.evidence.projected[2] == pytest.approx((10.45 + 12) / 24)
    assert drive.state == "large"
    drive.read(10.8)
    assert drive.moves[-1] == ("observe", "large", "medium")
    assert "it is pinned and gives way at 95 %" in drive.switches[-1].decision.reason


def test_a_pinned_level_that_gave_way_returns_when_the_room_has_stayed() -> None:
    """The pin is not forgotten by one bad minute."""
    drive = Driver(initial="medium")
    drive.read(4)
    drive.machine.pin("medium", drive.now_s)
    drive.read(17)
    assert drive.state == "small"
    assert drive.machine.pinned == "medium"
    drive.read(4, 1000)
    assert drive.moves[1:] == [("observe", "small", "medium")]
    drive.machine.unpin()
    drive.read(4, 300)
    assert drive.moves[-1] == ("observe", "medium", "large")


def test_unpinning_alone_moves_nothing() -> None:
    """The next readings decide."""
    drive = Driver(initial="medium")
    drive.read(4, 1000, until=lambda: drive.state == "large")
    drive.machine.pin("small", drive.now_s)
    drive.effects()
    drive.machine.unpin()
    assert (drive.state, drive.machine.pinned) == ("small", None)


def test_pinned_to_off_nothing_is_loaded() -> None:
    """Whoever needs the whole machine for an hour gets it."""
    drive = Driver(initial="medium")
    drive.read(4)
    drive.machine.pin(OFF, drive.now_s)
    drive.effects()
    drive.read(1, 1000)
    assert (drive.state, drive.machine.pinned) == (OFF, OFF)
    assert drive.outlook("small").lacking == ("the level is pinned to off",)
    drive.machine.unpin()
    drive.read(1)
    assert drive.state == "small"


@pytest.mark.parametrize(
    ("level", "other_gib", "why"),
    [
        ("large", 11.0, r"cannot pin large: usage at large would be 95.8 % of 24 GiB; 95 % is critical"),
        ("huge", 4.0, r"cannot pin 'huge': no such level; known are off, small, medium, large"),
    ],
)
def test_a_pin_that_cannot_be_is_refused_with_the_reason_and_changes_nothing(
    level: str, other_gib: float, why: str
) -> None:
    """A person is told in numbers, and the earlier pin stays."""
    drive = Driver(initial="small")
    drive.read(other_gib)
    drive.machine.pin("small", drive.now_s)
    with pytest.raises(PinRefused, match=why):
        drive.machine.pin(level, drive.now_s)
    assert (drive.state, drive.machine.pinned, drive.moves) == ("small", "small", [])


def test_before_the_first_reading_a_pin_is_refused() -> None:
    """What is not known cannot be promised."""
    drive = Driver()
    with pytest.raises(PinRefused, match="cannot pin small: nothing has been read of this machine yet"):
        drive.machine.pin("small", drive.now_s)


def test_a_pin_moves_at_once_and_starts_the_dwell() -> None:
    """A person does not wait five minutes; the next upgrade does."""
    drive = Driver(initial="large")
    drive.read(4, 10)
    drive.machine.pin("small", drive.now_s)
    drive.effects()
    drive.machine.unpin()
    pinned_s = drive.now_s
    drive.read(4, 1000, until=lambda: drive.state != "small")
    assert drive.now_s - pinned_s == 300


def test_a_step_down_that_is_asked_for_goes_one_level_and_not_below_the_smallest() -> None:
    """`degrade` gives up as little as possible."""
    drive = Driver(initial="large")
    drive.read(4)
    assert drive.machine.degrade(drive.now_s) is True
    drive.effects()
    assert drive.machine.degrade(drive.now_s) is True
    drive.effects()
    assert drive.machine.degrade(drive.now_s) is False
    assert drive.moves == [("degrade", "large", "medium"), ("degrade", "medium", "small")]
    assert drive.switches[0].decision.reason == "a step down was asked for"
    degraded_s = drive.now_s
    drive.read(4, 1000, until=lambda: drive.state != "small")
    assert drive.now_s - degraded_s == 300


def test_before_the_first_reading_a_step_down_is_as_free_as_after_it() -> None:
    """No level that never failed is backing off, whatever was read."""
    drive = Driver(initial="large")
    assert drive.machine.degrade(drive.now_s)
    assert drive.moves == [("degrade", "large", "medium")]


def test_a_step_down_that_is_asked_for_passes_over_what_backs_off() -> None:
    """There is no use in going to what just failed."""
    drive = Driver(initial="large")
    drive.read(4)
    drive.machine.died("medium", drive.now_s)
    assert drive.machine.degrade(drive.now_s)
    assert drive.state == "small"


def test_nothing_is_loaded_before_somebody_asks() -> None:
    """An idle daemon costs nothing."""
    drive = Driver()
    drive.machine.want(False)
    drive.read(4, 1000)
    assert drive.state == OFF
    assert drive.outlook("small").lacking == ("nobody asks for a model",)
    drive.machine.want(True)
    drive.read(4)
    assert drive.state == "small"


def test_what_is_loaded_stays_when_nobody_asks_any_more() -> None:
    """Unloading is decided by room, not by silence."""
    drive = Driver(initial="medium")
    drive.machine.want(False)
    drive.read(4, 400)
    assert drive.state == "large"


# ---------------------------------------------------------------------- adapting


def wasted_climb(drive: Driver) -> float:
    """Climb from small to large, be pushed down at once; returns how long the climb took to come."""
    began_s = drive.now_s
    drive.read(4, 5000, until=lambda: drive.state == "large")
    waited_s = drive.now_s - began_s
    drive.read(14)
    assert drive.state == "small"
    return waited_s


def test_wasted_upgrades_double_the_dwell_up_to_the_bound() -> None:
    """A machine whose load comes and goes is climbed on less and less often."""
    drive = Driver(initial="small")
    drive.read(14)
    for expected_s in (600, 1200, 1800, 1800):
        wasted_climb(drive)
        assert drive.machine.evidence.dwell_s(2) == expected_s
    assert drive.machine.evidence.dwell_s(1) == 300


def test_the_lengthened_dwell_is_kept_to_the_second() -> None:
    """600 s after the first wasted upgrade, 1200 s after the second, never more than 1800 s."""
    ladder = Ladder([LADDER[0], LADDER[2]])
    drive = Driver(ladder, initial="small")
    drive.read(14)
    assert [wasted_climb(drive) for _ in range(5)] == [301, 601, 1201, 1801, 1801]


def test_an_upgrade_that_lasts_is_forgiven_the_wasted_ones_before() -> None:
    """When the load has changed its ways, so does the dwell."""
    ladder = Ladder([LADDER[0], LADDER[2]])
    drive = Driver(ladder, initial="small")
    drive.read(14)
    wasted_climb(drive)
    drive.read(4, 601)
    assert drive.state == "large"
    drive.read(4, 599)
    assert drive.machine.evidence.dwell_s(1) == 600
    drive.read(4)
    assert drive.machine.evidence.dwell_s(1) == 300


def test_an_upgrade_undone_only_later_was_not_wasted() -> None:
    """It served for what it cost."""
    ladder = Ladder([LADDER[0], LADDER[2]])
    drive = Driver(ladder, initial="small")
    drive.read(4, 301)
    drive.read(4, 600)
    drive.read(14)
    assert drive.state == "small"
    assert drive.machine.evidence.dwell_s(1) == 300


def test_a_step_down_by_a_person_wastes_nothing() -> None:
    """Only the machine's own misjudgement teaches it."""
    ladder = Ladder([LADDER[0], LADDER[2]])
    drive = Driver(ladder, initial="small")
    drive.read(4, 301)
    drive.machine.degrade(drive.now_s)
    assert drive.machine.evidence.dwell_s(1) == 300


def test_a_year_of_wasted_upgrades_does_not_break_the_arithmetic() -> None:
    """Two to the power of a thousand and more is no float."""
    drive = Driver(initial="small", dwell_max_s=300.0)
    drive.machine.evidence.wasted = [5000] * 3
    drive.machine.evidence.failures = [5000] * 3
    drive.read(4, 301)
    assert drive.state == "large"
    drive.machine.died("large", drive.now_s)
    assert drive.machine.evidence.backoff_until_s[2] == drive.now_s + 3600


# ---------------------------------------------------------------------- what the effects are asked


def test_a_level_that_fits_beside_the_present_one_is_loaded_beside_it() -> None:
    """No gap in the service where memory allows."""
    roomy, tight = Driver(initial="small"), Driver(initial="medium")
    roomy.read(4, 301)
    tight.read(5, 301)
    assert [switch.beside for switch in roomy.switches] == [True]
    # 5 + 6 + 12 = 23 GiB of 24 would be critical.
    assert [switch.beside for switch in tight.switches] == [False]


def test_from_off_there_is_nothing_to_be_beside_of() -> None:
    """The first load needs no cutting over."""
    drive = Driver()
    drive.read(1)
    assert drive.switches[0].beside is False


def test_beside_counts_what_the_model_really_holds() -> None:
    """Declared 2 GiB, holding 8: two of them are not there."""
    drive = Driver(initial="small")
    drive.read(4, 301, own_gib=8)
    assert [switch.beside for switch in drive.switches] == [False]


def test_the_drain_limits_are_the_policys_and_a_tenth_of_them_when_critical_and_none_when_exhausted() -> None:
    """The worse it is, the shorter an answer may go on."""
    limits: dict[float, tuple[float, int]] = {}
    for other_gib in (8.0, 11.0, 11.95):
        drive = Driver(initial="large", drain_seconds=20.0, drain_tokens=256, exhausted_s=0)
        drive.read(other_gib, 10)
        limits[other_gib] = drive.switches[0].drain_s, drive.switches[0].drain_tokens
    assert limits == {8.0: (20.0, 256), 11.0: (2.0, 25), 11.95: (0.0, 0)}


@pytest.mark.parametrize(("own_gib", "other_gib", "drain_s"), [(16.5, 7, 2.0), (4, 11.5, 2.0), (14, 8, 20.0)])
def test_what_is_in_use_shrinks_the_drain_limits_as_well_as_what_is_expected(
    own_gib: float, other_gib: float, drain_s: float
) -> None:
    """In a switch away from large, declared with 12 GiB of 24: two models at once are as urgent as one that grows."""
    drive = Driver(initial="large", answer=never)
    drive.read(8, 5)
    drive.read(other_gib, own_gib=own_gib)
    assert [*drive.switches, *drive.hurried][-1].drain_s == drain_s


def test_usage_that_turns_critical_during_a_switch_shrinks_its_limits_once() -> None:
    """The effects are told when there is something to tell."""
    drive = Driver(initial="large", answer=never)
    drive.read(8, 5)
    switch = drive.switches[-1]
    assert (drive.state, switch.drain_s) == ("medium", 20.0)
    drive.read(8, 5)
    assert drive.hurried == []
    drive.read(11, 5)
    drive.read(8, 5)
    drive.read(11, 5)
    assert [(h.ticket, h.dest, h.drain_s, h.drain_tokens) for h in drive.hurried] == [
        (switch.ticket, "medium", 2.0, 25)
    ]
    assert drive.hurried[0].decision == switch.decision
    drive.read(12, 2)
    assert [h.drain_s for h in drive.hurried] == [2.0]
    drive.read(12)
    assert [h.drain_s for h in drive.hurried] == [2.0, 0.0]


TWO = Ladder([LADDER[0], LADDER[2]])
"""Small and large."""


def needles(drive: Driver, count: int, low_gib: float = 4.0, high_gib: float = 11.6) -> None:
    """Rises of one reading each, a minute apart; at large they are critical, at small they are nothing."""
    for _ in range(count):
        drive.read(low_gib, 59)
        drive.read(high_gib)


def test_the_first_needles_are_answered_at_once_and_no_more_once_they_are_the_rule() -> None:
    """Nobody can know that the first is one; the fourth most likely is."""
    drive = Driver(TWO, initial="large")
    drive.read(4, 59)
    drive.read(11.6)
    assert drive.moves == [("observe", "large", "small")]
    needles(drive, 20)
    assert drive.moves == [("observe", "large", "small"), ("observe", "small", "large")]


def test_where_needles_are_the_rule_a_rise_that_stays_is_answered_after_the_time_that_a_needle_has() -> None:
    """Bounded by the tier: two seconds later than without what was learned."""
    drive = Driver(TWO, initial="small")
    needles(drive, 10)
    assert drive.state == "large"
    drive.read(4, 10)
    drive.read(11.6, 2)
    assert drive.state == "large"
    drive.read(11.6)
    assert drive.state == "small"


def test_known_needles_do_not_begin_the_dwell_anew_and_a_longer_rise_does() -> None:
    """Else a machine that has one a minute would never be climbed on."""
    drive = Driver(TWO, initial="small")
    needles(drive, 4)
    drive.read(11.6, 4)
    drive.read(4, 300)
    assert drive.state == "small"
    drive.read(4)
    assert drive.state == "large"


def test_without_needles_in_the_policy_none_is_waited_for() -> None:
    """The mechanism has a switch."""
    drive = Driver(TWO, initial="small", needle_s=0)
    needles(drive, 20)
    assert drive.moves == []


def test_usage_that_was_seen_to_swing_is_given_a_wider_berth() -> None:
    """The band grows to what it would have had to be; where usage is steady it stays as configured."""
    swinging, steady = Driver(initial="medium"), Driver(initial="medium")
    for _ in range(12):
        swinging.read(4.0, 500)
        swinging.read(6.4, 100)
        steady.read(5.1, 600)
    for drive in (swinging, steady):
        drive.read(4.0, 301)
    wide, narrow = (drive.machine.evidence.expected(2) for drive in (swinging, steady))
    assert wide is not None
    assert narrow is not None
    assert wide.at_most == pytest.approx((4.0 + 2.4 + 12) / 24, abs=0.01)
    assert narrow.at_most == pytest.approx(4.0 / 24 + 0.03 + 0.5)


def test_a_near_miss_makes_a_level_give_way_earlier_and_a_calm_hour_forgives_half() -> None:
    """Usage at a settled level above critical-at should not have come so far."""
    drive = Driver(initial="large")
    drive.read(4)
    drive.read(11.6)
    drive.read(4)
    evidence = drive.machine.evidence
    assert evidence.cautions[2].incidents == {"near miss": 1}
    assert evidence.limits == pytest.approx([0.80, 0.80, 0.79], abs=1e-4)
    drive.read(4, 3600)
    assert evidence.limits[2] == pytest.approx(0.795, abs=1e-4)


# ---------------------------------------------------------------------- GPUs


def test_a_level_is_judged_by_each_resource_that_it_takes() -> None:
    """The tightest decides, and is named."""
    drive = Driver(GPU_LADDER, initial="large")
    drive.read_gpu(4, 1, 20)
    assert drive.state == "large"
    drive.read_gpu(4, 4, 5)
    assert drive.state == "medium"
    assert "usage at large is 87.5 % of 16 GiB of gpu0" in drive.switches[-1].decision.reason


def test_a_full_gpu_is_nothing_to_a_level_that_takes_none_of_it() -> None:
    """A game fills the graphics memory; a model in RAM goes on."""
    drive = Driver(GPU_LADDER, initial="large")
    drive.read_gpu(4, 1, 20)
    drive.read_gpu(4, 15.9, 600)
    assert drive.moves == [("observe", "large", "small")]
    assert drive.machine.evidence.projected[0] == pytest.approx(6 / 24)


def test_a_level_without_the_gpu_is_loaded_beside_whatever_fills_the_gpu() -> None:
    """Stepping down to RAM needs no room on the card."""
    drive = Driver(GPU_LADDER, initial="medium")
    drive.read_gpu(4, 11.9, 10)
    assert [(s.dest, s.beside) for s in drive.switches] == [("small", True)]


def test_without_the_gpus_reading_nothing_is_climbed_and_nothing_forced() -> None:
    """A driver that does not answer is missing, not full and not empty."""
    drive = Driver(GPU_LADDER, initial="medium")
    drive.read_gpu(4, 1, 290)
    drive.read_gpu(4, None, 600)
    assert drive.moves == []
    drive.read_gpu(4, 1, 300)
    assert drive.moves == []
    drive.read_gpu(4, 1, 1)
    assert drive.moves == [("observe", "medium", "large")]


def test_without_the_gpus_reading_a_level_that_takes_none_of_it_recovers() -> None:
    """What is not needed cannot be missing."""
    drive = Driver(GPU_LADDER)
    drive.read_gpu(4, None, 600)
    assert drive.moves == [("observe", OFF, "small")]


def test_without_the_gpus_reading_a_lack_of_ram_is_still_answered() -> None:
    """A smaller level takes no more of what cannot be read; to stay would be to wait for the kernel."""
    drive = Driver(GPU_LADDER, initial="large")
    drive.read_gpu(4, 1, 20)
    drive.read_gpu(16, None, 10)
    assert drive.moves == [("observe", "large", "medium")]
    drive.read_gpu(22.1, None)
    assert drive.moves[1:] == [("observe", "medium", OFF)]


def test_a_gpu_that_is_read_now_and_then_teaches_no_needles() -> None:
    """What cannot be read has not ended: else a full GPU would be taken for a needle for as long as this goes on."""
    drive = Driver(GPU_LADDER, initial="large")
    drive.read_gpu(4, 1, 20)
    for _ in range(20):
        drive.read_gpu(4, 5)
        drive.read_gpu(4, None)
    assert drive.moves == []
    drive.read_gpu(4, 5.9)
    assert drive.moves == [("observe", "large", "medium")]


def test_without_the_gpus_reading_a_larger_level_cannot_be_pinned_and_a_smaller_one_can() -> None:
    """A promise needs the figure."""
    drive = Driver(GPU_LADDER, initial="medium")
    drive.read_gpu(4, None)
    with pytest.raises(PinRefused, match="usage at large would be unknown"):
        drive.machine.pin("large", drive.now_s)
    drive.machine.pin("small", drive.now_s)
    assert drive.state == "small"


def test_a_gpu_that_reports_no_memory_at_all_is_missing() -> None:
    """Drivers do that while they restart; it must not be divided by."""
    drive = Driver(GPU_LADDER, initial="medium")
    drive.read_gpu(4, 1, 5)
    broken = drive.gpu(1)[0]
    drive.now_s += 1
    drive.observe(drive.reading(4, gpus=(type(broken)(0, "a card", 0, 0, 0, 0),)))
    assert drive.machine.evidence.projected[1] is None
    assert drive.moves == []


# ---------------------------------------------------------------------- the table


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_the_table_names_every_pair_of_states_for_every_ladder(count: int) -> None:
    """Any number of levels, and readings move between any two of them."""
    names = tuple(f"level{number}" for number in range(count))
    pairs = {(row.source, row.dest) for row in table(names) if row.trigger == "observe"}
    states = (OFF, *names)
    assert pairs == {(here, there) for here in states for there in states if here != there}


def test_the_state_machine_is_built_from_the_table_and_has_nothing_else() -> None:
    """One table is the source of the machine, the documentation and the picture."""
    drive = Driver()
    names = LADDER.names
    built = [
        (trigger, transition.source, transition.dest)
        for trigger, event in drive.machine._machine.events.items()
        for transitions in event.transitions.values()
        for transition in transitions
    ]
    assert sorted(built, key=str) == sorted(((row.trigger, row.source, row.dest) for row in table(names)), key=str)


def test_each_instance_decides_for_itself() -> None:
    """Two ladders on one machine, such as one a GPU, share nothing."""
    one, two = Driver(initial="large"), Driver(initial="large")
    one.read(8, 10)
    assert (one.state, two.state, two.moves) == ("medium", "large", [])


def test_a_policy_refuses_figures_that_do_not_go_together() -> None:
    """The message names both."""
    cases: list[tuple[Callable[[], Policy], str]] = [
        (lambda: Policy(band=0.8), "band 0.8 must be below scale_at 0.8"),
        (lambda: Policy(critical_at=0.8), "critical_at 0.8 must be above scale_at 0.8"),
        (lambda: Policy(exhausted_at=0.9), "exhausted_at 0.9 must not be below critical_at 0.95"),
        (lambda: Policy(dwell_max_s=1.0), "dwell_max_s 1.0 must not be below dwell_s 300.0"),
        (lambda: Policy(backoff_max_s=1.0), "backoff_max_s 1.0 must not be below backoff_s 60.0"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


def test_one_level_is_a_ladder_too() -> None:
    """It is loaded, leaves at critical, and returns."""
    drive = Driver(Ladder([Level("only", {RAM: 2 * GIB}, 1.0, 1.0)]))
    drive.read(4, 10)
    drive.read(21, 10)
    drive.read(4, 20)
    assert [move[1:] for move in drive.moves] == [(OFF, "only"), ("only", OFF), (OFF, "only")]
