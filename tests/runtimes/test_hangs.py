"""A model that hangs: found out and killed; one that is slow, or that cannot be asked, is left alone."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaler.demo.models import COUNTS_TO
from scaler.errors import LevelUnavailable
from scaler.level_settings import EmbeddedLevel
from scaler.runtimes import hangs
from scaler.runtimes.embedded import EmbeddedModel, EmbeddedRuntime
from scaler.runtimes.hangs import hung
from scaler.runtimes.model_server import ModelServer

COUNT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count to a thousand."}], "temperature": 0}
COUNTED = "".join(f" {number}" for number in range(1, COUNTS_TO + 1)) + " ."
COMPUTES = "print(flush=True)\nwhile True: pass"
SLEEPS = "import sys\nprint(flush=True)\nsys.stdin.read()"
LIMIT_S = 60.0
"""For what comes at once, on a machine that may be busy."""


@asynccontextmanager
async def loaded(model: Path, hang_s: float) -> AsyncIterator[tuple[EmbeddedModel, int]]:
    """The smallest demo level, and its process."""
    runtime = EmbeddedRuntime()
    settings = EmbeddedLevel(name="small", model=model, context_tokens=4096, threads=1, hang_s=hang_s)
    one = await runtime.load(settings, lambda _: None)
    try:
        (pid,) = runtime.pids()
        yield one, pid
    finally:
        await one.unload()
        assert not runtime.pids()


def words(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


async def text_of(answer: AsyncIterator[dict[str, Any]]) -> str:
    return "".join([words(chunk) async for chunk in answer])


def test_a_model_that_is_stopped_in_the_middle_of_an_answer_is_killed(demo_models: dict[str, Path]) -> None:
    """Its process would never end by itself, and whoever waits for it would wait for ever."""

    async def body() -> None:
        async with loaded(demo_models["small"], hang_s=1.0) as (model, pid):
            died = asyncio.create_task(model.died())
            answer = model.chat(COUNT)
            while not words(await anext(answer)):
                pass
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            # Not as one that computes, which has ten times as long.
            with pytest.raises(LevelUnavailable, match="it hung: it said nothing and computed nothing for 1 s"):
                await text_of(answer)
            # All questions but the first were asked of one that stood still.
            assert time.monotonic() - began >= 1.0 * (hangs.ATTEMPTS - 1) / hangs.ATTEMPTS
            assert "it hung" in await died

    asyncio.run(body())


def test_a_model_that_is_stopped_while_nobody_asks_is_killed(demo_models: dict[str, Path]) -> None:
    """Else the next question would find out."""

    async def body() -> None:
        async with loaded(demo_models["small"], hang_s=1.0) as (model, pid):
            os.kill(pid, signal.SIGSTOP)
            assert "it hung" in await asyncio.wait_for(model.died(), LIMIT_S)

    asyncio.run(body())


def test_a_model_that_stands_still_for_a_moment_ends_its_answer(
    demo_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was busy with something else is no reason to lose a model."""
    unanswered, ask = asyncio.Event(), ModelServer.silent

    async def silent(server: ModelServer, path: str, within_s: float) -> bool:
        was = await ask(server, path, within_s)
        if was:
            unanswered.set()
        return was

    monkeypatch.setattr(ModelServer, "silent", silent)

    async def body() -> None:
        async with loaded(demo_models["small"], hang_s=6.0) as (model, pid):
            died = asyncio.create_task(model.died())
            text = ""
            async for chunk in model.chat(COUNT):
                if not text and words(chunk):
                    os.kill(pid, signal.SIGSTOP)
                    unanswered.clear()
                    await asyncio.wait_for(unanswered.wait(), LIMIT_S)
                    os.kill(pid, signal.SIGCONT)
                text += words(chunk)
            assert text == COUNTED
            assert not died.done()
            died.cancel()

    asyncio.run(body())


@contextmanager
def program(text: str) -> Iterator[int]:
    """A process that does something else than to answer."""
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process.pid
        finally:
            # Else a test that fails would wait for one that computes for ever, and leave it behind.
            process.kill()


@asynccontextmanager
async def mute() -> AsyncIterator[ModelServer]:
    """A server that takes every question and answers none."""

    taking = set()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taking.add(asyncio.current_task())
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async def alive() -> None:
        return None

    with tempfile.TemporaryDirectory(prefix="s") as folder:
        async with await asyncio.start_unix_server(never, f"{folder}/model.sock"):
            server = ModelServer("mute", f"unix://{folder}/model.sock", answers=1, calls=1, why_gone=alive)
            yield server
            await server.close()
            await asyncio.gather(*(one for one in taking if one is not None), return_exceptions=True)


def test_one_that_computes_has_ten_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads of a server may be taken by questions whose askers have left. (Here twice as long.)"""
    assert hangs.PATIENCE == 10
    monkeypatch.setattr(hangs, "PATIENCE", 2)

    async def body() -> None:
        with program(COMPUTES) as pid:
            async with mute() as server:
                # Half a second a question: in so long it gets some of a processor, however busy the machine is.
                assert "it computed but said nothing for 3 s" in await hung(server, "/health", pid, 1.5)

    asyncio.run(body())


def test_one_whose_answer_goes_on_does_not_hang() -> None:
    """Who says the next word is well, whatever becomes of other questions."""

    async def body() -> None:
        with program(SLEEPS) as pid:
            async with mute() as server:

                async def talk() -> None:
                    while True:
                        server.heard += 1
                        await asyncio.sleep(0.05)

                talking = asyncio.create_task(talk())
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(hung(server, "/health", pid, 0.6), 2.0)
                talking.cancel()
                assert "it said nothing and computed nothing" in await hung(server, "/health", pid, 0.6)

    asyncio.run(body())


def test_want_of_descriptors_is_not_held_against_a_model() -> None:
    """It is scaler's own, and to kill the model would not help."""

    async def body() -> None:
        async with mute() as server:
            assert await server.silent("/health", 0.1)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            try:
                assert not await server.silent("/health", 0.1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    asyncio.run(body())
