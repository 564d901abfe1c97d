"""What must hold of every day, looked at with every event and every reading."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from scaler.events import (
    AnswerHandedOver,
    DecisionMade,
    ModelDied,
    PersonTold,
    StandbyLost,
    SwitchDone,
    SwitchFailed,
    UnloadFailed,
)
from scaler.journal import record_of
from scaler.levels import OFF
from scaler.manager import ModelManager
from scaler.proactive import Event
from tests.simulation.faults import LATE_S
from tests.simulation.loop import VirtualLoop
from tests.simulation.runtime import HANG_S, UNLOAD_S, Model, SimulatedRuntime

TAIL = 30
"""So many of the latest events are shown with a violation."""
SETTLES_S = 1800.0
"""A switch that takes longer than this never ends: the slowest waits for a drain, a hung unload and a hung load."""
GOES_S = 2 * UNLOAD_S + HANG_S + LATE_S
"""For so long after a switch a model that must go may still be on its way."""
EXPECTED_LOGS = (
    "the journal is not written", "switching to %s failed unexpectedly", "unloading %s failed unexpectedly",
    "%s: letting go of what was loaded before scaler came failed", "no suggestion goes with",
    "loading %s, which is to stand by, failed unexpectedly", "a taker of notices failed on",
)  # fmt: skip
"""What is logged as an error because of a fault that was drawn, and is handled."""


class Violation(AssertionError):
    """Something that must hold did not: says what, when, and the command that plays it again."""


class Watcher(logging.Handler):
    """Judges one life of a manager, and writes down what happened."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        super().__init__()
        self.figures: Counter[str] = Counter()
        self.decisions: list[dict[str, Any]] = []
        """As the journal should have them."""
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._loop, self.seed = loop, seed
        self._runtime: SimulatedRuntime
        self._manager: ModelManager
        self._pace_s: Callable[[], float]
        self._wall_s: Callable[[], float]
        loop.on_fault = lambda what: self.violated(f"nobody handled: {what}")

    def begin(
        self,
        manager: ModelManager,
        runtime: SimulatedRuntime,
        pace_s: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        """Watch a manager that has just begun."""
        self._manager, self._runtime, self._pace_s, self._wall_s = manager, runtime, pace_s, wall_s
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
        if record.levelno >= logging.ERROR and not str(record.msg).startswith(EXPECTED_LOGS):
            error = record.exc_info[1] if record.exc_info else None
            self.violated(f"logged: {record.getMessage()}: {error!r}")

    # ---------------------------------------------------------------- with every event

    def _take(self, event: Event) -> None:
        now = self._loop.time()
        if isinstance(event, DecisionMade):
            self._decided(event)
        elif isinstance(event, SwitchDone) and event.ticket == self._ticket:
            self._settle(event.level)
            self.figures["switches"] += 1
        elif isinstance(event, SwitchFailed) and event.ticket == self._ticket:
            self.figures["failed switches"] += 1
            self._changed_s = now
            if event.still_serving == self._state:
                self._settled = True
        elif isinstance(event, ModelDied):
            self.figures["deaths"] += 1
            if event.level == self._state:
                self._changed_s, self._settled = now, True
        elif isinstance(event, AnswerHandedOver):
            self.figures["handed over"] += 1
        elif isinstance(event, PersonTold):
            self.figures["notices"] += 1
        if isinstance(event, SwitchDone | SwitchFailed | ModelDied | StandbyLost | UnloadFailed | AnswerHandedOver):
            self.say(str(event))

    def _decided(self, event: DecisionMade) -> None:
        switch, decision = event.switch, event.switch.decision
        self.say(f"{decision.trigger}: {decision.source} -> {decision.dest}, beside {switch.beside}: {decision.reason}")
        self.figures["decisions"] += 1
        record = record_of(event, event.wall_s)
        assert record is not None
        self.decisions.append(record)
        if decision.source != self._state:
            self.violated(f"a decision left {decision.source}, and the state was {self._state}")
        ladder, policy = self._manager.scaler.ladder, self._manager.scaler.policy
        up = decision.trigger == "observe" and ladder.index(decision.dest) > ladder.index(decision.source)
        if up and decision.source != OFF:
            self.figures["upgrades"] += 1
            rested = decision.at_s - self._changed_s
            if rested < policy.dwell_s - 1e-6:
                self.violated(f"climbed to {decision.dest} {rested:.3f} s after the change before")
            if not self._settled:
                self.violated(f"climbed to {decision.dest} during a switch")
        self._state, self._ticket, self._settled = decision.dest, decision.ticket, False
        self._beside[decision.dest] = switch.beside
        self._changed_s, self._unsettled_s = decision.at_s, self._loop.time()

    def _settle(self, level: str) -> None:
        if level != self._state:
            self.violated(f"{level} was reported as done, and the state is {self._state}")
        self._settled = True
        self._changed_s = self._loop.time()

    def _loading(self, model: Model) -> None:
        """A load has begun: nothing may be there that it must not be loaded beside."""
        self.figures["loads"] += 1
        runtime, name = self._runtime, model.name
        for other in runtime.there:
            if other is model or other.refused:
                continue
            if not runtime.apart(other.settings, model.settings):
                self.violated(f"{model} is loaded, and {other} is there, which its runtime cannot have beside it")
            if not (self._beside.get(name) or model.settings.standby or other.settings.standby):
                self.violated(f"{model} is loaded beside {other}, which was not granted")

    # ---------------------------------------------------------------- with every reading

    def look(self) -> None:
        """Hold the state, what serves and what is loaded against each other."""
        self._looks += 1
        if self._looks % 64 == 0:
            self._ask()
        now = self._loop.time()
        if not self._settled:
            self._apart_s = self._more_s = None
            if now - self._unsettled_s > SETTLES_S:
                self.violated(f"the switch to {self._state} has not ended in {SETTLES_S:g} s")
            return
        loaded, there = self._manager.loaded, self._runtime.there
        names = [model.name for model in there if model.loaded and not (model.refused or model.leaving)]
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

    def slept(self, seconds: float) -> None:
        """The machine was suspended: what was under way had no time to go on."""
        self._unsettled_s += seconds
        self._apart_s = self._more_s = None

    def _ask(self) -> None:
        status = self._manager.scaler.status()
        if (status.state, status.settled) != (self._state, self._settled):
            told = f"{self._state}, {'settled' if self._settled else 'switching'}"
            self.violated(f"events told of {told}; the status says {status.state}, settled {status.settled}")
