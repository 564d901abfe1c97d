"""What of a decision outlives the process: what was learned, what failed, when the level changed last, the pin.

Pure: a machine becomes plain data, and plain data a machine's knowledge again. What was seen of other programs is not
kept: room must be watched anew, through the whole dwell, before anything is climbed to. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge, Le, Len, Lt

from scaler.evidence import NEVER
from scaler.levels import OFF
from scaler.machine import LevelMachine

Count = Annotated[int, Ge(0), Lt(1 << 53)]
Seconds = Annotated[float, Ge(0), Lt(1e7)]
Time = Annotated[float, Ge(-1e10), Le(1e10)]
"""Monotonic seconds, of the boot in which they were written down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedLevel:
    """What is known of a level. ``mark`` names its model and settings: under another one, none of it is true."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}

    mark: str
    footprint: Mapping[str, Count] = field(default_factory=dict)
    """Bytes of each resource, where it was seen to take any."""
    load_s: Seconds
    failures: Count = 0
    backoff_until_s: Time | None = None
    wasted: Count = 0
    caution: Annotated[float, Ge(0), Lt(1)] = 0.0
    caution_at_s: Time = 0.0
    incidents: Mapping[str, Count] = field(default_factory=dict)
    failed: str | None = None
    """Why it failed the last time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """Everything, at the monotonic time ``at_s`` of a boot; ``boot`` is None where boots cannot be told apart."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}

    at_s: Time
    boot: Annotated[str, Len(1, 100)] | None
    ended: bool
    """Whether the scaler was asked to end; False for as long as it runs, and so after a crash."""
    state: str
    changed_at_s: Time | None
    loading: str | None
    """The level that a switch in progress leads to."""
    climbed: str | None
    """The level of a climb that could still prove wasted."""
    pinned: str | None
    levels: Mapping[str, RememberedLevel]


def remember(
    machine: LevelMachine,
    marks: Mapping[str, str],
    boot: str | None,
    at_s: float,
    *,
    ended: bool = False,
    failed: Mapping[str, str] | None = None,
) -> Remembered:
    """What is known now. ``marks`` of the levels by their names; ``failed`` says why levels failed the last time."""
    evidence = machine.evidence
    levels = {}
    for position, level in enumerate(machine.ladder):
        ratio, ratio_at_s = evidence.cautions[position].kept
        until_s = evidence.backoff_until_s[position]
        levels[level.name] = RememberedLevel(
            mark=marks[level.name],
            footprint=evidence.footprints.learned(position),
            load_s=evidence.load_s[position],
            failures=evidence.failures[position],
            backoff_until_s=until_s if until_s > at_s else None,
            wasted=evidence.wasted[position],
            caution=ratio,
            caution_at_s=ratio_at_s,
            incidents=dict(evidence.cautions[position].incidents),
            failed=(failed or {}).get(level.name),
        )
    return Remembered(
        at_s=at_s,
        boot=boot,
        ended=ended,
        state=machine.state,
        changed_at_s=evidence.changed_at_s if evidence.changed_at_s > NEVER else None,
        loading=machine.state if not machine.settled and machine.state != OFF else None,
        climbed=machine.climbed if machine.settled else None,
        pinned=machine.pinned,
        levels=levels,
    )


def recall(
    machine: LevelMachine, remembered: Remembered, marks: Mapping[str, str], boot: str | None, at_s: float
) -> None:
    """Have a machine that has seen nothing yet know what was remembered.

    A crash counts against what may have caused it: a level that was being loaded, unless it is the smallest, counts as
    failed, and a climb that could still prove wasted as wasted. After a crash, and after an end at `off`, room is
    watched for the recovery time before anything is loaded; after an end that was asked for, nothing is waited for.
    """
    evidence, policy = machine.evidence, machine.policy
    later_s = at_s - passed_s(remembered, boot, at_s) - remembered.at_s
    for position, level in enumerate(machine.ladder):
        known = remembered.levels.get(level.name)
        if known is None or known.mark != marks[level.name]:
            continue
        evidence.footprints.recall(position, known.footprint, at_s)
        evidence.load_s[position] = known.load_s
        evidence.failures[position] = known.failures
        evidence.wasted[position] = known.wasted
        evidence.cautions[position].recall(known.caution, min(at_s, known.caution_at_s + later_s), known.incidents)
        if known.backoff_until_s is not None:
            until_s = min(known.backoff_until_s + later_s, at_s + policy.backoff_max_s)
            evidence.backoff_until_s[position] = until_s
        if not remembered.ended:
            if remembered.loading == level.name and position > 0:
                evidence.fail(position, at_s)
            if remembered.climbed == level.name:
                evidence.wasted[position] += 1
    if remembered.changed_at_s is not None:
        evidence.changed_at_s = min(at_s, remembered.changed_at_s + later_s)
    if remembered.ended and remembered.state != OFF:
        evidence.begun_at_s = at_s
    names = (OFF, *machine.ladder.names)
    if remembered.pinned in names and machine.ladder.index(remembered.pinned) <= evidence.highest_allowed:
        evidence.pinned = machine.ladder.index(remembered.pinned)


def passed_s(remembered: Remembered, boot: str | None, at_s: float) -> float:
    """The seconds that have certainly passed since; exact within one boot, never too many.

    Wall clocks are set, and after a power cut often wrong, so none is asked. The monotonic clock begins with the boot
    (Linux, macOS and Windows): after another boot, at least the time since that one has passed, and how long the
    machine was off does not count. Where boots cannot be told apart, a clock that is behind tells of another boot, and
    for one that is ahead the difference is too little in any case.
    """
    since_s = at_s - remembered.at_s
    another = boot is not None and remembered.boot is not None and boot != remembered.boot
    return max(0.0, at_s if another or since_s < 0 else since_s)
