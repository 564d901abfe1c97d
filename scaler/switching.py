"""Performing switches: drain, load beside or unload first, cut over, keep standbys loaded, report back.

Owns what is loaded and the answers that run on it. Does as it is told by a `Switch` and knows nothing of
thresholds or readings. Everything here runs on one event loop; only `request` and `pids` may be called
from elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakSet

from scaler.errors import LevelUnavailable, MissingExtra, QueueFull, RequestTimedOut
from scaler.events import Drained, ScalerEvent, StandbyLost, UnloadFailed
from scaler.level_settings import LevelSettings
from scaler.levels import OFF
from scaler.machine import Switch
from scaler.readings import ModelLoad
from scaler.runtimes.protocol import LoadedModel, Runtime, TellsItsLoad

log = logging.getLogger(__name__)

RELEASE_S = 5.0
"""So long the first switch waits for what was loaded before scaler came to go."""
RELEASE_ENDS_S = 90.0
"""What has not let go by then never will; vLLM, the slowest, takes up to a minute to fall asleep."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing done in a switch, or in clearing up behind one; monotonic seconds. ``error`` is why it failed."""

    kind: Literal["drain", "unload", "load"]
    level: str
    began_s: float
    ended_s: float
    error: str | None = None


class Reports(Protocol):
    """Whom the outcome is told; the scaler is one."""

    def serves(self, level: str) -> None: ...

    def switched(self, ticket: int, load_s: float | None = None) -> None: ...

    def switch_failed(self, ticket: int, still_serving: str, reason: str) -> None: ...

    def died(self, level: str, reason: str) -> None: ...

    def note(self, event: ScalerEvent) -> None: ...


class Lease:
    """The right of one answer to a loaded model, until it is released.

    While its model drains, the answer has a limit of time and of tokens; ``on_cut`` is called when either
    is used up.
    """

    def __init__(self, loaded: _Loaded) -> None:
        self.model = loaded.model
        self.level = loaded.model.name
        self.settings = loaded.settings
        self.tokens = 0
        self.cut = False
        self.on_cut: Callable[[], None] = lambda: None
        self._loaded = loaded
        self._token_limit: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        loaded.leases[self] = None
        loaded.idle.clear()

    @property
    def replaced(self) -> bool:
        """Whether its model is that of no level any more: the configuration has changed since it was loaded."""
        return self._loaded.replaced

    def count(self, tokens: int = 1) -> None:
        """Note that the answer has grown."""
        self.tokens += tokens
        if self._token_limit is not None and self.tokens >= self._token_limit:
            self._end()

    def limit(self, drain_s: float, drain_tokens: int) -> None:
        """Let the answer have at most so much more; never more than it was allowed before."""
        loop = asyncio.get_running_loop()
        until, most = loop.time() + drain_s, self.tokens + drain_tokens
        if self._token_limit is None or most < self._token_limit:
            self._token_limit = most
        if self._timer is None or until < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(until, self._end)
        if self.tokens >= self._token_limit:
            self._end()

    def unlimit(self) -> None:
        """Let the answer have all that it wants: its model stays."""
        self._token_limit = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def release(self) -> None:
        """Give the model back. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
        self._loaded.leases.pop(self, None)
        if not self._loaded.leases:
            self._loaded.idle.set()

    def _end(self) -> None:
        if not self.cut:
            self.cut = True
            self.on_cut()


@dataclass(eq=False)
class _Loaded:
    model: LoadedModel
    runtime: Runtime[Any]
    settings: LevelSettings
    leases: dict[Lease, None] = field(default_factory=dict)
    """Those that were not given back, in the order in which they were taken."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no answer runs on it, and from its death on."""
    watch: asyncio.Task[None] | None = None
    dead: bool = False
    replaced: bool = False

    def __post_init__(self) -> None:
        self.idle.set()


class Switcher:
    """Keeps the level loaded that was last requested."""

    def __init__(
        self,
        levels: Mapping[str, tuple[Runtime[Any], LevelSettings]],
        reports: Reports,
        *,
        queue_limit: int,
        on_progress: Callable[[str, float], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``queue_limit``: how many requests may wait for a level at most. Call `start` on the loop."""
        self._levels, self._reports = levels, reports
        self._runtimes = {id(runtime): runtime for runtime, _ in levels.values()}
        self._queue_limit, self._on_progress, self._clock = queue_limit, on_progress, clock
        self._wanted: Switch | None = None
        self._current: _Loaded | None = None
        self._known: WeakSet[_Loaded] = WeakSet()
        self._retiring: dict[_Loaded, asyncio.Task[None]] = {}
        self._stuck: dict[_Loaded, LevelUnavailable] = {}
        self._releasing: dict[str, asyncio.Task[None]] = {}
        self._order = {name: position for position, name in enumerate(levels)}
        self._kept = tuple(name for name, (_, settings) in levels.items() if settings.standby)
        self._standby: dict[str, _Loaded] = {}
        self._closed_for: int | None = None
        self._ready = asyncio.Event()
        self._opened = asyncio.Event()
        self._wake = asyncio.Event()
        self._waiting = 0
        self._performing: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._step_takers: list[Callable[[Step], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---------------------------------------------------------------- from outside

    async def start(self) -> None:
        """Begin to take requests."""
        self._loop = asyncio.get_running_loop()
        self._worker = asyncio.create_task(self._work(), name="switcher")

    def request(self, switch: Switch) -> None:
        """Have ``switch`` performed; a later one overtakes it. From any thread; returns at once."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, switch)

    def on_step(self, taker: Callable[[Step], None]) -> Callable[[], None]:
        """Have ``taker`` told of every step when it has ended, on the loop; returns the way out. It must not raise."""
        self._step_takers.append(taker)
        return lambda: self._step_takers.remove(taker) if taker in self._step_takers else None

    @contextmanager
    def _step(self, kind: Literal["drain", "unload", "load"], level: str) -> Iterator[None]:
        """Tell of what is done within."""
        began, error = self._clock(), None
        try:
            yield
        except BaseException as failure:
            error = str(failure) or type(failure).__name__
            raise
        finally:
            for taker in self._step_takers:
                taker(Step(kind, level, began, self._clock(), error))

    def reconfigure(
        self,
        levels: Mapping[str, tuple[Runtime[Any], LevelSettings]],
        kept: Collection[str],
        *,
        queue_limit: int,
    ) -> None:
        """Load these levels from now on; what is loaded of a level in ``kept`` stays as it is. On the loop.

        Every other model is that of no level any more: it answers until the next switch, which lets it go. Whoever
        calls this requests that switch, if the level that serves or one that stands by beside it is not kept.
        """
        before, standbys = self._levels, self._standbys_wanted()
        self._levels, self._queue_limit = levels, queue_limit
        # What still has to go, or goes on in the background, may be of a runtime that no level has any more.
        self._runtimes.update({id(runtime): runtime for runtime, _ in levels.values()})
        self._order = {name: position for position, name in enumerate(levels)}
        self._kept = tuple(name for name, (_, settings) in levels.items() if settings.standby)
        # Also one that has died already: somebody may still hold it.
        for one in self._known:
            if one.model.name not in kept:
                one.replaced = True
        for name in [name for name, one in self._standby.items() if one.replaced]:
            self._retire(self._standby.pop(name))
        wanted = self._wanted.dest if self._wanted is not None else OFF
        moot = wanted not in (OFF, *kept) or self._standbys_wanted() != standbys or not standbys <= set(kept)
        if moot:
            self._overtake()
        for name, (runtime, settings) in levels.items():
            # What our own models hold, or did until now, is nothing that an earlier scaler has left.
            alike = [of for other, of in before.values() if other is runtime and not runtime.apart(of, settings)]
            if name not in before and not alike and self._loop is not None:
                self._releasing[name] = self._loop.create_task(
                    self._release(name, runtime, settings), name=f"release {name}"
                )
        # Those who insist on a level that is gone are to hear of it.
        self._opened.set()

    def _standbys_wanted(self) -> set[str]:
        """The levels that are to stand by beside the one that is wanted."""
        wanted = self._wanted.dest if self._wanted is not None else OFF
        return set(self._standbys(wanted)) if wanted in self._order else set()

    def pids(self) -> tuple[int, ...]:
        """The roots of the process trees of everything that is loaded or being loaded."""
        return tuple(pid for runtime in tuple(self._runtimes.values()) for pid in runtime.pids())

    @property
    def loaded(self) -> tuple[str, ...]:
        """The levels that can answer now: the one that serves, and those that stand by."""
        return (*([] if (serving := self._serving) in (None, OFF) else [str(serving)]), *self._standby)

    @property
    def _serving(self) -> str | None:
        """The level whose model takes requests, or ``off``; None for a model of a level that is no more."""
        current = self._current
        return OFF if current is None or current.dead else None if current.replaced else current.model.name

    @property
    def former(self) -> str | None:
        """The level of the configuration before whose model answers until the next switch is done, if there is one."""
        current = self._current
        return None if current is None or current.dead or not current.replaced else current.model.name

    def load_heard(self) -> ModelLoad | None:
        """How busy the server of the level that serves is, where it tells. From any thread."""
        current = self._current
        return current.model.heard if current is not None and isinstance(current.model, TellsItsLoad) else None

    @property
    def waiting(self) -> int:
        """How many requests wait for a level."""
        return self._waiting

    @property
    def answering(self) -> int:
        """How many answers run."""
        loaded = (self._current, *self._retiring, *self._standby.values())
        return sum(len(one.leases) for one in loaded if one is not None)

    async def lease(
        self, wait_s: float, why: Callable[[], str], *, level: str | None = None, ahead: bool = False
    ) -> Lease:
        """Wait for a level that serves and take a share of it.

        ``level`` insists on one: it must serve, or stand by. ``ahead`` is for a request that was let in before, whose
        level gave way or died: it is not turned away for the number of those who wait. Raises QueueFull when too many
        wait already, RequestTimedOut after ``wait_s`` seconds, with ``why``, LevelUnavailable when ``level`` is on the
        ladder no more.
        """
        if (loaded := self._open_for(level)) is not None:
            return Lease(loaded)
        if self._waiting >= self._queue_limit and not ahead:
            raise QueueFull(f"{self._waiting} requests wait for a level already ({why()}); try again later")
        self._waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                while (loaded := self._open_for(level)) is None:
                    if level is not None and level not in self._levels:
                        raise LevelUnavailable(f"{level}: it is not on the ladder any more; ask for another level")
                    self._opened.clear()
                    await self._opened.wait()
        except TimeoutError:
            raise RequestTimedOut(
                f"{level or 'no level'} {'did not serve' if level else 'served'} within {wait_s:.3g} s: {why()}; "
                "try again later"
            ) from None
        finally:
            self._waiting -= 1
        return Lease(loaded)

    def _open_for(self, level: str | None) -> _Loaded | None:
        """The model that takes a request now, if there is one."""
        if self._ready.is_set() and self._current is not None and level in (None, self._current.model.name):
            return self._current
        return self._standby.get(level) if level is not None else None

    async def close(self) -> None:
        """End everything: running answers, switches, models. Raises LevelUnavailable for those that will not go.

        Those that would not go before are told once more to, and again when this is called again.
        """
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if self._performing is not None:
            self._performing.cancel()
            await asyncio.gather(self._performing, return_exceptions=True)
        self._ready.clear()
        loaded = [*self._retiring, *self._standby.values(), *([self._current] if self._current else [])]
        # Nor does what stands by take a request any more.
        self._standby.clear()
        for one in loaded:
            # From here on an end is no death: whoever stops a whole machine may end the models as well.
            if one.watch is not None:
                one.watch.cancel()
        ending = [*self._retiring.values(), *self._releasing.values()]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for one in dict.fromkeys([*loaded, *self._stuck]):
            for lease in list(one.leases):
                lease.limit(0.0, 0)
            await self._unload(one)
        self._current = None
        failed = list(self._stuck.values())
        for runtime in self._runtimes.values():
            try:
                await runtime.close()
            except LevelUnavailable as error:
                # The others are to end all the same.
                failed.append(error)
        if failed:
            raise LevelUnavailable("\n".join(map(str, failed)))

    # ---------------------------------------------------------------- on the loop

    def _take(self, switch: Switch) -> None:
        if switch.dest not in (OFF, *self._levels):
            # Decided on the ladder before this one: the next is on its way.
            return
        before, self._wanted = self._wanted, switch
        if before is not None and before.ticket == switch.ticket:
            self._limit_drains(switch)
            return
        self._overtake()
        self._wake.set()

    def _overtake(self) -> None:
        """Give up what is being performed; what cleans up already is let finish, or the next would begin beside it."""
        if self._performing is not None and not self._performing.cancelling():
            self._performing.cancel()

    def _limit_drains(self, switch: Switch) -> None:
        for loaded in (*self._retiring, *([self._current] if self._closed_for == switch.ticket else [])):
            for lease in list(loaded.leases if loaded else ()):
                lease.limit(switch.drain_s, switch.drain_tokens)

    async def _work(self) -> None:
        # `off` means that nothing is loaded, also where a server stood awake or a scaler before us was killed.
        self._releasing = {
            name: asyncio.create_task(self._release(name, *level), name=f"release {name}")
            for name, level in self._levels.items()
        }
        await asyncio.wait(self._releasing.values(), timeout=RELEASE_S)
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._wanted is None:
                continue
            self._performing = asyncio.create_task(self._perform(self._wanted), name=f"switch to {self._wanted.dest}")
            # A switch that is overtaken is cancelled, and cleans up before the next one begins.
            await asyncio.wait([self._performing])
            self._performing = None

    async def _release(self, name: str, runtime: Runtime[Any], settings: LevelSettings) -> None:
        try:
            async with asyncio.timeout(RELEASE_ENDS_S):
                await runtime.release(settings)
        except LevelUnavailable as error:
            log.warning("what was loaded before scaler came is not let go of: %s", error)
        except Exception:
            # A fault in one runtime must not keep the other levels from being served.
            log.exception("%s: letting go of what was loaded before scaler came failed", name)

    async def _perform(self, switch: Switch) -> None:
        try:
            load_s = await self._go(switch)
        except (LevelUnavailable, MissingExtra) as error:
            self._give_up(switch, str(error))
        except Exception as error:
            # A fault in a runtime must not leave the state and what serves apart: the level backs off.
            log.exception("switching to %s failed unexpectedly", switch.dest)
            self._give_up(switch, f"{switch.dest}: {type(error).__name__}: {error}")
        else:
            self._reports.switched(switch.ticket, load_s)

    def _give_up(self, switch: Switch, reason: str) -> None:
        self._open()
        self._reports.switch_failed(switch.ticket, self._serving or OFF, reason)

    async def _go(self, switch: Switch) -> float | None:
        """Make ``switch.dest`` serve; return the seconds that loading took, None when nothing was loaded."""
        self._limit_drains(switch)
        current, load_s = self._current, None
        if self._serving == switch.dest:
            self._open()
        elif (spare := self._standby.pop(switch.dest, None)) is not None:
            self._cut_over(spare, switch)
        elif current is not None and self._beside(current, switch):
            # Where it may stay only because it is to stand by, there is no room for what is on its way out.
            stays = [one for one in self._retiring if switch.beside and self._apart(one, switch.dest)]
            await self._make_room(switch.dest, [one for one in self._retiring if one not in stays])
            loaded, load_s = await self._load(switch.dest)
            self._cut_over(loaded, switch)
        else:
            if current is not None:
                self._closed_for = switch.ticket
                self._ready.clear()
                self._limit_drains(switch)
                await self._drain(current)
                if self._current is current:
                    self._current = None
                    self._retire(current)
                    self._reports.serves(OFF)
            self._retire_standbys(switch.dest)
            # Answers on what stood by have to make room as well.
            self._limit_drains(switch)
            if switch.dest == OFF:
                await self._gone(list(self._retiring))
                return None
            await self._make_room(switch.dest, list(self._retiring))
            loaded, load_s = await self._load(switch.dest)
            self._serve(loaded)
        self._retire_standbys(switch.dest)
        self._limit_drains(switch)
        # One that will not go is told as such: `dest` serves all the same.
        await self._gone(list(self._retiring))
        await self._load_standbys(switch.dest)
        return load_s

    def _cut_over(self, loaded: _Loaded, switch: Switch) -> None:
        """Let ``loaded`` take the requests from now on; what served until now stands by, or goes when it is idle."""
        before = self._current
        self._serve(loaded)
        if before is None:
            return
        if before.model.name in self._standbys(switch.dest) and not before.dead and not before.replaced:
            self._standby[before.model.name] = before
        else:
            self._retire(before)

    def _beside(self, current: _Loaded, switch: Switch) -> bool:
        """Whether the next level is loaded while the one that serves stays."""
        if switch.dest == OFF or not self._apart(current, switch.dest):
            return False
        return switch.beside or (not current.replaced and current.model.name in self._standbys(switch.dest))

    def _apart(self, one: _Loaded, other: str) -> bool:
        """Whether a level can be loaded beside a model."""
        runtime, settings = self._levels[other]
        return one.runtime is not runtime or runtime.apart(one.settings, settings)

    def _in_the_way(self, release: str, of: str) -> bool:
        """Whether what is let go of for one level may be what is loaded for the other."""
        if release not in self._levels:
            return False
        (runtime, settings), (another, of_other) = self._levels[release], self._levels[of]
        return release == of or (runtime is another and not runtime.apart(settings, of_other))

    def _standbys(self, dest: str) -> tuple[str, ...]:
        """The levels that are kept loaded beside ``dest``: those below it, to step down to."""
        return tuple(name for name in self._kept if dest != OFF and self._order[name] < self._order[dest])

    def _retire_standbys(self, dest: str) -> None:
        for name in [name for name in self._standby if name not in self._standbys(dest)]:
            self._retire(self._standby.pop(name))

    async def _load_standbys(self, dest: str) -> None:
        for name in self._standbys(dest):
            if name in self._standby:
                continue
            try:
                self._standby[name] = (await self._load(name))[0]
                self._opened.set()
            except (LevelUnavailable, MissingExtra) as error:
                # Serving goes on without it: stepping down takes a load then. The next switch tries again.
                self._reports.note(StandbyLost(name, str(error)))
            except Exception as error:
                # A fault in one runtime must not be blamed on the level that serves already.
                log.exception("loading %s, which is to stand by, failed unexpectedly", name)
                self._reports.note(StandbyLost(name, f"{name}: {type(error).__name__}: {error}"))

    async def _drain(self, loaded: _Loaded) -> None:
        """Wait until the answers that run now have ended, and tell how many they were."""
        answers, began = set(loaded.leases), self._clock()
        if answers:
            with self._step("drain", loaded.model.name):
                await loaded.idle.wait()
        if answers and not loaded.dead:
            cut = sum(lease.cut for lease in answers)
            self._reports.note(Drained(loaded.model.name, len(answers), cut, self._clock() - began))

    async def _load(self, name: str) -> tuple[_Loaded, float]:
        runtime, settings = self._levels[name]
        began = self._clock()
        if releasing := [task for one, task in self._releasing.items() if self._in_the_way(one, name)]:
            # A release that is late would take away again what was loaded meanwhile.
            await asyncio.wait(releasing)
        with self._step("load", name):
            model = await runtime.load(settings, lambda ratio: self._on_progress(name, ratio))
        loaded = _Loaded(model, runtime, settings)
        self._known.add(loaded)
        loaded.watch = asyncio.create_task(self._watch(loaded), name=f"watch {name}")
        return loaded, self._clock() - began

    def _serve(self, loaded: _Loaded) -> None:
        self._current = loaded
        self._open()
        if (serving := self._serving) is not None:
            # Told before the switch is done, which takes as long as what it replaces drains.
            self._reports.serves(serving)

    def _open(self) -> None:
        """Let requests through if there is a model to take them."""
        self._closed_for = None
        if self._current is not None and not self._current.dead:
            # It may have begun to drain for a switch that was overtaken.
            for lease in self._current.leases:
                lease.unlimit()
            self._ready.set()
        self._opened.set()

    def _retire(self, loaded: _Loaded) -> None:
        self._retiring[loaded] = asyncio.create_task(self._drain_and_unload(loaded), name="retire")

    async def _make_room(self, dest: str, going: Collection[_Loaded]) -> None:
        """Wait until they have gone that ``dest`` must not be loaded beside. Raises LevelUnavailable if one stays."""
        await self._gone(going)
        if stays := [(one.model.name, self._stuck[one]) for one in going if one in self._stuck]:
            because = ", and ".join(f"{name} has to go first and will not ({error})" for name, error in stays)
            raise LevelUnavailable(
                f"{dest}: not loaded, because {because}; unload that by hand, or end the process that holds it"
            ) from stays[0][1]

    async def _gone(self, going: Collection[_Loaded]) -> None:
        """Wait until they have gone, or will not."""
        # Waiting, not gathering: a switch that is overtaken must not leave a model half unloaded.
        if ending := [self._retiring[one] for one in going]:
            await asyncio.wait(ending)

    async def _drain_and_unload(self, loaded: _Loaded) -> None:
        try:
            await self._drain(loaded)
            await self._unload(loaded)
        finally:
            self._retiring.pop(loaded, None)
        if loaded in self._stuck:
            # Told here as well: a switch that waits for it may be overtaken.
            self._reports.note(UnloadFailed(loaded.model.name, str(self._stuck[loaded])))

    async def _unload(self, loaded: _Loaded) -> None:
        """Have it go. One that will not is kept, to be told once more at the end."""
        if loaded.watch is not None:
            loaded.watch.cancel()
        name = loaded.model.name
        try:
            with self._step("unload", name):
                await loaded.model.unload()
        except LevelUnavailable as error:
            self._stuck[loaded] = error
        except Exception as error:
            # A fault in a runtime must not keep the other models from going.
            log.exception("unloading %s failed unexpectedly", name)
            self._stuck[loaded] = LevelUnavailable(f"{name}: {type(error).__name__}: {error}")
        else:
            self._stuck.pop(loaded, None)

    async def _watch(self, loaded: _Loaded) -> None:
        name = loaded.model.name
        try:
            reason = await loaded.model.died()
        except Exception as error:
            # Nobody would watch it any more, and its death would never be noticed.
            log.exception("watching %s failed unexpectedly", name)
            reason = f"{name}: whether it runs cannot be told ({type(error).__name__}: {error})"
        loaded.dead = True
        # To unload it ends its answers, so that nothing waits for them first.
        loaded.idle.set()
        if loaded is self._current:
            self._current = None
            self._ready.clear()
        if self._standby.get(name) is loaded:
            del self._standby[name]
            self._reports.note(StandbyLost(name, reason))
        elif loaded.replaced:
            # No level is to blame: the one that comes in its place is another's model.
            log.warning("%s: its model of before the configuration changed died: %s", name, reason)
        else:
            self._reports.died(name, reason)
        # What of it has not gone by itself is in the way of what comes next, like any other model that gives way.
        if loaded not in self._retiring:
            self._retire(loaded)
