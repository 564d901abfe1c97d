"""The alphabet: every kind of input that the machine can get, one letter each.

Usage is told in parts of the machine's memory, `PARTS` in all: binary fractions, so that a usage right at a limit is
right at it. Of each band of usage between two limits there is a letter; where a limit itself belongs to the band, it is
the limit, since that is where a comparison that is off shows. A tick is a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal

from scaler.levels import RAM, Ladder
from scaler.policy import Policy

PARTS = 64
PART = 1 << 20
TOTAL = PARTS * PART
GPU = "gpu0"
LONG = 100
"""Ticks after which every time has passed that any guard asks for."""

Said = Literal["plugged in", "battery", "untold", "lost"]
Kind = Literal[
    "missing",
    "past",
    "nonsense",
    "done",
    "failed",
    "lost",
    "serves",
    "stale",
    "died",
    "degrade",
    "pin",
    "unpin",
    "want",
]


@dataclass(frozen=True, slots=True)
class Read:
    """A reading, and what the oracles answer at it. Sizes: parts of the memory, ``gpu`` None if it does not answer.

    ``rise``: by how many parts that of RAM will have risen when a switch is over. ``peak``: what the others are
    expected to take at the most. ``trusted`` and ``cautious`` are for all levels alike. ``gap``: ticks since the
    reading before; 0 for one that comes a tick after that, however late it is now.
    """

    ram: int
    gpu: int | None = 0
    gap: int = 1
    rise: int = 0
    peak: int | None = None
    trusted: bool = False
    cautious: bool = False
    stalled: bool = False
    power: Said = "untold"

    @property
    def steady(self) -> bool:
        """Whether readings that stay like this are of constant usage."""
        return self.gap == 1 and not self.rise

    def __str__(self) -> str:
        words = [f"others take {self.ram}"]
        if self.gpu != 0:
            words.append("GPU unread" if self.gpu is None else f"{self.gpu} of the GPU")
        if self.gap != 1:
            words.append(f"{self.gap} ticks later" if self.gap else "delayed")
        if self.rise:
            words.append(f"rising by {self.rise}")
        if self.peak is not None:
            words.append(f"up to {self.peak} expected")
        words += [name for name in ("trusted", "cautious", "stalled") if getattr(self, name)]
        if self.power != "untold":
            words.append(f"power: {self.power}")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Event:
    """Anything else. ``position`` is that of a level, -1 for off; for `want`, whether anybody asks."""

    kind: Kind
    position: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.position}" if self.kind in ("serves", "died", "pin", "want") else self.kind


Letter = Read | Event


def cuts(ladder: Ladder, policy: Policy, resource: str, *, exhausted: bool = False) -> tuple[set[int], set[int]]:
    """What of the others' use divides the bands: up to and including these parts, and from these parts on."""
    up_to, from_on = set[int](), set[int]()
    for position, level in enumerate(ladder):
        need = level.footprint.get(resource, 0) // PART
        if not need:
            continue
        limit, band, critical = (round(PARTS * ratio) for ratio in (policy.scale_at, policy.band, policy.critical_at))
        up_to |= {limit - band - need, limit - need}
        if not position:
            up_to.add(critical - round(PARTS * policy.recovery_band) - need)
        ticks = round(policy.debounce_s)
        # Where the debounce has shrunk by another tick.
        from_on |= {limit + (critical - limit) * passed // ticks - need for passed in range(1, ticks)}
        from_on.add(critical - need)
        if exhausted:
            from_on.add(round(PARTS * policy.exhausted_at) - need)
    return {cut for cut in up_to if cut >= 0}, {cut for cut in from_on if cut > 0}


def bands(ladder: Ladder, policy: Policy, resource: str, *, exhausted: bool = False) -> list[int]:
    """One or two parts of each band: the limits that belong to it, else anything within."""
    up_to, from_on = cuts(ladder, policy, resource, exhausted=exhausted)
    edges = sorted({2 * cut + 1 for cut in up_to} | {2 * cut - 1 for cut in from_on} | {-1, 2 * PARTS + 1})
    found = list[int]()
    for low, high in pairwise(edges):
        first, last = (low + 1) // 2, (high - 1) // 2
        limits = {part for part in (first,) if part in from_on} | {part for part in (last,) if part in up_to}
        found += sorted(limits) or [(first + last) // 2]
    return found


def readings(ladder: Ladder, policy: Policy, *, exhausted: bool = False) -> list[Read]:
    """A plain reading of every band, of each combination of them where there is a GPU."""
    gpu = bands(ladder, policy, GPU, exhausted=exhausted) if any(GPU in level.footprint for level in ladder) else [0]
    return [Read(ram, card) for ram, card in product(bands(ladder, policy, RAM, exhausted=exhausted), gpu)]


def effects(ladder: Ladder) -> list[Letter]:
    """What becomes of a switch, and of models; `serves` and `died` say it of every level, loaded or not."""
    each = range(len(ladder))
    return [
        *(Event(kind) for kind in _kinds("done", "failed", "lost", "stale")),
        *(Event("serves", position) for position in (-1, *each)),
        *(Event("died", position) for position in each),
    ]


def _kinds(*kinds: Kind) -> Iterable[Kind]:
    return kinds


def people(ladder: Ladder) -> list[Letter]:
    """What people ask for."""
    pins = [Event("pin", position) for position in range(-1, len(ladder))]
    return [*pins, Event("unpin"), Event("degrade"), Event("want", 0), Event("want", 1)]


def spoilt(plain: Iterable[Read], policy: Policy) -> Iterator[Letter]:
    """Readings that say nothing, and those that come late: at the stale time, past it, long past it, and delayed."""
    yield from (Event(kind) for kind in _kinds("missing", "past", "nonsense"))
    stale = round(policy.stale_after_s)
    for read in plain:
        for gap in (0, stale, stale + 1, LONG):
            yield Read(read.ram, read.gpu, gap)
