"""The fake LM Studio is driven by OpenAI's own client and by plain requests in the documentation's own words."""

import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import openai
import psutil
import pytest

from tests.runtimes.lmstudio_server import JIT_TTL_S, LmStudioServer, Model, Workers, processes
from tests.runtimes.ollama_server import COUNTED

SIZE = 32 * 2**20
COUNT: Any = {"role": "user", "content": "Count."}
HELLO: Any = {"role": "user", "content": "Hello."}
LOAD, UNLOAD, LIST, CHAT = "/api/v1/models/load", "/api/v1/models/unload", "/api/v1/models", "/v1/chat/completions"


@pytest.fixture
def studio() -> Iterator[LmStudioServer]:
    models = {
        "small": Model(SIZE, " one two three"),
        "acme/large": Model(2 * SIZE, " un deux trois", file_bytes=7, max_context_length=4096, vision=True),
        "acme/apple": Model(SIZE, format="mlx", quantization="4bit", max_context_length=2048),
        "embed": Model(SIZE, type="embedding", max_context_length=512),
    }
    with LmStudioServer(models) as studio:
        yield studio


@pytest.fixture
def client(studio: LmStudioServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{studio.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def ask(studio: LmStudioServer, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(studio.url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def load(studio: LmStudioServer, model: str, **options: Any) -> Any:
    status, answer = ask(studio, LOAD, {"model": model, **options})
    assert status == 200, answer
    return answer


def listed(studio: LmStudioServer) -> dict[str, list[str]]:
    """The ids of the loaded instances of each model that has some."""
    models = ask(studio, LIST)[1]["models"]
    return {each["key"]: [one["id"] for one in each["loaded_instances"]] for each in models if each["loaded_instances"]}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def said(stream: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


def test_it_describes_its_models_each_kind_in_its_form(studio: LmStudioServer) -> None:
    small, large, _, embed = ask(studio, LIST)[1]["models"]
    assert (small["key"], small["publisher"], small["size_bytes"]) == ("small", "lmstudio-community", SIZE)
    assert large == {
        "type": "llm",
        "publisher": "acme",
        "key": "acme/large",
        "display_name": "large",
        "architecture": "llama",
        "quantization": {"name": "Q4_K_M", "bits_per_weight": 4},
        "size_bytes": 7,
        "params_string": "1B",
        "loaded_instances": [],
        "max_context_length": 4096,
        "format": "gguf",
        "capabilities": {"vision": True, "trained_for_tool_use": True},
        "description": None,
    }
    assert embed["type"] == "embedding"
    assert {"architecture", "capabilities", "description"}.isdisjoint(embed)


@pytest.mark.parametrize("workers", ["llama-server", "llmworker", "llama-server below llmworker"])
def test_a_loaded_instance_is_a_process_that_holds_its_memory_until_it_is_unloaded(
    studio: LmStudioServer, workers: Workers
) -> None:
    studio.workers = workers
    assert load(studio, "small", context_length=2048, echo_load_config=True)["load_config"] == {
        "context_length": 2048,
        "eval_batch_size": 512,
        "parallel": 4,
        "flash_attention": True,
        "offload_kv_cache_to_gpu": True,
    }
    holder = psutil.Process(studio.loaded["small"].pid)
    assert holder.memory_info().rss >= SIZE
    above = [parent.pid for parent in holder.parents()]
    assert above.index(os.getpid()) == (1 if "below" in workers else 0)
    command = holder.cmdline()
    if workers == "llmworker":
        assert command[0].endswith("/.lmstudio/.internal/utils/node")
        assert command[1].endswith("/llmworker.js")
    else:
        assert command[0].endswith("/llama-server")
        assert "/.lmstudio/extensions/backends/llama.cpp-" in command[0]
        assert command[-2:] == ["--ctx-size", "2048"]

    assert ask(studio, UNLOAD, {"instance_id": "small"}) == (200, {"instance_id": "small"})
    assert not psutil.pid_exists(holder.pid)
    assert not studio.loaded
    assert listed(studio) == {}


def test_one_of_its_processes_holds_no_model(studio: LmStudioServer) -> None:
    (surveyor,) = processes()
    assert surveyor.cmdline()[1].endswith("/systemresourcesworker.js")
    assert surveyor.memory_info().rss < SIZE


def test_another_load_is_another_instance(studio: LmStudioServer) -> None:
    assert [load(studio, "small")["instance_id"] for _ in range(3)] == ["small", "small:2", "small:3"]
    assert len({instance.pid for instance in studio.loaded.values()}) == 3
    ask(studio, UNLOAD, {"instance_id": "small:2"})
    assert listed(studio) == {"small": ["small", "small:3"]}
    assert load(studio, "small")["instance_id"] == "small:2"


def test_what_a_load_says_is_what_was_loaded(studio: LmStudioServer) -> None:
    answer = load(studio, "embed")
    assert (answer["type"], answer["instance_id"], answer["status"]) == ("embedding", "embed", "loaded")
    assert "load_config" not in answer
    # MLX is loaded with its whole window, whatever is asked.
    assert load(studio, "acme/apple", context_length=16, echo_load_config=True)["load_config"] == {
        "context_length": 2048,
        "parallel": 4,
    }
    studio.load_s = 0.2
    assert load(studio, "small")["load_time_seconds"] >= 0.2


def test_what_is_not_there_is_404_in_the_documented_form(studio: LmStudioServer) -> None:
    for path, body in ((LOAD, {"model": "none"}), (UNLOAD, {"instance_id": "small"})):
        status, answer = ask(studio, path, body)
        assert (status, answer["error"]["type"]) == (404, "model_not_found")


def test_it_says_its_sentence_in_a_stream_and_whole(studio: LmStudioServer, client: openai.OpenAI) -> None:
    load(studio, "small")
    stream = client.chat.completions.create(
        model="small", messages=[HELLO], stream=True, stream_options={"include_usage": True}
    )
    *tokens, last, usage = list(stream)
    assert [(token.object, token.choices[0].delta.content) for token in tokens] == [
        ("chat.completion.chunk", " one"),
        ("chat.completion.chunk", " two"),
        ("chat.completion.chunk", " three"),
    ]
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("stop", None)
    assert usage.choices == []
    assert usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (1, 3)

    whole = client.chat.completions.create(model="small", messages=[HELLO], max_tokens=2)
    assert (whole.model, whole.choices[0].message.content) == ("small", " one two")
    assert whole.choices[0].finish_reason == "length"
    assert client.chat.completions.create(model="small", messages=[HELLO], stop="two").choices[0].message.content == (
        " one "
    )


def test_an_answer_goes_on_with_another_model(client: openai.OpenAI) -> None:
    begun = client.chat.completions.create(model="small", messages=[COUNT], max_tokens=5).choices[0].message.content
    assert begun == " 1 2 3 4 5"
    rest = said(
        client.chat.completions.create(
            model="acme/large", messages=[COUNT, {"role": "assistant", "content": begun}], stream=True
        )
    )
    assert begun + rest == COUNTED
    raw = client.completions.create(model="small", prompt=f"<user>Count.<assistant>{begun}", stream=True)
    assert "".join(chunk.choices[0].text for chunk in raw) == rest


def test_a_request_loads_its_model_and_that_goes_first(studio: LmStudioServer, client: openai.OpenAI) -> None:
    load(studio, "embed")
    load(studio, "acme/apple")
    client.chat.completions.create(model="Small", messages=[HELLO])
    (instance,) = ask(studio, LIST)[1]["models"][0]["loaded_instances"]
    assert instance["remaining_ttl_seconds"] == JIT_TTL_S
    client.chat.completions.create(model="acme/large", messages=[HELLO], extra_body={"ttl": 0.1})
    assert "small" not in studio.loaded
    wait_until(lambda: "acme/large" not in studio.loaded)
    # What was loaded on purpose stays.
    assert set(studio.loaded) == {"embed", "acme/apple"}


def test_without_jit_loading_nothing_is_loaded_for_a_request(studio: LmStudioServer, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small", "acme/large", "acme/apple", "embed"]
    studio.jit = False
    assert [model.id for model in client.models.list()] == []
    with pytest.raises(openai.BadRequestError, match="No models loaded"):
        client.chat.completions.create(model="small", messages=[HELLO])
    load(studio, "small")
    assert [model.id for model in client.models.list()] == ["small"]


def test_the_only_model_answers_to_any_name(studio: LmStudioServer, client: openai.OpenAI) -> None:
    load(studio, "small")
    answer = client.chat.completions.create(model="none", messages=[HELLO])
    assert (answer.model, answer.choices[0].message.content) == ("small", " one two three")
    load(studio, "small")
    with pytest.raises(openai.BadRequestError, match='Invalid model identifier "none"') as error:
        client.chat.completions.create(model="none", messages=[HELLO])
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="Invalid model identifier"):
        client.chat.completions.create(model="embed", messages=[HELLO])
    assert client.chat.completions.create(model="small:2", messages=[HELLO]).model == "small:2"


@pytest.mark.parametrize("workers", ["llama-server", "llmworker", "llama-server below llmworker"])
def test_a_killed_worker_breaks_its_answers_off(
    studio: LmStudioServer, client: openai.OpenAI, workers: Workers
) -> None:
    studio.workers, studio.token_s = workers, 0.01
    load(studio, "small")
    stream = client.chat.completions.create(model="small", messages=[COUNT], stream=True)
    assert next(iter(stream)).choices[0].delta.content == " 1"
    studio.kill("small")
    with pytest.raises(openai.APIError, match="The model has crashed"):
        list(stream)
    wait_until(lambda: listed(studio) == {})

    load(studio, "small")

    def kill_once_it_speaks() -> None:
        wait_until(lambda: studio.loaded["small"].running == 1)
        studio.kill("small")

    killer = threading.Thread(target=kill_once_it_speaks)
    killer.start()
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="small", messages=[COUNT])
    killer.join()
    assert error.value.response.json()["error"].startswith("The model has crashed")


def test_an_unload_breaks_answers_off(studio: LmStudioServer, client: openai.OpenAI) -> None:
    studio.token_s = 0.01
    load(studio, "small")
    stream = client.chat.completions.create(model="small", messages=[COUNT], stream=True)
    next(iter(stream))
    ask(studio, UNLOAD, {"instance_id": "small"})
    with pytest.raises(openai.APIError, match="Model unloaded"):
        list(stream)


def test_a_client_that_hangs_up_ends_its_generation_and_no_load(studio: LmStudioServer, client: openai.OpenAI) -> None:
    studio.token_s = 0.05  # so that it would go on for longer than the test waits
    load(studio, "small")
    stream = client.chat.completions.create(model="small", messages=[COUNT], stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: studio.loaded["small"].running == 0)

    studio.load_s = 1.0
    host, port = studio.url.removeprefix("http://").split(":")
    asked = f"POST {LOAD} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n"
    with socket.create_connection((host, int(port))) as line:
        line.sendall(asked.encode() + b'{"model": "acme/large"}')
        wait_until(lambda: studio.requests[-1] == (LOAD, {"model": "acme/large"}))
    wait_until(lambda: "acme/large" in studio.loaded)


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_only_a_model_that_sees_takes_a_picture(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "Count."}, PICTURE]}]
    seen = client.chat.completions.create(model="acme/large", messages=messages, max_tokens=1)
    assert seen.choices[0].message.content == " 1"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="small", messages=messages)
    assert error.value.response.json()["error"].startswith("Model does not support images")


def test_it_takes_all_that_is_documented_of_a_chat(client: openai.OpenAI) -> None:
    function: Any = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}
    called = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages: Any = [
        {"role": "system", "content": "Be short."},
        HELLO,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "content": "Nothing.", "tool_call_id": "1"},
    ]
    answer = client.chat.completions.create(
        model="small",
        messages=messages,
        tools=[{"type": "function", "function": function}],
        tool_choice="auto",
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"5": 1},
        seed=3,
        max_tokens=-1,
        stop=["."],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {}}},
        extra_body={"top_k": 5, "repeat_penalty": 1.1, "ttl": 60, "draft_model": "acme/large"},
    )
    assert answer.choices[0].message.content == " one two three"


FAULTS = [
    (LOAD, {"model": "small", "ttl": 5}, "invalid_request", "unrecognized_keys"),
    (LOAD, {"model": "small", "context_length": "5"}, "invalid_request", "invalid_value"),
    (LOAD, {"model": "small", "context_length": 9000}, "invalid_request", "invalid_value"),
    (LOAD, {}, "invalid_request", "missing_required_parameter"),
    (LOAD, [], "invalid_request", "invalid_type"),
    (UNLOAD, {"model": "small"}, "invalid_request", "unrecognized_keys"),
    (CHAT, {"model": "small"}, "invalid_request_error", "missing_required_parameter"),
    (CHAT, {"model": "small", "messages": []}, "invalid_request_error", None),
    (CHAT, {"model": "small", "messages": [HELLO], "n": 2}, "invalid_request_error", "unrecognized_keys"),
    (CHAT, {"model": "small", "messages": [HELLO], "max_tokens": 0}, "invalid_request_error", "invalid_value"),
    (CHAT, {"model": "small", "messages": [{"role": "developer", "content": "x"}]}, "invalid_request_error", None),
    (CHAT, {"model": "small", "messages": [{"role": "user"}]}, "invalid_request_error", "missing_required_parameter"),
    (
        CHAT,
        {"model": "small", "messages": [HELLO], "response_format": {"type": "json_object"}},
        "invalid_request_error",
        "invalid_value",
    ),
    (
        CHAT,
        {"model": "small", "messages": [HELLO], "stream_options": {"include_usage": True}},
        "invalid_request_error",
        None,
    ),
    ("/v1/completions", {"model": "small", "prompt": ["x"]}, "invalid_request_error", "invalid_value"),
    ("/v1/completions?a=1", {"model": "small", "prompt": "x"}, "invalid_request_error", None),
]


@pytest.mark.parametrize(("path", "body", "kind", "code"), FAULTS)
def test_what_lm_studio_does_not_know_is_a_fault(path: str, body: object, kind: str, code: str | None) -> None:
    def run() -> None:
        with LmStudioServer({"small": Model(SIZE)}) as studio:
            status, answer = ask(studio, path, body)
            assert (status, answer["error"]["type"], answer["error"].get("code")) == (400, kind, code)
            assert len(studio.faults) == 1
            assert studio.loaded == {}

    with pytest.raises(AssertionError, match="does not know"):
        run()


@pytest.mark.parametrize("path", ["/", "/api/tags", "/v1/embeddings", "/api/v1/chat"])
@pytest.mark.parametrize("status", [200, 404])
def test_an_unknown_path_is_a_fault_though_it_may_be_answered_200(path: str, status: int) -> None:
    def run() -> None:
        with LmStudioServer({}) as studio:
            studio.unknown_status = status
            assert ask(studio, path) == (status, {"error": f"Unexpected endpoint or method. (GET {path})"})

    with pytest.raises(AssertionError, match=f"GET {path} is not known"):
        run()


def test_it_wants_to_be_told_that_it_is_json() -> None:
    with pytest.raises(AssertionError, match="no JSON by its type"), LmStudioServer({"small": Model(SIZE)}) as studio:
        assert ask(studio, LOAD, {"model": "small"}, **{"Content-Type": "text/plain"})[0] == 400


def test_it_wants_its_token(studio: LmStudioServer, client: openai.OpenAI) -> None:
    assert ask(studio, LIST, Authorization="Bearer anything")[0] == 200
    studio.token = "sk-lm-right"
    for path in (LIST, "/v1/models", "/api/v0/models"):
        status, answer = ask(studio, path)
        assert (status, answer["error"]["type"], answer["error"]["code"]) == (401, "invalid_request", "invalid_api_key")
        assert ask(studio, path, Authorization="Bearer sk-lm-right")[0] == 200
    with pytest.raises(openai.AuthenticationError, match=r"Malformed LM Studio API token provided: none\*"):
        client.chat.completions.create(model="small", messages=[HELLO])
    right = client.with_options(api_key="sk-lm-right")
    assert right.chat.completions.create(model="small", messages=[HELLO]).model == "small"


def test_an_old_version_knows_only_v0(studio: LmStudioServer, client: openai.OpenAI) -> None:
    studio.old_version = True
    for path, body in ((LIST, None), (LOAD, {"model": "small"})):
        method = "GET" if body is None else "POST"
        assert ask(studio, path, body) == (200, {"error": f"Unexpected endpoint or method. ({method} {path})"})
    client.chat.completions.create(model="acme/large", messages=[HELLO])
    assert [(each["id"], each["type"], each["state"]) for each in ask(studio, "/api/v0/models")[1]["data"]] == [
        ("small", "llm", "not-loaded"),
        ("acme/large", "vlm", "loaded"),
        ("acme/apple", "llm", "not-loaded"),
        ("embed", "embeddings", "not-loaded"),
    ]


def test_it_misbehaves_as_told(studio: LmStudioServer) -> None:
    studio.loads_instead = "acme/large"
    assert load(studio, "small")["instance_id"] == "acme/large"
    assert listed(studio) == {"acme/large": ["acme/large"]}
    studio.refuses_unload = 200
    assert ask(studio, UNLOAD, {"instance_id": "acme/large"}) == (200, {"instance_id": "acme/large"})
    studio.refuses_unload = 500
    status, answer = ask(studio, UNLOAD, {"instance_id": "acme/large"})
    assert (status, answer["error"]["type"]) == (500, "internal_error")
    assert listed(studio) == {"acme/large": ["acme/large"]}
    studio.answers_half_json = True
    with pytest.raises(ValueError, match="Expecting value"):
        ask(studio, LIST)
    studio.answers_half_json, studio.answers_html = False, True
    with urllib.request.urlopen(studio.url + LIST) as response:
        assert response.headers.get_content_type() == "text/html"


def test_a_worker_that_ends_while_it_loads_is_told(studio: LmStudioServer) -> None:
    studio.load_s = 5.0
    answers: list[tuple[int, Any]] = []
    loading = threading.Thread(target=lambda: answers.append(ask(studio, LOAD, {"model": "small"})))
    loading.start()
    wait_until(lambda: any("serve" in words for words in processes().values()))
    next(process for process, words in processes().items() if "serve" in words).kill()
    loading.join()
    ((status, answer),) = answers
    assert (status, answer["error"]["type"]) == (500, "internal_error")
    assert listed(studio) == {}


def test_nothing_stays_behind() -> None:
    with LmStudioServer({"small": Model(SIZE)}) as studio:
        for studio.workers in ("llama-server", "llama-server below llmworker"):
            load(studio, "small")
        running = processes()
        assert len(running) == 4
    assert not any(process.is_running() for process in running)
