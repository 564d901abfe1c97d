"""What a llama-server in router mode is asked, and how its answers read.

Knows neither levels that are loaded nor their memory, but which process of this machine holds a model.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/server, "Using multiple models"
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from urllib.parse import quote

import psutil
from pydantic import BaseModel, TypeAdapter

from scaler.errors import LevelUnavailable
from scaler.level_settings import LlamaRouterLevel
from scaler.runtimes.listeners import gone
from scaler.runtimes.steering import NOTHING, Refused, Steering

LOOK_EVERY_S = 0.2
"""How often the router is asked how far it is."""
UNLOAD_S = 30.0
"""Within this a model that was told to go is gone, or it will not go; a router kills one after 10 s by default."""
IDLE_S = 2.0
"""For so long the answers that were broken off are waited for before a model is told to go."""
IDLE_EVERY_S = 0.05
REFUSED_S = 1.0
"""How long after it refused to unload a model that is waited for all the same: it may be gone already."""
READY = ("loaded", "sleeping")
"""What the router says of a model that answers; one that sleeps loads itself again when it is asked something."""
RUNNING = (*READY, "loading")
"""What it says of one that has a process."""


class Props(BaseModel):
    """What the router says of itself."""

    role: str | None = None
    max_instances: int = 0
    """How many models it may hold; 0 for any number."""


class Status(BaseModel):
    """What it says of a model's process."""

    value: str
    args: list[str] = []
    """Its command line, or what that would be."""
    exit_code: int | None = None

    def argument(self, name: str) -> str | None:
        """The value of an argument of the command line."""
        place = self.args.index(name) + 1 if name in self.args else len(self.args)
        return self.args[place] if place < len(self.args) else None

    async def pid(self) -> int | None:
        """The process with this command line, which names a port of its own: there is no other such."""
        # In a thread: it looks at every process of the machine.
        return await asyncio.to_thread(self._pid)

    def _pid(self) -> int | None:
        for process in psutil.process_iter(["cmdline"]):
            if self.args and process.info["cmdline"] == self.args:
                return int(process.pid)
        return None


class Listed(BaseModel):
    """A model that it has."""

    id: str
    aliases: list[str] = []
    status: Status

    @property
    def runs(self) -> bool:
        """Whether it has a process."""
        return self.status.value in RUNNING


class _Models(BaseModel):
    data: list[Listed]


class _Window(BaseModel):
    n_ctx: int


class _ModelProps(BaseModel):
    default_generation_settings: _Window


class _Slot(BaseModel):
    is_processing: bool


PROPS, MODELS, MODEL_PROPS = TypeAdapter(Props), TypeAdapter(_Models), TypeAdapter(_ModelProps)
SLOTS = TypeAdapter(list[_Slot])


class RouterControl:
    """Asks the router of one level. Every failure is a LevelUnavailable that names level, model and address."""

    def __init__(self, settings: LlamaRouterLevel) -> None:
        self.settings = settings
        start = "start it with `llama-server --models-dir FOLDER`, or correct the level's url"
        self._steering = Steering(settings, "llama-server's router", start)
        self.where = self._steering.where
        """How messages begin."""

    async def props(self) -> Props:
        """What the router says of itself; raises when it is none."""
        props = await self._steering.ask("GET", "/props", PROPS)
        if props.role != "router":
            raise LevelUnavailable(
                f"{self.where}: what answers there is no router, but a server of one model; start llama-server without "
                "--model, or have requests only sent there with openai as the runtime, or have scaler start it with "
                "llama-server as the runtime"
            )
        return props

    async def models(self) -> list[Listed]:
        """Everything that it has."""
        return (await self._steering.ask("GET", "/models", MODELS)).data

    def own(self, models: Sequence[Listed]) -> Listed:
        """The level's model among them; raises when it is not there."""
        name = self.settings.model
        for one in models:
            if name == one.id or name in one.aliases:
                return one
        raise LevelUnavailable(
            f"{self.where}: the router has no such model; it has {', '.join(one.id for one in models) or 'none'}. "
            "Put its file into the folder of --models-dir, or name it in --models-preset, and start the router again"
        )

    async def begin(self, listed: str) -> None:
        """Have it begin to load. Raises `Refused` when it does not."""
        asking = asyncio.ensure_future(self._steering.ask("POST", "/models/load", NOTHING, {"model": listed}))
        try:
            await asyncio.shield(asking)
        except asyncio.CancelledError:
            # Else it might begin after it was told to let go.
            await asyncio.wait([asking])
            raise

    async def loaded(self, tell: Callable[[int], None]) -> tuple[Status, int]:
        """Wait until the level's model answers; return what is said of it, and its process.

        ``tell`` is told the process again and again, as soon as there is one.
        """
        pid = None
        while True:
            status = self.own(await self.models()).status
            if pid is None and status.value in RUNNING:
                pid = await status.pid()
            if pid is not None:
                tell(pid)
            if status.value in READY:
                break
            if status.value != "loading":
                ended = "" if status.exit_code is None else f", its process ended with status {status.exit_code}"
                raise LevelUnavailable(
                    f"{self.where}: asked to load it, the router says that it is {status.value}{ended}; the router's "
                    "log says why"
                )
            await asyncio.sleep(LOOK_EVERY_S)
        if pid is None:
            raise LevelUnavailable(
                f"{self.where}: loaded, but none of this machine's processes is surely its, so its memory cannot be "
                "told; run the router on this machine, where scaler may see its processes"
            )
        return status, pid

    async def check_window(self, listed: str) -> None:
        """Raise when a request is given less context than the level's."""
        props = await self._steering.ask("GET", props_path(listed), MODEL_PROPS)
        window = props.default_generation_settings.n_ctx
        wanted, parallel = self.settings.context_tokens, self.settings.parallel
        if window < wanted:
            raise LevelUnavailable(
                f"{self.where}: the router gives a request {window} tokens of context, and the level's context_tokens "
                f"are {wanted}; start it with --parallel {parallel} --ctx-size {wanted * parallel}, say so in its "
                "preset, or lower context_tokens"
            )

    async def unload(self, listed: str, args: Sequence[str], pid: int | None) -> None:
        """Have it unloaded; its process is gone when this returns, and the router knows. Raises when it will not go.

        ``args`` is the process's command line; where its number is not known, what the router says of it is believed.
        """
        # One that is told to go while it answers hangs until the router kills it.
        with contextlib.suppress(LevelUnavailable, TimeoutError):
            async with asyncio.timeout(IDLE_S):
                while True:
                    if not await self._computes(listed):
                        break
                    await asyncio.sleep(IDLE_EVERY_S)
        limit_s, refusal = UNLOAD_S, None
        try:
            await self._steering.ask("POST", "/models/unload", NOTHING, {"model": listed})
        except LevelUnavailable as error:
            # It may be on its way by itself, and goes when its router is gone.
            refusal, limit_s = error, REFUSED_S if isinstance(error, Refused) else UNLOAD_S
        try:
            async with asyncio.timeout(limit_s):
                await (self._unlisted(args) if pid is None else gone(pid))
        except TimeoutError:
            raise refusal or LevelUnavailable(
                f"{self.where}: told to unload it, the router still holds it after {UNLOAD_S:g} s; look at its log, or "
                "start it again"
            ) from None
        await self.settled(args)

    async def _computes(self, listed: str) -> bool:
        # To be asked for its slots wakes one up that sleeps.
        if self.own(await self.models()).status.value != "loaded":
            return False
        slots = await self._steering.ask("GET", f"/slots{_query(listed)}", SLOTS)
        return any(slot.is_processing for slot in slots)

    async def settled(self, args: Sequence[str]) -> None:
        """Wait until the router knows that a process is gone: only then has it room, and loads the model anew.

        The memory is back in any case, so that whatever the router says instead raises nothing.
        """
        with contextlib.suppress(LevelUnavailable, TimeoutError):
            async with asyncio.timeout(UNLOAD_S):
                await self._unlisted(args)

    async def _unlisted(self, args: Sequence[str]) -> None:
        while True:
            if not any(one.runs and one.status.args == args for one in await self.models()):
                return
            await asyncio.sleep(LOOK_EVERY_S)


def props_path(listed: str) -> str:
    """Where a model's own process says of itself; it neither loads it nor wakes it up."""
    return f"/props{_query(listed)}"


def _query(listed: str) -> str:
    return f"?model={quote(listed, safe='')}&autoload=false"
