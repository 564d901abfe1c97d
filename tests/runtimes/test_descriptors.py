"""Want of descriptors: that a process cannot be started is told, and nothing is left of it; no model counts as dead."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scaler.errors import LevelUnavailable
from scaler.level_settings import EmbeddedLevel
from scaler.loop_thread import LoopThread
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.runtimes.listeners import gone, runs
from scaler.runtimes.model_cgroup import ModelCgroup
from scaler.runtimes.model_process import DESCRIPTORS
from tests.runtimes.answers import said
from tests.runtimes.openai_server import OpenAIServer
from tests.runtimes.test_openai import ASKED, level, load


@contextmanager
def only(free: int) -> Iterator[None]:
    """So many descriptors are left to this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(free)]
    # The lowest that is free is given next, so that those below the limit are taken and then given back.
    filled = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken, default=2) + 1, hard))
    try:
        while True:
            try:
                filled.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for one in taken:
            os.close(one)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in filled:
            os.close(one)


@pytest.mark.parametrize("free", [1, 4, 7, 10, DESCRIPTORS - 1])
def test_want_of_descriptors_leaves_nothing_open(
    demo_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Each try would cost some for good, until none were left at all."""
    loop = LoopThread("descriptors")
    small = EmbeddedLevel(name="small", model=demo_models["small"], threads=1)
    runtime = EmbeddedRuntime()
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        try:
            # Whatever is opened once and kept.
            loop.call(loop.call(runtime.load(small, lambda _: None)).unload())
            # What other tests have left behind must not be tidied up in between.
            gc.collect()
            before = psutil.Process().num_fds()
            with only(free), pytest.raises(LevelUnavailable, match=r"small: its process cannot be started \(Too many"):
                loop.call(runtime.load(small, lambda _: None))
            assert psutil.Process().num_fds() == before
            assert not list(Path(folder).iterdir())
            assert not runtime.pids()
            # With enough of them it is as if nothing had been.
            loop.call(loop.call(runtime.load(small, lambda _: None)).unload())
        finally:
            loop.stop()


def test_the_end_of_a_process_is_waited_for_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it runs cannot be read meanwhile; its end is seen afterwards."""
    monkeypatch.setattr("scaler.runtimes.listeners.LOOK_EVERY_S", 0.0)

    async def body(process: subprocess.Popen[bytes]) -> None:
        waiting = asyncio.create_task(gone(process.pid))
        with only(0):
            for _ in range(3):
                await asyncio.sleep(0)
            assert runs(process.pid)
            assert not waiting.done()
        process.kill()
        async with asyncio.timeout(20):
            await waiting
        # Not yet waited for, and ended all the same.
        assert not runs(process.pid)

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            asyncio.run(body(process))
        finally:
            process.kill()


def test_a_server_that_cannot_be_asked_is_not_gone() -> None:
    """What is lacking is scaler's: as soon as that is over, the level answers, and nobody has taken it for dead."""
    with OpenAIServer(big=" The big one speaks") as server:

        async def body() -> None:
            model = await load(level(server))
            # What is imported with the first answer is not there yet.
            assert said([chunk async for chunk in model.chat(ASKED)]) == " The big one speaks"
            death = asyncio.create_task(model.died())
            await asyncio.sleep(0)
            with only(0):
                for _ in range(3):
                    with pytest.raises(LevelUnavailable, match=os.strerror(errno.EMFILE)):
                        [chunk async for chunk in model.chat(ASKED)]
            assert said([chunk async for chunk in model.chat(ASKED)]) == " The big one speaks"
            assert not death.done()
            death.cancel()
            await model.unload()

        asyncio.run(body())


def test_why_a_model_died_may_be_unreadable(tmp_path: Path) -> None:
    """That it died is told all the same."""
    (tmp_path / "memory.events.local").write_text("oom 1\n")
    (tmp_path / "memory.events").write_text("oom_kill 1\n")
    group = ModelCgroup(tmp_path, 2**30)
    with only(0):
        assert group.why_killed() is None
    assert "at its memory limit" in str(group.why_killed())
