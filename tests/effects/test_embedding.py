"""The embedding model: what goes wrong while it is loaded, held and unloaded, with a runtime that does as told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from scaler.embedding import Embeddings
from scaler.errors import LevelUnavailable
from scaler.events import EmbeddingsGone, EmbeddingsLoaded, UnloadFailed
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.monitor import ReadingTaken, ResourceMonitor
from scaler.policy import Policy
from scaler.proactive import Event, ProactiveScaler
from scaler.readings import Memory
from scaler.settings import EmbeddingSettings

TOTAL = 16 * GIB
TEXT = {"input": "x"}


class Use:
    """A sensor for what all processes together take."""

    name = "memory"

    def __init__(self) -> None:
        self.taken_gib = 2.0

    def read(self) -> Memory:
        return Memory(TOTAL, TOTAL - int(self.taken_gib * GIB))


class Nothing:
    """A sensor for what our own models take."""

    name = "own_bytes"

    def read(self) -> int:
        return 0


class Model:
    """An embedding model."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def embed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"data": []}

    async def died(self) -> str:
        return await self.end

    async def unload(self) -> None:
        self._runtime.log.append("unload")
        if self._runtime.unload_failures:
            raise self._runtime.unload_failures.pop()


class Runtime:
    """Loads at once, unless told to wait or to fail."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.load_failures: list[Exception] = []
        self.unload_failures: list[Exception] = []
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.models: list[Model] = []

    def require(self) -> None: ...

    def embedding_bytes(self, settings: EmbeddingSettings) -> int:
        return GIB

    def pids(self) -> Collection[int]:
        return ()

    async def load_embedding(self, settings: EmbeddingSettings) -> Model:
        self.log.append("load")
        self.begun.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.log.append("give up")
            raise
        if self.load_failures:
            raise self.load_failures.pop()
        self.models.append(Model(self))
        return self.models[-1]


class Scene:
    """The embedding model of a scaler that reads whenever the test asks for it."""

    def __init__(self) -> None:
        self.use, self.runtime = Use(), Runtime()
        ladder = Ladder([Level("small", {RAM: GIB}, 0.5, 1.0)])
        monitor = ResourceMonitor(sensors=[self.use, Nothing()], interval_s=3600, sensor_timeout_s=60)
        self.scaler = ProactiveScaler(ladder=ladder, policy=Policy(), monitor=monitor)
        self.embeddings = Embeddings(self.runtime, EmbeddingSettings(model=Path("m.gguf")), self.scaler)
        self.events: list[Event] = []
        self._changed = asyncio.Condition()
        self._loop = asyncio.get_running_loop()
        self.scaler.subscribe(self._take)

    def _take(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._keep, event)

    def _keep(self, event: Event) -> None:
        self.events.append(event)
        self._loop.create_task(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def take(self, gib: float) -> None:
        """Have all processes together take so much, and the scaler see it."""
        self.use.taken_gib = gib
        taken = ReadingTaken(await asyncio.to_thread(self.scaler.monitor.read_now))
        # Where the monitor's own thread tells of one just then, it is that which tells of this one, in a moment.
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: taken in self.events)

    async def until(self, kind: type[EmbeddingsLoaded | EmbeddingsGone | UnloadFailed], reason: str) -> None:
        """Wait until such an event was told."""

        def told() -> bool:
            return any(isinstance(event, kind) and reason in event.reason for event in self.events)

        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(told)


def on_stage(test: Callable[[Scene], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs ``test`` with a scene of its own."""

    def run() -> None:
        async def body() -> None:
            scene = Scene()
            await scene.embeddings.start()
            scene.scaler.start_continuous_monitoring()
            await scene.take(2.0)
            try:
                async with asyncio.timeout(20):
                    await test(scene)
                    await scene.embeddings.close()
            finally:
                await asyncio.to_thread(scene.scaler.stop_continuous_monitoring)

        asyncio.run(body())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@on_stage
async def test_one_that_cannot_be_unloaded_is_told_and_loaded_anew(scene: Scene) -> None:
    """Its failure is the answer to nobody's request."""
    scene.runtime.unload_failures.append(OSError(95, "Operation not supported"))
    assert await scene.embeddings.embed(TEXT) == {"data": []}
    await scene.take(15.9)
    await scene.until(UnloadFailed, "embeddings: m.gguf: OSError: [Errno 95] Operation not supported")
    await scene.take(2.0)
    for _ in range(2):
        assert await scene.embeddings.embed(TEXT) == {"data": []}
    assert scene.runtime.log == ["load", "unload", "load"]


@on_stage
async def test_a_load_is_given_up_at_once_when_memory_turns_critical(scene: Scene) -> None:
    """It would only take more of what is short already; who waits for the vectors is told, and may try again."""
    scene.runtime.gate.clear()
    asked = asyncio.create_task(scene.embeddings.embed(TEXT))
    await scene.runtime.begun.wait()
    await scene.take(15.9)
    with pytest.raises(LevelUnavailable, match=r"not loaded any more, because usage at off is 99.*; try again later"):
        await asked
    assert scene.runtime.log == ["load", "give up"]
    await scene.until(EmbeddingsGone, "its load was given up, because usage at off is 99")
    await scene.take(2.0)
    scene.runtime.gate.set()
    assert await scene.embeddings.embed(TEXT) == {"data": []}
    await scene.until(EmbeddingsLoaded, "")


@on_stage
async def test_who_gives_up_at_the_moment_in_which_the_load_ends_leaves_nothing_loaded(scene: Scene) -> None:
    """Nobody would know of the model, and its memory would be gone for good."""
    scene.runtime.gate.clear()
    asked = asyncio.create_task(scene.embeddings.embed(TEXT))
    await scene.runtime.begun.wait()
    scene.runtime.gate.set()
    # Behind the end of the load, and before whoever waits for it hears of that.
    asyncio.get_running_loop().call_soon(asked.cancel)
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await scene.embeddings.embed(TEXT) == {"data": []}
    assert scene.runtime.log == ["load", "unload", "load"]


@on_stage
async def test_who_gives_up_waiting_for_the_load_is_cancelled_and_nothing_else(scene: Scene) -> None:
    """A client that hangs up: that is no failure to tell anybody."""
    scene.runtime.gate.clear()
    asked = asyncio.create_task(scene.embeddings.embed(TEXT))
    await scene.runtime.begun.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert not [event for event in scene.events if isinstance(event, EmbeddingsGone)]


@on_stage
async def test_a_fault_in_the_runtime_is_told_like_any_other_failure(scene: Scene) -> None:
    """As where the system starts no more threads."""
    scene.runtime.load_failures.append(RuntimeError("can't start new thread"))
    with pytest.raises(LevelUnavailable, match=r"m\.gguf: RuntimeError: can't start new thread"):
        await scene.embeddings.embed(TEXT)
    await scene.until(EmbeddingsGone, "could not be loaded: embeddings: m.gguf: RuntimeError: can't start")
    assert await scene.embeddings.embed(TEXT) == {"data": []}


@on_stage
async def test_one_that_cannot_be_watched_any_more_counts_as_dead(scene: Scene) -> None:
    """Else its end would never be noticed, and every later request would go to what is not there."""
    await scene.embeddings.embed(TEXT)
    scene.runtime.models[0].end.set_exception(OSError(24, "Too many open files"))
    await scene.until(EmbeddingsGone, "it died: whether it runs cannot be told (OSError: [Errno 24]")
    await scene.embeddings.embed(TEXT)
    assert scene.runtime.log == ["load", "unload", "load"]
