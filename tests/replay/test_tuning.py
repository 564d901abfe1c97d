"""The search for better parameters: it finds what pays, leaves what does not, and knows how much is luck."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from scaler.levels import GIB, RAM, Ladder, Level
from scaler.policy import Policy
from scaler.replay.closed_loop import Block, Outcome, play
from scaler.replay.tuning import SEARCHED, changes, gain, is_less_safe, search
from tests.replay.test_closed_loop import readings

LADDER = Ladder([Level("small", {RAM: 2 * GIB}, 0.5, 2.0), Level("large", {RAM: 8 * GIB}, 1.0, 6.0)])


def outcome(scores: Sequence[float], **figures: float) -> Outcome:
    """Hours with these scores a second."""
    blocks = tuple(Block(3600.0, 3600.0 * score) for score in scores)
    known = {"kills": 0, "critical_s": 0.0, "wasted": 0, **figures}
    return Outcome(
        seconds=3600.0 * len(scores),
        gaps=0,
        score=sum(block.score for block in blocks),
        smallest_score=0.0,
        quality_s=0.0,
        unserved_s=0.0,
        tight_s=0.0,
        switches=9,
        seconds_at={},
        blocks=blocks,
        **known,  # type: ignore[arg-type]  # the figures are what the test says
    )


def test_it_finds_what_pays_on_a_real_replay_and_nothing_else() -> None:
    """Here others leave a little less room than the band asks for most of the time, and seldom disturb a climb."""
    day = [0.6 if at % 720 < 60 else 0.277 if at % 720 < 540 else 0.24 for at in range(12 * 360)]
    some = readings(day, step_s=10.0)
    shipped = Policy(band=0.04, dwell_s=300)
    before = play(some, LADDER, shipped)
    found = search(shipped, lambda policies: [play(some, LADDER, policy) for policy in policies])
    changed = changes(shipped, found.policy)
    assert "band" in changed
    assert found.policy.band < 0.03
    assert set(changed) == set(found.gains)
    assert all(one.low > 0 for one in found.gains.values())
    assert gain(before, play(some, LADDER, found.policy)).low > 0
    assert all(getattr(found.policy, name) in SEARCHED[name] for name in changed)


def test_where_nothing_happens_nothing_is_proposed() -> None:
    """Equal is not better."""
    some = readings([0.2] * 2000, step_s=10.0)
    found = search(Policy(), lambda policies: [play(some, LADDER, policy) for policy in policies])
    assert found.policy == Policy()
    assert found.gains == {}


def test_what_is_less_safe_is_never_chosen_however_much_it_scores() -> None:
    """More kills, or longer critical, is out."""

    def played(policies: Sequence[Policy]) -> list[Outcome]:
        return [
            outcome([0.9 - one.band] * 24, kills=one.band == 0.01, critical_s=5.0 * (one.band == 0.02))
            for one in policies
        ]

    found = search(Policy(band=0.06), played)
    assert found.policy.band == 0.03
    assert is_less_safe(outcome([1], kills=1), outcome([1]))
    assert is_less_safe(outcome([1], critical_s=1.0), outcome([1]))
    assert not is_less_safe(outcome([1]), outcome([1]))


def test_climbs_undone_soon_count_against_a_policy() -> None:
    """A score that comes of thrashing is not worth it."""

    def played(policies: Sequence[Policy]) -> list[Outcome]:
        return [outcome([0.6 + 0.001 * (one.band < 0.03)] * 24, wasted=40 * (one.band < 0.03)) for one in policies]

    assert search(Policy(band=0.04), played).policy.band == 0.04


def test_what_a_person_set_stays() -> None:
    """Their configuration goes before any search."""
    tried: list[Policy] = []

    def played(policies: Sequence[Policy]) -> list[Outcome]:
        tried.extend(policies)
        return [outcome([0.9 - one.band] * 24) for one in policies]

    found = search(Policy(), played, fixed=["band"])
    assert found.policy == Policy()
    assert {policy.band for policy in tried} == {Policy().band}
    assert all((policy.scale_at, policy.critical_at, policy.dwell_s) == (0.8, 0.95, 300) for policy in tried)


def test_a_change_that_only_looked_good_beside_another_is_taken_back() -> None:
    """Every change must earn its place by what it would cost to leave it out."""

    def played(policies: Sequence[Policy]) -> list[Outcome]:
        some = []
        for one in policies:
            better = one.band < 0.02
            # Debouncing helps only as long as the band is wide.
            level = 0.6 + 0.1 * better + 0.05 * (one.debounce_s > 4 and not better)
            some.append(outcome([level + 0.001 * math.sin(hour) for hour in range(48)]))
        return some

    before = replace(Policy(), debounce_s=4.0)
    assert set(changes(before, search(before, played).policy)) == {"band"}


@pytest.mark.parametrize("hours", [24, 60])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(hours: int) -> None:
    """Nine of ten times, on hours that are independent; a few less for few hours."""
    source, held, trials = random.Random(1), 0, 100
    for trial in range(trials):
        base = [source.gauss(0.6, 0.1) for _ in range(hours)]
        more = [score + source.gauss(0.01, 0.05) for score in base]
        found = gain(outcome(base), outcome(more), seed=trial)
        held += found.low <= 0.01 <= found.high
        assert found.low <= found.mean <= found.high
    assert 0.8 <= held / trials <= 0.97


def test_no_hours_are_no_gain() -> None:
    """And no division by nothing."""
    assert gain(outcome([]), outcome([])) == (0, 0, 0)
