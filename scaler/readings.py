"""What the sensors saw: one :class:`Reading` is one sample of the machine.

Data only. What a machine lacks, or what could not be read, is ``None`` and never 0. Ratios are 0..1
(a CPU ratio is of all cores together), sizes are bytes, rates are per second. Nobody changes a reading; those parts
that every decision makes anew are not frozen all the same, because that took a tenth of a decision's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from scaler.levels import RAM, gpu_resource

FARTHEST_S = 2.0**32
"""A monotonic time so far from 0, some 136 years, is none: whoever gave it may have counted in nanoseconds."""


@dataclass(slots=True)
class Memory:
    """RAM as far as this process may use it: ``limited_by`` says whether machine or cgroup sets it."""

    total_bytes: int
    available_bytes: int
    limited_by: str = "machine"


@dataclass(frozen=True, slots=True)
class Swap:
    """Swap space and its traffic; the rates are ``None`` until two samples exist."""

    total_bytes: int
    used_bytes: int
    in_bytes_per_s: float | None = None
    out_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cpu:
    """How busy the processors are, all of them together, and our own part of it."""

    cores: int
    busy_ratio: float | None = None
    own_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """Pressure stall information of one resource: share of the last ten seconds lost waiting."""

    some_avg10_ratio: float
    full_avg10_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Pressure:
    """PSI, where the kernel has it."""

    memory: Stall | None = None
    cpu: Stall | None = None
    io: Stall | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its driver reports it; ``own_bytes`` is what our model's processes hold there."""

    index: int
    name: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    own_bytes: int | None = None
    utilisation_ratio: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    """Whether it is slowed down for heat."""


@dataclass(frozen=True, slots=True)
class Power:
    """Where the power comes from."""

    plugged_in: bool | None = None
    battery_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Thermal:
    """Whether the processors are slowed down for heat, or were at any time since the reading before."""

    throttled: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How busy the server of the level that serves says that it is: answers that run and wait, and its cache, 0..1."""

    running: int
    waiting: int
    cache_ratio: float


@dataclass(slots=True)
class Usage:
    """One resource split into our model's part and everyone else's: used = own + other, in bytes."""

    total_bytes: int
    own_bytes: int
    other_bytes: int


@dataclass(slots=True)
class Reading:
    """One sample of the machine.

    ``at_s`` is monotonic and serves every calculation; ``wall_s`` (seconds since the epoch) is for people
    only. ``own_bytes`` is the RAM that our model's process tree holds and that would come back if it
    ended. ``missing`` names the sensors that should have answered and did not.
    """

    at_s: float
    wall_s: float | None = None
    memory: Memory | None = None
    own_bytes: int | None = None
    swap: Swap | None = None
    cpu: Cpu | None = None
    pressure: Pressure | None = None
    gpus: tuple[Gpu, ...] | None = None
    power: Power | None = None
    thermal: Thermal | None = None
    model: ModelLoad | None = None
    missing: tuple[str, ...] = field(default=())

    def usage(self, resource: str) -> Usage | None:
        """The use of ``ram`` or ``gpu<N>``, split into own and other; ``None`` when any part is missing or absurd."""
        if resource == RAM:
            memory = self.memory
            if memory is None or self.own_bytes is None:
                return None
            return _split(memory.total_bytes, memory.total_bytes - memory.available_bytes, self.own_bytes)
        for gpu in self.gpus or ():
            if gpu_resource(gpu.index) == resource and gpu.own_bytes is not None:
                return _split(gpu.total_bytes, gpu.used_bytes, gpu.own_bytes)
        return None


def _split(total: int, used: int, own: int) -> Usage | None:
    # More used than there is can be: a limit was lowered. Less than nothing cannot, and says nothing; nor does NaN, or
    # what has no end.
    if not (0 < total < inf and 0 <= used < inf and 0 <= own < inf):
        return None
    own = min(own, used)
    return Usage(total, own, used - own)


@dataclass(frozen=True, slots=True)
class Program:
    """A running program as a person thinks of it: all its processes together, of which ``pid`` came first.

    ``held`` is what would come back if it were closed, in bytes of each resource of which it holds any.
    """

    name: str
    pid: int
    processes: int
    held: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Survey:
    """Who holds memory: the programs that a person could close. ``unread`` says in sentences what was not seen."""

    programs: tuple[Program, ...] = ()
    unread: tuple[str, ...] = ()
