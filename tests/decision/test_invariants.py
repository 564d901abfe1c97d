"""What holds whatever happens: the design's invariants, for random ladders, policies, readings and effects."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from hypothesis import given, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaler.errors import PinRefused
from scaler.events import DecisionMade, Hurried
from scaler.guards import GUARDS
from scaler.journal import record_of
from scaler.levels import OFF, RAM, Ladder, Level
from scaler.machine import LevelMachine, Row, Switch, table
from scaler.policy import Policy
from scaler.readings import Gpu, Memory, Power, Pressure, Reading, Stall, Thermal

TOTAL = 1 << 34
GPU = "gpu0"
SENSORS = {"battery": "power", "processors": "thermal", GPU: "gpus"}
"""What may lower the largest level, and the sensor that tells of it."""


def parts(least: int, most: int, of: int) -> st.SearchStrategy[float]:
    """Numbers from ``least`` to ``most``, in parts ``of`` one: round ones shrink to readable failures."""
    return st.integers(least, most).map(lambda number: number / of)


RATIOS = parts(0, 100, 100)


@st.composite
def ladders(draw: st.DrawFn, most: int = 5) -> Ladder:
    """One to ``most`` levels, some of them on a GPU, some there only, some elsewhere altogether."""
    count = draw(st.integers(1, most))
    ram = gpu = 0
    on_gpu_from = draw(st.integers(0, 2 * count))
    levels = []
    for number in range(count):
        kind = draw(st.sampled_from([*["here"] * 6, "GPU only", "elsewhere"]))
        footprint = {}
        if kind == "here":
            ram += draw(st.integers(1, 30)) * TOTAL // 100
            footprint[RAM] = ram
        if kind == "GPU only":
            gpu += draw(st.integers(1, 40)) * TOTAL // 100
            footprint[GPU] = gpu
        elif kind == "here" and number >= on_gpu_from:
            gpu += draw(st.integers(0, 40)) * TOTAL // 100
            if gpu:
                footprint[GPU] = gpu
        levels.append(Level(f"level{number}", footprint, 0.5, draw(parts(0, 80, 10))))
    return Ladder(levels)


@st.composite
def policies(draw: st.DrawFn, names: tuple[str, ...] = ()) -> Policy:
    """Anything that a tier may say, with times short enough for things to happen; ``names``: levels to name."""
    named = st.sampled_from([None, *names])
    scale_at = draw(parts(50, 90, 100))
    critical_at = draw(parts(round(scale_at * 100) + 2, 98, 100))
    dwell_s = draw(parts(0, 60, 1))
    backoff_s = draw(parts(0, 40, 1))
    return Policy(
        scale_at=scale_at,
        band=draw(parts(1, 10, 100)),
        critical_at=critical_at,
        vram_scale_at=draw(st.sampled_from([None, None, min(0.97, critical_at - 0.01), critical_at / 2])),
        vram_critical_at=draw(st.sampled_from([None, None, 0.98])),
        band_max=draw(parts(1, 20, 100)),
        exhausted_at=draw(st.sampled_from([critical_at, 0.99, 1.0])),
        exhausted_s=draw(parts(0, 4, 1)),
        needle_s=draw(st.sampled_from([0.0, 2.0, 2.0, 4.0])),
        needle_share=draw(parts(3, 9, 10)),
        rise_s=draw(st.sampled_from([0.0, 4.0, 4.0, 8.0])),
        sureness=draw(parts(5, 9, 10)),
        doubt_s=draw(parts(10, 600, 1)),
        memory_s=draw(parts(100, 3600, 1)),
        caution_step=draw(parts(0, 5, 100)),
        caution_max=draw(parts(0, 5, 100)),
        recovery_band=draw(parts(1, 20, 1000)),
        dwell_s=dwell_s,
        dwell_max_s=dwell_s * draw(parts(1, 4, 1)),
        debounce_s=draw(parts(0, 20, 2)),
        recovery_s=draw(parts(0, 20, 1)),
        trend_window_s=draw(parts(20, 60, 1)),
        switch_margin_s=draw(parts(0, 10, 1)),
        stale_after_s=draw(parts(4, 20, 1)),
        backoff_s=backoff_s,
        backoff_max_s=backoff_s * draw(parts(1, 8, 1)),
        wasted_within_s=draw(parts(0, 200, 1)),
        footprint_half_life_s=draw(parts(10, 600, 1)),
        battery_max_level=draw(named),
        throttled_max_level=draw(named),
    )


def ceiling(policy: Policy, ladder: Ladder, source: str) -> int:
    """The position of the largest level while this is so."""
    level = policy.battery_max_level if source == "battery" else policy.throttled_max_level
    used = source != GPU or any(GPU in level.footprint for level in ladder)
    return ladder.index(level) if level is not None and used else len(ladder)


def subject(guard: str, row: Row, ladder: Ladder) -> int:
    asked_of_source = GUARDS[guard].subject == "from" or row.dest is None
    return ladder.index(row.source if asked_of_source else row.dest)


class Watched(LevelMachine):
    """The machine, with every trigger compared with what the table says, guard by guard, without `transitions`."""

    def __init__(self, ladder: Ladder, policy: Policy, on_enter: Callable[[Switch], None], **more: Any) -> None:
        self.rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in table(ladder.names):
            self.rows[row.trigger, row.source].append(row)
        self.open: list[Row] = []
        super().__init__(ladder, policy, on_enter, **more)
        self.evidence.take = self._take  # type: ignore[method-assign]

    def enabled(self, trigger: str) -> list[Row]:
        """The rows that may be taken now, in the table's order."""
        return [
            row
            for row in self.rows[trigger, self.state]
            if all(GUARDS[g].test(self.evidence, subject(g, row, self.ladder)).holds for g in row.when)
            and not any(GUARDS[g].test(self.evidence, subject(g, row, self.ladder)).holds for g in row.unless)
        ]

    def observe(self, reading: Reading) -> bool:
        """As it is, with the outcome compared."""
        before, self.open = self.state, []
        moved = super().observe(reading)
        ways = {self._way(row) for row in self.open}
        assert len(ways) <= 1, f"from {before} the table goes {ways} at once: {self.open}"
        assert self.state == (self.open[0].dest if self.open else before), (before, self.state, self.open)
        return moved

    def _take(self, reading: Reading) -> bool:
        """The evidence takes the reading, and nothing has been decided yet."""
        says = type(self.evidence).take(self.evidence, reading)
        if says:
            self.open = self.enabled("observe")
        return says

    def _trigger(self, name: str) -> bool:
        before, enabled = self.state, self.enabled(name)
        moved = super()._trigger(name)
        assert moved == bool(enabled)
        assert self.state == ((enabled[0].dest or before) if enabled else before), (before, self.state, enabled)
        return moved

    def _way(self, row: Row) -> str:
        here, there = self.ladder.index(row.source), self.ladder.index(row.dest)
        return "off" if there < 0 else "up" if there > here else "down"


@dataclass
class Plant:
    """A machine with models on it: what is loaded takes its true footprint, whatever was declared."""

    true: dict[str, dict[str, int]]
    """What is given back when a level is unloaded."""
    loaded: str = OFF
    pending: Switch | None = None
    other: dict[str, float] = field(default_factory=lambda: {RAM: 0.3, GPU: 0.1})
    stays: int = 0
    """Bytes of RAM that the server of a level holds that is on a GPU only, loaded or not."""
    said: dict[str, bool | None] = field(default_factory=dict)
    """Whether the machine runs on battery, and what of it is slowed down for heat; what is not told is lacking."""
    lost: tuple[str, ...] = ()
    """The sensors that do not answer."""

    def own(self, resource: str) -> int:
        """Bytes that our model holds."""
        held = self.true.get(self.loaded, {})
        return held.get(resource, self.stays if resource == RAM and held else 0)

    def reading(self, at_s: float, *, gpu: bool = True, **fields: Any) -> Reading:
        """What the sensors see."""
        own, own_gpu = self.own(RAM), self.own(GPU)
        other, other_gpu = (int(self.other[resource] * TOTAL) for resource in (RAM, GPU))
        if RAM in self.true.get(self.loaded, {RAM: 0}) or not self.true[self.loaded]:
            other += self.stays
        used = other_gpu + own_gpu
        told = {source: self.said.get(source) for source, sensor in SENSORS.items() if sensor not in self.lost}
        battery, heat = told.get("battery"), told.get("processors")
        card = Gpu(0, "card", TOTAL, used, TOTAL - used, own_gpu, throttled=told.get(GPU))
        return Reading(
            at_s,
            memory=Memory(TOTAL, TOTAL - other - own),
            own_bytes=own,
            gpus=(card,) if gpu and "gpus" not in self.lost else None,
            power=None if battery is None else Power(not battery, 0.5),
            thermal=None if heat is None else Thermal(heat),
            missing=self.lost,
            **fields,
        )


def serialised(switch: Switch, hurried: bool = False) -> str:
    event = Hurried(switch) if hurried else DecisionMade(switch, 1.7e9)
    return json.dumps(record_of(event, 1.7e9), allow_nan=False)


class Invariants(RuleBasedStateMachine):
    """Random histories of one machine. Times: seconds."""

    @initialize(
        ladder=ladders(),
        data=st.data(),
        interval_s=st.sampled_from([0.5, 1.0, 2.0]),
        prompt=st.sampled_from([True, True, False]),
    )
    def begin(self, ladder: Ladder, data: st.DataObject, interval_s: float, prompt: bool) -> None:
        """``prompt``: the effects answer with the next reading, if nothing else is said."""
        policy = data.draw(policies(ladder.names))
        self.ladder, self.policy, self.interval_s, self.prompt = ladder, policy, interval_s, prompt
        factor = parts(85, 115, 100)
        true = {
            level.name: {r: int(size * data.draw(factor)) for r, size in level.footprint.items()} for level in ladder
        }
        self.initial = data.draw(st.sampled_from((OFF, *ladder.names)))
        self.now_s = 0.0
        self.plant = Plant(true, self.initial, stays=data.draw(parts(0, 10, 100).map(lambda part: int(part * TOTAL))))
        self.inputs: list[tuple[str, tuple[Any, ...]]] = []
        self.outputs: list[str] = []
        self.tickets: list[int] = []
        self.machine = Watched(ladder, policy, self.entered, on_hurry=self.hurried, initial=self.initial)
        self.last_change_s = -math.inf
        self.failed_s = dict.fromkeys(ladder.names, -math.inf)
        self.needles_trusted: dict[tuple[float, int], bool] = {}
        self.log: list[tuple[float, tuple[float | None, ...], tuple[float, ...]]] = []
        self.told: dict[str, list[tuple[float, bool | None, bool]]] = {source: [] for source in SENSORS}
        """What each usable reading said of each thing that lowers a level, and whether its sensor was missing."""

    # ------------------------------------------------------------------ the machine's other side

    def entered(self, switch: Switch) -> None:
        """The effects take note; everything that a decision promises is looked at here."""
        decision = switch.decision
        self.outputs.append(serialised(switch))
        self.plant.pending = switch
        assert switch.dest == decision.dest
        assert decision.reason
        assert set(decision.projected) == set(self.ladder.names)
        assert {f.level for f in decision.findings} >= set(self.ladder.names) - {decision.source}
        assert all("{" not in finding.sentence for finding in decision.findings)
        assert 0 <= switch.drain_s <= self.policy.drain_seconds
        assert 0 <= switch.drain_tokens <= self.policy.drain_tokens
        assert switch.ticket not in self.tickets
        self.tickets.append(switch.ticket)

    def hurried(self, switch: Switch) -> None:
        """A switch in progress is told to be quicker, never to take its time, never to go elsewhere."""
        self.outputs.append(serialised(switch, hurried=True))
        pending = self.plant.pending
        assert pending is not None
        assert (switch.ticket, switch.dest, switch.beside) == (pending.ticket, pending.dest, pending.beside)
        assert (switch.drain_s, switch.drain_tokens) < (pending.drain_s, pending.drain_tokens)
        self.plant.pending = switch

    def tell(self, method: str, *arguments: Any) -> Any:
        """Call the machine, and keep the call for the replay."""
        self.inputs.append((method, arguments))
        return getattr(self.machine, method)(*arguments)

    # ------------------------------------------------------------------ readings

    def shares(self, reading: Reading, *, known: bool) -> Iterator[float | None]:
        """Projected usage of every level, worked out anew from the figures of a reading."""
        assert reading.memory is not None
        assert reading.own_bytes is not None
        used = {RAM: (reading.memory.total_bytes - reading.memory.available_bytes, reading.own_bytes)}
        for gpu in reading.gpus or ():
            used[GPU] = (gpu.used_bytes, gpu.own_bytes or 0)
        footprints = self.machine.evidence.footprints
        loaded = [self.ladder.level(name).footprint for name in self.loaded if name != OFF]
        for position in range(len(self.ladder)):
            needs = dict(zip(footprints.resources, footprints.of(position), strict=True))
            asked = [resource for resource, need in needs.items() if need]
            ratios = []
            for r in (r for r in asked if r in used):
                # What a level holds of a resource that it does not declare does not come back.
                own = used[r][1] if not loaded or any(level.get(r) for level in loaded) else 0
                scale = self.machine.evidence.scales[footprints.resources.index(r)]
                share = (used[r][0] - own + needs[r]) / TOTAL
                ratios.append(share if scale is None else scale.read(share))
            yield max(ratios, default=0.0) if known or len(ratios) == len(asked) else None

    def observe(self, reading: Reading) -> None:
        """Hand in a usable reading, and check all that must hold of the answer."""
        policy, machine, evidence = self.policy, self.machine, self.machine.evidence
        before = machine.state
        self.loaded = {before, machine.serving}
        moved = self.tell("observe", reading)
        for position, needles in enumerate(evidence.needles):
            self.needles_trusted[reading.at_s, position] = needles.trusted(reading.at_s)
        complete = tuple(self.shares(reading, known=False))
        known = tuple(share for share in self.shares(reading, known=True) if share is not None)
        self.log.append((reading.at_s, complete, known))
        self.hear(reading)
        assert moved == (machine.state != before)
        here, there = self.ladder.index(before), self.ladder.index(machine.state)
        if moved:
            assert machine.last_decision is not None
            assert machine.last_decision.reading is reading
            told = [evidence.own(position, share) for position, share in enumerate(complete)]
            assert machine.last_decision.projected == dict(zip(self.ladder.names, told, strict=True))
            if there > here >= 0:
                self.check_climb(there, reading.at_s)
                self.check_permission(there, reading.at_s)
            if machine.open[0].when[0] == "over_ceiling":
                self.check_lowered(here)
                assert known[there] <= evidence.limits[there]
            if there >= 0:
                assert reading.at_s - self.failed_s[machine.state] >= policy.backoff_s, "failed lately"
            if there > here:
                assert evidence.pinned is None or there <= evidence.pinned
                self.check_allowed(there)
            self.last_change_s = reading.at_s
        if there >= 0:
            self.check_pressure(there, known)
            self.check_ceilings(there)
        if not moved:
            said = [outlook.level for outlook in machine.outlooks() if not outlook.lacking]
            assert not said, f"nothing is lacking for {said}, and {before} stays"

    def hear(self, reading: Reading) -> None:
        """Keep what a reading says of battery power and heat."""
        power, thermal = reading.power, reading.thermal
        answers = {
            "battery": None if power is None or power.plugged_in is None else not power.plugged_in,
            "processors": None if thermal is None else thermal.throttled,
            GPU: reading.gpus[0].throttled if reading.gpus else None,
        }
        for source, answer in answers.items():
            self.told[source].append((reading.at_s, answer, SENSORS[source] in reading.missing))

    def check_allowed(self, position: int) -> None:
        """From off as well: nothing is loaded that is forbidden now, as far as is known."""
        for source, told in self.told.items():
            known = [answer for _, answer, _ in told if answer is not None]
            forbids = known[-1:] == [True] and position > ceiling(self.policy, self.ladder, source)
            assert not forbids or self.machine.evidence.pinned is not None, f"{source} forbids it"

    def check_permission(self, position: int, at_s: float) -> None:
        """No reading of the dwell forbade the level, and nobody had to guess for longer than the stale time."""
        policy = self.policy
        for source, told in self.told.items():
            if self.machine.evidence.pinned is not None or position <= ceiling(policy, self.ladder, source):
                continue
            since_s = max(t for t, _, _ in told if t <= at_s - policy.dwell_s)
            assert not any(answer for t, answer, _ in told if t >= since_s), f"{source} forbade it"
            known = [t for t, answer, _ in told if answer is not None]
            if not known:
                assert not told[-1][2], f"nobody knows of the {source}"
                continue
            assert at_s - known[-1] <= policy.stale_after_s
            assert all(b - a <= policy.stale_after_s for a, b in pairwise(known) if b > at_s - policy.dwell_s)

    def check_lowered(self, position: int) -> None:
        """Battery power or heat is told now, and has lasted for as long as the recovery time, less what it was not."""
        longest = []
        for source, told in self.told.items():
            known = [(t, answer) for t, answer, _ in told if answer is not None]
            if position <= ceiling(self.policy, self.ladder, source) or not known or not known[-1][1]:
                continue
            net = best = 0.0
            for (began_s, answer), (ended_s, _) in reversed(list(pairwise(known))):
                net += ended_s - began_s if answer else began_s - ended_s
                best = max(best, net)
            longest.append(best)
        assert self.machine.evidence.pinned is None
        assert max(longest) >= self.policy.recovery_s - 1e-9

    def check_ceilings(self, position: int) -> None:
        """What has forbidden the level for as long as the recovery time has lowered it, if there is anywhere to go."""
        policy, evidence, at_s = self.policy, self.machine.evidence, self.log[-1][0]
        if evidence.pinned is not None:
            return
        most, lasted_s = len(self.ladder), -1.0
        for source, told in self.told.items():
            known = [(t, answer) for t, answer, _ in told if answer is not None]
            if not known or not known[-1][1]:
                continue
            highest = ceiling(policy, self.ladder, source)
            most = min(most, highest)
            since_s = known[-1][0]
            for t, answer in reversed(known):
                if not answer or since_s - t > policy.stale_after_s:
                    break
                since_s = t
            if position > highest and known[-1][0] == at_s:
                lasted_s = max(lasted_s, at_s - since_s)
        if lasted_s < policy.recovery_s + 1e-9:
            return
        for lower in range(min(most + 1, position)):
            usage, ahead = evidence.usage_at(lower), evidence.ahead(lower, evidence.horizon_s(lower))
            rising = ahead is not None and ahead.usage >= policy.critical_at
            fits = usage is not None and usage <= evidence.limits[lower] and not rising
            assert not fits or evidence.backoff_until_s[lower] > evidence.now_s, f"stays above {lower}"

    def check_climb(self, position: int, at_s: float) -> None:
        """No earlier than the dwell after the last change, and with room through all of it."""
        policy = self.policy
        assert at_s - self.last_change_s >= policy.dwell_s, "early"
        before = [index for index, (t, _, _) in enumerate(self.log) if t <= at_s - policy.dwell_s]
        assert before, "nobody has watched for a dwell"
        watched = self.log[before[-1] :]
        doubted_since: float | None = None
        for at, complete, _ in watched:
            share = complete[position]
            assert share is not None
            if share <= policy.scale_at - policy.band:
                doubted_since = None
                continue
            # Only where needles are the rule, and for no longer than one lasts.
            assert self.needles_trusted[at, position], (at, share)
            doubted_since = at if doubted_since is None else doubted_since
            assert at - doubted_since < policy.needle_s
        assert doubted_since is None
        times = [t for t, _, _ in watched]
        assert all(b - a <= policy.stale_after_s for a, b in pairwise(times))

    def check_pressure(self, position: int, known: tuple[float, ...]) -> None:
        """Critical is left at once, the limit after the debounce, if there is anywhere to go."""
        policy, evidence, usage = self.policy, self.machine.evidence, known[position]
        limit = evidence.limits[position]
        assert policy.scale_at - policy.caution_max <= limit <= policy.scale_at
        since = self.log[-1][0]
        for at_s, _, shares in reversed(self.log):
            if shares[position] <= limit:
                break
            since = at_s
        held_s = self.log[-1][0] - since
        patience_s = policy.needle_s if evidence.needles[position].trusted(evidence.now_s) else 0.0
        assert usage < policy.critical_at or held_s < patience_s, f"stays at {self.machine.state} with usage {usage}"
        if evidence.pinned == position or usage <= limit:
            return
        debounce_s = policy.debounce_s * (policy.critical_at - usage) / (policy.critical_at - policy.scale_at)
        if held_s >= max(debounce_s, patience_s) + 1e-9:
            for lower in range(position):
                backs_off = evidence.backoff_until_s[lower] > evidence.now_s
                ahead = evidence.ahead(lower, evidence.horizon_s(lower))
                rising = ahead is not None and ahead.usage >= policy.critical_at
                # Where it takes more of another resource, it may be no relief.
                no_use = known[lower] >= policy.critical_at or usage <= known[lower] > evidence.limits[lower]
                # Or be on a GPU that cannot be read.
                unknown = evidence.usage_at(lower) is None
                assert backs_off or rising or no_use or unknown, f"stays above {lower}"

    @rule(
        count=st.integers(1, 40),
        ram=RATIOS,
        gpu=RATIOS,
        drift=st.sampled_from([0, 0, 0, 1, -1, 4, -4]),
        stalled=st.sampled_from([None, None, 0.0, 0.2]),
        gpu_answers=st.sampled_from([True, True, True, False]),
        wall_s=st.sampled_from([0.0, 1.7e9]),
    )
    def watch(
        self,
        count: int,
        ram: float,
        gpu: float,
        drift: int,
        stalled: float | None,
        gpu_answers: bool,
        wall_s: float,
    ) -> None:
        """A stretch of readings: a jump, then a constant or a drift."""
        self.plant.other = {RAM: ram, GPU: gpu}
        pressure = None if stalled is None else Pressure(memory=Stall(stalled))
        self.readings(count, drift, gpu=gpu_answers, pressure=pressure, wall_s=wall_s)

    @rule(count=st.integers(1, 120), ram=parts(0, 30, 100), drift=st.sampled_from([0, 0, 0, 1]))
    def room(self, count: int, ram: float, drift: int) -> None:
        """A long stretch with little else on the machine."""
        self.plant.other = {RAM: ram, GPU: 0.0}
        self.readings(count, drift)

    @rule(
        count=st.integers(1, 60),
        data=st.data(),
        limit=st.sampled_from(["band", "scale_at", "critical_at"]),
        resource=st.sampled_from([RAM, RAM, GPU]),
        beyond=st.sampled_from([-1e-2, -1e-9, 0.0, 1e-9, 1e-2]),
        noise=st.sampled_from([0.0, 0.0, 1e-3, 2e-2]),
    )
    def edge(self, count: int, data: st.DataObject, limit: str, resource: str, beyond: float, noise: float) -> None:
        """Usage right at a limit of one of the levels, where a comparison that is off by a little shows."""
        policy, footprints = self.policy, self.machine.evidence.footprints
        if resource not in footprints.resources:
            resource = RAM
        position = data.draw(st.integers(0, len(self.ladder) - 1))
        need = footprints.of(position)[footprints.resources.index(resource)]
        at = {
            "band": policy.scale_at - policy.band,
            "scale_at": policy.scale_at,
            "critical_at": policy.critical_at,
        }[limit]
        self.plant.other = {RAM: 0.0, GPU: 0.0, resource: min(1.0, max(0.0, at - need / TOTAL + beyond))}
        self.readings(count, 0, noise=noise)

    @rule(
        count=st.integers(1, 60),
        ram=parts(0, 60, 100),
        source=st.sampled_from(list(SENSORS)),
        answers=st.lists(st.sampled_from([True, True, False, False, None, "lost"]), min_size=1, max_size=4),
    )
    def lower(self, count: int, ram: float, source: str, answers: list[bool | str | None]) -> None:
        """A stretch in which one thing that may lower the level lasts, is over, comes and goes, or is not told."""
        self.plant.other = {RAM: ram, GPU: 0.1}
        for number in range(count):
            answer = answers[number % len(answers)]
            self.plant.lost = (SENSORS[source],) if answer == "lost" else ()
            if not isinstance(answer, str):
                self.plant.said[source] = answer
            self.readings(1, 0)
        self.plant.lost = ()

    def readings(self, count: int, drift: int, *, noise: float = 0.0, **fields: Any) -> None:
        """So many readings; the effects answer in between if they are prompt."""
        steady = dict(self.plant.other)
        for number in range(count):
            self.now_s += self.interval_s
            for resource, ratio in steady.items():
                moved = ratio + drift * (number + 1) / 1000 + noise * (-1) ** number
                self.plant.other[resource] = min(1.0, max(0.0, moved))
            self.observe(self.plant.reading(self.now_s, **fields))
            if self.prompt and self.plant.pending is not None:
                self.finish()

    @rule(seconds=st.sampled_from([1.0, 3.0, 30.0, 1000.0]))
    def pause(self, seconds: float) -> None:
        """Nobody looks for a while."""
        self.now_s += seconds

    @rule(
        kind=st.sampled_from(
            ["missing", "no own", "negative", "absurd", "NaN", "now", "past", "NaN time", "endless", "no time"]
        ),
        back_s=parts(0, 1000, 10),
    )
    def bad_reading(self, kind: str, back_s: float) -> None:
        """Readings that say nothing change nothing, whatever else they claim."""
        evidence = self.machine.evidence
        at_s = self.now_s + self.interval_s / 2
        full, nan = Memory(TOTAL, 0), math.nan
        reading = {
            "missing": Reading(at_s, missing=("memory",)),
            "no own": Reading(at_s, None, full, None),
            "negative": Reading(at_s, None, full, -1),
            "absurd": Reading(at_s, None, Memory(TOTAL, TOTAL + 1), 0),
            "NaN": Reading(at_s, None, Memory(TOTAL, nan), 0),  # type: ignore[arg-type]
            "now": Reading(evidence.now_s, None, full, 0),
            "past": Reading(evidence.now_s - back_s, None, full, 0),
            "NaN time": Reading(nan, None, full, 0),
            "endless": Reading(math.inf, None, full, 0),
            "no time": Reading(1e18, None, full, 0),
        }[kind]
        before = self.snapshot()
        assert self.tell("observe", reading) is False
        assert self.snapshot() == before

    def snapshot(self) -> str:
        """All that the machine knows, but for how often it was asked."""
        evidence, machine = self.machine.evidence, self.machine
        known = {
            name: value
            for name, value in vars(evidence).items()
            if name not in ("ladder", "footprints", "trends", "take", "peaks", "needles", "cautions", "ceilings")
        }
        ceilings = [vars(one) for one in evidence.ceilings]
        footprints = [evidence.footprints.of(position) for position in range(len(self.ladder))]
        trends = [(len(trend), trend.slope_per_s, trend.steady_rise_per_s) for trend in evidence.trends]
        peaks = [(peaks.expected(evidence.now_s), peaks.bands) for peaks in evidence.peaks]
        trusted = [needles.trusted(evidence.now_s) for needles in evidence.needles]
        return repr(
            (
                known,
                footprints,
                trends,
                peaks,
                ceilings,
                trusted,
                machine.state,
                machine.switch,
                machine.last_decision,
                machine.outlooks(),
            )
        )

    # ------------------------------------------------------------------ effects

    @precondition(lambda self: self.plant.pending is not None)
    @rule(took_s=st.sampled_from([None, 0.1, 3.0, 60.0]))
    def finish_as_asked(self, took_s: float | None) -> None:
        """The switch in progress is done."""
        self.finish(took_s)

    def finish(self, took_s: float | None = None) -> None:
        pending = self.plant.pending
        assert pending is not None
        self.plant.pending, self.plant.loaded = None, pending.dest
        self.last_change_s = self.now_s
        self.tell("switched", pending.ticket, self.now_s, took_s)
        assert self.machine.settled

    @precondition(lambda self: self.plant.pending is not None)
    @rule(keeps=st.booleans())
    def fail(self, keeps: bool) -> None:
        """The switch in progress fails; what was loaded serves still, or was unloaded first."""
        pending = self.plant.pending
        assert pending is not None
        self.plant.pending = None
        if not keeps:
            self.plant.loaded = OFF
        self.last_change_s = self.now_s
        if pending.dest not in (OFF, self.plant.loaded):
            self.failed_s[pending.dest] = self.now_s
        self.tell("switch_failed", pending.ticket, self.plant.loaded, self.now_s)
        assert self.machine.state != pending.dest or self.plant.loaded == pending.dest

    @precondition(lambda self: self.plant.loaded != OFF)
    @rule()
    def die(self) -> None:
        """The kernel kills what is loaded."""
        died, self.plant.loaded = self.plant.loaded, OFF
        if died == self.machine.state:
            self.plant.pending = None
            self.last_change_s = self.now_s
        self.failed_s[died] = self.now_s
        self.tell("died", died, self.now_s)
        assert self.machine.state != died
        assert self.machine.serving == OFF

    @rule(data=st.data(), failed=st.booleans())
    def answer_for_an_overtaken_switch(self, data: st.DataObject, failed: bool) -> None:
        """News of what nobody waits for any more."""
        current = self.plant.pending.ticket if self.plant.pending else None
        stale = [ticket for ticket in (*self.tickets, 10**9, -1) if ticket != current]
        ticket = data.draw(st.sampled_from(stale))
        before = self.snapshot()
        if failed:
            self.tell("switch_failed", ticket, data.draw(st.sampled_from((OFF, *self.ladder.names))), self.now_s)
        else:
            self.tell("switched", ticket, self.now_s, 1.0)
        assert self.snapshot() == before

    # ------------------------------------------------------------------ people

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        """A person insists, and gets it unless it would be critical."""
        level = data.draw(st.sampled_from((OFF, *self.ladder.names)))
        before = self.machine.state
        try:
            self.tell("pin", level, self.now_s)
        except PinRefused as refused:
            note(str(refused))
            usage = None if not self.log else self.log[-1][1][self.ladder.index(level)]
            known = math.inf if not self.log else self.log[-1][2][self.ladder.index(level)]
            evidence, position = self.machine.evidence, self.ladder.index(level)
            ahead = evidence.ahead(position, evidence.horizon_s(position))
            rises_to = 0.0 if ahead is None else ahead.usage
            assert usage is None or max(known, rises_to) >= self.policy.critical_at
            assert self.machine.state == before
        else:
            assert (self.machine.state, self.machine.pinned) == (level, level)
            if level != before:
                self.last_change_s = self.now_s

    @precondition(lambda self: self.machine.pinned is not None)
    @rule()
    def unpin(self) -> None:
        """And lets go again."""
        before = self.machine.state
        self.tell("unpin")
        assert (self.machine.state, self.machine.pinned) == (before, None)

    @rule()
    def degrade(self) -> None:
        """A step down is asked for."""
        before = self.ladder.index(self.machine.state)
        if self.tell("degrade", self.now_s):
            self.last_change_s = self.now_s
            assert 0 <= self.ladder.index(self.machine.state) < before

    @rule(wanted=st.sampled_from([True, True, False]))
    def want(self, wanted: bool) -> None:
        """Requests come, or do not."""
        self.tell("want", wanted)

    # ------------------------------------------------------------------ always

    @invariant()
    def the_serving_level_is_the_state_whenever_the_machine_is_settled(self) -> None:
        """Judged by what is really loaded."""
        if self.machine.settled:
            assert self.plant.loaded == self.machine.serving == self.machine.state
            assert self.plant.pending is None
        else:
            assert self.plant.pending is not None
            assert self.plant.pending.dest == self.machine.state
            assert self.machine.switch is self.plant.pending

    @invariant()
    def what_is_learned_stays_within_its_bounds(self) -> None:
        """Dwells, pauses and footprints adapt; they do not run away."""
        evidence, policy = self.machine.evidence, self.policy
        below = [0] * len(evidence.resources)
        for position in range(len(self.ladder)):
            assert policy.dwell_s <= evidence.dwell_s(position) <= policy.dwell_max_s
            assert policy.scale_at - policy.caution_max - 1e-9 <= evidence.limits[position] <= policy.scale_at
            assert evidence.backoff_until_s[position] <= max(evidence.now_s, self.now_s) + policy.backoff_max_s
            need = evidence.footprints.of(position)
            for index, (resource, least, size) in enumerate(zip(evidence.resources, below, need, strict=True)):
                assert size >= least if self.ladder[position].footprint.get(resource) else size == 0
                below[index] = max(least, size)
            assert max(need) <= 1.15 * max(
                size
                for level in self.ladder
                for size in (0, *level.footprint.values(), *self.plant.true[level.name].values())
            )

        for peaks in evidence.peaks:
            assert all(policy.band <= band <= max(policy.band, policy.band_max) for band in peaks.bands.values())

    @invariant()
    def every_level_can_be_explained(self) -> None:
        """An outlook lacks something, or is about to come true; a wait is never for no time."""
        for outlook in self.machine.outlooks():
            assert outlook.wait_s is None or outlook.wait_s >= 0
            assert (outlook.wait_s == 0) == (not outlook.lacking), outlook
            if outlook.wait_s is not None and outlook.earliest_s is not None:
                assert outlook.earliest_s <= outlook.wait_s + 1e-6

    def teardown(self) -> None:
        """The same history replayed gives the same decisions, to the byte."""
        if not hasattr(self, "machine"):
            return
        outputs: list[str] = []
        again = LevelMachine(
            self.ladder,
            self.policy,
            lambda switch: outputs.append(serialised(switch)),
            on_hurry=lambda switch: outputs.append(serialised(switch, hurried=True)),
            initial=self.initial,
        )
        for method, arguments in self.inputs:
            try:
                getattr(again, method)(*arguments)
            except PinRefused as refused:
                note(str(refused))
        assert outputs == self.outputs


TestInvariants = Invariants.TestCase


# ---------------------------------------------------------------------- constant usage


@dataclass
class Constant:
    """An hour and more in which nobody else changes what they take."""

    ladder: Ladder
    policy: Policy
    initial: str
    other: dict[str, float]
    true: dict[str, dict[str, int]]
    latency: int
    stays: int
    said: dict[str, bool | None]
    hot_from: int = 99
    """From this position on our own model makes the machine too hot."""

    def run(self, readings: int = 2400, interval_s: float = 2.0) -> list[tuple[float, int, int]]:
        """The changes as (time, from, to), with positions as on the ladder. Where it comes to rest is no trap."""
        plant = Plant(self.true, self.initial, None, self.other, self.stays, dict(self.said))
        switches: list[Switch] = []
        machine = LevelMachine(self.ladder, self.policy, switches.append, initial=self.initial)
        answered, due = 0, 0
        for number in range(readings):
            now_s = number * interval_s
            if self.hot_from < 99:
                plant.said["processors"] = self.ladder.index(plant.loaded) >= self.hot_from
            machine.observe(plant.reading(now_s))
            if len(switches) > answered:
                answered, due = len(switches), number + self.latency
            if not machine.settled and number >= due:
                plant.loaded = switches[-1].dest
                machine.switched(switches[-1].ticket, now_s, 1.0)
        if self.hot_from == 99:
            self.check_rest(machine)
        index = self.ladder.index
        return [(s.decision.at_s, index(s.decision.source), index(s.decision.dest)) for s in switches]

    def check_rest(self, machine: LevelMachine) -> None:
        """Nothing above has room and no fault, unless what serves has to give way and it would take more of that."""
        evidence, here = machine.evidence, self.ladder.index(machine.state)
        footprints, usage = evidence.footprints, evidence.projected
        most = min(
            (ceiling(self.policy, self.ladder, source) for source, so in self.said.items() if so is not False),
            default=99,
        )
        for there in range(max(here, 0) + 1, min(most + 1, len(self.ladder))):
            share, expected = usage[there], evidence.expected(there)
            if share is None or share > evidence.limits[there] - self.policy.band or here < 0:
                continue
            if expected is not None and expected.at_most > evidence.limits[there]:
                continue
            more = any(
                footprints.of(there)[index] > footprints.of(here)[index] > 0
                and part is not None
                and evidence.reads(index, part.other_bytes + footprints.of(here)[index]) > evidence.limits[here]
                for index, part in enumerate(evidence.usage)
            )
            assert more, f"rests at {machine.state}, and {self.ladder[there].name} has room"


@st.composite
def constants(draw: st.DrawFn, off_by: float, *, lowered: bool = False) -> Constant:
    """``off_by``: how far true footprints are from the declared ones. ``lowered``: on battery, or hot, throughout."""
    ladder = draw(ladders())
    factor = parts(round(100 - 100 * off_by), round(100 + 100 * off_by), 100)
    return Constant(
        ladder,
        draw(policies(ladder.names if lowered else ())),
        draw(st.sampled_from((OFF, *ladder.names))),
        {RAM: draw(parts(0, 1000, 1000)), GPU: draw(parts(0, 1000, 1000))},
        {level.name: {r: int(size * draw(factor)) for r, size in level.footprint.items()} for level in ladder},
        draw(st.integers(0, 5)),
        draw(st.integers(0, 10)) * TOTAL // 100,
        {source: draw(st.sampled_from([None, False, True, True])) for source in SENSORS},
    )


@given(constants(off_by=0.0))
def test_with_constant_usage_the_level_goes_down_once_at_most_then_climbs_and_stays(constant: Constant) -> None:
    """No cycle: what was left for lack of room is not climbed to without new room."""
    changes = constant.run()
    ways = ["up" if there > here else "down" for _, here, there in changes]
    assert ways.count("down") <= 1
    assert "down" not in ways[1:]
    visited = [there for _, _, there in changes]
    assert len(visited) == len(set(visited))
    assert all(at_s < 3000 for at_s, _, _ in changes)


@given(constants(off_by=0.15))
def test_wrong_declarations_are_learned_once_and_do_not_make_a_cycle(constant: Constant) -> None:
    """Each level is climbed to once at the most: what it takes is known from then on."""
    changes = constant.run()
    climbed = [there for _, here, there in changes if there > here]
    assert len(climbed) == len(set(climbed)), changes
    assert all(at_s < 3000 for at_s, _, _ in changes)


@given(constants(off_by=0.0, lowered=True))
def test_on_battery_or_in_heat_the_level_is_lowered_once_more_at_most_and_then_stays(constant: Constant) -> None:
    """No cycle here either; one step may be that of memory, the other that of the battery or of heat."""
    changes = constant.run()
    ways = ["up" if there > here else "down" for _, here, there in changes]
    assert ways.count("down") <= 2
    assert "down" not in ways[ways.count("down") :]
    visited = [there for _, _, there in changes]
    assert len(visited) == len(set(visited))
    assert all(at_s < 3000 for at_s, _, _ in changes)
    highest = [ceiling(constant.policy, constant.ladder, source) for source, so in constant.said.items() if so]
    assert all(there <= min(highest, default=99) for _, here, there in changes if there > here)


@given(constants(off_by=0.0, lowered=True), st.data())
def test_the_heat_of_our_own_model_makes_no_cycle_that_is_faster_than_the_lengthened_dwell(
    constant: Constant, data: st.DataObject
) -> None:
    """Down, cool, up, hot: each time that was wasted doubles the wait, up to the bound."""
    cool = data.draw(st.integers(0, len(constant.ladder) - 1))
    policy = replace(constant.policy, throttled_max_level=constant.ladder.names[cool])
    warm = replace(constant, policy=policy, latency=0, hot_from=cool + 1, said={})
    since_s, climbed, wasted = -math.inf, -1, [0] * len(constant.ladder)
    for at_s, here, there in warm.run():
        if there > here >= 0:
            assert at_s - since_s >= min(policy.dwell_s * 2 ** min(wasted[there], 20), policy.dwell_max_s)
        elif 0 <= here == climbed:
            wasted[here] = wasted[here] + 1 if at_s - since_s < policy.wasted_within_s else 0
        since_s, climbed = at_s, there if there > here >= 0 else -1


@given(ladders(), st.sampled_from(sorted(SENSORS)), RATIOS, st.data())
def test_what_lasts_has_lowered_the_level_within_the_recovery_time_and_one_interval(
    ladder: Ladder, source: str, other: float, data: st.DataObject
) -> None:
    """Whatever came before: if the largest level that is allowed then fits, nothing above it is kept."""
    most = data.draw(st.sampled_from(ladder.names))
    if source == GPU and all(GPU not in level.footprint for level in ladder):
        return
    policy = replace(data.draw(policies()), battery_max_level=most, throttled_max_level=most)
    interval_s = data.draw(st.sampled_from([0.5, 1.0, 2.0]))
    plant = Plant({level.name: dict(level.footprint) for level in ladder}, data.draw(st.sampled_from(ladder.names)))
    plant.other = {RAM: other, GPU: other}
    machine = LevelMachine(ladder, policy, lambda switch: None, initial=plant.loaded)
    now_s = 0.0
    for answer in data.draw(st.lists(st.sampled_from([True, False, None]), max_size=40)):
        now_s += interval_s
        plant.said[source] = answer
        machine.observe(plant.reading(now_s))
    plant.said[source], began_s = True, now_s
    while now_s < began_s + policy.recovery_s + interval_s:
        now_s += interval_s
        machine.observe(plant.reading(now_s))
    position = ladder.index(most)
    there = GUARDS["fits"].test(machine.evidence, position)
    assert ladder.index(machine.state) <= position or not there.holds


@given(ladders(), policies(), RATIOS, RATIOS, st.data())
def test_under_lasting_pressure_a_bearable_state_is_reached_within_the_debounce_and_one_interval(
    ladder: Ladder, policy: Policy, before: float, after: float, data: st.DataObject
) -> None:
    """Whatever came before: a level that fits, or one under critical-at that no smaller one would ease, or off."""
    initial = data.draw(st.sampled_from(ladder.names))
    interval_s = data.draw(st.sampled_from([0.5, 1.0, 2.0]))
    plant = Plant({level.name: dict(level.footprint) for level in ladder}, initial)
    machine = LevelMachine(ladder, policy, lambda switch: None, initial=initial)
    now_s = 0.0
    plant.other = {RAM: before, GPU: 0.0}
    for _ in range(data.draw(st.integers(0, 30))):
        now_s += interval_s
        machine.observe(plant.reading(now_s))
    plant.other = {RAM: after, GPU: 0.0}
    pressed_s = now_s
    while now_s < pressed_s + policy.debounce_s + interval_s:
        now_s += interval_s
        machine.observe(plant.reading(now_s))
    usage = {level.name: machine.evidence.projected[position] for position, level in enumerate(ladder)}
    if machine.state == OFF:
        return
    here = usage[machine.state]
    assert here is not None
    smaller = [usage[name] for name in ladder.names[: ladder.index(machine.state)]]
    # A smaller level may be the tighter one, where it takes more of another resource.
    no_use = all(share is None or share >= here for share in smaller)
    assert here <= policy.scale_at or (no_use and here < policy.critical_at), (machine.state, usage)
