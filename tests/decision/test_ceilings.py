"""What battery power and heat do to the largest level: down after a moment of them, up again after a dwell without.

Other programs use 4 GiB throughout, so that every level fits, unless a test says else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.errors import PinRefused
from scaler.events import DecisionMade
from scaler.guards import GUARDS, explain
from scaler.levels import GIB, OFF, RAM, Ladder, Level
from scaler.machine import Switch
from scaler.notices import notice_of
from scaler.readings import Power, Thermal
from tests.decision.driver import GPU_LADDER, LADDER, Driver

MAINS: dict[str, Any] = {"power": Power(True, 0.8)}
BATTERY: dict[str, Any] = {"power": Power(False, 0.41)}
COOL: dict[str, Any] = {"thermal": Thermal(False)}
HOT: dict[str, Any] = {"thermal": Thermal(True)}
ON = "the machine runs on battery (41 %); the tier allows medium at most then"
HEAT = "the processors are slowed down for heat; the tier allows medium at most then"
TWO = Ladder([LADDER[0], LADDER[2]])
"""Small and large."""


def on_battery(**policy: Any) -> Driver:
    """A machine at large that has had mains power for a while; on battery its tier allows medium."""
    drive = Driver(initial="large", battery_max_level="medium", **policy)
    drive.read(4, 20, **MAINS)
    return drive


def in_heat(ladder: Ladder = LADDER, most: str = "medium", initial: str = "large", **policy: Any) -> Driver:
    """A machine that has been cool for a while; slowed down for heat its tier allows ``most``."""
    drive = Driver(ladder, initial=initial, throttled_max_level=most, **policy)
    drive.read(4, 20, **COOL)
    return drive


def said(drive: Driver, guard: str, level: str) -> str:
    """What a guard says of a level now."""
    evidence, position = drive.machine.evidence, drive.machine.ladder.index(level)
    return explain(evidence, position, GUARDS[guard].test(evidence, position))


# ---------------------------------------------------------------------- down


def test_without_such_a_level_battery_and_heat_change_nothing() -> None:
    """The default: whoever says nothing of it notices nothing."""
    drive = Driver(initial="medium")
    drive.read(4, 301, **BATTERY, **HOT)
    drive.read(4, 1000, **BATTERY, **HOT)
    assert drive.moves == [("observe", "medium", "large")]


@pytest.mark.parametrize(("drive", "so", "why"), [(on_battery, BATTERY, ON), (in_heat, HOT, HEAT)])
def test_what_lasts_for_the_recovery_time_lowers_the_level_and_says_why(
    drive: Any, so: dict[str, Any], why: str
) -> None:
    """To the second; the reason is told as the decision's, and no figure of memory stands in its place."""
    machine = drive()
    machine.read(4, 10, **so)
    assert machine.moves == []
    machine.read(4, 1, **so)
    assert machine.moves == [("observe", "large", "medium")]
    decision = machine.switches[-1].decision
    assert decision.reason == why
    assert decision.reasons == (why, "neither battery power nor heat forbids medium", decision.reasons[2])
    assert decision.reasons[2] == "usage at medium would be 41.7 % of 24 GiB; the limit is 80 %"
    assert "over_ceiling" in {finding.guard for finding in decision.findings if finding.holds}
    machine.read(4, 5000, **so)
    assert len(machine.moves) == 1


def test_a_charger_that_is_out_for_some_seconds_changes_nothing() -> None:
    """Somebody moves to another socket, or the dock begins anew."""
    drive = on_battery()
    for _ in range(100):
        drive.read(4, 9, **BATTERY)
        drive.read(4, 9, **MAINS)
    assert drive.moves == []


def test_heat_that_comes_and_goes_by_the_second_counts_as_it_lasts() -> None:
    """A hot processor slows down and speeds up many times: three seconds of four are heat, one of four is none."""
    mostly, seldom = in_heat(), in_heat()
    began_s = mostly.now_s + 1
    for second in range(40):
        mostly.read(4, **(COOL if second % 4 == 3 else HOT))
        seldom.read(4, **(HOT if second % 4 == 3 else COOL))
    assert mostly.moves == [("observe", "large", "medium")]
    assert mostly.switches[-1].decision.at_s - began_s == 18
    assert seldom.moves == []


def test_what_was_over_does_not_lower_the_level_when_it_begins_anew() -> None:
    """Heat of a while ago is as good as none, however long it lasted."""
    drive = in_heat(initial="medium", most="medium")
    drive.read(4, 600, **HOT)
    drive.read(4, 310, **COOL)
    assert drive.moves == [("observe", "medium", "large")]
    drive.read(4, 10, **HOT)
    assert drive.state == "large"


def test_the_step_leads_past_levels_that_are_not_allowed_to_the_largest_that_fits() -> None:
    """One switch, and no more given up than must be."""
    drive = Driver(initial="large", battery_max_level="small")
    drive.read(4, 20, **BATTERY)
    assert drive.moves == [("observe", "large", "small")]
    broken = Driver(initial="large", battery_max_level="medium", answer=lambda switch: switch.dest != "medium")
    broken.read(4, 11, **BATTERY)
    broken.fail("large")
    broken.read(4, 1, **BATTERY)
    assert broken.moves == [
        ("observe", "large", "medium"),
        ("switch_failed", "medium", "large"),
        ("observe", "large", "small"),
    ]


def test_of_battery_and_heat_the_lower_level_counts() -> None:
    """It is both, and is told as what leads furthest down; what has not lasted yet leads nowhere."""
    drive = Driver(initial="large", battery_max_level="medium", throttled_max_level="small")
    drive.read(4, 11, **BATTERY, **HOT)
    assert drive.moves == [("observe", "large", "small")]
    assert drive.switches[-1].decision.reason == HEAT.replace("medium", "small")
    drive = Driver(initial="large", battery_max_level="medium", throttled_max_level="small")
    drive.read(4, 5, **BATTERY, **COOL)
    drive.read(4, 6, **BATTERY, **HOT)
    assert drive.moves == [("observe", "large", "medium")]
    drive.read(4, 5, **BATTERY, **HOT)
    assert drive.moves[1:] == [("observe", "medium", "small")]


def test_where_no_level_that_is_allowed_fits_the_present_one_stays() -> None:
    """An answer is worth more than coolness: a level on the GPU stays while RAM has no room for the smaller one."""
    ladder = Ladder([Level("small", {RAM: 6 * GIB}, 0.5, 1.0), Level("large", {"gpu0": 4 * GIB}, 1.0, 1.0)])
    drive = Driver(ladder, initial="large", throttled_max_level="small")

    def read(other_gib: float, seconds: int) -> None:
        for _ in range(seconds):
            drive.now_s += 1
            drive.observe(drive.reading(other_gib, gpus=drive.gpu(1), **HOT))

    read(16, 600)
    assert drive.moves == []
    assert drive.outlook("small").lacking == ("usage at small would be 91.7 % of 24 GiB; the limit is 80 %",)
    read(12, 1)
    assert drive.moves == [("observe", "large", "small")]


def test_memory_is_answered_as_ever_on_battery_and_in_heat() -> None:
    """A level that is not allowed still serves for a moment, if that is the nearest that fits."""
    drive = Driver(initial="large", battery_max_level="small")
    drive.read(4, 5, **BATTERY)
    drive.read(11, 1, **BATTERY)
    assert drive.moves == [("observe", "large", "medium")]
    drive.read(11, 6, **BATTERY)
    assert drive.moves[1:] == [("observe", "medium", "small")]
    drive.read(21, 1, **BATTERY)
    assert drive.moves[2:] == [("observe", "small", OFF)]


def test_what_memory_and_battery_ask_for_at_the_same_time_is_one_switch() -> None:
    """The smaller of the two levels at once, not one after the other."""
    drive = Driver(initial="large", battery_max_level="small")
    drive.read(4, 10, **BATTERY)
    drive.read(11, 1, **BATTERY)
    assert drive.moves == [("observe", "large", "small")]


def test_it_lowers_the_level_in_the_middle_of_a_switch_too() -> None:
    """Who unplugs while a model is being loaded does not wait for it."""
    drive = Driver(initial="small", battery_max_level="medium", answer=lambda switch: switch.dest != "large")
    drive.read(4, 301, **MAINS)
    assert (drive.state, drive.machine.settled) == ("large", False)
    drive.read(4, 11, **BATTERY)
    assert drive.moves[1:] == [("observe", "large", "medium")]


# ---------------------------------------------------------------------- up


@pytest.mark.parametrize(
    ("drive", "so", "no_more", "why"),
    [
        (on_battery, BATTERY, MAINS, "for 100 s the machine has had mains power; 300 s have to pass"),
        (in_heat, HOT, COOL, "for 100 s the processors have not been slowed down for heat; 300 s have to pass"),
    ],
)
def test_a_climb_waits_until_it_has_been_over_for_a_whole_dwell(
    drive: Any, so: dict[str, Any], no_more: dict[str, Any], why: str
) -> None:
    """Five minutes without a break, to the second, and people are told."""
    machine = drive()
    machine.read(4, 600, **so)
    machine.read(4, 101, **no_more)
    assert machine.outlook("large").lacking == (why,)
    assert (machine.outlook("large").wait_s, machine.outlook("large").earliest_s) == (200, 200)
    machine.read(4, 199, **no_more)
    assert machine.state == "medium"
    machine.read(4, 1, **no_more)
    assert machine.moves == [("observe", "large", "medium"), ("observe", "medium", "large")]


@pytest.mark.parametrize(("drive", "so", "no_more"), [(on_battery, BATTERY, MAINS), (in_heat, HOT, COOL)])
def test_a_moment_of_it_begins_the_dwell_anew(drive: Any, so: dict[str, Any], no_more: dict[str, Any]) -> None:
    """A charger with a bad contact, or the heat of our own small model, makes nothing swing."""
    machine = drive()
    machine.read(4, 20, **so)
    for _ in range(20):
        machine.read(4, 299, **no_more)
        machine.read(4, 1, **so)
    assert machine.moves == [("observe", "large", "medium")]


def test_while_it_lasts_the_level_is_not_climbed_to_and_nothing_but_its_end_would_help() -> None:
    """No waiting time is told, and no advice to close anything."""
    drive = Driver(initial="medium", battery_max_level="medium")
    drive.read(4, 2000, **BATTERY)
    assert drive.moves == []
    outlook = drive.outlook("large")
    assert (outlook.lacking, outlook.wait_s, outlook.earliest_s) == ((ON,), None, None)
    assert said(drive, "allowed", "large") == ON


def test_a_machine_of_which_the_battery_is_unknown_tells_no_charge() -> None:
    """The sentence is whole without it."""
    drive = Driver(initial="medium", battery_max_level="medium")
    drive.read(4, 5, power=Power(False))
    assert said(drive, "allowed", "large") == ON.replace(" (41 %)", "")


def test_a_climb_that_heat_undid_makes_the_next_wait_longer() -> None:
    """The large model heats, the small one cools: the cycle is stretched as one of memory would be."""
    drive = in_heat(TWO, "small", initial="small")
    waited = []
    for _ in range(4):
        began_s = drive.now_s
        drive.read(4, 5000, until=lambda: drive.state == "large", **COOL)
        waited.append(drive.now_s - began_s)
        drive.read(4, 5000, until=lambda: drive.state == "small", **HOT)
    assert waited[1:] == [601, 1201, 1801]
    assert drive.machine.evidence.wasted[1] == 4


def test_from_off_only_what_is_allowed_now_is_loaded() -> None:
    """When the smallest is broken, a level that battery power forbids does not take its place."""
    drive = Driver(battery_max_level="small")
    drive.read(4, 2, **BATTERY)
    drive.machine.died("small", drive.now_s)
    drive.effects()
    drive.read(4, 30, **BATTERY)
    assert drive.state == OFF
    assert ON.replace("medium", "small") in drive.outlook("medium").lacking
    drive.read(4, 1, **MAINS)
    assert drive.state == "medium"


# ---------------------------------------------------------------------- what is not told


def test_a_reading_that_does_not_tell_changes_nothing() -> None:
    """Neither down nor up: what was last known goes on, and a late answer does not delay what lasts."""
    drive = on_battery()
    drive.read(4, 5, **BATTERY)
    drive.read(4, 30, missing=("power",))
    assert drive.moves == []
    drive.read(4, 1, **BATTERY)
    assert drive.moves == [("observe", "large", "medium")]
    drive.read(4, 1000, missing=("power",))
    drive.read(4, 1000, power=Power(None, 0.3))
    assert len(drive.moves) == 1
    assert drive.outlook("large").lacking[0] == ON.replace("41", "30")


def test_a_gap_of_more_than_the_stale_time_in_what_is_told_begins_the_dwell_anew() -> None:
    """A reading or two may fail; after that nobody knows what happened meanwhile."""
    watched, gapped = (Driver(initial="medium", battery_max_level="medium") for _ in range(2))
    for drive, gap_s in ((watched, 9), (gapped, 10)):
        drive.read(4, 200, **MAINS)
        drive.read(4, gap_s, missing=("power",))
        drive.read(4, 101 - gap_s, **MAINS)
    assert watched.state == "large"
    assert gapped.state == "medium"
    gapped.read(4, 209, **MAINS)
    assert gapped.state == "medium"
    gapped.read(4, 1, **MAINS)
    assert gapped.state == "large"


def test_at_the_stale_time_itself_the_last_answer_still_counts() -> None:
    """And no longer than that."""
    for gap_s, state in ((10, "large"), (11, "medium")):
        drive = Driver(initial="medium", battery_max_level="medium")
        drive.read(4, 301 - gap_s, **MAINS)
        drive.read(4, gap_s, missing=("power",))
        assert drive.state == state


def test_a_sensor_that_is_lost_for_long_keeps_a_climb_from_being_made() -> None:
    """It may be on battery by now; with the sensor back, a dwell is asked."""
    drive = Driver(initial="medium", battery_max_level="medium")
    drive.read(4, 250, **MAINS)
    drive.read(4, 500, missing=("power",))
    unknown = "whether the machine runs on battery is not known; the tier allows medium at most then"
    assert (drive.state, drive.outlook("large").lacking) == ("medium", (unknown,))
    assert (drive.outlook("large").wait_s, drive.outlook("large").earliest_s) == (None, 300)
    never = Driver(initial="medium", battery_max_level="medium")
    never.read(4, 500, missing=("power",))
    assert (never.state, never.outlook("large").lacking) == ("medium", (unknown,))
    never.read(4, 300)
    assert never.state == "medium"
    never.read(4, 1)
    assert never.state == "large"


def test_what_was_known_long_ago_lowers_no_level() -> None:
    """A sensor that went while a person had pinned a level: nobody knows whether it is still so."""
    drive = on_battery()
    drive.machine.pin("large", drive.now_s)
    drive.read(4, 60, **BATTERY)
    drive.read(4, 60, missing=("power",))
    drive.machine.unpin()
    drive.read(4, 60, missing=("power",))
    assert drive.moves == []


def test_a_machine_without_a_battery_or_that_does_not_tell_of_heat_is_never_lowered() -> None:
    """A desktop lacks the sensor; that is no failure of it."""
    drive = Driver(initial="medium", battery_max_level="small", throttled_max_level="small")
    drive.read(4, 1000)
    assert drive.moves == [("observe", "medium", "large")]


def test_a_gpu_counts_if_the_ladder_uses_it() -> None:
    """The card of the display may be as hot as it likes."""
    for index, moves in ((0, [("observe", "large", "small")]), (1, [])):
        drive = Driver(GPU_LADDER, initial="large", throttled_max_level="small")
        for _ in range(30):
            drive.now_s += 1
            card = drive.gpu(1)[0]
            hot, cool = replace(card, index=index, throttled=True), replace(card, index=1 - index, throttled=False)
            # That of the ladder comes last.
            drive.observe(drive.reading(4, gpus=tuple(sorted((hot, cool), key=lambda gpu: -gpu.index)), **COOL))
        assert drive.moves == moves
    assert said(drive, "stays_allowed", "large") == "large is allowed"


def test_each_part_of_the_machine_is_judged_for_itself() -> None:
    """That the processors are cool says nothing of the GPU whose driver does not answer."""
    drive = Driver(GPU_LADDER, initial="small", throttled_max_level="small")
    for second in range(400):
        drive.now_s += 1
        gpus = (replace(drive.gpu(1)[0], throttled=None if second else False),)
        drive.observe(drive.reading(4, gpus=gpus, **COOL))
    unknown = "whether gpu0 is slowed down for heat is not known; the tier allows small at most then"
    assert drive.moves == []
    assert drive.outlook("large").lacking == (unknown,)
    lost = Driver(GPU_LADDER, initial="small", throttled_max_level="small")
    lost.read(4, 1, missing=("gpus",), **COOL)
    assert said(lost, "stays_allowed", "large") == unknown


def test_the_heat_of_a_gpu_is_told_by_its_name() -> None:
    """Whoever reads it must know what is hot."""
    drive = Driver(GPU_LADDER, initial="small", throttled_max_level="small")
    drive.now_s += 1
    drive.observe(drive.reading(4, gpus=(replace(drive.gpu(1)[0], throttled=True),)))
    assert said(drive, "allowed", "large") == "gpu0 is slowed down for heat; the tier allows small at most then"
    drive.now_s += 1
    drive.observe(drive.reading(4, gpus=(replace(drive.gpu(1)[0], throttled=False),)))
    drive.now_s += 5
    drive.observe(drive.reading(4, gpus=(replace(drive.gpu(1)[0], throttled=False),)))
    assert said(drive, "stays_allowed", "large") == "for 5 s gpu0 has not been slowed down for heat; 300 s have to pass"


# ---------------------------------------------------------------------- people


def test_a_pin_goes_before_battery_and_heat_and_not_before_the_tiers_largest_level() -> None:
    """A pin is the person's own will; the tier's largest level they wrote down themselves."""
    drive = Driver(initial="small", max_level="medium", battery_max_level="small", throttled_max_level="small")
    drive.read(4, 20, **BATTERY, **HOT)
    drive.machine.pin("medium", drive.now_s)
    drive.effects()
    drive.read(4, 1000, **BATTERY, **HOT)
    assert drive.moves == [("pin", "small", "medium")]
    with pytest.raises(PinRefused, match="the tier allows medium at most"):
        drive.machine.pin("large", drive.now_s)
    drive.machine.unpin()
    drive.read(4, 1, **BATTERY, **HOT)
    assert drive.moves[1:] == [("observe", "medium", "small")]


def test_a_pinned_level_that_gave_way_to_memory_comes_back_on_battery() -> None:
    """Else the pin would be forgotten by one bad minute."""
    drive = Driver(initial="medium", battery_max_level="small")
    drive.read(4, 20, **MAINS)
    drive.machine.pin("medium", drive.now_s)
    drive.read(17, 1, **BATTERY)
    assert drive.state == "small"
    drive.read(4, 301, **BATTERY)
    assert drive.moves[1:] == [("observe", "small", "medium")]


def test_the_countdown_is_told_and_comes_true() -> None:
    """Who has just unplugged can read what will happen, and when."""
    drive = on_battery()
    drive.read(4, 4, **BATTERY)
    outlook = drive.outlook("medium")
    assert (outlook.wait_s, outlook.lacking) == (7, (f"{ON}, after 10 s of it, 3 s so far",))
    drive.read(4, 6, **BATTERY)
    assert drive.state == "large"
    drive.read(4, 1, **BATTERY)
    assert drive.state == "medium"


@given(st.floats(0.5, 23), st.integers(1, 30), st.integers(1, 30), st.sampled_from(LADDER.names), st.booleans())
def test_every_waiting_time_that_is_told_comes_true(
    other_gib: float, mains_s: int, battery_s: int, initial: str, unplugged: bool
) -> None:
    """Whichever of memory and battery is first."""
    drive = Driver(initial=initial, debounce_s=30.0, dwell_s=40.0, battery_max_level="small", recovery_s=20.0)
    drive.read(other_gib, mains_s, **(MAINS if unplugged else BATTERY))
    last = BATTERY if unplugged else MAINS
    drive.read(other_gib, battery_s, **last)
    here, told_s = drive.state, drive.now_s
    waits = {o.level: o.wait_s for o in drive.machine.outlooks() if o.wait_s is not None}
    if not waits:
        return
    drive.read(other_gib, 100, until=lambda: drive.state != here, **last)
    assert drive.state in waits
    assert min(waits.values()) <= drive.now_s - told_s <= min(waits.values()) + 1.000001


def test_a_notice_tells_what_lowered_the_level_and_what_brings_it_back() -> None:
    """Room alone would not."""
    drive = on_battery()
    drive.read(4, 11, **BATTERY)
    notice = notice_of(DecisionMade(drive.switches[-1], 1.7e9), LADDER, 300.0)
    assert notice is not None
    assert (notice.kind, notice.level) == ("downgrade", "medium")
    back = "large comes back once it has been allowed again and fitted for at least 300 s"
    assert notice.text == f"large gives way to medium: {ON}; {back}"


def test_two_machines_on_one_battery_decide_for_themselves() -> None:
    """What is known of it is each one's own."""
    one, two = on_battery(), on_battery()
    one.read(4, 11, **BATTERY)
    assert (one.state, two.state) == ("medium", "large")
    assert isinstance(one.switches[-1], Switch)
