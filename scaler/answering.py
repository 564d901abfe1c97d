"""One answer on one loaded model: its chunks as they come, until it ends or its model must go.

Owns the reading of one answer; knows nothing of which level is right, nor of what another level makes of the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from scaler.errors import LevelUnavailable, NeverAsked
from scaler.handoff import says_something
from scaler.passed_on import NO_HEADERS, with_headers
from scaler.performance import AnswerSample
from scaler.switching import Lease

AHEAD = 64
"""How many chunks are read ahead of a slow taker before the model is made to wait."""


Asking = Callable[[], Awaitable[Mapping[str, Any]]]


class Chunk(NamedTuple):
    """An OpenAI ``chat.completion.chunk`` (or ``text_completion``) and the level that it comes from."""

    level: str
    data: dict[str, Any]


class Answering:
    """An answer in progress. A pump reads the model, so that a cut waits neither for a token nor for the taker."""

    def __init__(self, lease: Lease, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease, self._clock = lease, clock
        self.headers: Mapping[str, str] = NO_HEADERS
        """What goes with the request to a runtime's HTTP server."""
        self._began_s = clock()
        self._first_token_s: float | None = None
        self._ended_s: float | None = None
        self._failed = self._unasked = False
        self._arrived: list[dict[str, Any]] = []
        self._taker: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self.gave_way = False
        """Whether the drain limits were used up before the model had said all; what is missing is another level's."""

    async def stream(self, asking: Asking) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield the answer's chunks, those together that came together, up to where the model had to go.

        ``asking`` makes the request as this model can take it, which may take as long as a model that hangs: a cut ends
        that as well. Raises LevelUnavailable, RequestRejected.
        The model is given back as soon as it has nothing more to say, however slowly the chunks are taken.
        """
        lease, arrived, loop = self._lease, self._arrived, asyncio.get_running_loop()
        context = with_headers(self.headers) if self.headers else None
        pump = asyncio.create_task(self._pump(asking), name=f"answer at {lease.level}", context=context)
        # By a callback, because a task that is cancelled before it began never reaches a finally of its own.
        pump.add_done_callback(self._pumped)
        lease.on_cut = lambda: _cancel(pump)
        if lease.cut:
            pump.cancel()
        try:
            while True:
                if arrived:
                    taken = list(arrived)
                    arrived.clear()
                    self._room.set()
                    yield taken
                elif pump.done():
                    break
                else:
                    # What an Event would make for each wait as well, with a queue of waiters around it.
                    self._taker = loop.create_future()
                    await self._taker
            if not lease.cut:
                error = pump.exception()
                self._unasked = isinstance(error, NeverAsked)
                self._failed = isinstance(error, LevelUnavailable)
                await pump
            self.gave_way = lease.cut
        finally:
            if not pump.done():
                pump.cancel()
            # Also where it has failed already: nobody is left whom that would tell anything.
            await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self, asking: Asking) -> None:
        lease, arrived = self._lease, self._arrived
        request = await asking()
        chunks = lease.model.complete(request) if "prompt" in request else lease.model.chat(request)
        try:
            async for data in chunks:
                if says_something(data):
                    if self._first_token_s is None:
                        self._first_token_s = self._clock() - self._began_s
                    lease.count()
                arrived.append(data)
                self._wake()
                if lease.cut:
                    break
                while len(arrived) >= AHEAD:
                    self._room.clear()
                    await self._room.wait()
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    def _pumped(self, _: asyncio.Task[None]) -> None:
        self._ended_s = self._clock()
        self._lease.release()
        self._wake()

    def _wake(self) -> None:
        taker, self._taker = self._taker, None
        if taker is not None and not taker.done():
            taker.set_result(None)

    @property
    def tokens(self) -> int:
        """How many tokens have come."""
        return self._lease.tokens

    @property
    def first_token_s(self) -> float | None:
        """The time from the asking to the first token; None before it has come."""
        return self._first_token_s

    def sample(self) -> AnswerSample | None:
        """How the answer went; None when the level gave way or died before there was anything to judge."""
        if self._unasked or (self._lease.cut and not self._lease.tokens):
            return None
        return AnswerSample(
            self._lease.level,
            (self._clock() if self._ended_s is None else self._ended_s) - self._began_s,
            self._lease.tokens,
            self._first_token_s,
            self._failed,
        )


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def collect(parts: AsyncIterator[list[Chunk]]) -> Chunk:
    """Put an answer's chunks together to one ``chat.completion`` or ``text_completion``. Raises what they raise."""
    chunks = [chunk async for part in parts for chunk in part]
    whole: dict[str, Any] = {"object": "chat.completion", "choices": []}
    choices: dict[int, dict[str, Any]] = {}
    for _, data in chunks:
        for key in ("id", "created", "model", "system_fingerprint", "usage", "timings"):
            if data.get(key) is not None:
                whole[key] = data[key]
        if data.get("object") == "text_completion":
            whole["object"] = "text_completion"
        for piece in data.get("choices", ()):
            index = piece.get("index", 0)
            if "text" in piece:
                choice = choices.setdefault(index, {"text": "", "finish_reason": None})
                choice["text"] += piece["text"]
            else:
                message: dict[str, Any] = {"role": "assistant", "content": None}
                choice = choices.setdefault(index, {"message": message, "finish_reason": None})
                _add_delta(choice["message"], piece.get("delta", {}))
            if piece.get("finish_reason") is not None:
                choice["finish_reason"] = piece["finish_reason"]
            if piece.get("logprobs") is not None:
                logprobs = choice.setdefault("logprobs", {})
                # A completion may have several lists beside each other, one entry a token in each.
                for key, some in piece["logprobs"].items():
                    if isinstance(some, list):
                        logprobs.setdefault(key, []).extend(some)
    whole["choices"] = [{"index": index, **choice} for index, choice in sorted(choices.items())]
    return Chunk(chunks[-1].level if chunks else "", whole)


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
