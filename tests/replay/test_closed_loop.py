"""The closed loop and the clairvoyant optimum agree on what a recording is worth, and the one bounds the other."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.levels import GIB, RAM, Ladder, Level
from scaler.machine import LevelMachine
from scaler.policy import Policy
from scaler.readings import Cpu, Gpu, Memory, ModelLoad, Power, Pressure, Reading, Stall, Swap, Thermal
from scaler.replay.closed_loop import Step, play
from scaler.replay.optimum import Others, best_score
from scaler.replay.scoring import CRITICAL_COST, KILL_COST, TIGHT_COST, cost_per_s

TOTAL = 16 * GIB
LADDER = Ladder(
    [
        Level("small", {RAM: 2 * GIB}, 0.5, 2.0),
        Level("medium", {RAM: 4 * GIB}, 0.8, 4.0),
        Level("large", {RAM: 8 * GIB}, 1.0, 6.0),
    ]
)
GPU_LADDER = Ladder([replace(level, footprint={"gpu0": level.footprint[RAM]}) for level in LADDER])
"""The same on a GPU, which is as large."""
STEP_S = 2.0
thorough = settings(max_examples=60)

stretches = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=12)
plain_stretches = st.lists(st.tuples(st.integers(1, 8), st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.8, 0.97])), max_size=6)
dwells = st.sampled_from([2.0, 8.0, 30.0])
own_thresholds = st.sampled_from([(0.9, 0.97), (0.5, 0.7), (0.6, 0.95)])


def readings(shares: Iterable[float], step_s: float = STEP_S) -> list[Reading]:
    """What others use, as shares of the total, at a regular step."""
    return [
        Reading(at * step_s, 1.7e9 + at * step_s, Memory(TOTAL, int(TOTAL * (1 - share))), 0)
        for at, share in enumerate(shares)
    ]


def gpu_readings(shares: Iterable[float]) -> list[Reading]:
    """The same of a GPU, with RAM that nobody uses."""
    used = [int(TOTAL * share) for share in shares]
    return [
        Reading(at * STEP_S, None, Memory(TOTAL, TOTAL), 0, gpus=(Gpu(0, "a card", TOTAL, size, TOTAL - size, 0),))
        for at, size in enumerate(used)
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
@given(plain_stretches, dwells)
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


@thorough
@given(stretches, dwells, own_thresholds)
def test_nothing_beats_the_optimum_on_a_gpu_with_thresholds_of_its_own(
    some: list[tuple[int, float]], dwell_s: float, own: tuple[float, float]
) -> None:
    """Both are judged by the same scale."""
    played = gpu_readings(drawn(some))
    tried = replace(policy(dwell_s), vram_scale_at=own[0], vram_critical_at=own[1])
    outcome = play(played, GPU_LADDER, tried)
    assert outcome.score <= best_score(others_of(played, (RAM, "gpu0")), GPU_LADDER, tried) + 1e-6


@thorough
@given(plain_stretches, dwells, own_thresholds)
def test_at_best_a_gpus_own_thresholds_are_worth_what_the_same_are_for_all(
    some: list[tuple[int, float]], dwell_s: float, own: tuple[float, float]
) -> None:
    """RAM, which nobody uses here, is never tight by either: what costs and what fits beside depends on the GPU."""
    others = others_of(gpu_readings([*drawn(some), 0.0]), (RAM, "gpu0"))
    of_all = replace(policy(dwell_s), scale_at=own[0], critical_at=own[1])
    of_gpus = replace(policy(dwell_s), vram_scale_at=own[0], vram_critical_at=own[1])
    assert best_score(others, GPU_LADDER, of_gpus) == pytest.approx(best_score(others, GPU_LADDER, of_all), abs=1e-6)


@pytest.mark.parametrize(
    ("own", "usage", "tight"),
    [
        ((None, None), 0.85, True),
        ((0.9, 0.97), 0.85, False),
        ((0.9, 0.97), 0.96, True),
        ((0.5, 0.7), 0.6, True),
        ((0.5, 0.7), 0.45, False),
    ],
)
def test_a_gpu_is_scored_by_its_own_thresholds(
    own: tuple[float | None, float | None], usage: float, tight: bool
) -> None:
    """All of these are below its critical-at, so that the only level is kept: it serves, and is tight or is not."""
    only = Ladder([GPU_LADDER[0]])
    played = gpu_readings([usage - 2 / 16] * 200)
    outcome = play(played, only, Policy(vram_scale_at=own[0], vram_critical_at=own[1]))
    assert outcome.seconds_at["small"] == outcome.seconds
    assert outcome.tight_s == (outcome.seconds if tight else 0)
    assert outcome.critical_s == 0
    assert outcome.score == pytest.approx(outcome.seconds * (0.5 - TIGHT_COST * tight))
    assert outcome.smallest_score == pytest.approx(outcome.score)


def test_a_gpu_counts_as_critical_from_its_own_threshold_on() -> None:
    """Below that of RAM here; the level goes, and does so at once."""
    only = Ladder([GPU_LADDER[0]])
    played = gpu_readings([0.2] * 50 + [0.6] * 50)
    assert play(played, only, Policy()).critical_s == 0
    outcome = play(played, only, Policy(vram_scale_at=0.5, vram_critical_at=0.7))
    assert outcome.critical_s == STEP_S
    assert outcome.seconds_at["off"] > 0
    # Were it loaded all the time.
    assert outcome.smallest_score == pytest.approx(0.5 * outcome.seconds - (TIGHT_COST + CRITICAL_COST) * 49 * STEP_S)


def test_a_climb_pays_on_a_gpu_that_may_be_filled_further() -> None:
    """large takes it to 85 %: worth nothing by RAM's thresholds, all of its quality by its own."""
    played = gpu_readings([0.35] * 1000)
    outcome = play(played, GPU_LADDER, Policy(vram_scale_at=0.9, vram_critical_at=0.97))
    assert outcome.seconds_at["large"] > outcome.seconds - 320
    assert outcome.score == pytest.approx(outcome.quality_s)
    assert play(played, GPU_LADDER, Policy()).seconds_at["large"] == 0


FULL = Reading(
    at_s=7.0,
    wall_s=1.7e9,
    memory=Memory(TOTAL, 10 * GIB, limited_by="cgroup"),
    own_bytes=1 * GIB,
    swap=Swap(8 * GIB, GIB, 1.0, 2.0),
    cpu=Cpu(8, 0.5, 0.1),
    pressure=Pressure(memory=Stall(0.01)),
    gpus=tuple(Gpu(index, "a card", TOTAL, 6 * GIB, 10 * GIB, 2 * GIB, 0.4, 71.0, throttled=True) for index in (0, 1)),
    power=Power(True, 0.5),
    thermal=Thermal(False),
    model=ModelLoad(2, 1, 0.3),
    missing=("gpus",),
)
"""Everything that a reading can say is said."""


def told(one: Any, but: set[str]) -> dict[str, object]:
    """Fields and what they say, all but some."""
    return {field.name: getattr(one, field.name) for field in fields(one) if field.name not in but}


def test_all_that_was_recorded_is_shown_to_the_decision_but_for_what_the_model_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A field that is added to a reading is played as well, or this fails."""
    assert FULL.memory is not None
    assert FULL.gpus is not None
    parts: list[Any] = [FULL, FULL.memory, *FULL.gpus]
    for one in parts:
        for field in fields(one):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            assert getattr(one, field.name) != default, f"give {type(one).__name__}.{field.name} a value here"
    seen: list[Reading] = []
    observe = LevelMachine.observe

    def noting(machine: LevelMachine, reading: Reading) -> object:
        seen.append(reading)
        return observe(machine, reading)

    monkeypatch.setattr(LevelMachine, "observe", noting)
    play([FULL], Ladder([Level("only", {RAM: 3 * GIB, "gpu0": 5 * GIB}, 1.0, 2.0)]), Policy())
    (played,) = seen
    assert played.memory is not None
    assert played.gpus is not None
    assert told(played, {"memory", "own_bytes", "gpus"}) == told(FULL, {"memory", "own_bytes", "gpus"})
    assert played.own_bytes == 3 * GIB
    assert told(played.memory, {"available_bytes"}) == told(FULL.memory, {"available_bytes"})
    assert played.memory.available_bytes == TOTAL - 5 * GIB - 3 * GIB
    held = {"used_bytes", "free_bytes", "own_bytes"}
    first, second = played.gpus
    assert told(first, held) == told(FULL.gpus[0], held)
    assert (first.used_bytes, first.free_bytes, first.own_bytes) == (9 * GIB, 7 * GIB, 5 * GIB)
    # Of one that the ladder does not take nothing is simulated.
    assert second == FULL.gpus[1]
    seen.clear()
    play([FULL], LADDER, Policy())
    assert seen[0].gpus == FULL.gpus


@pytest.mark.parametrize(
    "changed",
    [
        {"thermal": Thermal(True)},
        {"gpus": (Gpu(0, "a card", TOTAL, 0, TOTAL, 0, throttled=True),)},
        {"model": ModelLoad(running=4, waiting=2, cache_ratio=0.95)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_heat_and_waiting_answers_that_were_recorded_keep_the_level_down(changed: dict[str, Any]) -> None:
    """As they would have at that time."""
    played, asked = gpu_readings([0.0] * 400), Policy(throttled_max_level="small")
    assert play(played, GPU_LADDER, asked).seconds_at["large"] > 0
    assert play([replace(one, **changed) for one in played], GPU_LADDER, asked).switches == 0


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
