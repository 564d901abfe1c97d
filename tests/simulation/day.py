"""One simulated day of a seed: a machine, a ladder, a policy, people and faults, from the first second to the last."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scaler.assembly import Parts, _ladder
from scaler.errors import LevelUnavailable, PinRefused
from scaler.events import DecisionMade
from scaler.journal import JournalError, read, record_of
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB, RAM
from scaler.machine import LevelMachine, Switch
from scaler.manager import ModelManager
from scaler.policy import Policy
from scaler.runtimes.bounds import Bounds
from scaler.settings import JournalSettings, MonitorSettings, QueueSettings, Settings
from scaler.surroundings import Surroundings
from scaler.tiers import Detection, Hardware, Tier
from tests.simulation.faults import Faults
from tests.simulation.ground import Disk, OneLoop, SteppedMonitor
from tests.simulation.invariants import Violation, Watcher
from tests.simulation.loop import BEGIN_S, Reached, VirtualLoop
from tests.simulation.machine import GPU, Machine, SimulatedSurvey
from tests.simulation.people import People
from tests.simulation.runtime import SimulatedRuntime

DAY_S = 86400.0
IDLE_S = {90.0: 85.0, 10.0: 240.0}
"""The time between readings outside of the busy hours, in which next to nobody asks, by the day's ``stale_after_s``."""
BUSY_S = 1800.0
"""How much of a day is busy, on average."""
EPOCH_S = 1_750_000_000.0
INPUTS = ("observe", "switched", "switch_failed", "died", "answered", "degrade", "want", "pin", "unpin")
"""What a `LevelMachine` is told; everything that it decides follows from that."""


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
def _undisturbed(watcher: Watcher) -> Iterator[None]:
    """The garbage collector comes by at the end only, and what is logged goes to the watcher."""
    log = logging.getLogger("scaler")
    before, propagates = log.level, log.propagate
    log.setLevel(logging.ERROR)
    log.propagate = False
    log.addHandler(watcher)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        log.removeHandler(watcher)
        log.setLevel(before)
        log.propagate = propagates


def play(seed: int, *, until: int | None = None) -> Outcome:
    """Play the day of a seed. Raises Violation; stops before step ``until``, if that is given."""
    with tempfile.TemporaryDirectory() as folder:
        day = _Day(seed, Path(folder), until)
        with _undisturbed(day.watcher):
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
        self.watcher = Watcher(self.loop, seed)
        self.faults = Faults(dice("faults"), plan.choice([0.0, 0.02, 0.1, 0.3]), self.watcher.say)
        self.loop.late = lambda: self.faults.lateness_s() if self.faults.draw("thread", ("late",)) else 0.001
        gpu = plan.random() < 0.3
        self.machine = Machine(dice("machine"), self.loop.time, self.faults, gpu=gpu)
        self.disk = Disk(dice("disk"), self.faults)
        self.wall_ahead_s = EPOCH_S
        self.interval_s = plan.choice([2.0, 3.0, 4.0])
        self.stale_after_s = plan.choice(list(IDLE_S))
        self.idle_s = IDLE_S[self.stale_after_s]
        self.windows = self._windows()
        self.folder = folder
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

    def _settings(self) -> Settings:
        dice, total = self.dice, self.machine.total
        number = dice.choice([1, 2, 3, 3, 4])
        parts = sorted([dice.uniform(0.03, 0.2), *(dice.uniform(0.1, 0.65) for _ in range(number - 1))])
        stands_by = dice.random() < 0.3
        levels = tuple(
            EmbeddedLevel(
                name=f"level{position}",
                model=Path("none.gguf"),
                quality=(position + 1) / number,
                ram_gib=part * total[RAM] / GIB * (0.3 if GPU in total else 1.0),
                vram_gib=part * total[GPU] / GIB if GPU in total else 0.0,
                load_s=dice.uniform(1.0, 30.0),
                load_timeout_s=120.0,
                standby=stands_by and position == 0 and number > 1,
                parallel=dice.randint(1, 4),
            )
            for position, part in enumerate(parts)
        )
        return Settings(
            ladder=levels,
            queue=QueueSettings(limit=dice.randint(2, 32), wait_s=dice.choice([5.0, 30.0, 120.0])),
            monitor=MonitorSettings(interval_s=self.interval_s),
            journal=JournalSettings(
                path=self.folder / "journal.jsonl", max_mib=dice.choice([0.05, 5.0]), files=dice.choice([1, 5])
            ),
        )

    def _policy(self, settings: Settings) -> Policy:
        dice = self.dice
        names = [level.name for level in settings.ladder]
        dwell_s = dice.choice([30.0, 300.0, 300.0])
        return Policy(
            dwell_s=dwell_s,
            stale_after_s=self.stale_after_s,
            drain_seconds=dice.choice([0.0, 5.0, 20.0]),
            drain_tokens=dice.choice([0, 8, 256]),
            band=dice.choice([0.035, 0.1]),
            max_level=dice.choice([None, None, dice.choice(names)]),
            battery_max_level=dice.choice([None, names[0]]),
            throttled_max_level=dice.choice([None, names[0]]),
        )

    # ---------------------------------------------------------------- its course

    def pass_by(self) -> None:
        """From the first second to the last."""
        settings = self._settings()
        policy = self._policy(settings)
        end_s = BEGIN_S + DAY_S
        restarts = sorted(self.dice.uniform(BEGIN_S, end_s) for _ in range(self.dice.choice([0, 0, 0, 1, 2])))
        # Half of the lives end while somebody asks.
        ends = [self.dice.choice(self.windows)[0] + self.dice.uniform(1, 300) if self.dice.random() < 0.5 else at
                for at in restarts]  # fmt: skip
        for until_s in [*sorted(ends), end_s]:
            self._live(settings, policy, until_s)
            self.watcher.figures["lives"] += 1
        if self.loop.broken is not None:
            raise self.loop.broken
        self._check_journal(settings)
        self.watcher.figures["days"] += 1
        self.watcher.figures["kernel kills"] += self.machine.kills

    def _live(self, settings: Settings, policy: Policy, until_s: float) -> None:
        """One manager, from its start to its shutdown."""
        loop, watcher, dice = self.loop, self.watcher, self.dice
        apart = dice.random() < 0.8 or any(level.standby for level in settings.ladder)
        runtime = SimulatedRuntime(random.Random(dice.random()), self.faults, watcher.say, apart=apart)
        self._runtime = runtime
        self.machine.ours, self.machine.kill = (lambda: runtime.held), runtime.kill
        levels = {level.name: (runtime, level) for level in settings.ladder}
        tier = Tier("simulated", "", 0, (), policy, {})
        detection = Detection(tier, Hardware(self.machine.total[RAM], 8, None), ("simulated",))
        parts = Parts(
            settings=settings,
            tier=detection,
            policy=policy,
            ladder=_ladder(levels),
            levels=levels,
            embeddings=None,
            bounds=Bounds(settings.processes),
            runtimes={"simulated": runtime},
        )
        effects = OneLoop(loop)
        # Before it can be overheard: a manager loads nothing until it is asked.
        told: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [("want", (False,), {})]
        watcher.say("a manager starts")
        manager = ModelManager(
            sensors=lambda _: self.machine.sensors(),
            on_notice=self._notice,
            surroundings=Surroundings(
                assemble=lambda *_: parts,
                clock=loop.time,
                wall_clock=self.wall_s,
                effects=lambda _: effects,
                monitor=partial(SteppedMonitor, loop, self.pace_s, self._after_reading),
                journal=self.disk.journal,
                survey=lambda _: SimulatedSurvey(self.machine),
                aside=self._aside,
            ),
        )
        if self.checked:
            _overhear(manager.scaler._machine, told)
        watcher.begin(manager, runtime, self.pace_s, self.wall_s)
        decided = len(watcher.decisions)
        people = People(random.Random(dice.random()), loop, manager, runtime, watcher)
        loop.run_until_complete(self._course(people, until_s))
        people.leaving = True
        watcher.say("the manager is shut down")
        try:
            manager.shutdown()
        except (LevelUnavailable, JournalError) as error:
            watcher.say(f"the shutdown says: {error}")
            watcher.figures["shutdowns that had to leave something"] += 1
        self._check_end(runtime, people)
        if self.checked:
            self._check_replay(parts, told, watcher.decisions[decided:])

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
            for happening in (people.pin, people.degrade, self._plug, self._heat):
                if dice.random() < 0.3:
                    add(dice.uniform(begin, end), happening)
            if dice.random() < 0.25:
                # Somebody who cannot make up their mind: switches overtake each other.
                at_s = dice.uniform(begin, end)
                for _ in range(12):
                    at_s += dice.expovariate(1 / dice.choice([0.3, 3.0, 20.0]))
                    add(at_s, dice.choice([people.pin, people.pin, people.degrade]))
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
        self.watcher.say(f"the disk is {'full' if full else 'free again'}")

    def _set_clock(self) -> None:
        self.wall_ahead_s += self.dice.choice([-3600.0, 3600.0, -86400.0 * 365, 0.5, -0.5])
        self.faults.note("clock step")

    def _suspend(self, people: People) -> None:
        seconds = self.dice.choice([30.0, 600.0, 4 * 3600.0])
        self.faults.note("clock suspend")
        people.slept_s += seconds
        self.watcher.slept(seconds)
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

    def _check_replay(
        self, parts: Parts, told: list[tuple[str, tuple[Any, ...], dict[str, Any]]], decisions: list[dict[str, Any]]
    ) -> None:
        """The same inputs lead to the same decisions, to the byte."""
        again: list[dict[str, Any]] = []

        def entered(switch: Switch) -> None:
            record = record_of(DecisionMade(switch, 0.0), 0.0)
            assert record is not None
            again.append(record)

        machine = LevelMachine(parts.ladder, parts.policy, entered)
        for name, args, kwargs in told:
            with suppress(PinRefused):
                getattr(machine, name)(*args, **kwargs)
        if _bytes(again) != _bytes(decisions):
            self.watcher.violated("what the machine was told, told again, leads to other decisions")
            assert self.loop.broken is not None
            raise self.loop.broken
        self.watcher.figures["lives replayed"] += 1

    def _check_journal(self, settings: Settings) -> None:
        """The journal has every decision, to the byte, unless the disk was full or older files were dropped."""
        journal = settings.journal
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
        if journal.max_mib < 1:
            same = _bytes(records) == _bytes(kept)
        else:
            same = _bytes(records) == _bytes(self.watcher.decisions)
        if not same:
            raise Violation(f"seed {self.watcher.seed}: the journal has other decisions than were made")
        self.watcher.figures["journals read back"] += 1


def _overhear(machine: LevelMachine, told: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
    """Have everything that a machine is told written down."""

    def listen(name: str, tell: Callable[..., Any]) -> Callable[..., Any]:
        def hear(*args: Any, **kwargs: Any) -> Any:
            told.append((name, args, kwargs))
            return tell(*args, **kwargs)

        return hear

    for name in INPUTS:
        setattr(machine, name, listen(name, getattr(machine, name)))


def _bytes(decisions: list[dict[str, Any]]) -> bytes:
    """Decisions as the journal has them, but for the time of day."""
    return b"\n".join(
        json.dumps({**one, "at": None}, separators=(",", ":"), allow_nan=False).encode() for one in decisions
    )
