"""Levels that LM Studio loads: the adapter against the strict stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import HttpUrl

from scaler.errors import LevelUnavailable, NeverAsked, RequestRejected
from scaler.level_settings import LmStudioLevel
from scaler.runtimes import lmstudio, lmstudio_rest
from scaler.runtimes.lmstudio import LmStudioModel, LmStudioRuntime
from scaler.runtimes.lmstudio_size import cached_bytes, weights_named
from scaler.runtimes.lmstudio_workers import holders
from scaler.runtimes.steering import ASK_S
from scaler.sensors.processes import process_tree
from tests.runtimes.answers import said
from tests.runtimes.lmstudio_server import LmStudioServer, Model, Workers, processes

MIB = 1024**2
LIMIT_S = 60.0
"""For what comes at once, on a machine that may be busy."""
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Who are you?"}]}
COUNT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count."}]}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
WORKERS: list[Workers] = ["llama-server", "llmworker", "llama-server below llmworker"]


@pytest.fixture
def server() -> Iterator[LmStudioServer]:
    """An LM Studio with two models, one for Apple's chips, and one that embeds."""
    models = {
        "small": Model(20 * MIB, " The small one speaks"),
        "acme/large": Model(60 * MIB, " The large one speaks"),
        "acme/apple": Model(20 * MIB, format="mlx", max_context_length=2048),
        "embed": Model(20 * MIB, type="embedding"),
    }
    with LmStudioServer(models) as running:
        yield running


def level(server: LmStudioServer, name: str = "small", **changes: Any) -> LmStudioLevel:
    settings: dict[str, Any] = {"name": name, "runtime": "lmstudio", "model": name, "url": HttpUrl(server.url)}
    return LmStudioLevel(**{**settings, **changes})


@asynccontextmanager
async def loaded(settings: LmStudioLevel) -> AsyncIterator[tuple[LmStudioRuntime, LmStudioModel]]:
    runtime = LmStudioRuntime()
    model = await runtime.load(settings, lambda _: None)
    try:
        yield runtime, model
    finally:
        await model.unload()


async def somebody(server: LmStudioServer, path: str, body: Any) -> Any:
    """What LM Studio answers to another program."""

    def post() -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    return await asyncio.to_thread(post)


async def until(holds: Callable[[], Any]) -> None:
    """Wait for what another thread or process does."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            await asyncio.sleep(0.01)


def works() -> bool:
    """Whether any of LM Studio's processes holds, or begins to hold, a model."""
    return any("systemresourcesworker" not in "".join(words) for words in processes().values())


@pytest.mark.parametrize("workers", WORKERS)
def test_a_level_is_loaded_answers_and_is_unloaded(server: LmStudioServer, workers: Workers) -> None:
    """Its memory counts as own, wherever LM Studio keeps it, and is back afterwards."""
    server.workers = workers

    async def body() -> None:
        steps: list[float] = []
        runtime = LmStudioRuntime()
        model = await runtime.load(level(server), steps.append)
        assert (steps[0], steps[-1]) == (0.0, 1.0)
        holder = psutil.Process(server.loaded["small"].pid)
        assert tuple(runtime.pids()) == (model.pid,)
        tree = process_tree(runtime.pids)
        assert holder.pid in tree.pids()
        assert tree.ram_bytes() > 20 * MIB
        assert await model.health()
        chunks = [chunk async for chunk in model.chat(ASKED)]
        assert said(chunks) == " The small one speaks"
        assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"
        assert chunks[-1]["usage"]["completion_tokens"] == 4
        await model.unload()
        assert not server.loaded
        assert tuple(runtime.pids()) == ()
        assert not holder.is_running()
        assert not await model.health()

    asyncio.run(body())


def test_an_answer_is_continued_where_another_level_left_it(server: LmStudioServer) -> None:
    """That is how answers are handed over, and nothing of what scaler adds then is strange to LM Studio."""

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            begun = [*ASKED["messages"], {"role": "assistant", "content": " The small"}]
            asked = {"messages": begun, "chat_template_kwargs": {"enable_thinking": False}}
            assert said([chunk async for chunk in model.chat(asked)]) == " one speaks"

    asyncio.run(body())


def test_a_prompt_is_completed(server: LmStudioServer) -> None:
    """Without the chat template."""

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            chunks = [chunk async for chunk in model.complete({"prompt": "Count. 1 2", "max_tokens": 3})]
            assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == " 3 4 5"
            assert chunks[-2]["choices"][0]["finish_reason"] == "length"

    asyncio.run(body())


@pytest.mark.parametrize(
    ("changes", "window"),
    [({}, 8192), ({"context_tokens": 1024, "parallel": 3}, 3072), ({"context_tokens": 8192, "parallel": 4}, 8192)],
)
def test_the_window_holds_all_requests_that_are_answered_at_a_time(
    server: LmStudioServer, changes: dict[str, Any], window: int
) -> None:
    """To LM Studio it is one; and never more than the model has."""

    async def body() -> None:
        async with loaded(level(server, flash_attention=False, **changes)):
            assert server.loaded["small"].config["context_length"] == window
            assert server.loaded["small"].config["flash_attention"] is False

    asyncio.run(body())


def test_what_somebody_else_loaded_is_left_alone(server: LmStudioServer) -> None:
    """The level gets an instance of its own, asks that one, and unloads only that one."""

    async def body() -> None:
        await somebody(server, "/api/v1/models/load", {"model": "small", "context_length": 256})
        others = server.loaded["small"].pid
        async with loaded(level(server)) as (runtime, model):
            assert tuple(runtime.pids()) == (server.loaded["small:2"].pid,)
            assert (await anext(model.chat(ASKED)))["model"] == "small:2"
        assert {name: instance.pid for name, instance in server.loaded.items()} == {"small": others}

    asyncio.run(body())


def test_one_model_may_be_two_levels(server: LmStudioServer) -> None:
    """LM Studio holds it twice then, each with its own window."""
    narrow, wide = level(server, context_tokens=512), level(server, "small", context_tokens=2048)
    assert LmStudioRuntime().apart(narrow, wide)

    async def body() -> None:
        runtime = LmStudioRuntime()
        first = await runtime.load(narrow, lambda _: None)
        second = await runtime.load(wide, lambda _: None)
        assert set(runtime.pids()) == {instance.pid for instance in server.loaded.values()}
        await first.unload()
        assert said([chunk async for chunk in second.chat(ASKED)]) == " The small one speaks"
        await second.unload()
        assert not server.loaded

    asyncio.run(body())


def test_other_processes_that_come_meanwhile_are_not_taken_for_the_models(server: LmStudioServer) -> None:
    """The app starts others as it likes."""
    server.load_s = 0.5

    async def body() -> None:
        loading = asyncio.create_task(LmStudioRuntime().load(level(server), lambda _: None))
        await until(works)
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
        model = await loading
        assert model.pid == server.loaded["small"].pid
        await model.unload()
        await other.communicate(b"\n")

    asyncio.run(body())


def test_a_model_that_others_load_at_the_same_moment_is_not_guessed_at(server: LmStudioServer) -> None:
    """The load fails, says why, and what it had loaded is gone again."""
    server.load_s = 0.5

    async def body() -> None:
        runtime = LmStudioRuntime()
        loading = asyncio.create_task(runtime.load(level(server), lambda _: None))
        await until(works)
        await somebody(server, "/api/v1/models/load", {"model": "acme/large"})
        with pytest.raises(LevelUnavailable, match=r"of 2 new processes .* load nothing else meanwhile"):
            await loading
        assert list(server.loaded) == ["acme/large"]
        assert tuple(runtime.pids()) == ()

    asyncio.run(body())


FORWARDER = """\
import asyncio, sys
async def pump(reader, writer):
    while block := await reader.read(65536):
        writer.write(block)
    writer.close()
async def meet(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
async def main():
    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


def test_an_lm_studio_whose_processes_are_elsewhere_is_told_as_such(server: LmStudioServer) -> None:
    """As behind the port of a container: what listens on this machine has no such processes below it."""
    port = str(HttpUrl(server.url).port)
    with subprocess.Popen(
        [sys.executable, "-c", FORWARDER, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forwarder:
        assert forwarder.stdout is not None
        url = HttpUrl(f"http://127.0.0.1:{forwarder.stdout.readline().strip()}")
        with pytest.raises(LevelUnavailable, match=r"of 0 new processes .* its memory cannot be told"):
            asyncio.run(LmStudioRuntime().load(level(server, url=url), lambda _: None))
        assert not server.loaded
        forwarder.communicate("")


# -------------------------------------------------------------------- what goes wrong with a load


def test_a_model_that_is_not_there_says_how_to_get_it(server: LmStudioServer) -> None:
    """When it is sized and when it is loaded; one that only embeds is none either."""
    absent = level(server, model="absent")
    for ask in (lambda: LmStudioRuntime().footprint(absent), lambda: load(absent)):
        with pytest.raises(LevelUnavailable, match=r"^small: absent of LM Studio at http.*`lms get absent`"):
            ask()
    with pytest.raises(LevelUnavailable, match=r"^embed: embed of LM Studio at http.*it embeds texts"):
        load(level(server, "embed"))


def load(settings: LmStudioLevel) -> None:
    """Begin to load a level, of which nothing good is expected."""
    asyncio.run(LmStudioRuntime().load(settings, lambda _: None))


def test_an_lm_studio_that_is_off_says_how_to_start_it() -> None:
    """Nobody listens at that port."""
    settings = LmStudioLevel(name="small", runtime="lmstudio", model="small", url=HttpUrl("http://127.0.0.1:9"))
    for ask in (lambda: LmStudioRuntime().footprint(settings), lambda: load(settings)):
        with pytest.raises(
            LevelUnavailable, match=r"^small: small of LM Studio at .*`lms server start --port 9`, or set"
        ):
            ask()


def test_something_else_at_the_address_is_told_as_such(server: LmStudioServer) -> None:
    """HTML, or half of JSON."""
    server.answers_html = True
    with pytest.raises(LevelUnavailable, match=r"does not speak the API of LM Studio .* correct the level's url"):
        load(level(server))
    server.answers_html, server.answers_half_json = False, True
    with pytest.raises(LevelUnavailable, match=r"does not speak the API of LM Studio .* correct the level's url"):
        load(level(server))


@pytest.mark.parametrize("status", [200, 404])
def test_an_lm_studio_that_is_too_old_says_which_is_needed(server: LmStudioServer, status: int) -> None:
    """Before 0.4 it had no such API."""
    server.old_version, server.unknown_status = True, status
    for ask in (lambda: LmStudioRuntime().footprint(level(server)), lambda: load(level(server))):
        with pytest.raises(LevelUnavailable, match=r"^small: .*LM Studio 0\.4 or newer is needed"):
            ask()


def test_a_key_is_sent_and_a_wrong_one_told(server: LmStudioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that is asked: lists, loads and answers."""
    server.token = "sk-lm-right"
    with pytest.raises(LevelUnavailable, match="401: set key_env to the environment variable"):
        load(level(server))
    monkeypatch.setenv("STUDIO_KEY", "sk-lm-wrong")
    with pytest.raises(LevelUnavailable, match="401: the key in STUDIO_KEY is not the right one"):
        load(level(server, key_env="STUDIO_KEY"))
    monkeypatch.setenv("STUDIO_KEY", "sk-lm-right")

    async def body() -> None:
        async with loaded(level(server, key_env="STUDIO_KEY")) as (_, model):
            assert await model.health()
            assert said([chunk async for chunk in model.chat(ASKED)]) == " The small one speaks"

    asyncio.run(body())


def test_another_model_than_asked_for_is_no_load(server: LmStudioServer) -> None:
    """The machine's state stays true: nothing serves under a wrong name, and it does not stay."""
    server.loads_instead = "acme/large"
    with pytest.raises(LevelUnavailable, match="asked to load it, LM Studio has loaded acme/large"):
        load(level(server))
    assert not server.loaded


def test_a_window_that_is_too_small_is_told(server: LmStudioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model may not have as much, and LM Studio may not heed what it is asked for."""
    with pytest.raises(LevelUnavailable, match="2048 tokens at the most; lower the level's context_tokens"):
        load(level(server, "acme/apple", context_tokens=4096))
    monkeypatch.setattr(server, "_config", lambda *_: {"context_length": 1024, "parallel": 4})
    with pytest.raises(LevelUnavailable, match="with a context window of 1024 tokens; lower"):
        load(level(server, context_tokens=2048))
    assert not server.loaded


def test_a_model_for_apples_chips_is_loaded_with_all_its_window(server: LmStudioServer) -> None:
    """Which LM Studio takes whatever is asked."""

    async def body() -> None:
        async with loaded(level(server, "acme/apple", context_tokens=512)) as (_, model):
            assert said([chunk async for chunk in model.chat(ASKED)]) == " one two three"

    asyncio.run(body())


def test_a_load_that_takes_too_long_is_given_up_and_does_not_stay(server: LmStudioServer) -> None:
    """After the level's own limit; what LM Studio then still loads counts as own until it has been unloaded."""
    server.keeps_loading = True

    async def body() -> None:
        runtime = LmStudioRuntime()
        with pytest.raises(LevelUnavailable, match=r"not loaded within 0.2 s; raise load_timeout_s"):
            await runtime.load(level(server, load_timeout_s=0.2), lambda _: None)
        # On a busy machine the process that is to hold it takes longer than that to come up.
        await until(runtime.pids)
        assert len(runtime.pids()) == 1
        server.keeps_loading = False
        await until(lambda: not works())
        await until(lambda: not runtime.pids())
        assert not server.loaded

    asyncio.run(body())


def test_a_load_that_is_cancelled_leaves_nothing_behind(server: LmStudioServer) -> None:
    """LM Studio breaks no load off, so that its end is waited for."""
    server.keeps_loading = True

    async def body() -> None:
        runtime = LmStudioRuntime()
        loading = asyncio.create_task(runtime.load(level(server), lambda _: None))
        await until(runtime.pids)
        loading.cancel()
        server.keeps_loading = False
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert not server.loaded
        assert not works()
        assert tuple(runtime.pids()) == ()

    asyncio.run(body())


def test_at_the_end_a_load_that_was_given_up_is_waited_for(server: LmStudioServer) -> None:
    """Else LM Studio would hold what nobody wants."""
    server.keeps_loading = True

    async def body() -> None:
        runtime = LmStudioRuntime()
        with pytest.raises(LevelUnavailable, match=r"not loaded within 0\.2 s"):
            await runtime.load(level(server, load_timeout_s=0.2), lambda _: None)
        await until(works)
        closing = asyncio.create_task(runtime.close())
        await asyncio.sleep(0)
        assert not closing.done()
        server.keeps_loading = False
        await closing
        assert not server.loaded
        assert not works()
        assert tuple(runtime.pids()) == ()
        await runtime.close()

    asyncio.run(body())


def test_a_load_that_does_not_end_is_left_and_told(server: LmStudioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No end of scaler takes for ever; asked again, it waits again."""
    monkeypatch.setattr(lmstudio, "CLOSE_S", 0.1)
    server.keeps_loading = True

    async def body() -> None:
        runtime = LmStudioRuntime()
        with pytest.raises(LevelUnavailable, match=r"not loaded within 0\.2 s"):
            await runtime.load(level(server, load_timeout_s=0.2), lambda _: None)
        with pytest.raises(LevelUnavailable, match=r"^small: small of LM Studio at .* still loads it.*`lms unload ID`"):
            await runtime.close()
        server.keeps_loading = False
        monkeypatch.setattr(lmstudio, "CLOSE_S", LIMIT_S)
        await runtime.close()
        assert not server.loaded

    asyncio.run(body())


def test_a_load_that_was_given_up_and_will_not_unload_is_told_at_the_end(
    server: LmStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person has to do it."""
    monkeypatch.setattr(lmstudio_rest, "UNLOAD_S", 0.3)
    server.keeps_loading, server.refuses_unload = True, 500

    async def body() -> None:
        runtime = LmStudioRuntime()
        with pytest.raises(LevelUnavailable, match=r"not loaded within 0\.2 s"):
            await runtime.load(level(server, load_timeout_s=0.2), lambda _: None)
        server.keeps_loading = False
        with pytest.raises(LevelUnavailable, match=r"^small: .*try `lms unload small`$"):
            await runtime.close()

    asyncio.run(body())


def test_the_machines_processes_are_not_looked_at_for_each_sensor(
    server: LmStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a level loads, several ask within one reading; which process is the model's is never told from memory."""
    looks = 0

    def looked_at(listens: int, before: Collection[int]) -> frozenset[int]:
        nonlocal looks
        looks += 1
        return holders(listens, before)

    monkeypatch.setattr(lmstudio, "holders", looked_at)
    monkeypatch.setattr(lmstudio, "SEEN_S", 3600.0)
    server.keeps_loading = True

    async def body() -> None:
        runtime = LmStudioRuntime()
        loading = asyncio.create_task(runtime.load(level(server), lambda _: None))
        await until(lambda: runtime.pids() or looks)
        for _ in range(10):
            runtime.pids()
        assert looks == 1
        monkeypatch.setattr(lmstudio, "SEEN_S", 0.0)
        await until(runtime.pids)
        monkeypatch.setattr(lmstudio, "SEEN_S", 3600.0)
        server.keeps_loading = False
        model = await loading
        assert tuple(runtime.pids()) == (model.pid,)
        await model.unload()

    asyncio.run(body())


def test_a_load_whose_process_ends_is_told(server: LmStudioServer) -> None:
    """As where memory runs out."""
    server.keeps_loading = True

    async def body() -> None:
        runtime = LmStudioRuntime()
        loading = asyncio.create_task(runtime.load(level(server), lambda _: None))
        await until(runtime.pids)
        (pid,) = runtime.pids()
        psutil.Process(pid).kill()
        with pytest.raises(LevelUnavailable, match="500: Failed to load model small"):
            await loading
        assert tuple(runtime.pids()) == ()

    asyncio.run(body())


# -------------------------------------------------------------------- what goes wrong with an answer


@pytest.mark.parametrize("workers", WORKERS)
def test_a_model_that_is_killed_is_noticed_and_its_answers_break_off(server: LmStudioServer, workers: Workers) -> None:
    """So that the next level goes on. Those that wait their turn are not sent, or LM Studio would load it again."""
    server.workers, server.token_s = workers, 0.05

    async def body() -> None:
        async with loaded(level(server, parallel=1)) as (_, model):
            watching = asyncio.create_task(model.died())
            answer = model.chat(COUNT)
            await anext(answer)
            waiting = asyncio.create_task(anext(model.chat(ASKED)))
            await asyncio.sleep(0)
            server.kill("small")
            with pytest.raises(LevelUnavailable, match="LM Studio unloaded it or its process ended"):
                [chunk async for chunk in answer]
            with pytest.raises(NeverAsked):
                await waiting
            async with asyncio.timeout(LIMIT_S):
                assert "its process ended" in await watching
            assert not await model.health()
            with pytest.raises(NeverAsked, match="its process ended"):
                await anext(model.chat(ASKED))
        assert not server.loaded
        assert [path for path, _ in server.requests].count("/v1/chat/completions") == 1

    asyncio.run(body())


def test_a_model_that_somebody_unloads_is_noticed(server: LmStudioServer) -> None:
    """As by the button in the app; in the middle of an answer."""
    server.token_s = 0.05

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            watching = asyncio.create_task(model.died())
            answer = model.chat(COUNT)
            await anext(answer)
            await somebody(server, "/api/v1/models/unload", {"instance_id": "small"})
            with pytest.raises(LevelUnavailable, match="LM Studio unloaded it or its process ended"):
                [chunk async for chunk in answer]
            async with asyncio.timeout(LIMIT_S):
                assert "LM Studio unloaded it" in await watching

    asyncio.run(body())


@pytest.mark.parametrize(
    ("others", "told"),
    [
        (["acme/large"], "LM Studio has acme/large answer in its place"),
        (["acme/large", "embed"], "LM Studio has acme/large answer in its place"),
        (["acme/large", "acme/large"], "LM Studio unloaded it or its process ended"),
    ],
)
def test_an_answer_of_another_model_is_none(server: LmStudioServer, others: list[str], told: str) -> None:
    """LM Studio has the only other one answer, and holds the request to be at fault where there are several."""

    async def body() -> None:
        for key in others:
            await somebody(server, "/api/v1/models/load", {"model": key})
        # LM Studio does not hold it, and its process is still there.
        model = LmStudioModel(level(server), "small:2", os.getpid(), LmStudioRuntime())
        with pytest.raises(LevelUnavailable, match=told):
            [chunk async for chunk in model.chat(ASKED)]
        with pytest.raises(NeverAsked):
            await anext(model.chat(ASKED))
        async with asyncio.timeout(LIMIT_S):
            assert told in await model.died()

    asyncio.run(body())


def test_no_model_at_all_is_no_fault_of_the_request(server: LmStudioServer) -> None:
    """LM Studio answers 400 all the same."""
    server.jit = False

    async def body() -> None:
        model = LmStudioModel(level(server), "small", os.getpid(), LmStudioRuntime())
        with pytest.raises(LevelUnavailable, match="LM Studio unloaded it"):
            [chunk async for chunk in model.chat(ASKED)]

    asyncio.run(body())


def test_what_is_wrong_with_a_request_is_the_requests_fault(server: LmStudioServer) -> None:
    """No level is blamed for it, and it goes on."""

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            seen = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE]}]
            with pytest.raises(RequestRejected, match="does not support images"):
                [chunk async for chunk in model.chat({"messages": seen})]
            with pytest.raises(RequestRejected, match="'n'"):
                [chunk async for chunk in model.chat({**ASKED, "n": 2})]
            assert said([chunk async for chunk in model.chat(ASKED)]) == " The small one speaks"

    asyncio.run(body())


def test_a_server_that_does_not_say_makes_no_model_dead(
    server: LmStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be busy, and keeps its models; one that it does not list any more is gone."""
    monkeypatch.setattr(lmstudio, "LIST_EVERY", 1)

    async def body() -> None:
        async with loaded(level(server)) as (_, model):
            watching = asyncio.create_task(model.died())
            server.answers_half_json = True
            # With the third question, two answers of that kind have been thought about.
            await until(lambda: server.half_answers > 2 or watching.done())
            assert not watching.done()
            server.answers_half_json = False
            instance = server.loaded.pop("small")
            async with asyncio.timeout(LIMIT_S):
                assert "LM Studio unloaded it" in await watching
            server.loaded["small"] = instance

    asyncio.run(body())


# -------------------------------------------------------------------- unloading


@pytest.mark.parametrize(
    ("answer", "told"), [(500, "500: Failed to unload small"), (200, "still holds it after 0.3 s")]
)
def test_one_that_will_not_unload_is_told_and_no_longer_ours(
    server: LmStudioServer, monkeypatch: pytest.MonkeyPatch, answer: int, told: str
) -> None:
    """The switch fails with this message, and its memory counts as the others'."""
    for module in (lmstudio, lmstudio_rest):
        monkeypatch.setattr(module, "UNLOAD_S", 0.3)

    async def body() -> None:
        runtime = LmStudioRuntime()
        model = await runtime.load(level(server), lambda _: None)
        server.refuses_unload = answer
        with pytest.raises(LevelUnavailable, match=f"{told}; try `lms unload small`"):
            await model.unload()
        assert tuple(runtime.pids()) == ()
        server.refuses_unload = None
        await model.unload()
        assert not server.loaded

    asyncio.run(body())


def test_a_model_that_a_late_request_brought_back_goes_too(server: LmStudioServer) -> None:
    """For a request on its way LM Studio loads it again, under the same name."""

    async def body() -> None:
        runtime = LmStudioRuntime()
        model = await runtime.load(level(server), lambda _: None)
        server.kill("small")
        await model.died()
        await somebody(server, "/v1/chat/completions", {"model": "small", **ASKED})
        assert server.loaded["small"].pid != model.pid
        await model.unload()
        assert not server.loaded
        assert tuple(runtime.pids()) == ()

    asyncio.run(body())


def test_one_that_was_brought_back_and_will_not_go_is_told(
    server: LmStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory counts as the others'."""
    monkeypatch.setattr(lmstudio_rest, "UNLOAD_S", 0.5)

    async def body() -> None:
        runtime = LmStudioRuntime()
        model = await runtime.load(level(server), lambda _: None)
        server.kill("small")
        await model.died()
        await somebody(server, "/v1/chat/completions", {"model": "small", **ASKED})
        server.refuses_unload = 500
        with pytest.raises(LevelUnavailable, match=r"still holds it after 0\.5 s; try `lms unload small`"):
            await model.unload()
        assert tuple(runtime.pids()) == ()

    asyncio.run(body())


def test_unloading_twice_is_safe_and_touches_nothing_that_came_after(server: LmStudioServer) -> None:
    """The next instance has the same name."""

    async def body() -> None:
        runtime = LmStudioRuntime()
        first = await runtime.load(level(server), lambda _: None)
        await first.unload()
        second = await runtime.load(level(server), lambda _: None)
        assert second.instance == first.instance
        await first.unload()
        assert await second.health()
        server.kill("small")
        await second.died()
        third = await runtime.load(level(server), lambda _: None)
        await second.unload()
        assert await third.health()
        await third.unload()
        assert not server.loaded

    asyncio.run(body())


def test_a_dead_model_is_unloaded_though_lm_studio_is_off_as_well() -> None:
    """As where the app was closed: its memory is back."""

    async def body() -> None:
        runtime = LmStudioRuntime()
        with LmStudioServer({"small": Model(20 * MIB)}) as server:
            model = await runtime.load(level(server), lambda _: None)
        await model.died()
        await model.unload()
        assert tuple(runtime.pids()) == ()

    asyncio.run(body())


def test_an_unload_that_was_given_up_can_be_asked_for_again(server: LmStudioServer) -> None:
    """As at the end, when a switch was under way."""

    async def body() -> None:
        model = await LmStudioRuntime().load(level(server), lambda _: None)
        server.refuses_unload = 200
        unloading = asyncio.create_task(model.unload())
        await until(lambda: any(path == "/api/v1/models/unload" for path, _ in server.requests))
        unloading.cancel()
        await asyncio.gather(unloading, return_exceptions=True)
        server.refuses_unload = None
        await model.unload()
        assert not server.loaded

    asyncio.run(body())


# -------------------------------------------------------------------- what is known without loading


def test_a_footprint_is_estimated_or_as_declared(server: LmStudioServer) -> None:
    """The file, a cache of every request's window, and the process; or what the person says."""
    few, many = (LmStudioRuntime().footprint(level(server, context_tokens=n))["ram"] for n in (512, 1024))
    assert 20 * MIB < few < many
    assert LmStudioRuntime().footprint(level(server, ram_gib=1.0)) == {"ram": 1024 * MIB}
    on_gpu = LmStudioRuntime().footprint(level(server, vram_gib=1.0))
    assert (on_gpu["gpu0"], on_gpu["ram"]) == (1024 * MIB, 32 * MIB)
    server.models["odd"] = Model(20 * MIB, params_string=None, bits_per_weight=0)
    with pytest.raises(LevelUnavailable, match=r"^odd: .*how large it is; set the level's ram_gib"):
        LmStudioRuntime().footprint(level(server, "odd"))


@pytest.mark.parametrize(
    ("model", "layers", "cached_heads", "width_of_head"),
    [
        ("134M", 30, 3, 64),  # SmolLM2
        ("0.6B", 28, 8, 128),  # Qwen3
        ("1.7B", 24, 32, 64),  # SmolLM2
        ("2.7B", 40, 36, 64),  # MiniCPM
        ("2.8B", 32, 32, 80),  # Phi-2
        ("3.8B", 32, 32, 96),  # Phi-3 mini
        ("4B", 40, 20, 128),  # Qwen1.5
        ("4B", 36, 8, 128),  # Qwen3
        ("6.7B", 32, 32, 128),  # Llama 2
        ("8B", 32, 8, 128),  # Llama 3.1
        ("8.5B", 28, 16, 256),  # Gemma
        ("9.2B", 42, 8, 256),  # Gemma 2
        ("13.7B", 40, 40, 128),  # OLMo 2
        ("27B", 62, 16, 128),  # Gemma 3
        ("30B-A3B", 48, 4, 128),  # Qwen3
        ("35B", 40, 64, 128),  # Command R
        ("72B", 80, 64, 128),  # Qwen
        ("8x7B", 32, 8, 128),  # Mixtral
    ],
)
def test_the_estimate_of_a_cache_is_never_too_low(
    model: str, layers: int, cached_heads: int, width_of_head: int
) -> None:
    """For models of all kinds, whose shapes are known: a key and a value of 16 bits a figure, in each layer."""
    weights = weights_named(model)
    assert weights is not None
    assert cached_bytes(weights) >= layers * cached_heads * width_of_head * 2 * 2


@pytest.mark.parametrize("named", ["", "many", "7", "B", "7 Bits"])
def test_what_names_no_number_of_weights_is_none(named: str) -> None:
    """No guess is made."""
    assert weights_named(named) is None


def test_a_model_is_described_as_lm_studio_does(server: LmStudioServer) -> None:
    """Once it has, that is remembered."""
    runtime, settings = LmStudioRuntime(), level(server, "acme/apple")
    for _ in range(2):
        told = runtime.describe(settings)
        assert (told.file, told.size_bytes, told.format, told.family) == ("acme/apple", 20 * MIB, "mlx", "llama")
        assert (told.weights, told.quantization, told.context_tokens) == (10**9, "Q4_K_M", 4096)
        assert told.metadata == {"general.architecture": "llama", "llama.context_length": 2048}
        server.answers_html = True


def test_a_model_that_is_not_described_has_its_name(server: LmStudioServer) -> None:
    """And nobody waits for that: LM Studio may be off, or not answer."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        for port in (9, silent.getsockname()[1]):
            url, began = HttpUrl(f"http://127.0.0.1:{port}"), time.monotonic()
            told = LmStudioRuntime().describe(level(server, url=url))
            assert (told.file, told.context_tokens, told.size_bytes) == ("small", 4096, None)
            assert time.monotonic() - began < ASK_S, "it waited as for an answer"


# -------------------------------------------------------------------- starting it

STARTED = """\
import json, sys
from tests.runtimes.lmstudio_server import LmStudioServer, Model
with LmStudioServer({"small": Model(20 * 1024**2)}, port=int(sys.argv[1])) as server:
    # Until the test lets go of it, however it ends.
    open(sys.argv[2]).read()
    faults, server.faults = server.faults, []
open(sys.argv[3], "w").write(json.dumps(faults))
"""
LMS = """\
#!{python}
import subprocess, sys
command, action, option, port = sys.argv[1:]
assert (command, action, option) == ("server", "start", "--port")
subprocess.Popen([sys.executable, "-c", {started!r}, port, {until!r}, {faults!r}], cwd={root!r}, start_new_session=True)
"""


@contextmanager
def command(path: Path, text: str) -> Iterator[None]:
    """A program of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    yield


@pytest.mark.parametrize("beside", [False, True])
def test_a_server_that_does_not_run_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool) -> None:
    """By LM Studio's own command, on the path or where LM Studio puts it; when a level is sized or loaded."""
    lms = tmp_path / (".lmstudio/bin/lms" if beside else "programs/lms")
    until_then, faults = tmp_path / "until", tmp_path / "faults"
    os.mkfifo(until_then)
    script = LMS.format(
        python=sys.executable,
        started=STARTED,
        until=str(until_then),
        faults=str(faults),
        root=str(Path(__file__).parents[2]),
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        url = HttpUrl(f"http://127.0.0.1:{free.getsockname()[1]}")
    settings = LmStudioLevel(name="small", runtime="lmstudio", model="small", url=url, start=True)

    async def body() -> None:
        async with loaded(settings) as (_, model):
            assert said([chunk async for chunk in model.chat(ASKED)]) == " one two three"

    holding = os.open(until_then, os.O_RDWR)
    try:
        with command(lms, script):
            assert LmStudioRuntime().footprint(settings)["ram"] > 20 * MIB
            asyncio.run(body())
    finally:
        os.close(holding)
    asyncio.run(until(lambda: faults.exists() and faults.read_text().endswith("]")))
    assert json.loads(faults.read_text()) == []


def test_a_server_that_cannot_be_started_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is not there, fails, or says that it has started the server and has not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(lmstudio_rest, "START_S", 0.3)
    settings = LmStudioLevel(
        name="small", runtime="lmstudio", model="small", url=HttpUrl("http://127.0.0.1:9"), start=True
    )
    with pytest.raises(LevelUnavailable, match=r"^small: .*its command lms is not there .* https://lmstudio.ai"):
        load(settings)
    with (
        command(tmp_path / "lms", "#!/bin/sh\necho 'No such luck.' >&2\nexit 3\n"),
        pytest.raises(LevelUnavailable, match=r"^small: .*lms server start --port 9` failed \(3\): No such luck."),
    ):
        load(settings)
    with (
        command(tmp_path / "lms", "#!/bin/sh\n"),
        pytest.raises(LevelUnavailable, match=r"nothing answers there .*; start it with `lms server start --port 9`$"),
    ):
        load(settings)
