"""The ladder: levels in order, smallest first.

Plain data and its validation. Knows nothing of files, processes or thresholds: what a runtime needs
in order to load a level stays with the settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scaler.errors import ConfigError

GIB = 1024**3
OFF = "off"
RAM = "ram"


def gpu_resource(index: int) -> str:
    """The name of a GPU's memory as a resource: ``gpu0`` for the GPU that the sensors number 0."""
    return f"gpu{index}"


@dataclass(frozen=True, slots=True)
class Level:
    """One rung of the ladder.

    ``footprint`` maps a resource (``ram``, ``gpu0``, ...) to the bytes that the level takes of it when
    serving, as declared, and gives back when it is unloaded: what it does not name, the level is not judged by. Empty
    for one that takes nothing here, as of another machine. ``quality`` is the person's own judgement, 0..1;
    ``load_s`` is how long loading is expected to take, in seconds. ``standby``: it is kept loaded beside the levels
    above it, whose footprints include its own. ``mapped``: its weights are pages of a mapped file, which do not show as
    used, so that it takes more than it is seen to take.
    """

    name: str
    footprint: Mapping[str, int]
    quality: float
    load_s: float
    standby: bool = False
    mapped: bool = False


@dataclass(frozen=True, slots=True)
class Saving:
    """What another setting of a level would save: bytes of each resource that it would take less.

    ``setting`` as the configuration calls it, ``value`` in place of ``instead_of``.
    """

    setting: str
    value: str
    instead_of: str
    saved: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A level that is no larger than the one below it: the resource that shows it, and the sentence that says so."""

    resource: str
    sentence: str


def misplaced(smaller: str, below: Mapping[str, int], larger: str, above: Mapping[str, int]) -> Misplaced | None:
    """Whether the level ``larger`` is out of place behind ``smaller``; the mappings are the bytes that each takes.

    A level may take less of one resource if it takes more of another, and one that takes nothing may stand anywhere.
    """
    taken = {resource for resource, size in below.items() if size}
    if not taken or not any(above.values()):
        return None
    resources = {**below, **above}
    if any(above.get(resource, 0) > below.get(resource, 0) for resource in resources):
        return None
    resource = max(resources, key=lambda resource: below.get(resource, 0) - above.get(resource, 0))
    takes, before = _gib(above.get(resource, 0), below.get(resource, 0))
    return Misplaced(
        resource,
        f"{larger!r} takes {takes} of {'RAM' if resource == RAM else resource} and {smaller!r} before it {before}; "
        "expected the levels from the smallest to the largest",
    )


def _gib(one: int, other: int) -> tuple[str, str]:
    """Both in GiB, with two digits behind the point, or as many as it takes to tell them apart."""
    digits = next((digits for digits in range(2, 10) if f"{one / GIB:.{digits}f}" != f"{other / GIB:.{digits}f}"), 2)
    return f"{one / GIB:.{digits}f} GiB", f"{other / GIB:.{digits}f} GiB"


class Ladder(Sequence[Level]):
    """The levels in order, smallest first; never empty.

    Raises :class:`ConfigError` for an empty ladder, duplicate or reserved names, or a level that takes no more of
    anything than the one before it.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        if not levels:
            raise ConfigError("ladder: no levels; expected at least one")
        names = [level.name for level in levels]
        for position, name in enumerate(names):
            if not name or name == OFF:
                raise ConfigError(f"ladder[{position}].name: {name!r} cannot be used; expected a name other than 'off'")
            if name in names[:position]:
                raise ConfigError(f"ladder[{position}].name: {name!r} is used twice; expected distinct names")
        for position, (below, above) in enumerate(pairwise(levels), start=1):
            if wrong := misplaced(below.name, below.footprint, above.name, above.footprint):
                raise ConfigError(f"ladder[{position}]: {wrong.sentence}")
        self._levels = tuple(levels)
        self._index = {level.name: index for index, level in enumerate(levels)}

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # both overloads of Sequence
        return self._levels[index]

    def __len__(self) -> int:
        return len(self._levels)

    def __iter__(self) -> Iterator[Level]:
        return iter(self._levels)

    @property
    def names(self) -> tuple[str, ...]:
        """The levels' names, smallest first, without ``off``."""
        return tuple(level.name for level in self._levels)

    def index(self, name: object, *_: int) -> int:
        """The position of the level called ``name``, 0 for the smallest; ``off`` is -1.

        Raises KeyError for a name that is not on the ladder.
        """
        return -1 if name == OFF else self._index[str(name)]

    def level(self, name: str) -> Level:
        """The level called ``name``; raises KeyError when there is none."""
        return self._levels[self._index[name]]

    def alone(self, name: str) -> Mapping[str, int]:
        """The footprint of the level called ``name`` without those of the smaller ones that stand by beside it.

        Raises KeyError when there is none.
        """
        beside = Counter[str]()
        for level in self._levels[: self._index[name]]:
            if level.standby:
                beside += Counter(level.footprint) - beside
        return Counter(self.level(name).footprint) - beside
