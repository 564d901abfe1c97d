"""ModelManager: answers requests with the level that serves, and has the scaler's switches performed.

Owns the effects' loop, the conversations and the notices. A request is checked before it starts, waits for
a level if it must, and is answered; it knows no thresholds and reads no sensors.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from scaler.advice import Advice
from scaler.advising import Adviser, Telling
from scaler.answering import Chunk, collect
from scaler.assembly import Parts, assemble, usable
from scaler.conversations import conversations
from scaler.conversations.protocol import Message, Said
from scaler.courses import Courses
from scaler.descriptions import Description
from scaler.embedding import Embeddings
from scaler.errors import ConfigError, ConversationError, LevelUnavailable, MissingExtra, RequestRejected, ScalerError
from scaler.events import Reconfigured, TurnNotRemembered
from scaler.handoff import says_something
from scaler.levels import RAM, Ladder
from scaler.loop_thread import LoopThread
from scaler.notices import Notice, Notices, notice_of
from scaler.notify import outboxes
from scaler.notify.outbox import Outbox
from scaler.proactive import Event, ProactiveScaler
from scaler.relaying import Relay
from scaler.reloading import Reload, changes, kept, waiting
from scaler.remembered import Remembered
from scaler.remembering import Remembering, marks
from scaler.sensors import Sensor, default_sensors
from scaler.sensors.model_load import ModelLoadSensor
from scaler.surroundings import Surroundings
from scaler.switching import Step, Switcher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. ``str(answer)`` is its ``text``; ``finish_reason`` is OpenAI's, None where there was none.

    ``levels`` made it, in order: more than one where it was handed over. ``conversation_id`` goes on with it. It has
    ``tokens``, a count, and took ``total_s`` seconds from the request to the end, ``first_token_s`` of them until
    something was said: None when nothing was. ``tool_calls`` are what it asks for instead of or beside text, as OpenAI
    has them. ``not_remembered`` says why the conversation is as it was before, if it is.
    """

    text: str
    levels: tuple[str, ...]
    conversation_id: str
    finish_reason: str | None
    tokens: int
    total_s: float
    first_token_s: float | None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    not_remembered: ConversationError | None = None

    @property
    def level(self) -> str:
        """The level that made the end of it."""
        return self.levels[-1]

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
        config: str | Path | None = None,
        *,
        sensors: Callable[[Callable[[], Collection[int]]], Sequence[Sensor]] = default_sensors,
        on_notice: Callable[[Notice], None] | None = None,
        notify_upgrades: bool = False,
        remember: bool = False,
        surroundings: Surroundings | None = None,
    ) -> None:
        """``config``: a YAML in place of the person's own; ``sensors`` makes those of a machine other than this.

        ``on_notice`` is told what a person should know, as if given to the method `on_notice`; climbs, too, with
        ``notify_upgrades`` or where the configuration wants them told.
        ``remember``: know what the one before learned, and keep it for the next, as the configuration's ``remembered``
        says; one program at a time. ``surroundings``: other than this machine's, and this program's.

        Raises ConfigError when the configuration is at fault, LevelUnavailable when a level cannot be sized,
        MissingExtra when the library of a runtime, or of a place for notices, is not installed, ConversationError when
        the file for the conversations cannot be used.
        """
        outside = surroundings or Surroundings()
        self._clock = outside.clock
        self._config, self._put_together = None if config is None else Path(config), outside.put_together
        parts = assemble(self._config, self._put_together)
        # Before anything is started: without its library no level could ever be loaded.
        for runtime, _ in parts.levels.values():
            runtime.require()
        settings = parts.settings
        self.not_permitted = parts.bounds.prepare()
        """What the configuration asks of the models' processes and this machine does not permit, in sentences."""
        for sentence in self.not_permitted:
            log.warning("%s", sentence)
        self._outboxes = outboxes(settings.notices)
        self._parts, self._started = parts, settings
        self.settings = settings
        self.detection = parts.tier
        self._switcher: Switcher
        monitor = outside.monitor(
            interval_s=settings.monitor.interval_s,
            sensors=(
                *sensors(lambda: self._switcher.pids()),
                ModelLoadSensor(lambda: self._switcher.load_heard()),
            ),
            clock=outside.clock,
            wall_clock=outside.wall_clock,
        )
        self.writer = outside.writer
        """Who the journal says has decided."""
        self.journal = outside.journal(
            settings.journal.path,
            max_bytes=int(settings.journal.max_mib * 1024**2),
            files=settings.journal.files,
            writer=self.writer,
        )
        self._proactive_scaler = ProactiveScaler(
            ladder=parts.ladder,
            policy=parts.policy,
            monitor=monitor,
            journal=self.journal,
            tier=parts.tier.tier.name,
            clock=outside.clock,
            wall_clock=outside.wall_clock,
        )
        self._embeddings = Embeddings(*parts.embeddings, self._proactive_scaler) if parts.embeddings else None
        self.conversations = conversations(settings.conversations)
        self.progress: dict[str, float] = {}
        self._notify_upgrades = notify_upgrades
        self.notices = Notices(upgrades=notify_upgrades or settings.notices.upgrades, clock=outside.clock)
        if on_notice is not None:
            self.notices.subscribe(on_notice)
        self._leave_outboxes = [self.notices.subscribe(outbox.take) for outbox in self._outboxes]
        self._told_of: tuple[Ladder, float] = parts.ladder, parts.policy.dwell_s
        self._told_next: deque[tuple[Ladder, float]] = deque()
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[Reload]] = set()
        self._past: set[Embeddings] = set()
        self._parting: set[asyncio.Task[None]] = set()
        self._levels = parts.levels
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._effects = outside.effects("scaler-effects")
        self._switcher = Switcher(
            parts.levels,
            self._proactive_scaler,
            queue_limit=settings.queue.limit,
            on_progress=self.progress.__setitem__,
            clock=outside.clock,
        )
        self._relay = Relay(
            self._proactive_scaler,
            self._switcher,
            settings.queue.wait_s,
            outside.clock,
        )
        self._adviser = Adviser(
            self._proactive_scaler.room,
            outside.survey(self._pids),
            parts.levels,
            parts.ladder,
            lambda: (
                monitor.latest is not None
                and monitor.latest.memory is not None
                and monitor.latest.memory.limited_by == "cgroup"
            ),
            outside.aside,
        )
        self._telling = Telling(self.notices, self._adviser, self._proactive_scaler.note)
        self._effects.call(self._switcher.start())
        self._effects.call(self._telling.start())
        if self._embeddings is not None:
            self._effects.call(self._embeddings.start())
        for outbox in self._outboxes:
            self._effects.call(outbox.start())
        self.remembered: Remembered | None = None
        """What was known at the start already, if anything."""
        self._remembering = Remembering(
            settings.remembered.path,
            self._proactive_scaler,
            marks(parts.ladder, settings.ladder),
        )
        if remember and settings.remembered.enabled:
            self.remembered = self._remembering.begin()
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

    @property
    def loaded(self) -> tuple[str, ...]:
        """The levels that can answer now: the one that serves, and those that stand by."""
        return self._switcher.loaded

    @property
    def former(self) -> str | None:
        """The level of the configuration before a reload whose model answers until the next level does, if any."""
        return self._switcher.former

    @property
    def courses(self) -> Courses:
        """What becomes of each request, told on the effects' loop."""
        return self._relay.courses

    def on_step(self, taker: Callable[[Step], None]) -> Callable[[], None]:
        """Have ``taker`` told of each step of a switch when it has ended, on the effects' loop; returns the way out."""
        return self._switcher.on_step(taker)

    async def descriptions(self) -> dict[str, Description]:
        """What is known of the model of every level that there is when it is asked, smallest first."""
        levels = self._levels
        # In a thread: their files are read the first time, and servers are asked.
        return await asyncio.to_thread(
            lambda: {name: runtime.describe(settings) for name, (runtime, settings) in levels.items()}
        )

    def takes(self, level: str) -> tuple[int, int]:
        """The bytes of RAM and of GPU memory that ``level`` alone takes, as declared or estimated."""
        alone = self._proactive_scaler.ladder.alone(level)
        return alone.get(RAM, 0), sum(taken for resource, taken in alone.items() if resource != RAM)

    def _pids(self) -> tuple[int, ...]:
        """The roots of the process trees of every model, the embedding model's too."""
        vectors = (*([self._embeddings] if self._embeddings is not None else []), *tuple(self._past))
        return (*self._switcher.pids(), *(pid for one in vectors for pid in one.pids()))

    # ---------------------------------------------------------------- answers

    async def load(self, level: str | None = None) -> str:
        """Have a level loaded as a request would, and answer nothing; returns the level that is ready.

        Runs on the effects' loop. ``level`` insists on one. Raises QueueFull, RequestTimedOut.
        """
        scaler = self._proactive_scaler
        scaler.want(True)
        wait_s = self.settings.queue.wait_s
        lease = await self._switcher.lease(wait_s, lambda: scaler.check_preflight_resources().reason, level=level)
        lease.release()
        return lease.level

    async def generate_response(
        self,
        message: str | Sequence[Message],
        *,
        conversation_id: str | None = None,
        system: str | None = None,
        **options: Any,
    ) -> Answer:
        """Answer ``message`` as the next turn of a conversation.

        ``message`` is what the user says, or OpenAI messages, such as the results of the tools that were called.
        ``conversation_id`` is any name for the conversation; without it a new one begins, and `Answer` has its name.
        ``system`` is the system prompt, of a conversation's first turn; later ones are ignored.
        ``options`` are OpenAI's (``temperature``, ``max_tokens``, ...). Raises QueueFull, RequestTimedOut,
        LevelUnavailable, RequestRejected, or ConversationError when the conversation cannot be read; the conversation
        is then as it was before. An answer that cannot be stored is given all the same: see `Answer.not_remembered`.
        """
        return await self._effects.run(self._turn(message, conversation_id, system, options))

    async def stream_response(
        self,
        message: str | Sequence[Message],
        *,
        conversation_id: str | None = None,
        system: str | None = None,
        **options: Any,
    ) -> AsyncIterator[str]:
        """`generate_response` as pieces of text while they come. Leaving the loop early ends the generation.

        The turn is remembered when the loop has ended by itself. Whoever left early was not answered, and the
        conversation is as it was before.
        """
        identity = conversation_id or uuid.uuid4().hex
        pieces = self._stream_turn(message, identity, system, options)
        async for piece in self._effects.iterate(pieces):
            yield piece

    def generate_response_sync(
        self,
        message: str | Sequence[Message],
        *,
        conversation_id: str | None = None,
        system: str | None = None,
        **options: Any,
    ) -> Answer:
        """`generate_response` for code without an event loop; not to be called on a running loop.

        Raises the same.
        """
        return self._effects.call(self._turn(message, conversation_id, system, options))

    async def chat(self, request: Mapping[str, Any]) -> AsyncIterator[Chunk]:
        """Answer ``request``, an OpenAI chat request, as chunks with the level that answers; nothing is remembered.

        Raises QueueFull, RequestTimedOut, LevelUnavailable, RequestRejected.
        """
        async for chunks in self._effects.iterate(self.answer(request)):
            for chunk in chunks:
                yield chunk

    def answer(
        self,
        request: Mapping[str, Any],
        *,
        level: str | None = None,
        streamed: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[list[Chunk], None]:
        """`chat` for callers that run on the effects' loop themselves; a ``request`` with a ``prompt`` completes it.

        Chunks that came together are yielded together.
        ``level`` insists on one level. ``streamed`` says whether chunks are shown as they come: else an answer whose
        half is of no use to the next level, such as a tool call, can be begun anew there. ``headers`` are those that
        the request came with, for traces.
        """
        return self._relay.answer(request, level=level, streamed=streamed, headers=headers)

    # ---------------------------------------------------------------- vectors

    @property
    def embedding_model(self) -> str | None:
        """What the embedding model is called; None when the configuration names none."""
        return self._embeddings.name if self._embeddings is not None else None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each of ``texts``, in order.

        Raises LevelUnavailable, or RequestRejected when there is no embedding model.
        """
        answer = await self._effects.run(self.embeddings({"input": list(texts), "encoding_format": "float"}))
        return [one["embedding"] for one in answer["data"]]

    async def embeddings(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`embed` for callers that run on the effects' loop themselves; ``request`` is an OpenAI embeddings request."""
        if self._embeddings is None:
            raise RequestRejected(
                "there is no embedding model; name one in the configuration, under embeddings: {model: FILE.gguf}"
            )
        return await self._embeddings.embed(request)

    async def _turn(
        self,
        message: str | Sequence[Message],
        conversation_id: str | None,
        system: str | None,
        options: Mapping[str, Any],
    ) -> Answer:
        identity = conversation_id or uuid.uuid4().hex
        began = self._clock()
        first: float | None = None
        async with self._turn_lock(identity):
            messages, new = await self._messages(identity, message, system)
            chunks: list[Chunk] = []
            async with aclosing(self.answer({**options, "messages": messages}, streamed=False)) as answer:
                async for arrived in answer:
                    first = self._clock() - began if first is None else first
                    chunks += arrived
            whole, said = await _said(chunks)
            fault = await self._remember(identity, [*new, said])
        choice = whole["choices"][0]
        return Answer(
            choice["message"]["content"] or "",
            said.levels,
            identity,
            choice["finish_reason"],
            # One that had to be ended comes without a count.
            whole.get("usage", {}).get("completion_tokens", sum(says_something(chunk.data) for chunk in chunks)),
            self._clock() - began,
            first,
            tuple(choice["message"].get("tool_calls", ())),
            fault,
        )

    async def _stream_turn(
        self, message: str | Sequence[Message], identity: str, system: str | None, options: Mapping[str, Any]
    ) -> AsyncGenerator[str, None]:
        async with self._turn_lock(identity):
            messages, new = await self._messages(identity, message, system)
            chunks: list[Chunk] = []
            async with aclosing(self.answer({**options, "messages": messages})) as answer:
                async for arrived in answer:
                    chunks += arrived
                    for choice in (choice for _, data in arrived for choice in data.get("choices", ())):
                        # Of several answers, if that was asked for, the first is the conversation's.
                        if choice.get("index", 0) == 0 and (piece := choice.get("delta", {}).get("content")):
                            yield piece
            _, said = await _said(chunks)
            await self._remember(identity, [*new, said])

    async def _messages(
        self, identity: str, message: str | Sequence[Message], system: str | None
    ) -> tuple[list[Message], list[Said]]:
        """What to ask the level, and what of it the conversation does not have yet."""
        # In a thread, as what keeps the conversations may be a disk: others' answers must not wait for it.
        history = await asyncio.to_thread(self.conversations.history, identity)
        new: list[Message] = [{"role": "user", "content": message}] if isinstance(message, str) else list(message)
        if system is not None and not history:
            new.insert(0, {"role": "system", "content": system})
        now = datetime.now(UTC)
        return [*(said.message for said in history), *new], [Said(one, now) for one in new]

    async def _remember(self, identity: str, turn: Sequence[Said]) -> ConversationError | None:
        """Store a turn; where that fails, the answer was given all the same, and what is lost is told."""
        try:
            await asyncio.to_thread(self.conversations.extend, identity, turn)
        except ConversationError as error:
            self._proactive_scaler.note(TurnNotRemembered(identity, turn[-1].levels[-1], str(error)))
            return error
        return None

    def _turn_lock(self, identity: str) -> asyncio.Lock:
        """Turns of one conversation follow each other; the locks live as long as somebody holds them."""
        return self._turns.setdefault(identity, asyncio.Lock())

    # ---------------------------------------------------------------- notices

    def on_notice(self, taker: Callable[[Notice], None]) -> Callable[[], None]:
        """Have ``taker`` told what a person should know; returns the way out.

        Downgrades and failures by default; upgrades are silent unless they were asked for. The same is told once
        a minute at the most, on the effects' loop. It must not block; one that raises is logged, and the others are
        told all the same.
        """
        return self.notices.subscribe(taker)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Reconfigured):
            # What comes before it is of the ladder before it, whenever it is told.
            self._told_of = self._told_next.popleft()
        notice = notice_of(event, *self._told_of)
        if notice is not None:
            # Told elsewhere: to find a suggestion takes longer than the next reading may be held up.
            self._telling.take(notice)

    # ---------------------------------------------------------------- advice

    async def advise(self) -> Advice:
        """What would make room for a larger level: programs to close and settings to change, ranked by effect.

        Looks at every process of this machine and touches none. Raises ScalerError when that takes too long.
        """
        return await self._effects.run(self._adviser.advise())

    # ---------------------------------------------------------------- another configuration

    async def reload(self) -> Reload:
        """Read the configuration anew and go on with it; returns what changed, and what waits for a restart.

        No answer and no request that waits is dropped: where the level that serves is gone or another now, its model
        answers until the next one does. Raises ConfigError, with nothing changed, for anything that would keep scaler
        from starting with it; ScalerError and OSError when this machine does not tell its memory.
        """
        return await self._effects.run(self._reload_whole())

    def reload_sync(self) -> Reload:
        """`reload` for code without an event loop; not to be called on a running loop."""
        return self._effects.call(self._reload_whole())

    async def _reload_whole(self) -> Reload:
        # Whoever asked for it may hang up; it is not left half done.
        task = asyncio.create_task(self._reload(), name="reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloaded)
        return await asyncio.shield(task)

    def _reloaded(self, task: asyncio.Task[Reload]) -> None:
        self._reloads.discard(task)
        # Asked for, since nobody else may: a refusal is in the log, and whoever wanted the answer may have hung up.
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ScalerError | OSError):
            log.error("reading the configuration anew failed unexpectedly", exc_info=error)

    async def _reload(self) -> Reload:
        async with self._reloading:
            try:
                parts, embeddings, boxes, known_by = await asyncio.to_thread(self._read_anew)
            except (ScalerError, OSError) as error:
                log.error("the configuration is refused, and nothing changes: %s", error)
                raise
            before, settings, scaler = self._parts, parts.settings, self._proactive_scaler
            event = Reconfigured(changes(before, parts), waiting(self._started, settings))
            same = kept(before, parts)
            if embeddings is not None and embeddings is not self._embeddings:
                await embeddings.start()
            for box in boxes if boxes is not self._outboxes else ():
                await box.start()
            # From here on without a pause: whatever else runs on this loop sees the one configuration or the other.
            self._parts, self.settings, self.detection, self._levels = parts, settings, parts.tier, parts.levels
            for name in [name for name in self.progress if name not in parts.levels]:
                del self.progress[name]
            self._switcher.reconfigure(parts.levels, same, queue_limit=settings.queue.limit)
            self._relay.wait_s = settings.queue.wait_s
            self._adviser.reconfigure(parts.levels, parts.ladder)
            self._change_outboxes(boxes)
            self.notices.upgrades = self._notify_upgrades or settings.notices.upgrades
            self._change_embeddings(embeddings)
            self.journal.resize(max_bytes=int(settings.journal.max_mib * 1024**2), files=settings.journal.files)
            scaler.monitor.set_interval(settings.monitor.interval_s)
            self._remembering.change_marks(known_by)
            self._told_next.append((parts.ladder, parts.policy.dwell_s))
            unpinned = scaler.reconfigure(parts.ladder, parts.policy, parts.tier.tier.name, same, event)
            return Reload(settings.file, event.changes, event.restart, unpinned)

    def _read_anew(self) -> tuple[Parts, Embeddings | None, list[Outbox], dict[str, str]]:
        """What the configuration asks for now, made as far as that can fail. Raises as `reload` does."""
        parts = usable(self._config, self._parts, self._put_together)
        settings, embeddings, boxes = parts.settings, self._embeddings, self._outboxes
        try:
            if settings.embeddings != self.settings.embeddings:
                embeddings = Embeddings(*parts.embeddings, self._proactive_scaler) if parts.embeddings else None
            if settings.notices != self.settings.notices:
                boxes = outboxes(settings.notices)
        except (LevelUnavailable, MissingExtra) as error:
            raise ConfigError(f"{settings.file}: {error}") from error
        return parts, embeddings, boxes, marks(parts.ladder, settings.ladder)

    def _change_outboxes(self, boxes: list[Outbox]) -> None:
        before, self._outboxes = self._outboxes, boxes
        if boxes is before:
            return
        for leave in self._leave_outboxes:
            leave()
        self._leave_outboxes = [self.notices.subscribe(box.take) for box in boxes]
        for box in before:
            self._part(box.close())

    def _change_embeddings(self, embeddings: Embeddings | None) -> None:
        before, self._embeddings = self._embeddings, embeddings
        if before is not None and before is not embeddings:
            self._past.add(before)
            self._part(before.retire()).add_done_callback(lambda _: self._past.discard(before))

    def _part(self, ending: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something that is used no more end by itself."""
        task = asyncio.create_task(ending)
        self._parting.add(task)
        task.add_done_callback(self._parting.discard)
        return task

    async def _end_reloads(self) -> None:
        for task in self._reloads:
            task.cancel()
        await asyncio.gather(*self._reloads, return_exceptions=True)

    async def _end_parting(self) -> None:
        await asyncio.gather(*(one.close() for one in tuple(self._past)))
        await asyncio.gather(*self._parting)

    # ---------------------------------------------------------------- the end

    def shutdown(self) -> None:
        """End monitoring, answers, models and threads; returns when all are gone. Safe to call twice.

        Raises LevelUnavailable when a server does not let go of a model; all else is ended then, too.
        """
        if not self._effects.running:
            return
        call = self._effects.call
        # The last of these first, and each whatever became of those before: a model may not go.
        with ExitStack() as ending:
            ending.callback(self.journal.close)
            ending.callback(self.conversations.close)
            ending.callback(self._effects.stop)
            ending.callback(lambda: call(self._close_outboxes()))
            ending.callback(lambda: call(self._end_parting()))
            if self._embeddings is not None:
                embeddings = self._embeddings
                ending.callback(lambda: call(embeddings.close()))
            ending.callback(lambda: call(self._telling.close()))
            ending.callback(lambda: call(self._switcher.close()))
            ending.callback(self._remembering.close)
            ending.callback(self._proactive_scaler.stop_continuous_monitoring)
            ending.callback(lambda: call(self._end_reloads()))

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


async def _said(chunks: list[Chunk]) -> tuple[Mapping[str, Any], Said]:
    """The whole answer of ``chunks``, and what the conversation keeps of it: what the next request must contain.

    That is as OpenAI's clients send it: the tool calls, but not the thinking, and no call that was cut short.
    """

    async def at_once() -> AsyncIterator[list[Chunk]]:
        yield chunks

    ended_by, whole = await collect(at_once())
    choice = whole["choices"][0]
    answer, calls = choice["message"], choice["message"].get("tool_calls")
    if calls and choice["finish_reason"] == "length":
        # Runtimes refuse half a call, and with it every later turn.
        calls = [call for call in calls if _is_json(call["function"]["arguments"])]
    message = {"role": "assistant", "content": answer["content"] or (None if calls else "")}
    # Who only ended what another had said to the end made nothing of it; an empty answer is the one's who gave it.
    made = [chunk.level for chunk in chunks if says_something(chunk.data)] or [ended_by]
    levels = tuple(level for level, _ in groupby(made))
    return whole, Said({**message, "tool_calls": calls} if calls else message, datetime.now(UTC), levels)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
