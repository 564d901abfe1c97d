"""The embedded runtime: llama.cpp in a child process a level, spoken to over its own OpenAI-compatible HTTP.

Unloading is ending a process, so the memory really comes back, and a crash in native code never reaches
the host. Owns the dialect; the processes are `embedded_process`. Knows nothing of thresholds or ladders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from scaler import extras
from scaler.descriptions import Description
from scaler.errors import LevelUnavailable, RequestRejected
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB, RAM, Saving
from scaler.runtimes import gguf_savings
from scaler.runtimes.bounds import Bounds
from scaler.runtimes.embedded_process import EmbeddedProcess
from scaler.runtimes.gguf_description import describe
from scaler.runtimes.gguf_size import pools, serving_bytes, weights_bytes
from scaler.runtimes.llama_cpp import ChildModel
from scaler.runtimes.model_process import Children, remove_abandoned
from scaler.settings import EmbeddingSettings

EMBEDDED: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class EmbeddedRuntime:
    """Loads GGUF files with xllamacpp, on one event loop, whose thread must outlive what it loads."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        """``bounds`` are those of its processes; the defaults when left out."""
        self._bounds = bounds or Bounds()
        self._children = Children[EmbeddedProcess]()

    def footprint(self, settings: EmbeddedLevel) -> Mapping[str, int]:
        """As declared, or estimated from the file; raises LevelUnavailable."""
        return settings.footprint(
            lambda: serving_bytes(
                settings.name, settings.model, settings.context_tokens, settings.parallel, settings.kv_cache
            )
        )

    def describe(self, settings: EmbeddedLevel) -> Description:
        """As the GGUF file says."""
        return describe(settings)

    def savings(self, settings: EmbeddedLevel) -> Sequence[Saving]:
        """Of RAM, by the cache that the file's shape makes necessary; raises LevelUnavailable."""
        return gguf_savings.savings(settings)

    def apart(self, one: EmbeddedLevel, other: EmbeddedLevel) -> bool:
        """Unless they were given the same port: each has a process of its own."""
        return one.port is None or one.port != other.port

    def pids(self) -> Collection[int]:
        """The children that are loaded or loading."""
        return self._children.pids()

    async def release(self, settings: EmbeddedLevel) -> None:
        """What an earlier scaler had loaded has ended with it; the folders of its sockets may be left."""
        await asyncio.to_thread(remove_abandoned)

    async def close(self) -> None:
        """Nothing goes on in the background."""

    def require(self) -> None:
        """Raises MissingExtra when llama.cpp or the HTTP client is not installed."""
        extras.require("llama", "xllamacpp", "aiohttp", "orjson")

    async def load(self, settings: EmbeddedLevel, progress: Callable[[float], None]) -> EmbeddedModel:
        """Start a child, wait until it serves. Raises LevelUnavailable, MissingExtra."""
        return await self._load(settings, progress, lambda: self.footprint(settings).get(RAM))

    def embedding_bytes(self, settings: EmbeddingSettings) -> int:
        """As declared, or estimated from the file; raises LevelUnavailable."""
        if settings.ram_gib is not None:
            return int(settings.ram_gib * GIB)
        context = settings.context_tokens
        # Beside what levels take there is the mask of which token sees which, as floats of 32 and of 16 bits. Models of
        # 20 and 143 MB held 119 and 324 MiB with texts of 2,048 tokens; without it 10 and 18 were lacking.
        mask = 6 * context**2
        return mask + serving_bytes(settings.name, settings.model, context, parallel=1, batch_tokens=context)

    async def load_embedding(self, settings: EmbeddingSettings) -> EmbeddedModel:
        """Start a child that embeds texts, wait until it does. Raises LevelUnavailable, MissingExtra."""
        alike = {"name", "model", "context_tokens", "threads", "load_timeout_s"}
        level = EmbeddedLevel(parallel=1, **settings.model_dump(include=alike))
        weights_bytes(level.name, level.model)
        try:
            # In a thread: answers of levels go on while a large vocabulary is skipped.
            pooling = settings.pooling or ("unspecified" if await asyncio.to_thread(pools, level.model) else "mean")
        except (OSError, ValueError) as error:
            raise LevelUnavailable(f"{level.name}: {level.model}: {error}; correct the model") from error
        return await self._load(level, lambda _: None, lambda: self.embedding_bytes(settings), pooling)

    async def _load(
        self,
        settings: EmbeddedLevel,
        progress: Callable[[float], None],
        takes: Callable[[], int | None],
        pooling: str | None = None,
    ) -> EmbeddedModel:
        self.require()
        # The file's size only: reading the metadata is for footprint(), and llama.cpp tells by itself what is wrong.
        expected_bytes = weights_bytes(settings.name, settings.model)
        progress(0.0)
        # In a thread: answers of other levels go on while the file is read.
        bound = await self._bounds.of(settings.name, lambda: asyncio.to_thread(takes))
        child = await EmbeddedProcess.start(settings, bound, pooling)
        serving = child.listening(expected_bytes, progress)
        address = await self._children.bring_up(child, serving, settings.load_timeout_s)
        progress(1.0)
        return EmbeddedModel(settings, child, address, self._children.end)


class EmbeddedModel(ChildModel[EmbeddedProcess]):
    """A level, or the embedding model, that is loaded in a child process."""

    def __init__(
        self,
        settings: EmbeddedLevel,
        child: EmbeddedProcess,
        address: str,
        end: Callable[[EmbeddedProcess], Awaitable[None]],
    ) -> None:
        super().__init__(settings.name, settings.model, settings.parallel, child, address, end, hang_s=settings.hang_s)
        self._context_tokens = settings.context_tokens

    async def embed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer an OpenAI embeddings request; raises LevelUnavailable, RequestRejected."""
        try:
            answer = await self._server.post("/v1/embeddings", request, EMBEDDED)
        except LevelUnavailable:
            # llama.cpp takes a text that is too long for a fault of its own.
            await self._check_lengths(request.get("input"))
            raise
        return answer

    async def _check_lengths(self, given: Any) -> None:
        for text in given if isinstance(given, list) else [given]:
            if isinstance(text, str):
                length = await self._tokens(text)
            else:
                length = len(text) if isinstance(text, list) else 0
            if length > self._context_tokens:
                raise RequestRejected(
                    f"a text of {length} tokens is too long: {self._name} takes {self._context_tokens} at the most"
                )
