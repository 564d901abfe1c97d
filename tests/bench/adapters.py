"""What stands between a person and their runtime: the time that an adapter adds, and how soon it unloads."""

from __future__ import annotations

import asyncio
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pynvml
import yaml
from pydantic import HttpUrl

from scaler.level_settings import LmStudioLevel, OllamaLevel, OpenAILevel, VllmLevel
from scaler.levels import GIB, gpu_resource
from scaler.manager import ModelManager
from scaler.monitor import ReadingTaken
from scaler.proactive import Event
from scaler.runtimes.lmstudio import LmStudioModel, LmStudioRuntime
from scaler.runtimes.ollama import OllamaModel, OllamaRuntime
from scaler.runtimes.openai import OpenAIRuntime
from scaler.runtimes.vllm import VllmModel, steering_of
from scaler.sensors import default_sensors
from tests.runtimes.vllm_server import VllmServer, hold
from tests.sensors.conftest import FakeNvml, compile_nvml

ROUNDS = 40
CHUNKS, CHUNK_MS = 50, 5.0
SOMEBODY = 1
TOTAL = 24 * GIB
PATIENCE_S = 60.0

Ask = Callable[[], AsyncGenerator[Any, None]]


class Added(NamedTuple):
    """An adapter's answers beside those of the bare connection: the whole as a ratio, the first word in ms more."""

    name: str
    whole: float
    first_ms: float


def added() -> list[Added]:
    """What each adapter adds to an answer of 50 chunks, one every 5 ms, asked in turn with the bare connection."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", "tests.bench.serving.upstream", f"{folder}/socket", str(CHUNK_MS)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as upstream:
            try:
                assert upstream.stdout is not None
                return asyncio.run(_added(upstream.stdout.readline().strip()))
            finally:
                upstream.terminate()


async def _added(address: str) -> list[Added]:
    asked = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": CHUNKS}
    common: dict[str, Any] = {"name": "level", "model": "level", "url": HttpUrl(address)}
    openai = await OpenAIRuntime().load(OpenAILevel(**common, runtime="openai"), lambda _: None)
    vllm_level = VllmLevel(**common, runtime="vllm", vram_gib=1)
    models: dict[str, Any] = {
        "OpenAI's API": openai,
        "vLLM": VllmModel(vllm_level, steering_of(vllm_level), os.getpid(), {}),
        "LM Studio": LmStudioModel(
            LmStudioLevel(**common, runtime="lmstudio"), "level", os.getpid(), LmStudioRuntime()
        ),
        "Ollama": OllamaModel(OllamaLevel(**common, runtime="ollama"), os.getpid(), False, OllamaRuntime()),
    }
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as session:

        async def bare(path: str, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
            async with session.post(f"{address}{path}", json=body) as response:
                async for block in response.content.iter_any():
                    yield block

        streamed = {**asked, "stream": True}
        ollamas = {"model": "level", "messages": asked["messages"], "options": {"num_predict": CHUNKS}}
        found = []
        for name, model in models.items():
            path, body = ("/api/chat", ollamas) if name == "Ollama" else ("/v1/chat/completions", streamed)
            firsts, wholes = [], []
            for _ in range(ROUNDS):
                (first, whole) = await _timed(lambda path=path, body=body: bare(path, body))  # type: ignore[misc]
                (our_first, our_whole) = await _timed(lambda model=model: model.chat(asked))  # type: ignore[misc]
                firsts.append(our_first - first)
                wholes.append(our_whole / whole)
            found.append(Added(name, statistics.median(wholes), 1000 * statistics.median(firsts)))
        for model in models.values():
            await model._server.close()
    return found


async def _timed(ask: Ask) -> tuple[float, float]:
    """Seconds to the first piece and to the end."""
    began, first = time.perf_counter(), None
    async for _ in ask():
        first = first or time.perf_counter() - began
    assert first is not None
    return first, time.perf_counter() - began


def reaction(rounds: int = 5) -> float | None:
    """Intervals from a GPU's first reading above critical-at to the call that unloads the level there, the longest.

    None where the stand-in for NVML cannot be compiled.
    """
    with tempfile.TemporaryDirectory() as folder, _card(Path(folder)) as state:
        if state is None:
            return None
        with VllmServer("small", 2 * GIB, state=state) as small, VllmServer("large", 16 * GIB, state=state) as large:
            ladder = [
                {"name": one, "runtime": "vllm", "model": one, "url": server.url, "vram_gib": size}
                for one, server, size in (("small", small, 2), ("large", large, 16))
            ]
            config = Path(folder) / "scaler.yaml"
            # Pressure that comes and goes at once, round after round, would teach it to wait whether it stays.
            policy = {"dwell_s": 2.0, "dwell_max_s": 2.0, "recovery_s": 1.0, "trend_window_s": 30.0, "needle_s": 0.0}
            kept = {"journal": {"path": f"{folder}/journal.jsonl"}, "policy": policy}
            config.write_text(yaml.safe_dump({"ladder": ladder, **kept}))
            with ModelManager(config, sensors=default_sensors) as manager:
                return max(_reaction(manager, state) for _ in range(rounds)) / manager.settings.monitor.interval_s


def _reaction(manager: ModelManager, state: Path) -> float:
    manager.scaler.want(True)
    _until(lambda: manager.scaler.status().serving == "large" and manager.scaler.status().settled)
    over: list[float] = []
    called: list[float] = []

    def seen(event: Event) -> None:
        if isinstance(event, ReadingTaken) and not over:
            usage = event.reading.usage(gpu_resource(0))
            if usage is not None and usage.own_bytes + usage.other_bytes > 0.95 * TOTAL:
                over.append(event.reading.at_s)

    unload = VllmModel.unload

    async def noted(model: VllmModel) -> None:
        called.append(time.monotonic())
        await unload(model)

    stop = manager.scaler.subscribe(seen)
    VllmModel.unload = noted  # type: ignore[assignment, method-assign]
    try:
        hold(state, (0,), SOMEBODY, 7 * GIB)
        _until(lambda: bool(called))
    finally:
        VllmModel.unload = unload  # type: ignore[method-assign]
        stop()
    hold(state, (0,), SOMEBODY, 0)
    return called[0] - over[0]


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.01)


@contextmanager
def _card(folder: Path) -> Iterator[Path | None]:
    """A GPU of 24 GiB in the stand-in for NVML, which the real pynvml reads: the file that it stands in."""
    library = compile_nvml(folder, 1)
    if library is None:
        yield None
        return
    fake = FakeNvml(library.rename(library.with_name("libnvidia-ml.so.1")), folder / "state")
    fake.gpu("Fake GPU", TOTAL, 0)
    before = pynvml.nvmlLib
    os.environ["FAKE_NVML_STATE"] = str(fake.state)
    pynvml.nvmlLib = ctypes.CDLL(str(fake.library))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        yield fake.state
    finally:
        pynvml.nvmlLib = before
        pynvml._nvmlGetFunctionPointer_cache.clear()
        del os.environ["FAKE_NVML_STATE"]
