"""The closed loop and the clairvoyant optimum agree on what a recording is worth, and the one bounds the other."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.levels import GIB, RAM, Ladder, Level
from scaler.policy import Policy
from scaler.readings import Gpu, Memory, Power, Reading
from scaler.replay.closed_loop import Step, play
from scaler.replay.optimum import Others, best_score
from scaler.replay.scoring import KILL_COST, cost_per_s

TOTAL = 16 * GIB
LADDER = Ladder(
    [
        Level("small", {RAM: 2 * GIB}, 0.5, 2.0),
        Level("medium", {RAM: 4 * GIB}, 0.8, 4.0),
        Level("large", {RAM: 8 * GIB}, 1.0, 6.0),
    ]
)
STEP_S = 2.0
thorough = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

stretches = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=12)
dwells = st.sampled_from([2.0, 8.0, 30.0])


def readings(shares: Iterable[float], step_s: float = STEP_S) -> list[Reading]:
    """What others use, as shares of the total, at a regular step."""
    return [
        Reading(at * step_s, 1.7e9 + at * step_s, Memory(TOTAL, int(TOTAL * (1 - share))), 0)
        for at, share in enumerate(shares)
    ]


def drawn(some: Sequence[tuple[int, float]]) -> list[float]:
    """Stretches of so many steps at a share each."""
    return [share for length, share in some for _ in range(length)]


def policy(dwell_s: float) -> Policy:
    """One that climbs within the little time of an example."""
    return Policy(dwell_s=dwell_s, dwell_max_s=4 * dwell_s, band=0.01, recovery_s=4, debounce_s=2)


def others_of(some: Iterable[Reading], resources: Sequence[str] = (RAM,)) -> Others:
    """What the optimum sees of readings."""
    others = Others(resources, Policy().stale_after_s)
    for reading in some:
        others.add(reading)
    return others


@thorough
@given(stretches, dwells)
def test_nothing_beats_the_optimum(some: list[tuple[int, float]], dwell_s: float) -> None:
    """Whatever others do: who knows the future does at least as well."""
    played = readings(drawn(some))
    outcome = play(played, LADDER, policy(dwell_s))
    assert outcome.score <= best_score(others_of(played), LADDER, policy(dwell_s)) + 1e-6


@thorough
@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.8, 0.97])), max_size=6), dwells)
def test_the_optimum_is_that_of_a_search_that_spares_nothing(some: list[tuple[int, float]], dwell_s: float) -> None:
    """The quick programme and one over every level and age find the same."""
    played = readings([*drawn(some), 0.0])
    tried = policy(dwell_s)
    assert best_score(others_of(played), LADDER, tried) == pytest.approx(exhaustive(drawn(some), tried), abs=1e-6)


def exhaustive(shares: Sequence[float], tried: Policy) -> float:
    """The best score by trying every way, with the time since the last change as part of the state."""
    needs = [0.0, *(level.footprint[RAM] / TOTAL for level in LADDER)]
    qualities = [0.0, *(level.quality for level in LADDER)]
    took = [1, *(int(level.load_s / STEP_S) for level in LADDER)]
    dwell = round(tried.dwell_s / STEP_S)

    def worth(at: int, quality: float, need: float) -> float:
        other = (TOTAL - int(TOTAL * (1 - shares[at]))) / TOTAL
        # Usage is told apart in steps, rounded down.
        return quality - cost_per_s(int((other + need) * 4096) / 4096, tried)

    @functools.cache
    def best(at: int, here: int, age: int) -> float:
        if at >= len(shares):
            return 0.0
        now = worth(at, qualities[here], needs[here])
        ways = [now + best(at + 1, here, min(age + 1, dwell))]
        for there in range(len(needs)):
            if there == here or (there > here > 0 and age < dwell):
                continue
            beside = bool(here and there) and shares[at] + needs[here] + needs[there] < tried.critical_at
            value = now
            for number in range(1, took[there]):
                if at + number < len(shares):
                    part = number / (LADDER[there - 1].load_s / STEP_S) * needs[there]
                    held, quality = (needs[here], qualities[here]) if beside else (0.0, 0.0)
                    value += worth(at + number, quality, part + held)
            ways.append(value + best(at + took[there], there, min(took[there], dwell)))
        return max(ways)

    return best(0, 1, dwell) * STEP_S


@thorough
@given(stretches, dwells)
def test_every_second_is_somewhere_and_the_same_comes_out_each_time(
    some: list[tuple[int, float]], dwell_s: float
) -> None:
    """Time is kept, memory is that of one level or of two side by side, and there is no chance in it."""
    steps: list[Step] = []
    played = readings(drawn(some))
    outcome = play(played, LADDER, policy(dwell_s), watch=steps.append)
    assert outcome == play(played, LADDER, policy(dwell_s))
    assert outcome.seconds == pytest.approx((len(played) - 1) * STEP_S)
    assert sum(outcome.seconds_at.values()) == pytest.approx(outcome.seconds)
    assert sum(block.seconds for block in outcome.blocks) == pytest.approx(outcome.seconds)
    assert sum(block.score for block in outcome.blocks) == pytest.approx(outcome.score)
    assert len(steps) == len(played)
    sizes = {"off": 0, **{level.name: level.footprint[RAM] for level in LADDER}}
    for step in steps:
        held = sizes[step.level]
        if step.loading is None:
            assert step.own_bytes == held
        else:
            assert held <= step.own_bytes <= held + sizes[step.loading]
        if step.own_bytes > held > 0:
            # Begun only where both fit.
            assert step.loading is not None


def test_a_quiet_machine_climbs_once_and_stays() -> None:
    """To the largest level that fits, after the dwell, and not again."""
    outcome = play(readings([0.2] * 2000), LADDER, Policy())
    assert (outcome.switches, outcome.wasted, outcome.kills) == (1, 0, 0)
    assert outcome.seconds_at["large"] > outcome.seconds - 320
    assert outcome.tight_s == outcome.unserved_s == 0
    assert outcome.smallest_score == pytest.approx(0.5 * outcome.seconds)


def test_gaps_are_no_time_and_break_the_watch() -> None:
    """A machine that slept for a night has not been calm for a night."""
    awake = readings([0.2] * 100)
    later = [Reading(reading.at_s + 30_000, reading.wall_s, reading.memory, 0) for reading in awake]
    outcome = play([*awake, *later], LADDER, Policy())
    assert outcome.gaps == 1
    assert outcome.seconds == 2 * 99 * STEP_S
    assert outcome.switches == 0
    assert others_of([*awake, *later]).shares[0].buffer_info()[1] == 2 * 99


def test_memory_that_stays_exhausted_costs_the_model() -> None:
    """What no descent in time can prevent is counted as what it is."""
    steps: list[Step] = []
    slow = Ladder([Level("only", {RAM: 2 * GIB}, 0.5, 2.0)])
    outcome = play(readings([0.3] * 20 + [0.999] * 20), slow, Policy(debounce_s=100, rise_s=0), watch=steps.append)
    assert outcome.kills == 0  # it goes off by itself
    assert outcome.seconds_at["off"] > 0
    steps.clear()
    blind = Policy(needle_s=1e3, needle_share=0.01, rise_s=0, debounce_s=100)
    needles = ([0.3] * 4 + [0.8]) * 9
    outcome = play(readings([*needles, *[0.95] * 20]), slow, blind, watch=steps.append)
    assert outcome.kills == 1
    assert sum(step.killed for step in steps) == 1
    assert outcome.score < -KILL_COST + 40 * STEP_S


def test_readings_without_what_the_ladder_needs_are_passed_over() -> None:
    """Not taken for an empty machine."""
    whole = readings([0.2] * 50)
    torn = [Reading(r.at_s, r.wall_s, None if i % 7 == 3 else r.memory, 0) for i, r in enumerate(whole)]
    outcome = play(torn, LADDER, Policy())
    assert outcome.gaps == 0
    assert outcome.seconds == 49 * STEP_S
    assert play([Reading(1.0), Reading(2.0)], LADDER, Policy()).seconds == 0


def test_a_gpu_that_fills_up_is_given_way_to() -> None:
    """The tightest resource decides, and each is simulated."""
    ladder = Ladder(
        [Level("small", {RAM: GIB, "gpu0": GIB}, 0.5, 2.0), Level("large", {RAM: GIB, "gpu0": 6 * GIB}, 1.0, 4.0)]
    )

    def reading(at: int, used_gib: int) -> Reading:
        gpu = Gpu(0, "", 10 * GIB, used_gib * GIB, (10 - used_gib) * GIB, 0)
        return Reading(at * STEP_S, None, Memory(TOTAL, 12 * GIB), 0, gpus=(gpu,))

    some = [reading(at, 1) for at in range(400)] + [reading(at, 5) for at in range(400, 600)]
    outcome = play(some, ladder, Policy())
    assert outcome.switches == 2
    assert outcome.seconds_at["large"] == pytest.approx(500, abs=20)
    assert outcome.score <= best_score(others_of(some, (RAM, "gpu0")), ladder, Policy())


def test_mains_power_that_was_recorded_counts_where_the_policy_asks() -> None:
    """What if the tier allowed less on battery?"""
    some = readings([0.2] * 1000)
    for at, one in enumerate(some):
        one.power = Power(not 500 <= at < 700)
    lowered = play(some, LADDER, Policy(battery_max_level="medium"))
    assert play(some, LADDER, Policy()).seconds_at["large"] == pytest.approx(1690, abs=20)
    # On battery for 400 s, then a dwell of 300 s.
    assert lowered.seconds_at["large"] == pytest.approx(1690 - 700, abs=40)
    assert lowered.seconds_at["medium"] == pytest.approx(700, abs=40)
