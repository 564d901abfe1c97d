"""Levels that Ollama loads: the adapter against the strict stand-in, and a whole ladder of them under pressure."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import ollama as ollama_client
import psutil
import pytest
from pydantic import HttpUrl

from scaler.descriptions import EVERYTHING, Description
from scaler.errors import LevelUnavailable, RequestRejected
from scaler.level_settings import OllamaLevel
from scaler.runtimes import listeners, ollama
from scaler.runtimes.gguf_size import OVERHEAD_BYTES
from scaler.runtimes.ollama import OllamaModel, OllamaRuntime
from scaler.runtimes.ollama_runners import runners
from tests.runtimes.answers import said
from tests.runtimes.ollama_server import Model, OllamaServer

MIB = 1024**2
SHAPE = {
    "general.architecture": "llama",
    "llama.block_count": 12,
    "llama.embedding_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 4,
}
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Who are you?"}]}


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    """An Ollama with two models."""
    models = {
        "small:latest": Model(size_bytes=20 * MIB, says=" The small one speaks", info=SHAPE),
        "large:latest": Model(size_bytes=60 * MIB, says=" The large one speaks", info=SHAPE),
    }
    with OllamaServer(models=models) as running:
        yield running


def level(server: OllamaServer | str, name: str = "small", **changes: Any) -> OllamaLevel:
    url = HttpUrl(server if isinstance(server, str) else server.url)
    settings: dict[str, Any] = {"name": name, "runtime": "ollama", "model": name, "url": url}
    return OllamaLevel(**{**settings, **changes})


@asynccontextmanager
async def loaded(settings: OllamaLevel) -> AsyncIterator[tuple[OllamaRuntime, OllamaModel]]:
    runtime = OllamaRuntime()
    model = await runtime.load(settings, lambda _: None)
    try:
        yield runtime, model
    finally:
        await model.unload()


async def kill_while_it_answers(settings: OllamaLevel) -> None:
    """The level's model; the answer, who watches it and its health all tell of that."""
    async with loaded(settings) as (_, model):
        watching = asyncio.create_task(model.died())
        answer = model.chat({"messages": [{"role": "user", "content": "Count."}]})
        await anext(answer)
        os.kill(model.pid, signal.SIGKILL)
        with pytest.raises(
            LevelUnavailable, match="in the middle of the answer: Ollama unloaded it or its process ended"
        ):
            [chunk async for chunk in answer]
        assert "its process ended" in await watching
        assert not await model.health()


@pytest.mark.parametrize("program", ["/usr/local/lib/ollama/llama-server", "ollama"])
def test_a_level_is_loaded_answers_and_is_unloaded(server: OllamaServer, program: str) -> None:
    """With the level's window, for as long as scaler says; its memory counts as own, and is back afterwards."""
    server.program = program

    async def body() -> None:
        async with loaded(level(server, context_tokens=2048, num_gpu=0)) as (runtime, model):
            held = server.loaded["small:latest"]
            assert (held.num_ctx, held.num_gpu, held.pid) == (2048, 0, model.pid)
            assert tuple(runtime.pids()) == (held.pid,)
            assert psutil.Process(held.pid).memory_info().rss > 20 * MIB
            assert await model.health()
            chunks = [chunk async for chunk in model.chat(ASKED)]
            assert said(chunks) == " The small one speaks"
            assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"
            assert chunks[-1]["usage"]["completion_tokens"] == 4
            # The options of an answer are those of the load, or Ollama would load it anew; it stays for ever.
            assert server.loaded["small:latest"].pid == held.pid
            assert float(server.loaded["small:latest"].keep_alive) < 0
        assert not server.loaded
        assert tuple(runtime.pids()) == ()
        assert not psutil.pid_exists(held.pid)

    asyncio.run(body())


def test_an_answer_is_continued_where_another_level_left_it(server: OllamaServer) -> None:
    """That is how answers are handed over."""

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            begun = [*ASKED["messages"], {"role": "assistant", "content": " The small"}]
            assert said([chunk async for chunk in model.chat({"messages": begun})]) == " one speaks"

    asyncio.run(body())


def test_a_prompt_is_completed(server: OllamaServer) -> None:
    """Without the chat template."""

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            chunks = [chunk async for chunk in model.complete({"prompt": "Count. 1 2", "max_tokens": 3})]
            assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == " 3 4 5"
            assert chunks[-2]["choices"][0]["finish_reason"] == "length"

    asyncio.run(body())


def test_what_somebody_else_loaded_is_loaded_anew(server: OllamaServer) -> None:
    """Its window may be another, and which process holds it must be known."""

    async def body() -> None:
        async with loaded(level(server, context_tokens=4096)) as (_, first):
            pid = first.pid
            async with loaded(level(server, context_tokens=512)) as (_, second):
                assert second.pid != pid
                assert server.loaded["small:latest"].num_ctx == 512

    asyncio.run(body())


def test_a_model_that_is_not_pulled_says_how_to_pull_it(server: OllamaServer) -> None:
    """When it is sized and when it is loaded."""
    absent = level(server, model="absent")
    for ask in (lambda: OllamaRuntime().footprint(absent), lambda: asyncio.run(OllamaRuntime().load(absent, print))):
        with pytest.raises(LevelUnavailable, match=r"^small: absent of Ollama at .*`ollama pull absent`"):
            ask()


def test_an_ollama_that_is_off_says_how_to_start_it() -> None:
    """Nobody listens at that port; which is no fault of a start that finds it so."""
    settings = OllamaLevel(name="small", runtime="ollama", model="small", url=HttpUrl("http://127.0.0.1:9"))
    asyncio.run(OllamaRuntime().release(settings))
    for ask in (
        lambda: OllamaRuntime().footprint(settings),
        lambda: asyncio.run(OllamaRuntime().load(settings, lambda _: None)),
    ):
        with pytest.raises(LevelUnavailable, match=r"^small: small of Ollama at .*`ollama serve`"):
            ask()


@pytest.mark.parametrize("reply", [b"<html>hello</html>", b'{"models": [', b'{"models": 3}', b"[]"])
def test_something_else_at_the_address_is_told_as_such(server: OllamaServer, reply: bytes) -> None:
    """HTML, half of JSON, another version's fields."""
    server.reply = reply
    with pytest.raises(LevelUnavailable, match=r"^small: small of Ollama at http"):
        asyncio.run(OllamaRuntime().load(level(server), lambda _: None))


@pytest.mark.parametrize(
    ("status", "reply", "told"),
    [
        (
            404,
            b'{"detail": "Not Found"}',
            r"does not speak Ollama's API \(404: .*Not Found.*\); correct the level's url$",
        ),
        (
            404,
            b"<html>\nnone</html>",
            r"does not speak Ollama's API \(404: <html> none</html>\); correct the level's url$",
        ),
        (500, b"<html>\n" + b"x" * 5000, r"Ollama answered 500: <html> x{393}$"),
        (500, b"[]", "does not speak Ollama's API .*correct the level's url$"),
        (200, b"[" * 100_000, "does not speak Ollama's API .*correct the level's url$"),
        (200, b'{"models": [{"size": "many"}]}', r"does not speak Ollama's API \(models\.0\.size: .*url$"),
        (
            401,
            b'{"error": "who?"}',
            "Ollama answered 401: set key_env to the environment variable that holds its API key",
        ),
        (503, b'{"error": "server busy"}', "Ollama answered 503: server busy$"),
    ],
)
def test_an_error_is_told_as_what_it_is(server: OllamaServer, status: int, reply: bytes, told: str) -> None:
    """Only Ollama's own word that a model is not there is a reason to pull it. Nothing fills a screen."""
    server.reply, server.reply_status = reply, status
    with pytest.raises(LevelUnavailable, match=rf"^small: small of Ollama at http.*{told}"):
        asyncio.run(OllamaRuntime().release(level(server)))


def test_nobody_is_followed_elsewhere(server: OllamaServer) -> None:
    """What another machine loads is not what is watched here."""
    with OllamaServer({"small:latest": Model(size_bytes=MIB)}) as other:
        server.elsewhere = other.url
        with pytest.raises(
            LevelUnavailable, match=r"answered 301: it sends whoever asks on to .*; correct the level's url"
        ):
            asyncio.run(OllamaRuntime().load(level(server), lambda _: None))
        assert not other.requests


def test_an_answer_that_never_ends_keeps_nobody_waiting(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for all of it: one for each piece would never be reached."""
    monkeypatch.setattr(ollama, "ASK_S", 0.3)
    monkeypatch.setattr(ollama, "UNLOAD_S", 0.3)

    async def body() -> None:
        runtime = OllamaRuntime()
        model = await runtime.load(level(server), lambda _: None)
        server.dribbles = True
        for asked in (
            runtime.load(level(server, load_timeout_s=0.3), lambda _: None),
            asyncio.to_thread(runtime.footprint, level(server)),
            runtime.release(level(server)),
            model.unload(),
        ):
            with pytest.raises(LevelUnavailable, match=r"^small: small of Ollama at http.*: no answer in time"):
                await asyncio.wait_for(asked, 10)
        assert runtime.describe(level(server)) == Description("small", 4096, capabilities=EVERYTHING)
        server.dribbles = False

    asyncio.run(body())


def test_a_key_is_shown_with_every_question(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in front of Ollama lets nobody in without; a wrong one is told, and is in no message."""
    server.token = "sesame"
    settings = level(server, key_env="SCALER_TEST_KEY")

    async def body() -> None:
        monkeypatch.setenv("SCALER_TEST_KEY", "sesame\n")
        async with loaded(settings) as (runtime, model):
            assert said([chunk async for chunk in model.chat(ASKED)]) == " The small one speaks"
            assert await model.health()
            await runtime.release(settings)
            assert await asyncio.to_thread(runtime.footprint, settings)
        assert not server.loaded
        monkeypatch.setenv("SCALER_TEST_KEY", "open-up")
        with pytest.raises(LevelUnavailable, match=r"401: the key in SCALER_TEST_KEY is not the right one$"):
            await OllamaRuntime().load(settings, lambda _: None)
        monkeypatch.setenv("SCALER_TEST_KEY", "open\nup")
        with pytest.raises(LevelUnavailable, match="SCALER_TEST_KEY holds what no API key can") as raised:
            await OllamaRuntime().load(settings, lambda _: None)
        assert "open" not in str(raised.value)

    asyncio.run(body())


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
def test_an_address_is_taken_as_people_write_it(server: OllamaServer, path: str) -> None:
    """With the /v1 of OpenAI's API, as other programs want it."""

    async def body() -> None:
        async with loaded(level(server, url=HttpUrl(server.url + path))) as (_, model):
            assert said([chunk async for chunk in model.chat(ASKED)]) == " The small one speaks"

    asyncio.run(body())


def test_one_that_will_not_unload_is_told_and_no_longer_ours(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch fails with this message, and its memory counts as the others'."""
    monkeypatch.setattr(ollama, "UNLOAD_S", 0.3)

    async def body() -> None:
        runtime = OllamaRuntime()
        model = await runtime.load(level(server), lambda _: None)
        server.refuse_unload = True
        with pytest.raises(LevelUnavailable, match=r"still holds it after 0.3 s; try `ollama stop small`"):
            await model.unload()
        assert tuple(runtime.pids()) == ()

    asyncio.run(body())


def test_what_a_killed_scaler_left_is_let_go_of_or_told(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stays holds memory, whether or not its level is ever loaded."""
    monkeypatch.setattr(ollama, "UNLOAD_S", 0.3)

    async def body() -> None:
        model = await OllamaRuntime().load(level(server), lambda _: None)
        server.refuse_unload = True
        with pytest.raises(LevelUnavailable, match=r"still holds it after 0.3 s; try `ollama stop small`"):
            await OllamaRuntime().release(level(server))
        server.refuse_unload = False
        await OllamaRuntime().release(level(server))
        assert not server.loaded
        await model.unload()

    asyncio.run(body())


def test_something_else_at_the_address_is_told_when_scaler_starts(server: OllamaServer) -> None:
    """Whether it holds anything cannot be told."""
    server.reply = b"<html>hello</html>"
    with pytest.raises(LevelUnavailable, match=r"^small: small of Ollama at http.* correct the level's url"):
        asyncio.run(OllamaRuntime().release(level(server)))


def test_another_model_than_asked_for_is_no_load(server: OllamaServer) -> None:
    """The machine's state stays true: nothing serves under a wrong name."""
    server.load_other = "large:latest"
    with pytest.raises(LevelUnavailable, match="asked to load it, Ollama has loaded large:latest"):
        asyncio.run(OllamaRuntime().load(level(server), lambda _: None))


def test_what_another_ollama_loads_at_the_same_moment_is_not_taken_for_it(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is no descendant of the one that listens here."""
    looks = 0

    def some() -> frozenset[int]:
        nonlocal looks
        looks += 1
        return runners() | (frozenset({os.getppid()}) if looks > 1 else frozenset())

    monkeypatch.setattr(ollama, "runners", some)

    async def body() -> None:
        async with loaded(level(server)) as (runtime, model):
            assert tuple(runtime.pids()) == (model.pid,) == (server.loaded["small:latest"].pid,)

    asyncio.run(body())


def test_a_load_that_takes_too_long_is_given_up(server: OllamaServer) -> None:
    """After the level's own limit."""
    server.delay_s = 5.0
    with pytest.raises(LevelUnavailable, match="no answer in time"):
        asyncio.run(OllamaRuntime().load(level(server, load_timeout_s=0.3), lambda _: None))


def test_an_ollama_that_hangs_keeps_nothing_waiting_longer_than_any_question(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that is given up is cleaned up before the next one begins."""
    monkeypatch.setattr(ollama, "ASK_S", 0.2)
    monkeypatch.setattr(ollama, "UNLOAD_S", 3600.0)

    async def body() -> None:
        runtime = OllamaRuntime()
        loading = await _hanging_load(runtime, server, monkeypatch)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(loading, 20)
        with pytest.raises(LevelUnavailable, match="no answer in time"):
            await asyncio.wait_for(runtime.release(level(server)), 20)
        server.delay_s = 0.0

    asyncio.run(body())


def test_what_a_load_that_is_given_up_holds_is_ours_until_its_process_has_ended(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ollama lists it no more, or not yet; as the others' it would drive away what is to come in its place."""
    runtime = OllamaRuntime()
    waited_for: list[tuple[int, tuple[int, ...]]] = []
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:

        async def gone(pid: int) -> None:
            waited_for.append((pid, tuple(runtime.pids())))
            process.kill()
            await listeners.gone(pid)

        async def body() -> None:
            loading = await _hanging_load(runtime, server, monkeypatch)
            server.delay_s = 0.0
            monkeypatch.setattr(ollama, "runners", lambda: frozenset({process.pid}))
            monkeypatch.setattr(ollama, "gone", gone)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            assert waited_for == [(process.pid, (process.pid,))]
            assert tuple(runtime.pids()) == ()

        asyncio.run(body())


async def _hanging_load(
    runtime: OllamaRuntime, server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> asyncio.Task[OllamaModel]:
    """A load that Ollama does not come back from, nor from any question after it."""
    begun = asyncio.Event()

    def before() -> frozenset[int]:
        server.delay_s = 3600.0
        begun.set()
        return frozenset()

    monkeypatch.setattr(ollama, "runners", before)
    loading = asyncio.create_task(runtime.load(level(server), lambda _: None))
    await begun.wait()
    return loading


def test_an_ollama_that_crashed_and_left_its_process_behind_has_no_model(server: OllamaServer) -> None:
    """It answers nobody, and another Ollama at the same address knows nothing of it; what it holds is told."""
    runner = "subprocess.Popen([sys.executable, '-c', 'input()'])"
    leaves = f"import subprocess, sys; print({runner}.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", leaves], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as crashing:
        assert crashing.stdout is not None
        left = psutil.Process(int(crashing.stdout.readline()))

        async def body() -> None:
            runtime = OllamaRuntime()
            model = OllamaModel(level(server), left.pid, False, runtime)
            assert await model.health()
            watching = asyncio.create_task(model.died())
            crashing.kill()
            crashing.wait()
            assert "Ollama ended and left its process behind" in await watching
            assert not await model.health()
            with pytest.raises(LevelUnavailable, match=rf"left its process behind \(process {left.pid}\); end that$"):
                await model.unload()
            left.kill()
            await model.unload()

        try:
            asyncio.run(body())
        finally:
            if left.is_running():
                left.kill()


def test_a_model_that_is_killed_is_noticed_and_its_answer_breaks_off(server: OllamaServer) -> None:
    """With what can be told of it; so that the next level goes on."""
    server.token_s = 0.05
    asyncio.run(kill_while_it_answers(level(server)))


def test_what_ollama_cannot_do_is_the_requests_fault(server: OllamaServer) -> None:
    """No level is blamed for it."""

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            with pytest.raises(RequestRejected, match="'n'"):
                [chunk async for chunk in model.chat({**ASKED, "n": 2})]

    asyncio.run(body())


def test_a_footprint_is_estimated_or_as_declared(server: OllamaServer) -> None:
    """The file, the cache of every slot, and the process; or what the person says."""
    few, many = (OllamaRuntime().footprint(level(server, context_tokens=n))["ram"] for n in (1024, 65536))
    assert 20 * MIB < few < many
    assert OllamaRuntime().footprint(level(server, ram_gib=1.0)) == {"ram": 1024 * MIB}
    assert OllamaRuntime().footprint(level(server, vram_gib=1.0))["gpu0"] == 1024 * MIB


def test_a_model_that_ollama_holds_takes_what_ollama_says(server: OllamaServer) -> None:
    """Which part of it is on the GPU, above all; held with another window it may take something else."""
    server.models["large:latest"] = replace(server.models["large:latest"], vram_bytes=50 * MIB)
    with ollama_client.Client(host=server.url) as somebody:
        for name in ("small", "large"):
            somebody.generate(name, options={"num_ctx": 2048})
    small, large = (OllamaRuntime().footprint(level(server, name, context_tokens=2048)) for name in ("small", "large"))
    assert small == {"ram": 20 * MIB + OVERHEAD_BYTES}
    assert large == {"ram": 10 * MIB + OVERHEAD_BYTES, "gpu0": 50 * MIB}
    assert "gpu0" not in OllamaRuntime().footprint(level(server, "large", context_tokens=4096))


def test_a_model_is_described_as_ollama_shows_it(server: OllamaServer) -> None:
    """What it can do decides what programs may ask of it; an Ollama that is off is not asked in vain for long."""
    server.models["small:latest"] = replace(server.models["small:latest"], capabilities=("completion", "vision"))
    runtime = OllamaRuntime()
    seen = runtime.describe(level(server, context_tokens=1024))
    assert (seen.family, seen.quantization, seen.capabilities) == ("llama", "Q4_K_M", ("completion", "vision"))
    assert (seen.context_tokens, seen.size_bytes, seen.weights) == (1024, 20 * MIB, 1_235_814_432)
    off = OllamaLevel(name="off", runtime="ollama", model="small", url=HttpUrl("http://127.0.0.1:9"))
    assert runtime.describe(off) == Description("small", 4096, capabilities=EVERYTHING)


def test_one_model_with_two_windows_is_never_loaded_twice(server: OllamaServer) -> None:
    """Ollama would load it anew in its place."""
    one, wide, other = level(server), level(server, context_tokens=8192), level(server, "large")
    assert not OllamaRuntime().apart(one, wide)
    assert OllamaRuntime().apart(one, other)


def test_unloading_twice_is_safe_and_a_model_that_came_back_goes_too(server: OllamaServer) -> None:
    """A request that was on its way when the process was killed has Ollama load it again, for ever."""

    async def body() -> None:
        runtime = OllamaRuntime()
        model = await runtime.load(level(server), lambda _: None)
        os.kill(model.pid, signal.SIGKILL)
        await model.died()
        assert said([chunk async for chunk in model.chat(ASKED)]) == " The small one speaks"
        assert server.loaded["small:latest"].pid != model.pid
        await model.unload()
        await model.unload()
        assert not server.loaded
        assert tuple(runtime.pids()) == ()

    asyncio.run(body())


def test_an_unload_that_was_given_up_can_be_asked_for_again(server: OllamaServer) -> None:
    """As at the end, when a switch was under way."""

    async def body() -> None:
        model = await OllamaRuntime().load(level(server), lambda _: None)
        server.refuse_unload = True
        unloading = asyncio.create_task(model.unload())
        while not any(path == "/api/generate" and asked.get("keep_alive") == 0 for path, asked in server.requests):
            await asyncio.sleep(0.01)
        unloading.cancel()
        await asyncio.gather(unloading, return_exceptions=True)
        server.refuse_unload = False
        await model.unload()
        assert not server.loaded

    asyncio.run(body())


def test_a_request_to_think_does_not_reach_a_model_that_cannot(server: OllamaServer) -> None:
    """Ollama would refuse it, and with it an answer that another level had begun."""

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            asked = {**ASKED, "reasoning_effort": "high"}
            assert said([chunk async for chunk in model.chat(asked)]) == " The small one speaks"

    asyncio.run(body())


def test_a_picture_counts_as_a_picture_and_tool_calls_count(server: OllamaServer) -> None:
    """Not as the letters that it is written in; and nothing that is sent is left out."""

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
            seen = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]
            assert await model.count_tokens({"messages": seen}) < 1100
            calls = [{"function": {"name": "f", "arguments": "x" * 3000}}]
            called = [{"role": "assistant", "content": None, "tool_calls": calls}]
            assert await model.count_tokens({"messages": called}) > 1000

    asyncio.run(body())


@pytest.mark.parametrize("written", ["Small", "small:latest", "library/small", "registry.ollama.ai/library/small"])
def test_a_model_is_the_same_however_its_name_is_written(server: OllamaServer, written: str) -> None:
    """So that it is never loaded beside itself."""
    assert not OllamaRuntime().apart(level(server), level(server, model=written))
