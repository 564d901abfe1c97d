"""The endpoint under requests made of its own description, right and wrong: no fault of its own, no trace, no hang.

`make fuzz` sends many more. The figures stand at the end of the tests' output.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.schemas import OpenApiSchema

from scaler.serving.openapi import PATH

Running = Callable[..., Any]
EACH = int(os.environ.get("FUZZ", "12"))
"""How many requests of each kind and route."""
LIMIT_S = 60.0
"""An answer that takes longer hangs: the demo model needs a second at most."""


def described(url: str) -> OpenApiSchema:
    with urlopen(f"{url}{PATH}", timeout=30) as response:
        return schemathesis.openapi.from_dict(json.load(response))


def short(body: Any) -> Any:
    """A body whose answer is short: what is tested is the door, not how long a model can go on."""
    if isinstance(body, dict) and ("messages" in body or "prompt" in body or "input" in body):
        return {"max_tokens": 4, "max_output_tokens": 4, "options": {"num_predict": 4}, **body}
    return body


@pytest.mark.timeout(0 if EACH > 12 else 400)
def test_no_request_of_its_description_brings_it_down(
    serving: Running, caplog: pytest.LogCaptureFixture, figures: Callable[[str], None]
) -> None:
    """Every answer is one that the description knows, in time; the log stays empty and the daemon well."""
    statuses: Counter[int] = Counter()
    slowest, began = 0.0, time.monotonic()
    caplog.set_level(logging.WARNING)
    with serving(levels=("small",)) as (url, manager, _):
        schema = described(url)
        known = {int(code) for code in schema.raw_schema["paths"]["/status"]["get"]["responses"]} | {405, 415}

        def ask(case: Any) -> None:
            nonlocal slowest
            case.body = short(case.body)
            asked_s = time.monotonic()
            answer = case.call(base_url=url, timeout=LIMIT_S)
            slowest = max(slowest, time.monotonic() - asked_s)
            statuses[answer.status_code] += 1
            assert answer.status_code in known, f"{case.as_curl_command()}: {answer.text[:500]}"

        for found in schema.get_all_operations():
            operation = found.ok()  # type: ignore[union-attr]  # or raises what is wrong with the description
            # A stream without an end is another test's.
            if operation.path == "/events":
                continue
            run(operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE), ask)
            # Where nothing is described, nothing can be wrong.
            with suppress(Unsatisfiable):
                run(operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE), ask)
        with urlopen(f"{url}/healthz", timeout=30) as response:
            assert json.load(response)["status"] == "ok"
        assert not manager.answering
    told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    figures(
        f"endpoint, by its description: {statuses.total()} requests in {time.monotonic() - began:.0f} s ({told}), "
        f"the slowest {slowest:.1f} s; no 500, nothing in the log"
    )
    assert statuses.total() > EACH * 20
    assert not caplog.records, caplog.text


def run(cases: st.SearchStrategy[Any], ask: Callable[[Any], None]) -> None:
    @seed(20261125)
    @settings(
        max_examples=EACH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def each(case: Any) -> None:
        ask(case)

    each()


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *(
            "messages",
            "model",
            "stream",
            "prompt",
            "input",
            "max_tokens",
            "n",
            "stop",
            "tools",
            "tool_choice",
            "format",
        ),
        *("response_format", "options", "images", "level", "logit_bias", "grammar", "stream_options", "keep_alive"),
    ]
)
MONSTERS = (
    b'{"messages":' * 5000,
    b"[" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "n": 1e308}',
    b'{"messages": [' + b'{"role": "user", "content": "x"},' * 20_000 + b"{}]}",
    b'{"messages": [{"role": "user", "content": ' + b"[" * 500 + b"]" * 500 + b"}]}",
    b'{"model": "\\u001b[31m\\nforged", "messages": [{"role": "user", "content": "x"}]}',
    b"\xef\xbb\xbf{}",
    b"{}" + b" " * 1_000_000,
    b"NaN",
)
"""Drawn by their number, for they are large."""
BODIES = (
    st.dictionaries(KEYS, JSONISH, max_size=6).map(lambda body: json.dumps(body).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=200)
    | st.integers(0, len(MONSTERS) - 1)
)
POSTED = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/api/chat", "/api/generate",
    "/api/show", "/api/pull", "/pin", "/%00", "/v1/models/%0a%0d", "//", "/..%2f..%2fetc%2fpasswd",
)  # fmt: skip


@pytest.mark.timeout(0 if EACH > 12 else 400)
def test_no_bytes_bring_it_down(
    serving: Running, caplog: pytest.LogCaptureFixture, figures: Callable[[str], None]
) -> None:
    """Bodies that no description has: nested without end, numbers without end, halves of characters, plain noise."""
    statuses: Counter[int] = Counter()
    slowest, began = 0.0, time.monotonic()
    with serving(levels=("small",)) as (url, _, _):
        parts = urlsplit(url)
        assert parts.hostname is not None

        @seed(20261125)
        @settings(max_examples=EACH * 50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(
            st.sampled_from(POSTED),
            st.sampled_from(["POST", "POST", "POST", "POST", "PUT", "GET", "DELETE", "OPTIONS", "PATCH"]),
            BODIES,
        )
        def each(path: str, method: str, drawn: bytes | int) -> None:
            nonlocal slowest
            body = MONSTERS[drawn] if isinstance(drawn, int) else drawn
            asked_s = time.monotonic()
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=LIMIT_S)
            try:
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            slowest = max(slowest, time.monotonic() - asked_s)
            statuses[answer.status] += 1
            assert answer.status != 500, (path, body[:300], content[:300])
            assert b"Traceback" not in content

        each()
        with urlopen(f"{url}/healthz", timeout=30) as response:
            assert json.load(response)["status"] == "ok"
    told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    figures(
        f"endpoint, by noise: {statuses.total()} requests in {time.monotonic() - began:.0f} s ({told}), "
        f"the slowest {slowest:.1f} s; no 500, nothing in the log"
    )
    assert not caplog.records, caplog.text
