"""The search for better parameters on one machine's recording, and the proof that they are better.

What is searched and what is held back are two parts of the recording; whoever calls plays them. Here it is decided
which policies are tried, which of their differences pay, and whether the gain on the part that nobody looked at is
more than luck. Pure.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from scaler.policy import Policy
from scaler.replay.closed_loop import Outcome

SEARCHED: Mapping[str, tuple[float, ...]] = {
    "band": (0.01, 0.02, 0.03, 0.04, 0.06, 0.08),
    "sureness": (0.7, 0.8, 0.88, 0.95),
    "band_max": (0.05, 0.1, 0.15, 0.25),
    "doubt_s": (600.0, 1800.0, 7200.0),
    "dwell_max_s": (300.0, 600.0, 1800.0, 3600.0),
    "debounce_s": (0.0, 2.0, 4.0, 8.0, 15.0),
    "needle_s": (0.0, 2.0, 5.0),
    "recovery_s": (5.0, 10.0, 30.0),
    "recovery_band": (0.005, 0.02, 0.04),
    "rise_s": (0.0, 4.0, 8.0),
    "switch_margin_s": (4.0, 8.0, 15.0),
    "memory_s": (1200.0, 3600.0, 14_400.0),
    "caution_max": (0.0, 0.02, 0.05),
}
"""What may be changed, and the values that are tried. Not the person's rules: thresholds, dwell, drain limits."""
PASSES = 2
"""So often every parameter is tried; what the others became may have changed which value is best."""
WASTED_COST = 30.0
"""Quality-seconds that a climb undone soon counts when policies are compared: two switches that somebody may notice."""
LEAST_S = 86_400.0
"""Less than a day shows neither a working day nor a night."""
LEAST_SWITCHES = 8
"""With fewer switches nearly nothing depends on the parameters, and chance decides which look best."""
HELD_BACK = 1 / 3
"""The part of the recording, its end, that only judges."""
RESAMPLES = 2000
INTERVAL = 0.90


class Gain(NamedTuple):
    """A difference in score per second, and the interval that it lies in with `INTERVAL` probability."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to. ``gains`` tells for each changed parameter what leaving it out would cost, a second."""

    policy: Policy
    gains: Mapping[str, Gain]
    plays: int


def changes(before: Policy, after: Policy) -> dict[str, tuple[object, object]]:
    """The parameters that differ, with both values."""
    old, new = asdict(before), asdict(after)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def search(
    policy: Policy, play: Callable[[Sequence[Policy]], Sequence[Outcome]], *, fixed: Iterable[str] = ()
) -> Found:
    """Change one parameter after the other to its best value, then take back every change that does not pay.

    ``play`` plays policies on the searched part, in any order or at once; ``fixed`` are parameters that stay.
    """
    known: dict[Policy, Outcome] = {}

    def outcomes(policies: Sequence[Policy]) -> list[Outcome]:
        new = [one for one in dict.fromkeys(policies) if one not in known]
        known.update(zip(new, play(new), strict=True))
        return [known[one] for one in policies]

    (present,) = outcomes([policy])
    best = policy
    names = [name for name in SEARCHED if name not in set(fixed)]
    for _ in range(PASSES):
        begun = best
        for name in names:
            tried = [best, *_variants(best, name)]
            safe = [
                (worth(outcome), number, one)
                for number, (one, outcome) in enumerate(zip(tried, outcomes(tried), strict=True))
                if number == 0 or not is_less_safe(outcome, present)
            ]
            # Of equals the first, which is what it was.
            best = max(safe, key=lambda entry: (entry[0], -entry[1]))[2]
        if best == begun:
            break
    best, gains = _without_idle(policy, best, outcomes)
    return Found(best, gains, len(known))


def _variants(policy: Policy, name: str) -> list[Policy]:
    """The policy with every other value of a parameter that goes together with the rest."""
    found = []
    for value in SEARCHED[name]:
        if value == getattr(policy, name):
            continue
        try:
            found.append(replace(policy, **{name: value}))  # type: ignore[arg-type]  # all searched ones are floats
        except ValueError:
            continue  # such as a dwell_max_s below dwell_s
    return found


def _without_idle(
    policy: Policy, best: Policy, outcomes: Callable[[Sequence[Policy]], list[Outcome]]
) -> tuple[Policy, dict[str, Gain]]:
    """Take back, one by one and the weakest first, what costs nothing beyond noise to take back."""
    while names := list(changes(policy, best)):
        tried = [replace(best, **{name: getattr(policy, name)}) for name in names]
        with_all, *without = outcomes([best, *tried])
        gains = {name: gain(one, with_all) for name, one in zip(names, without, strict=True)}
        weakest = min(gains, key=lambda name: gains[name].low)
        if gains[weakest].low > 0:
            return best, gains
        best = replace(best, **{weakest: getattr(policy, weakest)})
    return best, {}


def worth(outcome: Outcome) -> float:
    """What policies are compared by: the score per second, less what wasted climbs count."""
    return (outcome.score - WASTED_COST * outcome.wasted) / outcome.seconds if outcome.seconds else 0.0


def is_less_safe(outcome: Outcome, present: Outcome) -> bool:
    """Whether more was killed, or memory was critical for longer."""
    return outcome.kills > present.kills or outcome.critical_s > present.critical_s


def gain(before: Outcome, after: Outcome, *, seed: int = 0) -> Gain:
    """How much more ``after`` scores a second than ``before`` on the same readings.

    The hours differ and neighbouring ones are alike, so whole runs of hours are drawn again and again, of random
    length, and the spread of their means is the doubt. Source: the stationary bootstrap, Politis & Romano, Journal of
    the American Statistical Association 89, 1994; mean run length n^(1/3).
    """
    if not before.blocks or len(before.blocks) != len(after.blocks):
        return Gain(0.0, 0.0, 0.0)
    pairs = [(a.seconds, b.score - a.score) for a, b in zip(before.blocks, after.blocks, strict=True)]
    count = len(pairs)
    mean = sum(more for _, more in pairs) / sum(seconds for seconds, _ in pairs)
    source, ends = random.Random(seed), 1.0 / max(1.0, count ** (1 / 3))
    drawn = []
    for _ in range(RESAMPLES):
        at, seconds, more = source.randrange(count), 0.0, 0.0
        for _ in range(count):
            seconds += pairs[at][0]
            more += pairs[at][1]
            at = source.randrange(count) if source.random() < ends else (at + 1) % count
        drawn.append(more / seconds)
    cuts = statistics.quantiles(drawn, n=200, method="inclusive")
    tail = round(100 * (1 - INTERVAL)) - 1
    return Gain(mean, cuts[tail], cuts[-1 - tail])
