"""What a resource's usage is worth in the terms of RAM's thresholds, where its own are others.

Pure. Every guard compares one figure with one threshold, whichever resource is tightest; so a GPU at its own scale-at
reads as usage at scale-at, one at its own critical-at as usage at critical-at, and straight lines lead between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]


class Scale:
    """Translates between a resource's own usage and what it reads as; both are ratios of its total."""

    def __init__(self, own: Sequence[float], read_as: Sequence[float]) -> None:
        """``own`` thresholds, ascending between 0 and 1, read as those in ``read_as``."""
        self._points: list[Point] = [(0.0, 0.0), *zip(own, read_as, strict=True), (1.0, 1.0)]
        self._back: list[Point] = [(there, here) for here, there in self._points]

    def read(self, usage: float) -> float:
        """What the resource's own usage reads as."""
        return _along(self._points, usage)

    def own(self, read: float) -> float:
        """The resource's own usage that reads as this."""
        return _along(self._back, read)


def _along(points: Sequence[Point], x: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(points):
        if x == x1:
            return y1
        if x < x1:
            return y0 + (x - x0) * (y1 - y0) / (x1 - x0)
    # More than there is can be in use, where a limit was lowered.
    return x
