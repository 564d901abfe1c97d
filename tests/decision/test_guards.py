"""The guards' verdicts, and the sentences and waiting times that people are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.guards import GUARDS, explain
from scaler.levels import GIB, OFF, RAM, Ladder, Level
from scaler.machine import Outlook
from scaler.policy import Policy
from scaler.readings import ModelLoad, Power
from tests.decision.driver import GPU_LADDER, LADDER, Driver, stalls


def said(drive: Driver, guard: str, level: str) -> str:
    """What a guard says of a level now."""
    evidence, position = drive.machine.evidence, LADDER.index(level)
    return explain(evidence, position, GUARDS[guard].test(evidence, position))


def test_every_guard_tells_its_numbers() -> None:
    """What was measured, of what total, and what it was compared with."""
    drive = Driver(initial="medium", battery_max_level="medium")
    drive.read(8, 1, pressure=stalls(0.02), power=Power(False))
    drive.read(8, 99, pressure=stalls(0.02), power=Power(True))
    drive.machine.died("small", drive.now_s)
    drive.read(8, 10, pressure=stalls(0.02), power=Power(True))
    expected = {
        ("over_limit", "large"): "usage at large is 83.3 % of 24 GiB; the limit is 80 %, passed for 109 s",
        ("over_limit", "medium"): "usage at medium is 58.3 % of 24 GiB; the limit is 80 %",
        ("critical", "medium"): "usage at medium is 58.3 % of 24 GiB; 95 % is critical",
        ("exhausted", "medium"): "usage at medium is 58.3 % of 24 GiB for 0 s; at 99.5 % nothing is left",
        ("fits", "small"): "usage at small would be 41.7 % of 24 GiB; the limit is 80 %",
        ("fits_under_critical", "large"): "usage at large would be 83.3 % of 24 GiB; 95 % is critical",
        ("fits_below_band", "large"): "usage at large would be 83.3 % of 24 GiB; to climb it must be at most 77 %",
        (
            "fits_below_band",
            "small",
        ): "usage at small would be 41.7 % of 24 GiB; it has been at most 77 % for 109 of the 300 s asked",
        ("recovers", "small"): "usage at small would be 41.7 % of 24 GiB; the smallest level may use 94.5 %",
        ("forecast_fits", "large"): "usage at large would be 83.3 % of 24 GiB; the limit is 80 %",
        (
            "forecast_fits",
            "small",
        ): "nothing was watched for long enough to expect more usage at small than now",
        ("forecast_over", "medium"): "usage at medium does not rise steadily; at 99.5 % nothing is left",
        ("no_lower_fits", "medium"): "no smaller level stays under 95 %",
        ("no_lower_fits", "large"): "a smaller level stays under 95 %",
        ("eases", "small"): "usage at small would be 41.7 % of 24 GiB, less than here",
        ("eases", "large"): "usage at large would be 83.3 % of 24 GiB, no less than here",
        ("gives_no_way", "large"): "what serves has not to give way",
        ("backing_off", "small"): "small failed once and is left alone for another 50 s",
        ("backing_off", "large"): "large is not backing off",
        ("calm", "large"): "tasks wait for memory 2 % of the time; the limit is 10 %",
        ("rested", "large"): "nothing changed yet",
        ("settled", "large"): "no switch is in progress",
        ("wanted", "small"): "a model is asked for",
        ("stands_by", "small"): "small does not stand by",
        ("still_serves", "medium"): "medium still serves",
        ("still_serves", "large"): "large is not loaded",
        ("pinned", "large"): "large is not pinned",
        ("allowed", "large"): "large is allowed",
        ("stays_allowed", "large"): "for 108 s the machine has had mains power; 300 s have to pass",
        ("over_ceiling", "large"): "neither battery power nor heat forbids large",
        ("under_ceiling", "medium"): "neither battery power nor heat forbids medium",
    }
    assert {key: said(drive, *key) for key in expected} == expected
    assert {guard for guard, _ in expected} == set(GUARDS)


def test_a_whole_percent_has_no_decimals() -> None:
    """ "83 % of 24 GiB", as a person would say it."""
    drive = Driver(initial="large")
    drive.read(0.83 * 24 - 12)
    assert said(drive, "critical", "large") == "usage at large is 83 % of 24 GiB; 95 % is critical"


def test_names_with_braces_are_told_as_they_are() -> None:
    """Any printable name is a level's name."""
    ladder = Ladder([Level("a{0}", {RAM: 2 * GIB}, 0.5, 1.0), Level("{b}", {RAM: 6 * GIB}, 0.5, 1.0)])
    drive = Driver(ladder, max_level="a{0}")
    drive.read(4, 10)
    assert drive.outlook("{b}").lacking[0].startswith("usage at {b} would be 41.7 %")
    assert "the tier allows a{0} at most" in drive.outlook("{b}").lacking
    drive.machine.pin(OFF, drive.now_s)
    drive.read(4, 10)
    drive.machine.pin("a{0}", drive.now_s)
    drive.read(4, 10)
    assert drive.state == "a{0}"


def test_every_sentence_of_a_guard_can_be_filled_with_a_policy() -> None:
    """The documentation and the picture are made of them."""
    for guard in GUARDS.values():
        assert guard.sentence.format(**{name: getattr(Policy(), name) for name in Policy.__dataclass_fields__})
        assert guard.test.__doc__


@pytest.mark.parametrize(("waited_s", "expected_s"), [(1, 300), (100, 201), (296, 5), (300, 1)])
def test_an_outlook_says_how_many_seconds_are_lacking_and_keeps_its_word(waited_s: int, expected_s: int) -> None:
    """ "Large in 200 s" is a promise as long as usage stays."""
    drive = Driver()
    drive.read(4, waited_s)
    assert drive.outlook("large").wait_s in (expected_s, None if waited_s < 5 else expected_s)
    drive.read(4, expected_s - 1)
    assert drive.state == "small"
    drive.read(4)
    assert drive.state == "large"


@given(st.floats(0.5, 23), st.integers(1, 400), st.sampled_from(LADDER.names))
def test_every_waiting_time_that_is_told_comes_true(other_gib: float, watched_s: int, initial: str) -> None:
    """None is honest, and any number is exact to the reading."""
    drive = Driver(initial=initial, debounce_s=30.0)
    drive.read(other_gib, watched_s)
    here = drive.state
    waits = {o.level: o.wait_s for o in drive.machine.outlooks() if o.wait_s is not None}
    if not waits:
        return
    soonest_s = min(waits.values())
    told_s = drive.now_s
    drive.read(other_gib, 400, until=lambda: drive.state != here)
    assert drive.state in waits
    assert soonest_s <= drive.now_s - told_s <= soonest_s + 1.000001


def test_an_outlook_for_a_way_that_time_does_not_open_waits_for_nothing() -> None:
    """Then it says what stands in the way instead."""
    drive = Driver(initial="medium")
    drive.read(8, 20)
    outlook = drive.outlook("large")
    assert outlook.wait_s is None
    assert outlook.lacking[0] == "usage at large would be 83.3 % of 24 GiB; to climb it must be at most 77 %"
    assert drive.outlook("small").lacking == ("usage at medium is 58.3 % of 24 GiB; the limit is 80 %",)


def test_a_descent_in_its_debounce_says_when_it_will_come() -> None:
    """Time alone opens that way too."""
    drive = Driver(initial="large", debounce_s=30.0)
    drive.read(8, 10)
    assert drive.outlook("medium").wait_s == pytest.approx(30 * (0.95 - 20 / 24) / 0.15 - 9)


def test_backing_off_is_a_wait() -> None:
    """The longest of what is lacking decides."""
    drive = Driver(initial="small", backoff_s=500.0)
    drive.read(4, 20)
    drive.machine.died("large", drive.now_s)
    drive.machine.died("medium", drive.now_s)
    drive.read(4, 20)
    assert drive.outlook("large").wait_s == 480
    assert drive.outlook("large").lacking[-1] == "large failed once and is left alone for another 480 s"


def test_an_outlook_lacks_what_does_not_hold_and_a_failure_that_does() -> None:
    """`backing_off` is the one guard that must not hold."""
    drive = Driver(initial="small")
    drive.read(4, 20)
    outlook = drive.outlook("large")
    assert isinstance(outlook, Outlook)
    lacking = {f.guard for f in outlook.findings if f.sentence in outlook.lacking}
    assert lacking == {"fits_below_band"}
    assert {f.guard for f in outlook.findings} >= {"settled", "rested", "stays_allowed", "calm", "backing_off"}


def test_a_decision_carries_everything_that_led_to_it() -> None:
    """A journal that has this answers every later question."""
    drive = Driver(initial="large")
    drive.read(4, 20)
    drive.read(8, 10, wall_s=1.7e9)
    decision = drive.switches[-1].decision
    assert (decision.trigger, decision.source, decision.dest) == ("observe", "large", "medium")
    assert decision.reason == "usage at large is 83.3 % of 24 GiB; the limit is 80 %, passed for 4 s"
    assert decision.reasons == (decision.reason, "usage at medium would be 58.3 % of 24 GiB; the limit is 80 %")
    assert decision.projected == {"small": pytest.approx(10 / 24), "medium": pytest.approx(14 / 24), "large": 20 / 24}
    assert decision.reading is not None
    assert decision.reading.wall_s == 1.7e9
    assert decision.at_s == decision.reading.at_s
    assert {finding.level for finding in decision.findings} >= {"small", "medium"}
    assert drive.machine.last_decision is decision


def test_a_gpu_is_named_where_it_is_the_tightest() -> None:
    """Whoever reads it must know what to free."""
    drive = Driver(GPU_LADDER, initial="small")
    drive.read_gpu(4, 5, 20)
    assert drive.outlook("large").lacking[0] == (
        "usage at large would be 93.8 % of 16 GiB of gpu0; to climb it must be at most 77 %"
    )


def test_nothing_is_climbed_while_answers_wait_for_the_models_cache() -> None:
    """A larger model would make them wait for longer; a full cache alone, or a short queue, does not."""
    drive = Driver(initial="small")
    full, queued, both = ModelLoad(4, 0, 0.97), ModelLoad(4, 3, 0.2), ModelLoad(4, 3, 0.97)
    for load, holds in ((full, True), (queued, True), (both, False), (None, True)):
        drive.read(8, 1, model=load)
        verdict = GUARDS["calm"].test(drive.machine.evidence, 1)
        assert verdict.holds is holds
        if load is both:
            sentence = explain(drive.machine.evidence, 1, verdict)
            assert sentence == "3 answers wait and the cache is 97 % full; nothing larger is loaded above 90 %"


def test_a_level_that_takes_nothing_here_is_not_told_in_figures_of_this_machine() -> None:
    """Its usage would read as 0 %, as if nothing were in use."""
    ladder = Ladder([Level("small", {RAM: 2 * GIB}, 0.5, 1.0), Level("far", {}, 1.0, 1.0)])
    drive = Driver(ladder, initial="small")
    drive.read(8, 1)
    verdict = GUARDS["fits_below_band"].test(drive.machine.evidence, 1)
    assert explain(drive.machine.evidence, 1, verdict) == "far takes nothing of this machine"


def test_what_cannot_be_read_is_named() -> None:
    """Of which resource the usage is not known, above all."""
    drive = Driver(GPU_LADDER, initial="small")
    drive.read_gpu(2, None)
    verdict = GUARDS["fits_below_band"].test(drive.machine.evidence, 2)
    sentence = explain(drive.machine.evidence, 2, verdict)
    assert sentence.startswith("usage at large would be unknown of gpu0, which cannot be read now; to climb it must be")
