"""A runtime that is made up, and honest: it keeps what `Runtime` and `LoadedModel` promise, at its worst.

Its models take memory while they load, and until they are gone. Their answers count: 1 2 3 ..., so that a token that
was lost or told twice is seen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from scaler.descriptions import Description
from scaler.errors import LevelUnavailable, NeverAsked
from scaler.level_settings import LevelSettings
from scaler.levels import Saving
from tests.simulation.faults import Faults

HANG_S = 30.0
"""A model that has said nothing for so long is killed by its runtime, as `hang_s` has it."""
UNLOAD_S = 30.0
"""An unload that takes longer has failed."""
LOAD_STEPS = 4


class Model:
    """A level's model, from the first byte that it takes to the last that it gives back."""

    def __init__(self, runtime: SimulatedRuntime, settings: LevelSettings, number: int) -> None:
        self.name, self.number, self.settings = settings.name, number, settings
        self.loaded = self.gone = self.refused = self.leaving = False
        self.why: str | None = None
        """What it died of."""
        self._runtime, self._dice = runtime, runtime.dice
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._takes = {resource: int(size * runtime.excess) for resource, size in settings.declared.items()}
        self._pauses: dict[asyncio.Future[None], None] = {}
        self._ended = self._loop.create_future()
        self._turns = asyncio.Semaphore(settings.parallel)

    def __str__(self) -> str:
        return f"{self.name} (model {self.number})"

    @property
    def holds(self) -> Mapping[str, int]:
        """What it takes now, in bytes of each resource."""
        if self.gone or self.why is not None:
            return {}
        if self.loaded:
            return self._takes
        part = min(1.0, (self._loop.time() - self._began_s) / self.settings.load_s)
        return {resource: int(size * part) for resource, size in self._takes.items()}

    def pause(self, seconds: float) -> asyncio.Future[None]:
        """So many seconds, or until the model ends: LevelUnavailable then."""
        over: asyncio.Future[None] = self._loop.create_future()
        if self.ended:
            over.set_exception(LevelUnavailable(f"{self.name}: {self.why or 'gone'}"))
            return over
        timer = self._loop.call_later(seconds, lambda: over.done() or over.set_result(None))
        self._pauses[over] = None

        def tidy(_: object) -> None:
            timer.cancel()
            self._pauses.pop(over, None)
            if not over.cancelled():
                # Whoever waited for it may have been cancelled at the same moment.
                over.exception()

        over.add_done_callback(tidy)
        return over

    @property
    def ended(self) -> bool:
        """Whether it answers no more."""
        return self.gone or self.why is not None

    def die(self, why: str) -> None:
        """End as a process does that is killed."""
        if self.ended:
            return
        self.why = why
        self._runtime.deaths += 1
        self._runtime.say(f"{self} dies: {why}")
        self._end()

    def go(self) -> None:
        """Give everything back."""
        if not self.gone:
            self.gone = True
            self._runtime.say(f"{self} is gone")
            self._end()

    def _end(self) -> None:
        for pause in list(self._pauses):
            if not pause.done():
                pause.set_exception(LevelUnavailable(f"{self.name}: {self.why or 'gone'}"))
        if self.why is not None and not self._ended.done():
            self._ended.set_result(None)

    async def chat(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Count on from where the assistant's turn ends, up to ``words``."""
        last = request["messages"][-1]
        async with self._turns:
            if self.ended:
                raise NeverAsked(f"{self.name}: {self.why or 'gone'}")
            said = len(last["content"].split()) if last["role"] == "assistant" else 0
            limit, made = request.get("max_tokens"), 0
            await self._fault("chat", request)
            await self.pause(self._dice.uniform(0.05, 1.0))
            if self._dice.random() < 0.3:
                yield _chunk({"role": "assistant"})
            for number in range(said + 1, request["words"] + 1):
                if limit is not None and made == limit:
                    yield _chunk({}, "length")
                    return
                if self._dice.random() < 0.8:
                    await self.pause(self._runtime.token_s * self._dice.uniform(0.5, 1.5))
                if self.ended:
                    raise LevelUnavailable(f"{self.name}: {self.why or 'gone'}")
                match await self._fault("token", request):
                    case "rubbish":
                        yield {}
                        yield {"choices": []}
                        yield _chunk({"content": None})
                        yield _chunk({"content": ""})
                    case "stop":
                        self._runtime.broken_off.add(request["number"])
                        return
                made += 1
                yield _chunk({"content": f"{number} "})
            yield _chunk({}, "stop")
            if self._dice.random() < 0.5:
                yield {"id": "x", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": made}}

    async def _fault(self, place: str, request: Mapping[str, Any]) -> str | None:
        faults = self._runtime.faults
        kind = faults.draw(place, ("late", "fail", "hang", "die", "rubbish", "stop"), part=0.1)
        if kind == "late":
            await self.pause(faults.lateness_s())
        elif kind == "fail":
            raise LevelUnavailable(f"{self.name}: {place} failed, as drawn")
        elif kind == "hang":
            await self.pause(HANG_S)
            self.die(f"it said nothing for {HANG_S:g} s")
        elif kind == "die":
            self.die(f"a fault at {place}")
        if self.ended:
            raise LevelUnavailable(f"{self.name}: {self.why or 'gone'}")
        return kind

    def complete(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Nobody asks for it in the simulation."""
        raise NotImplementedError

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Four for each message and one for each of its words."""
        await self._runtime.faults.point("count", self.name, ("late", "fail", "hang"), hang_s=HANG_S, pause=self.pause)
        return sum(4 + len(message["content"].split()) for message in request["messages"])

    async def health(self) -> bool:
        """Whether it can answer."""
        await self._runtime.faults.point("health", self.name, ("late", "fail"), pause=self.pause)
        return not self.ended

    async def died(self) -> str:
        """Wait for its death; it may be told late."""
        await asyncio.shield(self._ended)
        await self._runtime.faults.point("died", self.name, ("late",))
        return f"{self.name} {self.why}"

    async def unload(self) -> None:
        """Go, or refuse to."""
        if self.gone:
            return
        self.leaving, self.refused = True, False
        try:
            if self.why is None:
                await self._runtime.faults.point("unload", self.name, ("late", "fail", "odd", "hang"), hang_s=UNLOAD_S)
            await asyncio.sleep(self._dice.uniform(0.01, 1.0))
        except (LevelUnavailable, RuntimeError):
            self.refused = True
            raise
        finally:
            self.leaving = False
        self.go()


class SimulatedRuntime:
    """Loads made-up models; fulfils `Runtime`."""

    def __init__(
        self,
        dice: random.Random,
        faults: Faults,
        say: Callable[[str], None],
        *,
        apart: bool,
    ) -> None:
        self.dice, self.faults, self.say = dice, faults, say
        self.models: list[Model] = []
        self.deaths = 0
        """How many of them have died."""
        self.can_stand_by = apart
        """Whether two levels can be loaded at the same time."""
        self.excess = dice.uniform(0.8, 1.15)
        """What a model takes in truth, in parts of what was declared."""
        self.token_s = dice.choice([0.1, 0.3, 1.0])
        self.broken_off: set[int] = set()
        """The numbers of the requests whose answer ended without a finish reason, as drawn."""
        self.on_load: Callable[[Model], None] = lambda _: None
        self._number = 0

    @property
    def held(self) -> Mapping[str, int]:
        """What all models take."""
        total: dict[str, int] = {}
        for model in self.models:
            for resource, size in model.holds.items():
                total[resource] = total.get(resource, 0) + size
        return total

    @property
    def there(self) -> list[Model]:
        """The models that hold memory."""
        self.models = [model for model in self.models if not model.gone]
        return [model for model in self.models if model.why is None]

    def kill(self, resource: str) -> bool:
        """What the kernel does: the largest goes."""
        there = [model for model in self.there if model.holds.get(resource)]
        if not there:
            return False
        max(there, key=lambda model: model.holds[resource]).die("killed by the kernel")
        return True

    def require(self) -> None:
        """Nothing is needed."""

    def footprint(self, settings: LevelSettings) -> Mapping[str, int]:
        """As declared."""
        return settings.declared

    def describe(self, settings: LevelSettings) -> Description:
        """Nothing is known."""
        return Description(settings.name, settings.context_tokens)

    def savings(self, settings: LevelSettings) -> Sequence[Saving]:
        """None."""
        return ()

    def apart(self, one: LevelSettings, other: LevelSettings) -> bool:
        """As the day has it; a level and what the configuration makes of it are two."""
        return self.can_stand_by and (one.name != other.name or not one.loads_as(other))

    def pids(self) -> Collection[int]:
        """One each."""
        return [1000 + model.number for model in self.there]

    async def release(self, settings: LevelSettings) -> None:
        """There is nothing from before; but to say so may take for ever."""
        await self.faults.point("release", settings.name, ("late", "fail", "odd", "hang"), hang_s=1e6)

    async def load(self, settings: LevelSettings, progress: Callable[[float], None]) -> Model:
        """Take memory in a straight line; what was begun ends with whoever gives up waiting."""
        self._number += 1
        model = Model(self, settings, self._number)
        self.models.append(model)
        self.say(f"{model} loads")
        self.on_load(model)
        took_s = settings.load_s * self.dice.uniform(0.5, 2.0)
        try:
            for step in range(LOAD_STEPS):
                kind = await self.faults.point(
                    "load",
                    settings.name,
                    ("late", "fail", "odd", "hang", "die"),
                    hang_s=settings.load_timeout_s,
                    pause=model.pause,
                )
                if kind == "die":
                    model.die("a fault while it was loaded")
                await model.pause(took_s / LOAD_STEPS)
                progress((step + 1) / LOAD_STEPS)
        except BaseException:
            try:
                # A process that was begun takes a moment to end.
                await asyncio.sleep(self.dice.uniform(0.0, 0.5))
            finally:
                model.go()
            raise
        model.loaded = True
        self.say(f"{model} is loaded")
        return model

    async def close(self) -> None:
        """Wait for what goes on in the background."""
        await self.faults.point("close", "runtime", ("late", "fail"))


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
