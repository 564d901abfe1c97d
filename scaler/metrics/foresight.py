"""How far a forecast of the others' use was off: what was expected for a time, less what was read when it had come.

Pure. One forecast a resource is out at a time, and the next is made when it has been judged: no reading counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scaler.proactive import ResourceTrend

LATE_SHARE = 0.5
"""A forecast is judged by the first reading after its time; one that comes later than by this part of the horizon says
nothing of it."""


class _Expected(NamedTuple):
    made_s: float
    due_s: float
    ratio: float


class Foresight:
    """Keeps the forecast of each resource until its time has come. Times are the readings', in monotonic seconds."""

    def __init__(self) -> None:
        self._expected: dict[str, _Expected] = {}
        self._next_s = float("-inf")

    def due(self, at_s: float) -> bool:
        """Whether anything is to be judged, or to be forecast, with a reading of this time."""
        return at_s >= self._next_s

    def judge(self, at_s: float, trends: Mapping[str, ResourceTrend]) -> dict[str, float | None]:
        """Errors by resource of the forecasts whose time has come: expected less seen, as a part of the total.

        None for a resource that was not read when its time came. Then the next forecasts are made.
        """
        errors: dict[str, float | None] = {}
        for resource, expected in list(self._expected.items()):
            if at_s < expected.due_s:
                continue
            trend = trends.get(resource)
            too_late_s = expected.due_s + LATE_SHARE * (expected.due_s - expected.made_s)
            if trend is not None and at_s <= too_late_s:
                errors[resource] = expected.ratio - trend.other_bytes / trend.total_bytes
            elif at_s > too_late_s:
                errors[resource] = None
            if resource in errors:
                del self._expected[resource]
        for resource, trend in trends.items():
            if resource not in self._expected:
                ratio = trend.forecast_other_bytes / trend.total_bytes
                self._expected[resource] = _Expected(at_s, at_s + trend.horizon_s, ratio)
        self._next_s = min((one.due_s for one in self._expected.values()), default=float("-inf"))
        return errors
