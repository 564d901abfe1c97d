"""The person's own build of llama.cpp's llama-server: started for a level, and ended with it.

Unloading is ending a process, so the memory really comes back. Owns what a level is to this runtime; how the program is
started is `llama_server_process`. Knows nothing of thresholds or ladders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

from scaler.descriptions import Description
from scaler.level_settings import LlamaServerLevel
from scaler.levels import RAM, Saving
from scaler.runtimes import gguf_savings
from scaler.runtimes.bounds import Bounds
from scaler.runtimes.gguf_description import describe
from scaler.runtimes.gguf_size import serving_bytes, weights_bytes
from scaler.runtimes.llama_cpp import ChildModel
from scaler.runtimes.llama_server_process import LlamaServerProcess, check
from scaler.runtimes.model_process import Children, remove_abandoned
from scaler.runtimes.steering import require_client

LlamaServerModel = ChildModel[LlamaServerProcess]
"""A level that is loaded in a llama-server of its own."""


class LlamaServerRuntime:
    """Loads GGUF files with llama-server, on one event loop, whose thread must outlive what it loads."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        """``bounds`` are those of its processes; the defaults when left out."""
        self._bounds = bounds or Bounds()
        self._children = Children[LlamaServerProcess]()

    def require(self) -> None:
        """Raises MissingExtra when the HTTP client is not installed."""
        require_client()

    def footprint(self, settings: LlamaServerLevel) -> Mapping[str, int]:
        """As declared, or estimated from the file; raises LevelUnavailable."""
        return settings.footprint(
            lambda: serving_bytes(
                settings.name, settings.model, settings.context_tokens, settings.parallel, settings.kv_cache
            )
        )

    def describe(self, settings: LlamaServerLevel) -> Description:
        """As the GGUF file says."""
        return describe(settings)

    def savings(self, settings: LlamaServerLevel) -> Sequence[Saving]:
        """Of RAM, by the cache that the file's shape makes necessary; raises LevelUnavailable."""
        return gguf_savings.savings(settings)

    def apart(self, one: LlamaServerLevel, other: LlamaServerLevel) -> bool:
        """Always: each has a process of its own."""
        return True

    def pids(self) -> Collection[int]:
        """The children that are loaded or loading."""
        return self._children.pids()

    async def release(self, settings: LlamaServerLevel) -> None:
        """What an earlier scaler had loaded has ended with it; the folders of its sockets may be left."""
        await asyncio.to_thread(remove_abandoned)

    async def close(self) -> None:
        """Nothing goes on in the background."""

    async def load(self, settings: LlamaServerLevel, progress: Callable[[float], None]) -> LlamaServerModel:
        """Start a child, wait until it serves. Raises LevelUnavailable, MissingExtra."""
        self.require()
        check(settings)
        expected_bytes = weights_bytes(settings.name, settings.model)
        progress(0.0)

        async def takes() -> int | None:
            # In a thread: answers of other levels go on while the file is read.
            return (await asyncio.to_thread(self.footprint, settings)).get(RAM)

        child = await LlamaServerProcess.start(settings, await self._bounds.of(settings.name, takes))
        model = ChildModel(
            settings.name,
            settings.model,
            settings.parallel,
            child,
            child.address,
            self._children.end,
            hang_s=settings.hang_s,
        )
        try:
            serving = child.serving(model.health, expected_bytes, progress)
            await self._children.bring_up(child, serving, settings.load_timeout_s)
        except BaseException:
            await model.unload()
            raise
        progress(1.0)
        return model
