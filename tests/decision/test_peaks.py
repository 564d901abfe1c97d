"""The forecast of the next peak: that it is right as often as it says, and stays within its bounds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.peaks import Peaks

AHEAD_S = 600.0
BAND, BAND_MAX = 0.02, 0.15


def forecasts(
    *windows_s: float,
    needle_s: float = 0.0,
    sureness: float = 0.9,
    half_life_s: float = 1e6,
    band: float = BAND,
    band_max: float = BAND_MAX,
) -> Peaks:
    """Forecasts for the next ten minutes."""
    return Peaks(
        windows_s or (300.0,),
        AHEAD_S,
        needle_s=needle_s,
        sureness=sureness,
        band=band,
        band_max=band_max,
        doubt_s=1.0,
        half_life_s=half_life_s,
    )


@pytest.mark.parametrize("sureness", [0.6, 0.75, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_as_many_forecasts_hold_as_it_says(sureness: float, seed: int) -> None:
    """On usage that drifts without a pattern, over days, and never told what it is."""
    source = random.Random(seed)
    peaks = forecasts(sureness=sureness, band=1e-6, band_max=0.9)
    value, samples = 0.4, []
    for step in range(40_000):
        value = min(0.9, max(0.1, value + source.gauss(0, 0.005)))
        samples.append((step * 5.0, value))
    told: list[tuple[float, float]] = []
    for at_s, value in samples:
        peaks.add(at_s, value)
        expected = peaks.expected(at_s)
        if expected is not None and at_s % 100 == 0 and at_s > 20_000:
            told.append((at_s, expected.at_most))
    came = {at_s: max(v for _, v in samples[int(at_s / 5) : int((at_s + AHEAD_S) / 5)]) for at_s, _ in told[:-7]}
    held = sum(came[at_s] <= at_most for at_s, at_most in told[:-7]) / len(came)
    assert abs(held - sureness) < 0.06


@given(
    st.lists(st.tuples(st.floats(0.1, 40), st.floats(0, 1)), min_size=1, max_size=300),
    st.floats(0, 20),
    st.floats(0.05, 0.95),
)
def test_the_band_stays_within_its_bounds_and_the_peak_is_one_that_was_seen(
    steps: list[tuple[float, float]], needle_s: float, sureness: float
) -> None:
    """Whatever comes, what was learned is bounded by what the tier allows."""
    peaks = forecasts(300.0, 600.0, needle_s=needle_s, sureness=sureness)
    at_s = 0.0
    for interval_s, value in steps:
        at_s += interval_s
        peaks.add(at_s, value)
        expected = peaks.expected(at_s)
        if expected is not None:
            assert expected.seen in {v for _, v in steps}
            assert expected.at_most == expected.seen + expected.band
        assert all(BAND <= band <= BAND_MAX for band in peaks.bands.values())


def test_a_long_window_knows_what_a_short_one_forgets() -> None:
    """A job that comes every fifteen minutes surprises the last five minutes each time, the last twenty never."""
    peaks = forecasts(300.0, 1200.0)
    for at_s in range(0, 100_000, 5):
        peaks.add(float(at_s), 0.6 if at_s % 900 < 120 else 0.5)
    assert peaks.bands[300.0] > 0.09
    assert peaks.bands[1200.0] == BAND
    quiet = peaks.expected(100_000.0)
    assert quiet is not None
    assert quiet.at_most >= 0.6


def test_a_needle_is_no_peak() -> None:
    """What is over before a step down could help needs no foresight."""
    peaks = forecasts(needle_s=2.0)
    for at_s in range(2000):
        peaks.add(float(at_s), 0.9 if at_s % 100 == 50 else 0.3)
    expected = peaks.expected(1999.0)
    assert expected is not None
    assert expected.seen == 0.3
    assert peaks.bands[300.0] == BAND


def test_nothing_is_expected_before_the_window_was_watched_whole_nor_right_after_a_gap() -> None:
    """Half a window's peak would be too low a forecast; what was learned of the errors outlives the gap."""
    peaks = forecasts()
    for at_s in range(0, 50_000, 5):
        peaks.add(float(at_s), 0.5 + 0.1 * (at_s % 1000 < 100))
        assert (peaks.expected(float(at_s)) is None) == (at_s < 300)
    learned = peaks.bands
    peaks.clear()
    assert peaks.expected(60_000.0) is None
    assert peaks.bands == learned


def test_a_calm_stretch_forgives() -> None:
    """The band that a wild hour taught narrows again."""
    peaks = forecasts(half_life_s=3600.0)
    for at_s in range(0, 10_000, 5):
        peaks.add(float(at_s), 0.6 if at_s % 900 < 300 else 0.5)
    wild = peaks.bands[300.0]
    for at_s in range(10_000, 60_000, 5):
        peaks.add(float(at_s), 0.5)
    assert wild > 0.09
    assert peaks.bands[300.0] == BAND


def test_weights_never_run_away() -> None:
    """Growing instead of shrinking what is old must not overflow, even with a half-life of seconds."""
    peaks = forecasts(half_life_s=10.0)
    for at_s in range(0, 100_000, 10):
        peaks.add(float(at_s), (at_s // 10 % 7) / 10)
    assert 0.02 <= peaks.bands[300.0] <= 0.15


@given(
    st.lists(st.tuples(st.floats(0.1, 40), st.floats(0, 1)), min_size=1, max_size=100),
    st.floats(0, 1),
    st.sampled_from([0.0, 2.0]),
)
def test_it_clears_no_later_than_it_says_if_nothing_higher_comes(
    steps: list[tuple[float, float]], at_most: float, needle_s: float
) -> None:
    """What people are told to wait for comes."""
    peaks = forecasts(300.0, 600.0, needle_s=needle_s)
    at_s = value = 0.0
    for interval_s, value in steps:
        at_s += interval_s
        peaks.add(at_s, value)
    clears_s = peaks.clears_in_s(at_s, at_most)
    if clears_s is None:
        assert value + BAND > at_most
        return
    for later in range(1, int(clears_s / 5) + 5):
        peaks.add(at_s + 5.0 * later, value)
    last = peaks.expected(at_s + 5.0 * later)
    assert last is not None
    # An error that was waiting to be scored may have widened the band meanwhile.
    assert last.seen + BAND <= at_most
