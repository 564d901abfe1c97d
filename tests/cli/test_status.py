"""`scaler status` and `scaler explain`: that what was learned stands beside what is configured, in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scaler.cli import explain, status
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.monitor import ResourceMonitor
from scaler.performance import AnswerSample
from scaler.policy import Policy
from scaler.proactive import ProactiveScaler
from scaler.readings import Memory, Power, Reading
from scaler.report import status_report, status_words

GIBS = {"off": 0, "small": 2, "medium": 4, "large": 8}


class Machine:
    """16 GiB, of which others use what the test says; the real decision, and the real words about it."""

    def __init__(self, **policy: Any) -> None:
        self.now_s = 0.0
        self.scaler = ProactiveScaler(
            ladder=Ladder([Level(name, {RAM: GIBS[name] * GIB}, 0.3, 2.0) for name in ("small", "medium", "large")]),
            policy=Policy(band=0.035, **policy),
            monitor=ResourceMonitor(sensors=[]),
            clock=lambda: self.now_s,
        )

    def read(self, other_gib: float, seconds: int, power: Power | None = None) -> None:
        """One reading a second."""
        for _ in range(seconds):
            self.now_s += 1
            own = GIBS[self.scaler.status().serving] * GIB
            memory = Memory(16 * GIB, int(16 * GIB - own - other_gib * GIB))
            wall_s = 1.7e9 + self.now_s
            self.scaler.observe(Reading(self.now_s, wall_s=wall_s, memory=memory, own_bytes=own, power=power))

    def told(self, former: str | None = None) -> tuple[str, str]:
        """What `scaler status` and `scaler explain` print; ``former`` is of the configuration before."""
        report = status_report(self.scaler.status(), self.scaler.analyze_resource_trends())
        report |= status_words(report, former=former)
        plain = json.loads(json.dumps(report)) | {"answering": 0, "waiting": 0}
        return "\n".join(status._lines(plain)), "\n".join(explain._lines(plain))


def test_a_calm_machine_has_the_configured_figures_and_a_forecast() -> None:
    """Nothing was learned, so nothing is listed as different."""
    machine = Machine()
    machine.read(4, 700)
    stands, why = machine.told()
    assert "limits    configured: gives way above 80.0 %, climbs after 5.0 min" in stands
    assert "          expects other programs to use up to 3.5 % more of the memory within 10.0 min" in stands
    assert "today" not in stands
    assert "forecast: at most 78.5 % at large within 10.0 min (the peak of the last 5.0 min and 3.5 % on top)" in why
    assert "next upgrade: none; large is the largest level" in why


def test_a_wasted_climb_and_a_near_miss_are_told_with_what_they_change() -> None:
    """Today's values beside the configured, and the earliest time of the next climb."""
    machine = Machine()
    machine.read(4, 400)
    machine.read(8, 60)
    machine.read(4, 200)
    stands, why = machine.told()
    assert "large today: gives way above 79.0 % (after near miss: 1), climbed to after 10.0 min (wasted climbs: 1)" in (
        stands
    )
    assert "next upgrade: to large in 6.7 min at the earliest" in why
    assert "backs off: the last climb had to be undone within 10.0 min (1 in a row), so the next waits 10.0 min" in why


def test_of_levels_that_can_come_at_the_same_time_the_largest_is_named() -> None:
    """It is the one that will be climbed to."""
    machine = Machine()
    machine.read(4, 100)
    assert "next upgrade: to large in 3.4 min at the earliest" in machine.told()[1]


def test_the_earliest_climb_is_told_when_no_room_is_in_sight() -> None:
    """Five minutes from the moment that room comes, which may be the next one."""
    machine = Machine()
    machine.read(9, 900)
    _, why = machine.told()
    assert "large: not by waiting alone" in why
    assert "next upgrade: to medium in 5.0 min at the earliest" in why


def test_a_level_that_failed_says_why_and_for_how_long() -> None:
    """Not only that it backs off."""
    machine = Machine()
    machine.read(9, 20)
    machine.scaler.died("small", "it was killed (signal 9)")
    machine.read(9, 20)
    stands, why = machine.told()
    assert "small today: backs off for 40 s" in stands
    assert "small: in 40 s if this lasts" in why
    assert "backs off because it failed: it was killed (signal 9)" in why


def test_slow_and_failed_answers_lower_a_limit_only_where_memory_was_tight() -> None:
    """The processor may be busy as well; giving memory away for that would help nobody."""
    roomy, tight = Machine(), Machine()
    roomy.read(3, 400)
    tight.read(4.5, 400)
    assert (roomy.scaler.status().serving, tight.scaler.status().serving) == ("large", "medium")
    tight.read(8.4, 5)
    for machine in (roomy, tight):
        level = machine.scaler.status().serving
        for seconds in (2.0, 2.0, 2.0, 2.0, 2.0, 9.0):
            machine.scaler.update_performance_metrics(AnswerSample(level, seconds, 100, 0.1))
        machine.scaler.update_performance_metrics(AnswerSample(level, 1.0, 0, failed=True))
    tight.read(8.4, 1)
    roomy.read(1, 1)
    assert "medium today: gives way above 78.0 % (after slow answer: 1, failed answer: 1)" in tight.told()[0]
    assert "today" not in roomy.told()[0]


def test_battery_power_is_told_from_the_first_second_to_the_climb_back() -> None:
    """What will come, why it came, what stands in the way of the climb, and until when."""
    on, mains = Power(False, 0.41), Power(True, 0.41)
    lowered = "the machine runs on battery (41 %); the tier allows medium at most then"
    machine = Machine(battery_max_level="medium")
    machine.read(2, 1000, mains)
    machine.read(2, 4, on)
    why = machine.told()[1]
    assert "large is the level now" in why
    countdown = f"  in 7 s if this lasts\n  {lowered}, after 10 s of it, 3 s so far"
    assert f"medium: smaller; usage there would be 37.5 %\n{countdown}" in why
    machine.read(2, 7, on)
    why = machine.told()[1]
    assert f"medium is the level now\n  came from large because {lowered}" in why
    assert f"next upgrade: none; {lowered}\n" in why
    assert f"large: not by waiting alone\n  the last change was 0 s ago; 300 s have to pass\n  {lowered}" in why
    machine.read(2, 101, mains)
    why = machine.told()[1]
    assert "next upgrade: to large in 3.3 min at the earliest" in why
    assert "  for 100 s the machine has had mains power; 300 s have to pass" in why


def test_a_level_that_battery_power_forbids_and_that_stays_says_so() -> None:
    """Nothing smaller could be gone to."""
    machine = Machine(battery_max_level="small")
    machine.read(2, 400)
    machine.scaler.died("small", "it was killed (signal 9)")
    machine.read(2, 11, Power(False))
    lowered = "the machine runs on battery; the tier allows small at most then"
    assert "large is the level now\n  came from small because" in machine.told()[1]
    assert f"  {lowered}; no smaller level that is allowed fits" in machine.told()[1]


def test_a_pin_is_told_in_a_few_lines() -> None:
    """That it is one, how it is let go, and from where on it gives way; nothing of what stands in no one's way now."""
    machine = Machine()
    machine.read(4, 400)
    machine.scaler.pin("medium")
    machine.read(4, 10)
    stands, why = machine.told()
    assert stands.startswith("level     medium (pinned to medium)\n")
    assert why.split("\n") == [
        "medium is the level now",
        "  a person pinned medium; `scaler pin --release` lets it go",
        "  usage at medium is 50.0 %; as it is pinned, it gives way from 95.0 % on",
        "next upgrade: none; the level is pinned to medium",
    ]
    machine.scaler.unpin()
    assert "came from large because a person pinned medium\n" in machine.told()[1]


def test_a_pinned_level_that_had_to_give_way_says_what_it_lacks() -> None:
    """The way back to it is as long as any, and what lies above it is not asked about."""
    machine = Machine()
    machine.read(4, 400)
    machine.scaler.pin("medium")
    machine.read(4, 2)
    machine.read(11.5, 3)
    machine.read(10, 20)
    why = machine.told()[1]
    assert why.startswith(
        "small is the level now\n  a person pinned medium; `scaler pin --release` lets it go\n  came from"
    )
    assert "medium: not by waiting alone\n" in why
    assert "\nlarge" not in why


def test_who_pins_it_off_is_told_so() -> None:
    """There is no usage to give way at."""
    machine = Machine()
    machine.read(4, 400)
    machine.scaler.pin("off")
    machine.read(4, 2)
    stands, why = machine.told()
    assert stands.startswith("level     off (pinned to off)\n")
    assert why.split("\n") == [
        "off is the level now: nothing is loaded",
        "  a person pinned off; `scaler pin --release` lets it go",
        "next upgrade: none; the level is pinned to off",
    ]


def test_a_forecast_is_told_once_for_all_levels() -> None:
    """Before there is one, and when there is."""
    machine = Machine()
    machine.read(9, 100)
    why = machine.told()[1]
    assert why.count("forecast") == 1
    assert "  forecast: none yet for small, medium, large; it needs 5.0 min without a gap\n" in why
    machine.read(9, 600)
    why = machine.told()[1]
    assert why.count("forecast") == 1
    each = "72.2 % at small, 84.8 % at medium, 109.8 % at large"
    assert f"  forecast: at most {each} within 10.0 min (the peak of the last 5.0 min and 3.5 % on top)\n" in why


def test_nobody_asks_for_a_model_is_why_nothing_is_climbed_to() -> None:
    """And not a list of all that it might be."""
    machine = Machine()
    machine.scaler.want(False)
    machine.read(4, 20)
    assert machine.told()[1].startswith("off is the level now: nothing is loaded\n  forecast: none yet")
    assert "\nnext upgrade: none; nobody asks for a model\n" in machine.told()[1]


def test_while_a_level_is_loaded_it_is_told_who_answers() -> None:
    """The level before, a model of the configuration before, or nobody."""
    machine = Machine()
    leave = machine.scaler.on_enter(lambda _: None)
    machine.read(4, 1)
    stands, why = machine.told()
    assert stands.startswith("level     small, being loaded\n")
    assert why.startswith("small is the level now (being loaded)\n  nothing answers until then\n")
    stands, why = machine.told(former="old")
    assert stands.startswith("level     old of the configuration before, going to small\n")
    assert why.startswith(
        "small is the level now (being loaded)\n  old of the configuration before answers until then\n"
    )
    machine.scaler.serves("small")
    stands, why = machine.told()
    assert stands.startswith("level     small\n"), "what was before it has not gone yet"
    assert why.startswith("small is the level now\n  came from off")
    leave()
    machine.scaler.switched(1)
    machine.read(4, 400)
    machine.scaler.on_enter(lambda _: None)
    machine.read(8, 20)
    stands, why = machine.told()
    assert stands.startswith("level     large, going to medium\n")
    assert why.startswith("medium is the level now (being loaded)\n  large answers until then\n")


@pytest.mark.parametrize(("gib_a_minute", "told"), [(0.5, False), (1.25, True)])
def test_a_trend_is_told_as_far_ahead_as_it_can_be_seen(gib_a_minute: float, told: bool) -> None:
    """Ten minutes of its one: that a quiet machine would be full in a quarter of an hour is no news but noise."""
    machine = Machine()
    machine.scaler.want(False)
    for second in range(60):
        machine.read(4 + gib_a_minute * second / 60, 1)
    stands, _ = machine.told()
    assert f"{gib_a_minute:.2f} GiB a minute by others" in stands
    assert ("critical in 8.0 min if it goes on" in stands) is told
    assert ("critical in" in stands) is told


def test_from_off_the_larger_levels_come_after_the_first() -> None:
    """Not all of them at once, as if each came with the next reading."""
    machine = Machine()
    machine.scaler.want(False)
    machine.read(4, 10)
    machine.scaler.want(True)
    _, why = machine.told()
    assert "next upgrade: to small with the next reading" in why
    assert "large: after small, which comes first\nmedium: after small, which comes first\nsmall: nothing" in why
