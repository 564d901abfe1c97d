"""The real machine on a machine that does what the letters say, and its whole state as a few bytes.

What is saved is all that a guard, or an invariant, can tell apart: times as ages in ticks, no older than the longest
that any of them is compared with. `test_exhaustive.py` holds a machine that was never saved against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from scaler.errors import PinRefused
from scaler.evidence import NEVER
from scaler.guards import GUARDS
from scaler.levels import OFF, RAM, Ladder
from scaler.machine import Decision, LevelMachine, Row, Switch, table
from scaler.policy import Policy
from scaler.readings import Gpu, Memory, Power, Pressure, Reading, Stall, Usage
from tests.exhaustive.letters import GPU, PART, PARTS, TOTAL, Event, Letter, Read
from tests.exhaustive.oracles import ExpectedPeak, Rise, Taken, Trust

BEGIN = 1000
NONE, FOREVER = 255, 254
"""How a time is written that is not, or was never."""
CAUTION = 4
"""Parts of the memory that caution takes off a limit, where a letter says so."""
HEADER = 13
EACH = 12
BACK_OFF = 4
"""How a state is laid out: so many bytes at first, so many for each level, and which of them is its back-off."""

Key = bytes


@dataclass(frozen=True, slots=True)
class Scope:
    """A ladder, a policy in ticks and the letters: what one search goes through."""

    name: str
    ladder: Ladder
    policy: Policy
    letters: tuple[Letter, ...]

    @property
    def remembers(self) -> bool:
        """Whether anything but a reading asks for the last reading."""
        return any(isinstance(letter, Event) and letter.kind == "pin" for letter in self.letters) or self.drains

    @property
    def drains(self) -> bool:
        """Whether drain limits are told apart."""
        return self.policy.drain_seconds > 0

    @property
    def lags(self) -> bool:
        """Whether time passes without readings."""
        return any(isinstance(letter, Event) and letter.kind == "missing" for letter in self.letters)


class Seen:
    """A reading's letter, worked out for every level: what the invariants compare, without asking the machine."""

    def __init__(self, read: Read, scope: Scope) -> None:
        ladder, policy = scope.ladder, scope.policy
        self.read = read
        used: dict[str, int | None] = {RAM: read.ram, GPU: read.gpu}
        self.known: list[float] = []
        self.complete: list[float | None] = []
        self.ahead: list[float] = []
        """Usage at each level when a switch is over, if the rise goes on."""
        self.soon: list[float] = []
        """The same when only the switch's margin has passed."""
        self.peak: list[float | None] = []
        """The highest usage at each level that is to be expected."""
        for level in ladder:
            needs = {resource: size // PART for resource, size in level.footprint.items()}
            shares = [(part + need) / PARTS for resource, need in needs.items() if (part := used[resource]) is not None]
            self.known.append(max(shares, default=0.0))
            whole = len(shares) == len(needs)
            self.complete.append(self.known[-1] if whole else None)
            risen = (read.ram + needs[RAM] + read.rise) / PARTS if RAM in needs else 0.0
            self.ahead.append(max(self.known[-1], risen))
            risen -= read.rise / PARTS * level.load_s / (policy.switch_margin_s + level.load_s)
            self.soon.append(max(self.known[-1], risen))
            peaks = None if read.peak is None or not whole else [(read.peak + need) / PARTS for need in needs.values()]
            self.peak.append(None if peaks is None else max(peaks))
        self.limit = policy.scale_at - (CAUTION / PARTS if read.cautious else 0.0)
        self.over = [share > self.limit for share in self.known]
        self.room = [share is not None and share <= self.limit - policy.band for share in self.complete]
        recovery = [policy.critical_at - policy.recovery_band, *[self.limit - policy.band] * (len(ladder) - 1)]
        self.recovers = [
            share is not None and share <= limit for share, limit in zip(self.complete, recovery, strict=True)
        ]
        self.usage = [
            None if (part := used[resource]) is None else Usage(TOTAL, 0, part * PART)
            for resource in dict.fromkeys((RAM, *(r for level in ladder for r in level.footprint)))
        ]
        self.readings = [self._reading(level.footprint) for level in (*ladder,)] + [self._reading({})]
        """As the sensors see it with each level loaded; the last with none."""

    def _reading(self, own: Any) -> Reading:
        read = self.read
        taken, card = own.get(RAM, 0), own.get(GPU, 0)
        gpus = None
        if read.gpu is not None:
            used = read.gpu * PART + card
            gpus = (Gpu(0, "card", TOTAL, used, TOTAL - used, card),)
        return Reading(
            0,
            memory=Memory(TOTAL, TOTAL - read.ram * PART - taken),
            own_bytes=taken,
            gpus=gpus,
            pressure=Pressure(memory=Stall(1.0)) if read.stalled else None,
            power={"plugged in": Power(True), "battery": Power(False)}.get(read.power),
            missing=("power",) if read.power == "lost" else (),
        )


class Tabled(LevelMachine):
    """The machine, without the words of explanations; notes which rows of the table let through at each reading."""

    def __init__(self, ladder: Ladder, policy: Policy, **more: Any) -> None:
        super().__init__(ladder, policy, self._note, **more)
        self.entered: Switch | None = None
        self.hurries: list[Switch] = []
        self.open: list[Row] = []
        self._on_hurry = self.hurries.append
        self._asked: dict[tuple[str, int], int] = {}
        self._tests: list[tuple[Any, int]] = []
        self._rows: dict[str, list[tuple[Row, list[int], list[int]]]] = {name: [] for name in (OFF, *ladder.names)}
        for row in table(ladder.names):
            if row.trigger == "observe":
                asked = [[self._number(name, row) for name in names] for names in (row.when, row.unless)]
                self._rows[row.source].append((row, asked[0], asked[1]))
        self.evidence.take = self._take  # type: ignore[method-assign]

    def _note(self, switch: Switch) -> None:
        self.entered = switch

    def _number(self, name: str, row: Row) -> int:
        asked = name, self._subject(name, row)
        if asked not in self._asked:
            self._asked[asked] = len(self._tests)
            self._tests.append((GUARDS[name].test, asked[1]))
        return self._asked[asked]

    def _take(self, reading: Reading) -> bool:
        """The evidence takes the reading, and nothing has been decided yet."""
        evidence = self.evidence
        self.open = []
        says = type(evidence).take(evidence, reading)
        if says:
            answers: dict[int, bool] = {}

            def holds(number: int) -> bool:
                answer = answers.get(number)
                if answer is None:
                    test, position = self._tests[number]
                    answer = answers[number] = test(evidence, position).holds
                return answer

            self.open = [
                row
                for row, when, unless in self._rows[self.state]
                if all(map(holds, when)) and not any(map(holds, unless))
            ]
        return says

    def _outlooks_from(self, state: str) -> tuple[Any, ...]:
        return ()


class World:
    """A machine, what is loaded, and the invariants' own account of when what was last so. Times are ticks."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.ladder, self.policy = scope, scope.ladder, scope.policy
        policy = scope.policy
        self.count = len(scope.ladder)
        self.machine = Tabled(scope.ladder, policy)
        self.evidence = self.machine.evidence
        self._place_oracles()
        self._remembers, self._drained = scope.remembers, scope.drains
        self.seen = [Seen(letter, scope) if isinstance(letter, Read) else None for letter in scope.letters]
        self._names = (OFF, *scope.ladder.names)
        self._drains = [
            (policy.drain_seconds, policy.drain_tokens),
            (policy.drain_seconds * 0.1, int(policy.drain_tokens * 0.1)),
            (0.0, 0),
        ]
        self._switches = {
            (name, drain): Switch(1, name, False, *self._drains[drain], cast(Decision, None))
            for name in self._names
            for drain in range(3)
        }
        behind = round(policy.stale_after_s) + 1 if scope.lags else 0
        self.behind = behind
        """The longest silence after which something other than a reading may come."""
        self._dwell = round(policy.dwell_max_s)
        self._served = round(max(policy.wasted_within_s, policy.dwell_s))
        self._debounce = round(max(policy.debounce_s, policy.needle_s))
        self._recovery = round(policy.recovery_s)
        self._needle = round(policy.needle_s)
        self._exhausted = round(policy.exhausted_s)
        self._stale = round(policy.stale_after_s) + 1
        self._backoff = round(policy.backoff_s)
        self._failures = round(math.log2(policy.backoff_max_s / policy.backoff_s)) if policy.backoff_s else 0
        self._wasted = round(math.log2(policy.dwell_max_s / policy.dwell_s))
        self.clock = BEGIN
        self.loaded = -1
        self.last = NONE
        self.changed: float = NEVER
        none: list[int | None] = [None] * self.count
        self.over, self.room, self.recovers, self.doubted = list(none), list(none), list(none), list(none)
        self.failed: list[float] = [NEVER] * self.count
        self.on_battery: bool | None = None
        self.plugged_since: float | None = NEVER
        self.battery_since: int | None = None
        self.told_at: float = NEVER

    def _place_oracles(self) -> None:
        evidence = self.evidence
        self._rises = [Rise() for _ in evidence.resources]
        self._peaks = [ExpectedPeak() for _ in evidence.resources]
        self._trust = [Trust() for _ in self.ladder]
        self._taken = [Taken() for _ in self.ladder]
        placed: Any = evidence
        placed.trends, placed.peaks, placed.needles, placed.cautions = (
            self._rises,
            self._peaks,
            self._trust,
            self._taken,
        )

    @property
    def position(self) -> int:
        """The state as a position on the ladder."""
        return self.ladder.index(self.machine.state)

    # ------------------------------------------------------------------ save and restore

    def beginnings(self) -> list[Key]:
        """Before the first reading, with each level loaded, the smallest first, and with none."""
        return [self._beginning(position) for position in (*range(self.count), -1)]

    def _beginning(self, position: int) -> Key:
        head = [
            position + 1,
            position + 1,
            3,
            0,
            position + 1,
            NONE,
            FOREVER,
            self._served + self.behind,
            0,
            NONE,
            NONE,
            0,
            FOREVER,
        ]
        each = [NONE, NONE, NONE, NONE, 0, 0, 0, NONE, NONE, NONE, NONE, FOREVER]
        ceilings = [0, 0, FOREVER, NONE] * len(self.evidence.ceilings)
        ghost = [2, FOREVER, NONE, FOREVER] if self.evidence.ceilings else []
        return bytes([*head, *each * self.count, *ceilings, *ghost])

    def key(self) -> Key:
        """All that matters of how it is now. Ages are as of the last reading, which any guard judges from."""
        machine, evidence, behind = self.machine, self.evidence, self.behind
        state, now, clock = evidence.state, evidence.now_s, self.clock
        lag = NONE if now == NEVER else int(clock - now)
        if now == NEVER:
            now = clock
        switch = machine.switch
        drain = 0
        if self._drained and switch is not None and not evidence.settled:
            drain = self._drains.index((switch.drain_s, switch.drain_tokens))
        climbed, served = 0, self._served + behind
        since = machine._served_since
        # Once a switch is done, what it leads to serves since then.
        fresh = not evidence.settled or now - since < self.policy.wasted_within_s
        if self._wasted and machine._climbed_to >= 0 and fresh:
            climbed = machine._climbed_to + 1
        counts = state >= 0 and (
            (self._wasted and evidence.wasted[state]) or (self._failures and evidence.failures[state])
        )
        if climbed or counts:
            served = int(min(now - since, self._served)) + behind
        serving = evidence.serving
        found = [
            self._names.index(machine.state),
            0 if serving is None else serving + 1,
            evidence.settled + 2 * evidence.wanted,
            0 if evidence.pinned is None else evidence.pinned + 2,
            self.loaded + 1,
            lag,
            _age(evidence.changed_at_s, now, self._dwell, behind),
            served,
            climbed,
            self.last,
            _since(evidence.exhausted_since, now, self._exhausted) if self._drained else NONE,
            drain + 4 * max(0, int(max(machine._event_at_s, now) - now)),
            _age(self.changed, now, self._dwell, behind),
        ]
        for position in range(self.count):
            left = evidence.backoff_until_s[position] - now
            over, fits = evidence.over_since[position], evidence.fits_since[position]
            recovers, doubted = evidence.recovers_since[position], evidence._doubted_since[position]
            mine, room = self.over[position], self.room[position]
            back, doubt = self.recovers[position], self.doubted[position]
            found += (
                NONE if over is None else min(int(now - over), self._debounce),
                NONE if fits is None else min(int(now - fits), self._dwell),
                NONE if recovers is None else min(int(now - recovers), self._recovery),
                NONE if doubted is None else min(int(now - doubted), self._needle),
                0 if left <= 0 else int(left),
                min(evidence.failures[position], self._failures),
                min(evidence.wasted[position], self._wasted),
                NONE if mine is None else min(int(now - mine), self._debounce),
                NONE if room is None else min(int(now - room), self._dwell),
                NONE if back is None else min(int(now - back), self._recovery),
                NONE if doubt is None else min(int(now - doubt), self._needle),
                _age(self.failed[position], now, self._backoff, behind),
            )
        for ceiling in evidence.ceilings:
            found += (
                int(ceiling.lowers),
                int(ceiling.lasted_s),
                _since(ceiling.lifted_since, now, self._dwell),
                _since(ceiling._known_s, now, self._stale),
            )
        if evidence.ceilings:
            found += (
                2 if self.on_battery is None else int(self.on_battery),
                _since(self.plugged_since, now, self._dwell),
                _since(self.battery_since, now, self._recovery),
                _age(self.told_at, now, self._stale, 0),
            )
        return bytes(found)

    def restore(self, key: Key) -> None:
        """Be in a state that was saved; the clock begins anew."""
        machine, evidence, behind = self.machine, self.evidence, self.behind
        self.clock = BEGIN
        now = BEGIN if key[5] == NONE else BEGIN - key[5]
        state = key[0] - 1
        machine._model.state = self._names[key[0]]
        machine._inputs += 1
        evidence.state = state
        evidence.serving = key[1] - 1 if key[1] else None
        evidence.settled, evidence.wanted = bool(key[2] & 1), bool(key[2] & 2)
        evidence.pinned = key[3] - 2 if key[3] else None
        self.loaded = key[4] - 1
        evidence.now_s = NEVER if key[5] == NONE else now
        evidence.changed_at_s = NEVER if key[6] == FOREVER else now - key[6] + behind
        machine._served_since = now - key[7] + behind
        machine._climbed_to = key[8] - 1
        self.last = last = key[9]
        evidence.exhausted_since = None if key[10] == NONE else now - key[10]
        machine.switch = self._switches[machine._model.state, key[11] & 3]
        machine._ticket = 1
        machine._event_at_s = now + (key[11] >> 2)
        machine.entered = None
        machine.hurries.clear()
        self.changed = NEVER if key[12] == FOREVER else now - key[12] + behind
        seen = None if last == NONE else self.seen[last]
        if seen is None:
            evidence.usage = [None] * len(evidence.resources)
            evidence.projected = [None] * self.count
            evidence.at_least = [None] * self.count
        else:
            evidence.usage = list(seen.usage)
            evidence.projected = list(seen.complete)
            evidence.at_least = list(seen.known)
            self._ask(seen)
        at = HEADER
        for position in range(self.count):
            over, fits, recovers, doubted, left, failures, wasted, mine, room, back, doubt, failed = key[at : at + EACH]
            at += EACH
            evidence.over_since[position] = None if over == NONE else now - over
            evidence.fits_since[position] = None if fits == NONE else now - fits
            evidence.recovers_since[position] = None if recovers == NONE else now - recovers
            evidence._doubted_since[position] = None if doubted == NONE else now - doubted
            evidence.backoff_until_s[position] = now + left if left else NEVER
            evidence.failures[position], evidence.wasted[position] = failures, wasted
            self.over[position] = None if mine == NONE else now - mine
            self.room[position] = None if room == NONE else now - room
            self.recovers[position] = None if back == NONE else now - back
            self.doubted[position] = None if doubt == NONE else now - doubt
            self.failed[position] = NEVER if failed == FOREVER else now - failed + behind
        for ceiling in evidence.ceilings:
            ceiling.lowers, ceiling.lasted_s = bool(key[at]), key[at + 1]
            ceiling.lifted_since = _time(key[at + 2], now)
            ceiling._known_s = None if key[at + 3] == NONE else now - key[at + 3]
            at += 4
        if evidence.ceilings:
            self.on_battery = None if key[at] == 2 else bool(key[at])
            self.plugged_since = _time(key[at + 1], now)
            self.battery_since = None if key[at + 2] == NONE else now - key[at + 2]
            self.told_at = NEVER if key[at + 3] == FOREVER else now - key[at + 3]

    # ------------------------------------------------------------------ letters

    def _ask(self, seen: Seen) -> None:
        """Let the oracles answer as a letter says."""
        read = seen.read
        rise = read.rise / PARTS / (self.policy.switch_margin_s + self.ladder[0].load_s)
        self._rises[0].steady_rise_per_s = rise
        at_most = None if read.peak is None else read.peak / PARTS
        for peak in self._peaks:
            peak.at_most = at_most
        for trust in self._trust:
            trust.answer = read.trusted
        taken = CAUTION / PARTS if read.cautious else 0.0
        for caution in self._taken:
            caution.ratio = taken

    def read(self, number: int, seen: Seen) -> bool:
        """Hand in a reading, and keep account of it; whether the state changed."""
        read, evidence = seen.read, self.evidence
        before = evidence.now_s
        if read.gap:
            at = self.clock = self.clock + read.gap
        else:
            at = int(before) + 1
        self._ask(seen)
        reading = seen.readings[self.loaded]
        reading.at_s = at
        moved = self.machine.observe(reading)
        if self._remembers:
            self.last = number
        self._account(seen, at, late=at - before > self.policy.stale_after_s)
        return moved

    def _account(self, seen: Seen, at: int, late: bool) -> None:
        over, room, recovers, doubted = self.over, self.room, self.recovers, self.doubted
        if late:
            for position in range(self.count):
                room[position] = recovers[position] = None
        for position in range(self.count):
            if not seen.over[position]:
                over[position] = None
            elif over[position] is None:
                over[position] = at
            if seen.room[position]:
                doubted[position] = None
                if room[position] is None:
                    room[position] = at
            elif room[position] is not None:
                since = doubted[position]
                if seen.complete[position] is None or (since is None and not seen.read.trusted):
                    room[position] = None
                elif since is None:
                    doubted[position] = at
                elif at - since >= self.policy.needle_s:
                    room[position] = None
            if not seen.recovers[position]:
                recovers[position] = None
            elif recovers[position] is None:
                recovers[position] = at
        if self.evidence.ceilings:
            self._hear(seen.read, at)

    def _hear(self, read: Read, at: int) -> None:
        stale = self.policy.stale_after_s
        if read.power in ("untold", "lost"):
            if self.told_at == NEVER:
                if read.power == "lost":
                    self.plugged_since = None
                elif self.plugged_since is None:
                    self.plugged_since = at
            elif at - self.told_at > stale:
                self.plugged_since = self.battery_since = None
            return
        long_untold = at - self.told_at > stale
        self.on_battery = read.power == "battery"
        if self.on_battery:
            self.plugged_since = None
            if self.battery_since is None or long_untold:
                self.battery_since = at
        else:
            self.battery_since = None
            if self.plugged_since is None or (long_untold and self.told_at > NEVER):
                self.plugged_since = at
        self.told_at = at

    def happen(self, event: Event) -> Any:
        """Anything but a reading; what the machine answered, or the refusal of a pin."""
        machine, clock, kind, position = self.machine, self.clock, event.kind, event.position
        ticket = machine.switch.ticket if machine.switch is not None else 0
        waiting = not machine.settled
        if kind == "missing":
            answer = machine.observe(Reading(clock + 1, missing=("memory",)))
            if self.evidence.now_s > NEVER and clock - self.evidence.now_s < self.behind:
                self.clock += 1
            return answer
        if kind == "past":
            return machine.observe(Reading(self.evidence.now_s, memory=Memory(TOTAL, 0), own_bytes=0))
        if kind == "nonsense":
            nan: Any = math.nan
            return [
                machine.observe(Reading(clock + 1, memory=Memory(TOTAL, nan), own_bytes=0)),
                machine.observe(Reading(nan, memory=Memory(TOTAL, 0), own_bytes=0)),
                machine.observe(Reading(clock + 1, memory=Memory(TOTAL, 0), own_bytes=-1)),
                machine.observe(Reading(math.inf, memory=Memory(TOTAL, 0), own_bytes=0)),
            ]
        if kind == "stale":
            machine.switched(ticket - 1, clock)
            return machine.switch_failed(ticket - 1, OFF, clock)
        if kind == "done":
            if waiting:
                self.loaded = self.position
            return machine.switched(ticket, clock)
        if kind in ("failed", "lost"):
            if waiting:
                self.loaded = -1 if kind == "lost" else self.loaded
            return machine.switch_failed(ticket, self._names[self.loaded + 1], clock)
        if kind == "serves":
            self.loaded = position
            return machine.serves(self._names[position + 1])
        if kind == "died":
            if self.loaded == position:
                self.loaded = -1
            return machine.died(self.ladder.names[position], clock)
        if kind == "degrade":
            return machine.degrade(clock)
        if kind == "pin":
            try:
                return machine.pin(self._names[position + 1], clock)
            except PinRefused as refused:
                return refused
        if kind == "unpin":
            return machine.unpin()
        return machine.want(bool(position))

    def applies(self, letter: Letter) -> bool:
        """Whether it can come now: an overtaken switch can come up in a switch only, a delayed reading after a wait."""
        if isinstance(letter, Event):
            return letter.kind != "serves" or not self.machine.settled
        return letter.gap > 0 or self.clock - self.evidence.now_s in range(2, self.behind + 1)


def _age(time: float, now: float, most: int, behind: int) -> int:
    """Of what may have been after the last reading, by ``behind`` ticks at the most."""
    return FOREVER if time == NEVER else int(min(now - time, most)) + behind


def _since(time: float | None, now: float, most: int) -> int:
    return NONE if time is None else FOREVER if time == NEVER else min(int(now - time), most)


def _time(age: int, now: int) -> float | None:
    return None if age == NONE else NEVER if age == FOREVER else now - age
