"""The last day's readings, thinned and kept in memory, for whoever draws or tells what the machine just did.

Owns which readings are kept and for how long. Reads no files: what was before it began is handed in (`past` finds it).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from scaler.events import ModelDied, SwitchDone, SwitchFailed
from scaler.levels import OFF, RAM, gpu_resource
from scaler.monitor import ReadingTaken
from scaler.proactive import Event
from scaler.readings import Reading, Usage

KEPT_S = 86_400.0
"""For so many seconds a reading is kept."""
INTERVAL_S = 10.0
"""Of each stretch of so many seconds one reading is kept: that with the most in use."""
MOST_POINTS = 720
"""A longer time is told in longer stretches, so that there are never more points than this: two hours of full detail,
and more than a picture has room for."""


class Point(NamedTuple):
    """A reading that was kept. ``at_s`` is of the wall clock; ``serving`` is the level that answered then."""

    at_s: float
    serving: str
    usage: tuple[tuple[str, Usage], ...]

    @property
    def fullest(self) -> float:
        """The share of the resource that was used most, 0..1."""
        return max((part.own_bytes + part.other_bytes) / part.total_bytes for _, part in self.usage)


class Recent:
    """At most a day of points, oldest first; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=int(KEPT_S / INTERVAL_S))
        self._serving: str | None = None

    def begin(self, serving: str) -> None:
        """Say which level serves, unless an event has said so already; nothing is kept before that is known."""
        with self._lock:
            if self._serving is None:
                self._serving = serving

    def take(self, event: Event) -> None:
        """What happens, as it happens. To be subscribed before ``begin``."""
        with self._lock:
            match event:
                case ReadingTaken() if self._serving is not None:
                    if (point := point_of(event.reading, self._serving)) is not None:
                        self._keep(point)
                case SwitchDone():
                    self._serving = event.level
                case SwitchFailed():
                    self._serving = event.still_serving
                case ModelDied() if event.level == self._serving:
                    self._serving = OFF

    def fill(self, before: Iterable[Point]) -> None:
        """Put what was before the first point in front of it; later ones among ``before`` are passed over."""
        kept = thinned(before, INTERVAL_S)
        with self._lock:
            known, self._points = self._points, deque(maxlen=self._points.maxlen)
            for point in kept:
                if not known or point.at_s < known[0].at_s:
                    self._keep(point)
            for point in known:
                self._keep(point)

    def points(self, last_s: float, now_s: float) -> tuple[float, list[Point]]:
        """The stretch in seconds of which each point is one, and the points of the last ``last_s`` seconds."""
        interval_s = INTERVAL_S * math.ceil(last_s / INTERVAL_S / MOST_POINTS)
        with self._lock:
            points = [point for point in self._points if now_s - last_s <= point.at_s <= now_s]
        return interval_s, points if interval_s == INTERVAL_S else thinned(points, interval_s)

    def _keep(self, point: Point) -> None:
        points = self._points
        # The clock was set back: what lies in the future now never happens again in order.
        while points and _stretch(points[-1], INTERVAL_S) > _stretch(point, INTERVAL_S):
            points.pop()
        _add(points, point, INTERVAL_S)
        while points[0].at_s < point.at_s - KEPT_S:
            points.popleft()


def point_of(reading: Reading, serving: str) -> Point | None:
    """A reading as a point; None where nothing was read that can be drawn."""
    names = (RAM, *(gpu_resource(gpu.index) for gpu in reading.gpus or ()))
    usage = tuple((name, part) for name in names if (part := reading.usage(name)) is not None)
    return None if reading.wall_s is None or not usage else Point(reading.wall_s, serving, usage)


def thinned(points: Iterable[Point], interval_s: float) -> list[Point]:
    """Of each stretch of ``interval_s`` seconds the point with the most in use; ``points`` are in order."""
    kept: list[Point] = []
    for point in points:
        _add(kept, point, interval_s)
    return kept


def _add(points: list[Point] | deque[Point], point: Point, interval_s: float) -> None:
    if points and _stretch(points[-1], interval_s) == _stretch(point, interval_s):
        if point.fullest >= points[-1].fullest:
            points[-1] = point
    else:
        points.append(point)


def _stretch(point: Point, interval_s: float) -> int:
    return int(point.at_s // interval_s)
