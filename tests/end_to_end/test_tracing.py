"""Traces as an OTLP receiver gets them: a request that is handed over in a switch, the switch, and what goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from scaler.errors import ConfigError
from scaler.serving import app
from scaler.serving.app import Endpoint
from scaler.tracing import ENDPOINTS, HEADERS, PROTOCOLS, spans, tracing
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine
from tests.end_to_end.test_ladder import settles_at
from tests.runtimes.openai_server import OpenAIServer

Serving = Callable[..., Any]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
JSON = {"Content-Type": "application/json"}
SECRET = "my name is Ada and nobody shall know"
TOKENS = 300
COUNTED = "".join(f" {number}" for number in range(1, TOKENS + 1))
"""What a demo model has said by then: a number is a token."""


class Receiver:
    """Takes spans by OTLP over HTTP, in a thread of its own."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.service: dict[str, Any] = {}
        self.spans: list[Span] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="OTLP receiver")
        self._thread.start()
        self._runner = self._do(self._start())

    def _do(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.bodies.append(body)
        told = ExportTraceServiceRequest()
        told.ParseFromString(body)
        for resource in told.resource_spans:
            self.service = attributes(resource.resource)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return web.Response(content_type="application/x-protobuf")

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span or a resource."""
    return {one.key: plain(one.value) for one in of.attributes}


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return getattr(value, kind) if kind is not None else None


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that the environment names, to which all is sent however much else the machine has to do."""
    one = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", one.url)
    monkeypatch.setattr(spans, "FLUSH_S", PATIENCE_S)
    monkeypatch.setattr(app, "CUT_OFF_S", PATIENCE_S)
    try:
        yield one
    finally:
        one.close()


def ask(url: str, text: str, on_chunk: Callable[[str], None] = lambda _: None, **besides: Any) -> str:
    """The text of a streamed answer to a client that traces."""
    body = {"messages": [{"role": "user", "content": text}], "stream": True, "temperature": 0, **besides}
    headers = {**JSON, "traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "ours=1"}
    said = ""
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=PATIENCE_S) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    said += choice["delta"].get("content") or ""
                on_chunk(said)
    return said


def test_a_trace_shows_an_answer_that_two_levels_made_and_the_switch_between_them(
    serving: Serving, machine: Machine, receiver: Receiver
) -> None:
    """Under the client's own span: who made what of it, what was waited for, and why."""

    def press(said: str) -> None:
        if len(said) > 20:
            # Both would be too much together: the one has to go before the other comes.
            machine.other_bytes = 3560 * MIB

    with serving(levels=("small", "medium"), policy={"drain_tokens": 40}) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        assert ask(url, f"Count to a thousand. {SECRET}", press, max_tokens=TOKENS) == COUNTED
        settles_at(manager, watch, "small")

    (request,) = receiver.named("chat auto")
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.kind) == (
        TRACE,
        PARENT,
        Span.SPAN_KIND_SERVER,
    )
    told = attributes(request)
    assert {key: told[key] for key in told if key.startswith(("gen_ai.o", "gen_ai.req", "gen_ai.response.m"))} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "auto",
        "gen_ai.response.model": "small",
    }
    assert (told["scaler.levels"], told["scaler.handed_over"]) == (["medium", "small"], 1)
    assert (told["scaler.level"], told["scaler.outcome"]) == ("small", "completed")

    (medium,), (small,) = receiver.named("chat medium"), receiver.named("chat small")
    # On a machine that has more to do, the asking takes a while, too.
    wait = receiver.named("wait for a level")[-1]
    for child in (medium, small, wait):
        assert (child.trace_id, child.parent_span_id) == (request.trace_id, request.span_id)
        assert request.start_time_unix_nano <= child.start_time_unix_nano
        assert child.end_time_unix_nano <= request.end_time_unix_nano
    assert medium.end_time_unix_nano <= wait.start_time_unix_nano
    assert wait.end_time_unix_nano <= small.start_time_unix_nano
    assert attributes(medium)["scaler.outcome"] == "gave_way"
    made = [attributes(part)["gen_ai.usage.output_tokens"] for part in (medium, small)]
    assert sum(made) == told["gen_ai.usage.output_tokens"] == TOKENS
    assert all(made)

    (switch,) = receiver.named("switch to small")[-1:]
    what = attributes(switch)
    assert (what["scaler.switch.source"], what["scaler.switch.outcome"]) == ("medium", "done")
    assert "usage at medium" in what["scaler.switch.reason"]
    assert not switch.parent_span_id
    for part in (medium, small, wait):
        assert [link.span_id for link in part.links] == [switch.span_id]
    assert [link.span_id for link in switch.links] == [medium.span_id]
    steps = {span.name: span for span in receiver.spans if span.parent_span_id == switch.span_id}
    assert set(steps) == {"drain medium", "unload medium", "load small"}
    for step in steps.values():
        assert switch.start_time_unix_nano <= step.start_time_unix_nano
        assert step.end_time_unix_nano <= switch.end_time_unix_nano
    assert receiver.service["service.name"] == "scaler"


def test_no_word_of_a_question_or_an_answer_is_sent(serving: Serving, receiver: Receiver) -> None:
    """Nor where the runtime refuses a request and quotes it."""
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        assert "small" in ask(url, SECRET)
        with pytest.raises(Exception, match="400"):
            ask(url, SECRET, grammar=f'root ::= "{SECRET}')
    sent = b"".join(receiver.bodies)
    assert b"chat small" in sent
    assert SECRET.encode() not in sent
    assert b"I am" not in sent
    assert "rejected" in [attributes(span).get("error.type") for span in receiver.named("chat auto")]


def test_a_runtime_with_http_goes_on_with_the_trace(serving: Serving, receiver: Receiver) -> None:
    """Its own spans, if it makes any, stand under the level's part of the answer."""
    with OpenAIServer(mini="I am mini.") as server:
        level = {"name": "away", "runtime": "openai", "model": "mini", "url": server.url}
        with serving(ladder=[level]) as (url, manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "away")
            assert ask(url, "Who are you?") == " I am mini."
            (headers,) = server.headers
    (part,) = receiver.named("chat away")
    assert headers["traceparent"] == f"00-{TRACE}-{part.span_id.hex()}-01"
    assert headers["tracestate"] == "ours=1"


def test_an_answer_that_the_end_of_the_daemon_cuts_off_is_still_told(
    running: Callable[..., Any], receiver: Receiver
) -> None:
    """It is just then that somebody looks at what went on."""
    with running(levels=("small",)) as (manager, watch):
        endpoint = Endpoint(manager, "127.0.0.1", 0)
        endpoint.start()
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        (model,) = manager._switcher.pids()
        body = {"messages": [{"role": "user", "content": "Count."}], "stream": True, "max_tokens": 2000}
        request = Request(f"{endpoint.url}/v1/chat/completions", json.dumps(body).encode(), JSON)
        with urlopen(request, timeout=PATIENCE_S) as answer:
            assert answer.readline().startswith(b"data: ")
            # It cannot come to its end in the time that the daemon gives it.
            os.kill(model, signal.SIGSTOP)
            endpoint.stop()
            os.kill(model, signal.SIGCONT)
        (part,), (whole,) = receiver.named("chat small"), receiver.named("chat auto")
    assert attributes(part)["scaler.outcome"] == attributes(whole)["scaler.outcome"] == "abandoned"
    assert attributes(whole)["gen_ai.usage.output_tokens"] > 0


def test_without_the_variables_nothing_of_it_is_imported_or_passed_on(serving: Serving) -> None:
    """It costs nothing when it is off, and a client's header goes no further."""
    with OpenAIServer(mini="I am mini.") as server:
        level = {"name": "away", "runtime": "openai", "model": "mini", "url": server.url}
        with serving(ladder=[level]) as (url, manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "away")
            ask(url, "Who are you?")
            assert manager.courses.follow is None
            assert "traceparent" not in server.headers[0]
    code = "import sys, scaler.serving.app; print('opentelemetry' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_receiver_that_is_not_there_costs_no_answer_and_does_not_hold_up_the_end(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Traces are for people; answers go on without, and it is said once."""
    gone = Receiver()
    gone.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", gone.url)
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        assert "small" in ask(url, "Who are you?")
        began_s = time.monotonic()
    # Its grace for answers, for spans, and for the models.
    assert time.monotonic() - began_s < 20
    said = [record.getMessage() for record in caplog.records if record.name.startswith("scaler.")]
    assert sum("serving goes on without" in line for line in said) == 1


def test_what_lacks_is_told_before_anything_is_served(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error that names the extra, or the variable that cannot be used."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from scaler.errors import MissingExtra\n"
        "from scaler.tracing import tracing\n"
        f"try: tracing(None, {{{ENDPOINTS[1]!r}: 'http://127.0.0.1:4318'}})\n"
        "except MissingExtra as error: print(error)\n"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "opentelemetry" in told
    assert "[otel]" in told
    with serving(levels=("small",)) as (_, manager, _):
        monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:4318")
        monkeypatch.setenv(PROTOCOLS[1], "grpc")
        with pytest.raises(ConfigError, match="'grpc' is not spoken here; expected http/protobuf"):
            Endpoint(manager, "127.0.0.1", 0)
        monkeypatch.setenv(PROTOCOLS[1], "")
        monkeypatch.setenv(HEADERS[1], "Authorization: Bearer SECRET")
        with pytest.raises(ConfigError, match="expected NAME=VALUE") as told_headers:
            Endpoint(manager, "127.0.0.1", 0)
        assert "SECRET" not in str(told_headers.value)
        monkeypatch.setenv(HEADERS[1], "authorization=Bearer%20SECRET")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
        with pytest.raises(ConfigError, match=r"look at the OTEL_\* variables"):
            Endpoint(manager, "127.0.0.1", 0)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {ENDPOINTS[1]: ""},
        {ENDPOINTS[1]: "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINTS[0]: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_it_is_off_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    """As OpenTelemetry's variables have it."""
    assert tracing(None, environment) is None  # type: ignore[arg-type]  # it is not looked at
