"""How high a figure will be at the most for a while, judged by how often the same forecast was right before.

Pure. The forecast is as plain as can be: the peak of what comes is the peak of what was just seen, and a band. How
wide the band must be is learned from every such forecast whose time has passed: wide enough that a given share of
them would have been right. Source: split conformal prediction, Vovk, Gammerman & Shafer, Algorithmic Learning in
a Random World, chapter 4, with older errors weighing less.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

BUCKET_S = 10.0
"""Peaks are kept for stretches of so many seconds: a forecast over minutes needs nothing finer."""
STEPS = 200
"""Errors are told apart in steps of one part in so many."""
RENEW_AT = 1e9
"""Weights grow instead of what is old shrinking; from here on they are scaled back."""


class Peak(NamedTuple):
    """What is expected: the highest value, made of the peak of the last ``window_s`` and the band that was learned."""

    at_most: float
    window_s: float
    seen: float
    band: float


class Peaks:
    """Forecasts of a share (0..1) for the next ``ahead_s`` from the peaks of one or more windows, each scored.

    A value counts once it lasted longer than ``needle_s``. ``sureness`` is the share of past forecasts that the band
    would have covered; ``band`` is what is supposed at first, and counts as much as ``doubt_s`` seconds of
    watching. The learned band stays within ``band`` and ``band_max``. What was seen counts half after ``half_life_s``.
    """

    def __init__(
        self,
        windows_s: Sequence[float],
        ahead_s: float,
        *,
        needle_s: float,
        sureness: float,
        band: float,
        band_max: float,
        doubt_s: float,
        half_life_s: float,
    ) -> None:
        self._windows_s = tuple(windows_s)
        self._ahead_s = ahead_s
        self._needle_s = needle_s
        self._sureness = sureness
        self._band, self._band_max = band, band_max
        self._doubt_s = doubt_s
        self._half_life_s = half_life_s
        self._errors = [[0.0] * (STEPS + 1) for _ in self._windows_s]
        self._bands = [band for _ in self._windows_s]
        self._weight = 1.0
        self._scored_at_s: float | None = None
        self.clear()

    def clear(self) -> None:
        """Forget what was seen, as after a gap; what was learned of the errors stays."""
        self._recent: deque[tuple[float, float]] = deque()
        self._buckets: deque[tuple[float, float]] = deque()
        self._forecasts: deque[tuple[float, tuple[float | None, ...]]] = deque()
        self._begun_s: float | None = None

    def add(self, at_s: float, value: float) -> None:
        """Take in one sample; times must ascend."""
        recent, buckets = self._recent, self._buckets
        recent.append((at_s, value))
        while len(recent) > 1 and recent[1][0] <= at_s - self._needle_s:
            recent.popleft()
        lasted = min(v for _, v in recent) if len(recent) > 1 else value
        if self._begun_s is None:
            self._begun_s = at_s
        if not buckets:
            buckets.append((at_s, lasted))
        elif at_s >= buckets[-1][0] + BUCKET_S:
            self._close(at_s)
            buckets.append((at_s, lasted))
        elif lasted > buckets[-1][1]:
            buckets[-1] = buckets[-1][0], lasted

    def expected(self, at_s: float) -> Peak | None:
        """The lowest of the windows' forecasts, made now; None before the shortest window has passed."""
        return min(
            (
                Peak(peak + band, window_s, peak, band)
                for peak, band, window_s in zip(self._seen(at_s), self._bands, self._windows_s, strict=True)
                if peak is not None
            ),
            default=None,
        )

    def clears_in_s(self, at_s: float, at_most: float, beside: float = 0.0) -> float | None:
        """Seconds until the forecast is ``at_most`` less ``beside`` if nothing comes that is higher than now.

        None if no time will do.
        """
        if self._begun_s is None:
            return self._windows_s[0]
        waits = []
        for band, window_s in zip(self._bands, self._windows_s, strict=True):
            since = self._begun_s
            if self._recent and self._recent[-1][1] + band + beside > at_most:
                continue
            for begun_s, high in self._buckets:
                if high + band + beside > at_most:
                    # A bucket counts until it began longer than the window ago.
                    since = max(since, begun_s + BUCKET_S)
            waits.append(max(0.0, since + window_s - at_s))
        return min(waits, default=None)

    @property
    def bands(self) -> dict[float, float]:
        """The learned band of each window, by the window's seconds."""
        return dict(zip(self._windows_s, self._bands, strict=True))

    def _seen(self, at_s: float) -> tuple[float | None, ...]:
        """The peak of each window that has been watched whole."""
        if self._begun_s is None:
            return tuple(None for _ in self._windows_s)
        watched_s = at_s - self._begun_s
        return tuple(
            max((high for begun_s, high in self._buckets if begun_s >= at_s - window_s), default=None)
            if watched_s >= window_s
            else None
            for window_s in self._windows_s
        )

    def _close(self, at_s: float) -> None:
        """A bucket is full: score the forecast whose time has passed, and make a new one."""
        buckets, forecasts = self._buckets, self._forecasts
        kept_s = max(self._windows_s[-1], self._ahead_s) + BUCKET_S
        while buckets[0][0] < at_s - kept_s:
            buckets.popleft()
        while forecasts and forecasts[0][0] <= at_s - self._ahead_s:
            made_s, peaks = forecasts.popleft()
            came = max((high for begun_s, high in buckets if begun_s >= made_s), default=None)
            if came is not None:
                self._score(peaks, came, at_s)
        forecasts.append((at_s, self._seen(at_s)))

    def _score(self, peaks: Sequence[float | None], came: float, at_s: float) -> None:
        passed_s = 0.0 if self._scored_at_s is None else at_s - self._scored_at_s
        self._scored_at_s = at_s
        self._weight *= 2.0 ** (passed_s / self._half_life_s)
        if self._weight > RENEW_AT:
            self._errors = [[error / self._weight for error in errors] for errors in self._errors]
            self._weight = 1.0
        for position, (errors, peak) in enumerate(zip(self._errors, peaks, strict=True)):
            if peak is None:
                continue
            errors[min(STEPS, int((came - peak) * STEPS) + 1) if came > peak else 0] += BUCKET_S * self._weight
            below = list(accumulate(errors))
            supposed = self._doubt_s * self._weight
            enough = self._sureness * (below[-1] + supposed)
            step = bisect_left(below, enough - supposed)
            self._bands[position] = min(max(step / STEPS, self._band), self._band_max)
