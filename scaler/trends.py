"""Where a figure is heading: a straight line through its recent past, with honest doubt.

Pure. Each sample costs constant time: the sums of the regression are kept as samples come and go.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple


class Forecast(NamedTuple):
    """An expected value and the standard deviation of its error, in the unit of the samples."""

    mean: float
    sigma: float


class Trend:
    """Least-squares line over the samples of the last ``window_s`` seconds.

    Source: simple linear regression and its prediction interval, e.g. Draper & Smith, Applied Regression
    Analysis, chapter 1. Neighbouring samples of memory use are not independent, so the interval is rather
    too narrow than too wide; callers ask for two standard deviations and more.
    """

    MINIMUM = 5
    """Fewer samples than this make no line."""

    def __init__(self, window_s: float, rise_s: float = 4.0) -> None:
        """``rise_s``: over how many seconds a rise must have been steady; 0 knows none."""
        self.window_s = window_s
        self._half_s = rise_s / 2 * (1 - 1e-9)
        self._samples: deque[tuple[float, float]] = deque()
        self._clear_sums(0.0, 0.0)
        self.forget_rise()

    def forget_rise(self) -> None:
        """Judge a rise only by what comes from now on."""
        self._newer: deque[tuple[float, float]] = deque()
        self._older: deque[tuple[float, float]] = deque()
        self._middle: tuple[float, float] | None = None
        self._first: tuple[float, float] | None = None

    def _clear_sums(self, t0: float, y0: float) -> None:
        self._t0, self._y0 = t0, y0
        self._n = 0
        self._t = self._tt = self._y = self._ty = self._yy = 0.0

    def clear(self) -> None:
        """Forget every sample."""
        self._samples.clear()
        self._clear_sums(0.0, 0.0)
        self.forget_rise()

    def add(self, at_s: float, value: float) -> None:
        """Take in one sample; times must not go backwards."""
        samples = self._samples
        # Sums relative to a near origin keep their precision; the origin moves on with the window.
        if not samples or at_s - self._t0 > 8 * self.window_s:
            self._clear_sums(at_s, value)
            while samples and samples[0][0] < at_s - self.window_s:
                samples.popleft()
            for t, y in samples:
                self._include(t, y, 1)
        samples.append((at_s, value))
        self._include(at_s, value, 1)
        while samples[0][0] < at_s - self.window_s:
            self._include(*samples.popleft(), -1)
        if self._half_s:
            self._follow_rise(at_s, value)

    def _follow_rise(self, at_s: float, value: float) -> None:
        newer, older = self._newer, self._older
        newer.append((at_s, value))
        while at_s - newer[0][0] >= self._half_s:
            self._middle = newer.popleft()
            older.append(self._middle)
        if self._middle is not None:
            while self._middle[0] - older[0][0] >= self._half_s:
                self._first = older.popleft()

    @property
    def steady_rise_per_s(self) -> float:
        """By how much the value has risen a second, at the least, in both halves of the last ``rise_s``; 0 if it fell.

        One jump, however high, is no steady rise: the half without it says so.
        """
        if self._first is None or self._middle is None:
            return 0.0
        (t0, y0), (t1, y1), (t2, y2) = self._first, self._middle, self._samples[-1]
        slower = min((y1 - y0) / (t1 - t0), (y2 - y1) / (t2 - t1))
        return slower if slower > 0 else 0.0

    def _include(self, at_s: float, value: float, sign: int) -> None:
        t, y = at_s - self._t0, value - self._y0
        self._n += sign
        self._t += sign * t
        self._tt += sign * t * t
        self._y += sign * y
        self._ty += sign * t * y
        self._yy += sign * y * y

    def _line(self) -> tuple[float, float, float, float] | None:
        """(mean time, slope, residual variance, spread of the times), or None without a line."""
        n = self._n
        if n < self.MINIMUM:
            return None
        mean_t, mean_y = self._t / n, self._y / n
        spread = self._tt - n * mean_t * mean_t
        if spread <= 1e-9:
            return None
        covariance = self._ty - n * mean_t * mean_y
        slope = covariance / spread
        residual = (self._yy - n * mean_y * mean_y - slope * covariance) / (n - 2)
        return self._t0 + mean_t, slope, residual if residual > 0 else 0.0, spread

    @property
    def slope_per_s(self) -> float | None:
        """Change a second, or None while there is no line."""
        line = self._line()
        return None if line is None else line[1]

    @property
    def span_s(self) -> float:
        """The stretch of time that the samples cover."""
        return self._samples[-1][0] - self._samples[0][0] if self._samples else 0.0

    def __len__(self) -> int:
        return self._n

    def forecast(self, at_s: float) -> Forecast | None:
        """What the value will be at ``at_s``, or None while there is no line.

        The line is anchored at the latest sample: what the figure is now is known, only its future is not.
        """
        line = self._line()
        if line is None:
            return None
        mean_t, slope, residual, spread = line
        last_t, last_y = self._samples[-1]
        ahead, from_mean = at_s - last_t, at_s - mean_t
        sigma = math.sqrt(residual * (1.0 + 1.0 / self._n + from_mean * from_mean / spread))
        return Forecast(last_y + slope * ahead if ahead > 0 else last_y, sigma)

    def reaches_in_s(self, limit: float) -> float | None:
        """Seconds until the line reaches ``limit`` from below: 0 when it is there, None when it never will."""
        slope = self.slope_per_s
        if slope is None:
            return None
        value = self._samples[-1][1]
        if value >= limit:
            return 0.0
        return (limit - value) / slope if slope > 0 else None
