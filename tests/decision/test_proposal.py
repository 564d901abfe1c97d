"""The ladder that is proposed: it fits, it ascends, it is the same each time, and every model is accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.discovery.found import Model
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.policy import Policy
from scaler.proposal import APART, PROCESS_BYTES, RUNTIMES, STEP, Proposal, propose
from scaler.readings import Usage

POLICY = Policy(scale_at=0.8, band=0.03)
LIMIT = 0.77


def machine(ram: float = 32, others: float = 3, **gpus: tuple[float, float]) -> dict[str, Usage]:
    """How a machine stands, in GiB: RAM and what others use of it, and the same of each GPU."""
    sizes = {RAM: (ram, others), **gpus}
    return {name: Usage(int(total * GIB), 0, int(used * GIB)) for name, (total, used) in sizes.items()}


def models(runtime: str = "ollama", **sizes: float) -> list[Model]:
    """Models by what they take, in GiB."""
    return [Model(runtime, name, int(size * GIB), "http://127.0.0.1:1") for name, size in sizes.items()]


def ladder(proposal: Proposal) -> list[str]:
    """The models of the levels, smallest first."""
    return [rung.model.name for rung in proposal.levels]


def whys(proposal: Proposal) -> dict[str, str]:
    """Why the other models are no levels."""
    return {one.name: one.why for one in proposal.left_out}


# ------------------------------------------------------------------------------------------------ what is chosen


def test_the_largest_that_fits_a_small_one_and_one_between() -> None:
    """Of 32 GiB, 24.6 are below the limit and 8 are kept for other programs: a level may take 16.6."""
    found = models(tiny=0.6, three=2.9, seven=6.0, eight=6.5, fourteen=11.0, thirty=20.0, seventy=45.0)
    proposal = propose(found, machine(), POLICY)
    room = proposal.rooms[RAM]
    assert (round(room.limit / GIB, 1), room.kept, round(room.free / GIB, 1)) == (24.6, 8 * GIB, 16.6)
    assert ladder(proposal) == ["three", "seven", "fourteen"]
    assert [rung.name for rung in proposal.levels] == ["small", "medium", "large"]
    assert [rung.quality for rung in proposal.levels] == [0.5, 0.7, 0.9]
    assert "there are 32.00 GiB in all" in whys(proposal)["seventy"]
    assert "room for 16.6" in whys(proposal)["thirty"]
    assert whys(proposal)["tiny"] == "fits, and is not needed beside 'three'"
    assert whys(proposal)["eight"] == "fits, and is not needed beside 'seven'"


def test_what_others_use_now_counts_if_it_is_more_than_what_is_kept_for_them() -> None:
    """A machine that is full now may well be full tomorrow."""
    found = models(a=2.0, b=8.0)
    assert ladder(propose(found, machine(others=2), POLICY)) == ["a", "b"]
    assert ladder(propose(found, machine(others=18), POLICY)) == ["a"]


def test_fewer_models_make_fewer_levels() -> None:
    """Two that are too near to each other make one."""
    assert [rung.name for rung in propose(models(a=2, b=8), machine(), POLICY).levels] == ["small", "large"]
    assert [rung.name for rung in propose(models(a=2), machine(), POLICY).levels] == ["main"]
    assert ladder(propose(models(a=6, b=7), machine(), POLICY)) == ["b"]


def test_the_small_one_leaves_a_step_between_where_it_can() -> None:
    """On a machine on which all of them nearly always fit, three levels are better than two."""
    assert ladder(propose(models(a=0.5, b=1.5, c=3.0), machine(ram=128), POLICY)) == ["a", "b", "c"]
    assert ladder(propose(models(a=1.4, b=1.5, c=3.0), machine(ram=128), POLICY)) == ["b", "c"]


def test_without_any_that_always_fits_the_smallest_is_the_small_one() -> None:
    """A quarter of the room is 4.2 GiB here."""
    assert ladder(propose(models(a=6, b=7, c=12), machine(), POLICY)) == ["a", "c"]


def test_a_machine_that_is_too_full_gets_its_smallest_model_and_is_told_so() -> None:
    """scaler loads it when there is room; a model that could never fit is none."""
    proposal = propose(models(a=6, b=7, c=30), machine(others=20), POLICY)
    assert (ladder(proposal), proposal.tight) == (["a"], True)
    assert list(whys(proposal)) == ["b", "c"]
    proposal = propose(models(c=30, d=40), machine(), POLICY)
    assert (proposal.levels, proposal.tight) == ((), False)
    assert proposal.why == "none of the models that were found fits this machine"


def test_nothing_found_is_nothing_proposed() -> None:
    """With the reason, also where only the runtime that is asked for has none."""
    assert propose([], machine(), POLICY).why == "no models were found"
    proposal = propose(models(a=2), machine(), POLICY, runtime="vllm")
    assert (proposal.levels, proposal.why, proposal.others) == ((), "no models of vllm were found", {"ollama": 1})


# ------------------------------------------------------------------------------------------------ whose models


def test_whoever_makes_the_most_levels_is_proposed_and_the_first_of_equals() -> None:
    """All levels are of one runtime; a person may insist on another."""
    found = [*models(a=2), *models("embedded", b=2, c=6), *models("lmstudio", d=2, e=6)]
    proposal = propose(found, machine(), POLICY)
    assert (proposal.runtime, proposal.why) == ("lmstudio", "nothing else makes more levels")
    assert proposal.others == {"ollama": 1, "embedded": 2}
    proposal = propose(found, machine(), POLICY, runtime="ollama")
    assert (ladder(proposal), proposal.why) == (["a"], "as --runtime says")
    proposal = propose([*found, *models("embedded", f=13)], machine(), POLICY)
    assert (proposal.runtime, proposal.why) == ("embedded", "they make the most levels")


def test_what_is_not_installed_is_proposed_only_if_there_is_nothing_else() -> None:
    """It would not run before that is done."""
    found = [*models(a=2), *models("embedded", b=2, c=6)]
    proposal = propose(found, machine(), POLICY, ready=("ollama",))
    assert (proposal.runtime, proposal.why) == ("ollama", "what embedded needs is not installed")
    assert propose(models("embedded", b=2), machine(), POLICY, ready=("ollama",)).runtime == "embedded"


def test_a_server_that_only_takes_requests_comes_last_and_is_one_level() -> None:
    """It takes nothing here, and of several of its models none would ever give way to another."""
    there = [Model("openai", name, url="http://box") for name in ("z", "y")]
    assert propose([*models(a=40), *there], machine(), POLICY).runtime == "openai"
    assert propose([*models(a=2), *there], machine(), POLICY).runtime == "ollama"
    proposal = propose(there, machine(), POLICY)
    assert (ladder(proposal), proposal.levels[0].footprint) == (["z"], {})
    assert "never give way" in whys(proposal)["y"]


def test_a_model_of_which_nobody_knows_what_it_takes_is_left_out() -> None:
    """A level that takes nothing would never give way."""
    # With a GPU that it would go onto, its process in RAM is no reason to take it either.
    for here in (machine(), machine(gpu0=(8, 1))):
        proposal = propose([Model("ollama", "a"), *models(b=2)], here, POLICY)
        assert ladder(proposal) == ["b"]
        assert whys(proposal) == {"a": "how much it takes is not known"}


# ------------------------------------------------------------------------------------------------ GPUs


def test_a_model_goes_onto_the_gpu_where_there_is_one_that_has_room() -> None:
    """The largest; what does not fit there whole is no level, for how it would be split nobody can tell."""
    usage = machine(gpu0=(8, 1), gpu1=(24, 1))
    proposal = propose(models(a=3, b=6, c=12, d=20), usage, POLICY)
    assert ladder(proposal) == ["a", "b", "c"]
    assert proposal.levels[0].footprint == {RAM: PROCESS_BYTES, "gpu1": 3 * 100 * STEP + STEP}
    assert "of gpu1" in whys(proposal)["d"]
    proposal = propose(models("embedded", a=3), usage, POLICY)
    assert list(proposal.levels[0].footprint) == [RAM]


def test_a_gpu_onto_which_nothing_fits_is_not_reckoned_with() -> None:
    """All of a model counts as RAM then, whatever the runtime puts onto the GPU."""
    for usage in (machine(gpu0=(2, 0)), machine(gpu0=(4, 3))):
        proposal = propose(models(a=3, b=6), usage, POLICY)
        assert [list(rung.footprint) for rung in proposal.levels] == [[RAM], [RAM]]


def test_a_server_that_says_where_it_is_counts_on_each_of_those_gpus() -> None:
    """As vLLM does; one on a GPU that cannot be read is left out, and one that takes too much of it as well."""
    url = "http://127.0.0.1"
    found = [
        Model("vllm", "small", 6 * GIB, f"{url}:1", gpus=(0,)),
        Model("vllm", "large", 12 * GIB, f"{url}:2", gpus=(0, 1)),
        Model("vllm", "greedy", 22 * GIB, f"{url}:3", gpus=(0,)),
        Model("vllm", "unread", 6 * GIB, f"{url}:4", gpus=(7,)),
    ]
    proposal = propose(found, machine(gpu0=(24, 1), gpu1=(24, 1)), POLICY)
    assert ladder(proposal) == ["small", "large"]
    assert list(proposal.levels[1].footprint) == ["gpu0", "gpu1"]
    assert "must stay below 18.48 GiB" in whys(proposal)["greedy"]
    assert "gpu7" in whys(proposal)["unread"]


# ------------------------------------------------------------------------------------------------ always

SIZES = st.one_of(st.none(), st.integers(0, 80 * GIB), st.floats(0.001, 80).map(lambda size: int(size * GIB)))
FOUND = st.lists(
    st.builds(
        Model,
        runtime=st.sampled_from(RUNTIMES),
        name=st.text(min_size=1, max_size=6),
        serving_bytes=SIZES,
        url=st.sampled_from(("http://127.0.0.1:1", "http://127.0.0.1:2")),
        gpus=st.sampled_from(((), (), (0,), (0, 1))),
    ),
    max_size=12,
)
PARTS = st.builds(
    lambda total, own, other: Usage(total, int(own * total), int(other * total)),
    st.integers(1, 256 * GIB),
    st.floats(0, 0.5),
    st.floats(0, 1),
)
USAGES = st.builds(
    lambda ram, gpus: {RAM: ram, **{f"gpu{index}": gpu for index, gpu in enumerate(gpus)}},
    PARTS,
    st.lists(PARTS, max_size=3),
)
POLICIES = st.builds(
    Policy,
    scale_at=st.floats(0.5, 0.9),
    band=st.floats(0.001, 0.2),
    critical_at=st.just(0.95),
    exhausted_at=st.just(0.995),
)


@given(FOUND, USAGES, POLICIES, st.sets(st.sampled_from(RUNTIMES)), st.one_of(st.none(), st.sampled_from(RUNTIMES)))
def test_whatever_is_found_the_ladder_is_one_and_fits(
    found: Sequence[Model], usage: Mapping[str, Usage], policy: Policy, ready: set[str], runtime: str | None
) -> None:
    """At most three levels of one runtime, ascending, apart, within the room, each under a name of its own."""
    proposal = propose(found, usage, policy, ready=ready, runtime=runtime)
    levels = proposal.levels
    assert proposal == propose(list(found), dict(usage), policy, ready=sorted(ready), runtime=runtime)
    assert len(levels) <= 3
    assert {rung.model.runtime for rung in levels} <= {proposal.runtime}
    assert len({rung.name for rung in levels}) == len(levels)
    assert [rung.quality for rung in levels] == sorted({rung.quality for rung in levels})
    if levels:
        Ladder([Level(rung.name, rung.footprint, rung.quality, 5.0) for rung in levels])
    for below, above in pairwise(levels):
        assert APART * max(below.footprint.values()) <= max(above.footprint.values())
    for rung in levels:
        for resource, size in rung.footprint.items():
            assert 0 < size <= policy.scale_at * usage[resource].total_bytes
            assert size >= (0 if resource == RAM and len(rung.footprint) > 1 else rung.model.serving_bytes or 0)
            if not proposal.tight:
                assert (
                    size + usage[resource].other_bytes <= (policy.scale_at - policy.band) * usage[resource].total_bytes
                )
    assert not proposal.tight or len(levels) == 1


@given(FOUND, USAGES)
def test_every_model_of_the_runtime_is_a_level_or_told_why_not(
    found: Sequence[Model], usage: Mapping[str, Usage]
) -> None:
    """Nobody wonders where their model went."""
    proposal = propose(found, usage, POLICY)
    if proposal.runtime is None:
        assert not found
        return
    names = sorted(name for name, _ in {(one.name, one.url) for one in found if one.runtime == proposal.runtime})
    assert sorted([*ladder(proposal), *(one.name for one in proposal.left_out)]) == names
    assert all(one.why for one in proposal.left_out)


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_in_which_models_are_found_does_not_matter(order: int) -> None:
    """Servers list theirs in whatever order."""
    found = models(d=11, a=2.9, b=6.0, c=6.0, e=0.5)
    assert ladder(propose(found[::order], machine(), POLICY)) == ["a", "b", "d"]
