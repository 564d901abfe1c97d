"""Levels that are vLLM servers: the adapter against the strict stand-in, whose GPU memory the real pynvml reads."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import HttpUrl

from scaler.errors import LevelUnavailable, RequestRejected
from scaler.level_settings import VllmLevel
from scaler.levels import GIB
from scaler.readings import ModelLoad
from scaler.runtimes import vllm
from scaler.runtimes.protocol import TellsItsLoad
from scaler.runtimes.vllm import VllmModel, VllmRuntime
from scaler.sensors.gpu import GpuSensor
from scaler.sensors.processes import process_tree
from tests.runtimes.answers import said
from tests.runtimes.vllm_server import NONSENSE, VllmServer
from tests.sensors.conftest import FakeNvml, nvml, nvml_library

__all__ = ["nvml", "nvml_library"]
COUNT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count."}]}
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Who are you?"}]}


def level(server: VllmServer, **changes: Any) -> VllmLevel:
    settings: dict[str, Any] = {"name": "big", "runtime": "vllm", "model": "tiny", "url": HttpUrl(server.url)}
    return VllmLevel(**{**settings, "vram_gib": 1.0, **changes})


@asynccontextmanager
async def loaded(settings: VllmLevel) -> AsyncIterator[tuple[VllmRuntime, VllmModel]]:
    runtime = VllmRuntime()
    await runtime.release(settings)
    model = await runtime.load(settings, lambda _: None)
    try:
        yield runtime, model
    finally:
        await model.unload()


@pytest.fixture
def card(nvml: FakeNvml) -> Path:
    """A GPU of 4 GiB, of which others hold one: the file that says so."""
    nvml.gpu("Fake GPU", 4 * GIB, GIB)
    return nvml.state


def own(runtime: VllmRuntime) -> tuple[int, int | None]:
    """What the GPU has in use, and what of it is ours."""
    (gpu,) = GpuSensor(process_tree(runtime.pids)).read() or ()
    return gpu.used_bytes, gpu.own_bytes


@pytest.mark.parametrize("depth", [1, 2])
def test_a_level_is_woken_answers_and_is_put_to_sleep(card: Path, depth: int) -> None:
    """Awake its GPU memory is our own, asleep it is back; after the deep sleep the weights are read anew."""
    with VllmServer(size_bytes=GIB, state=card, says=" The big one speaks", asleep_bytes=2**26) as server:
        settings = level(server, sleep=depth)

        async def body() -> None:
            async with loaded(settings) as (runtime, model):
                assert ("/sleep?level=" + str(depth), None) in server.requests
                assert own(runtime) == (2 * GIB, GIB)
                assert await model.health()
                chunks = [chunk async for chunk in model.chat(ASKED)]
                assert said(chunks) == " The big one speaks"
                assert chunks[-1]["usage"]["completion_tokens"] >= 4
                completed = [chunk async for chunk in model.complete({"prompt": "Who?", "max_tokens": 2})]
                assert "".join(choice["text"] for chunk in completed for choice in chunk["choices"]) == " The big"
                assert await model.count_tokens(ASKED) > 0
            assert own(runtime) == (GIB + 2**26, 0)
            assert not runtime.pids()
            await model.unload()
            with pytest.raises(LevelUnavailable, match="it was unloaded"):
                [chunk async for chunk in model.chat(ASKED)]

        asyncio.run(body())
        assert VllmRuntime().footprint(settings) == {"gpu0": GIB}


def test_an_answer_is_gone_on_with(card: Path) -> None:
    """What the level before has said is not said again."""
    with VllmServer(state=card) as server:
        begun = {"messages": [*COUNT["messages"], {"role": "assistant", "content": " 1 2 3"}], "max_tokens": 2}

        async def body() -> None:
            async with loaded(level(server)) as (_, model):
                assert said([chunk async for chunk in model.chat(begun)]) == " 4 5"
                assert await model.count_tokens(begun) > await model.count_tokens(COUNT)

        asyncio.run(body())


def test_a_server_that_is_awake_already_is_taken_as_it_is(card: Path) -> None:
    """Nobody put it to sleep before."""
    with VllmServer(state=card, says=" Here") as server:

        async def body() -> None:
            model = await VllmRuntime().load(level(server), lambda _: None)
            assert said([chunk async for chunk in model.chat(ASKED)]) == " Here"
            await model.unload()

        asyncio.run(body())
        assert not any(path.startswith("/wake_up") for path, _ in server.requests)


def test_how_deep_it_sleeps_is_for_the_server_to_say(card: Path) -> None:
    """Somebody else put it into the deep sleep: woken as the level sleeps, it would answer nonsense."""
    with VllmServer(state=card, says=" Here") as server:

        async def body() -> None:
            await VllmRuntime().release(level(server, sleep=2))
            model = await VllmRuntime().load(level(server, sleep=1), lambda _: None)
            answer = said([chunk async for chunk in model.chat(ASKED)])
            assert NONSENSE not in answer
            assert answer == " Here"
            await model.unload()

        asyncio.run(body())


def test_an_answer_that_sleep_broke_off_is_not_taken_for_whole(card: Path) -> None:
    """Somebody else puts the server to sleep: the answer is handed over, and the level counts as dead."""
    with VllmServer(state=card) as server:
        server.set(token_s=0.01)

        async def body() -> None:
            async with loaded(level(server)) as (_, model):
                chunks = model.chat(COUNT)
                await anext(chunks)
                death = asyncio.create_task(model.died())
                await VllmRuntime().release(level(server))
                with pytest.raises(LevelUnavailable, match="put to sleep in the middle of the answer"):
                    [chunk async for chunk in chunks]
                async with asyncio.timeout(30):
                    assert "somebody put the server to sleep" in await death
                assert not await model.health()

        asyncio.run(body())


@pytest.mark.parametrize("whom", ["server", "engine"])
def test_a_server_that_is_killed_is_noticed(card: Path, whom: str) -> None:
    """Also when only its engine dies, which holds the model."""
    with VllmServer(state=card) as server:
        server.set(token_s=0.01)

        async def body() -> None:
            async with loaded(level(server)) as (_, model):
                chunks = model.chat(COUNT)
                await anext(chunks)
                os.kill(server.pid if whom == "server" else server.engine_pid, signal.SIGKILL)
                with pytest.raises(LevelUnavailable, match=r"big: tiny of vLLM at http://127.0.0.1:\d+: "):
                    [chunk async for chunk in chunks]
                async with asyncio.timeout(30):
                    assert "big: tiny of vLLM at" in await model.died()
                assert not await model.health()

        asyncio.run(body())
        server.take_faults()


def test_a_request_at_fault_is_the_requests_own(card: Path) -> None:
    """The level is not blamed for it."""
    with VllmServer(state=card) as server:

        async def body() -> None:
            async with loaded(level(server)) as (_, model):
                with pytest.raises(RequestRejected, match="temperature"):
                    [chunk async for chunk in model.chat({**ASKED, "temperature": -1})]

        asyncio.run(body())
        server.take_faults()


@pytest.mark.parametrize(("reply", "told"), [("<html>", "Invalid JSON"), ("{}", "count: Field required")])
def test_a_count_that_is_none_is_one_message(card: Path, reply: str, told: str) -> None:
    """It is asked for before every answer: a fault of scaler's own would be no reason to go on elsewhere."""
    with VllmServer(state=card) as server:

        async def body() -> None:
            async with loaded(level(server)) as (_, model):
                server.set(reply=reply, reply_type="application/json")
                with pytest.raises(LevelUnavailable, match=rf"^big: tiny of vLLM at http.*does not answer: {told}"):
                    await model.count_tokens(ASKED)
                server.set(reply=None)

        asyncio.run(body())
        server.take_faults()


@pytest.mark.parametrize(
    ("made", "set_to", "changes", "message"),
    [
        ({"dev_mode": False}, {}, {}, "cannot be put to sleep; start it with VLLM_SERVER_DEV_MODE=1"),
        (
            {"max_model_len": 1024},
            {},
            {},
            "started for 1024 tokens of context, the level has 4096; start it with --max-",
        ),
        ({}, {}, {"model": "huge"}, "the server has tiny; correct the level's model"),
        ({}, {"reply": "<html>"}, {}, "does not speak the API of vLLM .*correct the level's url"),
        ({}, {"reply": '{"data": [', "reply_type": "application/json"}, {}, "does not speak the API of vLLM"),
        ({"api_key": "sesame"}, {}, {}, "answered 401: set key_env"),
        (
            {},
            {"wake_s": 60.0},
            {"load_timeout_s": 1.0},
            "not awake within 1 s; look at its log, or raise load_timeout_s",
        ),
    ],
)
def test_what_goes_wrong_is_one_message(
    card: Path, made: dict[str, Any], set_to: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    """It names the level, vLLM and its address, and says what to do."""
    with VllmServer(state=card, **made) as server:

        async def body() -> None:
            if "dev_mode" not in made:
                await VllmRuntime().release(level(server))
            server.set(**set_to)
            runtime = VllmRuntime()
            with pytest.raises(LevelUnavailable, match=message) as raised:
                await runtime.load(level(server, **changes), lambda _: None)
            assert server.url in str(raised.value)
            assert not runtime.pids()

        asyncio.run(body())
        server.take_faults()


def test_a_server_that_is_off_is_told_with_how_to_start_it() -> None:
    """And it is no fault of a start that finds it so."""
    settings = VllmLevel(name="big", runtime="vllm", model="tiny", url=HttpUrl("http://127.0.0.1:9"), vram_gib=1.0)

    async def body() -> None:
        await VllmRuntime().release(settings)
        with pytest.raises(LevelUnavailable, match=r"nothing answers there .*start it with `vllm serve tiny --port 9`"):
            await VllmRuntime().load(settings, lambda _: None)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("refusal", "message"),
    [({"sleep_fails": True}, "/sleep"), ({"stays_awake": True}, "told to sleep, .* still awake")],
)
def test_a_server_that_will_not_sleep_is_told(card: Path, refusal: dict[str, Any], message: str) -> None:
    """Its memory counts as the others' then."""
    with VllmServer(state=card) as server:

        async def body() -> None:
            runtime = VllmRuntime()
            model = await runtime.load(level(server), lambda _: None)
            server.set(**refusal)
            with pytest.raises(LevelUnavailable, match=message):
                await model.unload()
            assert not runtime.pids()
            # The next try is one indeed.
            server.set(sleep_fails=False, stays_awake=False)
            await model.unload()
            assert own(runtime) == (GIB + 2**26, 0)
            await model.unload()

        asyncio.run(body())


@pytest.mark.parametrize(
    ("made", "set_to", "message"),
    [
        ({}, {"sleep_fails": True}, "/sleep"),
        ({}, {"stays_awake": True}, "told to sleep, .* still awake; look at its log"),
        ({"dev_mode": False}, {}, "cannot be put to sleep; start it with VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_that_does_not_sleep_when_scaler_starts_is_told(
    card: Path, made: dict[str, Any], set_to: dict[str, Any], message: str
) -> None:
    """It holds its memory of the GPU, whether or not its level is ever loaded."""
    with VllmServer(state=card, **made) as server:
        server.set(**set_to)
        with pytest.raises(LevelUnavailable, match=rf"^big: tiny of vLLM at {server.url}: .*{message}"):
            asyncio.run(VllmRuntime().release(level(server)))
        server.take_faults()


def test_what_falls_asleep_is_our_own_until_it_sleeps(card: Path) -> None:
    """Counted as the others' meanwhile, it would drive away the level that is to come in its place."""
    with VllmServer(size_bytes=GIB, state=card) as server:

        async def body() -> None:
            runtime = VllmRuntime()
            model = await runtime.load(level(server), lambda _: None)
            server.set(sleep_s=60.0)
            unloading = asyncio.create_task(model.unload())
            while not any(path.startswith("/sleep") for path, _ in server.requests):
                await asyncio.sleep(0.01)
            assert own(runtime) == (2 * GIB, GIB)
            server.set(sleep_s=0.0)
            await unloading
            assert own(runtime) == (GIB + 2**26, 0)

        asyncio.run(body())


def test_a_load_that_is_given_up_leaves_the_server_asleep(card: Path) -> None:
    """Nothing may hold memory that nobody knows of."""
    with VllmServer(size_bytes=GIB, state=card) as server:

        async def body() -> None:
            runtime = VllmRuntime()
            await runtime.release(level(server))
            server.set(wake_s=60.0)
            loading = asyncio.create_task(runtime.load(level(server), lambda _: None))
            while not any(path == "/wake_up" for path, _ in server.requests):
                await asyncio.sleep(0.01)
            loading.cancel()
            server.set(wake_s=0.0)
            with pytest.raises(asyncio.CancelledError):
                await loading
            assert not runtime.pids()
            assert own(runtime) == (GIB + 2**26, 0)

        asyncio.run(body())


def test_how_busy_the_server_is_is_heard(card: Path) -> None:
    """As its metrics tell, once they have been asked for."""
    with VllmServer(state=card) as server:
        server.set(running=4, waiting=3, kv_cache_usage=0.97)

        async def body() -> None:
            async with loaded(level(server)) as (_, model):
                assert isinstance(model, TellsItsLoad)
                assert model.heard is None
                watch = asyncio.create_task(model.died())
                while model.heard is None:
                    await asyncio.sleep(0.05)
                assert model.heard == ModelLoad(running=4, waiting=3, cache_ratio=0.97)
                watch.cancel()

        asyncio.run(body())


@pytest.mark.parametrize("figure", ["running", "cache"])
@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_a_figure_that_is_no_number_is_not_told(figure: str, value: str) -> None:
    """Nor does it end the watch over the server."""
    told = {"running": "1.0", "waiting": "0.0", "cache": "2.5e-05"}

    def metrics() -> str:
        return "".join(
            f'vllm:{name}{{engine="0",model_name="tiny"}} {told[key]}\n'
            for key, name in [
                ("running", "num_requests_running"),
                ("waiting", "num_requests_waiting"),
                ("cache", "kv_cache_usage_perc"),
            ]
        )

    assert vllm._load(metrics()) == ModelLoad(1, 0, 2.5e-05)
    told[figure] = value
    assert vllm._load(metrics()) is None
