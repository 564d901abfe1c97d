"""One answer on one loaded model: its chunks as they come, ended cleanly when its model must go.

Owns the reading of one answer; knows nothing of which level is right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from scaler.errors import LevelUnavailable
from scaler.performance import AnswerSample
from scaler.switching import Lease

AHEAD = 64
"""How many chunks are read ahead of a slow taker before the model is made to wait."""


class Chunk(NamedTuple):
    """An OpenAI ``chat.completion.chunk`` and the level that it comes from."""

    level: str
    data: dict[str, Any]


class Answering:
    """An answer in progress. A pump reads the model, so that a cut need not wait for the next token."""

    def __init__(self, lease: Lease, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease, self._clock = lease, clock
        self._began_s = clock()
        self._first_token_s: float | None = None
        self._failed = False
        self._room = asyncio.Semaphore(AHEAD)
        self.passed_on = False
        """Whether anything of the answer itself was handed out, so that it cannot be begun again."""

    async def stream(self, request: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Yield the answer's chunks. Raises LevelUnavailable, RequestRejected.

        Used up drain limits end it with ``finish_reason`` ``length``, as any other token limit does; an answer of
        which nothing was said yet has nothing to end, and raises LevelUnavailable to be begun again elsewhere.
        """
        lease = self._lease
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(request, queue), name=f"answer at {lease.level}")
        # By a callback, because a task that is cancelled before it began never reaches a finally of its own.
        pump.add_done_callback(lambda _: queue.put_nowait(None))
        lease.on_cut = lambda: _cancel(pump)
        if lease.cut:
            pump.cancel()
        header: dict[str, Any] = {}
        held: list[dict[str, Any]] = []
        finished = False
        try:
            while (data := await queue.get()) is not None:
                self._room.release()
                header = {key: data[key] for key in ("id", "object", "created", "model") if key in data}
                finished = finished or any(choice.get("finish_reason") for choice in data.get("choices", ()))
                if not self.passed_on and not _says_something(data):
                    held.append(data)
                    continue
                self.passed_on = True
                for early in held:
                    yield Chunk(lease.level, early)
                held.clear()
                yield Chunk(lease.level, data)
            if not lease.cut:
                self._failed = isinstance(pump.exception(), LevelUnavailable)
                await pump
            elif not self.passed_on:
                raise LevelUnavailable(f"{lease.level}: it gave way before the answer had begun")
            for early in held:
                yield Chunk(lease.level, early)
            if lease.cut and not finished:
                last = {"index": 0, "delta": {}, "finish_reason": "length"}
                yield Chunk(lease.level, {**header, "choices": [last]})
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self, request: Mapping[str, Any], queue: asyncio.Queue[dict[str, Any] | None]) -> None:
        chunks = self._lease.model.chat(request)
        try:
            async for data in chunks:
                if _says_something(data):
                    if self._first_token_s is None:
                        self._first_token_s = self._clock() - self._began_s
                    self._lease.count()
                await self._room.acquire()
                queue.put_nowait(data)
                if self._lease.cut:
                    break
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    def sample(self) -> AnswerSample | None:
        """How the answer went; None when the level gave way before there was anything to judge."""
        if self._lease.cut and not self.passed_on:
            return None
        return AnswerSample(
            self._lease.level,
            self._clock() - self._began_s,
            self._lease.tokens,
            self._first_token_s,
            self._failed,
        )


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _says_something(data: Mapping[str, Any]) -> bool:
    return any(
        choice.get("delta", {}).get(key)
        for choice in data.get("choices", ())
        for key in ("content", "reasoning_content", "tool_calls")
    )


async def collect(chunks: AsyncIterator[Chunk]) -> Chunk:
    """Put an answer's chunks together to one ``chat.completion``. Raises what the chunks raise."""
    whole: dict[str, Any] = {"object": "chat.completion", "choices": []}
    choices: dict[int, dict[str, Any]] = {}
    level = ""
    async for chunk_level, data in chunks:
        level = chunk_level
        for key in ("id", "created", "model", "system_fingerprint", "usage", "timings"):
            if data.get(key) is not None:
                whole[key] = data[key]
        for piece in data.get("choices", ()):
            choice = choices.setdefault(
                piece.get("index", 0), {"message": {"role": "assistant", "content": None}, "finish_reason": None}
            )
            _add_delta(choice["message"], piece.get("delta", {}))
            if piece.get("finish_reason") is not None:
                choice["finish_reason"] = piece["finish_reason"]
            if piece.get("logprobs") is not None:
                tokens = choice.setdefault("logprobs", {"content": []})["content"]
                tokens.extend(piece["logprobs"].get("content") or ())
    whole["choices"] = [{"index": index, **choice} for index, choice in sorted(choices.items())]
    return Chunk(level, whole)


def _add_delta(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for key in ("content", "reasoning_content"):
        if delta.get(key) is not None:
            message[key] = (message.get(key) or "") + delta[key]
    for call in delta.get("tool_calls") or ():
        calls: list[dict[str, Any]] = message.setdefault("tool_calls", [])
        index = call.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        known = calls[index]
        if call.get("id"):
            known["id"] = call["id"]
        for key, value in (call.get("function") or {}).items():
            if isinstance(value, str):
                known["function"][key] = known["function"].get(key, "") + value
