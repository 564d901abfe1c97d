"""When a rise above the limit is taken for a needle, and what incidents teach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.caution import Caution
from scaler.needles import Needles


def test_four_needles_in_a_row_make_the_next_one_expected() -> None:
    """Fewer are no rule yet."""
    needles = Needles(2.0, 0.75, 3600.0)
    for count in range(4):
        assert not needles.trusted(100.0 * count)
        needles.ended(100.0 * count, 100.0 * count + 1)
    assert needles.trusted(400.0)


def test_one_long_rise_among_a_few_needles_ends_the_trust() -> None:
    """The benefit of the doubt is on the side of stepping down."""
    needles = Needles(2.0, 0.75, 3600.0)
    for count in range(4):
        needles.ended(100.0 * count, 100.0 * count + 1)
    assert needles.trusted(400.0)
    needles.ended(400.0, 440.0)
    assert not needles.trusted(440.0)


def test_what_was_seen_long_ago_is_forgotten() -> None:
    """Needles of last week say nothing about today."""
    needles = Needles(2.0, 0.75, 3600.0)
    for count in range(5):
        needles.ended(100.0 * count, 100.0 * count + 1)
    assert needles.trusted(500.0)
    assert not needles.trusted(500.0 + 3600.0 * 2)


@given(st.lists(st.floats(0.1, 100), max_size=30), st.floats(0.1, 0.95))
def test_no_length_of_zero_trusts_nothing_and_the_share_is_kept(lengths: list[float], share: float) -> None:
    """Trust asks for the share among the rises seen, and one more that was not."""
    off, needles = Needles(0.0, share, 1e6), Needles(2.0, share, 1e12)
    at_s = 0.0
    for length in lengths:
        for some in (off, needles):
            some.ended(at_s, at_s + length)
        at_s += 200.0
        assert not off.trusted(at_s)
    short = sum(at - since <= 2.0 for since, at in ((200.0 * n, 200.0 * n + x) for n, x in enumerate(lengths)))
    assert needles.trusted(at_s) == (short >= share * (len(lengths) + 1) - 1e-6) or short == pytest.approx(
        share * (len(lengths) + 1), abs=1e-3
    )


@given(st.lists(st.floats(0, 5000), max_size=40), st.floats(0, 0.1), st.floats(0, 0.2))
def test_caution_is_bounded_and_halves_within_its_half_life(gaps: list[float], step: float, most: float) -> None:
    """However many incidents there were."""
    caution, at_s = Caution(step, most, 3600.0), 0.0
    for gap in gaps:
        at_s += gap
        caution.incident("near miss", at_s)
        assert 0 <= caution.at(at_s) <= most
    now, later = caution.at(at_s), caution.at(at_s + 3600.0)
    assert later == (pytest.approx(now / 2) if now / 2 >= 1e-3 else 0)
    assert caution.incidents == ({"near miss": len(gaps)} if gaps else {})
