"""A level that a llama.cpp server answers, whoever runs the server: its dialect, and the end of one that is our child.

Knows neither how the server was started nor what it has loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter

from scaler.runtimes.embedded_server import SPARE_THREADS
from scaler.runtimes.hangs import hung
from scaler.runtimes.model_process import P
from scaler.runtimes.model_server import GONE_S, ModelServer, streamed
from scaler.runtimes.openai_chunks import EventReader

CALLS = SPARE_THREADS - 1
"""How many questions beside answers are asked at a time; one thread is left for /health.

A request holds one of the server's threads from its arrival on, even while it waits for a slot. Twelve streams took
them all, and /health and /tokenize were not answered until one ended. So requests wait here.
"""


T = TypeVar("T")


class _Prompt(BaseModel):
    prompt: str


class _Tokens(BaseModel):
    tokens: list[Any]


PROMPT, TOKENS = TypeAdapter(_Prompt), TypeAdapter(_Tokens)


class LlamaCppModel:
    """Asks a llama.cpp server."""

    def __init__(
        self, name: str, server: ModelServer, *, query: str = "", besides: Mapping[str, str] | None = None
    ) -> None:
        """``name`` is the level's. ``query`` ends every path, and ``besides`` goes into every body."""
        self._name, self._server = name, server
        self._query, self._besides = query, besides or {}

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
        body = streamed(request, **self._besides)
        return self._server.stream(f"{path}{self._query}", body, EventReader(body))

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Tokens of the prompt as the model's own template and vocabulary have it."""
        return await self._tokens((await self._post("/apply-template", request, PROMPT)).prompt)

    async def _tokens(self, text: str) -> int:
        asked = {"content": text, "add_special": True, "parse_special": True}
        return len((await self._post("/tokenize", asked, TOKENS)).tokens)

    async def _post(self, path: str, body: Mapping[str, Any], schema: TypeAdapter[T]) -> T:
        return await self._server.post(f"{path}{self._query}", {**body, **self._besides}, schema)


class ChildModel(LlamaCppModel, Generic[P]):
    """A level that a child process serves."""

    def __init__(
        self,
        name: str,
        model: Path,
        parallel: int,
        child: P,
        address: str,
        end: Callable[[P], Awaitable[None]],
        *,
        hang_s: float,
    ) -> None:
        """``hang_s``: after how many seconds of silence the child is killed while `died` is waited for."""
        self._where, self._child, self._end, self._hang_s = f"{name}: {model}", child, end, hang_s
        server = ModelServer(self._where, address, answers=parallel, calls=CALLS, why_gone=self._why_gone)
        super().__init__(name, server)

    async def health(self) -> bool:
        """Whether the server says that it can take a request."""
        return await self._server.well("/health")

    async def died(self) -> str:
        """Wait until the child ends unasked; return why, in its own last words. One that hangs is ended."""
        watching = asyncio.create_task(self._end_if_it_hangs(), name=f"hangs {self._name}")
        try:
            return f"{self._where}: {await self._child.died()}"
        finally:
            watching.cancel()

    async def _end_if_it_hangs(self) -> None:
        # From there on it is like any other that was killed: connections break, and its answers go on elsewhere.
        self._child.end_at_once(await hung(self._server, "/health", self._child.process.pid, self._hang_s))

    async def unload(self) -> None:
        """End the child; its memory is back when this returns."""
        try:
            await self._server.close()
        finally:
            await self._end(self._child)

    async def _why_gone(self) -> str | None:
        """A broken connection: its process ends a moment later, and that tells the cause."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_S):
                return await self._child.died()
        return None
