"""Feeds a LevelMachine with readings and answers its switches; the time is the test's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaler.levels import GIB, OFF, RAM, Ladder, Level
from scaler.machine import LevelMachine, Outlook, Switch
from scaler.policy import Policy
from scaler.readings import Gpu, Memory, Pressure, Reading, Stall

TOTAL_GIB = 24.0
GPU_GIB = 16.0
LADDER = Ladder(
    [
        Level("small", {RAM: 2 * GIB}, 0.5, 1.0),
        Level("medium", {RAM: 6 * GIB}, 0.8, 3.0),
        Level("large", {RAM: 12 * GIB}, 1.0, 5.0),
    ]
)
GPU_LADDER = Ladder(
    [
        Level("small", {RAM: 2 * GIB}, 0.5, 1.0),
        Level("medium", {RAM: 3 * GIB, "gpu0": 4 * GIB}, 0.8, 3.0),
        Level("large", {RAM: 4 * GIB, "gpu0": 10 * GIB}, 1.0, 5.0),
    ]
)
"""In the machine of 24 GiB, large fits below the band up to 6.48 GiB of other usage, medium 12.48, small 16.48.
It is over the limit from 7.2 GiB on, medium from 13.2, small from 17.2; critical from 10.8, 16.8 and 20.8."""


def at_once(_: Switch) -> bool:
    """The effects do what they are told in no time."""
    return True


class Driver:
    """A machine and its clock. ``answer`` says of each switch whether it succeeds at once; False leaves it open."""

    def __init__(
        self,
        ladder: Ladder = LADDER,
        *,
        initial: str = OFF,
        answer: Callable[[Switch], bool] = at_once,
        now_s: float = 1000.0,
        **policy: Any,
    ) -> None:
        self.now_s = now_s
        self.answer = answer
        self.switches: list[Switch] = []
        self.hurried: list[Switch] = []
        self.machine = LevelMachine(
            ladder, Policy(**policy), self.switches.append, on_hurry=self.hurried.append, initial=initial
        )
        self._answered = 0

    @property
    def state(self) -> str:
        return self.machine.state

    @property
    def moves(self) -> list[tuple[str, str, str]]:
        """Every change as (trigger, from, to)."""
        return [(s.decision.trigger, s.decision.source, s.decision.dest) for s in self.switches]

    def read(
        self,
        other_gib: float,
        seconds: float = 1.0,
        *,
        every_s: float = 1.0,
        own_gib: float | None = None,
        until: Callable[[], bool] = lambda: False,
        **fields: Any,
    ) -> None:
        """Hand in readings of constant other usage; the model takes what it declares unless ``own_gib`` says else."""
        end_s = self.now_s + seconds
        while self.now_s + every_s <= end_s + 1e-9 and not until():
            self.now_s += every_s
            self.observe(self.reading(other_gib, own_gib, **fields))

    def reading(self, other_gib: float, own_gib: float | None = None, **fields: Any) -> Reading:
        """The machine as it is now."""
        own = self._declared(RAM) if own_gib is None else int(own_gib * GIB)
        memory = Memory(int(TOTAL_GIB * GIB), int((TOTAL_GIB - other_gib) * GIB) - own)
        return Reading(**{"at_s": self.now_s, "memory": memory, "own_bytes": own, **fields})

    def gpu(self, other_gib: float, own_gib: float | None = None) -> tuple[Gpu, ...]:
        """Its graphics memory, as a field of a reading."""
        own = self._declared("gpu0") if own_gib is None else int(own_gib * GIB)
        used = int(other_gib * GIB) + own
        total = int(GPU_GIB * GIB)
        return (Gpu(0, "a card", total, used, total - used, own),)

    def read_gpu(self, other_gib: float, gpu_gib: float | None, seconds: float = 1.0) -> None:
        """Readings of a machine with a GPU; None: its driver does not answer."""
        for _ in range(int(seconds)):
            self.now_s += 1.0
            gpus = None if gpu_gib is None else self.gpu(gpu_gib)
            self.observe(self.reading(other_gib, gpus=gpus))

    def observe(self, reading: Reading) -> None:
        """Hand in one reading, and answer what it brings about."""
        self.machine.observe(reading)
        self.effects()

    def effects(self) -> None:
        """Answer the switches that were asked for, including what follows from the answers."""
        while self._answered < len(self.switches):
            switch = self.switches[self._answered]
            self._answered += 1
            if self.answer(switch):
                self.machine.switched(switch.ticket, self.now_s)

    def fail(self, still_serving: str) -> None:
        """The switch in progress fails."""
        assert self.machine.switch is not None
        self.machine.switch_failed(self.machine.switch.ticket, still_serving, self.now_s)
        self.effects()

    def outlook(self, level: str) -> Outlook:
        """How a level stands."""
        return next(outlook for outlook in self.machine.outlooks() if outlook.level == level)

    def _declared(self, resource: str) -> int:
        serving = self.machine.serving
        return 0 if serving == OFF else self.machine.ladder.level(serving).footprint.get(resource, 0)


def stalls(ratio: float) -> Pressure:
    """Pressure where tasks wait for memory this share of the time."""
    return Pressure(memory=Stall(ratio))
