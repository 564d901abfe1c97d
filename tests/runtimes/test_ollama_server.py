"""The fake Ollama is driven by Ollama's own client, so that what the adapter is tested against is what Ollama's own
client takes for Ollama.
"""

import time
from collections.abc import Iterator

import httpx
import ollama
import psutil
import pytest

from tests.runtimes.ollama_server import COUNTED, FOR_EVER, Model, OllamaServer, seconds

SIZE = 64 * 2**20
COUNT = {"role": "user", "content": "Count."}
HELLO = {"role": "user", "content": "Hello."}


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


def test_a_killed_runner_breaks_its_stream_off(server: OllamaServer, client: ollama.Client) -> None:
    server.token_s = 0.01
    stream = client.chat("small", [COUNT], stream=True)
    assert next(stream).message.content == " 1"
    psutil.Process(server.loaded["small:latest"].pid).kill()
    with pytest.raises(httpx.RemoteProtocolError):
        list(stream)
    assert client.ps().models == []


def test_a_client_that_hangs_up_ends_its_generation(server: OllamaServer, client: ollama.Client) -> None:
    server.token_s = 0.05  # so that it would go on for longer than the test waits
    stream = client.chat("small", [COUNT], stream=True, keep_alive=0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    wait_until_gone(server, client, "small:latest")


def test_an_unknown_model_is_not_found(client: ollama.Client) -> None:
    for ask in (client.show, client.generate, client.chat):
        with pytest.raises(ollama.ResponseError, match="model 'none' not found") as error:
            ask("none")
        assert error.value.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/chat", {"model": "small", "messages": [], "max_tokens": 5}),
        ("POST", "/api/chat", {"model": "small", "messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ("POST", "/api/generate", {"model": "small", "options": {"n_ctx": 5}}),
        ("POST", "/api/generate", {"model": "small", "keep_alive": "-1"}),
        ("POST", "/api/ps", {}),
        ("GET", "/api/tags?all=1", None),
        ("GET", "/v1/models", None),
    ],
)
def test_what_ollama_does_not_know_is_a_fault(method: str, path: str, body: object) -> None:
    def ask() -> None:
        with OllamaServer({"small": Model(SIZE)}) as server:
            assert httpx.request(method, server.url + path, json=body).status_code == 400
            assert len(server.faults) == 1
            assert server.loaded == {}

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
