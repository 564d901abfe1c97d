"""What may lower the largest level for a while: what the readings said of battery power and heat, and for how long.

Pure bookkeeping; knows no thresholds and nothing of states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scaler.levels import RAM, Ladder, gpu_resource
from scaler.policy import Policy
from scaler.readings import Reading

BATTERY = "battery"
PROCESSORS = "processors"
NEVER = float("-inf")


class Ceiling:
    """The largest level, by its position, while one thing lasts. ``source`` says which: battery, processors or a GPU.

    Times are monotonic seconds. What the readings do not tell stays as it was last known.
    """

    def __init__(self, source: str, highest: int, *, lasts_s: float, stale_after_s: float) -> None:
        self.source = source
        self.highest = highest
        self.lowers = False
        """Whether it lowers the largest level now, as far as is known."""
        self.lasted_s = 0.0
        """For how much longer than not it did so lately, ``lasts_s`` at the most: heat comes and goes by the second."""
        self.lifted_since: float | None = NEVER
        """Since when it is known without a break that it does not; None if it does, or if nobody could tell."""
        self._lasts_s = lasts_s
        self._stale_after_s = stale_after_s
        self._known_s: float | None = None

    def take_over(self, before: Ceiling) -> None:
        """Go on with what was known of the same source; how long it lasted is not more than is asked for here."""
        self.lowers, self.lifted_since, self._known_s = before.lowers, before.lifted_since, before._known_s
        self.lasted_s = min(before.lasted_s, self._lasts_s)

    def take(self, reading: Reading) -> None:
        """Take in what a reading says of it; a machine that lacks the sensor is never said to be lowered."""
        answer, now_s = _answer(self.source, reading), reading.at_s
        if answer is None:
            if self._known_s is None and not _lost(self.source, reading):
                if self.lifted_since is None:
                    self.lifted_since = now_s
            elif self._known_s is None or now_s - self._known_s > self._stale_after_s:
                self.lasted_s, self.lifted_since = 0.0, None
            return
        since_s = 0.0 if self._known_s is None else now_s - self._known_s
        lasted_s = self.lasted_s + since_s if self.lowers else self.lasted_s - since_s
        self.lasted_s = min(max(lasted_s, 0.0), self._lasts_s)
        if answer:
            self.lifted_since = None
        elif self.lifted_since is None or since_s > self._stale_after_s:
            self.lifted_since = now_s
        self.lowers, self._known_s = answer, now_s


def ceilings(ladder: Ladder, policy: Policy, resources: Sequence[str]) -> tuple[Ceiling, ...]:
    """Those that a policy sets; ``resources`` are those that the ladder uses. Raises KeyError for an unknown level."""
    return tuple(
        Ceiling(source, ladder.index(level), lasts_s=policy.recovery_s, stale_after_s=policy.stale_after_s)
        for source, level in _set(policy, resources)
    )


def _set(policy: Policy, resources: Sequence[str]) -> Iterator[tuple[str, str]]:
    if policy.battery_max_level is not None:
        yield BATTERY, policy.battery_max_level
    if policy.throttled_max_level is not None:
        for source in (PROCESSORS, *(resource for resource in resources if resource != RAM)):
            yield source, policy.throttled_max_level


def _answer(source: str, reading: Reading) -> bool | None:
    """Whether a reading says that the machine runs on battery, or that this part of it is slowed down for heat."""
    if source == BATTERY:
        plugged_in = None if reading.power is None else reading.power.plugged_in
        return None if plugged_in is None else not plugged_in
    if source == PROCESSORS:
        return None if reading.thermal is None else reading.thermal.throttled
    return next((gpu.throttled for gpu in reading.gpus or () if gpu_resource(gpu.index) == source), None)


def _lost(source: str, reading: Reading) -> bool:
    """Whether the sensor that should have told did not answer."""
    return {BATTERY: "power", PROCESSORS: "thermal"}.get(source, "gpus") in reading.missing
