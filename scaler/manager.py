"""ModelManager: answers requests with the level that serves, and has the scaler's switches performed.

Owns the effects' loop, the conversations and the notices. A request is checked before it starts, waits for
a level if it must, and is answered; it knows no thresholds and reads no sensors.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from scaler.answering import Chunk, collect
from scaler.assembly import assemble
from scaler.conversations import Conversations, Message
from scaler.embedding import Embeddings
from scaler.errors import RequestRejected
from scaler.events import PersonTold
from scaler.journal import Journal
from scaler.loop_thread import LoopThread
from scaler.monitor import ResourceMonitor
from scaler.notices import Notice, Notices, notice_of
from scaler.notify import outboxes
from scaler.proactive import Event, ProactiveScaler
from scaler.relaying import Relay
from scaler.sensors import Sensor, default_sensors
from scaler.switching import Switcher


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. ``str(answer)`` is its text; ``finish_reason`` is OpenAI's; times in seconds."""

    text: str
    level: str
    conversation_id: str
    finish_reason: str | None
    tokens: int
    total_s: float
    first_token_s: float | None

    def __str__(self) -> str:
        return self.text


class ModelManager:
    """Keeps the ladder's best sustainable level loaded and answers with it.

    Without arguments it takes the person's configuration, or the shipped one, and starts monitoring; it
    loads nothing until it is asked. Usable from any thread and any event loop. `shutdown` (or leaving the
    ``with`` block) ends every process, thread and task of it.
    """

    def __init__(
        self,
        config: Path | None = None,
        *,
        sensors: Callable[[Callable[[], Collection[int]]], Sequence[Sensor]] = default_sensors,
        on_notice: Callable[[Notice], None] | None = None,
        notify_upgrades: bool = False,
    ) -> None:
        """``config``: a YAML in place of the person's own; ``sensors`` makes those of a machine other than this.

        Raises ConfigError when the configuration is at fault, LevelUnavailable when a level cannot be sized,
        MissingExtra when the library of a runtime, or of a place for notices, is not installed.
        """
        parts = assemble(config)
        # Before anything is started: without its library no level could ever be loaded.
        for runtime, _ in parts.levels.values():
            runtime.require()
        settings = parts.settings
        self._outboxes = outboxes(settings.notices)
        self.settings = settings
        self.detection = parts.tier
        self._switcher: Switcher
        monitor = ResourceMonitor(
            interval_s=settings.monitor.interval_s, sensors=sensors(lambda: self._switcher.pids())
        )
        self.journal = Journal(
            settings.journal.path, max_bytes=int(settings.journal.max_mib * 1024**2), files=settings.journal.files
        )
        self._proactive_scaler = ProactiveScaler(
            ladder=parts.ladder, policy=parts.policy, monitor=monitor, journal=self.journal, tier=parts.tier.tier.name
        )
        self._embeddings = Embeddings(*parts.embeddings, self._proactive_scaler) if parts.embeddings else None
        self.conversations = Conversations()
        self.progress: dict[str, float] = {}
        self.notices = Notices(upgrades=notify_upgrades or settings.notices.upgrades)
        if on_notice is not None:
            self.notices.subscribe(on_notice)
        for outbox in self._outboxes:
            self.notices.subscribe(outbox.take)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._effects = LoopThread("scaler-effects")
        self._switcher = Switcher(
            parts.levels,
            self._proactive_scaler,
            queue_limit=settings.queue.limit,
            on_progress=self.progress.__setitem__,
        )
        self._relay = Relay(
            self._proactive_scaler,
            self._switcher,
            {name: level for name, (_, level) in parts.levels.items()},
            settings.queue.wait_s,
        )
        self._effects.call(self._switcher.start())
        if self._embeddings is not None:
            self._effects.call(self._embeddings.start())
        for outbox in self._outboxes:
            self._effects.call(outbox.start())
        self._proactive_scaler.want(False)
        self._proactive_scaler.on_enter(self._switcher.request)
        self._proactive_scaler.subscribe(self._on_event)
        self._proactive_scaler.start_continuous_monitoring()

    @property
    def scaler(self) -> ProactiveScaler:
        """The decision behind this manager."""
        return self._proactive_scaler

    @property
    def effects(self) -> LoopThread:
        """The loop that everything loaded lives on; serve HTTP from it to spare a hop a token."""
        return self._effects

    @property
    def waiting(self) -> int:
        """How many requests wait for a level."""
        return self._switcher.waiting

    @property
    def answering(self) -> int:
        """How many answers run."""
        return self._switcher.answering

    # ---------------------------------------------------------------- answers

    async def generate_response(
        self, message: str, *, conversation_id: str | None = None, system: str | None = None, **options: Any
    ) -> Answer:
        """Answer ``message`` as the next turn of a conversation, a new one when no id is given.

        ``options`` are OpenAI's (``temperature``, ``max_tokens``, ...). Raises QueueFull, RequestTimedOut,
        LevelUnavailable or RequestRejected; the conversation is then as it was before.
        """
        return await self._effects.run(self._turn(message, conversation_id, system, options))

    async def stream_response(
        self, message: str, *, conversation_id: str | None = None, system: str | None = None, **options: Any
    ) -> AsyncIterator[str]:
        """The same, as pieces of text while they come. Leaving the loop early ends the generation."""
        identity = conversation_id or uuid.uuid4().hex
        pieces = self._stream_turn(message, identity, system, options)
        async for piece in self._effects.iterate(pieces):
            yield piece

    def generate_response_sync(
        self, message: str, *, conversation_id: str | None = None, system: str | None = None, **options: Any
    ) -> Answer:
        """`generate_response` for code without an event loop; not to be called on a running loop."""
        return self._effects.call(self._turn(message, conversation_id, system, options))

    async def chat(self, request: Mapping[str, Any]) -> AsyncIterator[Chunk]:
        """Answer an OpenAI chat request, as chunks with the level that answers; nothing is remembered."""
        async for chunks in self._effects.iterate(self.answer(request)):
            for chunk in chunks:
                yield chunk

    def answer(
        self, request: Mapping[str, Any], *, level: str | None = None, streamed: bool = True
    ) -> AsyncGenerator[list[Chunk], None]:
        """`chat` for callers that run on the effects' loop themselves; a request with a ``prompt`` completes it.

        Chunks that came together are yielded together.
        ``level`` insists on one level. ``streamed`` says whether chunks are shown as they come: else an answer whose
        half is of no use to the next level, such as a tool call, can be begun anew there.
        """
        return self._relay.answer(request, level=level, streamed=streamed)

    # ---------------------------------------------------------------- vectors

    @property
    def embedding_model(self) -> str | None:
        """What the embedding model is called; None when the configuration names none."""
        return self._embeddings.name if self._embeddings is not None else None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text. Raises LevelUnavailable, or RequestRejected when there is no embedding model."""
        answer = await self._effects.run(self.embeddings({"input": list(texts), "encoding_format": "float"}))
        return [one["embedding"] for one in answer["data"]]

    async def embeddings(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The same for an OpenAI embeddings request, for callers that run on the effects' loop themselves."""
        if self._embeddings is None:
            raise RequestRejected(
                "there is no embedding model; name one in the configuration, under embeddings: {model: FILE.gguf}"
            )
        return await self._embeddings.embed(request)

    async def _turn(
        self, message: str, conversation_id: str | None, system: str | None, options: Mapping[str, Any]
    ) -> Answer:
        identity = conversation_id or uuid.uuid4().hex
        began = time.monotonic()
        first: float | None = None
        async with self._turn_lock(identity):
            messages, new = self._messages(identity, message, system)

            async def timed() -> AsyncIterator[list[Chunk]]:
                nonlocal first
                async for chunks in self.answer({**options, "messages": messages}, streamed=False):
                    first = time.monotonic() - began if first is None else first
                    yield chunks

            level, whole = await collect(timed())
            choice = whole["choices"][0]
            text = choice["message"]["content"] or ""
            self.conversations.extend(identity, [*new, {"role": "assistant", "content": text}])
        tokens = whole.get("usage", {}).get("completion_tokens", 0)
        return Answer(text, level, identity, choice["finish_reason"], tokens, time.monotonic() - began, first)

    async def _stream_turn(
        self, message: str, identity: str, system: str | None, options: Mapping[str, Any]
    ) -> AsyncGenerator[str, None]:
        async with self._turn_lock(identity):
            messages, new = self._messages(identity, message, system)
            text = ""
            async for chunks in self.answer({**options, "messages": messages}):
                for choice in (choice for _, data in chunks for choice in data.get("choices", ())):
                    if piece := choice.get("delta", {}).get("content"):
                        text += piece
                        yield piece
            self.conversations.extend(identity, [*new, {"role": "assistant", "content": text}])

    def _messages(self, identity: str, message: str, system: str | None) -> tuple[list[Message], list[Message]]:
        history = self.conversations.history(identity)
        new: list[Message] = [{"role": "user", "content": message}]
        if system is not None and not history:
            new.insert(0, {"role": "system", "content": system})
        return [*history, *new], new

    def _turn_lock(self, identity: str) -> asyncio.Lock:
        """Turns of one conversation follow each other; the locks live as long as somebody holds them."""
        return self._turns.setdefault(identity, asyncio.Lock())

    # ---------------------------------------------------------------- notices

    def on_notice(self, taker: Callable[[Notice], None]) -> Callable[[], None]:
        """Have ``taker`` told what a person should know; returns the way out.

        Downgrades and failures by default; upgrades are silent unless they were asked for. The same is told once
        a minute at the most. It must not block; one that raises is logged, and the others are told all the same.
        """
        return self.notices.subscribe(taker)

    def _on_event(self, event: Event) -> None:
        scaler = self._proactive_scaler
        notice = notice_of(event, scaler.ladder, scaler.policy.dwell_s)
        if notice is not None and (told := self.notices.tell(notice)) is not None:
            scaler.note(PersonTold(told.kind, told.level, told.text))

    # ---------------------------------------------------------------- the end

    def shutdown(self) -> None:
        """End monitoring, answers, models and threads; returns when all are gone. Safe to call twice."""
        if not self._effects.running:
            return
        self._proactive_scaler.stop_continuous_monitoring()
        self._effects.call(self._switcher.close())
        if self._embeddings is not None:
            self._effects.call(self._embeddings.close())
        self._effects.call(self._close_outboxes())
        self._effects.stop()
        self.journal.close()

    async def _close_outboxes(self) -> None:
        await asyncio.gather(*(outbox.close() for outbox in self._outboxes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.shutdown)
