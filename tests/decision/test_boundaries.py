"""Figures that are exactly at a limit, and what is bounded or noted where nothing else would show it."""

from __future__ import annotations

import pytest

from scaler.evidence import Ahead
from scaler.guards import GUARDS, debounce_s
from scaler.levels import GIB, RAM, Ladder, Level
from tests.decision.driver import Driver


def holds(drive: Driver, guard: str, position: int) -> bool:
    return GUARDS[guard].test(drive.machine.evidence, position).holds


def test_at_scale_at_a_level_fits_and_at_critical_at_it_is_critical() -> None:
    """The one limit may be reached, the other not. Bytes reach these exactly: 12 and 18 of 24 GiB."""
    drive = Driver(initial="small", scale_at=0.5, critical_at=0.75)
    drive.read(10, 1)
    assert (holds(drive, "fits", 0), holds(drive, "critical", 0)) == (True, False)
    drive.read(16, 1)
    assert (holds(drive, "fits_under_critical", 0), holds(drive, "critical", 0)) == (False, True)
    drive.read(15.9, 1)
    assert (holds(drive, "fits_under_critical", 0), holds(drive, "critical", 0)) == (True, False)


@pytest.mark.parametrize(("usage", "reached"), [(0.95, True), (0.9499, False)])
def test_a_rise_to_critical_at_does_not_fit(usage: float, reached: bool) -> None:
    """Reached is as bad as passed."""
    drive = Driver(initial="medium")
    drive.read(8, 1)
    drive.machine.evidence.ahead = lambda *_: Ahead(usage, 0)  # type: ignore[method-assign]
    assert holds(drive, "fits", 0) is not reached
    assert holds(drive, "fits_under_critical", 0) is not reached


@pytest.mark.parametrize("usage", [0.995, 0.999])
def test_a_rise_to_the_last_of_it_is_answered_and_a_pin_waits_for_it(usage: float) -> None:
    """A person who pins a level has it until it is critical, whatever is foreseen."""
    drive = Driver(initial="medium")
    drive.read(8, 1)
    drive.machine.evidence.ahead = lambda *_: Ahead(usage, 0)  # type: ignore[method-assign]
    assert holds(drive, "forecast_over", 1)
    drive.machine.evidence.pinned = 1
    assert not holds(drive, "forecast_over", 1)


def test_as_tight_as_here_is_no_relief() -> None:
    """Half of RAM there, half of the GPU here: a switch would cost time and give nothing."""
    ladder = Ladder([Level("ram", {RAM: 4 * GIB}, 0.5, 1.0), Level("card", {"gpu0": 7 * GIB}, 0.8, 1.0)])
    drive = Driver(ladder, initial="card")
    drive.read_gpu(8, 1, 1)
    assert not holds(drive, "eases", 0)
    drive.read_gpu(7, 1, 1)
    assert holds(drive, "eases", 0)


def test_what_caution_lowers_is_waited_for_no_longer_than_the_debounce() -> None:
    """The straight line from scale-at on would lead above it, below scale-at."""
    drive = Driver(initial="large")
    drive.read(7, 1)
    evidence = drive.machine.evidence
    assert debounce_s(evidence, 2, evidence.policy.scale_at - 0.02) == evidence.policy.debounce_s


def test_the_time_of_a_change_is_noted_when_it_is_decided() -> None:
    """Not only when it is done: whoever is killed in between must not forget it."""
    drive = Driver(initial="large", answer=lambda _: False)
    drive.read(4, 20)
    drive.read(8, 20)
    decision = drive.machine.last_decision
    assert decision is not None
    assert (drive.machine.settled, drive.machine.evidence.changed_at_s) == (False, decision.at_s)


TINY = Level("tiny", {RAM: GIB}, 0.2, 1.0)
SMALL = Level("small", {RAM: 4 * GIB}, 0.5, 1.0)
CARD = Level("card", {"gpu0": 7 * GIB}, 0.8, 1.0)
BOTH = Level("both", {RAM: 6 * GIB, "gpu0": 8 * GIB}, 1.0, 1.0)


@pytest.mark.parametrize(
    ("levels", "above", "gives_no_way"),
    [
        ([SMALL, CARD], "card", True),  # what is tight is relieved
        ([SMALL, BOTH], "both", False),  # it would be tighter
        ([TINY, SMALL, CARD], "card", False),  # there is a way down
    ],
    ids=["relieved", "tighter", "a way down"],
)
def test_what_is_over_its_limit_gives_way_upwards_only_where_that_relieves_it(
    levels: list[Level], above: str, gives_no_way: bool
) -> None:
    """small is at 85 %, above its limit for longer than the debounce."""
    drive = Driver(Ladder(levels), initial="small", answer=lambda _: False, debounce_s=0.5)
    drive.read_gpu(14, 1, 1)
    assert holds(drive, "gives_no_way", drive.machine.ladder.index(above))
    reading = drive.reading(16.4, gpus=drive.gpu(1))
    for later_s in (1, 2):
        reading.at_s = drive.now_s + later_s
        drive.machine.evidence.take(reading)
    assert holds(drive, "over_limit", drive.machine.ladder.index("small"))
    assert holds(drive, "gives_no_way", drive.machine.ladder.index(above)) is gives_no_way


def test_nothing_is_climbed_to_while_nothing_will_be_left_of_what_serves() -> None:
    """The way off is open then, and there is never more than one."""
    drive = Driver(Ladder([SMALL, CARD]), initial="small")
    drive.read_gpu(8, 1, 1)
    assert holds(drive, "gives_no_way", 1)
    drive.machine.evidence.ahead = lambda *_: Ahead(0.999, 0)  # type: ignore[method-assign]
    assert not holds(drive, "gives_no_way", 1)


def test_what_a_person_pinned_is_no_climb_that_could_be_wasted() -> None:
    """Its step down is no sign that climbing there is in vain: the next climb waits no longer than the dwell."""
    drive = Driver(initial="medium")
    drive.read(4)
    drive.machine.pin("large", drive.now_s)
    drive.effects()
    drive.machine.unpin()
    drive.read(9, 60, until=lambda: drive.state != "large")
    changed_s = drive.now_s
    drive.read(4, 1000, until=lambda: drive.state == "large")
    assert drive.moves[-2:] == [("observe", "large", "medium"), ("observe", "medium", "large")]
    assert drive.now_s - changed_s == pytest.approx(301)
