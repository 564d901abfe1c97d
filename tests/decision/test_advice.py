"""What would make room: that it really would, by the guards' own arithmetic, and in which order it is told."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from scaler.advice import TOGETHER, Advice, advise
from scaler.guards import GUARDS, shortfall
from scaler.levels import GIB, RAM, Ladder, Level, Saving
from scaler.monitor import ResourceMonitor
from scaler.policy import Policy
from scaler.proactive import ProactiveScaler
from scaler.readings import Gpu, Memory, Program, Reading, Survey
from tests.decision.driver import GPU_GIB, GPU_LADDER, LADDER, TOTAL_GIB, Driver

MIB = 1024**2


def scaler_with(other: int, gpu_other: int | None = 0, *, ladder: Ladder = LADDER, seconds: int = 1) -> ProactiveScaler:
    """A scaler on 24 GiB of RAM and 16 GiB of a GPU, of which others use so many bytes; each switch takes no time."""
    now_s = 1000.0
    scaler = ProactiveScaler(ladder=ladder, policy=Policy(), monitor=ResourceMonitor(sensors=[]), clock=lambda: now_s)
    total, on_gpu = int(TOTAL_GIB * GIB), int(GPU_GIB * GIB)
    for _ in range(seconds):
        now_s += 1.0
        serving = scaler.status().serving
        own = {} if serving == "off" else ladder.level(serving).footprint
        memory = Memory(total, total - other - own.get(RAM, 0))
        gpus = None
        if gpu_other is not None:
            used = gpu_other + own.get("gpu0", 0)
            gpus = (Gpu(0, "a card", on_gpu, used, on_gpu - used, own.get("gpu0", 0)),)
        scaler.observe(Reading(now_s, None, memory, own.get(RAM, 0), gpus=gpus))
    return scaler


def program(pid: int, **held: int) -> Program:
    """A program of its own name."""
    return Program(f"program{pid}", pid, 1, held)


def told(scaler: ProactiveScaler, *programs: Program, **savings: list[Saving]) -> Advice:
    """The advice with these programs running."""
    return advise(scaler.room(), Survey(programs), savings)


others = st.integers(0, int(TOTAL_GIB * GIB) - 1)
sizes = st.integers(1 * MIB, 8 * GIB)
ram_programs = st.lists(sizes, max_size=7).map(lambda found: [program(pid, ram=size) for pid, size in enumerate(found)])
held_on_both = st.fixed_dictionaries({}, optional={"ram": sizes, "gpu0": sizes})
programs_on_both = st.lists(held_on_both, max_size=7).map(
    lambda found: [Program(f"program{pid}", pid, 1, held) for pid, held in enumerate(found)]
)


@given(others, st.sampled_from(LADDER.names))
def test_what_a_level_lacks_is_what_the_guards_find_too_much(other: int, name: str) -> None:
    """To the byte: nothing lacking is room for a climb, and with what is lacking given back there is room."""
    total, position = int(TOTAL_GIB * GIB), LADDER.index(name)

    def drive(other: int) -> Driver:
        one = Driver()
        one.machine.want(False)
        one.now_s += 1
        one.machine.observe(Reading(one.now_s, None, Memory(total, total - other), 0))
        return one

    def has_room(one: Driver) -> bool:
        evidence = one.machine.evidence
        usage = evidence.projected[position]
        assert usage is not None
        return usage <= evidence.recovery_limit(position)

    before = drive(other)
    lacking = shortfall(before.machine.evidence, position)
    assert lacking is not None
    assert (lacking == {}) == has_room(before)
    if position and lacking:
        assert not GUARDS["fits_below_band"].test(before.machine.evidence, position).holds
    if lacking and lacking[RAM] <= other:
        assert has_room(drive(other - lacking[RAM]))
        assert not has_room(drive(other - lacking[RAM] + 1))


@given(others, st.integers(0, int(GPU_GIB * GIB) - 1), programs_on_both)
def test_what_is_suggested_makes_room_and_nothing_of_it_is_needless(
    other: int, gpu_other: int, programs: list[Program]
) -> None:
    """The same scaler, asked again without these programs, finds room for that level and for none above it."""
    scaler = scaler_with(other, gpu_other, ladder=GPU_LADDER)
    for suggestion in told(scaler, *programs).suggestions:
        freed = dict(suggestion.freed)
        closed = [one.held for one in suggestion.programs]
        for resource, uses in (("ram", other), ("gpu0", gpu_other)):
            assert freed.get(resource, 0) == min(uses, sum(held.get(resource, 0) for held in closed))
        lacking = {standing.level: standing.lacking for standing in scaler.room().standings}
        wanted = lacking[suggestion.level]
        assert wanted
        assert all(freed.get(resource, 0) >= size for resource, size in wanted.items())
        after = scaler_with(other - freed.get("ram", 0), gpu_other - freed.get("gpu0", 0), ladder=GPU_LADDER)
        evidence = after._machine.evidence
        position = GPU_LADDER.index(suggestion.level)
        assert shortfall(evidence, position) == {}
        assert all(shortfall(evidence, above) for above in range(position + 1, len(GPU_LADDER)))
        assert len(closed) <= TOGETHER
        if len(closed) > 1:
            for needless in range(len(closed)):
                rest = [held for number, held in enumerate(closed) if number != needless]
                assert any(sum(held.get(r, 0) for held in rest) < size for r, size in wanted.items())


@given(others, ram_programs)
def test_the_best_suggestion_is_as_good_as_any_choice_of_programs(other: int, programs: list[Program]) -> None:
    """Beside every way to close up to three; and the order is by level, then by how little has to be closed."""
    scaler = scaler_with(other)
    advice = told(scaler, *programs)
    rank = {name: position for position, name in enumerate(LADDER.names)}

    def level_without(some: tuple[Program, ...]) -> int:
        freed = min(other, sum(one.held["ram"] for one in some))
        opened = [s.level for s in scaler.room().standings if s.lacking and s.lacking.get(RAM, 0) <= freed]
        roomy = [s.level for s in scaler.room().standings if not s.lacking]
        return max([rank[name] for name in opened if all(rank[name] > rank[one] for one in roomy)], default=-1)

    every = [some for count in range(1, TOGETHER + 1) for some in combinations(programs, count)]
    best = max((level_without(some) for some in every), default=-1)
    levels = [rank[suggestion.level] for suggestion in advice.suggestions]
    assert max(levels, default=-1) == best
    assert levels == sorted(levels, reverse=True)
    assert (advice.reason is None) == bool(advice.suggestions)
    for before, after in zip(advice.suggestions, advice.suggestions[1:], strict=False):
        if before.level == after.level and len(before.programs) == len(after.programs) == 1:
            assert before.freed["ram"] <= after.freed["ram"]


@given(others, ram_programs, sizes)
def test_another_program_never_makes_the_best_suggestion_worse(other: int, programs: list[Program], size: int) -> None:
    """Who holds more can give more back."""
    scaler = scaler_with(other)
    few, more = told(scaler, *programs), told(scaler, *programs, program(99, ram=size))

    def best(advice: Advice) -> int:
        return max((LADDER.index(suggestion.level) for suggestion in advice.suggestions), default=-1)

    assert best(more) >= best(few)


def test_the_words_name_program_size_and_level() -> None:
    """large lacks 1.52 GiB at 8 GiB of other usage; which of two namesakes is meant is told."""
    scaler = scaler_with(8 * GIB)
    advice = told(
        scaler,
        Program("firefox", 10, 30, {RAM: 31 * GIB // 10}),
        Program("train.py", 20, 1, {RAM: 5 * GIB}),
        Program("train.py", 21, 1, {RAM: 1 * GIB}),
    )
    assert [suggestion.text for suggestion in advice.suggestions] == [
        "closing firefox, 3.1 GiB, would make room for large",
        "closing train.py (process 20), 5.0 GiB, would make room for large",
    ]
    together = told(scaler, program(1, ram=GIB), program(2, ram=GIB), program(3, ram=GIB // 4)).suggestions
    assert [suggestion.text for suggestion in together] == [
        "closing program1 (1.0 GiB) and program2 (1.0 GiB) together would make room for large"
    ]


def test_a_setting_is_named_as_the_line_to_write_between_one_program_and_several() -> None:
    """The mildest of each kind that does; and none that would make the level as small as the one below it."""
    scaler = scaler_with(8 * GIB)
    savings = [
        Saving("kv_cache", "q8_0", "f16", {RAM: GIB}),
        Saving("context_tokens", "4096", "8192", {RAM: 2 * GIB}),
        Saving("kv_cache", "q4_0", "f16", {RAM: 3 * GIB}),
        Saving("context_tokens", "2048", "8192", {RAM: 4 * GIB}),
    ]
    advice = told(scaler, program(1, ram=2 * GIB), large=savings)
    assert [suggestion.text for suggestion in advice.suggestions] == [
        "closing program1, 2.0 GiB, would make room for large",
        "context_tokens: 4096 instead of 8192 for large, 2.0 GiB less, would make room for it after a restart",
        "kv_cache: q4_0 instead of f16 for large, 3.0 GiB less, would make room for it after a restart",
    ]
    changed = Ladder([*LADDER[:2], Level("large", {RAM: 10 * GIB}, 1.0, 5.0)])
    assert scaler_with(8 * GIB, ladder=changed).room().standings[-1].lacking == {}
    assert told(scaler, large=[Saving("context_tokens", "256", "8192", {RAM: 6 * GIB})]).suggestions == ()


def test_why_there_is_nothing_to_suggest_is_said() -> None:
    """In each case another reason."""
    nothing = ProactiveScaler(ladder=LADDER, policy=Policy(), monitor=ResourceMonitor(sensors=[]))
    assert told(nothing).reason == "this machine was not read yet"
    assert told(scaler_with(GIB, seconds=310)).reason == "large is the largest level already"
    waits = told(scaler_with(GIB, seconds=5), program(1, ram=GIB // 2))
    # The figures, which others show as of now, are apart.
    assert waits.reason == waits.coming == "there is room for large already; it only waits"
    assert waits.waits[0].startswith("usage at large would be")
    unlucky = told(scaler_with(8 * GIB), program(1, ram=GIB))
    assert unlucky.reason == "large lacks 1.5 GiB, and would still lack 0.5 GiB without program1, which holds most"
    assert "no program that could be closed" in (told(scaler_with(8 * GIB)).reason or "")
    pinned = scaler_with(GIB)
    pinned.pin("small")
    assert told(pinned, program(1, ram=GIB)).reason == "the level is pinned to small"
    blind = scaler_with(GIB, None, ladder=GPU_LADDER)
    assert told(blind, program(1, gpu0=GIB)).reason == "what medium lacks is unknown, since a sensor is missing"
