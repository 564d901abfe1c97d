"""What the decision knows: readings folded into projected usage, and since when each condition has held.

Pure: the clock is the readings' own. Knows nothing of states, transitions or effects; the guards read it,
the machine writes it.
"""

from __future__ import annotations

from scaler.footprints import Footprints
from scaler.levels import Ladder
from scaler.policy import Policy
from scaler.readings import Reading, Usage
from scaler.trends import Trend

NEVER = float("-inf")


class Evidence:
    """The state of knowledge after the latest reading; positions are those on the ladder, 0 the smallest."""

    def __init__(self, ladder: Ladder, policy: Policy) -> None:
        self.ladder = ladder
        self.policy = policy
        self.footprints = Footprints(ladder, policy.footprint_half_life_s)
        self.resources = self.footprints.resources
        self.load_s = [level.load_s for level in ladder]
        self.now_s = NEVER
        self.reading: Reading | None = None
        self.usage: list[Usage | None] = [None] * len(self.resources)
        count = len(ladder)
        self.projected: list[float | None] = [None] * count
        """Usage at each level as a ratio of the total, of the resource that is tightest there; None if unknown."""
        self.at_least: list[float | None] = [None] * count
        """The same of the resources that could be read; what could not be can make it more, never less."""
        self.over_since: list[float | None] = [None] * count
        self.fits_since: list[float | None] = [None] * count
        self.recovers_since: list[float | None] = [None] * count
        self._below_band = policy.scale_at - policy.band
        self._recovery_limits = [self.recovery_limit(position) for position in range(count)]
        self.trends = [Trend(policy.trend_window_s) for _ in self.resources]

        # What the machine records for the guards
        self.state = -1
        self.serving: int | None = None
        self.settled = True
        self.wanted = True
        self.changed_at_s = NEVER
        self.pinned: int | None = None
        self.failures = [0] * count
        self.backoff_until_s = [NEVER] * count
        self.wasted = [0] * count
        self.highest_allowed = count - 1 if policy.max_level is None else ladder.index(policy.max_level)

    def take(self, reading: Reading) -> bool:
        """Fold in one reading; False when it says nothing (missing RAM, or not later than the last)."""
        now = reading.at_s
        if not now > self.now_s or now == float("inf"):
            return False
        usage = [reading.usage(resource) for resource in self.resources]
        if usage[0] is None:
            return False
        if now - self.now_s > self.policy.stale_after_s:
            self._break()
        self.now_s, self.reading, self.usage = now, reading, usage
        # A reading that was begun before the switch was over may count two models.
        learns = self.settled and self.state >= 0 and now >= self.changed_at_s
        for index, part in enumerate(usage):
            if part is None:
                self.trends[index].clear()
            else:
                if learns:
                    self.footprints.learn(self.state, index, part.own_bytes, now)
                self.trends[index].add(now, part.other_bytes / part.total_bytes)
        self._project(now, usage)
        return True

    def _project(self, now: float, usage: list[Usage | None]) -> None:
        scale_at, below_band = self.policy.scale_at, self._below_band
        over, fits, recovers = self.over_since, self.fits_since, self.recovers_since
        for position, recovery_limit in enumerate(self._recovery_limits):
            at_least, complete = 0.0, True
            for index, need in enumerate(self.footprints.of(position)):
                if not _concerns(index, need):
                    continue
                part = usage[index]
                if part is None:
                    complete = False
                elif (share := (part.other_bytes + need) / part.total_bytes) > at_least:
                    at_least = share
            self.at_least[position] = at_least
            self.projected[position] = at_least if complete else None
            # Written out: a call for each of these took a fifth of the whole decision.
            if at_least <= scale_at:
                over[position] = None
            elif over[position] is None:
                over[position] = now
            if not complete or at_least > below_band:
                fits[position] = None
            elif fits[position] is None:
                fits[position] = now
            if not complete or at_least > recovery_limit:
                recovers[position] = None
            elif recovers[position] is None:
                recovers[position] = now

    def usage_at(self, position: int) -> float | None:
        """Projected usage as far as a change to this level, or staying there, has to know it; None if unknown.

        A level no larger than what is loaded takes no more of what could not be read, so the rest decides.
        """
        loaded = self.state if self.serving is None else max(self.state, self.serving)
        return self.at_least[position] if position <= loaded else self.projected[position]

    def _break(self) -> None:
        """Forget what needs an unbroken watch; late readings must not delay a descent, so what is over stays over."""
        count = len(self.ladder)
        self.fits_since = [None] * count
        self.recovers_since = [None] * count
        for trend in self.trends:
            trend.clear()

    def recovery_limit(self, position: int) -> float:
        """What usage must stay under for a level to be loaded from off.

        For the smallest level that is the band below critical-at, not below scale-at: a served answer
        under pressure is worth more than none, and there is nothing smaller to give way to.
        """
        policy = self.policy
        return (policy.critical_at if position == 0 else policy.scale_at) - policy.band

    def dwell_s(self, position: int) -> float:
        """For how long a climb to this level must have been possible; doubles with each wasted one."""
        return min(self.policy.dwell_s * 2.0 ** min(self.wasted[position], 60), self.policy.dwell_max_s)

    def horizon_s(self, position: int) -> float:
        """How far ahead a switch to this level must look: the time that loading takes, and a margin.

        Where a smaller level takes longer to load, that time: a climb must hold for as long as a descent looks ahead.
        """
        return max(self.load_s[: position + 1]) + self.policy.switch_margin_s

    def forecast(self, position: int, horizon_s: float, sigmas: float) -> float | None:
        """Usage ratio at a level ``horizon_s`` from now with ``sigmas`` standard deviations added; None if unknown.

        Of the resource where this is the highest: what is expected to be tightest need not be the most doubtful.
        """
        highest: float | None = None
        needs, at_s = self.footprints.of(position), self.now_s + horizon_s
        for index, trend in enumerate(self.trends):
            if not _concerns(index, needs[index]):
                continue
            part, other = self.usage[index], trend.forecast(at_s)
            if part is None or other is None:
                return None
            here = other.mean + needs[index] / part.total_bytes + sigmas * other.sigma
            if highest is None or here > highest:
                highest = here
        return highest

    def tightest(self, position: int) -> int:
        """Which resource, by its index in ``resources``, is tightest at a level."""
        needs = self.footprints.of(position)
        shares = [
            (part.other_bytes + needs[index]) / part.total_bytes
            if part is not None and _concerns(index, needs[index])
            else 0.0
            for index, part in enumerate(self.usage)
        ]
        return max(range(len(shares)), key=shares.__getitem__)

    def fail(self, position: int, now_s: float) -> None:
        """Record that a level failed to load or died: it is left alone, twice as long each time in a row."""
        pause = min(self.policy.backoff_s * 2.0 ** min(self.failures[position], 60), self.policy.backoff_max_s)
        self.failures[position] += 1
        self.backoff_until_s[position] = now_s + pause


def _concerns(resource: int, need: int) -> bool:
    """Whether a level is judged by a resource: always by RAM, which is the first, by another only if it takes some."""
    return need > 0 or resource == 0
