"""The named conditions of the transition table; each gives a verdict that can explain itself in numbers.

Pure functions of the evidence and of one level. This is the only place where a figure is compared with a
threshold, and projected usage is the only usage that is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scaler.ceilings import BATTERY, PROCESSORS, Ceiling
from scaler.evidence import Evidence
from scaler.levels import GIB, OFF, RAM


class Verdict(NamedTuple):
    """What a guard found: whether it holds, the figure that decided, and what that was compared with."""

    holds: bool
    measured: float | None
    limit: float | None
    words: str
    """The sentence; `explain` fills in what stands in braces. Names go there only, since a name may have braces."""
    extra: float | None = None
    asked: float | None = None
    resource: int | None = None
    """The index of the resource whose figure it is; None for the one that is tightest at the level now."""


_HELD = "usage at {level} would be {usage} of {total}; it has been at most {threshold} for "
HELD = _HELD + "all of the {asked:.0f} s asked"
HELD_SO_FAR = _HELD + "{extra:.0f} of the {asked:.0f} s asked"
ALLOWED = Verdict(True, None, None, "{level} is allowed")
NOTHING_LOWERS = Verdict(False, None, None, "neither battery power nor heat forbids {level}")


@dataclass(frozen=True, slots=True)
class Guard:
    """A named condition. ``subject`` says which end of a transition it is asked of."""

    name: str
    subject: Literal["from", "to"]
    sentence: str
    """What it demands, for people, with the policy's names in braces."""
    test: Callable[[Evidence, int], Verdict]


def over_limit(evidence: Evidence, position: int) -> Verdict:
    """Projected usage has been above scale-at for as long as the debounce asks.

    The debounce shrinks in a straight line from ``debounce_s`` at scale-at to nothing at critical-at: a
    needle just above the limit needs no answer, a fall towards exhaustion cannot wait. Where needles are
    the rule it is ``needle_s`` at the least. A pinned level gives way at critical-at only.
    """
    policy = evidence.policy
    usage, limit = evidence.usage_at(position), evidence.limits[position]
    since = evidence.over_since[position]
    if usage is None or since is None:
        return Verdict(False, usage, limit, "usage at {level} is {usage} of {total}; the limit is {threshold}")
    if evidence.pinned == position:
        return Verdict(
            usage >= policy.critical_at,
            usage,
            policy.critical_at,
            "usage at {level} is {usage} of {total}; it is pinned and gives way at {threshold}",
        )
    held = evidence.now_s - since
    return Verdict(
        held >= debounce_s(evidence, position, usage),
        usage,
        limit,
        "usage at {level} is {usage} of {total}; the limit is {threshold}, passed for {extra:.0f} s",
        held,
    )


def debounce_s(evidence: Evidence, position: int, usage: float) -> float:
    """For how many seconds a usage ratio above a level's limit is watched before it is acted on."""
    policy = evidence.policy
    asked = policy.debounce_s * max(0.0, (policy.critical_at - usage) / (policy.critical_at - policy.scale_at))
    if asked < policy.needle_s and evidence.needles[position].trusted(evidence.now_s):
        return policy.needle_s
    return min(asked, policy.debounce_s)


def forecast_over(evidence: Evidence, position: int) -> Verdict:
    """A steady rise, if it goes on, leaves nothing before a switch can have helped; a pinned level waits for it."""
    policy = evidence.policy
    limit, horizon = policy.exhausted_at, policy.switch_margin_s
    if evidence.pinned == position:
        return Verdict(False, None, policy.critical_at, "{level} is pinned and gives way at {limit}, not before")
    usage, ahead = evidence.usage_at(position), evidence.ahead(position, horizon)
    if usage is None or ahead is None or ahead.usage <= usage:
        return Verdict(False, usage, limit, "usage at {level} does not rise steadily; at {threshold} nothing is left")
    return Verdict(
        ahead.usage >= limit,
        ahead.usage,
        limit,
        "usage at {level} will be {usage} of {total} in {extra:.0f} s if this goes on; at {threshold} nothing is left",
        horizon,
        resource=ahead.resource,
    )


def critical(evidence: Evidence, position: int) -> Verdict:
    """Projected usage is at critical-at or above."""
    usage = evidence.usage_at(position)
    limit = evidence.policy.critical_at
    return Verdict(
        usage is not None and usage >= limit,
        usage,
        limit,
        "usage at {level} is {usage} of {total}; {threshold} is critical",
    )


def exhausted(evidence: Evidence, position: int) -> Verdict:
    """Projected usage has been so high for so long that the kernel is about to kill."""
    policy = evidence.policy
    usage, since = evidence.usage_at(position), evidence.exhausted_since
    held = 0.0 if since is None else evidence.now_s - since
    return Verdict(
        since is not None and held >= policy.exhausted_s,
        usage,
        policy.exhausted_at,
        "usage at {level} is {usage} of {total} for {extra:.0f} s; at {threshold} nothing is left",
        held,
    )


def fits(evidence: Evidence, position: int) -> Verdict:
    """Projected usage would be at the limit or below, and not critical soon after the switch."""
    return _room(evidence, position, evidence.limits[position], at_limit=True)


def fits_under_critical(evidence: Evidence, position: int) -> Verdict:
    """Projected usage would be below critical-at, soon after the switch as well."""
    return _room(evidence, position, evidence.policy.critical_at, at_limit=False)


def _room(evidence: Evidence, position: int, limit: float, *, at_limit: bool) -> Verdict:
    critical_at, horizon = evidence.policy.critical_at, evidence.horizon_s(position)
    usage, ahead = evidence.usage_at(position), evidence.ahead(position, horizon)
    now = usage is not None and (usage <= limit if at_limit else usage < limit)
    if now and ahead is not None and ahead.usage >= critical_at:
        words = "usage at {level} would be {usage} of {total} in {extra:.0f} s if this goes on; {threshold} is critical"
        return Verdict(False, ahead.usage, critical_at, words, horizon, resource=ahead.resource)
    what = "the limit is {threshold}" if at_limit else "{threshold} is critical"
    return Verdict(now, usage, limit, f"usage at {{level}} would be {{usage}} of {{total}}; {what}")


def room_beside(evidence: Evidence, ram_bytes: int) -> Verdict:
    """Usage would be below critical-at if the others took ``ram_bytes`` more of RAM, at the level that serves or will.

    Asked for what is loaded beside the ladder. Stepping down does not free it, so that it counts as the others'.
    """
    limit = evidence.policy.critical_at
    part = evidence.usage[evidence.resources.index(RAM)]
    if part is None:
        return Verdict(False, None, limit, "no reading yet")
    position = evidence.highest
    need = evidence.footprints.of(position)[evidence.resources.index(RAM)] if position >= 0 else 0
    usage = (part.other_bytes + need + ram_bytes) / part.total_bytes
    more = f" with {ram_bytes / GIB:.2g} GiB more" if ram_bytes else ""
    words = f"usage at {{level}} {'would be' if more else 'is'} {{measured}} of {part.total_bytes / GIB:.3g} GiB{more}"
    return Verdict(usage < limit, usage, limit, f"{words}; {{limit}} is critical")


def no_lower_fits(evidence: Evidence, position: int) -> Verdict:
    """Every smaller level would be at critical-at or above, or is left alone for now."""
    holds = not any(
        fits_under_critical(evidence, lower).holds and not backing_off(evidence, lower).holds
        for lower in range(position)
    )
    return Verdict(
        holds,
        None,
        evidence.policy.critical_at,
        "no smaller level stays under {limit}" if holds else "a smaller level stays under {limit}",
    )


def eases(evidence: Evidence, position: int) -> Verdict:
    """Projected usage would be lower than it is at the level that is meant to serve.

    A smaller level may be the tighter one, where it takes more of another resource.
    """
    here, there = evidence.usage_at(evidence.state), evidence.usage_at(position)
    holds = here is not None and there is not None and there < here
    words = "usage at {level} would be {usage} of {total}" + (", less than here" if holds else ", no less than here")
    return Verdict(holds, there, None, words)


def gives_no_way(evidence: Evidence, position: int) -> Verdict:
    """What serves has not to give way, or cannot but to this level, which takes no more of what is tight.

    It may be tight on RAM, and a larger level be on a GPU.
    """
    here = evidence.state
    over, rising = over_limit(evidence, here).holds, forecast_over(evidence, here).holds
    if not over and not rising:
        return Verdict(True, None, None, "what serves has not to give way")
    if rising or critical(evidence, here).holds or _eased_below(evidence) or _takes_more(evidence, position):
        return Verdict(False, None, None, "what serves has to give way first")
    return Verdict(True, None, None, "what serves has to give way, and {level} takes no more of what is tight")


def _eased_below(evidence: Evidence) -> bool:
    """Whether there is a smaller level to step down to from a level over its limit."""
    return any(
        (fits(evidence, lower).holds or (fits_under_critical(evidence, lower).holds and eases(evidence, lower).holds))
        and not backing_off(evidence, lower).holds
        for lower in range(evidence.state)
    )


def _takes_more(evidence: Evidence, position: int) -> bool:
    """Whether a level takes more of a resource that is over the limit with the level that is meant to serve."""
    footprints, limit = evidence.footprints, evidence.limits[evidence.state]
    return any(
        need > now > 0 and part is not None and evidence.reads(index, part.other_bytes + now) > limit
        for index, (need, now, part) in enumerate(
            zip(footprints.of(position), footprints.of(evidence.state), evidence.usage, strict=True)
        )
    )


def fits_below_band(evidence: Evidence, position: int) -> Verdict:
    """Projected usage has been at the limit less the band, or below, through the whole dwell."""
    usage = evidence.projected[position]
    since = evidence.fits_since[position]
    limit = evidence.limits[position] - evidence.policy.band
    if since is None or usage is None or usage > limit:
        return Verdict(
            False, usage, limit, "usage at {level} would be {usage} of {total}; to climb it must be at most {threshold}"
        )
    held, asked = evidence.now_s - since, evidence.dwell_s(position)
    holds = held >= asked
    return Verdict(holds, usage, limit, HELD if holds else HELD_SO_FAR, held, asked)


def shortfall(evidence: Evidence, position: int) -> dict[str, int] | None:
    """How many bytes of each resource are too few for a level to be gone up to; None if that is unknown.

    Empty where there is room: the limit is that of `fits_below_band`, and for the smallest level that of `recovers`.
    """
    limit, lacking = evidence.recovery_limit(position), {}
    for index, (need, part) in enumerate(zip(evidence.footprints.of(position), evidence.usage, strict=True)):
        if not need:
            continue
        if part is None:
            return None
        at_most = evidence.own_of(index, limit)
        if (over := part.other_bytes + need - math.floor(at_most * part.total_bytes)) > 0:
            lacking[evidence.resources[index]] = over
    return lacking


def forecast_fits(evidence: Evidence, position: int) -> Verdict:
    """The highest usage to expect for as long as an upgrade must last, going by past forecasts, is within the limit."""
    limit, horizon = evidence.limits[position], evidence.horizon_s(position)
    ahead, expected = evidence.ahead(position, horizon), evidence.expected(position)
    if ahead is not None and ahead.usage > limit:
        rising = ahead.usage > (evidence.usage_at(position) or 0.0)
        when = " in {extra:.0f} s if this goes on" if rising else ""
        words = f"usage at {{level}} would be {{usage}} of {{total}}{when}; the limit is {{threshold}}"
        return Verdict(False, ahead.usage, limit, words, horizon, resource=ahead.resource)
    if expected is None:
        return Verdict(
            True, None, limit, "nothing was watched for long enough to expect more usage at {level} than now"
        )
    return Verdict(
        expected.at_most <= limit,
        expected.at_most,
        limit,
        "usage at {level} may reach {usage} of {total} within {extra:.0f} s, as before; the limit is {threshold}",
        evidence.policy.wasted_within_s,
        resource=expected.resource,
    )


def recovers(evidence: Evidence, position: int) -> Verdict:
    """Projected usage has been low enough to load from off, through the whole recovery time, and does not rise."""
    usage = evidence.projected[position]
    since = evidence.recovers_since[position]
    held = 0.0 if since is None else evidence.now_s - since
    # Before the first change there was no pressure to recover from.
    asked = evidence.policy.recovery_s if evidence.changed_at_s > evidence.begun_at_s else 0.0
    limit, horizon = evidence.recovery_limit(position), evidence.horizon_s(position)
    ahead = evidence.ahead(position, horizon)
    if since is not None and ahead is not None and ahead.usage > limit:
        words = "usage at {level} would be {usage} of {total} in {extra:.0f} s if this goes on; at most {threshold}"
        return Verdict(False, ahead.usage, limit, words, horizon, resource=ahead.resource)
    holds = since is not None and held >= asked
    words = HELD if holds else HELD_SO_FAR
    if not asked:
        most = "to be loaded it must be at most {threshold}" if position else "the smallest level may use {threshold}"
        words = f"usage at {{level}} would be {{usage}} of {{total}}; {most}"
    return Verdict(holds, usage, limit, words, held, asked)


def wanted(evidence: Evidence, _: int) -> Verdict:
    """Somebody asks for a model."""
    return Verdict(
        evidence.wanted, None, None, "a model is asked for" if evidence.wanted else "nobody asks for a model"
    )


def still_serves(evidence: Evidence, position: int) -> Verdict:
    """The level is loaded and answers."""
    holds = evidence.serving == position
    return Verdict(holds, None, None, "{level} still serves" if holds else "{level} is not loaded")


def stands_by(evidence: Evidence, position: int) -> Verdict:
    """The level is kept loaded beside the larger ones."""
    holds = evidence.standby[position]
    return Verdict(holds, None, None, "{level} stands by" if holds else "{level} does not stand by")


def pinned(evidence: Evidence, position: int) -> Verdict:
    """A person pinned this level."""
    holds = evidence.pinned == position
    return Verdict(holds, None, None, "a person pinned {level}" if holds else "{level} is not pinned")


def settled(evidence: Evidence, _: int) -> Verdict:
    """No switch is in progress."""
    return Verdict(
        evidence.settled, None, None, "no switch is in progress" if evidence.settled else "a switch is in progress"
    )


def rested(evidence: Evidence, position: int) -> Verdict:
    """The last change lies at least the dwell back."""
    since = max(0.0, evidence.now_s - evidence.changed_at_s)
    dwell = evidence.dwell_s(position)
    return Verdict(
        since >= dwell,
        None,
        None,
        "the last change was {extra:.0f} s ago; {asked:.0f} s have to pass" if since < 1e9 else "nothing changed yet",
        since,
        dwell,
    )


def backing_off(evidence: Evidence, position: int) -> Verdict:
    """The level failed lately and is left alone for now."""
    left = evidence.backoff_until_s[position] - evidence.now_s
    # Before the first reading of a level that never failed, this is not a number.
    if not left > 0:
        return Verdict(False, None, None, "{level} is not backing off")
    failures = evidence.failures[position]
    times = "once" if failures == 1 else f"{failures} times"
    return Verdict(True, None, None, f"{{level}} failed {times} and is left alone for another {{extra:.0f}} s", left)


def over_ceiling(evidence: Evidence, position: int) -> Verdict:
    """Battery power or heat has allowed smaller levels only, for as long as the recovery time.

    Neither is as urgent as memory: a battery lasts for hours, and a hot processor protects itself. So a moment of it is
    waited for, however `debounce_s` is set. What the tier allows then is no matter while a person has pinned a level.
    """
    if not evidence.ceilings:
        return NOTHING_LOWERS
    lowering = [ceiling for ceiling in _ceilings(evidence, position) if ceiling.lowers]
    if not lowering:
        return NOTHING_LOWERS
    asked = evidence.policy.recovery_s
    # Of those that have lasted the lowest, which is where it leads; before that, the one that will have first.
    ceiling = max(lowering, key=lambda one: (one.lasted_s, -one.highest))
    held = ceiling.lasted_s
    waits = "" if held >= asked else ", after {asked:.0f} s of it, {extra:.0f} s so far"
    return Verdict(held >= asked, held, asked, _lowered(evidence, ceiling) + waits, held, asked)


def under_ceiling(evidence: Evidence, position: int) -> Verdict:
    """Neither battery power nor heat has lasted that allows smaller levels only."""
    verdict = over_ceiling(evidence, position)
    return verdict._replace(holds=not verdict.holds)


def allowed(evidence: Evidence, position: int) -> Verdict:
    """The tier permits the level, also on battery or in heat if that is how it is, and no pin holds it lower."""
    if position > evidence.highest_allowed:
        return Verdict(False, None, None, "the tier allows {highest} at most")
    if evidence.pinned is not None and position > evidence.pinned:
        return Verdict(False, None, None, "the level is pinned to {pinned}")
    for ceiling in _ceilings(evidence, position):
        if ceiling.lowers:
            return Verdict(False, None, None, _lowered(evidence, ceiling))
    return ALLOWED


def stays_allowed(evidence: Evidence, position: int) -> Verdict:
    """The level is allowed, and neither battery power nor heat has forbidden it at any time of the dwell."""
    verdict = allowed(evidence, position)
    if not verdict.holds:
        return verdict
    shortest, asked = math.inf, evidence.dwell_s(position)
    for ceiling in _ceilings(evidence, position):
        if ceiling.lifted_since is None:
            lowers, _, level = _said(ceiling)
            words = f"whether {lowers} is not known; the tier allows {level} at most then"
            return Verdict(False, None, None, words)
        held = evidence.now_s - ceiling.lifted_since
        if held < shortest:
            shortest = held
            words = f"for {{extra:.0f}} s {_said(ceiling)[1]}; {{asked:.0f}} s have to pass"
            verdict = Verdict(held >= asked, None, None, words, held, asked)
    return verdict


def _ceilings(evidence: Evidence, position: int) -> list[Ceiling]:
    """What may lower the largest level to below this one; a pin is the person's own will and goes before."""
    if evidence.pinned is not None:
        return []
    return [ceiling for ceiling in evidence.ceilings if position > ceiling.highest]


def _said(ceiling: Ceiling) -> tuple[str, str, str]:
    """How it is told that a ceiling lowers the largest level, that it does not, and to which level."""
    if ceiling.source == BATTERY:
        return "the machine runs on battery", "the machine has had mains power", "{battery_max_level}"
    slowed, level = "slowed down for heat", "{throttled_max_level}"
    if ceiling.source == PROCESSORS:
        return f"the processors are {slowed}", f"the processors have not been {slowed}", level
    return f"{ceiling.source} is {slowed}", f"{ceiling.source} has not been {slowed}", level


def _lowered(evidence: Evidence, ceiling: Ceiling) -> str:
    lowers, _, level = _said(ceiling)
    power = evidence.reading.power if evidence.reading is not None else None
    if ceiling.source == BATTERY and power is not None and power.battery_ratio is not None:
        lowers += f" ({_percent(power.battery_ratio)})"
    return f"{lowers}; the tier allows {level} at most then"


def calm(evidence: Evidence, _: int) -> Verdict:
    """Neither tasks wait for memory nor answers for room in the cache of the model that serves."""
    load = evidence.reading.model if evidence.reading is not None else None
    full = evidence.policy.cache_full_at
    if load is not None and load.waiting and load.cache_ratio >= full:
        words = "{extra:.0f} answers wait and the cache is {measured} full; nothing larger is loaded above {limit}"
        return Verdict(False, load.cache_ratio, full, words, load.waiting)
    pressure = evidence.reading.pressure if evidence.reading is not None else None
    limit = evidence.policy.stalled_at
    if pressure is None or pressure.memory is None:
        return Verdict(True, None, limit, "memory stalls cannot be measured here")
    stalled = pressure.memory.some_avg10_ratio
    return Verdict(
        stalled <= limit, stalled, limit, "tasks wait for memory {measured} of the time; the limit is {limit}"
    )


GUARDS: Mapping[str, Guard] = {
    guard.name: guard
    for guard in (
        Guard("over_limit", "from", "usage > {scale_at:.0%} for up to {debounce_s:g} s", over_limit),
        Guard("forecast_over", "from", "rising to {exhausted_at:.1%} within {switch_margin_s:g} s", forecast_over),
        Guard("critical", "from", "usage ≥ {critical_at:.0%}", critical),
        Guard("exhausted", "from", "usage ≥ {exhausted_at:.1%} for {exhausted_s:g} s", exhausted),
        Guard("fits", "to", "usage there ≤ {scale_at:.0%}", fits),
        Guard("fits_under_critical", "to", "usage there < {critical_at:.0%}", fits_under_critical),
        Guard("eases", "to", "usage there is lower than here", eases),
        Guard("gives_no_way", "to", "what serves gives way to nothing else", gives_no_way),
        Guard("no_lower_fits", "from", "no smaller level < {critical_at:.0%}", no_lower_fits),
        Guard("fits_below_band", "to", "usage there ≤ {scale_at:.0%} - {band:.1%} for {dwell_s:g} s", fits_below_band),
        Guard("forecast_fits", "to", "expected peak there ≤ {scale_at:.0%}", forecast_fits),
        Guard("recovers", "to", "room there for {recovery_s:g} s", recovers),
        Guard("wanted", "to", "a model is asked for", wanted),
        Guard("stands_by", "to", "it stands by", stands_by),
        Guard("still_serves", "to", "it still serves", still_serves),
        Guard("pinned", "to", "a person asks for it", pinned),
        Guard("settled", "from", "no switch in progress", settled),
        Guard("rested", "to", "last change ≥ {dwell_s:g} s ago", rested),
        Guard("backing_off", "to", "failed lately", backing_off),
        Guard("over_ceiling", "from", "battery or heat forbids it for {recovery_s:g} s", over_ceiling),
        Guard("under_ceiling", "to", "battery and heat permit it", under_ceiling),
        Guard("allowed", "to", "tier, battery, heat and pin permit it", allowed),
        Guard("stays_allowed", "to", "tier and pin permit it, battery and heat for {dwell_s:g} s", stays_allowed),
        Guard("calm", "to", "memory stalls ≤ {stalled_at:.0%}, no answers wait for cache", calm),
    )
}


def explain(evidence: Evidence, position: int, verdict: Verdict) -> str:
    """The verdict about a level as one sentence in numbers."""
    usage, total = verdict.measured, "the total"
    if position >= 0:
        if usage is None and evidence.reading is None and "{usage}" in verdict.words:
            return f"nothing has been read of this machine yet: the usage at {_name(evidence, position)} is not known"
        needs = evidence.footprints.of(position)
        if "{usage}" in verdict.words and not any(needs):
            return f"{_name(evidence, position)} takes nothing of this machine"
        index = evidence.tightest(position) if verdict.resource is None else verdict.resource
        unread = [at for at, (need, one) in enumerate(zip(needs, evidence.usage, strict=True)) if need and one is None]
        if usage is None and unread:
            index = unread[0]
        part, resource = evidence.usage[index], evidence.resources[index]
        if part is not None:
            total = f"{part.total_bytes / GIB:.3g} GiB" + ("" if resource == RAM else f" of {resource}")
        elif evidence.reading is not None:
            # What is judged by the rest has no figure where there is no rest.
            usage, total = None, f"{resource}, which cannot be read now"
    return verdict.words.format(
        level=_name(evidence, position),
        highest=evidence.policy.max_level,
        battery_max_level=evidence.policy.battery_max_level,
        throttled_max_level=evidence.policy.throttled_max_level,
        pinned=_name(evidence, evidence.pinned),
        measured=_percent(verdict.measured),
        limit=_percent(verdict.limit),
        usage=_percent(evidence.own(position, usage, verdict.resource)),
        threshold=_percent(evidence.own(position, verdict.limit, verdict.resource)),
        total=total,
        extra=verdict.extra if verdict.extra is not None else 0.0,
        asked=verdict.asked if verdict.asked is not None else 0.0,
    )


def _name(evidence: Evidence, position: int | None) -> str:
    return OFF if position is None or position < 0 else evidence.ladder[position].name


def _percent(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"{100 * ratio:.1f}".removesuffix(".0") + " %"
