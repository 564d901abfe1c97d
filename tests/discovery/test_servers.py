"""What each kind of server is taken for, on real servers, the tests' strict stand-ins, and recorded answers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
from pydantic import HttpUrl

from scaler.discovery import asking, vllm
from scaler.discovery.found import CONTEXT_TOKENS, PARALLEL, Source
from scaler.discovery.places import Place, named
from scaler.discovery.searching import LEFT_ALONE, SCALER, STRANGER, search
from scaler.level_settings import EmbeddedLevel, LevelSettings, LlamaRouterLevel, ServedLevel
from scaler.levels import GIB, RAM
from scaler.manager import ModelManager
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.runtimes.llama_router import LlamaRouterRuntime
from scaler.serving.app import Endpoint
from tests.discovery.servers import answering, listing
from tests.llama_server_binary import BINARY, needs_llama_server
from tests.runtimes import lmstudio_server, ollama_server
from tests.runtimes.lmstudio_server import LmStudioServer
from tests.runtimes.ollama_server import OllamaServer
from tests.runtimes.openai_server import OpenAIServer
from tests.runtimes.test_embedded import free_port
from tests.runtimes.vllm_server import VllmServer
from tests.sensors.conftest import FakeNvml, nvml, nvml_library

__all__ = ["nvml", "nvml_library"]

EXCHANGES = Path(__file__).parent.parent / "runtimes" / "vllm_exchanges"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no reason to take a server for a bad one."""
    monkeypatch.setattr(asking, "NEAR_S", 10.0)


def only(url: str, key_env: str | None = None) -> Source:
    """What is at an address that a person named."""
    (source,) = search([named(url, key_env)], [])
    return source


def reasons(source: Source) -> dict[str, str]:
    """Why models of a server are no levels."""
    return {one.name: one.why for one in source.left_out}


def test_a_level_that_says_nothing_has_the_window_that_is_reckoned_with() -> None:
    """Or every estimate here would be of another level than the one that is written."""
    fields = LevelSettings.model_fields
    assert (fields["context_tokens"].default, fields["parallel"].default) == (CONTEXT_TOKENS, PARALLEL)


# ------------------------------------------------------------------------------------------------ Ollama


def test_ollama_is_asked_for_its_models_and_loads_none() -> None:
    """With their sizes and what they are; those that answer nobody are told apart."""
    models = {
        "llama3.2:3b": ollama_server.Model(1000, file_bytes=2 * GIB, parameter_size="3.2B"),
        "mystery": ollama_server.Model(1000, file_bytes=2 * GIB, parameter_size="unknown"),
        "nomic-embed-text": ollama_server.Model(1000, family="nomic-bert"),
        "qwen3-reranker:0.6b": ollama_server.Model(1000, family="qwen3"),
    }
    with OllamaServer(models) as server:
        source = only(server.url)
        assert not server.loaded
        assert {path: body for path, body in server.requests if body is not None} == {}
    assert (source.what, source.where) == ("Ollama 0.13.0", server.url)
    small, mystery = source.models
    assert (small.runtime, small.name, small.url, small.about) == ("ollama", "llama3.2:3b", server.url, "3.2B Q4_K_M")
    # 112 KiB a token is what Llama 3.2 3B caches; more than that is reckoned, and not twice as much.
    cache = CONTEXT_TOKENS * PARALLEL * 112 * 1024
    assert small.serving_bytes is not None
    assert 2 * GIB + cache < small.serving_bytes < 2 * GIB + 2 * cache
    assert mystery.serving_bytes is not None
    assert mystery.serving_bytes > 3 * GIB
    assert list(reasons(source)) == ["nomic-embed-text:latest", "qwen3-reranker:0.6b"]
    assert "embedding" in reasons(source)["nomic-embed-text:latest"]


def tag(name: str, **more: Any) -> dict[str, Any]:
    """An entry of Ollama's list."""
    return {"name": name, "model": name, "size": GIB, "details": {"family": "llama", "parameter_size": "1B"}, **more}


def test_an_odd_entry_spoils_no_other() -> None:
    """A model that another machine answers for, one without a size, names that no file could hold, and no entries."""
    odd = [
        tag("gpt-oss:120b-cloud", size=384, remote_host="https://ollama.com:443"),
        tag("empty", size=0),
        tag("sizeless", size="large"),
        tag("\x1b[31mred"),
        tag("x" * 1000),
        tag(""),
        {"size": 1},
        "a text",
        None,
        tag("good", details={"family": None, "parameter_size": 7}),
    ]
    with answering({"/api/version": {"version": "9"}, "/api/tags": {"models": odd}}) as server:
        source = only(server.url)
    assert [model.name for model in source.models] == ["good"]
    told = reasons(source)
    assert "another machine" in told["gpt-oss:120b-cloud"]
    assert "how large" in told["empty"]
    assert "how large" in told["sizeless"]
    assert "cannot be printed" in told["?[31mred"]
    assert "longer than" in told["x" * 59 + "…"]
    assert all(name.isprintable() and why.isprintable() for name, why in told.items())


def test_who_only_speaks_ollamas_language_is_no_ollama() -> None:
    """KoboldCpp answers to both of Ollama's paths, and can load nothing."""
    kobold = tag("koboldcpp/tiny", details={"family": "koboldcpp"})
    answers = {
        "/api/version": {"version": "0.7.0"},
        "/api/tags": {"models": [kobold]},
        "/v1/models": listing("koboldcpp/tiny", owner="koboldcpp"),
    }
    with answering(answers) as server:
        source = only(server.url)
    assert source.what == "a server with OpenAI's API (koboldcpp)"
    assert [(model.runtime, model.name) for model in source.models] == [("openai", "koboldcpp/tiny")]


# ------------------------------------------------------------------------------------------------ LM Studio


def test_lm_studio_is_asked_for_its_models_and_loads_none() -> None:
    """Reckoned by their sizes, with the window that they would be loaded with."""
    models = {
        "qwen/qwen3-4b": lmstudio_server.Model(1000, file_bytes=2 * GIB, params_string="4B", max_context_length=32768),
        "short": lmstudio_server.Model(1000, file_bytes=2 * GIB, params_string="4B", max_context_length=2048),
        "tiny-window": lmstudio_server.Model(1000, max_context_length=128),
        "text-embedding-nomic": lmstudio_server.Model(1000, type="embedding"),
        "sizeless": lmstudio_server.Model(1000, file_bytes=0),
    }
    with LmStudioServer(models) as server:
        source = only(server.url)
        assert not server.loaded
        assert all(body is None for _, body in server.requests)
        assert server.faults == ["GET /api/version is not known"]
        server.faults.clear()
    large, short = source.models
    assert (large.runtime, large.name, large.url, large.about) == ("lmstudio", "qwen/qwen3-4b", server.url, "4B Q4_K_M")
    assert (large.context_tokens, short.context_tokens) == (4096, 2048)
    # 144 KiB a token is what Qwen3 4B caches.
    assert large.serving_bytes == pytest.approx(2 * GIB + 8192 * 144 * 1024, rel=0.05)
    assert short.serving_bytes == pytest.approx(2 * GIB + 2048 * 144 * 1024, rel=0.05)
    assert list(reasons(source)) == ["tiny-window", "text-embedding-nomic", "sizeless"]


@pytest.mark.parametrize("status", [200, 404])
def test_an_lm_studio_that_is_too_old_is_told_so(status: int) -> None:
    """It answers 200 to what it does not know."""
    with LmStudioServer({"a": lmstudio_server.Model(1000)}) as server:
        server.old_version, server.unknown_status = True, status
        source = only(server.url)
        server.faults.clear()
    if status == 200:
        assert (source.what, source.models) == ("LM Studio", ())
        assert "0.4 or newer is needed" in source.note
    else:
        # Nothing tells it from any other server with OpenAI's API.
        assert [model.runtime for model in source.models] == ["openai"]


# ------------------------------------------------------------------------------------------------ llama-server


@pytest.fixture
def folder(tmp_path: Path, demo_models: dict[str, Path]) -> Path:
    """A folder with the demo models small and medium."""
    for name in ("small", "medium"):
        (tmp_path / f"{name}.gguf").symlink_to(demo_models[name])
    return tmp_path


@contextmanager
def llama_server(*arguments: str, port: int) -> Iterator[str]:
    """A real llama-server on a port, once it answers."""
    command = [str(BINARY), "--port", str(port), *arguments]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(BINARY.parent)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while not search([Place(url)], []):
            assert process.poll() is None, "it ended"
            assert time.monotonic() < until, "it does not answer"
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@needs_llama_server
@pytest.mark.parametrize("arguments", [(), ("--ctx-size", "10000", "--parallel", "4")], ids=["plain", "divided"])
def test_a_router_has_models_that_it_can_load(folder: Path, arguments: tuple[str, ...]) -> None:
    """With what its adapter will estimate for them; nothing is loaded for it."""
    with llama_server("--models-dir", str(folder), *arguments, port=free_port()) as url:
        source = only(url)
        assert (source.what, source.left_out) == ("llama-server (router)", ())
        assert ("--ctx-size 8192" in source.note) == (not arguments)
        assert sorted(model.name for model in source.models) == ["medium", "small"]
        for model in source.models:
            assert (model.runtime, model.url) == ("llama-router", url)
            # A quarter of the window for each of four requests.
            assert model.context_tokens == (2500 if arguments else 4096)
            level = LlamaRouterLevel(
                runtime="llama-router",
                name="a",
                url=HttpUrl(url),
                model=model.name,
                context_tokens=model.context_tokens,
            )
            assert LlamaRouterRuntime().footprint(level) == {RAM: model.serving_bytes}
        assert psutil.Process(source.pid).name().startswith("llama-server")
        assert psutil.Process(source.pid).children() == []


def routed(name: str, *arguments: str, status: str = "unloaded") -> dict[str, Any]:
    """An entry of a router's list."""
    return {"id": name, "object": "model", "status": {"value": status, "args": ["llama-server", *arguments]}}


def test_a_routers_model_without_a_file_that_can_be_looked_into_is_left_out(
    demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """Its size would be a guess; a pipe would hold up whoever looks."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    models = [
        routed("good", "--model", str(demo_models["small"])),
        routed("fetched", "--hf-repo", "somebody/something"),
        routed("elsewhere", "--model", str(tmp_path / "none.gguf")),
        routed("endless", "--model", str(demo_models["small"]), "--ctx-size", "9" * 5000),
        routed("narrow", "--model", str(demo_models["small"]), "--ctx-size", "512", "--parallel", "4"),
        routed("pipe", "--model", str(pipe)),
        routed("bge-m3", "--model", str(demo_models["small"])),
        {"id": "odd"},
    ]
    answers = {
        "/v1/models": {"data": models},
        "/models": {"data": models},
        "/props": {"role": "router", "model_path": "none", "default_generation_settings": {"params": None, "n_ctx": 0}},
    }
    with answering(answers) as server:
        source = only(server.url)
    assert [model.name for model in source.models] == ["good", "endless"]
    assert list(reasons(source)) == ["fetched", "elsewhere", "narrow", "pipe", "bge-m3"]


def test_a_llama_server_with_one_model_can_only_be_sent_requests(demo_models: dict[str, Path]) -> None:
    """scaler's own llama.cpp, on a port; it has no way to unload its model."""
    level = EmbeddedLevel(name="a", model=demo_models["small"], context_tokens=512, parallel=1, port=free_port())
    url = f"http://127.0.0.1:{level.port}"

    async def body() -> Source:
        model = await EmbeddedRuntime().load(level, lambda _: None)
        try:
            return await asyncio.to_thread(only, url)
        finally:
            await model.unload()

    source = asyncio.run(body())
    assert (source.what, source.where) == ("llama-server", url)
    (found,) = source.models
    assert (found.runtime, found.serving_bytes, found.context_tokens) == ("openai", None, 512)
    assert "--models-dir" in source.note


# ------------------------------------------------------------------------------------------------ vLLM


def recorded(*names: str) -> dict[str, Any]:
    """What a real vLLM answered to GET."""
    answers: dict[str, Any] = {}
    for name in names:
        for exchange in json.loads((EXCHANGES / f"{name}.json").read_text())["exchanges"]:
            request, answer = exchange["request"], exchange["response"]
            if request["method"] == "GET":
                answers.setdefault(request["path"], (answer["status"], answer.get("body")))
    return answers


def test_a_vllm_that_cannot_sleep_can_only_be_sent_requests() -> None:
    """The variable that it lacks is named."""
    with answering(recorded("discovery", "without_dev_mode")) as server:
        source = only(server.url)
    assert source.what == "vLLM 0.32.0"
    assert [(model.runtime, model.name, model.context_tokens) for model in source.models] == [("openai", "tiny", 1024)]
    assert "VLLM_SERVER_DEV_MODE=1" in source.note


def test_a_vllm_whose_gpu_memory_cannot_be_seen_is_left_out() -> None:
    """As on a machine without a GPU: a level of it has to say what it takes."""
    with VllmServer() as server:
        source = only(server.url)
    assert (source.what, source.models) == ("vLLM 0.32.0", ())
    assert "vram_gib" in reasons(source)["tiny"]


def test_a_vllm_that_is_awake_takes_what_it_holds_of_each_of_its_gpus(nvml: FakeNvml) -> None:
    """It and its engine; what others hold is not its own. Nothing is put to sleep for it."""
    for _ in range(3):
        nvml.gpu("Fake GPU", 24 * GIB, GIB)
    with VllmServer(size_bytes=9 * GIB, state=nvml.state, gpus=(0, 2), max_model_len=2048) as server:
        source = only(server.url)
        assert all(body is None for _, body in server.requests)
    (model,) = source.models
    assert (model.runtime, model.name, model.url) == ("vllm", "tiny", server.url)
    assert (model.serving_bytes, model.gpus, model.context_tokens) == (9 * GIB, (0, 2), 2048)


def test_a_vllm_that_sleeps_takes_what_it_was_told_to_when_awake(nvml: FakeNvml) -> None:
    """Asleep it holds little, which tells on which GPU it is."""
    nvml.gpu("Fake GPU", 24 * GIB, GIB)
    with VllmServer(size_bytes=9 * GIB, state=nvml.state) as server:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/sleep?level=1", method="POST")).close()
        source = only(server.url)
    (model,) = source.models
    # Its command line says nothing, so it is as much as vLLM takes by itself.
    assert (model.serving_bytes, model.gpus) == (int(0.92 * 24 * GIB), (0,))


@pytest.mark.parametrize(
    ("told", "share"),
    [
        ("vllm serve a --gpu-memory-utilization 0.4", 0.4),
        ("vllm serve --gpu_memory_utilization=.85 a", 0.85),
        ("vllm serve a --gpu-memory-utilization 1", 1.0),
        ("vllm serve a --gpu-memory-utilization lots", None),
        ("vllm serve a", None),
    ],
)
def test_what_a_vllm_was_told_to_take_is_read_from_its_command_line(told: str, share: float | None) -> None:
    """In the ways in which it may be written."""
    found = vllm.SHARE.search(told)
    assert (float(found[1]) if found else None) == share


# ------------------------------------------------------------------------------------------------ with a key


@contextmanager
def locked_up(runtime: str, key: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server of that kind that answers nobody without this key."""
    match runtime:
        case "ollama":
            with OllamaServer({"a": ollama_server.Model(1000)}) as ollama:
                ollama.token = key
                yield ollama.url
                ollama.faults.clear()
        case "lmstudio":
            with LmStudioServer({"a": lmstudio_server.Model(1000)}) as studio:
                studio.token = key
                yield studio.url
                studio.faults.clear()
        case "vllm":
            nvml: FakeNvml = request.getfixturevalue("nvml")
            nvml.gpu("Fake GPU", 24 * GIB, GIB)
            with VllmServer(size_bytes=9 * GIB, state=nvml.state, api_key=key) as server:
                yield server.url
        case "llama-router":
            models = str(request.getfixturevalue("folder"))
            with llama_server("--models-dir", models, "--api-key", key, port=free_port()) as url:
                yield url
        case _:
            with OpenAIServer(a="I am a") as other:
                other.key = key
                yield other.url


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(runtime, marks=needs_llama_server if runtime == "llama-router" else ())
        for level in ServedLevel.__subclasses__()
        for runtime in get_args(level.model_fields["runtime"].annotation)
    ],
)
def test_a_server_that_wants_a_key_is_shown_the_one_that_is_named_and_so_are_its_levels(
    runtime: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of a variable; the key itself is nowhere in what is found."""
    monkeypatch.setenv("WRONG_KEY", "sk-test-wrong")
    monkeypatch.setenv("RIGHT_KEY", "sk-test-right")
    with locked_up(runtime, "sk-test-right", request) as url:
        locked, wrong, right = only(url), only(url, "WRONG_KEY"), only(url, "RIGHT_KEY")
        (unnamed,) = search([Place(url)], [])
    assert (locked.models, wrong.models) == ((), ())
    assert "--key-env" in locked.note
    assert "WRONG_KEY" in wrong.note
    assert {(model.runtime, model.key_env) for model in right.models} == {(runtime, "RIGHT_KEY")}
    assert "sk-test" not in repr((locked, wrong, right))
    assert unnamed == locked


# ------------------------------------------------------------------------------------------------ others


def test_any_server_with_openais_api_can_be_sent_requests() -> None:
    """With or without /v1 in its address."""
    with OpenAIServer(tiny="I am tiny", **{"text-embedding-3-small": ""}) as server:
        for url in (server.url, f"{server.url}/v1"):
            source = only(url)
            assert [(model.runtime, model.name, model.url) for model in source.models] == [
                ("openai", "tiny", server.url)
            ]
            assert list(reasons(source)) == ["text-embedding-3-small"]
            assert "neither load nor unload" in source.note


def test_an_address_with_a_path_of_its_own_stays_as_it_is() -> None:
    """Some have their API below another path; a level takes what its url says as the whole of it."""
    with answering({"/api/v1/models": listing("big")}) as server:
        assert [model.url for model in only(f"{server.url}/api/v1").models] == [f"{server.url}/api/v1"]


def test_scaler_itself_is_recognised_and_left_alone(tmp_path: Path, demo_models: dict[str, Path]) -> None:
    """It speaks Ollama's language and OpenAI's; a ladder of its own levels would be a ring."""
    config = tmp_path / "scaler.yaml"
    paths = {"journal": {"path": "j.jsonl"}, "recording": {"path": "recording"}}
    config.write_text(json.dumps({"ladder": [{"name": "a", "model": str(demo_models["small"])}], **paths}))
    with ModelManager(config) as manager:
        endpoint = Endpoint(manager, "127.0.0.1", 0)
        endpoint.start()
        try:
            source = only(endpoint.url)
        finally:
            endpoint.stop()
    assert (source.what, source.note, source.models) == (SCALER, LEFT_ALONE, ())
    assert source.pid == os.getpid()


def test_servers_elsewhere_can_only_be_sent_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is not this machine's. The test's own machine goes by another name here."""
    monkeypatch.setattr("scaler.discovery.places.LOOPBACK", ())
    with (
        OllamaServer({"a": ollama_server.Model(1000)}) as ollama,
        LmStudioServer({"b": lmstudio_server.Model(1000)}) as lm_studio,
    ):
        sources = search([named(ollama.url), named(lm_studio.url)], [])
        ollama.faults.clear()
        lm_studio.faults.clear()
    assert [source.what for source in sources] == ["Ollama 0.13.0", "LM Studio"]
    assert [(one.runtime, one.serving_bytes) for source in sources for one in source.models] == [("openai", None)] * 2
    assert all("another machine" in source.note and source.pid is None for source in sources)


def test_all_places_are_asked_at_once_and_told_in_their_order() -> None:
    """Nobody waits for the slowest of them more than once."""
    with (
        answering({"/v1/models": listing("one")}) as first,
        answering({"/v1/models": listing("two")}) as second,
    ):
        sources = search([Place(second.url), Place(first.url)], [])
    assert [[model.name for model in source.models] for source in sources] == [["two"], ["one"]]
    assert all(line.startswith("GET ") for line in first.asked + second.asked)
    assert STRANGER not in {source.note for source in sources}
