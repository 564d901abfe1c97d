"""Levels that a llama-server in router mode loads: the adapter on the real router, and on what may be in its place."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
from aiohttp import web
from pydantic import HttpUrl

from scaler.errors import LevelUnavailable, NeverAsked, RequestRejected
from scaler.level_settings import LlamaRouterLevel
from scaler.levels import GIB
from scaler.runtimes import llama_router_control
from scaler.runtimes.llama_router import LlamaRouterModel, LlamaRouterRuntime
from tests.llama_server_binary import BINARY, Router, free_port, needs_llama_server, router

MIB = 1024**2
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
LONG: dict[str, Any] = {**ASK, "ignore_eos": True, "max_tokens": 16000}
LIMIT_S = 60.0
"""For what comes at once, on a machine that may be busy."""
SENTENCE = "The {} model speaks : I am made of random weights ."
Settings = Callable[..., LlamaRouterLevel]


def level(at: Router | str, model: str = "small", **changes: Any) -> LlamaRouterLevel:
    url = at if isinstance(at, str) else at.url
    values = {"name": model, "runtime": "llama-router", "url": HttpUrl(url), "model": model, "context_tokens": 2048}
    return LlamaRouterLevel(**{**values, **changes})


@pytest.fixture
def two(tmp_path: Path, demo_models: dict[str, Path]) -> Iterator[Router]:
    """A router that may hold two models at a time, each with two windows of 2,048 tokens."""
    arguments = ("--models-max", "2", "--ctx-size", "4096", "--parallel", "2")
    with router(tmp_path / "models", demo_models, *arguments) as running:
        yield running


@asynccontextmanager
async def loaded(
    settings: LlamaRouterLevel, runtime: LlamaRouterRuntime | None = None
) -> AsyncIterator[tuple[LlamaRouterRuntime, LlamaRouterModel]]:
    runtime = runtime or LlamaRouterRuntime()
    model = await runtime.load(settings, lambda _: None)
    try:
        yield runtime, model
    finally:
        await model.unload()
        assert model.pid not in runtime.pids()


def load(settings: LlamaRouterLevel) -> None:
    """Load it, and nothing more."""

    async def body() -> None:
        runtime = LlamaRouterRuntime()
        try:
            await (await runtime.load(settings, lambda _: None)).unload()
        finally:
            assert not runtime.pids()

    asyncio.run(body())


async def text_of(model: LlamaRouterModel, request: dict[str, Any]) -> str:
    chunks = [chunk async for chunk in model.chat(request)]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def begun(model: LlamaRouterModel, request: dict[str, Any]) -> Any:
    """An answer that has begun."""
    answer = model.chat(request)
    async for chunk in answer:
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            return answer
    pytest.fail("the answer ended before it began")


# ---------------------------------------------------------------- on the real router


@needs_llama_server
def test_levels_are_loaded_answer_by_themselves_and_are_unloaded(two: Router) -> None:
    """The model that was asked for is the one that speaks; its memory counts as own, and is back afterwards."""

    async def body() -> None:
        runtime = LlamaRouterRuntime()
        async with loaded(level(two, "medium"), runtime) as (_, medium):
            assert two.status() == {"small": "unloaded", "medium": "loaded", "large": "unloaded"}
            assert tuple(runtime.pids()) == (medium.pid,)
            process = psutil.Process(medium.pid)
            assert process.parent() == two.process
            assert process.memory_info().rss > 140 * MIB
            assert await medium.health()
            async with loaded(level(two, "small"), runtime) as (_, small):
                texts = await asyncio.gather(text_of(medium, ASK), text_of(small, ASK))
                assert [text.strip() for text in texts] == [SENTENCE.format("medium"), SENTENCE.format("small")]
                assert set(runtime.pids()) == {medium.pid, small.pid}
            assert not psutil.pid_exists(small.pid)
            assert await medium.health()
        assert not psutil.pid_exists(medium.pid)
        assert set(two.status().values()) == {"unloaded"}
        await medium.unload()

    asyncio.run(body())


@needs_llama_server
def test_an_answer_is_continued_where_another_level_left_it(two: Router) -> None:
    """That is how answers are handed over; and the tokens of a prompt are as the model counts them."""

    async def body() -> None:
        async with loaded(level(two)) as (_, model):
            said = {"role": "assistant", "content": "The small model"}
            rest = await text_of(model, {**ASK, "messages": [*ASK["messages"], said]})
            assert f"The small model{rest}" == SENTENCE.format("small")
            chunks = [chunk async for chunk in model.chat(ASK)]
            assert chunks[-1]["usage"]["prompt_tokens"] == await model.count_tokens(ASK)
            completed = [chunk async for chunk in model.complete({"prompt": "one two", "max_tokens": 3})]
            assert completed[-1]["usage"]["completion_tokens"] == 3
            with pytest.raises(RequestRejected) as caught:
                await text_of(model, {"messages": [{"role": "user", "content": "x" * 3000}]})
            assert caught.value.status == 400

    asyncio.run(body())


@needs_llama_server
def test_progress_grows_to_one_as_the_models_process_fills(two: Router) -> None:
    """Its memory counts as own while it is loading."""

    async def body() -> None:
        runtime, told, pids = LlamaRouterRuntime(), list[float](), set[int]()

        def tell(ratio: float) -> None:
            told.append(ratio)
            pids.update(runtime.pids())

        model = await runtime.load(level(two, "large"), tell)
        assert (told[0], told[-1]) == (0.0, 1.0)
        assert told == sorted(told)
        assert any(0.0 < ratio < 1.0 for ratio in told)
        assert pids == {model.pid}
        await model.unload()

    asyncio.run(body())


@needs_llama_server
def test_a_model_that_is_killed_is_noticed_and_its_answer_breaks_off(two: Router) -> None:
    """With what can be told of it; and it is not loaded again for those who come too late."""

    async def body() -> None:
        async with loaded(level(two)) as (_, model):
            died = asyncio.create_task(model.died())
            answer = await begun(model, LONG)
            os.kill(model.pid, signal.SIGKILL)
            with pytest.raises(LevelUnavailable, match="the router unloaded it or its process ended"):
                [chunk async for chunk in answer]
            async with asyncio.timeout(LIMIT_S):
                assert "small of llama-server's router at http" in await died
            assert not await model.health()
            with pytest.raises(NeverAsked, match="the router unloaded it or its process ended"):
                await text_of(model, ASK)
            with pytest.raises(NeverAsked):
                await model.count_tokens(ASK)
            assert two.status()["small"] == "unloaded"

    asyncio.run(body())


@needs_llama_server
def test_a_model_that_somebody_else_unloads_is_noticed(two: Router) -> None:
    """As is one that the router itself unloads, for somebody else's."""

    async def body() -> None:
        async with loaded(level(two)) as (_, model):
            two.ask("/models/unload", {"model": "small"})
            async with asyncio.timeout(LIMIT_S):
                assert "the router unloaded it" in await model.died()
        async with loaded(level(two)) as (_, model):
            two.load("medium")
            await asyncio.to_thread(two.load, "large")
            async with asyncio.timeout(LIMIT_S):
                await model.died()

    asyncio.run(body())


@needs_llama_server
def test_a_router_that_is_killed_takes_its_models_along(two: Router) -> None:
    """Unloading what is gone is done at once, and a load says how to start it."""

    async def body() -> None:
        async with loaded(level(two)) as (_, model):
            two.process.kill()
            async with asyncio.timeout(LIMIT_S):
                await model.died()
            assert not await model.health()
        assert not psutil.pid_exists(model.pid) or psutil.Process(model.pid).status() == psutil.STATUS_ZOMBIE

    asyncio.run(body())
    with pytest.raises(
        LevelUnavailable, match=r"nothing answers there .*start it with `llama-server --models-dir FOLDER`"
    ):
        load(level(two))


@needs_llama_server
def test_a_model_is_unloaded_at_once_although_it_answers(two: Router) -> None:
    """llama-server would hang, and be killed by the router after ten seconds."""

    async def body() -> None:
        async with loaded(level(two)) as (_, model):
            answers = [await begun(model, LONG) for _ in range(2)]
            await model.unload()
            assert "force-killing" not in two.log.read_text()
            for answer in answers:
                with pytest.raises(LevelUnavailable, match="it was unloaded"):
                    [chunk async for chunk in answer]

    asyncio.run(body())


@needs_llama_server
@pytest.mark.parametrize("cancels", [1, 2])
def test_a_cancelled_load_leaves_nothing(two: Router, cancels: int) -> None:
    """A switch that is overtaken cleans up after itself, also when it is overtaken twice."""

    async def body() -> None:
        runtime, seen = LlamaRouterRuntime(), asyncio.Event()
        task = asyncio.create_task(runtime.load(level(two, "large"), lambda ratio: seen.set() if ratio else None))
        await seen.wait()
        (pid,) = runtime.pids()
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(LIMIT_S):
            while psutil.pid_exists(pid) or two.status()["large"] != "unloaded":
                await asyncio.sleep(0.01)
        assert not runtime.pids()

    asyncio.run(body())


@needs_llama_server
def test_a_load_that_is_cancelled_before_the_router_has_heard_of_it_leaves_nothing(two: Router) -> None:
    """It might begin after it was told to let go."""

    async def body() -> None:
        for steps in range(12):
            task = asyncio.create_task(LlamaRouterRuntime().load(level(two, "large"), lambda _: None))
            await asyncio.sleep(steps / 500)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert two.status()["large"] == "unloaded"
            assert not two.process.children()

    asyncio.run(body())


@needs_llama_server
def test_a_load_that_takes_too_long_is_given_up(two: Router) -> None:
    """After the level's own limit."""
    with pytest.raises(LevelUnavailable, match=r"large: .*not loaded within 0\.2 s; raise load_timeout_s"):
        load(level(two, "large", load_timeout_s=0.2))
    assert two.status()["large"] == "unloaded"


@needs_llama_server
def test_a_model_that_does_not_load_says_so(tmp_path: Path) -> None:
    """The router tells no more than the status that its process ended with."""
    (tmp_path / "noise").write_bytes(b"GGUF" + os.urandom(1000))
    with (
        router(tmp_path / "models", {"noise": tmp_path / "noise"}) as running,
        pytest.raises(
            LevelUnavailable, match="says that it is unloaded, its process ended with status 1; the router's log"
        ),
    ):
        load(level(running, "noise", ram_gib=1))


@needs_llama_server
def test_a_model_that_the_router_does_not_have_says_how_to_add_it(two: Router) -> None:
    """When it is sized and when it is loaded."""
    absent = level(two, "absent")
    for ask in (lambda: LlamaRouterRuntime().footprint(absent), lambda: load(absent)):
        with pytest.raises(LevelUnavailable, match=r"no such model; it has large, medium, small\. Put its file into"):
            ask()


@needs_llama_server
def test_a_window_shorter_than_the_levels_says_what_to_start_the_router_with(two: Router) -> None:
    """Its answers would be cut short."""
    with pytest.raises(LevelUnavailable, match=r"gives a request 2048 tokens.*--parallel 3 --ctx-size 9000, say so"):
        load(level(two, context_tokens=3000, parallel=3))
    assert two.status()["small"] == "unloaded"


@needs_llama_server
def test_what_somebody_else_had_loaded_is_taken_over_and_unloaded_with_the_level(two: Router) -> None:
    """Its settings are the router's in any case."""
    two.load("small")
    (process,) = two.process.children()

    async def body() -> None:
        async with loaded(level(two)) as (runtime, model):
            assert model.pid == process.pid
            assert tuple(runtime.pids()) == (process.pid,)
            assert (await text_of(model, ASK)).strip() == SENTENCE.format("small")
        assert not process.is_running()

    asyncio.run(body())


@needs_llama_server
def test_what_somebody_else_had_loaded_stays_when_it_is_not_taken_over(two: Router) -> None:
    """Here its window is too short."""
    two.load("small")
    with pytest.raises(LevelUnavailable, match="gives a request 2048 tokens"):
        load(level(two, context_tokens=4096))
    assert two.status()["small"] == "loaded"


@needs_llama_server
def test_no_model_of_others_nor_ours_is_unloaded_to_make_room(two: Router) -> None:
    """The router would do so by itself; levels for which there is room beside the others' one by one are apart."""
    one, other = level(two, "small"), level(two, "medium")

    async def body() -> None:
        async with loaded(one) as (runtime, model):
            assert runtime.apart(one, other)
            two.load("large")
            with pytest.raises(LevelUnavailable, match=r"holds large, small, and with --models-max 2 .*--models-max 3"):
                await runtime.load(other, lambda _: None)
            assert await model.health()
            assert two.status() == {"small": "loaded", "medium": "unloaded", "large": "loaded"}
            assert not runtime.apart(one, other)
            assert not runtime.apart(one, one.model_copy(update={"name": "again"}))
            assert runtime.apart(one, level("http://127.0.0.1:9", "medium"))

    asyncio.run(body())


@needs_llama_server
def test_a_router_for_one_model_has_its_levels_loaded_one_after_the_other(
    tmp_path: Path, demo_models: dict[str, Path]
) -> None:
    """It is told at the first load. The router itself would unload one that answers, or refuse, by its version."""
    with router(tmp_path / "models", demo_models, "--models-max", "1") as running:
        one, other = level(running, "small"), level(running, "medium")

        async def body() -> None:
            async with loaded(one) as (runtime, model):
                assert not runtime.apart(one, other)
                answer = await begun(model, LONG)
                with pytest.raises(LevelUnavailable, match=r"holds small, and with --models-max 1 .*--models-max 2"):
                    await runtime.load(other, lambda _: None)
                assert await anext(answer)
                await model.unload()
                async with loaded(other, runtime) as (_, second):
                    assert (await text_of(second, ASK)).strip() == SENTENCE.format("medium")

        asyncio.run(body())


@needs_llama_server
def test_one_model_by_two_names_is_not_loaded_as_two(tmp_path: Path, demo_models: dict[str, Path]) -> None:
    """The second level would unload the first one's model with its own."""
    preset = tmp_path / "models.ini"
    preset.write_text(f"[little]\nmodel = {demo_models['small']}\nalias = tiny\nctx-size = 4096\nparallel = 2\n")
    with router(tmp_path / "models", {}, "--models-preset", str(preset)) as running:

        async def body() -> None:
            async with loaded(level(running, "tiny", name="one")) as (runtime, model):
                assert (model.name, model.listed) == ("one", "little")
                with pytest.raises(LevelUnavailable, match="it is the model of one by another name"):
                    await runtime.load(level(running, "little", name="two"), lambda _: None)
                assert (await text_of(model, ASK)).strip() == SENTENCE.format("small")

        asyncio.run(body())


@needs_llama_server
def test_a_model_that_has_fallen_asleep_is_still_the_levels(tmp_path: Path, demo_models: dict[str, Path]) -> None:
    """It has given its memory back by itself, and wakes up for the next answer; to look after it wakes nobody."""
    arguments = ("--sleep-idle-seconds", "1", "--ctx-size", "4096", "--parallel", "2")
    with router(tmp_path / "models", demo_models, *arguments) as running:

        async def body() -> None:
            async with loaded(level(running, "medium")) as (_, model):
                died = asyncio.create_task(model.died())
                while running.status()["medium"] != "sleeping":
                    await asyncio.sleep(0.05)
                assert await model.health()
                assert running.status()["medium"] == "sleeping"
                assert not died.done()
                died.cancel()
                async with loaded(level(running, "medium")) as (_, other):
                    assert other.pid == model.pid
                    assert (await text_of(other, ASK)).strip() == SENTENCE.format("medium")

        asyncio.run(body())


@needs_llama_server
def test_a_key_is_sent_and_a_wrong_one_is_told(
    tmp_path: Path, demo_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the environment variable that the level names."""
    arguments = ("--api-key", "secret", "--ctx-size", "4096", "--parallel", "2")
    with router(tmp_path / "models", demo_models, *arguments) as running:
        monkeypatch.setenv("ROUTER_KEY", "secret")

        async def body() -> None:
            async with loaded(level(running, key_env="ROUTER_KEY")) as (_, model):
                assert (await text_of(model, ASK)).strip() == SENTENCE.format("small")
                assert await model.health()

        asyncio.run(body())
        with pytest.raises(LevelUnavailable, match="answered 401: set key_env"):
            load(level(running))
        monkeypatch.setenv("ROUTER_KEY", "wrong")
        with pytest.raises(LevelUnavailable, match="answered 401: the key in ROUTER_KEY is not the right one"):
            load(level(running, key_env="ROUTER_KEY"))


@needs_llama_server
def test_a_server_of_one_model_is_no_router(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """It can be answered by, or be started by scaler."""
    with router(tmp_path / "models", {}, "--model", str(demo_models["small"])) as single:
        while True:
            try:
                single.ask("/props")
                break
            except HTTPError:
                time.sleep(0.02)
        for ask in (lambda: LlamaRouterRuntime().footprint(level(single)), lambda: load(level(single))):
            with pytest.raises(LevelUnavailable, match=r"no router, but a server of one model; .*openai.*llama-server"):
                ask()


@needs_llama_server
def test_the_estimate_is_not_below_what_is_taken(two: Router) -> None:
    """Of the file that the router names, with the context that the router gives."""

    async def body() -> None:
        wanted = level(two, "medium")
        async with loaded(wanted) as (runtime, model):
            await text_of(model, {"messages": [{"role": "user", "content": "x" * 600}], "max_tokens": 1})
            taken = psutil.Process(model.pid).memory_info().rss
            estimate = runtime.footprint(wanted)["ram"]
            assert taken <= estimate <= taken + 60 * MIB, f"{taken / MIB:.0f} of {estimate / MIB:.0f} MiB"

    asyncio.run(body())


@needs_llama_server
def test_a_footprint_is_estimated_with_the_routers_own_context(
    two: Router, tmp_path: Path, demo_models: dict[str, Path]
) -> None:
    """Where it says none, with all that the model was trained for; a relative folder is one of the router's."""
    runtime = LlamaRouterRuntime()
    short = runtime.footprint(level(two, "medium", context_tokens=256))["ram"]
    assert runtime.footprint(level(two, "medium", context_tokens=2048))["ram"] == short
    assert runtime.footprint(level(two, "medium", context_tokens=8192))["ram"] > short
    assert runtime.describe(level(two, "medium")).family == "llama"
    with router(tmp_path / "there" / "models", demo_models, cwd=tmp_path / "there") as running:
        assert LlamaRouterRuntime().footprint(level(running, "medium", context_tokens=256))["ram"] > short


# ---------------------------------------------------------------- what every machine can try


def test_what_is_declared_asks_nobody() -> None:
    """A router that is off does not keep scaler from starting."""
    off = f"http://127.0.0.1:{free_port()}"
    runtime = LlamaRouterRuntime()
    assert runtime.footprint(level(off, ram_gib=0.5)) == {"ram": GIB // 2}
    assert runtime.footprint(level(off, vram_gib=2, gpu=1))["gpu1"] == 2 * GIB
    assert runtime.describe(level(off)).file == "small"
    assert not runtime.savings(level(off))
    assert level(off).mapped
    with pytest.raises(LevelUnavailable, match="nothing answers there"):
        runtime.footprint(level(off))


ARGS = [str(BINARY), "--host", "127.0.0.1", "--port", "1", "--alias", "small", "--model", "/nowhere/small.gguf"]
ROUTER = {"role": "router", "max_instances": 4}


class Odd:
    """A router that answers as the test says; by itself it loads a model, whose process is nobody's."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers, self.told, self.state, self.url = answers, list[str](), "unloaded", ""
        self.delay_s = 0.0

    async def answer(self, request: web.Request) -> web.Response:
        self.told.append(request.path)
        await asyncio.sleep(self.delay_s)
        if request.path in self.answers:
            return web.Response(body=self.answers[request.path], content_type="application/json")
        match request.path:
            case "/models/load":
                self.state = "loaded"
            case "/models/unload":
                self.state = "unloaded"
            case "/props":
                asked = {"default_generation_settings": {"n_ctx": 4096}}
                return web.json_response(asked if "model" in request.query else ROUTER)
            case "/models":
                return web.json_response({"data": [{"id": "small", "status": {"value": self.state, "args": ARGS}}]})
        return web.json_response({"success": True})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LlamaRouterLevel]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield level("http://{}:{}".format(*runner.addresses[0]))
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("path", ["/props", "/models"])
@pytest.mark.parametrize(
    "reply",
    [b"<html>hello</html>", b'{"data": [', b'{"data": 3, "role": "router", "max_instances": "many"}', b"[]", b""],
)
def test_something_else_at_the_address_is_told_as_such(path: str, reply: bytes) -> None:
    """HTML, half of JSON, another version's fields."""

    async def body() -> None:
        async with Odd({path: reply}).running() as settings:
            with pytest.raises(
                LevelUnavailable, match=r"^small: small of llama-server's router at http.* does not speak"
            ):
                await LlamaRouterRuntime().load(settings, lambda _: None)

    asyncio.run(body())


def test_a_model_whose_process_is_not_here_is_no_load_and_does_not_stay() -> None:
    """In a container, or another person's: what it takes could not be told."""

    async def body() -> None:
        odd = Odd({})
        async with odd.running() as settings:
            with pytest.raises(LevelUnavailable, match="none of this machine's processes is surely its"):
                await LlamaRouterRuntime().load(settings, lambda _: None)
            assert odd.state == "unloaded"
            with pytest.raises(LevelUnavailable, match="names no file of this machine for it; set the level's ram_gib"):
                await asyncio.to_thread(LlamaRouterRuntime().footprint, settings)

    asyncio.run(body())


@pytest.mark.parametrize("state", ["downloading", "of the next version"])
def test_a_status_that_is_not_known_is_no_load(state: str) -> None:
    """It is told as the router says it."""

    async def body() -> None:
        odd = Odd({"/models/load": b"{}"})
        odd.state = state
        async with odd.running() as settings:
            with pytest.raises(LevelUnavailable, match=f"the router says that it is {state}; the router's log"):
                await LlamaRouterRuntime().load(settings, lambda _: None)

    asyncio.run(body())


def test_one_that_answers_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the time that a server has for its answers."""

    async def body() -> None:
        odd = Odd({})
        odd.delay_s = 5.0
        async with odd.running() as settings:
            with pytest.raises(LevelUnavailable, match=r"not loaded within 0\.3 s"):
                await LlamaRouterRuntime().load(settings.model_copy(update={"load_timeout_s": 0.3}), lambda _: None)

    asyncio.run(body())


@pytest.mark.parametrize("reply", [b"{}", b"<html>"])
def test_one_that_will_not_unload_is_told_and_no_longer_ours(monkeypatch: pytest.MonkeyPatch, reply: bytes) -> None:
    """The switch fails with this message, and its memory counts as the others'."""
    monkeypatch.setattr(llama_router_control, "UNLOAD_S", 0.3)
    command = ["/bin/sleep", "60"]
    monkeypatch.setitem(globals(), "ARGS", command)
    with psutil.Popen(command) as process:

        async def body() -> None:
            async with Odd({"/models/unload": reply}).running() as settings:
                runtime = LlamaRouterRuntime()
                model = await runtime.load(settings, lambda _: None)
                assert tuple(runtime.pids()) == (process.pid,)
                with pytest.raises(
                    LevelUnavailable, match=r"told to unload it, the router still holds it after 0\.3 s"
                ):
                    await model.unload()
                assert not runtime.pids()

        try:
            asyncio.run(body())
        finally:
            process.kill()
