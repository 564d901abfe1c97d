"""A llama-server in router mode, steered where it stands: it loads and unloads the levels' models, and relays answers.

Owns what of the router is a level's; what is asked of it is `llama_router_control`. Knows nothing of thresholds or
ladders.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import psutil

from scaler.absent import no_file
from scaler.descriptions import Description
from scaler.errors import LevelUnavailable
from scaler.level_settings import LlamaRouterLevel
from scaler.levels import Saving
from scaler.runtimes.gguf_description import describe_file
from scaler.runtimes.gguf_size import CACHE_BLOCK_BYTES, OVERHEAD_BYTES, read_metadata, serving_bytes, weights_bytes
from scaler.runtimes.listeners import LOOK_EVERY_S, gone, gone_within, listener, runs
from scaler.runtimes.llama_cpp import CALLS, LlamaCppModel
from scaler.runtimes.llama_router_control import Listed, RouterControl, Status, props_path
from scaler.runtimes.model_process import held
from scaler.runtimes.model_server import GONE_S, ModelServer
from scaler.runtimes.steering import Refused, at_once, authorization, require_client

GONE = "the router unloaded it or its process ended"


class LlamaRouterRuntime:
    """Has routers load and unload. One for all levels, whatever addresses they name."""

    def __init__(self) -> None:
        self._loaded: set[LlamaRouterModel] = set()
        self._loading: dict[object, int] = {}
        self._room: dict[int | None, int | None] = {}
        self._files: dict[tuple[int | None, str], Path] = {}

    def require(self) -> None:
        """Raises MissingExtra when the HTTP client is not installed."""
        require_client()

    def footprint(self, settings: LlamaRouterLevel) -> Mapping[str, int]:
        """As declared, or estimated from the file that the router names, with the context that it has it loaded with.

        With ``vram_gib`` the model is on a GPU, and what it takes of RAM is a process without weights unless declared.
        Raises LevelUnavailable, MissingExtra.
        """
        return settings.footprint(lambda: OVERHEAD_BYTES if settings.vram_gib else at_once(self._estimate(settings)))

    async def _estimate(self, settings: LlamaRouterLevel) -> int:
        self.require()
        control = RouterControl(settings)
        await control.props()
        status = control.own(await control.models()).status
        file = self._file(settings, status)
        if file is None:
            raise LevelUnavailable(
                f"{control.where}: the router names no file of this machine for it; set the level's ram_gib"
            )
        tokens = max(settings.context_tokens * settings.parallel, _cached_tokens(status, file))
        kv_cache = status.argument("--cache-type-k")
        return serving_bytes(settings.name, file, tokens, 1, kv_cache if kv_cache in CACHE_BLOCK_BYTES else "f16")

    def describe(self, settings: LlamaRouterLevel) -> Description:
        """As its file says, once the router has named it; until then its name."""
        file = self._files.get((settings.url.port, settings.model))
        if file is None:
            return Description(settings.model, settings.context_tokens)
        return describe_file(settings.name, file, settings.context_tokens)

    def savings(self, settings: LlamaRouterLevel) -> Sequence[Saving]:
        """None: the settings that would save something are the router's."""
        return ()

    def apart(self, one: LlamaRouterLevel, other: LlamaRouterLevel) -> bool:
        """Unless they are one model, or their router was found to have room for one only beside the others' models."""
        port = one.url.port
        return port != other.url.port or (one.model != other.model and self._room.get(port) != 1)

    def pids(self) -> Collection[int]:
        """The processes of what is loaded or loading."""
        # Of a load first: what ends in between is loaded then, and in the other.
        loading = tuple(self._loading.values())
        return tuple({*loading, *(model.pid for model in tuple(self._loaded))})

    async def release(self, settings: LlamaRouterLevel) -> None:
        """Nothing: a model that a scaler before has left cannot be told from one that others use."""

    async def close(self) -> None:
        """Nothing goes on in the background."""

    async def load(self, settings: LlamaRouterLevel, progress: Callable[[float], None]) -> LlamaRouterModel:
        """Have the router load it, or take over what it has loaded already. Raises LevelUnavailable, MissingExtra."""
        self.require()
        progress(0.0)
        control = RouterControl(settings)
        try:
            async with asyncio.timeout(settings.load_timeout_s):
                model = await self._load(control, progress)
        except TimeoutError:
            raise LevelUnavailable(
                f"{control.where}: not loaded within {settings.load_timeout_s:g} s; raise load_timeout_s or choose a "
                "smaller model"
            ) from None
        progress(1.0)
        return model

    async def _load(self, control: RouterControl, progress: Callable[[float], None]) -> LlamaRouterModel:
        most, models = (await control.props()).max_instances, await control.models()
        listed = control.own(models)
        self._check_room(control, most, models, listed)
        # In a thread: it may look for the router among all processes of the machine.
        file = await asyncio.to_thread(self._file, control.settings, listed.status)
        ticket, begun = object(), False
        size, told = None if file is None else weights_bytes(control.settings.name, file), 0.0

        def tell(pid: int) -> None:
            nonlocal told
            self._loading[ticket] = pid
            if size is not None:
                told = max(told, held(pid, size))
                progress(told)

        try:
            if not listed.runs:
                begun = True
                try:
                    await control.begin(listed.id)
                except Refused:
                    begun = False
                    raise
            status, pid = await control.loaded(tell)
            if other := next((model.name for model in self._loaded if model.pid == pid), None):
                raise LevelUnavailable(f"{control.where}: it is the model of {other} by another name; give it another")
            await control.check_window(listed.id)
            model = LlamaRouterModel(control, listed.id, status.args, pid, self)
            self._loaded.add(model)
            return model
        except BaseException:
            # Cancelled, or not what was asked for: nothing may stay behind that nobody knows of.
            if begun:
                await asyncio.shield(_let_go(control, listed.id))
            raise
        finally:
            self._loading.pop(ticket, None)

    def _check_room(self, control: RouterControl, most: int, models: Sequence[Listed], listed: Listed) -> None:
        """Raise LevelUnavailable where the router would unload another model for it, maybe the one that serves."""
        port = control.settings.url.port
        running = [one.id for one in models if one.runs]
        ours = {listed.id, *(model.listed for model in self._loaded if model.settings.url.port == port)}
        self._room[port] = most - len(set(running) - ours) if most > 0 else None
        if not listed.runs and 0 < most <= len(running):
            raise LevelUnavailable(
                f"{control.where}: the router holds {', '.join(running)}, and with --models-max {most} it would unload "
                f"one for it; unload one, or start the router with --models-max {most + 1}"
            )

    def forget(self, model: LlamaRouterModel) -> None:
        """It is not ours any more."""
        self._loaded.discard(model)

    def _file(self, settings: LlamaRouterLevel, status: Status) -> Path | None:
        """The GGUF file, where the router names one that is on this machine."""
        named = status.argument("--model")
        if named is None:
            return None
        file = Path(named)
        if not file.is_absolute():
            with contextlib.suppress(psutil.Error):
                router = listener(settings.url.port or 0, settings.url.host)
                file = Path(psutil.Process(router).cwd()) / file if router is not None else file
        if not file.is_absolute() or no_file(file):
            return None
        self._files[settings.url.port, settings.model] = file
        return file


class LlamaRouterModel(LlamaCppModel):
    """A level that a router has loaded."""

    def __init__(
        self, control: RouterControl, listed: str, args: Sequence[str], pid: int, runtime: LlamaRouterRuntime
    ) -> None:
        """``args``: the command line of the process that holds it."""
        self.settings = settings = control.settings
        self.listed = listed
        """What the router calls it, where the level names an alias."""
        self.pid = pid
        """The process that holds it."""
        self._control, self._args, self._runtime = control, args, runtime
        self._asked_to_go = False
        server = ModelServer(
            control.where,
            settings.address,
            answers=settings.parallel,
            calls=CALLS,
            why_gone=self._why_gone,
            headers=authorization(settings),
            runs=lambda: runs(pid),
        )
        # Else a request that comes too late has the router load it again, to stay.
        super().__init__(settings.name, server, query="?autoload=false", besides={"model": listed})

    async def health(self) -> bool:
        """Whether the model's own process answers, by way of the router."""
        return runs(self.pid) and await self._server.well(props_path(self.listed))

    async def died(self) -> str:
        """Wait until the model is gone unasked; return what can be told of it."""
        await gone(self.pid)
        if self._asked_to_go:
            await asyncio.get_running_loop().create_future()
        return f"{self._control.where}: {GONE}; the router's log says more"

    async def unload(self) -> None:
        """Have the router unload it; its memory is back when this returns. Raises LevelUnavailable if it will not."""
        self._asked_to_go = True
        await self._server.close()
        try:
            if runs(self.pid):
                await self._control.unload(self.listed, self._args, self.pid)
            else:
                # If it is there again, somebody else has had it loaded.
                await self._control.settled(self._args)
        except LevelUnavailable:
            # What the router holds now is no level's any more, and counts as the others'.
            self._runtime.forget(self)
            raise
        self._runtime.forget(self)

    async def _why_gone(self) -> str | None:
        if not await gone_within(GONE_S, self.pid):
            return None
        # Until whoever watches it has noticed, too: else it would be asked again at once.
        await asyncio.sleep(LOOK_EVERY_S)
        return GONE


async def _let_go(control: RouterControl, listed: str) -> None:
    """Have it unloaded as far as that can be: why it is not wanted is told already, which says more than a failure."""
    with contextlib.suppress(LevelUnavailable):
        status = control.own(await control.models()).status
        await control.unload(listed, status.args, await status.pid())


def _cached_tokens(status: Status, file: Path) -> int:
    """The tokens of all slots that the router has the model loaded with: its own figure, else what the file says."""
    said = status.argument("--ctx-size") or ""
    if said.isdecimal() and int(said):
        return int(said)
    with contextlib.suppress(OSError, ValueError):
        metadata = read_metadata(file)
        trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        return trained if isinstance(trained, int) else 0
    return 0
