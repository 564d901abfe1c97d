"""What has happened, counted as it happens: decisions, switches, failures, answers, and how forecasts turned out.

Owns the counters and histograms of one scaler, in a registry that is handed in. Takes the scaler's events, which come
on the thread that caused them, and the courses of requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scaler.courses import OUTCOMES, Course
from scaler.events import (
    AnswerHandedOver,
    BudgetLowered,
    DecisionMade,
    Drained,
    ModelDied,
    PersonTold,
    Reconfigured,
    StandbyLost,
    SwitchDone,
    SwitchFailed,
    UnloadFailed,
)
from scaler.levels import OFF
from scaler.metrics.foresight import Foresight
from scaler.monitor import ReadingTaken, SensorLost
from scaler.proactive import Event, ProactiveScaler

SWITCH_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
"""From a standby that takes over at once to a large model on a slow disk."""
FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
REQUEST_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
ERROR_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Parts of the total: the shipped band is 0.03 to 0.04 wide."""


class _Switching(NamedTuple):
    ticket: int
    direction: str
    began_s: float


class Happenings:
    """Counts from the moment on at which it is made."""

    def __init__(
        self, scaler: ProactiveScaler, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``clock``: monotonic seconds, the scaler's."""
        self._scaler, self._clock = scaler, clock
        self._switching: _Switching | None = None
        self._foresight = Foresight()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(name, words, labels, registry=registry)

        def histogram(name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, words, labels, buckets=buckets, registry=registry)

        self._decisions = counter(
            "scaler_decisions_total", "Changes of the state, by what caused them.", "trigger", "direction"
        )
        self._switches = histogram(
            "scaler_switch_seconds",
            "The time from a decision to its level's serving, to its failure, or to the next decision.",
            SWITCH_BUCKETS_S,
            *("direction", "outcome"),
        )
        self._loads = histogram(
            "scaler_switch_load_seconds",
            "The time that loading took in switches that loaded a level.",
            SWITCH_BUCKETS_S,
            "direction",
        )
        self._by_level = {
            SwitchFailed: counter("scaler_switch_failures_total", "Switches to a level that failed.", "level"),
            ModelDied: counter("scaler_model_deaths_total", "Models that ended without having been asked to.", "level"),
            StandbyLost: counter(
                "scaler_standby_losses_total", "Times that a level did not stand by as it should.", "level"
            ),
            UnloadFailed: counter("scaler_unload_failures_total", "Models that were told to go and stayed.", "level"),
            BudgetLowered: counter(
                "scaler_budgets_lowered_total", "Times that new answers at a level got a lower budget.", "level"
            ),
        }
        self._drains = histogram(
            "scaler_drain_seconds",
            "The time that running answers took to leave a level that gave way.",
            SWITCH_BUCKETS_S,
            "level",
        )
        self._handovers = counter(
            "scaler_handovers_total",
            "Answers that another level went on with, by the level they left and why.",
            *("level", "reason"),
        )
        self._notices = counter("scaler_notices_total", "Notices to people.", "kind")
        self._reconfigurations = counter("scaler_reconfigurations_total", "Times that the configuration was read anew.")
        self._sensor_losses = counter("scaler_sensor_losses_total", "Times that a sensor ceased to answer.", "sensor")
        self._requests = counter(
            "scaler_requests_total",
            "Requests that have ended, by the level that made the end of the answer (off: none made any) and how.",
            *("level", "outcome"),
        )
        self._tokens = counter(
            "scaler_tokens_total", "Tokens that a level made, by how its part of the answer ended.", "level", "outcome"
        )
        self._first_tokens = histogram(
            "scaler_time_to_first_token_seconds",
            "The time from a request's arrival to the first token, waiting for a level included.",
            FIRST_TOKEN_BUCKETS_S,
            "level",
        )
        self._durations = histogram(
            "scaler_request_seconds", "The time from a request's arrival to its end.", REQUEST_BUCKETS_S, "outcome"
        )
        self._waits = histogram(
            "scaler_request_wait_seconds", "Of it, the time that was waited for a level.", REQUEST_BUCKETS_S
        )
        self._last_error = Gauge(
            "scaler_forecast_error_ratio",
            "What the last forecast of the others' use that came due expected, less what was read then.",
            ["resource"],
            registry=registry,
        )
        self._errors = histogram(
            "scaler_forecast_absolute_error_ratio",
            "How far forecasts of the others' use were off when they came due, in either direction.",
            ERROR_BUCKETS,
            "resource",
        )

    def show_levels(self) -> None:
        """Have a count of 0 for what has not happened yet: an alert can tell a first time only from there."""
        for level in (OFF, *self._scaler.ladder.names):
            for outcome in OUTCOMES:
                self._requests.labels(level, outcome)
        for level in self._scaler.ladder.names:
            for by_level in self._by_level.values():
                by_level.labels(level)
            for reason in ("gave_way", "failed"):
                self._handovers.labels(level, reason)
        for sensor in self._scaler.monitor.sensors:
            self._sensor_losses.labels(sensor)

    def take(self, event: Event) -> None:
        """Count an event. Must not raise: the scaler's other subscribers would hear of it in its log only."""
        if isinstance(event, ReadingTaken):
            self._judge(event.reading.at_s)
        elif isinstance(event, DecisionMade):
            self._decided(event)
        elif isinstance(event, SwitchDone):
            self._done(event)
        elif isinstance(event, Drained):
            self._drains.labels(event.level).observe(event.took_s)
        elif isinstance(event, AnswerHandedOver):
            self._handovers.labels(event.level, "failed" if event.reason is not None else "gave_way").inc()
        elif isinstance(event, PersonTold):
            self._notices.labels(event.kind).inc()
        elif isinstance(event, Reconfigured):
            self._reconfigurations.inc()
        elif isinstance(event, SensorLost):
            self._sensor_losses.labels(event.sensor).inc()
        elif (by_level := self._by_level.get(type(event))) is not None:
            by_level.labels(event.level).inc()  # type: ignore[union-attr]  # those of the table have one
            if isinstance(event, SwitchFailed):
                self._end_switch("failed", event.ticket)

    def ended(self, course: Course) -> None:
        """Count a request that has ended."""
        assert course.ended_s is not None  # as it has
        level = course.level
        self._requests.labels(level, course.outcome).inc()
        self._durations.labels(course.outcome).observe(course.ended_s - course.began_s)
        self._waits.observe(course.waited_s)
        for part in course.parts:
            if part.tokens:
                self._tokens.labels(part.level, part.outcome).inc(part.tokens)
        if (first_token_s := course.first_token_s) is not None:
            first = next(part.level for part in course.parts if part.first_token_s is not None)
            self._first_tokens.labels(first).observe(first_token_s)

    def _decided(self, event: DecisionMade) -> None:
        decision = event.switch.decision
        self._end_switch("overtaken")
        self._decisions.labels(decision.trigger, decision.direction).inc()
        self._switching = _Switching(decision.ticket, decision.direction, self._clock())

    def _done(self, event: SwitchDone) -> None:
        switching = self._switching
        if switching is not None and switching.ticket == event.ticket:
            self._switches.labels(switching.direction, "done").observe(event.took_s)
            if event.load_s is not None:
                self._loads.labels(switching.direction).observe(event.load_s)
            self._switching = None

    def _end_switch(self, outcome: str, ticket: int | None = None) -> None:
        switching = self._switching
        if switching is not None and ticket in (None, switching.ticket):
            self._switches.labels(switching.direction, outcome).observe(self._clock() - switching.began_s)
            self._switching = None

    def _judge(self, at_s: float) -> None:
        if not self._foresight.due(at_s):
            return
        for resource, error in self._foresight.judge(at_s, self._scaler.analyze_resource_trends()).items():
            if error is None:
                self._last_error.remove(resource)
            else:
                self._last_error.labels(resource).set(error)
                self._errors.labels(resource).observe(abs(error))
