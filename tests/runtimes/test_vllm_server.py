"""The fake vLLM is held to what a real one was recorded to answer, and its memory to what NVIDIA's library tells."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pynvml
import pytest

from scaler.runtimes.listeners import listener, runs
from tests.runtimes.ollama_server import COUNTED
from tests.runtimes.vllm_server import NONSENSE, VllmServer
from tests.sensors import conftest as sensors
from tests.sensors.conftest import FakeNvml

nvml_library, nvml = sensors.nvml_library, sensors.nvml

GIB, MIB = 2**30, 2**20
TOTAL, BASE = 24 * GIB, 300 * MIB
RECORDED = Path(__file__).with_name("vllm_exchanges")
COUNT = {"role": "user", "content": "Count."}
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OTHER_VALUES = {
    *("id", "created", "system_fingerprint", "root", "content", "text", "tokens", "prompt", "count", "max_model_len"),
    *("prompt_tokens", "completion_tokens", "total_tokens"),
}
"""What differs from one server and one answer to the next."""


@pytest.fixture
def server() -> Iterator[VllmServer]:
    with VllmServer() as running:
        yield running


def recorded(name: str) -> list[dict[str, Any]]:
    exchanges: list[dict[str, Any]] = json.loads((RECORDED / f"{name}.json").read_text())["exchanges"]
    return exchanges


def entitled(name: str, title: str) -> dict[str, Any]:
    """The one exchange whose title begins so."""
    (found,) = (exchange for exchange in recorded(name) if exchange.get("title", "").startswith(title))
    return found


def shape(value: Any, key: str = "") -> Any:
    """The value without what differs from one answer to the next."""
    if isinstance(value, dict):
        return {name: shape(each, name) for name, each in value.items()}
    if key in OTHER_VALUES:
        return type(value).__name__
    if isinstance(value, list):
        return [shape(each) for each in value]
    return value


def events(text: str) -> list[Any]:
    said = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(each) if each.startswith("{") else f"data: {each}" for each in said]


def shapes(stream: list[Any]) -> list[Any]:
    """A stream's events by their shape, the like ones that follow each other as one."""
    told = [each["event"] if isinstance(each, dict) and "event" in each else each for each in stream]
    seen = (shape(each) for each in told if each == "data: [DONE]" or not isinstance(each, str))
    return [each for each, _ in itertools.groupby(seen)]


def replayed(server: VllmServer, request: Mapping[str, Any]) -> httpx.Response:
    body, content = request.get("body"), request.get("text")
    for holder, key in ((body, "prompt"), *((message, "content") for message in messages_of(body))):
        # The record leaves the long ones out.
        if isinstance(holder, dict) and str(holder.get(key)).startswith("... "):
            counts = {"exactly": 1024, "1021": 1021, "1100": 1100}
            holder[key] = " 1" * next(count for word, count in counts.items() if word in holder[key])
    if content is None and body is not None:
        content = json.dumps(body)
    headers = {"Content-Type": "application/json", **request.get("headers", {})}
    if request["path"] == "/detokenize":
        content = json.dumps({**request["body"], "tokens": [0, 1]})  # its own words have other numbers
    return httpx.request(request["method"], server.url + request["path"], content=content, headers=headers)


def messages_of(body: Any) -> list[Any]:
    messages = body.get("messages") if isinstance(body, dict) else None
    return messages if isinstance(messages, list) else []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("discovery", {}),
        ("answers", {}),
        ("refusals", {}),
        ("sleep", {}),
        ("collective_rpc", {}),
        ("api_key", {"api_key": "secret"}),
        ("without_dev_mode", {"dev_mode": False}),
    ],
)
def test_it_answers_as_vllm_was_recorded_to_answer(name: str, settings: dict[str, Any]) -> None:
    """What needs two clients at a time has a test of its own."""
    with VllmServer(max_model_len=1024, **settings) as server:
        alone = [each for each in recorded(name) if "headers_after_s" not in each["response"]]
        for exchange in alone:
            if exchange.get("title") == "two prompts, whole":
                continue
            asked, told = exchange["request"], exchange["response"]
            given = replayed(server, asked)
            assert given.status_code == told["status"], asked
            assert given.headers.get("content-type") == told["headers"].get("content-type"), asked
            assert given.headers.get("allow") == told["headers"].get("allow"), asked
            if "events" in told:
                assert shapes(events(given.text)) == shapes(told["events"]), asked
            elif "body" in told:
                assert shape(given.json()) == shape(told["body"]), asked
        server.take_faults()


def test_its_metrics_are_written_as_vllm_writes_them(server: VllmServer) -> None:
    """Names, labels and types; also those of a server that sleeps."""
    idle = httpx.get(server.url + "/metrics")
    told = recorded("metrics")[0]["response"]
    assert idle.headers["content-type"] == told["headers"]["content-type"]
    assert idle.text.splitlines() == told["lines"]
    assert httpx.post(server.url + "/sleep?level=1").status_code == 200
    state = [line for line in recorded("metrics")[2]["response"]["lines"] if "engine_sleep_state" in line]
    assert [line for line in metrics(server).splitlines() if "engine_sleep_state" in line] == state


def metrics(server: VllmServer) -> str:
    return httpx.get(server.url + "/metrics").text


def gauge(server: VllmServer, name: str) -> float:
    (line,) = (line for line in metrics(server).splitlines() if line.startswith(f"vllm:{name}{{"))
    return float(line.rpartition(" ")[2])


def until(condition: Callable[[], bool]) -> None:
    """Look again until it is so."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


class Stream:
    """A request that another thread reads."""

    def __init__(self, server: VllmServer, path: str = CHAT, **asked: Any) -> None:
        default = {"messages": [COUNT]} if path == CHAT else {"prompt": "Count."}
        self._body = {**default, **STREAMED, **asked}
        self._url = server.url + path
        self.status: int | None = None
        self.events: list[Any] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=60) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    self.events += events(line)
        except httpx.HTTPError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(30)
        assert self.ended

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    @property
    def said(self) -> str:
        choices = [choice for each in self.events if isinstance(each, dict) for choice in each.get("choices", ())]
        return "".join(choice.get("text", choice.get("delta", {}).get("content", "")) for choice in choices)

    @property
    def reasons(self) -> list[str]:
        choices = [choice for each in self.events if isinstance(each, dict) for choice in each.get("choices", ())]
        return [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]


def ask(server: VllmServer, *messages: Mapping[str, str], **asked: Any) -> str:
    answer = httpx.post(server.url + CHAT, json={"messages": [*messages] or [COUNT], **asked})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


# Memory


@pytest.fixture
def card(nvml: FakeNvml) -> Iterator[FakeNvml]:
    """A machine with a GPU of 24 GiB, of which something else has 300 MiB."""
    nvml.gpu("NVIDIA GeForce RTX 4090", TOTAL, BASE)
    pynvml.nvmlInit()
    yield nvml
    pynvml.nvmlShutdown()


def used(gpu: int = 0) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(gpu)).used)


def held(gpu: int = 0) -> dict[int, int]:
    """By process, as NVIDIA's own binding tells it."""
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(gpu))
    return {one.pid: one.usedGpuMemory for one in processes}


def test_the_child_of_what_listens_holds_the_memory_but_in_its_sleep(card: FakeNvml) -> None:
    """Whoever looks for the level's memory begins at the port."""
    with VllmServer(size_bytes=8 * GIB, asleep_bytes=GIB, state=card.state) as server:
        assert listener(int(server.url.rpartition(":")[2])) == server.pid
        engine = psutil.Process(server.engine_pid)
        assert (engine.ppid(), engine.cmdline()[0]) == (server.pid, "VLLM::EngineCore")
        assert (held(), used()) == ({server.engine_pid: 8 * GIB}, BASE + 8 * GIB)
        for level in (1, 2):
            httpx.post(f"{server.url}/sleep?level={level}")
            assert (held(), used()) == ({server.engine_pid: GIB}, BASE + GIB)
            httpx.post(f"{server.url}/wake_up")
            assert (held(), used()) == ({server.engine_pid: 8 * GIB}, BASE + 8 * GIB)
        httpx.post(f"{server.url}/sleep")
        httpx.post(f"{server.url}/wake_up?tags=weights")
        assert GIB < held()[server.engine_pid] < 8 * GIB
        httpx.post(f"{server.url}/wake_up?tags=kv_cache")
        assert held()[server.engine_pid] == 8 * GIB
    assert (held(), used()) == ({}, BASE)


def test_two_servers_share_a_gpu_and_one_may_have_two(card: FakeNvml) -> None:
    """Each changes what is its own, and leaves all else as it finds it."""
    card.gpu("NVIDIA GeForce RTX 4090", TOTAL, 0)
    card.process(0, "graphics", 4711, BASE)
    with (
        VllmServer("small", 4 * GIB, asleep_bytes=GIB, state=card.state) as small,
        VllmServer("large", 16 * GIB, asleep_bytes=GIB, state=card.state, gpus=(0, 1)) as large,
    ):
        assert held(0) == {small.engine_pid: 4 * GIB, large.engine_pid: 16 * GIB}
        assert held(1) == {large.engine_pid: 16 * GIB}
        assert (used(0), used(1)) == (BASE + 20 * GIB, 16 * GIB)
        httpx.post(f"{large.url}/sleep")
        assert (used(0), used(1)) == (BASE + 5 * GIB, GIB)
    assert (used(0), used(1)) == (BASE, 0)
    graphics = pynvml.nvmlDeviceGetGraphicsRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
    assert [one.pid for one in graphics] == [4711]


def test_it_does_not_wake_up_where_there_is_no_room(card: FakeNvml) -> None:
    """Another has taken it meanwhile."""
    with VllmServer("small", 10 * GIB, asleep_bytes=GIB, state=card.state) as small:
        httpx.post(f"{small.url}/sleep")
        with VllmServer("large", 16 * GIB, state=card.state) as large:
            refused = httpx.post(f"{small.url}/wake_up")
            assert (refused.status_code, refused.json()["error"]["code"]) == (500, 500)
            assert "out of memory" in refused.text
            assert httpx.get(f"{small.url}/is_sleeping").json() == {"is_sleeping": True}
            assert held() == {small.engine_pid: GIB, large.engine_pid: 16 * GIB}
        assert httpx.post(f"{small.url}/wake_up").json()["status"] == "awake"
        assert held() == {small.engine_pid: 10 * GIB}


# Sleep


def test_what_runs_when_it_falls_asleep_is_broken_off(server: VllmServer) -> None:
    """As recorded: the stream ends in good order, and only its reason tells."""
    server.set(token_s=0.01)
    chat, completion = Stream(server), Stream(server, COMPLETIONS)
    until(lambda: " 5" in chat.said and " 5" in completion.said)
    httpx.post(f"{server.url}/sleep?level=1")
    chat.join()
    completion.join()
    told = entitled("sleep", "a stream that runs")["response"]
    assert shapes(chat.events) == shapes(told["events"])
    assert (chat.reasons, completion.reasons) == (["abort"], ["abort"])
    assert COUNTED.startswith(chat.said)
    assert gauge(server, "num_requests_running") == 0


def test_what_runs_goes_on_to_its_end_or_stays_as_it_is_where_that_is_asked_for(server: VllmServer) -> None:
    """The modes of `/sleep`."""
    server.set(token_s=0.01)
    running = Stream(server, max_tokens=20)
    until(lambda: bool(running.said))
    httpx.post(f"{server.url}/sleep?level=1&mode=wait")
    assert running.reasons == ["length"]
    httpx.post(f"{server.url}/wake_up")
    kept = Stream(server, max_tokens=200)
    until(lambda: bool(kept.said))
    httpx.post(f"{server.url}/sleep?level=1&mode=keep")
    until(lambda: httpx.get(f"{server.url}/is_sleeping").json()["is_sleeping"])
    assert gauge(server, "num_requests_running") == 1
    assert not kept.ended
    server.set(token_s=0.0)
    httpx.post(f"{server.url}/wake_up")
    kept.join()
    assert (kept.said, kept.reasons) == ("".join(f" {number}" for number in range(1, 201)), ["length"])


def test_a_request_that_comes_in_its_sleep_waits_for_the_waking(server: VllmServer) -> None:
    """It is taken, and told nothing: neither by its answer nor by the metrics."""
    httpx.post(f"{server.url}/sleep?level=1")
    waiting = Stream(server, max_tokens=2)
    until(lambda: waiting.status == 200)
    httpx.post(f"{server.url}/wake_up?tags=weights")
    assert httpx.get(f"{server.url}/is_sleeping").json() == {"is_sleeping": True}
    assert gauge(server, "num_requests_waiting") == 0
    assert (waiting.events, waiting.ended) == ([], False)
    httpx.post(f"{server.url}/wake_up?tags=kv_cache")
    waiting.join()
    told = entitled("sleep", "a request that comes in its sleep")["response"]
    assert shapes(waiting.events) == shapes(told["events"])
    assert waiting.said == " 1 2"


def test_a_request_that_waits_is_ended_without_a_reason_when_it_is_put_to_sleep_again(server: VllmServer) -> None:
    """The whole answer is empty, and looks well."""
    httpx.post(f"{server.url}/sleep?level=1")
    waiting = Stream(server)
    until(lambda: waiting.status == 200)
    httpx.post(f"{server.url}/sleep?level=1")
    waiting.join()
    told = entitled("sleep", "a request that waits in its sleep")["response"]
    assert shapes(waiting.events) == shapes(told["events"])
    assert (waiting.said, waiting.reasons) == ("", [])


def test_after_the_deep_sleep_it_talks_nonsense_until_the_weights_are_read_again(server: VllmServer) -> None:
    """It wakes up all the same, and says that it is well."""
    httpx.post(f"{server.url}/sleep?level=2")
    waiting = Stream(server)
    until(lambda: waiting.status == 200)
    assert httpx.post(f"{server.url}/wake_up").json() == {"status": "awake", "tags": None}
    assert httpx.get(f"{server.url}/health").status_code == 200
    waiting.join()
    assert waiting.said == ask(server) == NONSENSE
    reload = {"method": "reload_weights"}
    assert httpx.post(f"{server.url}/collective_rpc", json=reload).json() == {"results": [None]}
    assert ask(server) == COUNTED
    httpx.post(f"{server.url}/sleep?level=1")
    httpx.post(f"{server.url}/wake_up")
    assert ask(server) == COUNTED


def test_the_weights_are_read_between_their_waking_and_that_of_the_cache(server: VllmServer) -> None:
    """The order that vLLM's documentation gives; before it there is no memory to read them into."""
    httpx.post(f"{server.url}/sleep?level=2")
    reload = {"method": "reload_weights"}
    assert httpx.post(f"{server.url}/collective_rpc", json=reload).status_code == 500
    assert server.take_faults() == [
        "/collective_rpc: reload_weights before the memory of the weights was woken",
    ]
    assert httpx.post(f"{server.url}/wake_up?tags=weights").json()["status"] == "sleeping"
    assert httpx.post(f"{server.url}/collective_rpc", json=reload).status_code == 200
    assert httpx.post(f"{server.url}/wake_up?tags=kv_cache").json()["status"] == "awake"
    assert ask(server) == COUNTED


def test_nothing_else_is_answered_that_the_engine_must_know_while_it_wakes_up(server: VllmServer) -> None:
    """vLLM's engine does one thing at a time; its server answers for itself."""
    server.set(wake_s=0.5)
    httpx.post(f"{server.url}/sleep")
    waking = threading.Thread(target=httpx.post, args=(f"{server.url}/wake_up",))
    waking.start()
    until(lambda: server.requests[-1][0] == "/wake_up")
    assert httpx.get(f"{server.url}/health").status_code == 200
    # Asked while it still sleeps.
    assert httpx.get(f"{server.url}/is_sleeping").json() == {"is_sleeping": False}
    waking.join()


def test_releases_before_032_answer_without_a_body() -> None:
    """It is the status that tells."""
    with VllmServer(version="0.31.0") as server:
        for path in ("/sleep?level=1", "/wake_up"):
            answer = httpx.post(server.url + path)
            assert (answer.status_code, answer.content) == (200, b"")
        assert httpx.get(f"{server.url}/is_sleeping").json() == {"is_sleeping": False}


# Answers


def test_vllms_own_kind_of_client_reads_it(server: VllmServer) -> None:
    """The streams, the list of models, and the errors."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [(model.id, model.owned_by) for model in client.models.list()] == [("tiny", "vllm")]
        chunks = list(
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Hello."}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert [choice.delta.content for chunk in chunks for choice in chunk.choices] == [
            *("", " one", " two", " three", ""),
        ]
        # The token that ends an answer counts.
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 4
        whole = client.completions.create(model="tiny", prompt="Count. 1 2", max_tokens=3)
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == (" 3 4 5", "length")
        with pytest.raises(openai.NotFoundError, match="`none` does not exist"):
            client.completions.create(model="none", prompt="Hello.")
        with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens"):
            client.completions.create(model="tiny", prompt="word " * 4097)


def test_an_answer_goes_on_only_where_both_fields_ask_for_it(server: VllmServer) -> None:
    """Else the model begins anew behind it, and one field without the other is refused or does not do it."""
    begun = {"role": "assistant", "content": " 1 2 3"}
    on: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    assert ask(server, COUNT, begun, max_tokens=2) == " 1 2"
    assert ask(server, COUNT, begun, max_tokens=2, **on) == " 4 5"
    assert ask(server, COUNT, begun, max_tokens=2, add_generation_prompt=False) == " 1 2"
    only = {"messages": [COUNT, begun], "continue_final_message": True}
    assert httpx.post(server.url + CHAT, json=only).status_code == 400
    hello = {"role": "user", "content": "Hello."}
    assert ask(server, hello, {"role": "assistant", "content": " one"}, **on) == " two three"


def test_tokens_are_counted_as_the_template_has_them(server: VllmServer) -> None:
    """As many as the answer's usage tells."""
    with_both = {"continue_final_message": True, "add_generation_prompt": False}
    for more in ({}, with_both):
        asked = {"messages": [COUNT, {"role": "assistant", "content": " 1 2 3"}], **more}
        counted = httpx.post(f"{server.url}/tokenize", json=asked).json()
        answer = httpx.post(server.url + CHAT, json={**asked, "max_tokens": 1}).json()
        assert counted["count"] == len(counted["tokens"]) == answer["usage"]["prompt_tokens"]
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": "one two"}).json()["tokens"]
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": tokens}).json() == {"prompt": "one two"}


def test_a_client_that_hangs_up_ends_its_answer(server: VllmServer) -> None:
    server.set(token_s=0.05)  # so that it would go on for longer than the test waits
    with httpx.stream("POST", server.url + CHAT, json={"messages": [COUNT], "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        assert gauge(server, "num_requests_running") == 1
    until(lambda: gauge(server, "num_requests_running") == 0)


def test_more_requests_than_it_runs_at_a_time_wait_in_line() -> None:
    """As the metrics tell, and the cache's usage with them."""
    with VllmServer(max_num_seqs=1, max_model_len=1024) as server:
        server.set(token_s=0.02)
        first = Stream(server, max_tokens=100)
        until(lambda: bool(first.said))
        second = Stream(server, max_tokens=1)
        until(lambda: gauge(server, "num_requests_waiting") == 1)
        assert gauge(server, "num_requests_running") == 1
        assert 0 < gauge(server, "kv_cache_usage_perc") < 0.2
        assert (first.ended, second.events) == (False, [])
        server.set(token_s=0.0)
        second.join()
        first.join()
        assert gauge(server, "kv_cache_usage_perc") == 0


# Ends


def test_told_to_end_it_breaks_off_what_it_says(card: FakeNvml) -> None:
    """With the error with which vLLM's streams end when the engine is gone."""
    with VllmServer(size_bytes=GIB, state=card.state) as server:
        server.set(token_s=0.01)
        running = Stream(server)
        until(lambda: bool(running.said))
        os.kill(server.pid, signal.SIGTERM)
        running.join()
        told = entitled("ending", "SIGKILL to VLLM::EngineCore while")["response"]
        assert shapes(running.events)[-2:] == shapes(told["events"])[-2:]
        until(lambda: not runs(server.pid) and not held())
        assert used() == BASE


def test_told_to_end_in_its_sleep_it_ends_what_waits(server: VllmServer) -> None:
    httpx.post(f"{server.url}/sleep")
    waiting = Stream(server)
    until(lambda: waiting.status == 200)
    os.kill(server.pid, signal.SIGTERM)
    waiting.join()
    assert shapes(waiting.events) == shapes(entitled("ending", "SIGTERM to the server in")["response"]["events"])


def test_an_engine_that_dies_has_its_server_end(card: FakeNvml) -> None:
    """Its memory is back at once, its health is bad, and what asks for the engine is refused, and is the last."""
    with VllmServer(size_bytes=GIB, state=card.state) as server:
        os.kill(server.engine_pid, signal.SIGKILL)
        until(lambda: not held())
        until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        last = httpx.get(f"{server.url}/is_sleeping")
        told = entitled("ending", "after SIGKILL to VLLM")["response"]
        assert (last.status_code, last.json()) == (told["status"], told["body"])
        until(lambda: not runs(server.pid))


def test_a_killed_server_leaves_its_engine_behind_with_its_memory(card: FakeNvml) -> None:
    """As vLLM's does; both are gone with the test."""
    with VllmServer(size_bytes=GIB, state=card.state) as server:
        server.set(token_s=0.01)
        running = Stream(server)
        until(lambda: bool(running.said))
        os.kill(server.pid, signal.SIGKILL)
        running.join()
        assert isinstance(running.error, httpx.RemoteProtocolError | httpx.ReadError)
        assert runs(server.engine_pid)
        assert held() == {server.engine_pid: GIB}
    assert not runs(server.engine_pid)
    assert (held(), used()) == ({}, BASE)


# Strictness and knobs


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/embeddings", None, 404),
        ("GET", "/sleep", None, 405),
        ("POST", "/sleep?level=3", None, 400),
        ("POST", "/sleep?depth=1", None, 200),
        ("POST", "/wake_up?tags=everything", None, 200),
        ("POST", "/collective_rpc", {"method": "reload"}, 500),
        ("POST", CHAT, {"messages": [COUNT], "keep_alive": 5}, 200),
        ("POST", CHAT, {"messages": [COUNT], "n": 2}, 501),
        ("POST", COMPLETIONS, {"prompt": 5}, 400),
    ],
)
def test_what_vllm_does_not_know_is_a_fault(method: str, path: str, body: object, status: int) -> None:
    """Also where vLLM passes over it."""

    def do() -> None:
        with VllmServer() as server:
            assert httpx.request(method, server.url + path, json=body).status_code == status
            assert len(server.faults) == 1

    with pytest.raises(AssertionError, match="does not know"):
        do()


def test_it_misbehaves_as_told(card: FakeNvml) -> None:
    """Each as a client might meet it."""
    with VllmServer(size_bytes=2 * GIB, state=card.state) as server:
        server.set(stays_awake=True)
        assert httpx.post(f"{server.url}/sleep").status_code == 200
        assert httpx.get(f"{server.url}/is_sleeping").json() == {"is_sleeping": False}
        server.set(stays_awake=False, sleep_fails=True)
        assert httpx.post(f"{server.url}/sleep").status_code == 500
        assert held() == {server.engine_pid: 2 * GIB}
        httpx.post(f"{server.url}/wake_up")
        server.set(running=3, waiting=7, kv_cache_usage=0.93)
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        assert [gauge(server, name) for name in names] == [3, 7, 0.93]
        server.set(reply="<html>", reply_type="text/html")
        answer = httpx.get(f"{server.url}/is_sleeping")
        assert (answer.text, answer.headers["content-type"]) == ("<html>", "text/html; charset=utf-8")
        server.set(reply='{"is_sleep', reply_type="application/json")
        assert httpx.get(f"{server.url}/v1/models").text == '{"is_sleep'


def test_one_that_cannot_start_says_so() -> None:
    """Its port is another's."""
    with VllmServer() as first, pytest.raises(RuntimeError, match="ended before it listened"):
        VllmServer(port=int(first.url.rpartition(":")[2])).__enter__()


def test_nothing_is_left_of_it_when_its_test_is_killed(tmp_path: Path) -> None:
    """Neither of the two processes."""
    program = "import time\nfrom tests.runtimes.vllm_server import VllmServer\nwith VllmServer() as server:\n"
    program += "    print(server.pid, server.engine_pid, flush=True)\n    time.sleep(60)\n"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    test = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    assert test.stdout is not None
    pids = list(map(int, test.stdout.readline().split()))
    test.kill()
    test.wait()
    test.stdout.close()
    until(lambda: not any(map(runs, pids)))
