"""The clairvoyant optimum: the best score of any schedule that knows the whole recording and keeps the dwell.

A dynamic programme backwards in time. Plainly its state is the level and the time since the last change; that is a
hundred times more than needed. A level that has served for the dwell is in one state, and for one that has just been
begun only this counts: when it is left for a smaller one, or that it is kept until the dwell is over. The best of these
is a maximum over a sliding window, so every step costs the same whatever the dwell. Pure.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from math import ceil

from scaler.levels import RAM, Ladder
from scaler.policy import Policy
from scaler.readings import Reading
from scaler.replay.scoring import cost_per_s

STEP_S = 2.0
"""The grid of the optimum; within a step the least that others used counts, so that it is not beaten by its grid."""
OVERFULL = 2.0
"""Usage that is told apart no further."""
STEPS_PER_ONE = 4096
"""Usage is looked up in a table of so many steps to the whole; rounded down, again so as not to be beaten."""


class Others:
    """What others used of each resource through a recording, as shares of the total on a regular grid.

    Feed it every reading that is played; gaps are closed, as nothing is played in them.
    """

    def __init__(self, resources: Sequence[str], stale_after_s: float, step_s: float = STEP_S) -> None:
        self.resources = tuple(resources)
        self.step_s = step_s
        self.shares = [array("d") for _ in resources]
        self.totals = [0 for _ in resources]
        self._stale_after_s = stale_after_s
        self._played_s = 0.0
        self._at_s: float | None = None
        self._least: list[float] | None = None

    def add(self, reading: Reading) -> None:
        """Take in one reading; one that lacks a resource is passed over."""
        parts = [reading.usage(resource) for resource in self.resources]
        shares = [part.other_bytes / part.total_bytes for part in parts if part is not None]
        if len(shares) < len(parts):
            return
        self.totals = [part.total_bytes for part in parts if part is not None]
        if self._at_s is not None:
            passed = reading.at_s - self._at_s
            if passed <= self._stale_after_s:
                self._pass(passed)
        self._at_s = reading.at_s
        self._least = shares if self._least is None else [min(a, b) for a, b in zip(self._least, shares, strict=True)]
        self._now = shares

    def _pass(self, seconds: float) -> None:
        self._played_s += seconds
        while self._least is not None and len(self.shares[0]) * self.step_s + self.step_s <= self._played_s + 1e-9:
            for kept, share in zip(self.shares, self._least, strict=True):
                kept.append(share)
            # What was seen last goes on into the next step, unless that begins exactly here.
            over = self._played_s - len(self.shares[0]) * self.step_s
            self._least = self._now if over > 1e-9 else None


def best_score(others: Others, ladder: Ladder, policy: Policy) -> float:
    """The best score over what ``others`` covers, from the smallest level loaded at the start.

    In the unit of `closed_loop.Outcome.score`, per second times ``others.step_s``; an upper bound of what a closed loop
    over the same readings can score, as far as the grid goes.
    """
    steps = len(others.shares[0])
    if not steps:
        return 0.0
    worth = _Worth(others, ladder, policy)
    count = len(ladder) + 1  # position 0 is off, the ladder's levels follow
    dwell = ceil(policy.dwell_s / others.step_s)
    # Rounded down, like usage: what a load takes less than a step must not make the optimum lose to a real one.
    took = [1] + [max(1, int(level.load_s / others.step_s)) for level in ladder]
    fits_beside = worth.beside_limits()
    stay = [worth.staying(position) for position in range(count)]
    alone = [worth.loading(None, position, took[position]) for position in range(count)]
    beside = {
        (here, there): worth.loading(here, there, took[there])
        for here in range(1, count)
        for there in range(1, count)
        if here != there
    }
    # Sums of staying, so that any stretch of it is a difference.
    stayed = [array("d", accumulate(values, initial=0.0)) for values in stay]
    size = steps + max(took) + 2
    mature = [array("d", bytes(8 * size)) for _ in range(count)]
    fresh = [array("d", bytes(8 * size)) for _ in range(count)]
    windows: list[deque[tuple[int, float]]] = [deque() for _ in range(count)]
    left = [max(0, dwell - took[position]) for position in range(count)]
    room = others.shares[0] if len(others.shares) == 1 else None
    ways = [
        [
            (there, took[there], alone[there], beside.get((here, there)), fits_beside.get((here, there), -1.0))
            for there in range(count)
            if there != here
        ]
        for here in range(count)
    ]
    for at in range(steps - 1, -1, -1):
        for here in range(count):
            now = stay[here][at]
            down = up = float("-inf")
            for there, later, plain, together, most in ways[here]:
                loading = plain
                if together is not None and (room[at] < most if room is not None else worth.beside(at, here, there)):
                    loading = together
                value = loading[at] + (fresh[there][at + later] if there else mature[0][at + later])
                if there > here > 0:
                    if value > up:
                        up = value
                elif value > down:
                    down = value
            down += now
            up += now
            mature[here][at] = max(now + mature[here][at + 1], down, up)
            if here:
                total, window, until = stayed[here], windows[here], min(at + left[here], steps)
                leaving = total[at] + down
                while window and window[-1][1] <= leaving:
                    window.pop()
                window.append((at, leaving))
                while window[0][0] >= at + left[here] and len(window) > 1:
                    window.popleft()
                kept = total[until] + mature[here][at + left[here]] if at + left[here] < size else total[until]
                leaves = window[0][1] if window[0][0] < at + left[here] else float("-inf")
                fresh[here][at] = max(kept, leaves) - total[at]
    return mature[1][0] * others.step_s


class _Worth:
    """What each step is worth for whoever holds what, as arrays over the grid; per second."""

    def __init__(self, others: Others, ladder: Ladder, policy: Policy) -> None:
        self._shares, self._totals = others.shares, others.totals
        self._qualities = [0.0] + [level.quality for level in ladder]
        self._needs = [[0.0] * len(others.resources)] + [
            [level.footprint.get(r, 0) / t for r, t in zip(others.resources, others.totals, strict=True)]
            for level in ladder
        ]
        self._ram = others.resources.index(RAM)
        scales = [policy.scale_of(resource) for resource in others.resources]
        steps = [step / STEPS_PER_ONE for step in range(int(OVERFULL * STEPS_PER_ONE) + 1)]
        self._costs = [
            [cost_per_s(usage if scale is None else scale.read(usage), policy) for usage in steps] for scale in scales
        ]
        """What each step of a resource's own usage costs."""
        self._critical_at = [policy.critical_at if scale is None else scale.own(policy.critical_at) for scale in scales]
        self._load_s = [0.0] + [level.load_s for level in ladder]
        self._step_s = others.step_s

    def _worth(self, quality: float, needs: Sequence[float]) -> list[float]:
        """A value for each step of the grid."""
        # As bytes do, this rounds down: the table's step that usage lies in.
        least: list[float] | None = None
        for index, (shares, need, costs) in enumerate(zip(self._shares, needs, self._costs, strict=True)):
            if need or index == self._ram:
                worth = [quality - cost for cost in costs]
                last = len(worth) - 1
                here = [worth[step if (step := int((s + need) * STEPS_PER_ONE)) < last else last] for s in shares]
                # The tightest resource costs the most.
                least = here if least is None else [min(a, b) for a, b in zip(least, here, strict=True)]
        assert least is not None
        return least

    def staying(self, position: int) -> array[float]:
        """Each step's worth while a level serves."""
        return array("d", self._worth(self._qualities[position], self._needs[position]))

    def loading(self, here: int | None, there: int, took: int) -> array[float]:
        """The worth of the whole load of ``there``, begun after each step, beside ``here`` or after unloading."""
        steps = len(self._shares[0])
        total = array("d", bytes(8 * steps))
        held = self._needs[here] if here is not None else self._needs[0]
        quality = 0.0 if here is None else self._qualities[here]
        load_s = self._load_s[there]
        for number in range(1, took):
            part = number * self._step_s / load_s
            needs = [part * need + more for need, more in zip(self._needs[there], held, strict=True)]
            worth = self._worth(quality, needs)
            for at in range(steps - number):
                total[at] += worth[at + number]
        return total

    def beside_limits(self) -> dict[tuple[int, int], float]:
        """How much others may use of RAM for a level to be loaded beside another."""
        count = len(self._needs)
        return {
            (here, there): self._critical_at[self._ram] - self._needs[here][self._ram] - self._needs[there][self._ram]
            for here in range(1, count)
            for there in range(1, count)
            if here != there
        }

    def beside(self, at: int, here: int, there: int) -> bool:
        """The same with more than one resource."""
        return all(
            not new or shares[at] + held + new < critical_at
            for shares, held, new, critical_at in zip(
                self._shares, self._needs[here], self._needs[there], self._critical_at, strict=True
            )
        )
