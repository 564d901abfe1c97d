"""One simulated day of a seed: a machine, a ladder, a policy, people and faults, from the first second to the last."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import scaler.manager
from scaler.assembly import Parts
from scaler.errors import LevelUnavailable, PinRefused
from scaler.events import DecisionMade
from scaler.journal import JournalError, Writer, read, record_of
from scaler.levels import GIB, RAM, Ladder
from scaler.machine import LevelMachine, Switch
from scaler.manager import ModelManager
from scaler.policy import Policy
from scaler.proactive import ProactiveScaler
from scaler.remembered import recall
from scaler.remembering import EVERY_S
from scaler.surroundings import Surroundings
from tests.simulation.configuration import MODELS, Configuration
from tests.simulation.faults import Faults
from tests.simulation.ground import Disk, OneLoop, SteppedMonitor
from tests.simulation.invariants import REMEMBERING, SELDOM_S, Violation, Watcher
from tests.simulation.loop import BEGIN_S, Reached, VirtualLoop
from tests.simulation.machine import GPU, Machine, SimulatedSurvey
from tests.simulation.people import People
from tests.simulation.runtime import SimulatedRuntime

DAY_S = 86400.0
IDLE_S = {90.0: 85.0, 10.0: 240.0}
"""The time between readings outside of the busy hours, in which next to nobody asks, by the day's ``stale_after_s``."""
MEMORY = Path("/dev/shm")
"""Where files are kept that need not outlive anything, for days to take less time."""
REMEMBERED = "remembered.json"
BUSY_S = 1800.0
"""How much of a day is busy, on average."""
EPOCH_S = 1_750_000_000.0
INPUTS = ("observe", "serves", "switched", "switch_failed", "died", "answered", "degrade", "want", "pin", "unpin")
"""What a `LevelMachine` is told; everything that it decides follows from that."""
WRITER = Writer("simulated", 1)
"""Who the journal says has decided: the same on any machine."""
Told = tuple[str, tuple[Any, ...], dict[str, Any]]
"""One input, with what it brings."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a day: its figures, the faults that were injected, its steps and their digest."""

    seed: int
    steps: int
    trace: str
    figures: Counter[str]
    faults: Counter[str]
    tail: tuple[str, ...] = ()


@contextmanager
def _undisturbed(watcher: Watcher, disk: Disk) -> Iterator[None]:
    """The garbage collector comes by at the end only, what is logged goes to the watcher, and files to the disk."""
    log = logging.getLogger("scaler")
    before, propagates = log.level, log.propagate
    log.setLevel(logging.ERROR)
    log.propagate = False
    log.addHandler(watcher)
    REMEMBERING.setLevel(logging.WARNING)
    gc.disable()
    try:
        # No power cut is outlived here, so that nothing has to reach the real disk.
        with patch.object(scaler.manager, "Remembering", disk.remembers), patch.object(os, "fsync", lambda _: None):
            yield
    finally:
        gc.enable()
        log.removeHandler(watcher)
        REMEMBERING.setLevel(logging.NOTSET)
        log.setLevel(before)
        log.propagate = propagates


def play(seed: int, *, until: int | None = None) -> Outcome:
    """Play the day of a seed. Raises Violation; stops before step ``until``, if that is given."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        day = _Day(seed, Path(folder), until)
        with _undisturbed(day.watcher, day.disk):
            try:
                with suppress(Reached):
                    day.pass_by()
                return day.outcome()
            finally:
                day.leave()


class _Day:
    def __init__(self, seed: int, folder: Path, until: int | None) -> None:
        def dice(of: str) -> random.Random:
            return random.Random(f"{seed} {of}")

        self.dice = plan = dice("plan")
        self.loop = VirtualLoop(dice("order"), disorder=plan.choice([0.0, 0.1, 0.3]), until=until)
        self.faults = Faults(dice("faults"), plan.choice([0.0, 0.02, 0.1, 0.3]), lambda what: self.watcher.say(what))
        self.disk = Disk(dice("disk"), self.faults, self.loop)
        self.watcher = Watcher(self.loop, self.disk, seed)
        self.loop.late = lambda: self.faults.lateness_s() if self.faults.draw("thread", ("late",)) else 0.001
        gpu = plan.random() < 0.3
        self.machine = Machine(dice("machine"), self.loop.time, self.faults, gpu=gpu)
        self.configuration = Configuration(dice("people"), folder, self.machine.total, self.faults)
        self.disk.every_s = lambda: EVERY_S if self.pace_s() == self.interval_s else SELDOM_S
        self.disk.tells_boots = plan.random() < 0.8
        self.wall_ahead_s = EPOCH_S
        self.interval_s = plan.choice([2.0, 3.0, 4.0])
        self.stale_after_s = plan.choice(list(IDLE_S))
        self.idle_s = IDLE_S[self.stale_after_s]
        self.windows = self._windows()
        self.folder = folder
        self._damaged: bytes | None = None
        """What the file of what is remembered says now, if nobody can read it."""
        self.checked = plan.random() < 0.25
        """Whether what the machine is told is kept, and played again at the end."""
        self._seeded = dice

    def outcome(self) -> Outcome:
        """What has come of it so far."""
        loop, watcher = self.loop, self.watcher
        return Outcome(watcher.seed, loop.steps, loop.trace, watcher.figures, self.faults.injected, tuple(watcher.tail))

    def leave(self) -> None:
        """Let go of what a day that was broken off has left behind."""
        self.faults.over = True
        self.loop.leave()
        self.disk.close()

    # ---------------------------------------------------------------- what the day is like

    def _windows(self) -> list[tuple[float, float]]:
        dice, number = self.dice, self.dice.randint(2, 6)
        begins = sorted(dice.uniform(BEGIN_S, BEGIN_S + DAY_S) for _ in range(number))
        return [(begin, begin + dice.uniform(0.5, 1.5) * BUSY_S / number) for begin in begins]

    def pace_s(self) -> float:
        """For how long until the next reading."""
        now = self.loop.time()
        if any(begin <= now < end for begin, end in self.windows):
            return self.interval_s
        begins = min((begin for begin, _ in self.windows if begin > now), default=now + self.idle_s)
        return min(self.idle_s, begins - now) or self.interval_s

    def wall_s(self) -> float:
        """What the wall clock says; it is set at times."""
        return self.wall_ahead_s + self.loop.time()

    def _document(self) -> dict[str, Any]:
        """The configuration that the day begins with."""
        dice, total = self.dice, self.machine.total
        number = dice.choice([1, 2, 3, 3, 4])
        parts = sorted([dice.uniform(0.03, 0.2), *(dice.uniform(0.1, 0.65) for _ in range(number - 1))])
        stands_by = dice.random() < 0.3
        levels = [
            {
                "name": f"level{position}",
                "model": MODELS[0],
                "quality": (position + 1) / number,
                "ram_gib": part * total[RAM] / GIB * (0.3 if GPU in total else 1.0),
                "vram_gib": part * total[GPU] / GIB if GPU in total else 0.0,
                "load_s": dice.uniform(1.0, 30.0),
                "load_timeout_s": 120.0,
                "standby": stands_by and position == 0 and number > 1,
                "parallel": dice.randint(1, 4),
            }
            for position, part in enumerate(parts)
        ]
        names = [level["name"] for level in levels]
        return {
            "ladder": levels,
            "queue": {"limit": dice.randint(2, 32), "wait_s": dice.choice([5.0, 30.0, 120.0])},
            "monitor": {"interval_s": self.interval_s},
            "journal": {"path": "journal.jsonl", "max_mib": dice.choice([0.05, 5.0]), "files": dice.choice([1, 5])},
            "remembered": {"path": REMEMBERED},
            "policy": {
                "dwell_s": dice.choice([30.0, 300.0, 300.0]),
                "stale_after_s": self.stale_after_s,
                "drain_seconds": dice.choice([0.0, 5.0, 20.0]),
                "drain_tokens": dice.choice([0, 8, 256]),
                "band": dice.choice([0.035, 0.1]),
                "max_level": dice.choice([None, None, dice.choice(names)]),
                "battery_max_level": dice.choice([None, names[0]]),
                "throttled_max_level": dice.choice([None, names[0]]),
            },
        }

    # ---------------------------------------------------------------- its course

    def pass_by(self) -> None:
        """From the first second to the last."""
        self.configuration.begin(self._document())
        end_s = BEGIN_S + DAY_S
        restarts = sorted(self.dice.uniform(BEGIN_S, end_s) for _ in range(self.dice.choice([0, 0, 0, 1, 2])))
        # Half of the lives end while somebody asks.
        ends = [self.dice.choice(self.windows)[0] + self.dice.uniform(1, 300) if self.dice.random() < 0.5 else at
                for at in restarts]  # fmt: skip
        for until_s in sorted(ends):
            self._live(until_s, killed=self.dice.random() < 0.5)
            self._leave_alone()
        self._live(end_s, killed=False)
        if self.loop.broken is not None:
            raise self.loop.broken
        self._check_journal()
        self.watcher.figures["days"] += 1
        self.watcher.figures["kernel kills"] += self.machine.kills

    def _leave_alone(self) -> None:
        """What becomes of the machine, and of what is remembered, until the next manager starts."""
        dice, disk = self.dice, self.disk
        if dice.random() < 0.3:
            since_s = dice.uniform(5.0, 120.0)
            self.loop.sleep_through(dice.choice([0.0, 60.0, 4 * 3600.0]) + since_s)
            disk.start, disk.booted_s = disk.start + 1, self.loop.time() - since_s
            self.watcher.say("the machine was started anew")
        if dice.random() < 0.3:
            self._set_clock()
        if dice.random() < 0.3:
            self.configuration.edit()
        if not disk.known:
            return
        file, whole = self.folder / REMEMBERED, disk.known[-1].text
        fate = dice.choice([None, None, None, None, "torn", "rubbish", "gone", "stale"])
        match fate:
            case "torn":
                self._damaged = whole[: dice.randrange(len(whole))]
            case "rubbish":
                self._damaged = dice.choice([b"\0" * 500, b"[]", b"{}", whole.replace(b'"state"', b'"stage"')])
            case "gone":
                file.unlink()
            case "stale":
                # Somebody has put back a copy of theirs.
                disk.known = disk.known[:1]
                file.write_bytes(disk.known[0].text)
        if self._damaged is not None:
            file.write_bytes(self._damaged)
        if self._damaged is not None or fate == "gone":
            disk.known = []
        if fate is not None:
            self.faults.note(f"remembered {fate}")

    def _live(self, until_s: float, *, killed: bool) -> None:
        """One manager, from its start to its shutdown, or until it is killed."""
        loop, watcher, dice, configuration = self.loop, self.watcher, self.dice, self.configuration
        # Whoever starts it again sees what is wrong with it.
        configuration.mend()
        apart = dice.random() < 0.8 or configuration.wants_standby
        runtime = SimulatedRuntime(random.Random(dice.random()), self.faults, watcher.say, apart=apart)
        self._runtime = configuration.runtime = runtime
        self.machine.ours, self.machine.kill = (lambda: runtime.held), runtime.kill
        effects = OneLoop(loop)
        # Before it can be overheard: a manager loads nothing until it is asked.
        told: list[Told] = [("want", (False,), {})]
        watcher.say("a manager starts")
        known = self.disk.known[-1] if self.disk.known else None
        damaged, self._damaged = self._damaged, None
        watcher.warned.clear()
        manager = ModelManager(
            configuration.path,
            sensors=lambda _: self.machine.sensors(),
            on_notice=self._notice,
            remember=True,
            surroundings=Surroundings(
                put_together=configuration.put_together,
                clock=self.disk.clock,
                wall_clock=self.wall_s,
                effects=lambda _: effects,
                monitor=partial(SteppedMonitor, loop, self.pace_s, self._after_reading),
                journal=self.disk.journal,
                survey=lambda _: SimulatedSurvey(self.machine),
                aside=self._aside,
                writer=WRITER,
            ),
        )
        if self.checked:
            _overhear(manager.scaler, told)
        parts = configuration.read[-1]
        watcher.begin(manager, runtime, configuration, self.pace_s)
        watcher.recalls(known, damaged)
        remembering = self.disk.remembering
        assert remembering is not None
        remembering.parts = lambda: watcher.parts
        if remembering.recalled is not None:
            told.insert(0, ("recall", remembering.recalled, {}))
        decided = len(watcher.decisions)
        people = People(random.Random(dice.random()), loop, manager, runtime, configuration, watcher)
        loop.run_until_complete(self._course(people, until_s))
        people.leaving = True
        watcher.ends(killed=killed)
        if killed:
            # What is told of the models' end when its loop is taken down, nobody hears who is killed.
            told = list(told)
            self._kill(manager, effects, runtime)
        else:
            watcher.say("the manager is shut down")
            try:
                manager.shutdown()
            except (LevelUnavailable, JournalError) as error:
                watcher.say(f"the shutdown says: {error}")
                watcher.figures["shutdowns that had to leave something"] += 1
        watcher.ended()
        watcher.figures["lives"] += 1
        self._check_end(runtime, people)
        if self.checked:
            self._check_replay(parts, told, watcher.decisions[decided:])

    def _kill(self, manager: ModelManager, effects: OneLoop, runtime: SimulatedRuntime) -> None:
        """It is gone from one moment to the next, with its models: what is not in its files nobody knows."""
        self.watcher.say("the manager is killed")
        self.watcher.figures["kills of a manager"] += 1
        self.disk.cut = True
        if self.disk.remembering is not None:
            self.disk.remembering.end()
        manager.scaler.monitor.stop()
        effects.stop()
        for model in runtime.there:
            model.go()
        manager.journal.close()
        self.disk.cut = False

    def _after_reading(self) -> None:
        self.watcher.figures["readings"] += 1
        self.watcher.look()

    def _notice(self, notice: object) -> None:
        if self.faults.draw("notice", ("fail",)):
            raise RuntimeError("a taker fails, as drawn")

    def _aside(self, look: Callable[[], None]) -> None:
        kind = self.faults.draw("look", ("late", "hang"))
        if kind != "hang":
            self.loop.call_later(self.faults.lateness_s() if kind == "late" else 0.05, look)

    async def _course(self, people: People, until_s: float) -> None:
        """What happens, in its order."""
        loop = self.loop
        # What a suspended machine has slept through is made up for at once.
        for at_s, happening in self._happenings(people, until_s):
            if (left_s := at_s - loop.time()) > 0:
                await asyncio.sleep(left_s)
            happening()
        if (left_s := until_s - loop.time()) > 0:
            await asyncio.sleep(left_s)

    def _happenings(self, people: People, until_s: float) -> list[tuple[float, Callable[[], None]]]:
        dice, began_s = self.dice, self.loop.time()
        planned: list[tuple[float, Callable[[], None]]] = []

        def add(at_s: float, happening: Callable[[], None]) -> None:
            if began_s <= at_s < until_s:
                planned.append((at_s, happening))

        for begin, end in self.windows:
            gap_s, at_s = dice.choice([15.0, 40.0, 120.0]), begin
            while (at_s := at_s + dice.expovariate(1 / gap_s)) < end:
                for _ in range(dice.choice([1] * 15 + [6])):
                    add(at_s, people.ask)
            for happening in (people.pin, people.degrade, people.reload, self._plug, self._heat):
                if dice.random() < 0.3:
                    add(dice.uniform(begin, end), happening)
            if dice.random() < 0.25:
                # Somebody who cannot make up their mind: switches overtake each other.
                at_s = dice.uniform(begin, end)
                for _ in range(12):
                    at_s += dice.expovariate(1 / dice.choice([0.3, 3.0, 20.0]))
                    add(at_s, dice.choice([people.pin, people.pin, people.degrade, people.reload]))
            for _ in range(dice.choice([0, 0, 1, 4]) if self.faults.rate else 0):
                add(dice.uniform(begin, end), self._crash)
            if dice.random() < 0.2:
                full_s = dice.uniform(begin, end)
                add(full_s, partial(self._fill, True))
                add(full_s + dice.uniform(10, 1200), partial(self._fill, False))
        add(began_s + dice.uniform(1, 600), people.ask)
        for _ in range(dice.randint(0, 10)):
            add(dice.uniform(began_s, until_s), people.ask)
        for _ in range(dice.randint(0, 3)):
            add(dice.uniform(began_s, until_s), self._set_clock)
        if dice.random() < 0.5:
            add(dice.uniform(began_s, until_s), people.reload)
        if dice.random() < 0.4:
            add(dice.uniform(began_s, until_s), partial(self._suspend, people))
        return sorted(planned, key=lambda one: one[0])

    def _crash(self) -> None:
        if there := self._runtime.there:
            self.faults.note("model crash")
            self.dice.choice(there).die("it crashed, as drawn")

    def _plug(self) -> None:
        self.machine.plugged_in = not self.machine.plugged_in

    def _heat(self) -> None:
        self.machine.throttled = not self.machine.throttled

    def _fill(self, full: bool) -> None:
        self.disk.full = full
        if not full:
            self.disk.freed_s = self.loop.time()
        self.watcher.say(f"the disk is {'full' if full else 'free again'}")

    def _set_clock(self) -> None:
        self.wall_ahead_s += self.dice.choice([-3600.0, 3600.0, -86400.0 * 365, 0.5, -0.5])
        self.faults.note("clock step")

    def _suspend(self, people: People) -> None:
        seconds = self.dice.choice([30.0, 600.0, 4 * 3600.0])
        self.faults.note("clock suspend")
        people.slept_s += seconds
        self.watcher.slept(seconds)
        self.disk.freed_s += seconds
        if (remembering := self.disk.remembering) is not None and remembering.due_s is not None:
            remembering.due_s += seconds
        self.loop.sleep_through(seconds)

    # ---------------------------------------------------------------- what must hold at its end

    def _check_end(self, runtime: SimulatedRuntime, people: People) -> None:
        watcher, loop = self.watcher, self.loop
        left = [str(model) for model in runtime.there if not model.refused]
        if left:
            watcher.violated(f"shut down, and still there: {', '.join(left)}")
        tasks = sorted(task.get_name() for task in asyncio.all_tasks(loop))
        if tasks or people.asking:
            watcher.violated(f"shut down, and still running: {', '.join(tasks)}")
        if loop.broken is not None:
            raise loop.broken

    def _check_replay(self, parts: Parts, told: list[Told], decisions: list[dict[str, Any]]) -> None:
        """The same inputs lead to the same decisions, to the byte."""
        again: list[dict[str, Any]] = []

        def entered(switch: Switch) -> None:
            record = record_of(DecisionMade(switch, 0.0), 0.0)
            assert record is not None
            again.append(record)

        machine = LevelMachine(parts.ladder, parts.policy, entered)
        for name, args, kwargs in told:
            if name == "recall":
                recall(machine, *args)
                continue
            if name == "take_over":
                before, (ladder, policy, kept, at_s) = machine, args
                machine = LevelMachine(ladder, policy, entered)
                machine.take_over(before, kept, at_s)
                continue
            with suppress(PinRefused):
                getattr(machine, name)(*args, **kwargs)
        if _bytes(again) != _bytes(decisions):
            self.watcher.violated("what the machine was told, told again, leads to other decisions")
            assert self.loop.broken is not None
            raise self.loop.broken
        self.watcher.figures["lives replayed"] += 1

    def _check_journal(self) -> None:
        """The journal has every decision, to the byte, unless the disk was full or older files were dropped."""
        journals = [parts.settings.journal for parts in self.configuration.read]
        journal = journals[0]
        try:
            records = [one for one in read(journal.path, files=journal.files) if one["event"] == "decision"]
        except JournalError as error:
            if not self.disk.was_full:
                raise Violation(f"seed {self.watcher.seed}: the journal cannot be read: {error}") from error
            self.watcher.figures["journals with a broken line"] += 1
            return
        kept = self.watcher.decisions[len(self.watcher.decisions) - len(records) :]
        if self.disk.was_full:
            return
        if any(one.max_mib < 1 for one in journals):
            same = _bytes(records) == _bytes(kept)
        else:
            same = _bytes(records) == _bytes(self.watcher.decisions)
        if not same:
            raise Violation(f"seed {self.watcher.seed}: the journal has other decisions than were made")
        self.watcher.figures["journals read back"] += 1


def _overhear(scaler: ProactiveScaler, told: list[Told]) -> None:
    """Have everything that a scaler's machine is told written down, and that another takes its place."""

    def listen(machine: LevelMachine, name: str) -> None:
        tell = getattr(machine, name)

        def hear(*args: Any, **kwargs: Any) -> Any:
            told.append((name, args, kwargs))
            return tell(*args, **kwargs)

        setattr(machine, name, hear)

    def listen_to(machine: LevelMachine) -> None:
        for name in INPUTS:
            listen(machine, name)

    def reconfigure(ladder: Ladder, policy: Policy, tier: str | None, kept: Collection[str], event: Any) -> str | None:
        told.append(("take_over", (ladder, policy, kept, scaler._clock()), {}))
        unpinned = change(ladder, policy, tier, kept, event)
        listen_to(scaler._machine)
        return unpinned

    change = scaler.reconfigure
    setattr(scaler, "reconfigure", reconfigure)  # noqa: B010  # a method, as mypy has it
    listen_to(scaler._machine)


def _bytes(decisions: list[dict[str, Any]]) -> bytes:
    """Decisions as the journal has them, but for the time of day."""
    return b"\n".join(
        json.dumps({**one, "at": None, **WRITER._asdict()}, separators=(",", ":"), allow_nan=False).encode()
        for one in decisions
    )
