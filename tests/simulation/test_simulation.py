"""Two hundred days hold what must hold; a seed plays the same day to the step; and what is broken is found."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip(
        "the disk that runs full is a limit on the size of files, which Windows has not", allow_module_level=True
    )

from scaler import guards
from scaler.guards import Verdict
from scaler.handoff import Splice
from scaler.proactive import ProactiveScaler
from scaler.switching import Switcher
from tests.simulation.__main__ import outcomes
from tests.simulation.day import play
from tests.simulation.figures import told
from tests.simulation.invariants import Violation
from tests.simulation.loop import Reached, VirtualLoop

DAYS = 200
PARTS = 4
"""The days are played in so many tests, for several processes to share them."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_that_must_hold_is_violated_on_two_hundred_days(part: int, figures: Callable[[str], None]) -> None:
    """Whatever goes wrong at whichever await."""
    counted, faults = Counter[str](), Counter[str]()
    violations: list[str] = []
    for outcome in outcomes(range(part, DAYS, PARTS), jobs=1):
        if isinstance(outcome, str):
            violations.append(outcome)
        else:
            counted += outcome.figures
            faults += outcome.faults
            counted["steps"] += outcome.steps
    figures("\n".join(told(counted, faults, len(violations))))
    assert not violations, "\n\n".join(violations)
    # Days on which nothing happened would prove nothing.
    assert counted["days"] == DAYS // PARTS
    for what in ("switches", "failed switches", "upgrades", "deaths", "handed over", "outcome: whole"):
        assert counted[what] > 0, f"no {what}"
    for place in ("load", "unload", "token", "chat", "count", "died", "release", "close", "sensor", "thread"):
        assert any(fault.startswith(f"{place} ") for fault in faults), f"no fault at {place}"


def test_a_seed_plays_the_same_day_to_the_step() -> None:
    """In this process and in another, whose sets and addresses are other ones."""
    here, again = play(3), play(3)
    assert (again.steps, again.trace, again.figures) == (here.steps, here.trace, here.figures)
    command = [sys.executable, "-m", "tests.simulation", "--seed", "3"]
    elsewhere = subprocess.check_output(command, text=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert elsewhere.splitlines()[-1] == f"seed 3: {here.steps} steps, trace {here.trace}"
    assert play(4).trace != here.trace


def test_a_day_is_played_up_to_a_step_and_no_further() -> None:
    """What happened last is shown then."""
    some = play(3, until=900)
    assert some.steps == 900
    assert some.trace == play(3, until=900).trace != play(3, until=901).trace
    assert some.tail == play(3, until=900).tail


async def _forget(self: Switcher, loaded: Any) -> None:
    """In place of `Switcher._unload`: nothing is unloaded."""
    loaded.watch.cancel()


def _repeat(
    self: Splice, ask: Callable[[Splice], dict[str, Any] | None] = Splice.next_request
) -> dict[str, Any] | None:
    """In place of `Splice.next_request`: the next level begins anew, and what was said is said twice."""
    asked = ask(self)
    return asked and {**asked, "messages": [*self._request["messages"]]}


def _early(self: Switcher, switch: Any, perform: Any = Switcher._perform) -> Any:
    """In place of `Switcher._perform`: it is reported as done before it is."""
    self._reports.switched(switch.ticket, None)
    return perform(self, switch)


def _lose(self: ProactiveScaler, level: str, reason: str) -> None:
    """In place of `ProactiveScaler.died`: nobody hears of it."""


def _rested(evidence: Any, position: int) -> Verdict:
    """In place of the guard of that name: there is no dwell."""
    return guards.ALLOWED


BREAKS: list[tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = [
    (
        "forgets to unload",
        lambda patch: patch.setattr(Switcher, "_unload", _forget),
        "loaded beside|still there|has use for",
    ),
    ("says tokens twice", lambda patch: patch.setattr(Splice, "next_request", _repeat), "was told"),
    ("reports too early", lambda patch: patch.setattr(Switcher, "_perform", _early), "settled at"),
    ("overhears a death", lambda patch: patch.setattr(ProactiveScaler, "died", _lose), "settled at"),
    (
        "waits for no dwell",
        lambda patch: patch.setitem(guards.GUARDS, "rested", guards.Guard("rested", "to", "", _rested)),
        "after the change before",
    ),
]


@pytest.mark.parametrize(("_", "plant", "what"), BREAKS, ids=[name for name, _, _ in BREAKS])
def test_what_is_broken_is_found_and_found_again_at_the_same_step(
    _: str, plant: Callable[[pytest.MonkeyPatch], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a few days; the command that it names plays it up to there."""
    plant(monkeypatch)
    for seed in range(60):
        try:
            play(seed)
        except Violation as violation:
            found = str(violation)
            break
    else:
        pytest.fail("sixty days went by, and nothing was found")
    assert re.search(what, found.splitlines()[0]), found
    with pytest.raises(Violation) as again:
        play(seed)
    assert str(again.value) == found
    named = re.search(r"python -m tests\.simulation --seed (\d+) --until (\d+)$", found)
    assert named is not None
    assert int(named[1]) == seed
    before = play(seed, until=int(named[2]) - 1)
    assert before.steps == int(named[2]) - 1


def test_virtual_time_goes_on_without_waiting_and_callbacks_keep_their_order() -> None:
    """As asyncio promises them; a hundred days take no time."""
    loop, called = VirtualLoop(random.Random(1), disorder=1.0), list[int]()
    began = loop.time()

    async def wait() -> None:
        for number in range(5):
            loop.call_soon(called.append, number)
        await asyncio.sleep(8_640_000)

    loop.run_until_complete(wait())
    loop.close()
    assert called == [0, 1, 2, 3, 4]
    assert loop.time() == began + 8_640_000


def test_tasks_that_are_ready_take_their_steps_in_the_order_of_the_seed() -> None:
    """Every order is possible, and each seed has its own."""

    def order(seed: int) -> tuple[int, ...]:
        loop, steps = VirtualLoop(random.Random(seed), disorder=1.0), list[int]()

        async def step(number: int) -> None:
            steps.append(number)

        async def all_of_them() -> None:
            await asyncio.gather(*(step(number) for number in range(3)))

        loop.run_until_complete(all_of_them())
        loop.close()
        return tuple(steps)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(100)}) == 6


def test_who_waits_for_what_never_comes_is_told_so() -> None:
    """A day that cannot end says so in place of hanging."""
    loop = VirtualLoop(random.Random(1))
    with pytest.raises(RuntimeError, match="somebody waits"):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_it_stops_before_the_step_that_was_asked_for() -> None:
    """The step itself is the one to look into."""
    loop = VirtualLoop(random.Random(1), until=2)

    async def steps() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    with pytest.raises(Reached):
        loop.run_until_complete(steps())
    assert loop.steps == 2
    loop.leave()
