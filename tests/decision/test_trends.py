"""The straight line through the recent past, against NumPy's and against what it must not do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.trends import Trend

STEPS = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), min_size=5, max_size=120)


def times(steps: list[tuple[float, float]], start_s: float) -> list[tuple[float, float]]:
    """Intervals and values as times and values."""
    at_s, samples = start_s, []
    for interval_s, value in steps:
        at_s += interval_s
        samples.append((at_s, value))
    return samples


@given(STEPS, st.sampled_from([0.0, 1e4, 1e7]), st.floats(5, 120))
def test_the_line_is_that_of_least_squares_over_the_window(
    steps: list[tuple[float, float]], start_s: float, window_s: float
) -> None:
    """The running sums must not drift away from a calculation from scratch, however long the machine has been up."""
    trend = Trend(window_s)
    samples = times(steps, start_s)
    for sample in samples:
        trend.add(*sample)
    inside = [(t, y) for t, y in samples if t >= samples[-1][0] - window_s]
    assert len(trend) == len(inside)
    assert trend.span_s == inside[-1][0] - inside[0][0]
    if len(inside) < Trend.MINIMUM:
        assert trend.forecast(samples[-1][0] + 10) is None
        assert trend.slope_per_s is None
        return
    t = np.array([t for t, _ in inside]) - inside[0][0]
    y = np.array([y for _, y in inside])
    slope, intercept = np.polyfit(t, y, 1)
    assert trend.slope_per_s == pytest.approx(slope, abs=1e-6)
    # The prediction interval from scratch.
    ahead_s = 17.0
    spread = np.sum((t - t.mean()) ** 2)
    residual = np.sum((y - slope * t - intercept) ** 2) / (len(t) - 2)
    sigma = math.sqrt(residual * (1 + 1 / len(t) + (t[-1] + ahead_s - t.mean()) ** 2 / spread))
    forecast = trend.forecast(samples[-1][0] + ahead_s)
    assert forecast is not None
    assert forecast.sigma == pytest.approx(sigma, abs=1e-5)
    assert forecast.mean == pytest.approx(y[-1] + slope * ahead_s, abs=1e-5)


@given(st.floats(0, 1), st.floats(-0.01, 0.01), st.floats(0, 60))
def test_a_perfect_line_is_foretold_without_doubt(start: float, slope: float, ahead_s: float) -> None:
    """A leak that grows steadily reaches its limit when it says."""
    trend = Trend(60)
    for second in range(40):
        trend.add(float(second), start + slope * second)
    forecast = trend.forecast(39 + ahead_s)
    assert forecast is not None
    assert forecast.mean == pytest.approx(start + slope * (39 + ahead_s), abs=1e-9)
    assert forecast.sigma == pytest.approx(0, abs=1e-6)


def test_a_day_of_samples_leaves_no_rounding_behind() -> None:
    """What has left the window has left the sums."""
    trend = Trend(60)
    for second in range(86_400):
        trend.add(float(second), 0.9 if second < 86_000 else 0.25)
    forecast = trend.forecast(86_500)
    assert forecast is not None
    assert forecast.mean == pytest.approx(0.25, abs=1e-9)
    assert forecast.sigma == pytest.approx(0, abs=1e-6)


def test_scattered_samples_make_a_forecast_doubtful_and_more_so_further_ahead() -> None:
    """Noise must not look like a trend."""
    trend = Trend(60)
    for second in range(60):
        trend.add(float(second), 0.5 + 0.05 * (-1) ** second)
    near, far = trend.forecast(60), trend.forecast(160)
    assert near is not None
    assert far is not None
    assert 0.05 < near.sigma < far.sigma


def test_a_time_in_the_past_is_foretold_as_the_present() -> None:
    """The line is anchored at the latest sample and leads forward only."""
    trend = Trend(60)
    for second in range(10):
        trend.add(float(second), second / 10)
    forecast = trend.forecast(3.0)
    assert forecast is not None
    assert forecast.mean == pytest.approx(0.9)


def test_the_time_until_a_limit() -> None:
    """0 once it is there, None when the line leads away from it or there is none."""
    trend = Trend(60)
    assert trend.reaches_in_s(0.5) is None
    for second in range(10):
        trend.add(float(second), second / 100)
    assert trend.reaches_in_s(0.19) == pytest.approx(10)
    assert trend.reaches_in_s(0.05) == 0
    trend.clear()
    assert (len(trend), trend.span_s, trend.reaches_in_s(0.5)) == (0, 0.0, None)
    for second in range(10):
        trend.add(float(second), -second / 100)
    assert trend.reaches_in_s(0.5) is None


def test_samples_of_one_moment_make_no_line() -> None:
    """A line needs two different times."""
    trend = Trend(60)
    for number in range(10):
        trend.add(5.0, number / 10)
    assert trend.forecast(6.0) is None


@given(STEPS, st.floats(1, 20))
def test_a_rise_is_steady_only_if_it_rose_all_the_time(steps: list[tuple[float, float]], rise_s: float) -> None:
    """And is no faster than what was seen in either half, so that one jump is never a rise."""
    trend = Trend(60, rise_s)
    samples = times(steps, 0.0)
    for sample in samples:
        trend.add(*sample)
    rise = trend.steady_rise_per_s
    assert rise >= 0
    if rise:
        before = [y for t, y in samples if t <= samples[-1][0] - rise_s * (1 - 1e-6)]
        assert before
        assert samples[-1][1] >= min(before) + rise * rise_s - 1e-6


@pytest.mark.parametrize(("at_s", "rise_s"), [(1e18, 4.0), (1e6, 1e-12)])
def test_where_no_rise_can_be_told_apart_from_a_moment_there_is_none(at_s: float, rise_s: float) -> None:
    """Half the time that a rise takes is less than what a clock so far on can tell."""
    trend = Trend(60, rise_s)
    trend.add(at_s, 0.1)
    assert trend.steady_rise_per_s == 0


def test_one_jump_is_no_rise_and_a_leak_is_one() -> None:
    """The half without the jump says so."""
    leak, jump = Trend(60, 4.0), Trend(60, 4.0)
    for at_s in range(20):
        leak.add(float(at_s), 0.01 * at_s)
        jump.add(float(at_s), 0.2 * (at_s >= 18))
        assert jump.steady_rise_per_s == 0
    assert leak.steady_rise_per_s == pytest.approx(0.01)


def test_a_rise_that_pauses_is_not_steady() -> None:
    """Two seconds without a rise end it."""
    trend = Trend(60, 4.0)
    for at_s in range(20):
        trend.add(float(at_s), 0.01 * min(at_s, 17))
    assert trend.steady_rise_per_s == 0


def test_a_rise_that_a_full_machine_hid_is_none_once_it_shows() -> None:
    """While nothing was free, others seemed to use less than they wanted."""
    trend = Trend(60, 4.0)
    for at_s in range(10):
        trend.add(float(at_s), 0.05 * at_s)
    trend.forget_rise()
    assert trend.steady_rise_per_s == 0
    for at_s in range(10, 15):
        trend.add(float(at_s), 0.05 * at_s)
    assert trend.steady_rise_per_s == pytest.approx(0.05)
