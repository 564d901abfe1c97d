"""Notices with suggestions: in their order, complete where that is quick, and told in any case."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from scaler import advising
from scaler.advice import Advice, Suggestion
from scaler.advising import Adviser, Telling
from scaler.errors import ScalerError
from scaler.events import Advised, PersonTold
from scaler.levels import RAM, Ladder, Level
from scaler.notices import Notice, Notices
from scaler.readings import Survey
from scaler.sensors.programs import ProgramSurvey
from tests.decision.test_advice import scaler_with

LADDER = Ladder([Level("small", {RAM: 1}, 0.5, 1.0)])
DOWN = Notice("downgrade", "small", "large gives way to small")


class Slow(ProgramSurvey):
    """A look that takes as long as the test wants."""

    def __init__(self) -> None:
        self.taken = 0
        self.may_end = threading.Event()

    def take(self, *, gpus: bool, in_our_group: bool = False) -> Survey:
        self.taken += 1
        self.may_end.wait(60)
        return Survey()


class Prepared(Adviser):
    """Advice as the test has it."""

    def __init__(self, advice: Callable[[], Advice]) -> None:
        self._advice = advice

    async def advise(self, patience_s: float = 1.0) -> Advice:
        await asyncio.sleep(0)
        return self._advice()


def tell(adviser: Adviser, *notices: Notice) -> tuple[list[str], list[object]]:
    """What is told and noted of some notices that come at once."""
    told: list[str] = []
    noted: list[object] = []
    takers = Notices()
    takers.subscribe(lambda notice: told.append(notice.text))

    async def body() -> None:
        telling = Telling(takers, adviser, noted.append)
        await telling.start()
        for notice in notices:
            telling.take(notice)
        await asyncio.sleep(0)
        await telling.close()

    asyncio.run(body())
    return told, noted


def test_a_downgrade_ends_with_the_best_suggestion_and_the_order_stays() -> None:
    """A failure that comes after it is told after it, as it is."""
    suggestions = (Suggestion("closing firefox would do", "large", {}), Suggestion("another", "large", {}))
    adviser = Prepared(lambda: Advice("small", {}, None, (), suggestions, None))
    told, noted = tell(adviser, DOWN, Notice("failure", "large", "large died"))
    assert told == ["large gives way to small; closing firefox would do", "large died"]
    assert [type(event) for event in noted] == [Advised, PersonTold, PersonTold]


def test_a_downgrade_is_told_without_a_suggestion_where_there_is_none() -> None:
    """Why there is none stands in the journal."""
    told, noted = tell(Prepared(lambda: Advice("small", {}, None, (), (), "no program holds enough")), DOWN)
    assert told == [DOWN.text]
    assert isinstance(noted[0], Advised)
    assert noted[0].reason == "no program holds enough"


def test_for_what_is_not_told_again_nobody_looks() -> None:
    """Where levels come and go, each look would cost a quarter of a second, for a sentence that nobody gets."""
    advice = Advice("small", {}, None, (), (Suggestion("closing firefox would do", "large", {}),), None)
    told, noted = tell(Prepared(lambda: advice), DOWN, DOWN, DOWN)
    assert told == ["large gives way to small; closing firefox would do"]
    assert [type(event) for event in noted] == [Advised, PersonTold]


def test_a_look_that_hangs_or_fails_keeps_no_notice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told all the same, the log says why it is short, and only one thread hangs."""
    monkeypatch.setattr(advising, "PATIENCE_S", 0.02)
    slow = Slow()
    adviser = Adviser(scaler_with(0).room, slow, {}, LADDER, lambda: False)
    with caplog.at_level(logging.ERROR):
        told, _ = tell(adviser, DOWN, Notice("downgrade", "off", "small is unloaded"))
    slow.may_end.set()
    assert told == [DOWN.text, "small is unloaded"]
    assert slow.taken == 1
    assert "took more than 0.02 s" in caplog.text


def test_whoever_asks_is_told_that_it_takes_too_long() -> None:
    """And nothing waits for the end of it."""
    slow = Slow()
    adviser = Adviser(scaler_with(0).room, slow, {}, LADDER, lambda: False)
    with pytest.raises(ScalerError, match=r"took more than 0\.01 s"):
        asyncio.run(adviser.advise(0.01))
    slow.may_end.set()


def test_a_look_that_cannot_begin_is_told_and_the_next_one_begins() -> None:
    """No thread is to be had while memory is short; a moment later there is advice again, without a restart."""
    refusals = [RuntimeError("can't start new thread")]

    def aside(look: Callable[[], None]) -> None:
        if refusals:
            raise refusals.pop()
        advising.in_a_thread(look)

    slow = Slow()
    slow.may_end.set()
    adviser = Adviser(scaler_with(0).room, slow, {}, LADDER, lambda: False, aside)

    async def body() -> None:
        with pytest.raises(ScalerError, match="cannot begin: can't start new thread; try again"):
            await adviser.advise(10)
        assert (await adviser.advise(10)).state == "small"

    asyncio.run(body())
    assert slow.taken == 1
