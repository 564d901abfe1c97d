"""vLLM, a server for each level: scaler puts it to sleep and wakes it up, and its memory of the GPU goes and comes.

Owns what is asked of such a server. Knows nothing of thresholds or ladders.

Source: https://docs.vllm.ai/en/latest/features/sleep_mode/ and exchanges recorded with vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from scaler.descriptions import EVERYTHING, Description
from scaler.errors import LevelUnavailable
from scaler.level_settings import VllmLevel
from scaler.levels import Saving
from scaler.readings import ModelLoad
from scaler.runtimes.listeners import listener, runs
from scaler.runtimes.model_server import CONTINUE, ModelServer, goes_on, streamed
from scaler.runtimes.openai_chunks import EventReader
from scaler.runtimes.steering import NOTHING, Refused, Steering, Unreachable, authorization, require_client

LOOK_EVERY_S = 1.0
"""How often a server that is awake is looked at."""
SLEEP_S = 60.0
"""Within this a server sleeps that was told to: level 1 copies the weights to RAM first."""
SETTLED_S = 0.2
"""How often a server that was told to wake or to sleep is asked whether it does."""
SILENT = 5
"""A server that has not answered so many times in a row is gone; one that refuses the connection is gone at once."""
CALLS = 4
"""How many questions beside answers are asked at a time."""
SLEEPLESS = (
    "it cannot be put to sleep; start it with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode, or have requests only "
    "sent there with openai as the runtime"
)
FIGURE = re.compile(
    # The last was gpu_cache_usage_perc once. What is NaN is not told.
    r"^vllm:(?:num_requests_(running|waiting)|(?:kv|gpu)_(cache)_usage_perc)\{[^}]*\} ([0-9.]+(?:e[+-]?[0-9]+)?)",
    re.MULTILINE,
)
SLEEP_STATE = re.compile(r'^vllm:engine_sleep_state\{[^}]*sleep_state="(\w+)"[^}]*\} ([0-9.]+)', re.MULTILINE)
DEEP = "discard_all"
"""The sleep from which the weights are to be read anew."""


class _Served(BaseModel):
    id: str
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Served]


class _Sleeping(BaseModel):
    is_sleeping: bool


class _Counted(BaseModel):
    count: int


MODELS, SLEEPING, COUNTED = TypeAdapter(_Models), TypeAdapter(_Sleeping), TypeAdapter(_Counted)


class VllmRuntime:
    """Wakes servers up and puts them to sleep. One for all levels, whatever addresses they name."""

    def __init__(self) -> None:
        self._awake: dict[VllmModel | object, int] = {}

    def require(self) -> None:
        """Raises MissingExtra when the HTTP client is not installed."""
        require_client()

    def footprint(self, settings: VllmLevel) -> Mapping[str, int]:
        """As declared. Of RAM nothing: the server's own stays when it sleeps, so that it counts as the others'."""
        return settings.declared

    def describe(self, settings: VllmLevel) -> Description:
        """Its name; what else there is, the server does not tell."""
        return Description(settings.model, settings.context_tokens, capabilities=EVERYTHING)

    def savings(self, settings: VllmLevel) -> Sequence[Saving]:
        """None: how much a server takes was said when it was started."""
        return ()

    def apart(self, one: VllmLevel, other: VllmLevel) -> bool:
        """Unless they are one server, as a level and what comes in its place with other settings."""
        return one.url.port != other.url.port

    def pids(self) -> Collection[int]:
        """The servers that are awake, or being woken."""
        return tuple(self._awake.values())

    async def release(self, settings: VllmLevel) -> None:
        """Put the level's server to sleep if it is awake, as it is when it was just started.

        Raises LevelUnavailable when it will not, or does not say; one that is off holds nothing.
        """
        steering = steering_of(settings)
        try:
            asleep = await _sleeps(steering)
        except Unreachable:
            return
        if not asleep:
            await _put_to_sleep(steering, settings.sleep)

    async def close(self) -> None:
        """Nothing goes on in the background."""

    async def load(self, settings: VllmLevel, progress: Callable[[float], None]) -> VllmModel:
        """Wake the level's server up. Raises LevelUnavailable, MissingExtra."""
        self.require()
        progress(0.0)
        steering = steering_of(settings)
        try:
            async with asyncio.timeout(settings.load_timeout_s):
                await _check_model(steering)
                pid = await _pid(steering)
                ticket = object()
                self._awake[ticket] = pid
                try:
                    await _wake(steering, settings.sleep)
                    model = VllmModel(settings, steering, pid, self._awake)
                    self._awake[model] = pid
                except BaseException:
                    # Cancelled or half awake: nothing may hold memory that nobody knows of.
                    await asyncio.shield(_let_go(steering, settings.sleep))
                    raise
                finally:
                    del self._awake[ticket]
        except TimeoutError:
            raise LevelUnavailable(
                f"{steering.where}: not awake within {settings.load_timeout_s:g} s; look at its log, or raise "
                "load_timeout_s"
            ) from None
        progress(1.0)
        return model


class VllmModel:
    """A level whose server is awake."""

    def __init__(self, settings: VllmLevel, steering: Steering, pid: int, awake: dict[VllmModel | object, int]) -> None:
        """``awake`` is the list of those that are, from which this one takes itself."""
        self._settings, self._steering, self._pid, self._awake = settings, steering, pid, awake
        self._asked_to_go = self._went = False
        self.heard: ModelLoad | None = None
        """How busy the server said last that it is."""
        self._server = ModelServer(
            steering.where,
            settings.address,
            answers=settings.parallel,
            calls=CALLS,
            why_gone=self._why_gone,
            headers=authorization(settings),
        )

    @property
    def name(self) -> str:
        """The level's name."""
        return self._settings.name

    def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream the answer's chunks; raises LevelUnavailable, RequestRejected."""
        return self._stream("/v1/chat/completions", request)

    def complete(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream what follows the prompt; raises LevelUnavailable, RequestRejected."""
        return self._stream("/v1/completions", request)

    async def _stream(self, path: str, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        asked, ended = streamed(request, model=self._settings.model), False
        async for chunk in self._server.stream(path, asked, EventReader(asked)):
            reasons = [choice.get("finish_reason") for choice in chunk.get("choices", ())]
            # A server that is put to sleep ends its answers so, or without any reason.
            if "abort" in reasons or (not reasons and not ended):
                raise LevelUnavailable(
                    f"{self._steering.where}: the server was put to sleep in the middle of the answer"
                )
            ended = ended or any(reasons)
            yield chunk

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Tokens of the prompt as the model's own template and vocabulary have it."""
        asked = {key: request[key] for key in ("messages", "tools", "chat_template_kwargs") if request.get(key)}
        asked |= {"model": self._settings.model, **(CONTINUE if goes_on(request) else {})}
        return (await self._server.post("/tokenize", asked, COUNTED)).count

    async def health(self) -> bool:
        """Whether the server is well, and awake."""
        try:
            return await self._server.well("/health") and not await _sleeps(self._steering)
        except LevelUnavailable:
            return False

    async def died(self) -> str:
        """Wait until the server is gone, or asleep unasked; return which."""
        silent = 0
        while not self._asked_to_go:
            await asyncio.sleep(LOOK_EVERY_S)
            if not runs(self._pid):
                return f"{self._steering.where}: the server's process ended; its log says more"
            try:
                metrics = await self._steering.text("/metrics")
                asleep = await _sleeps(self._steering)
            except Refused as refused:
                # vLLM's own engine died and left the server behind.
                return str(refused)
            except LevelUnavailable as error:
                silent += 1
                if silent >= SILENT or isinstance(error, Unreachable):
                    return str(error)
                continue
            silent = 0
            self.heard = _load(metrics)
            if asleep and not self._asked_to_go:
                return f"{self._steering.where}: somebody put the server to sleep"
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def unload(self) -> None:
        """Put the server to sleep; its memory is back when this returns. Raises LevelUnavailable when it will not."""
        self._asked_to_go = True
        await self._server.close()
        if self._went:
            return
        try:
            # One that does not listen any more is about to end.
            with contextlib.suppress(Unreachable):
                if runs(self._pid):
                    await _put_to_sleep(self._steering, self._settings.sleep)
            self._went = True
        finally:
            # Its own until it sleeps: counted as the others' before, it would drive away what is to come in its place.
            self._awake.pop(self, None)

    async def _why_gone(self) -> str | None:
        if not runs(self._pid):
            return "the server's process ended"
        return None


def steering_of(settings: VllmLevel) -> Steering:
    """What asks the level's server."""
    return Steering(settings, "vLLM", f"start it with `vllm serve {settings.model} --port {settings.url.port}`")


async def _pid(steering: Steering) -> int:
    url = steering.settings.url
    # In a thread: it looks at every process of the machine.
    if url.port is None or (pid := await asyncio.to_thread(listener, url.port, url.host)) is None:
        raise LevelUnavailable(
            f"{steering.where}: which process listens there cannot be told, and so not its memory; run vLLM on this "
            "machine, outside of containers, as the user that scaler runs as"
        )
    return pid


async def _check_model(steering: Steering) -> None:
    settings = steering.settings
    served = {model.id: model for model in (await steering.ask("GET", "/v1/models", MODELS)).data}
    if settings.model not in served:
        raise LevelUnavailable(
            f"{steering.where}: the server has {', '.join(served) or 'no model'}; correct the level's model, or start "
            f"the server with --served-model-name {settings.model}"
        )
    longest = served[settings.model].max_model_len
    if longest is not None and longest < settings.context_tokens:
        raise LevelUnavailable(
            f"{steering.where}: it was started for {longest} tokens of context, the level has "
            f"{settings.context_tokens}; start it with --max-model-len {settings.context_tokens}, or lower the level's "
            "context_tokens"
        )


async def _sleeps(steering: Steering) -> bool:
    try:
        return (await steering.ask("GET", "/is_sleeping", SLEEPING)).is_sleeping
    except Refused as refused:
        if refused.status == 404:
            raise LevelUnavailable(f"{steering.where}: {SLEEPLESS}") from refused
        raise


async def _wake(steering: Steering, depth: int) -> None:
    if not await _sleeps(steering):
        return
    limit = steering.settings.load_timeout_s
    if await _sleeps_deep(steering, depth):
        await steering.ask("POST", "/wake_up?tags=weights", NOTHING, timeout_s=limit)
        await steering.ask("POST", "/collective_rpc", NOTHING, {"method": "reload_weights"}, timeout_s=limit)
        await steering.ask("POST", "/wake_up?tags=kv_cache", NOTHING, timeout_s=limit)
    else:
        await steering.ask("POST", "/wake_up", NOTHING, timeout_s=limit)
    while True:
        if not await _sleeps(steering):
            return
        await asyncio.sleep(SETTLED_S)


async def _sleeps_deep(steering: Steering, depth: int) -> bool:
    """Whether its weights are gone, by the level's depth, or as it says: somebody else may have put it to sleep.

    To read them although they are there does no harm, and a server that was left half awake does not say so.
    """
    states = dict(SLEEP_STATE.findall(await steering.text("/metrics")))
    return depth == 2 or float(states.get(DEEP, 0)) > 0


async def _put_to_sleep(steering: Steering, depth: int) -> None:
    await steering.ask("POST", f"/sleep?level={depth}", NOTHING, timeout_s=SLEEP_S)
    if not await _sleeps(steering):
        raise LevelUnavailable(
            f"{steering.where}: told to sleep, the server is still awake; look at its log, and whether it was started "
            "with --enable-sleep-mode"
        )


def _load(metrics: str) -> ModelLoad | None:
    """The figures of the server's engines together, the fullest one's for the cache; None where they are not told."""
    figures = defaultdict[str, list[float]](list)
    for answers, cache, value in FIGURE.findall(metrics):
        figures[answers or cache].append(float(value))
    if len(figures) < 3:
        return None
    return ModelLoad(round(sum(figures["running"])), round(sum(figures["waiting"])), max(figures["cache"]))


async def _let_go(steering: Steering, depth: int) -> None:
    """Put it to sleep as far as that can be: why it is not wanted is told already, which says more than a failure."""
    with contextlib.suppress(LevelUnavailable):
        await _put_to_sleep(steering, depth)
