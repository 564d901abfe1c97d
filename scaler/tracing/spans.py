"""Spans of requests and switches, for an OTLP receiver.

Owns their names, attributes and links. A request's span goes on with its client's trace; under it is a span for each
wait for a level and for each level's part of the answer. A switch is a trace of its own, with its steps, and linked
with the answers that it cut. Nothing of a question or an answer is ever in one, nor what a runtime says of a request,
which may quote it.

Source of the attributes: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from scaler import __version__
from scaler.courses import Course, Part
from scaler.events import DecisionMade, Hurried, SwitchDone, SwitchFailed
from scaler.manager import ModelManager
from scaler.proactive import Event
from scaler.switching import Step

log = logging.getLogger(__name__)

AUTO = "auto"
"""What a request asks for that insists on no level."""
WORTH_TELLING_S = 0.01
"""A shorter wait for a level was none: one served."""
FLUSH_S = 2.0
"""For so long at the end what was not sent yet may take; a receiver that is gone must not hold up the daemon's end."""

Attributes = dict[str, str | bool | int | float]


class Tracing:
    """Follows the requests and switches of one manager, and sends spans to where the OTEL_* variables say."""

    def __init__(self, manager: ModelManager, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: monotonic seconds, the manager's."""
        self._manager, self._clock = manager, clock
        ours = Resource.create({"service.name": "scaler", "service.version": __version__})
        # What the person calls this service goes before.
        provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(_Tells(self._exporter)))
        self._provider = provider
        self._tracer = provider.get_tracer("scaler", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._switch: _Switching | None = None

    async def lasting(self, _: object) -> AsyncGenerator[None, None]:
        """Follow what comes for as long as an application runs, as its ``cleanup_ctx`` has it. On the effects' loop."""
        manager = self._manager
        manager.courses.follow = self._follow
        leave = [manager.scaler.subscribe(self._take), manager.on_step(self._step)]
        yield
        manager.courses.follow = None
        for way_out in leave:
            way_out()

    def close(self) -> None:
        """Send what was not sent yet, for 2 s; returns within twice that. Safe to call twice."""
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(FLUSH_S)
        if last.is_alive():
            # Ends what it waits for between one attempt and the next.
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
            last.join(FLUSH_S)

    def span(
        self,
        name: str,
        began_ns: int,
        attributes: Attributes,
        *,
        under: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        links: tuple[SpanContext, ...] = (),
    ) -> Span:
        """Begin one; ``under`` None makes it the first of a trace."""
        return self._tracer.start_span(
            name,
            # Not None, for which the library takes whatever is current.
            context=Context() if under is None else under,
            kind=kind,
            attributes=attributes,
            links=[Link(one) for one in links],
            start_time=began_ns,
        )

    @property
    def switching(self) -> Span | None:
        """The switch that is in progress, or was last."""
        return None if self._switch is None else self._switch.span

    def headers(self, span: Span) -> Mapping[str, str]:
        """What tells another program to go on with a span's trace."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(span, Context()))
        return headers

    def _follow(self, course: Course, headers: Mapping[str, str]) -> _Following:
        return _Following(self, course, self._propagator.extract(headers, Context()), self._epoch_ns())

    def _epoch_ns(self) -> int:
        """The wall clock's nanoseconds at 0 of the monotonic clock."""
        return time.time_ns() - _ns(self._clock())

    # ---------------------------------------------------------------- switches

    def _take(self, event: Event) -> None:
        if isinstance(event, DecisionMade):
            self._decided(event)
            return
        switch = self._switch
        if switch is None:
            return
        if isinstance(event, Hurried):
            switch.span.add_event("drain limits shrank: usage turned critical")
        elif isinstance(event, SwitchDone) and event.ticket == switch.ticket:
            if event.load_s is not None:
                switch.span.set_attribute("scaler.switch.load_s", event.load_s)
            switch.end("done")
        elif isinstance(event, SwitchFailed) and event.ticket == switch.ticket:
            switch.span.set_status(Status(StatusCode.ERROR, event.reason))
            switch.span.set_attribute("scaler.switch.still_serving", event.still_serving)
            switch.end("failed")

    def _decided(self, event: DecisionMade) -> None:
        if self._switch is not None:
            self._switch.end("overtaken")
        switch, decision = event.switch, event.switch.decision
        attributes: Attributes = {
            "scaler.switch.source": decision.source,
            "scaler.switch.dest": decision.dest,
            "scaler.switch.trigger": decision.trigger,
            "scaler.switch.reason": decision.reason,
            "scaler.switch.beside": switch.beside,
            "scaler.switch.drain_s": switch.drain_s,
            "scaler.switch.drain_tokens": switch.drain_tokens,
        }
        # From the reading that decided it on: the event may come a little after the first step has begun.
        span = self.span(f"switch to {decision.dest}", self._epoch_ns() + _ns(decision.at_s), attributes)
        self._switch = _Switching(decision.ticket, span)

    def _step(self, step: Step) -> None:
        switch, epoch_ns = self._switch, self._epoch_ns()
        # What is cleared up behind no switch, as when scaler ends, is a trace of its own.
        under = None if switch is None or switch.ended else set_span_in_context(switch.span, Context())
        attributes: Attributes = {"scaler.level": step.level}
        span = self.span(f"{step.kind} {step.level}", epoch_ns + _ns(step.began_s), attributes, under=under)
        if step.error is not None:
            span.set_status(Status(StatusCode.ERROR, step.error))
        span.end(epoch_ns + _ns(step.ended_s))


@dataclass(slots=True)
class _Switching:
    ticket: int
    span: Span
    ended: bool = False

    def end(self, outcome: str) -> None:
        if not self.ended:
            self.ended = True
            self.span.set_attribute("scaler.switch.outcome", outcome)
            self.span.end()


class _Tells(SpanExporter):
    """Says once that a receiver takes no spans, and once that it takes them again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter, self._lost = exporter, 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.warning("traces are taken again; %d spans before this are lost", self._lost)
            self._lost = 0
            return result
        if not self._lost:
            log.warning(
                "the receiver of traces that the environment names does not take them, and serving goes on without; "
                "start it, or unset OTEL_EXPORTER_OTLP_ENDPOINT"
            )
        self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Following:
    """The spans of one request."""

    def __init__(self, tracing: Tracing, course: Course, of_client: Context, epoch_ns: int) -> None:
        """``epoch_ns``: the wall clock's nanoseconds at 0 of the monotonic clock, one for all of its spans."""
        self._tracing, self._epoch_ns, self._kind = tracing, epoch_ns, course.kind
        asked_for = course.insists_on or AUTO
        self._span = tracing.span(
            f"{course.kind} {asked_for}",
            self._wall(course.began_s),
            {**self._named(asked_for)},
            under=of_client,
            kind=SpanKind.SERVER,
        )
        self._under = set_span_in_context(self._span, Context())
        self._part: Span | None = None
        self._gave_way_to: tuple[SpanContext, ...] = ()

    def asks(self, part: Part) -> Mapping[str, str]:
        self._waited(part.waiting_since_s, part.began_s)
        self._part = self._tracing.span(
            f"{self._kind} {part.level}",
            self._wall(part.began_s),
            self._named(part.level),
            under=self._under,
            kind=SpanKind.CLIENT,
            links=self._gave_way_to,
        )
        return self._tracing.headers(self._part)

    def left(self, part: Part) -> None:
        span = self._part
        if span is None or part.ended_s is None:
            return
        span.set_attribute("gen_ai.response.model", part.level)
        span.set_attribute("gen_ai.usage.output_tokens", part.tokens)
        span.set_attribute("scaler.outcome", part.outcome)
        if part.first_token_s is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", part.first_token_s - part.began_s)
        if part.outcome in ("failed", "rejected", "not_asked"):
            _fail(span, part.outcome)
        switching = self._tracing.switching
        if part.outcome == "gave_way" and switching is not None:
            self._gave_way_to = (switching.get_span_context(),)
            span.add_link(switching.get_span_context())
            switching.add_link(span.get_span_context())
        span.end(self._wall(part.ended_s))

    def ended(self, course: Course) -> None:
        if course.ended_s is None:
            return
        self._waited(course.ended_s - course.waited_in_vain_s, course.ended_s)
        span = self._span
        span.set_attribute("gen_ai.response.model", course.level)
        span.set_attribute("gen_ai.usage.output_tokens", course.tokens)
        span.set_attribute("scaler.level", course.level)
        span.set_attribute("scaler.levels", [part.level for part in course.parts if part.tokens])
        span.set_attribute("scaler.handed_over", course.handed_over)
        span.set_attribute("scaler.waited_s", course.waited_s)
        span.set_attribute("scaler.outcome", course.outcome)
        if course.first_token_s is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", course.first_token_s)
        if course.outcome not in ("completed", "shortened", "abandoned"):
            _fail(span, course.outcome)
        span.end(self._wall(course.ended_s))

    def _waited(self, since_s: float, until_s: float) -> None:
        if until_s - since_s >= WORTH_TELLING_S:
            wait = self._tracing.span(
                "wait for a level", self._wall(since_s), {}, under=self._under, links=self._gave_way_to
            )
            wait.end(self._wall(until_s))

    def _wall(self, at_s: float) -> int:
        return self._epoch_ns + _ns(at_s)

    def _named(self, model: str) -> Attributes:
        return {
            "gen_ai.operation.name": self._kind,
            "gen_ai.provider.name": "scaler",
            "gen_ai.request.model": model,
        }


def _fail(span: Span, kind: str) -> None:
    """Without a description, as that could quote the request."""
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
