"""What the adapter relies on of Ollama, asked of a real one: skipped where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import psutil
import pytest

from scaler.errors import LevelUnavailable, RequestRejected
from scaler.runtimes.ollama import OllamaRuntime
from tests.ollama_binary import needs_ollama, ollama_serves
from tests.runtimes.answers import said
from tests.runtimes.test_ollama import ASKED, kill_while_it_answers, level, loaded

pytestmark = needs_ollama
COUNT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count to a thousand."}], "temperature": 0}
SENTENCE = " The small model speaks : I am made of random weights ."
WINDOWS = (2048, 8192)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, demo_models: dict[str, Path]
) -> Iterator[tuple[str, ollama.Client]]:
    """An Ollama with two models."""
    with ollama_serves(
        tmp_path_factory.mktemp("ollama"), {name: demo_models[name] for name in ("small", "medium")}
    ) as running:
        yield running


@pytest.fixture
def client(server: tuple[str, ollama.Client]) -> Iterator[ollama.Client]:
    """Somebody else who asks that Ollama, which is to hold nothing in the end."""
    _, client = server
    yield client
    assert list(client.ps().models) == []


@pytest.fixture
def url(server: tuple[str, ollama.Client]) -> str:
    """Where it listens."""
    return server[0]


def test_a_level_is_loaded_answers_and_is_unloaded(url: str, client: ollama.Client) -> None:
    """With the level's window, for ever, in a process that is known; afterwards neither is there."""

    async def body() -> None:
        async with loaded(level(url, context_tokens=2048)) as (runtime, model):
            (held,) = client.ps().models
            assert (held.model, held.context_length) == ("small:latest", 2048)
            assert held.expires_at is not None
            assert held.expires_at.year > 2200
            assert tuple(runtime.pids()) == (model.pid,)
            assert psutil.Process(model.pid).memory_full_info().uss > 20 * 1024**2
            assert await model.health()
            chunks = [chunk async for chunk in model.chat(ASKED)]
            assert said(chunks) == SENTENCE
            assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"
            assert chunks[-1]["usage"]["completion_tokens"] > 10
            assert psutil.pid_exists(model.pid), "the answer's options have had it loaded anew"
        assert not psutil.pid_exists(model.pid)

    asyncio.run(body())


def test_an_answer_is_continued_where_another_level_left_it(url: str, client: ollama.Client) -> None:
    """Without a word twice or left out; and a prompt is completed without the template."""

    async def body() -> None:
        async with loaded(level(url)) as (_, model):
            begun = [*COUNT["messages"], {"role": "assistant", "content": " 1 2 3"}]
            asked = {**COUNT, "messages": begun, "max_tokens": 3}
            assert said([chunk async for chunk in model.chat(asked)]) == " 4 5 6"
            chunks = [chunk async for chunk in model.complete({"prompt": "Count. 1 2", "max_tokens": 3})]
            assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == " 3 4 5"
            assert chunks[-2]["choices"][0]["finish_reason"] == "length"

    asyncio.run(body())


@pytest.mark.parametrize("name", ["small", "medium"])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_estimate_is_not_below_what_is_taken(url: str, client: ollama.Client, name: str, window: int) -> None:
    """Of a model that Ollama does not hold yet: else a level would be climbed to that has no room."""
    settings = level(url, name, context_tokens=window)
    estimate = OllamaRuntime().footprint(settings)["ram"]

    async def body() -> int:
        async with loaded(settings) as (_, model):
            [_ async for _ in model.chat({"messages": [{"role": "user", "content": "word " * 400}], "max_tokens": 3})]
            return int(psutil.Process(model.pid).memory_full_info().uss)

    taken = asyncio.run(body())
    print(f"\n{name}, {window} tokens: estimated {estimate / 1024**2:.0f} MiB, taken {taken / 1024**2:.0f} MiB")
    assert taken <= estimate <= 2 * taken + 64 * 1024**2


def test_what_somebody_else_loaded_is_loaded_anew_and_what_they_unload_is_noticed(
    url: str, client: ollama.Client
) -> None:
    """Its window may be another; and the answers of a level that is gone are handed over."""
    client.generate("small", options={"num_ctx": 512})

    async def body() -> None:
        async with loaded(level(url, context_tokens=2048)) as (_, model):
            (held,) = client.ps().models
            assert held.context_length == 2048
            watching = asyncio.create_task(model.died())
            answer = model.chat(COUNT)
            await anext(answer)
            await answer.aclose()
            await asyncio.to_thread(client.generate, "small", keep_alive=0)
            assert "Ollama unloaded it" in await watching
            assert not await model.health()

    asyncio.run(body())


def test_a_model_that_is_killed_is_noticed_and_its_answer_breaks_off(url: str, client: ollama.Client) -> None:
    """With what can be told of it; so that the next level goes on."""
    asyncio.run(kill_while_it_answers(level(url)))


def test_an_ollama_that_crashes_has_no_model_though_it_leaves_its_process_behind(
    tmp_path: Path, demo_models: dict[str, Path]
) -> None:
    """The level is gone at once, an answer breaks off, and what is left is told."""

    async def body(url: str) -> None:
        model = await OllamaRuntime().load(level(url), lambda _: None)
        left = psutil.Process(model.pid)
        crashing = left.parent()
        assert crashing is not None
        try:
            watching = asyncio.create_task(model.died())
            answer = model.chat(COUNT)
            await anext(answer)
            crashing.kill()
            with pytest.raises(LevelUnavailable, match="Ollama ended and left its process behind"):
                [_ async for _ in answer]
            assert "Ollama ended and left its process behind" in await watching
            with pytest.raises(LevelUnavailable, match=rf"\(process {left.pid}\); end that$"):
                await model.unload()
        finally:
            left.kill()

    with ollama_serves(tmp_path, {"small": demo_models["small"]}) as (url, _):
        asyncio.run(body(url))


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(url: str, client: ollama.Client) -> None:
    """By itself Ollama would take its beginning away, and say nothing."""

    async def body() -> None:
        async with loaded(level(url, context_tokens=2048)) as (_, model):
            with pytest.raises(RequestRejected, match="exceeds"):
                [_ async for _ in model.complete({"prompt": "word " * 4000, "max_tokens": 3})]

    asyncio.run(body())


def test_what_the_model_cannot_do_is_the_requests_fault(url: str, client: ollama.Client) -> None:
    """No level is blamed for it; a wish to think is not passed on."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    too_long = {"messages": [{"role": "user", "content": "word " * 4000}]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    refused = {
        "does not support tools": {**ASKED, "tools": tools},
        "image input is not supported": {"messages": [{"role": "user", "content": [picture]}]},
        "exceeds the available context size": too_long,
    }

    async def body() -> None:
        async with loaded(level(url, context_tokens=2048)) as (_, model):
            for words, request in refused.items():
                with pytest.raises(RequestRejected, match=words) as caught:
                    [_ async for _ in model.chat(request)]
                assert "{" not in str(caught.value)
            assert said([chunk async for chunk in model.chat({**ASKED, "reasoning_effort": "high"})]) == SENTENCE

    asyncio.run(body())


def test_a_model_is_described_and_one_that_is_not_there_says_how_to_get_it(url: str, client: ollama.Client) -> None:
    """What programs are told of the level, and what a person reads."""
    seen = OllamaRuntime().describe(level(url))
    assert (seen.family, seen.capabilities, seen.weights) == ("llama", ("completion",), 10_949_888)
    absent = level(url, model="absent")
    for ask in (lambda: OllamaRuntime().footprint(absent), lambda: asyncio.run(OllamaRuntime().load(absent, print))):
        with pytest.raises(LevelUnavailable, match=r"^small: absent of Ollama at .*`ollama pull absent`"):
            ask()
