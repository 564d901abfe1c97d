"""The endpoint as programs use it: the official client, curl's way, and what happens when things go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from scaler.demo.models import COUNTS_TO
from scaler.errors import ConfigError, ScalerError
from scaler.serving import app
from scaler.serving.app import Endpoint
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine
from tests.end_to_end.test_ladder import COUNTED, settles_at

Running = Callable[..., Any]
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who are you?"}]
ASK = {"messages": MESSAGES}


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def post(url: str, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


def test_the_official_client_chats_whole_and_streamed(serving: Running) -> None:
    """What people have works unchanged."""
    with serving(policy={"max_level": "small"}) as (url, _, _):
        talk = client(url)
        assert [model.id for model in talk.models.list()] == ["auto", "small", "medium", "large"]
        whole = talk.chat.completions.create(model="auto", messages=MESSAGES)
        assert "small" in (whole.choices[0].message.content or "")
        assert whole.choices[0].finish_reason == "stop"
        assert whole.system_fingerprint == "scaler-small"
        assert whole.usage is not None
        assert whole.usage.completion_tokens > 0
        stream = talk.chat.completions.create(
            model="auto", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None


def test_the_level_that_answers_stands_in_a_header(serving: Running) -> None:
    """Programs can tell who answered."""
    with serving() as (url, _, _):
        status, body, headers = post(f"{url}/v1/chat/completions", json.dumps(ASK).encode())
        assert status == 200
        assert headers["x-scaler-level"] == "small"
        assert body["model"] == "small"


def test_a_prompt_is_completed_whole_and_streamed(serving: Running) -> None:
    """The older form of request, which editors still use."""
    with serving() as (url, _, _):
        talk = client(url)
        whole = talk.completions.create(model="auto", prompt="The small", max_tokens=3, temperature=0)
        assert whole.choices[0].text == " model speaks :"
        assert whole.choices[0].finish_reason == "length"
        stream = talk.completions.create(model="auto", prompt="The small", max_tokens=3, temperature=0, stream=True)
        assert "".join(choice.text for chunk in stream for choice in chunk.choices) == whole.choices[0].text


def test_one_who_insists_on_a_level_is_answered_by_that_or_told_why_not(serving: Running, machine: Machine) -> None:
    """No switch is made for it."""
    machine.other_bytes = 3000 * MIB
    with serving(queue={"limit": 4, "wait_s": 0.3}) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        body = {"messages": MESSAGES}
        status, answer, _ = post(f"{url}/v1/chat/completions", json.dumps({**body, "model": "small"}).encode())
        assert (status, answer["model"]) == (200, "small")
        status, answer, headers = post(f"{url}/v1/chat/completions", json.dumps({**body, "model": "large"}).encode())
        assert status == 503
        assert "only large was asked for, and small serves" in answer["error"]["message"]
        assert int(headers["Retry-After"]) > 0


def test_a_stream_goes_on_unbroken_when_its_model_is_killed(serving: Running, machine: Machine) -> None:
    """The official client sees one whole answer, once, with its usage in the last chunk."""
    with serving(policy={"max_level": "medium"}) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        pids = list(manager._switcher.pids())
        stream = client(url).chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "Count to a thousand."}],
            stream=True,
            stream_options={"include_usage": True},
        )
        text, ids, chunk = "", set(), None
        for chunk in stream:
            ids.add(chunk.id)
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            if len(text) > 100:
                while pids:
                    os.kill(pids.pop(), signal.SIGKILL)
        assert text == COUNTED
        assert len(ids) == 1
        assert chunk is not None
        assert chunk.usage is not None
        assert chunk.usage.completion_tokens == pytest.approx(COUNTS_TO + 2, abs=2)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "JSON object"),
        (b"{}", 400, "messages"),
        (b'{"messages": []}', 400, "messages"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', 400, "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "gpt-9"}', 404, "there are: auto, small"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": 3}', 404, "there are: auto, small"),
        (b'{"messages": [{"role": "user", "content": "x"}], "prompt": "x"}', 400, "/v1/completions"),
    ],
)
def test_a_bad_request_gets_an_error_in_openais_form(serving: Running, body: bytes, status: int, words: str) -> None:
    """Clients show these messages to people."""
    with serving() as (url, _, _):
        got, answer, _ = post(f"{url}/v1/chat/completions", body)
        assert got == status
        assert words in answer["error"]["message"]


def test_what_only_the_model_can_refuse_it_refuses_in_its_own_words(serving: Running) -> None:
    """A prompt longer than the context window, with nothing that could be left out."""
    with serving() as (url, _, _):
        long = json.dumps({"messages": [{"role": "user", "content": "x" * 30_000}]}).encode()
        status, body, _ = post(f"{url}/v1/chat/completions", long)
        assert status == 400
        assert body["error"]["type"] == "exceed_context_size_error"


def test_a_long_conversation_is_fitted_to_the_context(serving: Running) -> None:
    """The system prompt and the latest turns stay; the oldest turns go."""
    with serving() as (url, _, _):
        turns = [{"role": "system", "content": "Be brief."}]
        for number in range(60):
            turns.append({"role": "user", "content": f"{number} " + "x" * 150})
            turns.append({"role": "assistant", "content": "y" * 150})
        body = json.dumps({"messages": [*turns, {"role": "user", "content": "Who are you?"}]}).encode()
        status, answer, _ = post(f"{url}/v1/chat/completions", body)
        assert status == 200
        assert "small" in answer["choices"][0]["message"]["content"]


def test_requests_wait_while_nothing_serves_and_then_hear_why(serving: Running, machine: Machine) -> None:
    """A bounded wait, then 503 with the reason and when to try again."""
    machine.other_bytes = 4050 * MIB
    with serving(queue={"limit": 1, "wait_s": 0.3}) as (url, _, _):
        status, body, headers = post(f"{url}/v1/chat/completions", json.dumps(ASK).encode())
        assert status == 503
        assert "usage at small would be" in body["error"]["message"]
        assert int(headers["Retry-After"]) > 0


def test_a_client_that_hangs_up_frees_the_model(serving: Running) -> None:
    """Nobody reads it any more, so nobody generates it any more."""
    with serving() as (url, manager, watch):
        stream = client(url).chat.completions.create(
            model="auto", messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        assert manager.answering == 1
        stream.close()
        watch.until(lambda: manager.answering == 0, "the model to be free")


def test_a_request_that_the_end_cuts_off_has_ended_before_the_endpoint_has(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes to leave off: who counts requests, or traces them, is still there."""
    # On a machine that has more to do, it may take longer than in earnest is waited for.
    monkeypatch.setattr(app, "CUT_OFF_S", PATIENCE_S)
    asked, left_off = threading.Event(), threading.Event()

    async def describe() -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10_000):
                # Its connection is closed meanwhile, which cancels it once more.
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            left_off.set()

    with running() as (manager, _):
        monkeypatch.setattr(manager, "descriptions", describe)
        endpoint = Endpoint(manager, "127.0.0.1", 0)
        endpoint.start()
        host, port = endpoint.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            line.sendall(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert asked.wait(PATIENCE_S)
            endpoint.stop()
            assert left_off.is_set()


def test_status_health_check_and_pin_answer(serving: Running) -> None:
    """What `scaler status` and its kin ask."""
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")

        def get(path: str) -> Any:
            with urllib.request.urlopen(f"{url}{path}", timeout=30) as response:
                return json.load(response)

        assert get("/healthz") == {"status": "ok", "serving": "large"}
        status = get("/status")
        assert status["state"] == "large"
        assert set(status["projected"]) == {"small", "medium", "large"}
        assert status["usage"]["ram"]["own_bytes"] > 600 * MIB
        assert get("/check")["action"] == "serve"
        request = urllib.request.Request(f"{url}/pin", b'{"level": "small"}', method="PUT")
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response) == {"pinned": "small"}
        settles_at(manager, watch, "small")


def test_a_port_in_use_and_an_open_door_are_refused_clearly(running: Running) -> None:
    """Nothing is half started."""
    with running() as (manager, _), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ScalerError, match=f"cannot listen on 127.0.0.1:{port}"):
            Endpoint(manager, "127.0.0.1", port).start()
        with pytest.raises(ConfigError, match="loopback"):
            Endpoint(manager, "0.0.0.0", 0)
