"""What applies at each level today: the tier's figures, and what was learned on top of them.

Pure; only tells, for people. What it tells of is kept in the evidence, and compared by the guards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scaler.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Effective:
    """The figures of one level at this moment. Ratios are of a resource's total; times are seconds."""

    level: str
    takes: Mapping[str, int]
    """What it takes, in bytes of each resource, as declared or learned; empty if it takes nothing here."""
    scale_at: float
    """The configured limit of the resource that is tightest there."""
    limit: float
    """Usage above this makes the level give way: scale-at less the caution that incidents taught."""
    critical_at: float
    """The configured mark of that resource from which on the level gives way even where a person pinned it."""
    dwell_s: float
    """For how long a climb to it must have been possible: longer after wasted ones."""
    band: float
    """How far above what was just seen the others' use is expected to peak, from how far it did before."""
    expected: float | None
    """The highest usage there that is to be expected; None before enough was watched."""
    seen_s: float | None
    """The stretch whose peak that expectation starts from."""
    rise_per_s: float
    """How fast the others' use rises steadily, as a share of the tightest resource's total; 0 if it does not."""
    waits_for_needles: bool
    """Whether most rises there were over before a step down could help, so that the next is waited for."""
    wasted: int
    """Climbs to it in a row that had to be undone soon."""
    failures: int
    """How often in a row it failed to load, or died."""
    backs_off_s: float
    """For how much longer it is left alone because of that."""
    incidents: Mapping[str, int]
    """What people noticed there, or nearly, since the start: how often of each kind."""


def effective(evidence: Evidence) -> tuple[Effective, ...]:
    """The figures of every level, smallest first."""
    return tuple(_of(evidence, position) for position in range(len(evidence.ladder)))


def _of(evidence: Evidence, position: int) -> Effective:
    expected = evidence.expected(position)
    scale_at, critical_at = evidence.thresholds(evidence.tightest(position))
    return Effective(
        evidence.ladder[position].name,
        {name: size for name, size in zip(evidence.resources, evidence.footprints.of(position), strict=True) if size},
        scale_at,
        evidence.own(position, evidence.limits[position]) or 0.0,
        critical_at,
        evidence.dwell_s(position),
        evidence.policy.band if expected is None else expected.peak.band,
        None if expected is None else evidence.own(position, expected.at_most, expected.resource),
        None if expected is None else expected.peak.window_s,
        evidence.trends[evidence.tightest(position)].steady_rise_per_s,
        evidence.needles[position].trusted(evidence.now_s),
        evidence.wasted[position],
        evidence.failures[position],
        max(0.0, evidence.backoff_until_s[position] - evidence.now_s),
        dict(evidence.cautions[position].incidents),
    )
