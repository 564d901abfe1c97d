"""What the decision knows: readings folded into projected usage, and since when each condition has held.

Pure: the clock is the readings' own. Knows nothing of states, transitions or effects; the guards read it,
the machine writes it.
"""

from __future__ import annotations

from scaler.footprints import Footprints
from scaler.levels import Ladder
from scaler.policy import Policy
from scaler.readings import Reading, Usage
from scaler.trends import Forecast, Trend

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
        """Usage at each level as a ratio of the total, of the resource that is tightest there."""
        self.over_since: list[float | None] = [None] * count
        self.fits_since: list[float | None] = [None] * count
        self.recovers_since: list[float | None] = [None] * count
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
        ram = usage[0]
        if ram is None or ram.total_bytes <= 0:
            return False
        if now - self.now_s > self.policy.stale_after_s:
            self._break()
        self.now_s, self.reading, self.usage = now, reading, usage
        if self.settled and self.state >= 0:
            self.footprints.learn(self.state, [None if part is None else part.own_bytes for part in usage], now)
        for trend, part in zip(self.trends, usage, strict=True):
            if part is None:
                trend.clear()
            else:
                trend.add(now, part.other_bytes / part.total_bytes)
        self._project(now, usage)
        return True

    def _project(self, now: float, usage: list[Usage | None]) -> None:
        policy = self.policy
        below_band = policy.scale_at - policy.band
        for position in range(len(self.ladder)):
            projected: float | None = 0.0
            for need, part in zip(self.footprints.of(position), usage, strict=True):
                if part is not None:
                    share = (part.other_bytes + need) / part.total_bytes
                    if share > projected:  # type: ignore[operator]  # None ends the loop below
                        projected = share
                elif need:
                    projected = None
                    break
            self.projected[position] = projected
            if projected is None:
                self.over_since[position] = self.fits_since[position] = self.recovers_since[position] = None
                continue
            _hold(self.over_since, position, projected > policy.scale_at, now)
            _hold(self.fits_since, position, projected <= below_band, now)
            _hold(self.recovers_since, position, projected <= self.recovery_limit(position), now)

    def _break(self) -> None:
        count = len(self.ladder)
        self.over_since = [None] * count
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
        return min(self.policy.dwell_s * 2.0 ** self.wasted[position], self.policy.dwell_max_s)

    def horizon_s(self, position: int) -> float:
        """How far ahead a switch to this level must look: the time that loading takes, and a margin."""
        return self.load_s[position] + self.policy.switch_margin_s

    def forecast(self, position: int, horizon_s: float) -> Forecast | None:
        """Usage at a level ``horizon_s`` from now, of the resource that will be tightest; None if unknown."""
        worst: Forecast | None = None
        for need, part, trend in zip(self.footprints.of(position), self.usage, self.trends, strict=True):
            other = trend.forecast(self.now_s + horizon_s)
            if part is None or other is None:
                if need:
                    return None
                continue
            here = Forecast(other.mean + need / part.total_bytes, other.sigma)
            if worst is None or here.mean > worst.mean:
                worst = here
        return worst

    def tightest(self, position: int) -> int:
        """Which resource, by its index in ``resources``, is tightest at a level."""
        shares = [
            (part.other_bytes + need) / part.total_bytes if part is not None else 0.0
            for need, part in zip(self.footprints.of(position), self.usage, strict=True)
        ]
        return max(range(len(shares)), key=shares.__getitem__)

    def fail(self, position: int, now_s: float) -> None:
        """Record that a level failed to load or died: it is left alone, twice as long each time in a row."""
        pause = min(self.policy.backoff_s * 2.0 ** min(self.failures[position], 60), self.policy.backoff_max_s)
        self.failures[position] += 1
        self.backoff_until_s[position] = now_s + pause


def _hold(since: list[float | None], position: int, holds: bool, now: float) -> None:
    if not holds:
        since[position] = None
    elif since[position] is None:
        since[position] = now
