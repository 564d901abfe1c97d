"""LM Studio, steered where it stands: it loads and unloads the levels' models, and answers in OpenAI's dialect.

Owns what is loaded of it, and when that is gone. How LM Studio is told is `lmstudio_rest`, what it can be asked for
`lmstudio_dialect`, which processes its models are `lmstudio_workers`. Knows nothing of thresholds or ladders.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from scaler.descriptions import EVERYTHING, Description
from scaler.errors import LevelUnavailable, MissingExtra, NeverAsked, RequestRejected
from scaler.level_settings import LmStudioLevel
from scaler.levels import Saving
from scaler.runtimes import lmstudio_dialect
from scaler.runtimes.gguf_size import OVERHEAD_BYTES
from scaler.runtimes.listeners import below, gone_within, listener, runs
from scaler.runtimes.lmstudio_rest import LOOK_EVERY_S, UNLOAD_S, Listed, Loaded, Rest
from scaler.runtimes.lmstudio_size import serving_bytes
from scaler.runtimes.lmstudio_workers import holders
from scaler.runtimes.model_server import GONE_S, ModelServer
from scaler.runtimes.openai_chunks import EventReader
from scaler.runtimes.steering import Refused, Unreachable, at_once, authorization, require_client
from scaler.runtimes.token_estimate import estimated_tokens

log = logging.getLogger(__name__)

LIST_EVERY = 25
"""At every so manieth look for the process (5 s) LM Studio is asked as well: each question stands in its log."""
LIST_S = 1.0
"""What it holds LM Studio lists within this, or not this time."""
SEEN_S = 0.5
"""So long holds what the processes of a load were seen to be: to find them takes a look at all of the machine's."""
CLOSE_S = 30.0
"""At the end so long is waited for loads that were given up, which LM Studio goes on with."""
DESCRIBE_S = 0.3
"""A model that LM Studio does not describe within this is told by its name."""
IS_GONE = (
    "model has crashed", "Model unloaded", "No models loaded", "Invalid model identifier", "Failed to load model",
)  # fmt: skip
"""How LM Studio says that a model is gone, where it sends 400 as if the request were at fault."""
GONE = "LM Studio unloaded it or its process ended"


@dataclass(eq=False)
class _Loading:
    """A load that is under way, until what came of it is known."""

    settings: LmStudioLevel
    server: int
    """The process that listens."""
    before: frozenset[int]
    """Its descendants when the load began."""
    instances: frozenset[str]
    """The ids of the model's instances then."""
    _seen: tuple[float, frozenset[int]] = (-math.inf, frozenset())

    def pids(self) -> frozenset[int]:
        """The processes that came since."""
        return holders(self.server, self.before)

    def pids_seen(self) -> frozenset[int]:
        """The same, as of half a second ago at the most. From any thread."""
        now_s = time.monotonic()
        if now_s - self._seen[0] >= SEEN_S:
            self._seen = now_s, self.pids()
        return self._seen[1]


class LmStudioRuntime:
    """Has LM Studio load and unload. One for all levels, whatever addresses they name."""

    def __init__(self) -> None:
        self._loaded: set[LmStudioModel] = set()
        self._loading: set[_Loading] = set()
        self._clearing: dict[asyncio.Task[str | None], Rest] = {}
        self._described: dict[tuple[str, str], Listed] = {}

    def require(self) -> None:
        """Raises MissingExtra when the HTTP client is not installed."""
        require_client()

    def footprint(self, settings: LmStudioLevel) -> Mapping[str, int]:
        """As declared, or what a model of that size takes at the most, which for most models is much too high.

        With ``vram_gib`` the model is on a GPU, and what it takes of RAM is a process without weights unless declared.
        Raises LevelUnavailable, MissingExtra.
        """
        return settings.footprint(lambda: OVERHEAD_BYTES if settings.vram_gib else self._estimate(settings))

    def _estimate(self, settings: LmStudioLevel) -> int:
        self.require()
        rest = Rest(settings)
        model = at_once(rest.model_once_started())
        if not model.size_bytes or not model.weights:
            raise LevelUnavailable(f"{rest.where}: LM Studio does not say how large it is; set the level's ram_gib")
        return serving_bytes(model.size_bytes, model.weights, _window(settings, model))

    def describe(self, settings: LmStudioLevel) -> Description:
        """As LM Studio lists it, once it has; its name as long as it does not answer."""
        key = settings.address, settings.model
        if key not in self._described:
            try:
                self.require()
                self._described[key] = at_once(Rest(settings).model(timeout_s=DESCRIBE_S))
            except (LevelUnavailable, MissingExtra):
                return Description(settings.model, settings.context_tokens, capabilities=EVERYTHING)
        model = self._described[key]
        return Description(
            settings.model,
            settings.context_tokens,
            size_bytes=model.size_bytes,
            format=model.format,
            family=model.architecture,
            weights=None if model.weights is None else round(model.weights),
            quantization=model.quantization.name if model.quantization else None,
            capabilities=_capabilities(model),
            metadata=_metadata(model),
        )

    def savings(self, settings: LmStudioLevel) -> Sequence[Saving]:
        """None: what a level takes at other settings only LM Studio knows."""
        return ()

    def apart(self, one: LmStudioLevel, other: LmStudioLevel) -> bool:
        """Always: LM Studio holds as many instances as it is told to, even of one model."""
        return True

    def pids(self) -> Collection[int]:
        """The processes of what is loaded, and those that came since a load began."""
        # Of a load first: what ends in between is loaded then, and in the other.
        loading = tuple(self._loading)
        own = {model.pid for model in tuple(self._loaded)}
        for one in loading:
            own |= one.pids_seen()
        return tuple(own)

    async def release(self, settings: LmStudioLevel) -> None:
        """Nothing: an instance that a scaler before has left cannot be told from one that a person loaded."""

    async def load(self, settings: LmStudioLevel, progress: Callable[[float], None]) -> LmStudioModel:
        """Have LM Studio load an instance of its own for the level. Raises LevelUnavailable, MissingExtra.

        LM Studio breaks no load off: one that is given up is waited for and unloaded. That goes on in the background
        after ``load_timeout_s``.
        """
        self.require()
        progress(0.0)
        rest = Rest(settings)
        model = await rest.model_once_started()
        if model.max_context_length is not None and model.max_context_length < settings.context_tokens:
            raise LevelUnavailable(
                f"{rest.where}: its context window is {model.max_context_length} tokens at the most; lower the level's "
                "context_tokens"
            )
        loading = await self._begin(rest, model)
        self._loading.add(loading)
        asked = asyncio.create_task(rest.load(_window(settings, model)), name=f"load {settings.name}")
        try:
            try:
                loaded = await asyncio.wait_for(asyncio.shield(asked), settings.load_timeout_s)
            except TimeoutError:
                raise LevelUnavailable(
                    f"{rest.where}: not loaded within {settings.load_timeout_s:g} s; raise load_timeout_s or choose a "
                    "smaller model. LM Studio goes on with it, and it is unloaded once that is done"
                ) from None
            await self._check(rest, model, loaded)
            taken = LmStudioModel(settings, loaded.instance_id, self._pid(rest, loading), self)
        except BaseException as error:
            clearing = asyncio.create_task(self._clear(rest, loading, asked), name=f"clear {settings.name}")
            self._clearing[clearing] = rest
            clearing.add_done_callback(lambda task: self._clearing.pop(task, None))
            if asked.done() or isinstance(error, asyncio.CancelledError):
                # Nothing may stay behind that nobody knows of, nor be in the way of what is loaded next.
                await asyncio.wait([clearing], timeout=settings.load_timeout_s)
            raise
        self._loaded.add(taken)
        self._loading.discard(loading)
        progress(1.0)
        return taken

    async def _begin(self, rest: Rest, model: Listed) -> _Loading:
        # In threads: both look at every process of the machine.
        port = rest.settings.url.port
        server = None if port is None else await asyncio.to_thread(listener, port)
        if server is None:
            raise LevelUnavailable(
                f"{rest.where}: no process of this machine that can be seen into listens there, so the model's memory "
                "could not be told; run LM Studio on this machine, outside of containers, and as the same user"
            )
        before = await asyncio.to_thread(below, server)
        return _Loading(rest.settings, server, before, frozenset(one.id for one in model.loaded_instances))

    async def _check(self, rest: Rest, model: Listed, loaded: Loaded) -> None:
        held = await rest.holder(loaded.instance_id)
        if held is None or held.key != model.key:
            instead = held.key if held else "nothing that it lists"
            raise LevelUnavailable(f"{rest.where}: asked to load it, LM Studio has loaded {instead}; look at `lms ps`")
        window = loaded.load_config.context_length
        if window < rest.settings.context_tokens:
            raise LevelUnavailable(
                f"{rest.where}: LM Studio has loaded it with a context window of {window} tokens; lower the level's "
                "context_tokens, or choose a model in GGUF"
            )

    def _pid(self, rest: Rest, loading: _Loading) -> int:
        new = loading.pids() - {model.pid for model in self._loaded}
        if len(new) != 1:
            raise LevelUnavailable(
                f"{rest.where}: loaded, but of {len(new)} new processes of LM Studio's none is surely its, so its "
                "memory cannot be told; load nothing else meanwhile; or this version of LM Studio starts its processes "
                "differently"
            )
        return next(iter(new))

    async def close(self) -> None:
        """Wait until the loads that were given up have ended and are unloaded. Raises LevelUnavailable if one is not.

        After half a minute the rest is left: LM Studio will hold those models.
        """
        clearing = dict(self._clearing)
        if not clearing:
            return
        done, late = await asyncio.wait(clearing, timeout=CLOSE_S)
        left = [failure for task in done if (failure := task.result()) is not None]
        left += [
            f"{clearing[task].where}: LM Studio still loads it, though nobody wants it any more, and will hold it; "
            "when it has, `lms ps` shows its ID, and `lms unload ID` ends it"
            for task in late
        ]
        if left:
            raise LevelUnavailable("\n".join(left))

    async def _clear(self, rest: Rest, loading: _Loading, asked: asyncio.Task[Loaded]) -> str | None:
        """Unload what came of a load that nobody wants; its processes count as ours until then.

        Returns why that failed, None where it did not.
        """
        try:
            for instance in await _outcome(rest, loading, asked):
                await rest.unload(instance)
                await rest.clear(instance)
            return None
        except LevelUnavailable as error:
            # Why it is not wanted is told already; what LM Studio holds now counts as the others'.
            log.warning("%s", error)
            return str(error)
        finally:
            self._loading.discard(loading)

    def forget(self, model: LmStudioModel) -> None:
        """It is not ours any more."""
        self._loaded.discard(model)

    def has(self, instance: str, *, besides: LmStudioModel) -> bool:
        """Whether an instance of that name is ours, or may become so, besides the one given."""
        address = besides.settings.address
        return any(
            model is not besides and (model.settings.address, model.instance) == (address, instance)
            for model in self._loaded
        ) or any(
            (one.settings.address, one.settings.model) == (address, besides.settings.model) for one in self._loading
        )


class LmStudioModel:
    """A level that LM Studio has loaded."""

    def __init__(self, settings: LmStudioLevel, instance: str, pid: int, runtime: LmStudioRuntime) -> None:
        """``instance``: what LM Studio calls it; the first one as its model."""
        self.settings, self.instance, self._runtime = settings, instance, runtime
        self.pid = pid
        """The process that holds it, or the one above that."""
        self._rest = Rest(settings)
        self._asked_to_go = self._went = False
        self._lost: str | None = None
        """Why it is gone, where its answers have shown that before its process did."""
        self._server = ModelServer(
            self._rest.where,
            settings.address,
            answers=settings.parallel,
            calls=1,
            why_gone=self._why_gone,
            headers=authorization(settings),
        )

    @property
    def name(self) -> str:
        """The level's name."""
        return self.settings.name

    def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream the answer's chunks; raises LevelUnavailable, RequestRejected."""
        return self._stream("/v1/chat/completions", lmstudio_dialect.chat(request, self.instance))

    def complete(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream what follows the prompt; raises LevelUnavailable, RequestRejected."""
        return self._stream("/v1/completions", lmstudio_dialect.completion(request, self.instance))

    async def _stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        if not runs(self.pid):
            # LM Studio would load it again for this.
            raise NeverAsked(f"{self._rest.where}: the model does not answer: {GONE}")
        try:
            async with aclosing(self._server.stream(path, body, EventReader(body))) as chunks:
                async for chunk in chunks:
                    # Where the instance is not loaded, LM Studio has another model answer.
                    if (by := chunk.get("model", self.instance)) != self.instance:
                        self._lost = f"LM Studio has {by} answer in its place"
                        raise LevelUnavailable(self._lost)
                    yield chunk
        except NeverAsked:
            raise
        except (LevelUnavailable, RequestRejected) as error:
            if await self._is_lost(error):
                # Those that wait their turn must not be sent: LM Studio would load it again for them.
                await self._server.close()
                raise LevelUnavailable(f"{self._rest.where}: the model does not answer: {self._lost}") from error
            raise

    async def _is_lost(self, error: LevelUnavailable | RequestRejected) -> bool:
        """Whether an answer failed because the model is gone, whatever LM Studio says of the request."""
        if self._lost is None and (not runs(self.pid) or any(sign in str(error) for sign in IS_GONE)):
            self._lost = GONE
        if self._lost is None and isinstance(error, RequestRejected):
            with contextlib.suppress(LevelUnavailable):
                if await self._rest.holder(self.instance) is None:
                    self._lost = GONE
        return self._lost is not None

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Estimated from the length of the text: LM Studio has no way to ask over HTTP."""
        return estimated_tokens(request)

    async def health(self) -> bool:
        """Whether LM Studio answers, and the model is in its place."""
        return self._lost is None and runs(self.pid) and await self._server.well("/v1/models")

    async def died(self) -> str:
        """Wait until the model is gone unasked; return what can be told of it."""
        look = 0
        while (reason := await self._death(ask=look % LIST_EVERY == LIST_EVERY - 1)) is None:
            await asyncio.sleep(LOOK_EVERY_S)
            look += 1
        if self._asked_to_go:
            await asyncio.get_running_loop().create_future()
        return f"{self._rest.where}: {reason}; LM Studio's log says more"

    async def _death(self, *, ask: bool) -> str | None:
        if self._lost is None and not runs(self.pid):
            self._lost = GONE
        if self._lost is None and ask:
            # Where it does not say, the server may be busy or off: its models stay loaded all the same.
            with contextlib.suppress(LevelUnavailable):
                if await self._rest.holder(self.instance, timeout_s=LIST_S) is None:
                    self._lost = GONE
        return self._lost

    async def unload(self) -> None:
        """Have LM Studio unload it; its memory is back when this returns. Raises LevelUnavailable when it will not."""
        self._asked_to_go = True
        await self._server.close()
        if self._went:
            return
        try:
            await self._go()
        except LevelUnavailable:
            # What LM Studio holds now is no level's any more, and counts as the others'.
            self._runtime.forget(self)
            raise
        self._went = True
        self._runtime.forget(self)

    async def _go(self) -> None:
        if runs(self.pid):
            try:
                await self._rest.unload(self.instance)
            except LevelUnavailable:
                if runs(self.pid):
                    raise
            if not await gone_within(UNLOAD_S, self.pid):
                raise self._rest.stays(self.instance)
        if self._runtime.has(self.instance, besides=self):
            return
        # Where nothing answers, nothing is loaded again.
        with contextlib.suppress(Unreachable):
            await self._rest.clear(self.instance)

    async def _why_gone(self) -> str | None:
        return GONE if await gone_within(GONE_S, self.pid) else None


async def _outcome(rest: Rest, loading: _Loading, asked: asyncio.Task[Loaded]) -> Collection[str]:
    """The instances that came of a load."""
    try:
        return [(await asked).instance_id]
    except Refused:
        return []
    except LevelUnavailable:
        # It answered what nobody understands, or the connection broke: the list tells what came of it.
        model = await rest.model()
        return [one.id for one in model.loaded_instances if one.id not in loading.instances]


def _window(settings: LmStudioLevel, model: Listed) -> int:
    """The context window to load the model with: what one request after the other fills is one window to LM Studio."""
    wanted = settings.context_tokens * settings.parallel
    return wanted if model.max_context_length is None else min(wanted, model.max_context_length)


def _capabilities(model: Listed) -> tuple[str, ...]:
    """In Ollama's words. That it thinks is none of them: by OpenAI's API LM Studio cannot be told not to."""
    able = model.capabilities
    vision = able is not None and able.vision
    tools = able is not None and able.trained_for_tool_use
    return ("completion", *(("tools",) if tools else ()), *(("vision",) if vision else ()))


def _metadata(model: Listed) -> Mapping[str, Any]:
    """In the words of GGUF's metadata."""
    if model.architecture is None:
        return {}
    window = {f"{model.architecture}.context_length": model.max_context_length} if model.max_context_length else {}
    return {"general.architecture": model.architecture, **window}
