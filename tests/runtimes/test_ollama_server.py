"""The fake Ollama is held to what a real one was recorded to answer, and is driven by Ollama's own client."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import psutil
import pytest

from scaler.runtimes.ollama_dialect import Lines
from tests.ollama_binary import needs_ollama, ollama_serves
from tests.runtimes.ollama_recorded import RECORDED, SENTENCE, TEMPLATES, assert_like, recorded, replayed, told
from tests.runtimes.ollama_server import COUNTED, FOR_EVER, KILLED, METHODS, Model, OllamaServer, seconds

SIZE = 64 * 2**20
COUNT = {"role": "user", "content": "Count."}
HELLO = {"role": "user", "content": "Hello."}
MODELS = {
    "small": ("completion",),
    "tooled": ("completion", "tools"),
    "thinker": ("completion", "thinking"),
}
"""The recorded models, and what they can do."""
TEXT_ONLY = ("a tool is called", "it thinks", "a schema of nothing", "a template that is none")
"""How the titles of those exchanges begin that ask for more than a text that is said by heart."""


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    models = {"small": Model(SIZE, " one two three"), "large:7b": Model(2 * SIZE, " un deux trois", family="qwen2")}
    with OllamaServer(models) as server:
        yield server


@pytest.fixture
def client(server: OllamaServer) -> Iterator[ollama.Client]:
    with ollama.Client(server.url, timeout=30) as client:
        yield client


def wait_until_gone(server: OllamaServer, client: ollama.Client, name: str) -> None:
    """Ollama unloads behind its answer, so a client has to look."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if name not in [model.model for model in client.ps().models]:
            return
    pytest.fail(f"{name} is still loaded")


def without_metadata(body: Any) -> Any:
    """The fake knows only the most common of what a model's file says of itself; and its file is none."""
    if not isinstance(body, dict) or "model_info" not in body:
        return body
    return {**body, "model_info": {}, "tensors": bool(body["tensors"])}


def ask(url: str, name: str, has: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
    """All that was recorded under this name, in its order, as far as it is to be had."""
    with ollama.Client(url) as client:
        for exchange in filter(has, recorded(name)):
            deadline = time.monotonic() + 60
            while exchange.get("title") == "after it has gone" and client.ps().models:
                assert time.monotonic() < deadline
            assert_like(replayed(url, exchange), exchange, without_metadata)


def is_faked(exchange: dict[str, Any]) -> bool:
    """Whether the fake has the path, or nobody has."""
    path, _, _ = exchange["request"]["path"].partition("?")
    there = path in METHODS or exchange["response"].get("text") == "404 page not found"
    # Who may ask is a matter of Ollama's settings.
    return there and not exchange.get("title", "").startswith(TEXT_ONLY) and exchange["response"]["status"] != 403


NAMES = [path.stem for path in sorted(RECORDED.glob("*.json")) if path.stem != "dying"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "embeddings"])
def test_it_answers_as_ollama_was_recorded_to_answer(name: str) -> None:
    """Status, type, fields, and the words of errors."""
    models = {name: Model(SIZE, SENTENCE, capabilities=able) for name, able in MODELS.items()}
    with OllamaServer(models) as server:
        ask(server.url, name, is_faked)
        server.faults.clear()


def test_its_description_names_nothing_that_ollama_does_not(server: OllamaServer) -> None:
    """Of what a model's file says of itself, it tells the part that programs read."""
    (exchange,) = (one for one in recorded("discovery") if one["request"].get("body") == {"model": "small"})
    real = exchange["response"]["body"]["model_info"]
    fake = httpx.post(f"{server.url}/api/show", json={"model": "small"}).json()["model_info"]
    assert {key: type(value) for key, value in fake.items()} == {key: type(real[key]) for key in fake}


@needs_ollama
@pytest.mark.parametrize("name", NAMES)
def test_ollama_answers_as_it_was_recorded_to_answer(name: str, tmp_path: Path, demo_models: dict[str, Path]) -> None:
    """Another version may not: then it is time to record it again."""
    with ollama_serves(tmp_path, {"small": demo_models["small"]}) as (url, client):
        for other, template in TEMPLATES.items():
            client.create(other, from_="small", template=template)
        ask(url, name)


def test_a_killed_model_is_told_of_as_ollama_was_recorded_to(server: OllamaServer, client: ollama.Client) -> None:
    """To who waits for an answer, to who reads one, and to who has it loaded; the list has it until it is asked for."""
    # Whatever it is asked, it talks until it is killed.
    server.models["small:latest"] = Model(SIZE, COUNTED)
    streamed, listed, anew, prompted, whole, loaded, unloaded, _ = recorded("dying")
    server.token_s = 0.01
    for exchange in (streamed, prompted):
        with httpx.stream("POST", server.url + exchange["request"]["path"], json=exchange["request"]["body"]) as answer:
            lines = answer.iter_lines()
            next(lines)
            psutil.Process(server.loaded["small:latest"].pid).kill()
            *_, last = lines
        assert json.loads(last) == exchange["response"]["lines"][-1]
        assert_like(replayed(server.url, listed), listed)
        assert_like(replayed(server.url, anew), anew)
    server.token_s = 0.1
    with httpx.Client(timeout=30) as waiting:
        asked = waiting.build_request("POST", f"{server.url}/api/chat", json=whole["request"]["body"])
        kill_when_it_runs(server)
        answer = waiting.send(asked)
    assert_like(answer, whole)
    assert KILLED in answer.text
    assert_like(replayed(server.url, loaded), loaded)
    psutil.Process(server.loaded["small:latest"].pid).kill()
    assert_like(replayed(server.url, unloaded), unloaded)
    wait_until_gone(server, client, "small:latest")


def kill_when_it_runs(server: OllamaServer) -> None:
    """The model, in the middle of the next answer."""

    def watch() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if any(one.running for one in list(server.loaded.values())):
                psutil.Process(server.loaded["small:latest"].pid).kill()
                return
            time.sleep(0.005)

    threading.Thread(target=watch, daemon=True).start()


def test_the_adapter_reads_every_recorded_stream() -> None:
    """To its end, with all its words, thoughts and calls."""
    streams = [each for each in recorded("answers") if "lines" in each["response"]]
    assert len(streams) > 10
    for exchange in streams:
        lines = exchange["response"]["lines"]
        plain = exchange["request"]["path"] == "/api/generate"
        reader = Lines("small", plain=plain, created_s=0, identity="x")
        chunks = [chunk for line in lines for chunk in reader.feed(line)]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        deltas = [choice if plain else choice["delta"] for choice in choices]
        said = "".join(delta.get("text") or delta.get("content") or "" for delta in deltas)
        due = [line["response"] if plain else line["message"]["content"] for line in lines]
        assert said == "".join(due), told(exchange)
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        names = [call["function"]["name"] for line in lines for call in line.get("message", {}).get("tool_calls", ())]
        assert [call["function"]["name"] for call in calls] == names, told(exchange)
        reason = "tool_calls" if names else lines[-1]["done_reason"]
        assert choices[-1]["finish_reason"] == reason, told(exchange)
        assert chunks[-1]["usage"]["completion_tokens"] == lines[-1]["eval_count"], told(exchange)
        if not plain:  # A completion's are not asked for.
            tokens = [one["token"] for choice in choices for one in (choice.get("logprobs") or {}).get("content", ())]
            assert tokens == [one["token"] for line in lines for one in line.get("logprobs", ())], told(exchange)


def test_it_describes_its_models(client: ollama.Client) -> None:
    assert [(model.model, model.size) for model in client.list().models] == [
        ("small:latest", SIZE),
        ("large:7b", 2 * SIZE),
    ]
    shown = client.show("large:7b")
    assert shown.details is not None
    assert shown.details.family == "qwen2"
    assert shown.modelinfo is not None
    assert shown.modelinfo["qwen2.context_length"] == 8192
    assert shown.capabilities == ["completion", "tools"]
    assert client.ps().models == []


def test_a_loaded_model_is_a_process_that_holds_its_memory_until_it_is_unloaded(
    server: OllamaServer, client: ollama.Client
) -> None:
    loaded = client.generate("small", keep_alive=-1, options={"num_ctx": 2048, "num_gpu": 0})
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    (running,) = client.ps().models
    assert (running.name, running.size, running.size_vram, running.context_length) == ("small:latest", SIZE, 0, 2048)
    assert running.expires_at is not None
    assert running.expires_at.year > 2300
    assert FOR_EVER.days > 100_000

    runner = psutil.Process(server.loaded["small:latest"].pid)
    assert runner.cmdline()[:3] == [server.program, "runner", "--model"]
    assert runner.memory_info().rss >= SIZE

    assert client.generate("small", keep_alive=0).done_reason == "unload"
    wait_until_gone(server, client, "small:latest")
    assert not runner.is_running()
    assert server.loaded == {}


def test_it_says_its_sentence_in_a_stream_and_whole(server: OllamaServer, client: ollama.Client) -> None:
    *tokens, last = client.chat("small", [HELLO], stream=True)
    assert [token.message.content for token in tokens] == [" one", " two", " three"]
    assert (last.done, last.done_reason, last.eval_count, last.message.content) == (True, "stop", 3, "")
    assert server.loaded["small:latest"].keep_alive == 300

    whole = client.chat("small", [HELLO], options={"num_predict": 2}, keep_alive="1h30m")
    assert (whole.message.content, whole.done_reason, whole.eval_count) == (" one two", "length", 2)
    assert server.loaded["small:latest"].keep_alive == 5400


def test_an_answer_goes_on_with_another_model(client: ollama.Client) -> None:
    begun = client.chat("small", [COUNT], options={"num_predict": 5}).message.content
    assert begun == " 1 2 3 4 5"
    rest = client.chat("large:7b", [COUNT, {"role": "assistant", "content": begun}]).message.content
    assert rest is not None
    assert begun + rest == COUNTED
    assert client.generate("small", f"<user>Count.<assistant>{begun}", raw=True).response == rest


def test_other_runner_options_load_it_again_after_what_runs(server: OllamaServer, client: ollama.Client) -> None:
    client.generate("small", options={"num_ctx": 2048, "num_gpu": 0})
    first = server.loaded["small:latest"].pid
    client.chat("small", [HELLO], options={"num_ctx": 2048})
    assert server.loaded["small:latest"].pid == first
    client.chat("small", [HELLO], options={"num_ctx": 1024})
    assert server.loaded["small:latest"].pid != first
    assert server.loaded["small:latest"].num_ctx == 1024
    assert not psutil.pid_exists(first)


def test_a_killed_runner_ends_its_stream_with_an_error(server: OllamaServer, client: ollama.Client) -> None:
    server.token_s = 0.01
    stream = client.chat("small", [COUNT], stream=True)
    assert next(stream).message.content == " 1"
    psutil.Process(server.loaded["small:latest"].pid).kill()
    with pytest.raises(ollama.ResponseError, match="unexpected EOF"):
        list(stream)
    assert [model.model for model in client.ps().models] == ["small:latest"]


def test_a_client_that_hangs_up_ends_its_generation(server: OllamaServer, client: ollama.Client) -> None:
    server.token_s = 0.05  # so that it would go on for longer than the test waits
    stream = client.chat("small", [COUNT], stream=True, keep_alive=0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    wait_until_gone(server, client, "small:latest")


def test_an_unknown_model_is_not_found(client: ollama.Client) -> None:
    for ask in (client.show, client.generate, client.chat):
        with pytest.raises(ollama.ResponseError, match=r"model 'none(:latest)?' not found") as error:
            ask("none")
        assert error.value.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/chat", {"model": "small", "messages": [HELLO], "max_tokens": 5}, 200),
        ("POST", "/api/chat", {"model": "small", "messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400),
        ("POST", "/api/chat", {"model": "small", "messages": [{"role": "developer", "content": "x"}]}, 200),
        ("POST", "/api/generate", {"model": "small", "options": {"n_ctx": 5}}, 200),
        ("POST", "/api/generate", {"model": "small", "options": {"num_ctx": "5"}}, 500),
        ("POST", "/api/generate", {"model": "small", "keep_alive": "-1"}, 400),
        ("POST", "/api/ps", {}, 405),
        ("GET", "/api/tags?all=1", None, 200),
        ("GET", "/v1/nothing", None, 404),
    ],
)
def test_what_ollama_does_not_know_is_a_fault(method: str, path: str, body: object, status: int) -> None:
    """Also where Ollama passes over it: whoever sent it meant something by it."""

    def ask() -> None:
        with OllamaServer({"small": Model(SIZE)}) as server:
            assert httpx.request(method, server.url + path, json=body, timeout=30).status_code == status
            assert len(server.faults) == 1

    with pytest.raises(AssertionError, match="does not know"):
        ask()


def test_it_misbehaves_as_told(server: OllamaServer, client: ollama.Client) -> None:
    server.load_other = "large:7b"
    client.generate("small")
    assert list(server.loaded) == ["large:7b"]
    server.refuse_unload = True
    assert client.generate("large:7b", keep_alive=0).done_reason == "unload"
    assert [model.model for model in client.ps().models] == ["large:7b"]
    assert server.loaded["large:7b"].keep_alive == 300
    server.reply, server.reply_type = b"<html>", "text/html"
    assert httpx.get(server.url + "/api/ps").text == "<html>"


def test_a_keep_alive_is_read_as_go_reads_it() -> None:
    assert [seconds(each) for each in (5, -1, "0", "5m", "1h0.5m", "-1s")] == [5, -1, 0, 300, 3630, -1]
