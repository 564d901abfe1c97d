"""While a switch goes on, the decision knows what serves, and a request is judged by the level that answers it.

The real decision over real effects, with a runtime that does as the test says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scaler.answering import Chunk, collect
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB, OFF, RAM, Ladder, Level
from scaler.monitor import ResourceMonitor
from scaler.policy import Policy
from scaler.proactive import ProactiveScaler
from scaler.readings import Memory, Reading
from scaler.relaying import Relay
from scaler.switching import Switcher
from tests.effects.test_switching import Runtime, with_its_own

TOTAL_GIB = 16
TAKES_GIB = {"small": 1, "medium": 2, "large": 8}
HURRIED_S = 2.0
"""A tenth of the drain limit."""


class House:
    """16 GiB, of which others use what the test says."""

    def __init__(self) -> None:
        self.now_s, self.runtime = 1000.0, Runtime()
        ladder = Ladder([Level(name, {RAM: size * GIB}, size / 8, 1.0) for name, size in TAKES_GIB.items()])
        monitor = ResourceMonitor(sensors=[])
        self.scaler = ProactiveScaler(ladder=ladder, policy=Policy(), monitor=monitor, clock=lambda: self.now_s)
        levels = {name: (self.runtime, EmbeddedLevel(name=name, model=Path(name))) for name in TAKES_GIB}
        self.switcher = Switcher(levels, self.scaler, queue_limit=9)
        self.scaler.on_enter(self.switcher.request)
        self.relay = Relay(self.scaler, self.switcher, 10.0)

    def read(self, other_gib: float, own_gib: float, seconds: int = 1) -> None:
        """One reading a second."""
        for _ in range(seconds):
            self.now_s += 1
            free = TOTAL_GIB - other_gib - own_gib
            memory = Memory(TOTAL_GIB * GIB, int(free * GIB))
            self.scaler.observe(Reading(self.now_s, memory=memory, own_bytes=int(own_gib * GIB)))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Let the effects go on."""
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0)

    async def settled(self) -> None:
        """Let the effects go on to the end of the switch."""
        await self.until(lambda: self.scaler.status().settled)

    async def climbed(self) -> None:
        """To large, with all the time in the world."""
        self.read(2, 0)
        await self.settled()
        self.read(2, 1, 320)
        await self.settled()
        assert self.scaler.status().serving == "large"

    async def asked_of(self, level: str, words: int) -> asyncio.Task[Chunk]:
        """An answer that ``level`` has begun."""
        answer = self.asked(words)
        await self.until(lambda: level in self.runtime.models and bool(self.runtime.models[level].asked))
        return answer

    def asked(self, words: int) -> asyncio.Task[Chunk]:
        """A request."""
        request: dict[str, Any] = {"messages": [{"role": "user", "content": "talk"}], "words": words}
        return asyncio.create_task(collect(self.relay.answer(request)))

    def let_speak(self) -> None:
        """Let every model say all."""
        for model in self.runtime.models.values():
            for _ in range(20):
                model.more.release()


in_house = partial(with_its_own, House)


@in_house
async def test_what_serves_is_known_while_the_one_before_drains(house: House) -> None:
    """For as long as its last answer runs it would else be named, and judged, in place of the one that answers."""
    house.read(2, 0)
    await house.settled()
    house.read(2, 1, 299)
    answer = await house.asked_of("small", 5)
    house.read(2, 1, 30)
    await house.until(lambda: house.switcher.loaded == ("large",))
    status = house.scaler.status()
    assert (status.state, status.serving, status.settled) == ("large", "large", False)
    assert house.scaler.check_preflight_resources().action == "serve"
    # The end of what drains is not that of what serves.
    house.let_speak()
    await answer
    await house.settled()


@in_house
async def test_answers_of_a_climb_not_yet_done_are_hurried_when_nothing_is_left(house: House) -> None:
    """The step down that overtakes it is judged by the larger level, which is there already."""
    house.read(2, 0)
    await house.settled()
    house.read(2, 1, 299)
    await house.asked_of("small", 5)
    house.read(2, 1, 30)
    await house.until(lambda: house.switcher.loaded == ("large",))
    house.read(6.98, 9, 6)
    switch = house.scaler.status().last_decision
    assert switch is not None
    assert (switch.source, switch.dest) == ("large", "medium")
    performed = house.scaler._machine.switch
    assert performed is not None
    assert performed.drain_s <= HURRIED_S


@in_house
async def test_what_still_drains_counts_though_a_smaller_level_serves(house: House) -> None:
    """Its memory is in use until it has gone: usage that turns critical meanwhile hurries it."""
    await house.climbed()
    answer = await house.asked_of("large", 5)
    house.read(5.0, 8, 6)
    await house.until(lambda: house.switcher.loaded == ("medium",))
    status = house.scaler.status()
    assert (status.serving, status.settled) == ("medium", False)
    performed = house.scaler._machine.switch
    assert performed is not None
    assert performed.drain_s > HURRIED_S
    house.read(5.3, 10)
    performed = house.scaler._machine.switch
    assert performed is not None
    assert performed.drain_s == HURRIED_S
    house.let_speak()
    await answer


@pytest.mark.parametrize(("other_gib", "seconds"), [(5.5, 6), (7.3, 1), (7.95, 4)])
def test_a_request_that_waits_for_the_next_level_is_not_cut_to_the_budget_of_the_one_before(
    other_gib: float, seconds: int
) -> None:
    """Over the limit, critical, exhausted: the new level has room, and the answer all of it."""

    @in_house
    async def test(house: House) -> None:
        await house.climbed()
        house.runtime.gate.clear()
        house.read(other_gib, 8, seconds)
        await house.until(lambda: not house.switcher.loaded)
        assert house.scaler.status().serving == OFF
        answer = house.asked(5)
        await house.until(lambda: house.switcher.waiting == 1)
        house.runtime.gate.set()
        await house.settled()
        house.let_speak()
        level, whole = await answer
        assert level == house.scaler.status().serving
        assert "max_tokens" not in house.runtime.models[level].asked
        assert "chat_template_kwargs" not in house.runtime.models[level].asked
        assert whole["choices"][0]["finish_reason"] == "stop"

    test()


@in_house
async def test_a_new_answer_at_the_level_that_gives_way_gets_its_budget(house: House) -> None:
    """So that it may end where it began, within the limits."""
    await house.climbed()
    house.runtime.gate.clear()
    house.read(5.0, 8, 6)
    assert house.scaler.check_preflight_resources().action == "shorten"
    answer = await house.asked_of("large", 2)
    assert house.runtime.models["large"].asked["max_tokens"] == Policy().drain_tokens
    house.let_speak()
    assert (await answer).level == "large"
    house.runtime.gate.set()
    await house.settled()


@in_house
async def test_a_request_that_is_still_being_fitted_holds_up_no_switch(house: House) -> None:
    """A server that hangs is slow to count, too; the next level takes the request."""
    await house.climbed()
    counting, never = asyncio.Event(), asyncio.Event()

    async def hang(request: object) -> int:
        counting.set()
        await never.wait()
        return 1

    setattr(house.runtime.models["large"], "count_tokens", hang)  # noqa: B010  # a method, as mypy has it
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "talk"}], "words": 2, "tools": [10**6]}
    answer = asyncio.create_task(collect(house.relay.answer(request)))
    await asyncio.wait_for(counting.wait(), 10)
    # Nothing is left, so that nobody is waited for.
    house.read(7.95, 8, 4)
    await house.settled()
    assert "unload large" in house.runtime.log
    house.let_speak()
    assert (await answer).level != "large"
