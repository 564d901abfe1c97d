"""A machine that is made up: memory, other programs that come, go and leak, sensors that fail, a kernel that kills."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Protocol

from scaler.errors import SensorFailed
from scaler.levels import GIB, RAM
from scaler.readings import Gpu, Memory, Power, Pressure, Program, Stall, Survey, Thermal
from scaler.sensors.programs import ProgramSurvey
from tests.simulation.faults import Faults

GPU = "gpu0"
WALK_S = 20.0
"""A random walk takes a step so often."""


class Uses(Protocol):
    """What our models hold now, in bytes of each resource."""

    def __call__(self) -> Mapping[str, int]: ...


class OtherProgram:
    """One that is not ours: what it takes of a resource, as a function of time, in parts of the whole."""

    def __init__(self, dice: random.Random, kind: str, resource: str, size: float, began_s: float) -> None:
        self.kind, self.resource = kind, resource
        self._dice = random.Random(dice.random())
        self._size, self._began_s = size, began_s
        self._period_s = dice.choice([30.0, 120.0, 600.0, 600.0, 1800.0, 7200.0]) * dice.uniform(0.7, 1.4)
        self._share = dice.uniform(0.1, 0.9)
        self._at_s, self._level = began_s, dice.random()

    def takes(self, at_s: float) -> float:
        """Its part of the whole; asked with times that never go back."""
        age = at_s - self._began_s
        phase = (age % self._period_s) / self._period_s
        match self.kind:
            case "steps":
                return self._size if phase < self._share else 0.2 * self._size
            case "saw":
                return self._size * phase
            case "leak":
                # It ends when it has grown to three times its size, and begins anew.
                return self._size * 3 * ((age / (4 * self._period_s)) % 1)
            case "walk":
                steps = min(int((at_s - self._at_s) / WALK_S), 1000)
                for _ in range(steps):
                    self._level = min(max(self._level + self._dice.gauss(0, 0.08), 0.0), 1.0)
                if steps:
                    self._at_s = at_s
                return self._size * self._level
            case _:
                return self._size

    def end(self, at_s: float) -> None:
        """The kernel killed it, or it was closed: it begins anew, with nothing."""
        self._began_s = self._at_s = at_s
        self._level = 0.0


class Machine:
    """So much memory, and who holds it. Sensors ask it; each question may go wrong."""

    def __init__(self, dice: random.Random, clock: Callable[[], float], faults: Faults, *, gpu: bool) -> None:
        self._dice, self._clock, self.faults = dice, clock, faults
        self.total = {RAM: dice.choice([8, 16, 32, 64]) * GIB}
        if gpu:
            self.total[GPU] = dice.choice([6, 8, 12, 24]) * GIB
        self.ours: Uses = dict
        self.kill: Callable[[str], bool] = lambda _: False
        """Kill the model that holds most of a resource; False where there is none."""
        self._has = [name for name in ("pressure", "power", "thermal") if dice.random() < 0.3]
        """What this machine has sensors for, beside memory."""
        if gpu:
            self._has.append("gpus")
        self.plugged_in = True
        self.throttled = False
        self.kills = 0
        kinds = ["steady", "steps", "saw", "leak", "walk", "walk"]
        self.programs = [
            OtherProgram(dice, dice.choice(kinds), resource, dice.uniform(0.02, 0.3), clock())
            for resource in self.total
            for _ in range(dice.randint(1, 4 if resource == RAM else 2))
        ]

    def other(self, resource: str) -> int:
        """What all others hold."""
        at_s, total = self._clock(), self.total[resource]
        return int(total * sum(one.takes(at_s) for one in self.programs if one.resource == resource))

    def settle(self) -> None:
        """Have the kernel kill somebody where more is held than there is."""
        for resource, total in self.total.items():
            while (over := self.other(resource) + self.ours().get(resource, 0) - total) > 0:
                if self.kill(resource):
                    self.kills += 1
                    continue
                at_s = self._clock()
                largest = max(
                    (one for one in self.programs if one.resource == resource), key=lambda one: one.takes(at_s)
                )
                before = largest.takes(at_s)
                largest.end(at_s)
                if over > 0 and largest.takes(at_s) >= before:
                    self.programs.remove(largest)

    def used(self, resource: str) -> tuple[int, int]:
        """What is held of a resource by all, and by our models."""
        own = self.ours().get(resource, 0)
        return min(self.other(resource) + own, self.total[resource]), own

    def sensors(self) -> tuple[Sensor, ...]:
        """Those of this machine."""
        sensors = [Sensor("memory", self, self._memory), Sensor("own_bytes", self, lambda: self.used(RAM)[1])]
        return (*sensors, *(Sensor(name, self, getattr(self, f"_{name}")) for name in self._has))

    def _power(self) -> Power:
        return Power(self.plugged_in)

    def _thermal(self) -> Thermal:
        return Thermal(self.throttled)

    def _memory(self) -> Memory:
        self.settle()
        return Memory(self.total[RAM], self.total[RAM] - self.used(RAM)[0])

    def _pressure(self) -> Pressure:
        used, _ = self.used(RAM)
        return Pressure(memory=Stall(max(0.0, used / self.total[RAM] - 0.9)))

    def _gpus(self) -> tuple[Gpu, ...]:
        total = self.total[GPU]
        used, own = self.used(GPU)
        return (Gpu(0, "simulated", total, used, total - used, own),)


class Late(Exception):
    """A sensor answers only after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Sensor:
    """Reads one part of the machine; fulfils `scaler.sensors.Sensor`."""

    def __init__(self, name: str, machine: Machine, look: Callable[[], object]) -> None:
        self.name, self.look = name, look
        self._faults, self._dice = machine.faults, machine._dice

    def read(self) -> object:
        kind = self._faults.draw("sensor", ("fail", "odd", "hang", "late", "rubbish", "missing"), part=0.05)
        match kind:
            case "fail":
                raise SensorFailed(f"{self.name}: no, as drawn")
            case "odd":
                raise ValueError(f"{self.name}: as no sensor should, as drawn")
            case "late":
                raise Late(self._faults.lateness_s())
            case "hang":
                raise Late(self._dice.uniform(60.0, 7200.0))
            case "missing":
                return None
            case "rubbish" if self.name == "memory":
                # What drivers were seen to say: nothing at all, less than nothing, no number.
                wrong = self._dice.choice([0, -1, math.nan])
                return Memory(wrong, wrong)  # type: ignore[arg-type]
            case "rubbish" if self.name == "own_bytes":
                return self._dice.choice([-1, math.nan])
        return self.look()


class SimulatedSurvey(ProgramSurvey):
    """Who holds memory on the made-up machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def take(self, *, gpus: bool, in_our_group: bool = False) -> Survey:
        """The programs now."""
        machine, at_s = self._machine, self._machine._clock()
        if machine.faults.draw("survey", ("fail",)):
            raise OSError("no, as drawn")
        held = [
            Program(one.kind, pid, 1, {one.resource: int(one.takes(at_s) * machine.total[one.resource])})
            for pid, one in enumerate(machine.programs, start=100)
        ]
        return Survey(tuple(program for program in held if any(program.held.values())))
