"""The decision in a closed loop with a simulated machine: what it would have done during a recording.

What others used comes from the recording; what our model uses is simulated: a level takes its declared footprint, a
load fills it in a straight line, a switch that was begun is finished first, and a model is killed when memory has been
exhausted for a few seconds. Pure and deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scaler.levels import OFF, RAM, Ladder, gpu_resource
from scaler.machine import Decision, LevelMachine, Switch
from scaler.policy import Policy
from scaler.readings import Gpu, Reading, Usage
from scaler.replay.scoring import KILLED_AFTER_S, cost_per_s

BLOCK_S = 3600.0
"""Scores are kept for stretches of so many seconds, to tell how much of a difference is luck."""


class Step(NamedTuple):
    """One reading as the closed loop saw it. Sizes are bytes of RAM; ``seconds`` is how long it lasted, 0 in a gap."""

    at_s: float
    wall_s: float | None
    seconds: float
    total_bytes: int
    own_bytes: int
    other_bytes: int
    level: str
    """What serves, or ``off``."""
    loading: str | None
    decision: Decision | None
    """What was decided at this reading, if anything was."""
    killed: bool


class Block(NamedTuple):
    """Seconds that were played, and their score."""

    seconds: float
    score: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Times are seconds, gaps left out; a score is quality-seconds less the costs."""

    seconds: float
    gaps: int
    score: float
    smallest_score: float
    """What the smallest level alone would have scored, were it loaded all the time."""
    quality_s: float
    unserved_s: float
    tight_s: float
    """Time with usage above scale-at, of each resource its own."""
    critical_s: float
    """Time with usage above critical-at, of each resource its own."""
    kills: int
    switches: int
    wasted: int
    """Climbs that were undone within the policy's ``wasted_within_s``."""
    seconds_at: dict[str, float]
    blocks: tuple[Block, ...]


class _Plant:
    """The simulated machine: what is loaded, and what it takes. Positions are those on the ladder, -1 nothing."""

    def __init__(self, ladder: Ladder, resources: Sequence[str]) -> None:
        self.needs = [tuple(level.footprint.get(r, 0) for r in resources) for level in ladder]
        self.nothing = (0,) * len(resources)
        self.load_s = [level.load_s for level in ladder]
        self.level = 0
        self.loading: int | None = None
        self.beside = False
        self.began_s = 0.0

    def own(self, at_s: float) -> tuple[int, ...]:
        """What is taken of each resource."""
        held = self.needs[self.level] if self.level >= 0 else self.nothing
        if self.loading is None:
            return held
        part = min(1.0, (at_s - self.began_s) / self.load_s[self.loading]) if self.loading >= 0 else 0.0
        need = self.needs[self.loading] if self.loading >= 0 else self.nothing
        return tuple(int(part * n) + (h if self.beside else 0) for n, h in zip(need, held, strict=True))

    def begin(self, position: int, beside: bool, at_s: float) -> None:
        self.loading, self.beside, self.began_s = position, beside, at_s

    def is_over(self, at_s: float) -> bool:
        """Whether what is being loaded serves by now."""
        return self.loading is not None and (self.loading < 0 or at_s - self.began_s >= self.load_s[self.loading])

    @property
    def serving(self) -> int:
        """The level that answers, or -1."""
        return self.level if self.loading is None or self.beside else -1


def play(
    readings: Iterable[Reading], ladder: Ladder, policy: Policy, *, watch: Callable[[Step], None] | None = None
) -> Outcome:
    """Play readings against the decision, with the smallest level loaded at first.

    Readings that lack a resource which the ladder takes are passed over. ``watch`` is told of every step.
    """
    return _Loop(ladder, policy, watch).run(readings)


class _Loop:
    def __init__(self, ladder: Ladder, policy: Policy, watch: Callable[[Step], None] | None) -> None:
        self._ladder, self._policy, self._watch = ladder, policy, watch
        self._machine = LevelMachine(ladder, policy, self._entered, initial=ladder[0].name)
        self._resources = self._machine.evidence.resources
        self._scales = [policy.scale_of(resource) for resource in self._resources]
        self._plant = _Plant(ladder, self._resources)
        self._names = [level.name for level in ladder]
        self._asked: Switch | None = None
        self._exhausted_s: float | None = None
        self._climbed_at_s: float | None = None
        self._switches = self._wasted = self._kills = 0

    def _entered(self, switch: Switch) -> None:
        self._asked = switch

    def run(self, readings: Iterable[Reading]) -> Outcome:
        policy, ladder = self._policy, self._ladder
        qualities = [level.quality for level in ladder] + [0.0]  # the last is what -1 finds: nothing serves
        seconds_at = [0.0] * (len(ladder) + 1)
        score = smallest = quality_s = tight_s = critical_s = total_s = block_s = block_score = 0.0
        blocks: list[Block] = []
        gaps = 0
        before: Reading | None = None
        for reading in self._whole(readings):
            if before is not None:
                passed = reading.at_s - before.at_s
                gap = passed > policy.stale_after_s
                gaps += gap
                usage, usage_of_smallest, serving = self._step(before, 0.0 if gap else passed)
                if not gap:
                    worth = passed * (qualities[serving] - cost_per_s(usage, policy))
                    score += worth
                    smallest += passed * (qualities[0] - cost_per_s(usage_of_smallest, policy))
                    quality_s += passed * qualities[serving]
                    seconds_at[serving] += passed
                    if usage > policy.scale_at:
                        tight_s += passed
                        if usage > policy.critical_at:
                            critical_s += passed
                    total_s += passed
                    block_s += passed
                    block_score += worth
                    if block_s >= BLOCK_S:
                        blocks.append(Block(block_s, block_score))
                        block_s = block_score = 0.0
            before = reading
        if before is not None:
            # How long the last reading lasted nobody knows; it is shown, and counts nothing.
            self._step(before, 0.0)
        if block_s:
            blocks.append(Block(block_s, block_score))
        return Outcome(
            seconds=total_s,
            gaps=gaps,
            score=score,
            smallest_score=smallest,
            quality_s=quality_s,
            unserved_s=seconds_at[-1],
            tight_s=tight_s,
            critical_s=critical_s,
            kills=self._kills,
            switches=self._switches,
            wasted=self._wasted,
            seconds_at={OFF: seconds_at[-1], **dict(zip(self._names, seconds_at, strict=False))},
            blocks=tuple(blocks),
        )

    def _whole(self, readings: Iterable[Reading]) -> Iterable[Reading]:
        resources = self._resources
        return (reading for reading in readings if all(reading.usage(resource) is not None for resource in resources))

    def _step(self, reading: Reading, seconds: float) -> tuple[float, float, int]:
        """Let the machine decide on one reading; returns usage, usage with the smallest level, and what serves."""
        at_s, plant, machine = reading.at_s, self._plant, self._machine
        if plant.is_over(at_s):
            assert plant.loading is not None
            plant.level, plant.loading = plant.loading, None
            switch = machine.switch
            name = self._names[plant.level] if plant.level >= 0 else OFF
            if switch is not None and not machine.settled and switch.dest == name and self._asked is None:
                machine.switched(switch.ticket, at_s)
            else:
                machine.serves(name)
        own = plant.own(at_s)
        usage = smallest = 0.0
        parts = []
        for resource, scale, taken, need in zip(self._resources, self._scales, own, plant.needs[0], strict=True):
            part = reading.usage(resource)
            assert part is not None  # _whole let it through
            parts.append(part)
            if taken or resource == RAM:
                share = (part.other_bytes + taken) / part.total_bytes
                usage = max(usage, share if scale is None else scale.read(share))
            if need or resource == RAM:
                share = (part.other_bytes + need) / part.total_bytes
                smallest = max(smallest, share if scale is None else scale.read(share))
        killed = self._kill_if_exhausted(usage, own, at_s)
        if killed:
            own = plant.nothing
        serving = plant.serving
        loading = plant.loading
        decided = machine.observe(_as_played(reading, self._resources, parts, own))
        self._obey(at_s)
        if self._watch is not None:
            self._watch(
                Step(
                    at_s,
                    reading.wall_s,
                    seconds,
                    parts[0].total_bytes,
                    own[0],
                    parts[0].other_bytes,
                    self._names[serving] if serving >= 0 else OFF,
                    None if loading is None else self._names[loading] if loading >= 0 else OFF,
                    machine.last_decision if decided else None,
                    killed,
                )
            )
        return usage, smallest, serving

    def _kill_if_exhausted(self, usage: float, own: Sequence[int], at_s: float) -> bool:
        if usage <= 1.0 or not any(own):
            self._exhausted_s = None
            return False
        if self._exhausted_s is None:
            self._exhausted_s = at_s
        if at_s - self._exhausted_s < KILLED_AFTER_S:
            return False
        self._exhausted_s, self._kills = None, self._kills + 1
        plant, machine = self._plant, self._machine
        plant.level, plant.loading, self._asked = -1, None, None
        machine.died(machine.state, at_s)
        return True

    def _obey(self, at_s: float) -> None:
        """Begin the switch that was asked for, unless another is under way."""
        switch, plant = self._asked, self._plant
        if switch is None or plant.loading is not None:
            return
        self._asked = None
        position = self._ladder.index(switch.dest)
        if position == plant.level:
            self._machine.switched(switch.ticket, at_s)
            return
        self._switches += 1
        if position > plant.level >= 0:
            self._climbed_at_s = at_s
        elif self._climbed_at_s is not None and position < plant.level:
            self._wasted += at_s - self._climbed_at_s < self._policy.wasted_within_s
            self._climbed_at_s = None
        plant.begin(position, switch.beside and plant.level >= 0, at_s)


def _as_played(reading: Reading, resources: Sequence[str], parts: Sequence[Usage], own: Sequence[int]) -> Reading:
    """What a reading would have been, had the model held ``own`` bytes of each resource; all else is as recorded.

    ``parts`` is how the resources were used in the recording, RAM first.
    """
    assert reading.memory is not None  # _whole let it through
    ram = parts[0]
    played = replace(
        reading,
        memory=replace(reading.memory, available_bytes=max(0, ram.total_bytes - ram.other_bytes - own[0])),
        own_bytes=own[0],
    )
    if len(resources) > 1:
        held = {r: (part, taken) for r, part, taken in zip(resources, parts, own, strict=True)}
        played.gpus = tuple(
            _with_own(gpu, *held[resource]) if (resource := gpu_resource(gpu.index)) in held else gpu
            for gpu in reading.gpus or ()
        )
    return played


def _with_own(gpu: Gpu, part: Usage, own_bytes: int) -> Gpu:
    used = min(gpu.total_bytes, part.other_bytes + own_bytes)
    return replace(gpu, used_bytes=used, free_bytes=gpu.total_bytes - used, own_bytes=own_bytes)
