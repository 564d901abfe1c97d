"""The order of things in a switch, with a runtime that does as the test says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from scaler import switching
from scaler.answering import collect
from scaler.descriptions import Description
from scaler.errors import LevelUnavailable, NeverAsked, QueueFull, RequestTimedOut
from scaler.events import Drained, ScalerEvent, StandbyLost, UnloadFailed
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB, RAM, Ladder, Level, Saving
from scaler.machine import Decision, Switch
from scaler.monitor import ResourceMonitor
from scaler.policy import Policy
from scaler.proactive import Event, ProactiveScaler
from scaler.relaying import Relay
from scaler.switching import Switcher


class Model:
    """A loaded level; its answers grow by a word whenever the test lets them."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.name = name
        self._runtime = runtime
        self.asked: Mapping[str, Any] = {}
        self.more = asyncio.Semaphore(0)
        self.ended = asyncio.Event()
        self.heard_of = asyncio.Event()
        self.heard_of.set()
        self.unwatchable: Exception | None = None
        """What keeps whoever waits for its end from hearing of it."""
        self.busy = runtime.busy
        self.closed_answers = 0

    async def chat(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.asked = request
        if self.busy:
            await self.ended.wait()
            raise NeverAsked(f"{self.name}: gone")
        said = [message["content"] for message in request["messages"] if message["role"] == "assistant"]
        try:
            for number in range(len("".join(said).split()), request["words"]):
                await self._word()
                delta = {"content": f"{self.name}{number} "}
                yield {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            yield {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        finally:
            self.closed_answers += 1

    async def _word(self) -> None:
        """Wait until the next word may be said; raises LevelUnavailable when the model dies meanwhile."""
        more, death = asyncio.create_task(self.more.acquire()), asyncio.create_task(self.ended.wait())
        try:
            await asyncio.wait([more, death], return_when=asyncio.FIRST_COMPLETED)
            if self.ended.is_set():
                raise LevelUnavailable(f"{self.name}: killed")
        finally:
            more.cancel()
            death.cancel()

    def die(self) -> None:
        """End as a process that is killed does."""
        self.ended.set()

    def complete(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        raise NotImplementedError

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        tools: Sequence[int] = request.get("tools", ())
        return len(request["messages"]) + sum(tools)

    async def health(self) -> bool:
        return True

    async def died(self) -> str:
        await self.ended.wait()
        await self.heard_of.wait()
        if self.unwatchable is not None:
            raise self.unwatchable
        return f"{self.name} was killed"

    async def unload(self) -> None:
        self._runtime.log.append(f"unload {self.name}")
        await self._runtime.going.wait()
        if (failure := self._runtime.staying.get(self.name)) is not None:
            raise failure


class Runtime:
    """Loads at once, unless told to wait or to fail."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.released: set[str] = set()
        self.releases: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        """What letting go of a level's server does; nothing where none is given."""
        self.staying: dict[str, Exception] = {}
        """What is raised by those that will not unload."""
        self.going = asyncio.Event()
        self.going.set()
        self.closing: LevelUnavailable | None = None
        self.models: dict[str, Model] = {}
        self.failing: set[str] = set()
        self.faulty: set[str] = set()
        """Those whose load fails as no runtime should."""
        self.busy = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.ending = asyncio.Event()
        """Set where a load that is cancelled has ended at once."""
        self.ending.set()

    def footprint(self, settings: EmbeddedLevel) -> Mapping[str, int]:
        return {"ram": 1}

    def describe(self, settings: EmbeddedLevel) -> Description:
        return Description(settings.model, settings.context_tokens)

    def savings(self, settings: EmbeddedLevel) -> Sequence[Saving]:
        return ()

    def require(self) -> None: ...

    def apart(self, one: EmbeddedLevel, other: EmbeddedLevel) -> bool:
        return one.name != other.name

    def pids(self) -> tuple[int, ...]:
        return ()

    async def release(self, settings: EmbeddedLevel) -> None:
        try:
            if settings.name in self.releases:
                await self.releases[settings.name]()
        finally:
            self.released.add(settings.name)

    async def close(self) -> None:
        self.log.append("close")
        if self.closing is not None:
            raise self.closing

    async def load(self, settings: EmbeddedLevel, progress: Callable[[float], None]) -> Model:
        # Whatever was held before is let go of before anything is loaded.
        assert settings.name in self.released
        self.log.append(f"load {settings.name}")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.log.append(f"cancel {settings.name}")
            await self.ending.wait()
            self.log.append(f"cancelled {settings.name}")
            raise
        if settings.name in self.failing:
            raise LevelUnavailable(f"{settings.name}: no")
        if settings.name in self.faulty:
            raise RuntimeError("a fault")
        self.models[settings.name] = Model(self, settings.name)
        return self.models[settings.name]


class Told:
    """What the switcher reports."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.serving: list[str] = []
        self.load_s: dict[int, float | None] = {}
        self.reasons: dict[int, str] = {}
        self.deaths: dict[str, str] = {}
        self._changed = asyncio.Condition()

    def serves(self, level: str) -> None:
        self.serving.append(level)

    def switched(self, ticket: int, load_s: float | None = None) -> None:
        self.load_s[ticket] = load_s
        self._note("switched", ticket)

    def switch_failed(self, ticket: int, still_serving: str, reason: str) -> None:
        self.reasons[ticket] = reason
        self._note("failed", ticket, still_serving)

    def died(self, level: str, reason: str) -> None:
        self.deaths[level] = reason
        self._note("died", level)

    def note(self, event: ScalerEvent) -> None:
        self._note(event)

    def _note(self, *what: Any) -> None:
        self.log.append(what)
        asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, *what: Any) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: what in self.log)


class Stage:
    """A switcher, its runtime and its reports."""

    def __init__(
        self,
        queue_limit: int = 2,
        wait_s: float = 10.0,
        standby: Collection[str] = (),
        releases: Mapping[str, Callable[[], Coroutine[Any, Any, None]]] | None = None,
    ) -> None:
        self.runtime, self.told = Runtime(), Told()
        self.runtime.releases.update(releases or {})
        names = ("small", "medium", "large")
        settings = {n: EmbeddedLevel(name=n, model=Path(n), standby=n in standby) for n in names}
        levels = {name: (self.runtime, level) for name, level in settings.items()}
        self.switcher = Switcher(levels, self.told, queue_limit=queue_limit)
        ladder = Ladder([Level(name, {RAM: GIB * size}, 0.5, 1.0) for size, name in enumerate(names, 1)])
        # Decides nothing here, for it has no readings; but it is asked, and told how answers went.
        self.scaler = ProactiveScaler(ladder=ladder, policy=Policy(), monitor=ResourceMonitor(sensors=[]))
        self.events: list[Event] = []
        self.scaler.subscribe(self.events.append)
        self.ahead_s = 0.0
        self.relay = Relay(self.scaler, self.switcher, wait_s, lambda: time.monotonic() + self.ahead_s)
        self._ticket = 0

    def ask(self, dest: str, *, beside: bool = True, drain_s: float = 1e6, drain_tokens: int = 1000) -> int:
        self._ticket += 1
        decision = Decision(self._ticket, 0.0, "observe", "off", dest, "up", "", (), (), {}, None)
        self.switcher.request(Switch(self._ticket, dest, beside, drain_s, drain_tokens, decision))
        return self._ticket

    def hurry(self, dest: str, drain_s: float, drain_tokens: int) -> None:
        decision = Decision(self._ticket, 0.0, "observe", "off", dest, "up", "", (), (), {}, None)
        self.switcher.request(Switch(self._ticket, dest, True, drain_s, drain_tokens, decision))

    async def serve(self, dest: str) -> Model:
        await self.told.until("switched", self.ask(dest))
        return self.runtime.models[dest]

    async def answer(self, words: int, *, streamed: bool = True, **options: Any) -> tuple[str, dict[str, Any]]:
        """The level that ended it, and the choice."""
        request = {"messages": [{"role": "user", "content": "talk"}], "words": words, **options}
        level, whole = await collect(self.relay.answer(request, streamed=streamed))
        return level, whole["choices"][0]


class Switches(Protocol):
    """What a test that switches stands on."""

    switcher: Switcher


S = TypeVar("S", bound=Switches)


def with_its_own(make: Callable[[], S], test: Callable[[S], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs ``test`` with what ``make`` gives, its switcher started before and closed after."""

    def run() -> None:
        async def body() -> None:
            own = make()
            await own.switcher.start()
            try:
                await test(own)
            finally:
                await own.switcher.close()

        asyncio.run(body())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


Scene = Callable[[Stage], Coroutine[Any, Any, None]]


def on_stage(test: Scene, **conditions: Any) -> Callable[[], None]:
    """Runs ``test`` with a stage of its own; ``conditions`` are the stage's."""
    return with_its_own(partial(Stage, **conditions), test)


@on_stage
async def test_where_there_is_room_the_new_level_is_loaded_before_the_old_goes(stage: Stage) -> None:
    """No gap in service."""
    await stage.serve("small")
    await stage.serve("large")
    assert stage.runtime.log == ["load small", "load large", "unload small"]


@on_stage
async def test_where_there_is_none_the_old_level_goes_first_and_requests_wait(stage: Stage) -> None:
    """Memory is not exhausted by the switch itself, and nobody is refused."""
    small = await stage.serve("small")
    stage.runtime.gate.clear()
    ticket = stage.ask("large", beside=False)
    while "load large" not in stage.runtime.log:
        await asyncio.sleep(0)
    assert stage.runtime.log == ["load small", "unload small", "load large"]
    waiting = asyncio.create_task(stage.answer(0))
    while not stage.switcher.waiting:
        await asyncio.sleep(0)
    stage.runtime.gate.set()
    await stage.told.until("switched", ticket)
    assert (await waiting)[0] == "large"
    assert small.closed_answers == 0


@on_stage
async def test_a_running_answer_ends_by_itself_within_the_limits(stage: Stage) -> None:
    """Draining lets it finish whole."""
    small = await stage.serve("small")
    answer = asyncio.create_task(stage.answer(3))
    while not stage.switcher.answering:
        await asyncio.sleep(0)
    ticket = stage.ask("large", beside=False)
    for _ in range(3):
        small.more.release()
    _, choice = await answer
    assert choice["message"]["content"] == "small0 small1 small2 "
    assert choice["finish_reason"] == "stop"
    await stage.told.until("switched", ticket)


@on_stage
async def test_an_answer_that_uses_up_its_tokens_is_finished_by_the_next_level(stage: Stage) -> None:
    """One unbroken answer: every word once, in order."""
    small = await stage.serve("small")
    answer = asyncio.create_task(stage.answer(5))
    while not stage.switcher.answering:
        await asyncio.sleep(0)
    ticket = stage.ask("large", beside=False, drain_tokens=2)
    for _ in range(20):
        await asyncio.sleep(0)
    for _ in range(100):
        small.more.release()
    await stage.told.until("switched", ticket)
    for _ in range(100):
        stage.runtime.models["large"].more.release()
    level, choice = await answer
    assert level == "large"
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "small0 small1 large2 large3 large4 "
    assert small.closed_answers == 1
    (drained,) = [told[0] for told in stage.told.log if isinstance(told[0], Drained)]
    assert (drained.level, drained.answers, drained.handed_over) == ("small", 1, 1)


@on_stage
async def test_an_answer_that_stands_still_is_handed_over_when_its_time_is_up(stage: Stage) -> None:
    """A cut does not wait for the next token."""
    small = await stage.serve("small")
    small.more.release()
    answer = asyncio.create_task(stage.answer(2))
    while not stage.switcher.answering:
        await asyncio.sleep(0)
    ticket = stage.ask("large", drain_s=0.01)
    await stage.told.until("switched", ticket)
    stage.runtime.models["large"].more.release()
    assert (await answer)[1]["message"]["content"] == "small0 large1 "


@on_stage
async def test_a_hurried_drain_shrinks_the_limits_of_running_answers(stage: Stage) -> None:
    """Usage turned critical in the middle of a drain."""
    small = await stage.serve("small")
    small.more.release()
    answer = asyncio.create_task(stage.answer(2))
    while not stage.switcher.answering:
        await asyncio.sleep(0)
    ticket = stage.ask("medium", beside=False)
    for _ in range(20):
        await asyncio.sleep(0)
    assert stage.switcher.answering == 1
    stage.hurry("medium", 0.01, 5)
    await stage.told.until("switched", ticket)
    stage.runtime.models["medium"].more.release()
    assert (await answer)[1]["message"]["content"] == "small0 medium1 "


@on_stage
async def test_a_failed_load_beside_leaves_what_serves(stage: Stage) -> None:
    """The state can go back to it."""
    await stage.serve("small")
    stage.runtime.failing.add("large")
    await stage.told.until("failed", stage.ask("large"), "small")
    stage.runtime.models["small"].more.release()
    assert (await stage.answer(1))[0] == "small"


@on_stage
async def test_a_failed_load_after_unloading_says_that_nothing_serves(stage: Stage) -> None:
    """The machine must not believe in a level that is gone."""
    await stage.serve("small")
    stage.runtime.failing.add("large")
    await stage.told.until("failed", stage.ask("large", beside=False), "off")


@on_stage
async def test_a_later_switch_overtakes_a_load_in_progress(stage: Stage) -> None:
    """Pressure during a climb ends the climb."""
    await stage.serve("small")
    stage.runtime.gate.clear()
    first = stage.ask("large")
    while "load large" not in stage.runtime.log:
        await asyncio.sleep(0)
    second = stage.ask("small")
    await stage.told.until("switched", second)
    assert "cancel large" in stage.runtime.log
    assert ("switched", first) not in stage.told.log
    stage.runtime.models["small"].more.release()
    assert (await stage.answer(1))[0] == "small"


@on_stage
async def test_however_often_a_load_is_overtaken_it_has_ended_before_the_next_begins(stage: Stage) -> None:
    """Else there would be two models' processes at once, just when memory is short."""
    stage.runtime.gate.clear()
    stage.runtime.ending.clear()
    stage.ask("large")
    for dest, done in (("medium", "load large"), ("small", "cancel large"), ("medium", ""), ("small", "")):
        while done and done not in stage.runtime.log:
            await asyncio.sleep(0)
        ticket = stage.ask(dest)
        for _ in range(10):
            await asyncio.sleep(0)
    assert stage.runtime.log == ["load large", "cancel large"]
    stage.runtime.ending.set()
    stage.runtime.gate.set()
    await stage.told.until("switched", ticket)
    assert stage.runtime.log == ["load large", "cancel large", "cancelled large", "load small"]


@on_stage
async def test_going_back_in_the_middle_of_a_drain_opens_the_door_again(stage: Stage) -> None:
    """Nothing was unloaded, so nothing has to be loaded."""
    small = await stage.serve("small")
    answer = asyncio.create_task(stage.answer(1))
    while not stage.switcher.answering:
        await asyncio.sleep(0)
    stage.ask("large", beside=False)
    for _ in range(20):
        await asyncio.sleep(0)
    await stage.told.until("switched", stage.ask("small"))
    small.more.release()
    small.more.release()
    assert (await stage.answer(1))[0] == "small"
    await answer
    assert stage.runtime.log == ["load small"]


@on_stage
async def test_the_death_of_what_serves_is_told_and_closes_the_door(stage: Stage) -> None:
    """Nobody is served by a dead process."""
    small = await stage.serve("small")
    small.ended.set()
    await stage.told.until("died", "small")
    with pytest.raises(RequestTimedOut, match="because"):
        await stage.switcher.lease(0.01, lambda: "because")


@on_stage
async def test_the_queue_is_bounded(stage: Stage) -> None:
    """A clear error at once is better than an endless wait."""
    waiting = [asyncio.create_task(stage.answer(0)) for _ in range(2)]
    while stage.switcher.waiting < 2:
        await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="2 requests wait"):
        await stage.switcher.lease(10, lambda: "nothing serves")
    await stage.serve("small")
    assert [level for level, _ in await asyncio.gather(*waiting)] == ["small", "small"]


@on_stage
async def test_a_taker_that_leaves_frees_the_model(stage: Stage) -> None:
    """A client that hangs up must not hold a switch up."""
    small = await stage.serve("small")
    answer = asyncio.create_task(stage.answer(100))
    small.more.release()
    while not stage.switcher.answering:
        await asyncio.sleep(0)
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    await stage.serve("large")
    assert small.closed_answers == 1


@on_stage
async def test_off_unloads_everything(stage: Stage) -> None:
    """`off` means that nothing is loaded."""
    await stage.serve("small")
    await stage.told.until("switched", stage.ask("off", beside=False))
    assert stage.runtime.log[-1] == "unload small"


# -------------------------------------------------------------------- what was loaded before


async def raises() -> None:
    """A fault in a runtime."""
    raise RuntimeError("a header with a line break")


async def stays() -> None:
    """A server that does not do what it is told."""
    raise LevelUnavailable("large: told to sleep, the server is still awake; look at its log")


async def hangs() -> None:
    """A server that takes the request and does not answer."""
    await asyncio.Event().wait()


def test_what_cannot_be_let_go_of_keeps_no_level_from_being_served(caplog: pytest.LogCaptureFixture) -> None:
    """A fault in one runtime is in the log, and the switches are performed all the same."""

    @partial(on_stage, releases={"large": raises})
    async def body(stage: Stage) -> None:
        await stage.serve("small")
        await stage.serve("large")

    body()
    assert "large: letting go of what was loaded before scaler came failed" in caplog.text
    assert "a header with a line break" in caplog.text


def test_what_would_not_let_go_is_told_as_the_server_says_it(caplog: pytest.LogCaptureFixture) -> None:
    """It holds memory that `off` says is free; but it is no fault of scaler's, so that nobody needs a traceback."""

    @partial(on_stage, releases={"large": stays})
    async def body(stage: Stage) -> None:
        await stage.serve("small")

    body()
    (record,) = [record for record in caplog.records if record.name == switching.__name__]
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert record.getMessage().endswith(": large: told to sleep, the server is still awake; look at its log")


def test_a_server_that_does_not_answer_delays_the_first_switch_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is left alone at the end."""
    monkeypatch.setattr(switching, "RELEASE_S", 0.01)

    @partial(on_stage, releases={"large": hangs})
    async def body(stage: Stage) -> None:
        await stage.serve("small")
        assert "large" not in stage.runtime.released
        await stage.switcher.close()
        assert "large" in stage.runtime.released

    body()


def test_a_level_is_not_loaded_before_its_server_has_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to sleep before and late to obey, it would take the level away that serves by then."""
    monkeypatch.setattr(switching, "RELEASE_S", 0.01)
    obeys = asyncio.Event()

    async def late() -> None:
        await obeys.wait()

    @partial(on_stage, releases={"large": late})
    async def body(stage: Stage) -> None:
        await stage.serve("small")
        # That it is released by then, the runtime checks.
        first = stage.ask("large")
        for _ in range(20):
            await asyncio.sleep(0)
        assert stage.runtime.log == ["load small"]
        # One that is overtaken meanwhile breaks nothing off.
        await stage.told.until("switched", stage.ask("medium"))
        assert ("switched", first) not in stage.told.log
        second = stage.ask("large")
        obeys.set()
        await stage.told.until("switched", second)

    body()


def test_a_server_that_never_lets_go_is_loaded_from_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it can be used, the load finds out."""
    monkeypatch.setattr(switching, "RELEASE_S", 0.01)
    monkeypatch.setattr(switching, "RELEASE_ENDS_S", 0.05)

    @partial(on_stage, releases={"large": hangs})
    async def body(stage: Stage) -> None:
        await stage.serve("large")

    body()


# -------------------------------------------------------------------- what will not go


def unload_failures(stage: Stage) -> list[ScalerEvent]:
    return [told[0] for told in stage.told.log if isinstance(told[0], UnloadFailed)]


@on_stage
async def test_a_model_that_will_not_go_is_told_though_its_switch_was_overtaken(stage: Stage) -> None:
    """Nobody else would; and it is told to go again at the end, as often as that is asked for."""
    await stage.serve("small")
    stage.runtime.staying["small"] = LevelUnavailable("small: stays")
    stage.runtime.going.clear()
    first = stage.ask("medium")
    while "unload small" not in stage.runtime.log:
        await asyncio.sleep(0)
    stage.runtime.gate.clear()
    second = stage.ask("large")
    while "load large" not in stage.runtime.log:
        await asyncio.sleep(0)
    stage.runtime.going.set()
    await stage.told.until(UnloadFailed("small", "small: stays"))
    stage.runtime.gate.set()
    await stage.told.until("switched", second)
    assert ("switched", first) not in stage.told.log
    with pytest.raises(LevelUnavailable, match="small: stays"):
        await stage.switcher.close()
    # The others went all the same.
    assert stage.runtime.log[-3:] == ["unload large", "unload small", "close"]
    stage.runtime.staying.clear()
    for _ in range(2):
        await stage.switcher.close()
    assert stage.runtime.log.count("unload small") == 3
    assert len(unload_failures(stage)) == 1


@on_stage
async def test_a_model_that_will_not_go_fails_the_switch_that_waits_for_it(stage: Stage) -> None:
    """A fault in its runtime as well; the memory is not to be had. Who is in whose way is told, and what to do."""
    await stage.serve("small")
    stage.runtime.staying["small"] = RuntimeError("odd")
    ticket = stage.ask("large", beside=False)
    await stage.told.until("failed", ticket, "off")
    assert unload_failures(stage) == [UnloadFailed("small", "small: RuntimeError: odd")]
    assert stage.told.reasons[ticket] == (
        "large: not loaded, because small has to go first and will not (small: RuntimeError: odd); unload that by "
        "hand, or end the process that holds it"
    )
    assert "load large" not in stage.runtime.log
    stage.runtime.staying.clear()


@on_stage
async def test_a_model_that_will_not_go_is_not_loaded_a_second_time(stage: Stage) -> None:
    """What serves meanwhile goes on to serve."""
    await stage.serve("large")
    stage.runtime.staying["large"] = LevelUnavailable("large: stays")
    stage.runtime.going.clear()
    stage.ask("medium")
    while "unload large" not in stage.runtime.log:
        await asyncio.sleep(0)
    ticket = stage.ask("large")
    for _ in range(20):
        await asyncio.sleep(0)
    stage.runtime.going.set()
    await stage.told.until("failed", ticket, "medium")
    assert stage.told.reasons[ticket].startswith(
        "large: not loaded, because large has to go first and will not (large: stays)"
    )
    assert stage.runtime.log.count("load large") == 1
    stage.runtime.models["medium"].more.release()
    assert (await stage.answer(1))[0] == "medium"
    stage.runtime.staying.clear()


@partial(on_stage, standby=("medium",))
async def test_a_model_that_will_not_go_is_no_fault_of_the_level_that_serves_in_its_place(stage: Stage) -> None:
    """It would back off, and how long it takes to load would not be learnt; what is to stand by is loaded as well."""
    await stage.serve("small")
    stage.runtime.staying["small"] = LevelUnavailable("small: stays")
    ticket = stage.ask("large")
    await stage.told.until("switched", ticket)
    assert stage.told.load_s[ticket] is not None
    assert unload_failures(stage) == [UnloadFailed("small", "small: stays")]
    assert stage.switcher.loaded == ("large", "medium")
    stage.runtime.staying.clear()


@partial(on_stage, standby=("small",))
async def test_a_fault_in_loading_what_stands_by_is_not_blamed_on_what_serves(stage: Stage) -> None:
    """It serves, without anything beside it."""
    stage.runtime.faulty.add("small")
    ticket = stage.ask("large")
    await stage.told.until("switched", ticket)
    assert (StandbyLost("small", "small: RuntimeError: a fault"),) in stage.told.log
    assert stage.switcher.loaded == ("large",)


@partial(on_stage, standby=("small",))
async def test_a_step_down_to_what_stands_by_is_done_though_the_other_will_not_go(stage: Stage) -> None:
    """Then `off` as well: nothing serves."""
    await stage.serve("large")
    stage.runtime.staying["large"] = LevelUnavailable("large: stays")
    await stage.told.until("switched", stage.ask("small", beside=False))
    stage.runtime.staying["small"] = LevelUnavailable("small: stays")
    await stage.told.until("switched", stage.ask("off", beside=False))
    assert unload_failures(stage) == [UnloadFailed("large", "large: stays"), UnloadFailed("small", "small: stays")]
    assert stage.switcher.loaded == ()
    stage.runtime.staying.clear()


@on_stage
async def test_what_stays_of_a_dead_model_is_told_and_told_to_go_once_more(stage: Stage) -> None:
    """It holds memory that nobody uses."""
    small = await stage.serve("small")
    stage.runtime.staying["small"] = LevelUnavailable("small: stays")
    small.die()
    await stage.told.until(UnloadFailed("small", "small: stays"))
    assert stage.told.log.index(("died", "small")) < stage.told.log.index((UnloadFailed("small", "small: stays"),))
    with pytest.raises(LevelUnavailable, match="small: stays"):
        await stage.switcher.close()
    stage.runtime.staying.clear()
    await stage.switcher.close()
    assert stage.runtime.log.count("unload small") == 3


@on_stage
async def test_a_dead_model_has_gone_before_the_next_is_loaded(stage: Stage) -> None:
    """Its memory is not back before; its answers, which may hang, are not waited for."""
    small = await stage.serve("small")
    lease = await stage.switcher.lease(10, lambda: "testing")
    stage.runtime.going.clear()
    small.die()
    async with asyncio.timeout(10):
        while "unload small" not in stage.runtime.log:
            await asyncio.sleep(0)
    ticket = stage.ask("large", beside=False)
    for _ in range(20):
        await asyncio.sleep(0)
    assert stage.runtime.log == ["load small", "unload small"]
    stage.runtime.going.set()
    await stage.told.until("switched", ticket)
    assert not any(isinstance(told[0], Drained) for told in stage.told.log)
    lease.release()


@on_stage
async def test_the_end_waits_for_a_dead_model_to_go(stage: Stage) -> None:
    """Else nobody would hear that it stays."""
    small = await stage.serve("small")
    stage.runtime.staying["small"] = LevelUnavailable("small: stays")
    stage.runtime.going.clear()
    small.die()
    while "unload small" not in stage.runtime.log:
        await asyncio.sleep(0)
    closing = asyncio.create_task(stage.switcher.close())
    for _ in range(20):
        await asyncio.sleep(0)
    stage.runtime.going.set()
    with pytest.raises(LevelUnavailable, match="small: stays"):
        await closing
    stage.runtime.staying.clear()


@on_stage
async def test_at_the_end_every_model_is_told_to_go_and_every_failure_told(stage: Stage) -> None:
    """Then each runtime once, which may have loads to wait for that were given up."""
    await stage.serve("small")
    stage.runtime.staying["small"] = LevelUnavailable("small: stays")
    stage.runtime.closing = LevelUnavailable("large: still loading")
    with pytest.raises(LevelUnavailable, match=r"^small: stays\nlarge: still loading$"):
        await stage.switcher.close()
    assert stage.runtime.log == ["load small", "unload small", "close"]
    stage.runtime.staying.clear()
    stage.runtime.closing = None


def test_a_model_that_cannot_be_watched_any_more_counts_as_dead(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody would notice its end, and it would be said to serve for ever; what went wrong is in the log."""

    @on_stage
    async def watching(stage: Stage) -> None:
        small = await stage.serve("small")
        small.unwatchable = OSError(24, "Too many open files")
        small.die()
        await stage.told.until("died", "small")
        reason = "small: whether it runs cannot be told (OSError: [Errno 24] Too many open files)"
        assert stage.told.deaths == {"small": reason}
        while "unload small" not in stage.runtime.log:
            await asyncio.sleep(0)
        await stage.serve("small")

    watching()
    assert "watching small failed unexpectedly" in caplog.text
    assert "Traceback" in caplog.text
