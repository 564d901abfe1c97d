"""Notices: what a person is told of an event, which kinds, and how often."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.events import DecisionMade, Hurried, ModelDied, PinChanged, SwitchDone, SwitchFailed, UnloadFailed
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.machine import Decision, Direction, Switch
from scaler.notices import QUIET_S, Notice, Notices, notice_of

LADDER = Ladder([Level(name, {RAM: size * GIB}, 0.5, 1.0) for size, name in enumerate(("small", "medium", "large"), 1)])
WHY = "usage at large is 85 % of 16 GiB, the limit is 80 %"


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def decided(source: str, dest: str, trigger: str = "observe") -> DecisionMade:
    """A decision for the reason ``WHY``."""
    direction: Direction = "up" if LADDER.index(dest) > LADDER.index(source) else "down"
    decision = Decision(1, 0.0, trigger, source, dest, direction, WHY, (WHY,), (), {}, None)
    return DecisionMade(Switch(1, dest, True, 1.0, 1, decision), 0.0)


@pytest.mark.parametrize(
    ("event", "kind", "level", "text"),
    [
        (
            decided("large", "medium"),
            "downgrade",
            "medium",
            f"large gives way to medium: {WHY}; large comes back once it has fitted for at least 300 s",
        ),
        (
            decided("large", "medium", "degrade"),
            "downgrade",
            "medium",
            f"large gives way to medium: {WHY}; large comes back once it has fitted for at least 300 s",
        ),
        (
            decided("large", "off"),
            "downgrade",
            "off",
            f"large is unloaded and nothing serves: {WHY}; small comes back as soon as there is room for it, "
            "large once it has fitted for at least 300 s",
        ),
        (
            decided("small", "off"),
            "downgrade",
            "off",
            f"small is unloaded and nothing serves: {WHY}; small comes back as soon as there is room for it",
        ),
        (decided("medium", "large"), "upgrade", "large", f"medium makes way for large: {WHY}"),
        (
            SwitchFailed(1, "large", "small", "large: a.gguf: truncated"),
            "failure",
            "large",
            "large could not be loaded, small still serves: large: a.gguf: truncated; "
            "large is tried again after a pause that doubles with each failure in a row",
        ),
        (
            SwitchFailed(1, "small", "off", "no such file"),
            "failure",
            "small",
            "small could not be loaded, nothing serves: no such file; "
            "small is tried again after a pause that doubles with each failure in a row",
        ),
        (
            UnloadFailed("large", "large: LM Studio says no"),
            "failure",
            "large",
            "large will not unload and keeps its memory: large: LM Studio says no; "
            "unload it by hand, or end the process that holds it",
        ),
        (
            ModelDied("large", "killed by signal 9"),
            "failure",
            "large",
            "large died: killed by signal 9; "
            "large is tried again after a pause that doubles with each failure in a row",
        ),
    ],
)
def test_a_notice_says_what_why_and_what_brings_it_back(event: object, kind: str, level: str, text: str) -> None:
    """Nobody has to ask further."""
    notice = notice_of(event, LADDER, 300.0)
    assert notice is not None
    assert (notice.kind, notice.level, notice.text, notice.times) == (kind, level, text, 1)


@pytest.mark.parametrize(
    "event",
    [
        decided("off", "small"),
        decided("large", "small", "pin"),
        decided("large", "off", "died"),
        decided("large", "small", "switch_failed"),
        Hurried(decided("large", "small").switch),
        SwitchDone(1, "large", "small", 1.0, 0.5),
        PinChanged("small"),
        object(),
    ],
    ids=lambda event: type(event).__name__,
)
def test_most_events_are_no_news_for_a_person(event: object) -> None:
    """A first load is what they asked for, a pin is their own, and a failure is told once."""
    assert notice_of(event, LADDER, 300.0) is None


def test_upgrades_are_silent_unless_they_were_asked_for() -> None:
    """The rest is told either way."""
    every = [Notice("downgrade", "a", "x"), Notice("upgrade", "b", "y"), Notice("failure", "b", "z")]
    for upgrades, told in ((False, [every[0], every[2]]), (True, every)):
        seen: list[Notice] = []
        notices = Notices(upgrades=upgrades)
        notices.subscribe(seen.append)
        for notice in every:
            notices.tell(notice)
        assert seen == told


def test_the_same_is_told_once_a_minute_and_then_with_the_count() -> None:
    """Flapping would otherwise be a flood; that it flapped is said."""
    clock, seen = Clock(), list[Notice]()
    notices = Notices(clock=clock)
    notices.subscribe(seen.append)
    for after_s in (0, 20, 20, 61, 30, 7200, 60):
        clock.now_s += after_s
        notices.tell(Notice("downgrade", "small", "large gives way"))
        notices.tell(Notice("failure", "small", "small died"))
    texts = [notice.text for notice in seen if notice.kind == "downgrade"]
    assert texts == [
        "large gives way",
        "large gives way (again, 3 times within the last 2 min)",
        "large gives way (again, 2 times within the last 3 h)",
        "large gives way",
    ]
    assert [notice.times for notice in seen if notice.kind == "failure"] == [1, 3, 2, 1]


happenings = st.lists(
    st.tuples(st.integers(1, 200), st.sampled_from(["downgrade", "failure"]), st.sampled_from(["small", "large"])),
    max_size=60,
)


@given(happenings)
def test_nothing_is_told_twice_a_minute_and_nothing_is_forgotten(happenings: list[tuple[int, str, str]]) -> None:
    """Whatever comes when: the same is told a minute apart, the first at once, and the counts add up."""
    clock, told = Clock(), list[tuple[float, Notice]]()
    notices = Notices(clock=clock)
    notices.subscribe(lambda notice: told.append((clock.now_s, notice)))
    happened: dict[tuple[str, str], list[float]] = {}
    for after_s, kind, level in happenings:
        clock.now_s += after_s
        notices.tell(Notice(kind, level, "x"))  # type: ignore[arg-type]  # one of the kinds
        happened.setdefault((kind, level), []).append(clock.now_s)
    for same, at in happened.items():
        mine = [(at_s, notice) for at_s, notice in told if (notice.kind, notice.level) == same]
        assert mine[0][0] == at[0]
        for (before_s, _), (now_s, notice) in pairwise(mine):
            assert now_s - before_s >= QUIET_S
            assert notice.times == sum(before_s < when <= now_s for when in at)
            assert ("again" in notice.text) == (notice.times > 1)
        withheld = len(at) - sum(notice.times for _, notice in mine)
        assert withheld == sum(when - mine[-1][0] < QUIET_S for when in at if when >= mine[-1][0]) - 1


def test_a_taker_that_raises_is_logged_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's fault stays theirs."""
    notices, seen = Notices(), list[Notice]()

    def fail(_: Notice) -> None:
        raise ValueError("broken pipe")

    notices.subscribe(fail)
    leave = notices.subscribe(seen.append)
    with caplog.at_level(logging.ERROR):
        notices.tell(Notice("failure", "large", "large died"))
    assert len(seen) == 1
    assert "a taker of notices failed on: large died" in caplog.text
    assert "broken pipe" in caplog.text
    leave()
    leave()
    notices.tell(Notice("failure", "small", "small died"))
    assert len(seen) == 1
