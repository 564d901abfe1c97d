"""What is gone through: ladders of one to five levels, each with the letters that concern one aspect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scaler.levels import RAM, Ladder, Level
from scaler.policy import Policy
from tests.exhaustive.letters import GPU, PART, PARTS, Event, Letter, Read, effects, people, readings, spoilt
from tests.exhaustive.world import Scope


def policy(**changes: Any) -> Policy:
    """Times of a few ticks, and limits that are binary fractions."""
    return Policy(
        **{
            "scale_at": 48 / PARTS,
            "band": 4 / PARTS,
            "critical_at": 56 / PARTS,
            "exhausted_at": 62 / PARTS,
            "recovery_band": 1 / PARTS,
            "caution_max": 4 / PARTS,
            "dwell_s": 3.0,
            "dwell_max_s": 6.0,
            "debounce_s": 2.0,
            "recovery_s": 2.0,
            "backoff_s": 2.0,
            "backoff_max_s": 4.0,
            "wasted_within_s": 4.0,
            "stale_after_s": 2.0,
            "needle_s": 2.0,
            "exhausted_s": 1.0,
            "switch_margin_s": 2.0,
            "drain_seconds": 0.0,
            "drain_tokens": 0,
            **changes,
        }
    )


BRIEF = {
    "dwell_s": 2.0,
    "dwell_max_s": 2.0,
    "debounce_s": 1.0,
    "recovery_s": 1.0,
    "backoff_s": 2.0,
    "backoff_max_s": 2.0,
}
"""For ladders whose states would be too many: no time doubles."""


def ladder(needs: Sequence[int | Mapping[str, int]], standby: Sequence[int] = ()) -> Ladder:
    """Levels that take so many parts, of RAM if nothing else is said."""
    levels = []
    for position, need in enumerate(needs):
        parts = {RAM: need} if isinstance(need, int) else need
        footprint = {resource: size * PART for resource, size in parts.items()}
        levels.append(Level(f"level{position}", footprint, 0.5, LOAD_S, standby=position in standby))
    return Ladder(levels)


DONE = Event("done")
LOAD_S = 2.0
"""As long as the switch's margin: so a rise has gone half as far when only that has passed."""


def _evenly(count: int) -> Ladder:
    """Levels with the same distance: each is at its limit where the next larger one is critical."""
    return ladder([8 * (position + 1) for position in range(count)])


def _some(plain: Sequence[Read], count: int) -> list[Read]:
    """So many of the readings, from the least usage to the most."""
    last = len(plain) - 1
    return [plain[round(last * number / (count - 1))] for number in range(count)]


def _scope(
    name: str, levels: Ladder, times: Mapping[str, Any], *more: Sequence[Letter], of: int | None = None
) -> Scope:
    """All bands of usage, or ``of`` of them, and what else there is."""
    chosen = policy(**times)
    plain: Sequence[Letter] = readings(levels, chosen)
    if of is not None:
        plain = _some([read for read in plain if isinstance(read, Read)], of)
    return Scope(name, levels, chosen, tuple(dict.fromkeys([*plain, DONE, *(one for group in more for one in group)])))


def _forecasts(levels: Ladder, times: Mapping[str, Any], of: int) -> list[Read]:
    """Some bands with every answer of the oracles: rises, expected peaks, needles, caution; and tasks that wait."""
    chosen = policy(**times)
    some = _some(readings(levels, chosen), of)
    found = list[Read]()
    for read in some:
        found += [Read(read.ram, rise=rise) for rise in (6, PARTS)]
        found += [Read(read.ram, peak=peak) for peak in (read.ram, *_limits(levels, chosen), PARTS)]
        found += [Read(read.ram, trusted=True), Read(read.ram, cautious=True), Read(read.ram, stalled=True)]
        found.append(Read(read.ram, trusted=True, cautious=True))
    for part in _limits(levels, chosen):
        # Above the limit that caution lowers, and below the one without it.
        found.append(Read(part - 1, cautious=True))
        # Up to a limit, to what is critical and to where nothing is left, and no further.
        band, critical, left = (
            round(PARTS * ratio)
            for ratio in (chosen.band, chosen.critical_at - chosen.scale_at, chosen.exhausted_at - chosen.scale_at)
        )
        found += [Read(part - band, rise=band), Read(part, rise=critical), Read(part, rise=2 * left)]
    return [read for read in found if read.ram >= 0]


def _limits(levels: Ladder, chosen: Policy) -> list[int]:
    """What others may take for each level to be right at its limit."""
    limit = round(PARTS * chosen.scale_at)
    return [limit - level.footprint[RAM] // PART for level in levels]


def _battery(levels: Ladder, times: Mapping[str, Any], of: int) -> list[Read]:
    some = _some(readings(levels, policy(**times)), of)
    return [Read(read.ram, power=said) for read in some for said in ("plugged in", "battery", "lost")]


def _late(levels: Ladder, times: Mapping[str, Any], of: int) -> list[Letter]:
    chosen = policy(**times)
    return list(spoilt(_some(readings(levels, chosen), of), chosen))


def scopes() -> list[Scope]:
    """Everything that is gone through."""
    one, two, three = _evenly(1), _evenly(2), _evenly(3)
    late = {**BRIEF, "stale_after_s": 1.0}
    battery = {**BRIEF, "battery_max_level": "level0"}
    drains = {**BRIEF, "drain_seconds": 20.0, "drain_tokens": 100}
    doubling = {**BRIEF, "dwell_max_s": 4.0, "wasted_within_s": 3.0, "backoff_max_s": 4.0}
    fails: list[Letter] = [Event("failed")]
    failing: list[Letter] = [*fails, Event("lost")]
    stand_by = ladder([8, 24, 32], standby=(0,))
    dying: list[Letter] = [Event("died", position) for position in range(3)]
    both = ladder([{RAM: 12}, {RAM: 12, GPU: 24}])
    mixed = ladder([{RAM: 16}, {GPU: 24}])
    crossed = ladder([{GPU: 16}, {RAM: 24}])
    three_mixed = ladder([{RAM: 8}, {RAM: 8, GPU: 16}, {GPU: 40}])
    rising = [read for read in _forecasts(one, BRIEF, 2) if read.rise]
    unread = [Read(0, None), Read(36, None), Read(PARTS, None)]
    return [
        _scope("1 level: effects, times that double", one, {}, effects(one), [Event("degrade")]),
        _scope("1 level: effects and people", one, BRIEF, effects(one), people(one)),
        _scope("1 level: rises and people", one, BRIEF, rising, people(one)[:3], of=4),
        _scope("1 level: late and unusable readings", one, late, failing, _late(one, late, 3)),
        _scope("2 levels: effects", two, BRIEF, effects(two), [Event("degrade")]),
        _scope("2 levels, close: effects", ladder([8, 12]), BRIEF, effects(two)),
        _scope("2 levels: times that double", two, doubling, fails, of=6),
        _scope("2 levels: people", two, BRIEF, people(two)),
        _scope("2 levels: late and unusable readings", two, late, _late(two, late, 3), of=7),
        _scope("2 levels: forecasts, needles, caution", two, BRIEF, _forecasts(two, BRIEF, 3)),
        _scope("2 levels: battery", two, battery, _battery(two, battery, 3), of=3),
        _scope("2 levels: draining", two, drains, failing, of=8),
        _scope("3 levels: failing", three, BRIEF, fails, of=8),
        _scope("3 levels: people", three, BRIEF, people(three), of=5),
        _scope("3 levels: forecasts, needles, caution", three, BRIEF, _forecasts(three, BRIEF, 2), of=4),
        _scope("3 levels: one stands by", stand_by, BRIEF, dying[1:], of=5),
        _scope("4 levels: readings", _evenly(4), BRIEF),
        _scope("5 levels: readings", _evenly(5), BRIEF),
        _scope("2 levels, one with a GPU", both, BRIEF, unread),
        _scope("2 levels, one on a GPU only", mixed, BRIEF, unread, [Read(ram, rise=PARTS) for ram in (0, 32, 40)]),
        _scope("2 levels, the smaller on a GPU only", crossed, BRIEF, unread),
        _scope("3 levels, RAM, both, GPU only", three_mixed, BRIEF, unread, of=24),
    ]
