"""The embedding model: loaded when vectors are asked for and there is room, gone when idle or when memory is critical.

It is no level of the ladder: to step down does not free it, so that the decision counts it among the others. Owns what
is loaded; whether there is room it asks the scaler, and it knows no thresholds. Everything here runs on the effects'
loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from scaler.errors import LevelUnavailable, ScalerError
from scaler.events import EmbeddingsGone, EmbeddingsLoaded, UnloadFailed
from scaler.monitor import ReadingTaken
from scaler.proactive import Event, ProactiveScaler
from scaler.runtimes.protocol import EmbeddingModel, EmbeddingRuntime
from scaler.settings import EmbeddingSettings

log = logging.getLogger(__name__)


class Embeddings:
    """Turns texts into vectors, with a model that is loaded while it is used."""

    def __init__(
        self,
        runtime: EmbeddingRuntime,
        settings: EmbeddingSettings,
        scaler: ProactiveScaler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises MissingExtra, and LevelUnavailable when the model cannot be sized. Call `start` on the loop."""
        runtime.require()
        self._runtime, self._settings, self._scaler, self._clock = runtime, settings, scaler, clock
        self._where = f"{settings.name}: {settings.model}"
        self._bytes = runtime.embedding_bytes(settings)
        self._turn = asyncio.Lock()
        self._loading: asyncio.Task[EmbeddingModel] | None = None
        self._closed = False
        self._model: EmbeddingModel | None = None
        self._watch: asyncio.Task[None] | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._why_gone = ""
        self._given_up: str | None = None
        """Why the load that runs, or ran last, is no longer wanted."""
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._used_s = clock()
        self._leave: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """What programs call the model."""
        return self._settings.name

    def pids(self) -> Collection[int]:
        """The processes of what is loaded or being loaded; from any thread."""
        return self._runtime.pids()

    async def start(self) -> None:
        """Look after the model at every reading from now on."""
        loop = asyncio.get_running_loop()

        def take(event: Event) -> None:
            held = self._model is not None or self._loading is not None
            if held and isinstance(event, ReadingTaken) and not loop.is_closed():
                loop.call_soon_threadsafe(self._look)

        self._leave = self._scaler.subscribe(take)

    async def embed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer an OpenAI embeddings request. Raises LevelUnavailable, RequestRejected."""
        self._running += 1
        self._idle.clear()
        model: EmbeddingModel | None = None
        try:
            model = await self._loaded()
            return await model.embed(request)
        except LevelUnavailable:
            if model is None or model is self._model or not self._why_gone:
                raise
            raise LevelUnavailable(f"{self._where}: it was unloaded, {self._why_gone}; try again later") from None
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
            self._used_s = self._clock()

    async def retire(self) -> None:
        """Unload it for good once nobody waits for its vectors; at once when cancelled."""
        try:
            await self._idle.wait()
        finally:
            await self.close("since the configuration changed")

    async def close(self, why: str = "since scaler ends") -> None:
        """Unload it for good; a load that runs is given up."""
        self._leave()
        self._closed = True
        self._give_up(why)
        async with self._turn:
            if self._model is not None:
                self._let_go(why)
            if self._unloading is not None:
                await self._unloading

    async def _loaded(self) -> EmbeddingModel:
        async with self._turn:
            if self._unloading is not None:
                # Whoever gives up waiting does not stop it.
                await asyncio.shield(self._unloading)
                self._unloading = None
            if self._model is None:
                self._model, self._why_gone = await self._load(), ""
                self._watch = asyncio.create_task(self._watch_over(self._model), name=f"watch {self.name}")
            return self._model

    async def _load(self) -> EmbeddingModel:
        room = self._scaler.room_beside(self._bytes)
        if not room.enough:
            lacking = "there is no room for it" if room.enough is False else "whether there is room is not known"
            raise LevelUnavailable(f"{self._where}: {lacking}: {room.reason}; try again later")
        began_s, self._given_up = self._clock(), None
        if not self._closed:
            self._loading = asyncio.create_task(self._runtime.load_embedding(self._settings), name=f"load {self.name}")
            try:
                model = await self._loading
            except ScalerError as error:
                self._scaler.note(EmbeddingsGone(self.name, f"it could not be loaded: {error}"))
                raise
            except Exception as error:
                # A fault in the runtime: whoever asked for vectors is told like of any other failure.
                log.exception("loading %s failed unexpectedly", self.name)
                cause = f"{self._where}: {type(error).__name__}: {error}"
                self._scaler.note(EmbeddingsGone(self.name, f"it could not be loaded: {cause}"))
                raise LevelUnavailable(cause) from error
            except asyncio.CancelledError:
                if self._given_up is None:
                    loading = self._loading
                    if loading.done() and not loading.cancelled() and loading.exception() is None:
                        # Loaded in this very moment, and nobody else knows of it.
                        self._unloading = asyncio.create_task(
                            self._unload(loading.result()), name=f"unload {self.name}"
                        )
                    raise
            else:
                self._scaler.note(EmbeddingsLoaded(self.name, self._clock() - began_s, room.reason))
                return model
            finally:
                self._loading = None
        why = self._given_up or "since scaler ends"
        raise LevelUnavailable(f"{self._where}: it is not loaded any more, {why}; try again later")

    def _give_up(self, why: str) -> bool:
        """End a load that runs; False where none does, or it is ending already."""
        if self._loading is None or self._given_up is not None:
            return False
        self._given_up = why
        return self._loading.cancel()

    def _look(self) -> None:
        room = self._scaler.room_beside(0)
        if room.enough is False:
            why = f"because {room.reason}"
            if self._model is not None:
                self._let_go(why)
            elif self._give_up(why):
                self._scaler.note(EmbeddingsGone(self.name, f"its load was given up, {why}"))
        elif self._model is None:
            return
        elif not self._running and (idle_s := self._clock() - self._used_s) >= self._settings.keep_s:
            self._let_go(f"after {idle_s:.0f} s without a request")

    def _let_go(self, why: str) -> None:
        model, self._model, self._why_gone = self._model, None, why
        assert model is not None  # the callers looked
        if self._watch is not None:
            self._watch.cancel()
        self._scaler.note(EmbeddingsGone(self.name, f"it was unloaded, {why}"))
        self._unloading = asyncio.create_task(self._unload(model), name=f"unload {self.name}")

    async def _unload(self, model: EmbeddingModel) -> None:
        """Have it go. One that will not is told; what memory it keeps counts as the others'."""
        try:
            await model.unload()
        except LevelUnavailable as error:
            self._scaler.note(UnloadFailed(self.name, str(error)))
        except Exception as error:
            # A fault in the runtime must not keep the next request from having it loaded anew.
            log.exception("unloading %s failed unexpectedly", self.name)
            self._scaler.note(UnloadFailed(self.name, f"{self._where}: {type(error).__name__}: {error}"))

    async def _watch_over(self, model: EmbeddingModel) -> None:
        try:
            reason = await model.died()
        except Exception as error:
            # Nobody would watch it any more, and its death would never be noticed.
            log.exception("watching %s failed unexpectedly", self.name)
            reason = f"whether it runs cannot be told ({type(error).__name__}: {error})"
        # Those who wait for an answer are told by the model; the next request loads it anew.
        self._scaler.note(EmbeddingsGone(self.name, f"it died: {reason}"))
        if self._model is model:
            self._model = None
        await self._unload(model)
