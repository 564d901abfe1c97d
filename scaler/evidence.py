"""What the decision knows: readings folded into projected usage, and since when each condition has held.

Pure: the clock is the readings' own. Knows nothing of states, transitions or effects; the guards read it,
the machine writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scaler.caution import Caution
from scaler.ceilings import ceilings
from scaler.footprints import Footprints
from scaler.levels import Ladder
from scaler.needles import Needles
from scaler.peaks import BUCKET_S, Peak, Peaks
from scaler.policy import Policy
from scaler.readings import FARTHEST_S, Reading, Usage
from scaler.trends import Trend

NEVER = float("-inf")
NEEDLES = ("needle_s", "needle_share", "memory_s")
TRENDS = ("trend_window_s", "rise_s")
PEAKS = (
    *("dwell_s", "dwell_max_s", "wasted_within_s", "needle_s"),
    *("sureness", "band", "band_max", "doubt_s", "memory_s"),
)
"""The parameters that shape what is learned of needles, trends and peaks: under others it would mean something else."""
LONGEST_WINDOWS = 4
"""So many windows at the most: each costs memory and time, and doublings beyond an hour taught nothing more."""


class Ahead(NamedTuple):
    """Usage at a level some time from now, as a ratio, and the index of the resource that is tightest there then."""

    usage: float
    resource: int


class Expected(NamedTuple):
    """The highest usage that is expected at a level, as a ratio, and the forecast of the others' use behind it.

    ``resource`` is the index of the one that it is expected of.
    """

    at_most: float
    peak: Peak
    resource: int


class Evidence:
    """The state of knowledge after the latest reading; positions are those on the ladder, 0 the smallest."""

    def __init__(self, ladder: Ladder, policy: Policy) -> None:
        self.ladder = ladder
        self.policy = policy
        self.footprints = Footprints(ladder, policy.footprint_half_life_s)
        self.resources = self.footprints.resources
        self.scales = [policy.scale_of(resource) for resource in self.resources]
        """How a resource's usage reads, by its index; None for as it is."""
        needs = [self.footprints.of(position) for position in range(len(ladder))]
        self._some_give_nothing = not all(need for level in needs for need in level)
        self.load_s = [level.load_s for level in ladder]
        self.standby = [level.standby for level in ladder]
        self.now_s = NEVER
        self.reading: Reading | None = None
        self.usage: list[Usage | None] = [None] * len(self.resources)
        count = len(ladder)
        self.projected: list[float | None] = [None] * count
        """Usage at each level as a ratio of the total, of the resource that is tightest there; None if unknown.

        This and every other ratio of usage reads in the terms of RAM's thresholds; `own` tells the resource's own."""
        self.at_least: list[float | None] = [None] * count
        """The same of the resources that could be read; what could not be can make it more, never less."""
        self.over_since: list[float | None] = [None] * count
        self.fits_since: list[float | None] = [None] * count
        self.recovers_since: list[float | None] = [None] * count
        self.limits = [policy.scale_at] * count
        """What usage must not pass at each level today: scale-at, less the caution that incidents taught."""
        self.cautions = [Caution(policy.caution_step, policy.caution_max, policy.memory_s) for _ in ladder]
        self.needles = [Needles(policy.needle_s, policy.needle_share, policy.memory_s) for _ in ladder]
        self._doubted_since: list[float | None] = [None] * count
        self.trends = [Trend(policy.trend_window_s, policy.rise_s) for _ in self.resources]
        self.peaks = [_peaks(policy) for _ in self.resources]
        self.exhausted_since: float | None = None
        """Since when the level that serves has had usage at exhausted-at or above."""
        self._missed = False
        self.ceilings = ceilings(ladder, policy, self.resources)

        # What the machine records for the guards
        self.state = -1
        self.serving: int | None = None
        self.settled = True
        self.wanted = True
        self.changed_at_s = NEVER
        self.begun_at_s = NEVER
        """Changes up to then are no pressure to recover from: the scaler before this one ended as it was asked to."""
        self.pinned: int | None = None
        self.failures = [0] * count
        self.backoff_until_s = [NEVER] * count
        self.wasted = [0] * count
        self.highest_allowed = count - 1 if policy.max_level is None else ladder.index(policy.max_level)

    def take_over(self, before: Evidence, kept: Mapping[int, int]) -> None:
        """Go on from what was known before, of another ladder or by another policy, as of its last reading.

        ``kept`` has the positions before, by those here, of the levels whose models are the same. What was learned of
        them, and of others' use, stays, unless the parameters by which it is learned changed. A policy that changed in
        anything begins the watch for room anew, and the time of the last change stays: nothing is climbed to sooner.
        The caller sets what is served.
        """
        policy, ladder = self.policy, before.ladder
        alike = policy == before.policy
        self.footprints.take_over(before.footprints, kept)
        needles, trends, peaks = (
            all(getattr(policy, name) == getattr(before.policy, name) for name in names)
            for names in (NEEDLES, TRENDS, PEAKS)
        )
        for here, there in kept.items():
            self.over_since[here] = before.over_since[there]
            if alike and self._takes(here) == before._takes(there):
                self.fits_since[here] = before.fits_since[there]
                self.recovers_since[here] = before.recovers_since[there]
                self._doubted_since[here] = before._doubted_since[there]
            if self.ladder[here].load_s == ladder[there].load_s:
                self.load_s[here] = before.load_s[there]
            caution = before.cautions[there]
            self.cautions[here].recall(*caution.kept, caution.incidents)
            if needles:
                self.needles[here] = before.needles[there]
            self.failures[here] = before.failures[there]
            self.backoff_until_s[here] = before.backoff_until_s[there]
            self.wasted[here] = before.wasted[there]
        for index, resource in enumerate(self.resources):
            if resource in before.resources:
                was = before.resources.index(resource)
                if trends:
                    self.trends[index] = before.trends[was]
                if peaks:
                    self.peaks[index] = before.peaks[was]
        known = {ceiling.source: ceiling for ceiling in before.ceilings}
        for ceiling in self.ceilings:
            if ceiling.source in known:
                ceiling.take_over(known[ceiling.source])
        self.exhausted_since, self._missed = before.exhausted_since, before._missed
        self.wanted, self.changed_at_s, self.begun_at_s = before.wanted, before.changed_at_s, before.begun_at_s
        self.now_s, self.reading = before.now_s, before.reading
        if self.reading is not None:
            self._limit(self.now_s)
        for here, there in kept.items() if alike else ():
            # What went wrong at the last reading lowers them from the next one on, reload or no reload.
            self.limits[here] = before.limits[there]

    def look_again(self) -> None:
        """Project the last reading anew, if there is one, after what serves was set."""
        if self.reading is not None:
            self.usage = self._parts([self.reading.usage(resource) for resource in self.resources])
            self._project(self.now_s, self.usage)

    def _takes(self, position: int) -> dict[str, int]:
        """Bytes by resource, of those that the level takes."""
        return {name: size for name, size in zip(self.resources, self.footprints.of(position), strict=True) if size}

    def take(self, reading: Reading) -> bool:
        """Fold in one reading; False when it says nothing (missing RAM, no time at all, or not later than the last)."""
        now = reading.at_s
        if not now > self.now_s or not -FARTHEST_S < now < FARTHEST_S:
            return False
        usage = [reading.usage(resource) for resource in self.resources]
        if usage[0] is None:
            return False
        if now - self.now_s > self.policy.stale_after_s:
            self._break()
        usage = self._parts(usage)
        self.now_s, self.reading, self.usage = now, reading, usage
        # A reading that was begun before the switch was over may count two models.
        learns = self.settled and self.state >= 0 and now >= self.changed_at_s
        exhausted_at = self.policy.exhausted_at
        for index, part in enumerate(usage):
            if part is None:
                self.trends[index].clear()
                self.peaks[index].clear()
            else:
                if learns:
                    self.footprints.learn(self.state, index, part.own_bytes, now)
                other = part.other_bytes / part.total_bytes
                self.trends[index].add(now, other)
                used, scale = (part.own_bytes + part.other_bytes) / part.total_bytes, self.scales[index]
                if (used if scale is None else scale.read(used)) >= exhausted_at:
                    # A full machine hides how much more others want; what shows once we gave way is no rise.
                    self.trends[index].forget_rise()
                self.peaks[index].add(now, other)
        self._limit(now)
        for ceiling in self.ceilings:
            ceiling.take(reading)
        self._project(now, usage)
        self._watch_what_serves(now)
        return True

    def _parts(self, usage: list[Usage | None]) -> list[Usage | None]:
        """The parts of each resource, ours as others' where unloading what is loaded would give nothing back."""
        if not self._some_give_nothing:
            return usage
        return [part if part is None or self._gives_back(index) else _others(part) for index, part in enumerate(usage)]

    def _limit(self, now: float) -> None:
        for position, caution in enumerate(self.cautions):
            self.limits[position] = self.policy.scale_at - caution.at(now)

    def _watch_what_serves(self, now: float) -> None:
        """Note since when nothing is left, and a near miss: settled, and still usage got above critical-at."""
        serving = self.serving
        usage = 0.0 if serving is None else self.at_least[serving] or 0.0
        if usage < self.policy.exhausted_at:
            self.exhausted_since = None
        elif self.exhausted_since is None:
            self.exhausted_since = now
        missed = self.settled and usage >= self.policy.critical_at
        if missed and not self._missed and serving is not None:
            self.cautions[serving].incident("near miss", now)
        self._missed = missed

    def _project(self, now: float, usage: list[Usage | None]) -> None:
        band, scales = self.policy.band, self.scales
        over, recovers = self.over_since, self.recovers_since
        for position, limit in enumerate(self.limits):
            at_least, complete = 0.0, True
            for index, need in enumerate(self.footprints.of(position)):
                if not need:
                    continue
                part = usage[index]
                if part is None:
                    complete = False
                    continue
                share = (part.other_bytes + need) / part.total_bytes
                if (scale := scales[index]) is not None:
                    share = scale.read(share)
                if share > at_least:
                    at_least = share
            self.at_least[position] = at_least
            self.projected[position] = at_least if complete else None
            # Written out: a call for each of these took a fifth of the whole decision.
            since = over[position]
            if at_least > limit:
                if since is None:
                    over[position] = now
            elif since is not None:
                if complete:
                    # Else nobody knows whether it has ended, and so whether it was a needle.
                    self.needles[position].ended(since, now)
                over[position] = None
            if complete and at_least <= limit - band:
                self._doubted_since[position] = None
                if self.fits_since[position] is None:
                    self.fits_since[position] = now
            elif self.fits_since[position] is not None and not (complete and self._may_pass(position, now)):
                self.fits_since[position] = None
            if not complete or at_least > self.recovery_limit(position):
                recovers[position] = None
            elif recovers[position] is None:
                recovers[position] = now

    def _may_pass(self, position: int, now: float) -> bool:
        """Whether usage that no longer fits does not break the watch yet, since needles are the rule."""
        since = self._doubted_since[position]
        if since is not None:
            return now - since < self.policy.needle_s
        if not self.needles[position].trusted(now):
            return False
        self._doubted_since[position] = now
        return True

    def usage_at(self, position: int) -> float | None:
        """Projected usage as far as a change to this level, or staying there, has to know it; None if unknown.

        A smaller level that takes no more than what is loaded of what could not be read is judged by the rest, and so
        is the one that is meant to serve: where the rest is too much, the whole is.
        """
        usage, highest = self.projected[position], self.highest
        if usage is not None or position > highest:
            return usage
        # What the level that is meant to serve may take was granted already, whether or not it is loaded yet.
        granted = [self.footprints.of(one) for one in {highest, self.state} if one >= 0]
        for index, need in enumerate(self.footprints.of(position)):
            if self.usage[index] is None and all(need > most[index] for most in granted):
                return None
        return self.at_least[position]

    def _gives_back(self, resource: int) -> bool:
        """Whether unloading what is loaded would free what it holds of a resource."""
        loaded = [position for position in (self.state, self.serving) if position is not None and position >= 0]
        return not loaded or any(self.footprints.of(position)[resource] for position in loaded)

    @property
    def highest(self) -> int:
        """The position of the larger one of the level that serves and the one that is meant to; -1 for none."""
        return self.state if self.serving is None else max(self.state, self.serving)

    def _break(self) -> None:
        """Forget what needs an unbroken watch; late readings must not delay a descent, so what is over stays over."""
        count = len(self.ladder)
        self.fits_since = [None] * count
        self.recovers_since = [None] * count
        for trend, peaks in zip(self.trends, self.peaks, strict=True):
            trend.clear()
            peaks.clear()

    def recovery_limit(self, position: int) -> float:
        """What usage must stay under for a level to be loaded from off.

        For the smallest level that is just below critical-at, not below scale-at: a served answer
        under pressure is worth more than none, and there is nothing smaller to give way to.
        """
        policy = self.policy
        return self.limits[position] - policy.band if position else policy.critical_at - policy.recovery_band

    def dwell_s(self, position: int) -> float:
        """For how long a climb to this level must have been possible; doubles with each wasted one."""
        return min(self.policy.dwell_s * 2.0 ** min(self.wasted[position], 60), self.policy.dwell_max_s)

    def horizon_s(self, position: int) -> float:
        """How far ahead a switch to this level must look: the time that loading takes, and a margin.

        Where a smaller level takes longer to load, that time: a climb must hold for as long as a descent looks ahead.
        """
        return max(self.load_s[: position + 1]) + self.policy.switch_margin_s

    def ahead(self, position: int, horizon_s: float) -> Ahead | None:
        """Usage at a level ``horizon_s`` from now if a steady rise goes on; None if unknown."""
        usage = self.usage_at(position)
        if usage is None:
            return None
        highest, tightest = usage, None
        for index, need in enumerate(self.footprints.of(position)):
            part, rise = self.usage[index], self.trends[index].steady_rise_per_s
            if rise and part is not None and need:
                risen = self.reads(index, part.other_bytes + rise * horizon_s * part.total_bytes + need)
                if risen > highest:
                    highest, tightest = risen, index
        return Ahead(highest, self.tightest(position) if tightest is None else tightest)

    def expected(self, position: int) -> Expected | None:
        """The highest usage ratio at a level that past forecasts let expect; None before there is such a forecast."""
        highest: Expected | None = None
        for index, need in enumerate(self.footprints.of(position)):
            if not need:
                continue
            part, peak = self.usage[index], self.peaks[index].expected(self.now_s)
            if part is None or peak is None:
                return None
            here, scale = peak.at_most + need / part.total_bytes, self.scales[index]
            here = here if scale is None else scale.read(here)
            if highest is None or here > highest.at_most:
                highest = Expected(here, peak, index)
        return highest

    def clears_in_s(self, position: int, at_most: float) -> float | None:
        """Seconds until the expected peak at a level is ``at_most`` or lower; None if it is too much even now."""
        wait_s = 0.0
        for index, need in enumerate(self.footprints.of(position)):
            part = self.usage[index]
            if not need or part is None:
                continue
            most = self.own_of(index, at_most)
            clears_s = self.peaks[index].clears_in_s(self.now_s, most, need / part.total_bytes)
            if clears_s is None:
                return None
            wait_s = max(wait_s, clears_s)
        return wait_s

    def tightest(self, position: int) -> int:
        """Which resource, by its index in ``resources``, is tightest at a level, of those that it takes."""
        needs = self.footprints.of(position)
        shares = [
            self.reads(index, part.other_bytes + need) if part is not None and need else 0.0 if need else -1.0
            for index, (part, need) in enumerate(zip(self.usage, needs, strict=True))
        ]
        return max(range(len(shares)), key=shares.__getitem__)

    def reads(self, index: int, used_bytes: float) -> float:
        """What so many bytes of a resource in use read as; the resource must have been read."""
        part, scale = self.usage[index], self.scales[index]
        assert part is not None  # as is said above
        usage = used_bytes / part.total_bytes
        return usage if scale is None else scale.read(usage)

    @property
    def in_use(self) -> float:
        """What is in use as it was read, of the resource that is tightest; 0 where none was."""
        parts = enumerate(self.usage)
        return max((self.reads(at, part.own_bytes + part.other_bytes) for at, part in parts if part), default=0.0)

    def own_of(self, index: int, read: float) -> float:
        """The usage of a resource, of its own total, that reads as this."""
        scale = self.scales[index]
        return read if scale is None else scale.own(read)

    def own(self, position: int, read: float | None, resource: int | None = None) -> float | None:
        """The usage of a resource, of its own total, that reads as this; by default of the one tightest at a level."""
        if read is None or position < 0:
            return read
        return self.own_of(self.tightest(position) if resource is None else resource, read)

    def thresholds(self, index: int) -> tuple[float, float]:
        """Scale-at and critical-at of a resource, of its own total."""
        return (self.policy.scale_at, self.policy.critical_at) if index == 0 else self.policy.vram_thresholds

    def told(self) -> dict[str, float | None]:
        """Projected usage at each level, by its name: of its tightest resource's own total."""
        return {level.name: self.own(place, self.projected[place]) for place, level in enumerate(self.ladder)}

    def answered(self, position: int, at_s: float, *, failed: bool, speed: float | None) -> None:
        """Take in how an answer went; ``speed`` is relative to what the level usually makes, None if unknown.

        Memory is blamed only where it was so tight that caution could have made the level give way before.
        """
        usage = self.at_least[position]
        if usage is None or usage < self.policy.scale_at - self.policy.caution_max:
            return
        if failed:
            self.cautions[position].incident("failed answer", at_s)
        elif speed is not None and speed < self.policy.slow_at:
            self.cautions[position].incident("slow answer", at_s)

    def fail(self, position: int, now_s: float) -> None:
        """Record that a level failed to load or died: it is left alone, twice as long each time in a row."""
        pause = min(self.policy.backoff_s * 2.0 ** min(self.failures[position], 60), self.policy.backoff_max_s)
        self.failures[position] += 1
        self.backoff_until_s[position] = now_s + pause


def _others(part: Usage) -> Usage:
    """A part of which unloading frees nothing: it is as good as somebody else's."""
    return Usage(part.total_bytes, 0, part.own_bytes + part.other_bytes)


def _peaks(policy: Policy) -> Peaks:
    """Forecasts for as long as an upgrade must last, from the dwell and its doublings up to the longest."""
    windows = [max(policy.dwell_s, BUCKET_S)]
    while windows[-1] * 2 <= policy.dwell_max_s and len(windows) < LONGEST_WINDOWS:
        windows.append(windows[-1] * 2)
    return Peaks(
        windows,
        policy.wasted_within_s,
        needle_s=policy.needle_s,
        sureness=policy.sureness,
        band=policy.band,
        band_max=max(policy.band, policy.band_max),
        doubt_s=policy.doubt_s,
        half_life_s=policy.memory_s,
    )
