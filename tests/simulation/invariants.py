"""What must hold of every day, looked at with every event and every reading."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from scaler.assembly import Parts
from scaler.events import (
    AnswerHandedOver,
    DecisionMade,
    ModelDied,
    PersonTold,
    PinChanged,
    Reconfigured,
    StandbyLost,
    SwitchDone,
    SwitchFailed,
    UnloadFailed,
)
from scaler.evidence import NEVER
from scaler.journal import record_of
from scaler.levels import OFF, Ladder
from scaler.machine import Decision
from scaler.manager import ModelManager
from scaler.policy import Policy
from scaler.proactive import Event
from scaler.remembering import EVERY_S
from tests.simulation.configuration import Configuration, alike, known_as
from tests.simulation.faults import LATE_S
from tests.simulation.ground import Disk, Known
from tests.simulation.loop import VirtualLoop
from tests.simulation.runtime import HANG_S, UNLOAD_S, Model, SimulatedRuntime

TAIL = 30
"""So many of the latest events are shown with a violation."""
SETTLES_S = 1800.0
"""A switch that takes longer than this never ends: the slowest waits for a drain, a hung unload and a hung load."""
SELDOM_S = 10 * EVERY_S
"""Outside of the busy hours what is learned in small steps is written so often."""
GOES_S = 2 * UNLOAD_S + HANG_S + LATE_S
"""For so long after a switch a model that must go may still be on its way."""
EXPECTED_LOGS = (
    "the journal is not written", "switching to %s failed unexpectedly", "unloading %s failed unexpectedly",
    "%s: letting go of what was loaded before scaler came failed", "no suggestion goes with",
    "loading %s, which is to stand by, failed unexpectedly", "a taker of notices failed on",
    "the configuration is refused, and nothing changes",
)  # fmt: skip
"""What is logged as an error because of a fault that was drawn, and is handled."""


REMEMBERING = logging.getLogger("scaler.remembering")


class Violation(AssertionError):
    """Something that must hold did not: says what, when, and the command that plays it again."""


@dataclass(frozen=True, slots=True)
class Force:
    """What of a configuration requests hang on, for as long as it is in force."""

    names: tuple[str, ...]
    wait_s: float


class Watcher(logging.Handler):
    """Judges one life of a manager, and writes down what happened."""

    def __init__(self, loop: VirtualLoop, disk: Disk, seed: int) -> None:
        super().__init__()
        self.warned: list[str] = []
        """What was said of the file of what is remembered."""
        self.parts: Parts
        """The configuration in force."""
        self._disk = disk
        self.figures: Counter[str] = Counter()
        self.decisions: list[dict[str, Any]] = []
        """As the journal should have them."""
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._loop, self.seed = loop, seed
        self._runtime: SimulatedRuntime
        self._manager: ModelManager
        self._configuration: Configuration
        self._pace_s: Callable[[], float]
        loop.on_fault = lambda what: self.violated(f"nobody handled: {what}")

    def begin(
        self,
        manager: ModelManager,
        runtime: SimulatedRuntime,
        configuration: Configuration,
        pace_s: Callable[[], float],
    ) -> None:
        """Watch a manager that has just begun."""
        self._manager, self._runtime, self._configuration, self._pace_s = manager, runtime, configuration, pace_s
        self.parts = configuration.read[-1]
        self._booted_s, self._deaf = self._disk.booted_s, False
        self.forces = [_force(self.parts)]
        """What was in force in this life, one after the other."""
        self._pinned = manager.scaler.status().pinned
        self._watched_s: dict[str, float] = dict.fromkeys(self.parts.levels, self._loop.time())
        """Since when at the most room for a level can have been watched."""
        self._backs_off_s: dict[str, float] = {}
        """Until when at the least a level that failed is left alone."""
        self._wasted: dict[str, int] = {}
        """How many climbs to a level were wasted in the lives before, where it has not served in this one."""
        self._begun_s = self._loop.time()
        self._same: list[str] = []
        self._recovers = False
        """Whether room must have lasted before the first level is loaded."""
        self._before = manager.scaler._machine
        self._reconfigure = manager.scaler.reconfigure
        setattr(manager.scaler, "reconfigure", self._reconfigured)  # noqa: B010  # a method, as mypy has it
        self._state, self._ticket, self._settled = OFF, -1, True
        self._beside: dict[str, bool] = {}
        self._changed_s = float("-inf")
        self._unsettled_s = self._loop.time()
        self._apart_s: float | None = None
        self._more_s: float | None = None
        self._looks = 0
        runtime.on_load = self._loading
        manager.scaler.subscribe(self._take)

    def say(self, what: str) -> None:
        """Add to what is shown with a violation."""
        self.tail.append(f"step {self._loop.steps}, {self._loop.time():.3f} s: {what}")

    def violated(self, what: str) -> None:
        """End the run behind this step."""
        if self._loop.broken is None:
            command = f"python -m tests.simulation --seed {self.seed} --until {self._loop.steps}"
            events = "\n".join(f"  {line}" for line in self.tail)
            self._loop.broken = Violation(
                f"seed {self.seed}, step {self._loop.steps}, {self._loop.time():.3f} s: {what}\n"
                f"the last {len(self.tail)} events:\n{events}\nplay it again: {command}"
            )

    def emit(self, record: logging.LogRecord) -> None:
        """Errors that are logged, and were not drawn, are faults of scaler's."""
        if record.name == REMEMBERING.name and (record.levelno < logging.ERROR or self._disk.full):
            self.warned.append(record.getMessage())
        elif record.levelno >= logging.ERROR and not str(record.msg).startswith(EXPECTED_LOGS):
            error = record.exc_info[1] if record.exc_info else None
            self.violated(f"logged: {record.getMessage()}: {error!r}")

    # ---------------------------------------------------------------- with every event

    def _take(self, event: Event) -> None:
        now = self._loop.time()
        if self._deaf:
            return
        if isinstance(event, DecisionMade):
            self._decided(event)
        elif isinstance(event, SwitchDone) and event.ticket == self._ticket:
            self._settle(event.level)
            self.figures["switches"] += 1
        elif isinstance(event, SwitchFailed) and event.ticket == self._ticket:
            self.figures["failed switches"] += 1
            if event.still_serving != self._state:
                self._fails(self._state)
            self._changed_s = now
            if event.still_serving == self._state:
                self._settled = True
        elif isinstance(event, ModelDied):
            self.figures["deaths"] += 1
            self._fails(event.level)
            if event.level == self._state:
                self._changed_s, self._settled = now, True
        elif isinstance(event, AnswerHandedOver):
            self.figures["handed over"] += 1
        elif isinstance(event, PersonTold):
            self.figures["notices"] += 1
        elif isinstance(event, PinChanged):
            self._pinned = event.level
        elif isinstance(event, Reconfigured):
            self._in_force()
        if isinstance(event, SwitchDone | SwitchFailed | ModelDied | StandbyLost | UnloadFailed | AnswerHandedOver):
            self.say(str(event))

    def _decided(self, event: DecisionMade) -> None:
        switch, decision, now = event.switch, event.switch.decision, self._loop.time()
        at_s = decision.at_s + self._booted_s
        self.say(f"{decision.trigger}: {decision.source} -> {decision.dest}, beside {switch.beside}: {decision.reason}")
        self.figures["decisions"] += 1
        record = record_of(event, event.wall_s)
        assert record is not None
        self.decisions.append(record)
        if decision.source != self._state:
            self.violated(f"a decision left {decision.source}, and the state was {self._state}")
        ladder, policy = self._manager.scaler.ladder, self._manager.scaler.policy
        if decision.trigger == "reload":
            self._replaced(decision)
        left_alone_s = self._backs_off_s.get(decision.dest, 0.0) - now
        if decision.trigger in ("observe", "degrade") and left_alone_s > 1e-6:
            self.violated(f"{decision.dest} is gone to, which was to be left alone for {left_alone_s:.3f} s more")
        if decision.trigger == "observe" and self._recovers and at_s - self._begun_s < policy.recovery_s - 1e-6:
            self.violated(f"{decision.dest} is loaded {at_s - self._begun_s:.3f} s after a crash, or an end at off")
        self._recovers = False
        up = decision.trigger == "observe" and ladder.index(decision.dest) > ladder.index(decision.source)
        if up and decision.source != OFF:
            self.figures["upgrades"] += 1
            rested = at_s - self._changed_s
            if rested < policy.dwell_s - 1e-6:
                self.violated(f"climbed to {decision.dest} {rested:.3f} s after the change before")
            watched = now - self._watched_s[decision.dest]
            if watched < min(policy.dwell_s * 2.0 ** self._wasted.get(decision.dest, 0), policy.dwell_max_s) - 1e-6:
                self.violated(f"climbed to {decision.dest}, and room for it was watched for {watched:.3f} s")
            if not self._settled:
                self.violated(f"climbed to {decision.dest} during a switch")
        self._state, self._ticket, self._settled = decision.dest, decision.ticket, False
        self._beside[decision.dest] = switch.beside
        self._changed_s, self._unsettled_s = at_s, now
        self._wasted.pop(decision.dest, None)

    def _settle(self, level: str) -> None:
        if level != self._state:
            self.violated(f"{level} was reported as done, and the state is {self._state}")
        self._settled = True
        self._changed_s = self._loop.time()

    def _fails(self, level: str) -> None:
        self._backs_off_s[level] = self._loop.time() + self._manager.scaler.policy.backoff_s

    # ---------------------------------------------------------------- with every other configuration

    def _reconfigured(
        self, ladder: Ladder, policy: Policy, tier: str | None, kept: Collection[str], event: Reconfigured
    ) -> str | None:
        """In place of `ProactiveScaler.reconfigure`: the same, and what was known before is held against what is."""
        scaler = self._manager.scaler
        self._before = before = scaler._machine
        unpinned = self._reconfigure(ladder, policy, tier, kept, event)
        after = scaler._machine
        stays = before.pinned in (OFF, *ladder.names) and ladder.index(before.pinned) <= after.evidence.highest_allowed
        if (after.pinned, unpinned) != ((before.pinned, None) if stays else (None, before.pinned)):
            self.violated(f"{before.pinned} was pinned, now {after.pinned} is, and {unpinned} is said to be no more")
        for name in self._same:
            one, other = (
                (evidence.failures[place], evidence.backoff_until_s[place], evidence.wasted[place])
                for evidence, place in (
                    (before.evidence, before.ladder.index(name)), (after.evidence, ladder.index(name)),
                )
            )  # fmt: skip
            if one != other:
                self.violated(f"of {name}, whose model stays, {one} was known, and {other} is now")
        return unpinned

    def _in_force(self) -> None:
        """Another configuration has come into force, the one that was read last."""
        before, self.parts = self.parts, self._configuration.read[-1]
        after, evidence = self.parts, self._before.evidence
        self.forces.append(_force(after))
        self._same = [name for name in after.levels if alike(name, before, after)]
        read_s = max(evidence.now_s + self._booted_s, self._begun_s)
        for name in after.levels:
            if name not in self._same or after.policy != before.policy:
                # The last reading counts: it is judged anew.
                self._watched_s[name] = read_s
            if name not in self._same:
                self._backs_off_s.pop(name, None)
                self._wasted.pop(name, None)
        self.say(f"in force: {', '.join(after.levels)}; the models of {', '.join(self._same) or 'none'} stay")

    # ---------------------------------------------------------------- from life to life

    def recalls(self, known: Known | None, damaged: bytes | None) -> None:
        """A manager has begun and knows what the file says, if that is whole, and nothing else."""
        file, disk, now = self.parts.settings.remembered.path, self._disk, self._loop.time()
        warned = self.warned
        if (self._manager.remembered is not None) != (known is not None):
            self.violated(f"the file said {known}, and {self._manager.remembered} is remembered")
        if damaged is None:
            told = not warned
        else:
            told = len(warned) == 1 and "cannot be read" in warned[0]
            told = told and file.with_name(f"{file.name}.damaged").read_bytes() == damaged
            self.figures["damaged files put aside"] += 1
        if not told:
            self.violated(
                f"what is remembered is {'damaged' if damaged is not None else 'whole'}, and said is {warned}"
            )
        machine, policy = self._manager.scaler._machine, self.parts.policy
        evidence, exact = machine.evidence, known is not None and known.start == disk.start
        pinned = known.pinned if known is not None else None
        stays = pinned in (OFF, *machine.ladder.names) and machine.ladder.index(pinned) <= evidence.highest_allowed
        if machine.pinned != (pinned if stays else None):
            self.violated(f"{pinned} was pinned before, and {machine.pinned} is")
        changed_s = min(now, known.changed_s) if known is not None else NEVER
        self._same_time("the last change", evidence.changed_at_s + self._booted_s, changed_s, exact=exact)
        self._recovers = known is not None and known.changed_s > NEVER and not (known.ended and known.state != OFF)
        for place, name in enumerate(machine.ladder.names):
            found = (
                evidence.footprints.learned(place), evidence.load_s[place], evidence.failures[place],
                evidence.wasted[place],
            )  # fmt: skip
            until_s = evidence.backoff_until_s[place] + self._booted_s
            if known is None or not known_as(name, known.parts, self.parts):
                if found != ({}, self.parts.ladder[place].load_s, 0, 0) or until_s > now:
                    self.violated(f"of {name}, of which nothing can be known, {found} is known")
                continue
            failed = not known.ended and known.loading == name and place > 0
            wasted = not known.ended and known.climbed == name
            expected = (
                known.footprints[name], known.load_s[name], known.failures[name] + failed, known.wasted[name] + wasted
            )  # fmt: skip
            if found != expected:
                self.violated(f"of {name} is known {found}, and the file has said {expected}")
            self._wasted[name] = known.wasted[name] + wasted
            at_least_s = now + policy.backoff_s if failed else min(known.backoff_s[name], now + policy.backoff_max_s)
            if failed or known.backoff_s[name] > known.at_s:
                self._same_time(f"the back-off of {name}", until_s, at_least_s, exact=exact and not failed)
                self._backs_off_s[name] = at_least_s
            self.figures["levels known again"] += 1

    def _same_time(self, what: str, found_s: float, at_least_s: float, *, exact: bool) -> None:
        if found_s < at_least_s - 1e-6 or (exact and found_s > at_least_s + 1e-6):
            self.violated(f"{what} is known as of {found_s:.3f} s, and was {at_least_s:.3f} s")

    def ends(self, *, killed: bool) -> None:
        """A life is about to end: what has happened in it is in the file, so far as there was time and room."""
        self._deaf = killed
        remembering, now = self._disk.remembering, self._loop.time()
        if remembering is None or remembering.due_s is None or self._disk.full:
            return
        within_s = LATE_S if self._disk.freed_s < remembering.due_s else SELDOM_S + LATE_S
        waits_s = now - max(remembering.due_s, self._disk.freed_s)
        if waits_s > within_s:
            self.violated(f"what has happened {waits_s:.3f} s ago is not remembered yet")

    def ended(self) -> None:
        """A life has ended: the file is whole, and says so if there was room for it."""
        file, kept = self.parts.settings.remembered.path, self._disk.known
        if (file.read_bytes() if file.exists() else None) != (kept[-1].text if kept else None):
            self.violated("the file does not say what was written down last")
        if not self._deaf and not self._disk.full and not kept[-1].ended:
            self.violated("the file does not say that the manager was asked to end")

    def _replaced(self, decision: Decision) -> None:
        """What comes in the place of a level is none that would have to be climbed to."""
        before, ladder, dest = self._before, self._manager.scaler.ladder, decision.dest
        if dest == before.state or ladder.index(dest) <= 0:
            return
        was = before.evidence
        left = was.state if was.serving is None else was.serving
        if dest in before.ladder.names:
            climbed = before.ladder.index(dest) > left
        else:
            took = dict(zip(was.resources, was.footprints.of(left), strict=True))
            takes = ladder[ladder.index(dest)].footprint
            climbed = any(size > took.get(resource, 0) for resource, size in takes.items())
        if climbed:
            self.violated(f"the reload climbs from {decision.source} to {dest}")

    def _applied(self) -> None:
        """Everything stands on the configuration in force, and on no other."""
        manager, parts = self._manager, self.parts
        scaler, switcher = manager.scaler, manager._switcher
        if not (
            manager.settings is parts.settings
            and manager._levels is switcher._levels is manager._adviser._levels is parts.levels
            and scaler.ladder is scaler._machine.ladder is parts.ladder
            and scaler.policy is scaler._machine.policy is parts.policy
            and manager._relay.wait_s == parts.settings.queue.wait_s
            and switcher._queue_limit == parts.settings.queue.limit
        ):
            self.violated(f"not everything stands on the configuration in force: {parts.ladder.names}")

    def _loading(self, model: Model) -> None:
        """A load has begun: nothing may be there that it must not be loaded beside."""
        self.figures["loads"] += 1
        runtime, name = self._runtime, model.name
        for other in runtime.there:
            if other is model or other.refused:
                continue
            if not runtime.apart(other.settings, model.settings):
                self.violated(f"{model} is loaded, and {other} is there, which its runtime cannot have beside it")
            if not (self._beside.get(name) or self._stands_by(model) or self._stands_by(other)):
                self.violated(f"{model} is loaded beside {other}, which was not granted")

    def _stands_by(self, model: Model) -> bool:
        """Whether a model is to, or was until the configuration changed."""
        known = self.parts.levels.get(model.name)
        return model.settings.standby or (known is not None and known[1].standby)

    # ---------------------------------------------------------------- with every reading

    def look(self) -> None:
        """Hold the state, what serves and what is loaded against each other."""
        self._looks += 1
        self._applied()
        if self._looks % 64 == 0:
            self._ask()
        now = self._loop.time()
        if not self._settled:
            self._apart_s = self._more_s = None
            if now - self._unsettled_s > SETTLES_S:
                self.violated(f"the switch to {self._state} has not ended in {SETTLES_S:g} s")
            return
        loaded, there = self._manager.loaded, self._runtime.there
        names = [self._called(model) for model in there if model.loaded and not (model.refused or model.leaving)]
        serving = loaded[0] if loaded else OFF
        if serving == self._state and (serving == OFF or serving in names):
            self._apart_s = None
        elif self._apart_s is None:
            self._apart_s = now
        elif now - self._apart_s > self._pace_s() + LATE_S:
            self.violated(f"settled at {self._state}, {serving} serves, and there are: {', '.join(map(str, there))}")
        left = Counter(names)
        left.subtract(loaded)
        if not +left:
            self._more_s = None
        elif self._more_s is None:
            self._more_s = now
        elif now - self._more_s > self._pace_s() + GOES_S:
            self.violated(f"settled at {self._state}, and nobody has use for {', '.join(map(str, +left))}")

    def _called(self, model: Model) -> str:
        """The level that a model is of; of those of before, none is."""
        known = self.parts.levels.get(model.name)
        return model.name if known is not None and known[1].loads_as(model.settings) else f"{model} of before"

    def slept(self, seconds: float) -> None:
        """The machine was suspended: what was under way had no time to go on."""
        self._unsettled_s += seconds
        self._apart_s = self._more_s = None

    def _ask(self) -> None:
        status = self._manager.scaler.status()
        told, said = (self._state, self._settled, self._pinned), (status.state, status.settled, status.pinned)
        if told != said:
            self.violated(f"events told of {told}; the status says {said}: state, settled, pinned")


def _force(parts: Parts) -> Force:
    return Force(parts.ladder.names, parts.settings.queue.wait_s)
