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
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip(
        "the disk that runs full is a limit on the size of files, which Windows has not", allow_module_level=True
    )

from scaler import guards, manager, remembered, remembering
from scaler.assembly import Parts
from scaler.errors import LevelUnavailable, RequestTimedOut, ScalerError
from scaler.evidence import NEVER, Evidence
from scaler.guards import Verdict
from scaler.handoff import Splice
from scaler.machine import LevelMachine
from scaler.manager import ModelManager
from scaler.proactive import ProactiveScaler
from scaler.remembered import Remembered
from scaler.remembering import Remembering, parsed
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
    happened = ("switches", "failed switches", "upgrades", "deaths", "handed over", "outcome: whole")
    reread = (
        "reload: applied",
        "reload: refused",
        "levels known again",
        "kills of a manager",
        "damaged files put aside",
    )
    for what in (*happened, *reread):
        assert counted[what] > 0, f"no {what}"
    for place in ("load", "unload", "token", "chat", "count", "died", "release", "close", "sensor", "thread", "reload"):
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


def _roomy(evidence: Any, position: int, fits: Any = guards.fits_below_band) -> Verdict:
    """In place of the guard of that name: room is watched for no time."""
    found: Verdict = fits(evidence, position)
    limit = found.limit or 0.0
    return found._replace(holds=found.measured is not None and found.measured <= limit)


def _halfway(self: ModelManager, read: Any = ModelManager._read_anew) -> Any:
    """In place of `ModelManager._read_anew`: something of a configuration that is refused stays."""
    try:
        return read(self)
    except ScalerError:
        self._relay.wait_s += 1.0
        raise


async def _turn_away(self: Switcher, wait_s: float, why: Any, lease: Any = Switcher.lease, **more: Any) -> Any:
    """In place of `Switcher.lease`: who waits while the configuration changes is sent away."""
    levels = self._levels
    while True:
        try:
            return await lease(self, min(wait_s, 1.0), why, **more)
        except RequestTimedOut:
            wait_s -= 1.0
            if wait_s <= 0.0 or self._levels is not levels:
                raise


async def _drop(self: Switcher, wait_s: float, why: Any, lease: Any = Switcher.lease, **more: Any) -> Any:
    """In place of `Switcher.lease`: the same, with an error that names a level."""
    try:
        return await _turn_away(self, wait_s, why, lease, **more)
    except RequestTimedOut as error:
        raise LevelUnavailable(f"level0: it is not on the ladder any more; {error}") from error


def _stay(before: Parts, after: Parts) -> frozenset[str]:
    """In place of `kept`: every model stays, also one of other settings."""
    return frozenset(set(before.levels) & set(after.levels))


def _top(self: LevelMachine, before: LevelMachine) -> int:
    """In place of `LevelMachine._in_place_of`: the largest level takes the place of any."""
    return len(self.ladder) - 1


def _unpin(
    self: LevelMachine, before: LevelMachine, kept: Any, at_s: float, take_over: Any = LevelMachine.take_over
) -> None:
    """In place of `LevelMachine.take_over`: a pin goes to the smallest level in place of going."""
    take_over(self, before, kept, at_s)
    if before.pinned is not None and self.pinned is None:
        self.evidence.pinned = 0


def _pardon(self: Evidence, before: Evidence, kept: Any, take_over: Any = Evidence.take_over) -> None:
    """In place of `Evidence.take_over`: no level backs off any more."""
    take_over(self, before, kept)
    self.backoff_until_s = [NEVER] * len(self.ladder)


def _recall_nothing(self: ProactiveScaler, remembered: Any, marks: Any, boot: Any) -> None:
    """In place of `ProactiveScaler.recall`."""


def _excuse(
    self: ProactiveScaler, remembered: Remembered, marks: Any, boot: Any, recall: Any = ProactiveScaler.recall
) -> None:
    """In place of `ProactiveScaler.recall`: a crash counts against nothing."""
    recall(self, replace(remembered, ended=True), marks, boot)


def _long_ago(remembered: Remembered, boot: str | None, at_s: float, passed: Any = remembered.passed_s) -> float:
    """In place of `passed_s`: ten minutes more have passed than have."""
    found: float = passed(remembered, boot, at_s)
    return found + 600.0


def _note_nothing(self: Remembering, event: Any) -> None:
    """In place of `Remembering._take`: what happens is written when its time has come."""


def _in_place(path: Path, text: bytes) -> None:
    """In place of `_write`: the file itself is written, and is half of one on a full disk."""
    with path.open("wb") as file:
        file.write(text)


def _believe(self: Remembering) -> Any:
    """In place of `Remembering._read`: a damaged file is passed over in silence."""
    try:
        return parsed(self._path.read_bytes())
    except (OSError, ValueError):
        return None


def _same_marks(ladder: Any, settings: Any) -> dict[str, str]:
    """In place of `marks`: a level is known by its name, whatever is loaded for it."""
    return {name: name for name in ladder.names}


def _instead(of: Any, name: str, what: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(of, name, what)


BREAKS: list[tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = [
    (
        "forgets to unload",
        lambda patch: patch.setattr(Switcher, "_unload", _forget),
        "loaded beside|cannot have beside|still there|has use for",
    ),
    ("says tokens twice", lambda patch: patch.setattr(Splice, "next_request", _repeat), "was told|ended whole after"),
    ("reports too early", lambda patch: patch.setattr(Switcher, "_perform", _early), "settled at"),
    ("overhears a death", lambda patch: patch.setattr(ProactiveScaler, "died", _lose), "settled at"),
    (
        "waits for no dwell",
        lambda patch: patch.setitem(guards.GUARDS, "rested", guards.Guard("rested", "to", "", _rested)),
        "after the change before",
    ),
    (
        "watches room for no time",
        lambda patch: patch.setitem(
            guards.GUARDS, "fits_below_band", guards.Guard("fits_below_band", "to", "", _roomy)
        ),
        "room for it was watched",
    ),
    ("applies half of what it refuses", _instead(ModelManager, "_read_anew", _halfway), "the configuration in force"),
    ("turns away who waits at a reload", _instead(Switcher, "lease", _turn_away), "sent away early"),
    ("drops who waits at a reload", _instead(Switcher, "lease", _drop), "not gone"),
    ("keeps models of other settings", _instead(manager, "kept", _stay), "settled at|nobody has use"),
    ("climbs by a reload", _instead(LevelMachine, "_in_place_of", _top), "the reload climbs"),
    ("moves a pin", _instead(LevelMachine, "take_over", _unpin), "was pinned"),
    ("pardons by a reload", _instead(Evidence, "take_over", _pardon), "whose model stays"),
    ("remembers nothing", _instead(ProactiveScaler, "recall", _recall_nothing), "known"),
    ("excuses a crash", _instead(ProactiveScaler, "recall", _excuse), "is known|after a crash|told again"),
    ("takes time for longer", _instead(remembered, "passed_s", _long_ago), "is known as of"),
    ("writes what happens too late", _instead(Remembering, "_take", _note_nothing), "is not remembered yet"),
    ("tears the file", _instead(remembering, "_write", _in_place), "does not say what was written"),
    ("hides that the file is damaged", _instead(Remembering, "_read", _believe), "and said is"),
    ("takes another model for the same", _instead(manager, "marks", _same_marks), "nothing can be known"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("_", "plant", "what"), BREAKS, ids=[name for name, _, _ in BREAKS])
def test_what_is_broken_is_found_and_found_again_at_the_same_step(
    _: str, plant: Callable[[pytest.MonkeyPatch], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a few days; the command that it names plays it up to there."""
    plant(monkeypatch)
    for seed in range(DAYS):
        try:
            play(seed)
        except Violation as violation:
            found = str(violation)
            break
    else:
        pytest.fail(f"{DAYS} days went by, and nothing was found")
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
