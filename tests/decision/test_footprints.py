"""What levels take: declared, then learned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.errors import ConfigError
from scaler.footprints import Footprints
from scaler.levels import GIB, OFF, RAM, Ladder, Level, gpu_resource
from tests.decision.driver import GPU_LADDER, LADDER, Driver


def test_declared_footprints_hold_until_a_level_was_seen() -> None:
    """Somewhere one has to begin."""
    footprints = Footprints(GPU_LADDER, 600)
    assert footprints.resources == (RAM, "gpu0")
    assert [footprints.of(position) for position in range(3)] == [[2 * GIB, 0], [3 * GIB, 4 * GIB], [4 * GIB, 10 * GIB]]


def test_the_first_sight_replaces_the_declaration_in_either_direction() -> None:
    """A declaration is a guess; what is seen is a fact."""
    for seen_gib in (5, 7):
        footprints = Footprints(LADDER, 600)
        footprints.learn(1, 0, seen_gib * GIB, 0.0)
        assert footprints.of(1) == [seen_gib * GIB]


def test_a_peak_is_believed_at_once_and_forgotten_by_half_in_a_half_life() -> None:
    """The next busy minute must fit; a quiet hour may be believed in the end."""
    footprints = Footprints(LADDER, 600)
    footprints.learn(1, 0, 4 * GIB, 0.0)
    footprints.learn(1, 0, 6 * GIB, 1.0)
    assert footprints.of(1) == [6 * GIB]
    footprints.learn(1, 0, 4 * GIB, 601.0)
    assert footprints.of(1) == [5 * GIB]


def test_how_often_a_level_is_looked_at_does_not_change_how_fast_a_peak_is_forgotten() -> None:
    """A half-life is a matter of time, not of readings."""
    often, seldom = Footprints(LADDER, 600), Footprints(LADDER, 600)
    for footprints in (often, seldom):
        footprints.learn(1, 0, 6 * GIB, 0.0)
    for second in range(1, 601):
        often.learn(1, 0, 4 * GIB, float(second))
    seldom.learn(1, 0, 4 * GIB, 600.0)
    assert often.of(1)[0] == pytest.approx(seldom.of(1)[0], abs=1000)


def test_nothing_is_not_learned() -> None:
    """A serving level takes something: 0 is a process that has just ended, or that nobody could look at."""
    footprints = Footprints(GPU_LADDER, 600)
    footprints.learn(1, 0, 0, 0.0)
    footprints.learn(1, 1, 0, 0.0)
    assert footprints.of(1) == [3 * GIB, 4 * GIB]
    footprints.learn(1, 0, GIB, 1.0)
    assert footprints.of(1) == [2 * GIB, 4 * GIB]


def test_each_resource_is_learned_by_itself() -> None:
    """What was never seen of the card stays as declared, however long RAM has been watched."""
    footprints = Footprints(GPU_LADDER, 600)
    for second in range(100):
        footprints.learn(1, 0, 3 * GIB, float(second))
    footprints.learn(1, 1, 2 * GIB, 100.0)
    assert footprints.of(1) == [3 * GIB, 2 * GIB]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20), st.integers(0, 1000)), max_size=30))
def test_a_larger_level_never_counts_for_less_and_nothing_for_more_than_was_seen_or_declared(
    sights: list[tuple[int, int, int]],
) -> None:
    """What fits above fits below: every guard relies on it."""
    footprints = Footprints(LADDER, 600)
    at_s, most = 0.0, 12 * GIB
    for position, seen_gib, later_s in sights:
        at_s += later_s
        footprints.learn(position, 0, seen_gib * GIB, at_s)
        most = max(most, seen_gib * GIB)
        sizes = [footprints.of(p)[0] for p in range(3)]
        assert sizes == sorted(sizes)
        assert seen_gib * GIB <= footprints.of(position)[0] <= most


def test_a_settled_level_is_learned_from_and_a_switching_one_is_not() -> None:
    """In the middle of a switch two models may be in memory."""
    drive = Driver(initial="small", answer=lambda switch: switch.dest != "large")
    drive.read(4, 301, own_gib=3)
    footprints = drive.machine.evidence.footprints
    assert drive.state == "large"
    drive.read(4, 10, own_gib=15)
    assert [footprints.of(position) for position in range(3)] == [[3 * GIB], [6 * GIB], [12 * GIB]]
    drive.machine.switched(drive.switches[-1].ticket, drive.now_s)
    drive.read(4, own_gib=13)
    assert footprints.of(2) == [13 * GIB]


def test_a_reading_begun_before_the_switch_was_over_teaches_nothing() -> None:
    """It may have counted the model that was being unloaded."""
    drive = Driver(initial="small", answer=lambda switch: switch.dest != "large")
    drive.read(4, 301)
    begun = drive.now_s + 0.9
    drive.now_s += 1
    drive.machine.switched(drive.switches[-1].ticket, drive.now_s)
    drive.observe(drive.reading(4, own_gib=14, at_s=begun))
    assert drive.machine.evidence.footprints.of(2) == [12 * GIB]


def test_a_level_found_too_large_is_left_and_not_climbed_to_again() -> None:
    """Declared 12 GiB, taking 16: that is learned once, not every five minutes."""
    drive = Driver(initial="medium")
    for _ in range(4000):
        own_gib = {"small": 2, "medium": 6, "large": 16}[drive.machine.serving]
        drive.read(4, own_gib=own_gib)
    assert [move[1:] for move in drive.moves] == [("medium", "large"), ("large", "medium")]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "ladder: no levels; expected at least one"),
        ([Level(OFF, {RAM: 1}, 0, 0)], r"ladder\[0\].name: 'off' cannot be used"),
        ([Level("", {RAM: 1}, 0, 0)], r"ladder\[0\].name: '' cannot be used"),
        ([Level("a", {RAM: 1}, 0, 0), Level("a", {RAM: 2}, 0, 0)], r"ladder\[1\].name: 'a' is used twice"),
        (
            [Level("a", {RAM: 2 * GIB}, 0, 0), Level("b", {RAM: GIB}, 0, 0)],
            r"ladder\[1\]: 'b' takes 1.00 GiB of RAM and 'a' before it 2.00 GiB; expected the levels from the smallest",
        ),
        (
            [Level("a", {RAM: 2 * GIB}, 0, 0), Level("b", {RAM: 2 * GIB - 1024}, 0, 0)],
            "'b' takes 1.999999 GiB of RAM and 'a' before it 2.000000 GiB",
        ),
        ([Level("a", {RAM: 2}, 0, 0), Level("b", {RAM: 2}, 0, 0)], "expected the levels from the smallest"),
        ([Level("a", {RAM: 2, "gpu0": GIB}, 0, 0), Level("b", {RAM: 2}, 0, 0)], "'b' takes 0.00 GiB of gpu0"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(levels: list[Level], message: str) -> None:
    """The message says which level, what was found and what was expected."""
    with pytest.raises(ConfigError, match=message):
        Ladder(levels)


def test_a_ladder_is_a_sequence_with_names() -> None:
    """Positions count from the smallest; off lies below all of them."""
    assert list(LADDER) == [LADDER[0], LADDER[1], LADDER[2]]
    assert [LADDER.index(name) for name in (OFF, *LADDER.names)] == [-1, 0, 1, 2]
    assert LADDER.level("medium") is LADDER[1]
    assert gpu_resource(3) == "gpu3"
    for ask in (LADDER.index, LADDER.level):
        with pytest.raises(KeyError):
            ask("huge")


def test_what_is_seen_of_mapped_weights_is_too_little_and_believed_only_upwards() -> None:
    """Pages of a mapped file do not show as used, and still the level is slow without them."""
    ladder = Ladder([Level("mapped", {RAM: 8 * GIB}, 0.5, 1.0, mapped=True)])
    footprints = Footprints(ladder, 60.0)
    for second in range(100):
        footprints.learn(0, 0, GIB, float(second))
    assert footprints.of(0) == [8 * GIB]
    footprints.learn(0, 0, 9 * GIB, 100.0)
    assert footprints.of(0) == [9 * GIB]


def test_what_a_level_does_not_declare_it_never_takes() -> None:
    """Neither by being seen to hold some, nor because a smaller level takes some."""
    ladder = Ladder(
        [
            Level("here", {RAM: 8 * GIB}, 0.5, 1.0),
            Level("card", {"gpu0": GIB}, 0.5, 1.0),
            Level("elsewhere", {}, 1.0, 1.0),
        ]
    )
    footprints = Footprints(ladder, 60.0)
    footprints.learn(1, 0, 2 * GIB, 1.0)
    footprints.learn(2, 0, 2 * GIB, 2.0)
    assert [footprints.of(position) for position in range(3)] == [[8 * GIB, 0], [0, GIB], [0, 0]]


def test_a_high_figure_of_mapped_weights_is_forgotten_down_to_what_was_declared() -> None:
    """One busy minute must not make a level look larger for good; on a GPU everything shows."""
    ladder = Ladder([Level("mapped", {RAM: 6 * GIB, "gpu0": 4 * GIB}, 0.5, 1.0, mapped=True)])
    footprints = Footprints(ladder, 60.0)
    footprints.learn(0, 0, 10 * GIB, 0.0)
    for second in range(1, 1200):
        footprints.learn(0, 0, GIB, float(second))
        footprints.learn(0, 1, 3 * GIB, float(second))
    assert footprints.of(0) == [pytest.approx(6 * GIB, abs=GIB // 1000), pytest.approx(3 * GIB, abs=GIB // 1000)]
    assert footprints.of(0)[0] >= 6 * GIB


def test_weights_of_a_mapped_level_that_stands_by_do_not_show_in_the_one_above_either() -> None:
    """large and small are loaded at once then, and what is seen of the two is too little."""
    ladder = Ladder(
        [
            Level("small", {RAM: 4 * GIB}, 0.5, 1.0, standby=True, mapped=True),
            Level("large", {RAM: 12 * GIB}, 1.0, 5.0),
        ]
    )
    footprints = Footprints(ladder, 60.0)
    for second in range(100):
        footprints.learn(1, 0, 8 * GIB, float(second))
    assert footprints.of(1) == [12 * GIB]
