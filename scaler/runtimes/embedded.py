"""The embedded runtime: llama.cpp in a child process a level, spoken to over its own OpenAI-compatible HTTP.

Unloading is ending a process, so the memory really comes back, and a crash in native code never reaches
the host. Owns the dialect; the processes are `embedded_process`. Knows nothing of thresholds or ladders.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from scaler.descriptions import Description
from scaler.errors import LevelUnavailable, MissingExtra, RequestRejected
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB, RAM, Saving, gpu_resource
from scaler.runtimes.embedded_process import EmbeddedProcess
from scaler.runtimes.embedded_server import SPARE_THREADS
from scaler.runtimes.gguf_description import describe
from scaler.runtimes.gguf_size import CACHE_BLOCK, Shape, pools, serving_bytes, shape_of, weights_bytes
from scaler.runtimes.model_server import EventReader, ModelServer
from scaler.settings import EmbeddingSettings

GONE_S = 1.0
"""How long after a broken connection the end of its process is waited for, in order to tell the cause."""


LEAST_CONTEXT_TOKENS = 1024
"""A shorter context than this is not proposed: hardly a conversation fits in it."""


def _of_use(saving: Saving, shape: Shape) -> bool:
    """Whether llama.cpp could do with such a setting, and a person too."""
    if saving.setting == "kv_cache":
        return shape.head % CACHE_BLOCK == 0
    return int(saving.value) >= LEAST_CONTEXT_TOKENS


class EmbeddedRuntime:
    """Loads GGUF files with xllamacpp, on one event loop, whose thread must outlive what it loads."""

    def __init__(self) -> None:
        self._children: set[EmbeddedProcess] = set()

    def footprint(self, settings: EmbeddedLevel) -> Mapping[str, int]:
        """As declared, or estimated from the file; raises LevelUnavailable."""
        if settings.ram_gib is not None:
            ram = int(settings.ram_gib * GIB)
        else:
            ram = serving_bytes(
                settings.name, settings.model, settings.context_tokens, settings.parallel, settings.kv_cache
            )
        vram = int(settings.vram_gib * GIB)
        return {RAM: ram, gpu_resource(settings.gpu): vram} if vram else {RAM: ram}

    def describe(self, settings: EmbeddedLevel) -> Description:
        """As the GGUF file says."""
        return describe(settings)

    def savings(self, settings: EmbeddedLevel) -> Sequence[Saving]:
        """Of RAM, by the cache that the file's shape makes necessary; raises LevelUnavailable."""
        # What is declared by hand stays as declared whatever the settings, and on a GPU it always is.
        if settings.ram_gib is not None or settings.gpu_layers:
            return ()
        shape, slots = shape_of(settings.name, settings.model), settings.parallel
        tokens, kv_cache = settings.context_tokens, settings.kv_cache
        now = shape.cache_bytes(tokens * slots, kv_cache)

        def quantised(name: str) -> Saving:
            return Saving("kv_cache", name, kv_cache, {RAM: now - shape.cache_bytes(tokens * slots, name)})

        def shortened(part: int) -> Saving:
            shorter = tokens // part
            saved = {RAM: now - shape.cache_bytes(shorter * slots, kv_cache)}
            return Saving("context_tokens", str(shorter), str(tokens), saved)

        every = [quantised("q8_0"), shortened(2), quantised("q4_0"), shortened(4)]
        return [saving for saving in every if saving.saved[RAM] > 0 and _of_use(saving, shape)]

    def apart(self, one: EmbeddedLevel, other: EmbeddedLevel) -> bool:
        """Always: each has a process of its own."""
        return True

    def pids(self) -> Collection[int]:
        """The children that are loaded or loading."""
        return tuple(pid for child in tuple(self._children) if (pid := child.pid) is not None)

    def require(self) -> None:
        """Raises MissingExtra when llama.cpp or the HTTP client is not installed."""
        for module in ("xllamacpp", "aiohttp", "orjson"):
            if find_spec(module) is None:
                raise MissingExtra(
                    f"{module} is not installed; install it with: pip install 'capability-scaler[llama]'"
                )

    async def load(self, settings: EmbeddedLevel, progress: Callable[[float], None]) -> EmbeddedModel:
        """Start a child, wait until it serves. Raises LevelUnavailable, MissingExtra."""
        return await self._load(settings, progress)

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
        return await self._load(level, lambda _: None, pooling)

    async def _load(
        self, settings: EmbeddedLevel, progress: Callable[[float], None], pooling: str | None = None
    ) -> EmbeddedModel:
        self.require()
        # The file's size only: reading the metadata is for footprint(), and llama.cpp tells by itself what is wrong.
        expected_bytes = weights_bytes(settings.name, settings.model)
        progress(0.0)
        child = await EmbeddedProcess.start(settings, pooling)
        self._children.add(child)
        try:
            async with asyncio.timeout(settings.load_timeout_s):
                address = await child.listening(expected_bytes, progress)
        except TimeoutError:
            await self._end(child)
            raise LevelUnavailable(
                f"{settings.name}: {settings.model}: not loaded within {settings.load_timeout_s:g} s; "
                "raise load_timeout_s or choose a smaller model"
            ) from None
        except BaseException:
            await self._end(child)
            raise
        progress(1.0)
        return EmbeddedModel(settings, child, address, self._end)

    async def _end(self, child: EmbeddedProcess) -> None:
        async def end() -> None:
            try:
                await child.end()
            finally:
                self._children.discard(child)

        # Whoever gives up waiting does not stop what was begun.
        await asyncio.shield(end())


class EmbeddedModel:
    """A level that is loaded in a child process."""

    def __init__(
        self,
        settings: EmbeddedLevel,
        child: EmbeddedProcess,
        address: str,
        end: Callable[[EmbeddedProcess], Awaitable[None]],
    ) -> None:
        self._child, self._end = child, end
        self._name, self._where = settings.name, f"{settings.name}: {settings.model}"
        self._context_tokens = settings.context_tokens
        # A request holds one of the server's threads from its arrival on, even while it waits for a slot. Twelve
        # streams took them all, and /health and /tokenize were not answered until one ended. So requests wait here.
        self._server = ModelServer(
            self._where, address, answers=settings.parallel, calls=SPARE_THREADS - 1, why_gone=self._why_gone
        )

    @property
    def name(self) -> str:
        """The level's name."""
        return self._name

    def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream the answer's chunks; raises LevelUnavailable, RequestRejected."""
        return self._stream("/v1/chat/completions", request)

    def complete(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream what follows the prompt; raises LevelUnavailable, RequestRejected."""
        return self._stream("/v1/completions", request)

    def _stream(self, path: str, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        asked = {**request, "stream": True, "stream_options": {"include_usage": True}}
        return self._server.stream(path, asked, EventReader())

    async def embed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer an OpenAI embeddings request; raises LevelUnavailable, RequestRejected."""
        try:
            answer: dict[str, Any] = await self._server.post("/v1/embeddings", request)
        except LevelUnavailable:
            # llama.cpp takes a text that is too long for a fault of its own.
            await self._check_lengths(request.get("input"))
            raise
        return answer

    async def _check_lengths(self, given: Any) -> None:
        for text in given if isinstance(given, list) else [given]:
            if isinstance(text, str):
                asked = {"content": text, "add_special": True, "parse_special": True}
                length = len((await self._server.post("/tokenize", asked))["tokens"])
            else:
                length = len(text) if isinstance(text, list) else 0
            if length > self._context_tokens:
                raise RequestRejected(
                    f"a text of {length} tokens is too long: {self._name} takes {self._context_tokens} at the most"
                )

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Tokens of the prompt as the model's own template and vocabulary have it."""
        prompt = (await self._server.post("/apply-template", request))["prompt"]
        tokens = await self._server.post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
        return len(tokens["tokens"])

    async def _why_gone(self) -> str | None:
        """A broken connection: its process ends a moment later, and that tells the cause."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_S):
                return await self._child.died()
        return None

    async def health(self) -> bool:
        """Whether the server says that it can take a request."""
        return await self._server.well("/health")

    async def died(self) -> str:
        """Wait until the child ends unasked; return why, in its own last words."""
        return f"{self._where}: {await self._child.died()}"

    async def unload(self) -> None:
        """End the child; its memory is back when this returns."""
        try:
            await self._server.close()
        finally:
            await self._end(self._child)
