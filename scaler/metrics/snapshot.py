"""What is so now: levels, usage, limits, forecasts, guards, requests that run. Asked when somebody scrapes.

Owns the gauges. A figure that is not known has no series: never 0, and never the last that was.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from scaler import __version__
from scaler.levels import OFF, RAM
from scaler.manager import ModelManager
from scaler.proactive import ResourceTrend, Status
from scaler.readings import Reading, Usage

Series = Iterable[tuple[tuple[str, ...], float | None]]


class Snapshot(Collector):
    """Collects the state of one manager."""

    def __init__(self, manager: ModelManager, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: monotonic seconds, that of the readings."""
        self._manager, self._clock = manager, clock

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: what there is shows when it is collected."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every gauge, of one moment."""
        scaler = self._manager.scaler
        status = scaler.status()
        latest = scaler.monitor.latest or status.reading
        # Without RAM a reading says nothing to the decision, which keeps what the one before said.
        seen = latest is not None and latest.usage(RAM) is not None
        yield InfoMetricFamily(
            "scaler_build", "The version.", {"version": __version__, "python_version": platform.python_version()}
        )
        yield from _levels(status)
        yield from _usage(status.usage if seen else {})
        yield from _limits(status)
        yield from _forecasts(status if seen else None, scaler.analyze_resource_trends() if seen else {})
        yield from _steps(status)
        yield from _learned(status)
        yield from self._sensing(status, latest)
        yield _one("scaler_requests_running", "Answers that run now.", self._manager.answering)
        yield _one("scaler_requests_waiting", "Requests that wait for a level now.", self._manager.waiting)

    def _sensing(self, status: Status, latest: Reading | None) -> Iterator[Metric]:
        reading = status.reading
        yield _one("scaler_monitoring", "1 while the machine is watched, else 0.", status.monitoring)
        yield _one(
            "scaler_reading_age_seconds",
            "How old the last reading is that something could be decided by.",
            None if reading is None else max(0.0, self._clock() - reading.at_s),
        )
        yield _gauge(
            "scaler_sensor_missing",
            "1 for a sensor that should answer and does not, else 0; nothing before the first reading.",
            ("sensor",),
            ()
            if latest is None
            else (((sensor,), sensor in latest.missing) for sensor in self._manager.scaler.monitor.sensors),
        )
        pressure = latest.pressure if latest is not None else None
        yield _one(
            "scaler_memory_stalled_ratio",
            "The part of the last ten seconds for which some task waited for memory, where the kernel tells.",
            None if pressure is None or pressure.memory is None else pressure.memory.some_avg10_ratio,
        )


def _levels(status: Status) -> Iterator[Metric]:
    names = (OFF, *status.projected)
    yield _states("scaler_level", "1 for the level that serves, else 0; off stands for none.", names, status.serving)
    yield _states("scaler_level_target", "1 for the level that is meant to serve, else 0.", names, status.state)
    yield _states("scaler_level_pinned", "1 for the level that a person pinned, else 0.", names, status.pinned)
    yield _one("scaler_switching", "1 while a switch is in progress, else 0.", not status.settled)
    yield InfoMetricFamily(
        "scaler_tier", "The class of machine that applies.", {"tier": status.tier} if status.tier is not None else None
    )


def _usage(usage: Mapping[str, Usage]) -> Iterator[Metric]:
    parts = [
        (resource, whose, size, used.total_bytes)
        for resource, used in usage.items()
        for whose, size in (("own", used.own_bytes), ("other", used.other_bytes))
    ]
    labels = ("resource", "whose")
    yield _gauge(
        "scaler_usage_ratio",
        "What is used of a resource, as a part of what there is: by our model, by everyone else.",
        labels,
        (((resource, whose), size / total) for resource, whose, size, total in parts),
    )
    yield _gauge(
        "scaler_usage_bytes",
        "The same in bytes.",
        labels,
        (((resource, whose), size) for resource, whose, size, _ in parts),
    )
    yield _gauge(
        "scaler_limit_bytes",
        "What there is of a resource: what the machine has, or the container may use.",
        ("resource",),
        (((resource,), used.total_bytes) for resource, used in usage.items()),
    )


def _limits(status: Status) -> Iterator[Metric]:
    policy = status.policy
    resources = dict.fromkeys(resource for takes in status.footprints.values() for resource in takes)
    thresholds = {
        name: (policy.scale_at, policy.critical_at) if name == RAM else policy.vram_thresholds for name in resources
    }
    yield _gauge(
        "scaler_scale_at_ratio",
        "The configured limit of a resource.",
        ("resource",),
        (((name,), scale_at) for name, (scale_at, _) in thresholds.items()),
    )
    yield _gauge(
        "scaler_critical_at_ratio",
        "From there on people feel it.",
        ("resource",),
        (((name,), critical_at) for name, (_, critical_at) in thresholds.items()),
    )
    yield _gauge(
        "scaler_level_limit_ratio",
        "Above this a level gives way today: scale-at, less the caution that incidents taught.",
        ("level",),
        (((level.level,), level.limit if level.takes else None) for level in status.effective),
    )
    yield _gauge(
        "scaler_footprint_bytes",
        "What a level takes of a resource, as declared or learned.",
        ("level", "resource"),
        (
            ((level, resource), size)
            for level, takes in status.footprints.items()
            for resource, size in takes.items()
            if size
        ),
    )


def _forecasts(status: Status | None, trends: Mapping[str, ResourceTrend]) -> Iterator[Metric]:
    projected = {} if status is None else status.projected
    effective = () if status is None else status.effective

    def of(name: str, words: str, figure: Callable[[ResourceTrend], float]) -> Metric:
        return _gauge(name, words, ("resource",), (((resource,), figure(one)) for resource, one in trends.items()))

    yield _gauge(
        "scaler_projected_usage_ratio",
        "What usage would be at a level, of the resource that is tightest there.",
        ("level",),
        (((level,), usage) for level, usage in projected.items()),
    )
    yield of(
        "scaler_forecast_usage_ratio",
        "What others are expected to use of a resource when the horizon has passed.",
        lambda trend: trend.forecast_other_bytes / trend.total_bytes,
    )
    yield of(
        "scaler_forecast_sigma_ratio",
        "The standard deviation that this forecast claims for itself.",
        lambda trend: trend.sigma_bytes / trend.total_bytes,
    )
    yield of("scaler_forecast_horizon_seconds", "How far ahead that looks.", lambda trend: trend.horizon_s)
    yield _gauge(
        "scaler_expected_peak_ratio",
        "The highest usage at a level that past forecasts let expect; a climb compares it with the limit.",
        ("level",),
        (((level.level,), level.expected if level.takes else None) for level in effective),
    )


def _steps(status: Status) -> Iterator[Metric]:
    """How the next step up and the next step down stand, as `scaler explain` has it."""
    names = (OFF, *status.projected)
    here = names.index(status.state)
    outlooks = {outlook.level: outlook for outlook in status.outlooks}
    next_to = {
        direction: outlooks[names[place]]
        for direction, place in (("up", here + 1), ("down", here - 1))
        if 0 < place < len(names)
    }
    yield _gauge(
        "scaler_guard_open",
        "1 for a condition of the next step up or down that is met now, 0 for one that stands in the way.",
        ("direction", "level", "guard"),
        (
            # The one that stands in the way where it holds.
            ((direction, outlook.level, "not_backing_off"), not found.holds)
            if found.guard == "backing_off"
            else ((direction, outlook.level, found.guard), found.holds)
            for direction, outlook in next_to.items()
            for found in outlook.findings
        ),
    )
    yield _gauge(
        "scaler_step_wait_seconds",
        "The time until the next step up or down if readings stay as they are; none if that will not bring it.",
        ("direction", "level"),
        (((direction, outlook.level), outlook.wait_s) for direction, outlook in next_to.items()),
    )


def _learned(status: Status) -> Iterator[Metric]:
    yield _gauge(
        "scaler_dwell_seconds",
        "For how long a climb to a level must have been possible; longer after wasted ones.",
        ("level",),
        (((level.level,), level.dwell_s) for level in status.effective),
    )
    yield _gauge(
        "scaler_backoff_seconds",
        "For how much longer a level that failed is left alone.",
        ("level",),
        (((level.level,), level.backs_off_s) for level in status.effective),
    )
    yield _gauge(
        "scaler_wasted_climbs",
        "Climbs to a level in a row that had to be undone soon.",
        ("level",),
        (((level.level,), level.wasted) for level in status.effective),
    )


def _one(name: str, words: str, value: float | None) -> GaugeMetricFamily:
    return _gauge(name, words, (), (((), value),))


def _gauge(name: str, words: str, labels: tuple[str, ...], series: Series) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=labels)
    for values, value in series:
        if value is not None:
            family.add_metric(values, value)
    return family


def _states(name: str, words: str, states: tuple[str, ...], now: str | None) -> GaugeMetricFamily:
    """One series a state. OpenMetrics' own kind for it would have the label be called as the metric is, and could not
    be joined with the others by their label.
    """
    return _gauge(name, words, ("level",), (((state,), state == now) for state in states))
