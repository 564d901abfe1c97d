"""The transition table, and the `transitions` machine that is built from it.

Pure: readings and answers of the effects come in with their times, states and decisions come out. Being in
a state means that this is the level we mean to serve; whether it serves already is told by events. Knows
nothing of processes, HTTP, threads or files, and never waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from transitions import EventData, Machine, Transition

from scaler.errors import PinRefused
from scaler.evidence import NEVER, Evidence
from scaler.guards import GUARDS, allowed, backing_off, critical, debounce_s, exhausted, explain, fits_under_critical
from scaler.levels import OFF, Ladder
from scaler.policy import Policy
from scaler.readings import Reading

CRITICAL_SHARE = 0.1
"""What is left of the drain limits in the critical zone. Source: the person's rule, "both shrink to a tenth"."""

Direction = Literal["up", "down", "same"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: in ``source``, on ``trigger``, go to ``dest`` when the guards agree.

    ``dest`` None means that the state stays. Rows of one trigger and source are tried in order.
    """

    trigger: str
    source: str
    dest: str | None
    when: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()


RECOVER = ("wanted", "settled", "recovers", "allowed")
GIVE_WAY = ("over_ceiling", "under_ceiling", "fits")
DESCEND = ("over_limit", "fits")
FORESEE = ("forecast_over", "fits")
SQUEEZE = ("over_limit", "fits_under_critical", "eases")
"""Nothing fits under scale-at: the smallest that stays under critical-at still serves."""
CLIMB = ("settled", "fits_below_band", "rested", "stays_allowed", "calm", "forecast_fits", "gives_no_way")


def table(names: tuple[str, ...]) -> tuple[Row, ...]:
    """The single source of the machine, its documentation and its diagram; ``names`` smallest level first."""
    return tuple(_rows(names))


def _rows(names: tuple[str, ...]) -> Iterator[Row]:
    states = (OFF, *names)
    for there in names:
        yield Row("observe", OFF, there, RECOVER, ("backing_off",))
    for position, here in enumerate(names):
        lower, higher = names[:position], names[position + 1 :]
        # Battery and heat first, since they lead no less far down: one switch where two would follow upon each other.
        for way in (GIVE_WAY, DESCEND, FORESEE):
            for there in reversed(lower):
                yield Row("observe", here, there, way, ("backing_off",))
        for there in lower:
            yield Row("observe", here, there, SQUEEZE, ("backing_off",))
        yield Row("observe", here, OFF, ("over_limit", "critical", "no_lower_fits"))
        yield Row("observe", here, OFF, ("forecast_over", "no_lower_fits"))
        for there in reversed(higher):
            yield Row("observe", here, there, CLIMB, ("backing_off",))
    for here in states:
        for there in names:
            if there != here:
                yield Row("switch_failed", here, there, ("still_serves",))
    for here in names:
        for there in reversed(names[: names.index(here)]):
            yield Row("switch_failed", here, there, (), ("backing_off",))
            yield Row("degrade", here, there, (), ("backing_off",))
        yield Row("switch_failed", here, OFF)
        for there in reversed(names[: names.index(here)]):
            yield Row("died", here, there, ("stands_by",))
        yield Row("died", here, OFF)
    for here in states:
        yield Row("switched", here, None)
        for there in states:
            if there != here:
                yield Row("pin", here, there, ("pinned",) if there == OFF else ("pinned", "fits_under_critical"))
        yield Row("unpin", here, None)


@dataclass(frozen=True, slots=True)
class Finding:
    """One guard asked of one level: what it said."""

    guard: str
    level: str
    holds: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Decision:
    """A change of the state, with everything that led to it. ``at_s`` is monotonic."""

    ticket: int
    at_s: float
    trigger: str
    source: str
    dest: str
    direction: Direction
    """By the ladder of then; ``same`` for a level that is loaded anew because the configuration changed."""
    reason: str
    """The deciding figure as a sentence."""
    reasons: tuple[str, ...]
    """What every guard of the way said."""
    findings: tuple[Finding, ...]
    projected: dict[str, float | None]
    reading: Reading | None


@dataclass(frozen=True, slots=True)
class Switch:
    """What the effects are asked to do on entering a state.

    ``beside``: the new level fits beside what is loaded, so load first and cut over; else unload first.
    A running answer may take ``drain_s`` more seconds and ``drain_tokens`` more tokens.
    """

    ticket: int
    dest: str
    beside: bool
    drain_s: float
    drain_tokens: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a level stands: every guard of the way there, and the seconds that are lacking at the least.

    ``wait_s`` is the time until the way is open if readings stay as they are, None when that will not open it, 0
    when nothing is lacking. ``earliest_s`` is that time if all the room that is lacking came now; None when a person
    or the tier forbids it.
    """

    level: str
    findings: tuple[Finding, ...]
    lacking: tuple[str, ...]
    """The sentences of the guards that stand in the way."""
    wait_s: float | None
    earliest_s: float | None


def _guard_names(transition: Transition) -> Iterator[str]:
    for condition in transition.conditions:
        if condition.target:
            yield getattr(condition.func, "__name__", str(condition.func))


Condition = Callable[..., bool]
"""A guard bound to its level; `transitions` hands it an event that it has no need of."""


class _Model:
    """What `transitions` moves: it adds ``state``, and one method a trigger."""

    state: str


class LevelMachine:
    """A ladder and a policy as a state machine; one owner at a time.

    ``on_enter`` is told of every state that is entered and must return at once; ``on_hurry`` of a switch
    in progress whose drain limits shrink because usage turned critical.
    """

    def __init__(
        self,
        ladder: Ladder,
        policy: Policy,
        on_enter: Callable[[Switch], None],
        *,
        on_hurry: Callable[[Switch], None] = lambda _: None,
        initial: str = OFF,
    ) -> None:
        """``initial``: the level that serves already, if any."""
        self.ladder = ladder
        self.policy = policy
        self.evidence = Evidence(ladder, policy)
        self.last_decision: Decision | None = None
        self.switch: Switch | None = None
        self._on_enter = on_enter
        self._on_hurry = on_hurry
        self._ticket = 0
        self._climbed_to = -1
        self._served_since = NEVER
        self._inputs = 0
        self._conditions: dict[tuple[str, int], Condition] = {}
        self._ways: dict[str, dict[Condition, list[tuple[list[Condition], list[Condition]]]]] = {
            name: {} for name in (OFF, *ladder.names)
        }
        self._model = _Model()
        states = (OFF, *ladder.names)
        self._machine = Machine(
            model=self._model,
            states=[{"name": name, "on_enter": [self._entered]} for name in states],
            transitions=[self._transition(row) for row in table(ladder.names)],
            initial=initial,
            auto_transitions=False,
            send_event=True,
        )
        self._triggers = {name: partial(event.trigger, self._model) for name, event in self._machine.events.items()}
        position = ladder.index(initial)
        self.evidence.state = position
        self.evidence.serving = position if position >= 0 else None

    def _transition(self, row: Row) -> dict[str, Any]:
        when = [self._condition(name, row) for name in row.when]
        unless = [self._condition(name, row) for name in row.unless]
        if row.trigger == "observe":
            self._ways[row.source].setdefault(when[0], []).append((when[1:], unless))
        return {"trigger": row.trigger, "source": row.source, "dest": row.dest, "conditions": when, "unless": unless}

    def _condition(self, name: str, row: Row) -> Condition:
        """The guard as `transitions` asks it; rows that ask the same share one answer per input."""
        test, evidence, position = GUARDS[name].test, self.evidence, self._subject(name, row)
        known = self._conditions.get((name, position))
        if known is not None:
            return known
        asked_at, answer = -1, False

        def holds(_: EventData | None = None) -> bool:
            nonlocal asked_at, answer
            if asked_at != self._inputs:
                asked_at, answer = self._inputs, test(evidence, position).holds
            return answer

        holds.__name__ = name
        self._conditions[name, position] = holds
        return holds

    def _subject(self, guard: str, row: Row) -> int:
        return self.ladder.index(row.source if GUARDS[guard].subject == "from" or row.dest is None else row.dest)

    # ------------------------------------------------------------------ in place of another

    def take_over(self, before: LevelMachine, kept: Collection[str], at_s: float) -> None:
        """Go on from where a machine with another ladder or policy is; ``kept`` names the levels whose models stay.

        Where that serves a level which is gone, whose model is another now or which the tier forbids now, a switch is
        begun: to what takes its place, or to the largest smaller level that fits. It never climbs. A pin lasts if its
        level may still be served. To be called once, before anything else.
        """
        evidence, was = self.evidence, before.evidence
        same = {self.ladder.index(name): before.ladder.index(name) for name in self.ladder.names if name in kept}
        here = {there: position for position, there in same.items()}
        evidence.take_over(was, same)
        self._ticket, self.last_decision, self.switch = before._ticket, before.last_decision, before.switch
        self._served_since, self._event_at_s = before._served_since, before._event_at_s
        self._climbed_to = here.get(before._climbed_to, -1)
        evidence.serving, evidence.state = here.get(-1 if was.serving is None else was.serving), here.get(was.state, -1)
        evidence.settled = was.settled
        evidence.look_again()
        names = (OFF, *self.ladder.names)
        if before.pinned in names and self.ladder.index(before.pinned) <= evidence.highest_allowed:
            evidence.pinned = self.ladder.index(before.pinned)
        away = self._why_away(before, kept)
        if away is not None and before.serving in kept and allowed(evidence, self.ladder.index(before.serving)).holds:
            evidence.state = self.ladder.index(before.serving)
        elif away is not None:
            evidence.state = self._in_place_of(before)
        state = OFF if evidence.state < 0 else self.ladder[evidence.state].name
        self._machine.set_state(state, self._model)
        stand_by = _standing_by(self.ladder, state)
        if away is None and not (stand_by == _standing_by(before.ladder, state) and stand_by <= set(kept)):
            away = f"other levels stand by beside {state} now"
        if away is not None:
            self._reload(before, away, max(at_s, evidence.now_s, evidence.changed_at_s), kept)

    def _why_away(self, before: LevelMachine, kept: Collection[str]) -> str | None:
        """Why the state before cannot be gone on with; None if it can."""
        state = before.state
        if state == OFF:
            return None
        if state not in self.ladder.names:
            return f"{state} is not on the ladder any more"
        if self.ladder.index(state) > self.evidence.highest_allowed:
            return f"the tier allows {self.policy.max_level} at most now"
        return None if state in kept else f"{state} has other settings now"

    def _in_place_of(self, before: LevelMachine) -> int:
        """The position of the level to go to from what served before, or was to serve; -1 for off.

        A level that was above it is not gone to, nor a new one that takes more, for these are to be climbed to.
        """
        evidence, was = self.evidence, before.evidence
        left = was.state if was.serving is None else was.serving
        took = dict(zip(was.resources, was.footprints.of(left), strict=True))
        for position in reversed(range(len(self.ladder))):
            name = self.ladder[position].name
            takes = dict(zip(evidence.resources, evidence.footprints.of(position), strict=True))
            more = any(size > took.get(resource, 0) for resource, size in takes.items())
            known = name in before.ladder.names
            above = before.ladder.index(name) > left if known else more or not any(takes.values())
            usage, limit = evidence.usage_at(position), evidence.limits[position] - (self.policy.band if more else 0.0)
            # Whatever takes no more than what is to go fits where nothing could be read as well.
            fits = not more if usage is None else usage <= limit
            if fits and not above and self._may_load(position):
                return position
        usage = evidence.usage_at(0)
        return 0 if usage is not None and usage <= evidence.recovery_limit(0) and self._may_load(0) else -1

    def _may_load(self, position: int) -> bool:
        return allowed(self.evidence, position).holds and not backing_off(self.evidence, position).holds

    def _reload(self, before: LevelMachine, reason: str, now: float, kept: Collection[str]) -> None:
        """Have the effects switch because the configuration changed."""
        evidence = self.evidence
        self._ticket += 1
        decision = Decision(
            *(self._ticket, now, "reload", before.state, self.state, self._direction_from(before)),
            *(reason, (reason,), (), evidence.told(), evidence.reading),
        )
        self._climbed_to, self._served_since, self._event_at_s = -1, now, now
        evidence.changed_at_s, evidence.settled = now, False
        self.last_decision = decision
        drain_s, drain_tokens = self._drain_limits()
        left = before.serving != OFF and before.serving not in kept
        beside = self._fits_beside(evidence.state, left=left)
        self.switch = Switch(decision.ticket, self.state, beside, drain_s, drain_tokens, decision)
        self._inputs += 1
        self._on_enter(self.switch)

    def _direction_from(self, before: LevelMachine) -> Direction:
        """Where the state lies from the one before: on a ladder that has both, else by what they take."""
        for ladder in (self.ladder, before.ladder):
            if {before.state, self.state} <= {OFF, *ladder.names}:
                return _direction(ladder.index(before.state), ladder.index(self.state))
        was = before.evidence
        took = dict(zip(was.resources, was.footprints.of(was.state), strict=True))
        takes = zip(self.evidence.resources, self.evidence.footprints.of(self.evidence.state), strict=True)
        return "up" if any(size > took.get(resource, 0) for resource, size in takes) else "down"

    # ------------------------------------------------------------------ what is known

    @property
    def state(self) -> str:
        """The level that we mean to serve, or ``off``."""
        return self._model.state

    @property
    def settled(self) -> bool:
        """Whether no switch is in progress."""
        return self.evidence.settled

    @property
    def serving(self) -> str:
        """The level that answers now, or ``off``."""
        position = self.evidence.serving
        return OFF if position is None or position < 0 else self.ladder[position].name

    @property
    def pinned(self) -> str | None:
        """The level that a person pinned, if any."""
        position = self.evidence.pinned
        return None if position is None else OFF if position < 0 else self.ladder[position].name

    @property
    def climbed(self) -> str | None:
        """The level of a climb that would be wasted if it had to be undone now, if there is one."""
        evidence, served = self.evidence, self.evidence.now_s - self._served_since
        if self._climbed_to != evidence.state or evidence.state < 0 or served >= self.policy.wasted_within_s:
            return None
        return self.state

    # ------------------------------------------------------------------ what comes in

    def observe(self, reading: Reading) -> bool:
        """Take in a reading and decide; True when the state changed.

        A reading that is missing, out of order, from the past or of no time at all changes nothing.
        """
        evidence = self.evidence
        if not evidence.take(reading):
            return False
        if evidence.settled and evidence.state >= 0:
            self._forgive()
        elif self.switch is not None and not evidence.settled:
            self._hurry(self.switch)
        self._inputs += 1
        return self._is_open() and bool(self._triggers["observe"]())

    def _is_open(self) -> bool:
        """Whether any row of `observe` lets through now.

        Asked before `transitions` is, which would ask the same again: most readings change nothing, and to hear
        that from it took 20 of a decision's 40 µs. Rows that begin with the same guard fall with it.
        """
        for first, rows in self._ways[self._model.state].items():
            if not first():
                continue
            for when, unless in rows:
                for condition in when:
                    if not condition():
                        break
                else:
                    if not any(condition() for condition in unless):
                        return True
        return False

    def switched(self, ticket: int, at_s: float, took_s: float | None = None) -> None:
        """The switch ``ticket`` is done: its level serves. ``took_s``: how long loading took, to learn from."""
        if self.switch is None or ticket != self.switch.ticket or self.settled:
            return
        evidence = self.evidence
        self._settle(at_s)
        evidence.serving = evidence.state if evidence.state >= 0 else None
        self._served_since = evidence.changed_at_s
        if took_s is not None and evidence.state >= 0:
            evidence.load_s[evidence.state] = took_s
        self._trigger("switched")

    def serves(self, level: str) -> None:
        """Say which level answers while a switch goes on: its target, when what that replaces still drains, or that of
        one that was overtaken; ``off`` where the old one went first.
        """
        position = self.ladder.index(level)
        self.evidence.serving = position if position >= 0 else None

    def switch_failed(self, ticket: int, still_serving: str, at_s: float) -> None:
        """The switch ``ticket`` failed; ``still_serving`` answers, or ``off``. Its level backs off."""
        if self.switch is None or ticket != self.switch.ticket or self.settled:
            return
        evidence = self.evidence
        position = self.ladder.index(still_serving)
        if position == evidence.state:
            # What failed came after: the level serves.
            self.switched(ticket, at_s)
            return
        self._settle(at_s)
        evidence.serving = position if position >= 0 else None
        if evidence.state >= 0:
            evidence.fail(evidence.state, evidence.changed_at_s)
        self._trigger("switch_failed")

    def died(self, level: str, at_s: float) -> None:
        """The model of ``level`` ended without having been asked to. It backs off."""
        evidence = self.evidence
        position = self.ladder.index(level)
        if position < 0:
            return
        evidence.fail(position, max(at_s, evidence.now_s))
        if evidence.serving == position:
            evidence.serving = None
        if evidence.state == position:
            self._settle(at_s)
            self._trigger("died")

    def answered(self, level: str, at_s: float, *, failed: bool, speed: float | None) -> None:
        """Report how an answer of a level went; ``speed`` is relative to what it usually makes, None if unknown."""
        self.evidence.answered(self.ladder.index(level), max(at_s, self.evidence.now_s), failed=failed, speed=speed)

    def degrade(self, at_s: float) -> bool:
        """Step down by one level because somebody asks for it; False when there is nothing lower to go to."""
        self._event_at_s = max(at_s, self.evidence.now_s)
        return self.evidence.state > 0 and self._trigger("degrade")

    def want(self, wanted: bool) -> None:
        """Say whether anybody asks for a model at all; from off, nothing is loaded before."""
        self.evidence.wanted = wanted

    def check_pin(self, level: str) -> int:
        """The position of ``level``, which can be pinned now. Raises PinRefused with the reason."""
        evidence = self.evidence
        try:
            position = self.ladder.index(level)
        except KeyError:
            known = ", ".join((OFF, *self.ladder.names))
            raise PinRefused(f"cannot pin {level!r}: no such level; known are {known}") from None
        if position > evidence.highest_allowed:
            raise PinRefused(f"cannot pin {level}: the tier allows {self.policy.max_level} at most")
        if position >= 0:
            verdict = fits_under_critical(evidence, position)
            if not verdict.holds:
                raise PinRefused(f"cannot pin {level}: {explain(evidence, position, verdict)}")
        return position

    def pin(self, level: str, at_s: float) -> None:
        """Stay at ``level`` until unpinned. Raises PinRefused with the reason."""
        evidence, position = self.evidence, self.check_pin(level)
        evidence.pinned = position
        if position != evidence.state:
            self._event_at_s = max(at_s, evidence.now_s)
            self._trigger("pin")

    def unpin(self) -> None:
        """Let the machine decide again."""
        self.evidence.pinned = None
        self._trigger("unpin")

    # ------------------------------------------------------------------ what happens inside

    _event_at_s = NEVER

    def _trigger(self, name: str) -> bool:
        self._inputs += 1
        return bool(self._triggers[name]())

    def _settle(self, at_s: float) -> None:
        evidence = self.evidence
        evidence.settled = True
        evidence.changed_at_s = self._event_at_s = max(at_s, evidence.now_s, evidence.changed_at_s)

    def _entered(self, event: EventData) -> None:
        evidence = self.evidence
        taken = event.transition
        assert taken is not None and taken.dest is not None  # a state is only entered by a row that names it
        trigger, source, dest = str(event.event.name), str(taken.source), str(taken.dest)
        before, after = evidence.state, self.ladder.index(dest)
        now = max(evidence.now_s, self._event_at_s)
        decision = self._decide(Row(trigger, source, dest, tuple(_guard_names(taken))), now)
        self._remember_wasted(trigger, before, after, now)
        evidence.state = after
        evidence.changed_at_s = now
        self.last_decision = decision
        beside = self._fits_beside(after)
        evidence.settled = False
        drain_s, drain_tokens = self._drain_limits()
        self.switch = Switch(decision.ticket, dest, beside, drain_s, drain_tokens, decision)
        self._on_enter(self.switch)

    def _decide(self, row: Row, now: float) -> Decision:
        """Write down a change that is being made, before the evidence moves on."""
        evidence = self.evidence
        self._ticket += 1
        verdicts = [
            (self._subject(name, row), GUARDS[name].test(evidence, self._subject(name, row))) for name in row.when
        ]
        reasons = [explain(evidence, position, verdict) for position, verdict in verdicts]
        told = {
            "died": f"the model of {row.source} died",
            "switch_failed": f"{row.source} could not be loaded"
            if row.source != OFF
            else f"{row.dest} could not be unloaded",
            "degrade": "a step down was asked for",
            "pin": f"a person pinned {row.dest}",
        }.get(row.trigger)
        figures = [reason for reason, (_, verdict) in zip(reasons, verdicts, strict=True) if verdict.limit is not None]
        return Decision(
            self._ticket,
            now,
            row.trigger,
            row.source,
            str(row.dest),
            _direction(self.ladder.index(row.source), self.ladder.index(row.dest)),
            told or figures[0],
            tuple(reasons),
            # Seen from where the change began: by now the model is in the new state already.
            tuple(f for outlook in self._outlooks_from(row.source) for f in outlook.findings),
            evidence.told(),
            evidence.reading,
        )

    def _remember_wasted(self, trigger: str, before: int, after: int, now: float) -> None:
        evidence = self.evidence
        undone = trigger == "observe" and after < before == self._climbed_to
        if undone and now - self._served_since < self.policy.wasted_within_s:
            evidence.wasted[before] += 1
        self._climbed_to = after if trigger == "observe" and after > before >= 0 else -1
        self._served_since = now

    def _forgive(self) -> None:
        evidence = self.evidence
        served = evidence.now_s - self._served_since
        if evidence.wasted[evidence.state] and served >= self.policy.wasted_within_s:
            evidence.wasted[evidence.state] = 0
        if evidence.failures[evidence.state] and served >= self.policy.dwell_s:
            evidence.failures[evidence.state] = 0

    def _hurry(self, switch: Switch) -> None:
        drain_s, drain_tokens = self._drain_limits()
        if drain_s < switch.drain_s or drain_tokens < switch.drain_tokens:
            self.switch = Switch(switch.ticket, switch.dest, switch.beside, drain_s, drain_tokens, switch.decision)
            self._on_hurry(self.switch)

    def _drain_limits(self) -> tuple[float, int]:
        policy, serving = self.policy, self.evidence.serving
        if serving is not None and exhausted(self.evidence, serving).holds:
            return 0.0, 0
        # What is in use counts as well: that of a level which drains, though another serves already.
        if (
            serving is not None and critical(self.evidence, serving).holds
        ) or self.evidence.in_use >= policy.critical_at:
            return policy.drain_seconds * CRITICAL_SHARE, int(policy.drain_tokens * CRITICAL_SHARE)
        return policy.drain_seconds, policy.drain_tokens

    def _fits_beside(self, position: int, *, left: bool = False) -> bool:
        """Whether a level fits beside what serves; ``left`` says that it is the model of no level of this ladder."""
        evidence = self.evidence
        if position < 0 or (evidence.serving is None and not left):
            return False
        new = evidence.footprints.of(position)
        old = [0] * len(new) if evidence.serving is None else evidence.footprints.of(evidence.serving)
        for index, (need, held, part) in enumerate(zip(new, old, evidence.usage, strict=True)):
            if not need:
                continue
            if part is None:
                return False
            both = part.other_bytes + max(held, part.own_bytes) + need
            if evidence.reads(index, both) >= self.policy.critical_at:
                return False
        return True

    # ------------------------------------------------------------------ explanations

    def outlooks(self) -> tuple[Outlook, ...]:
        """How every level but the present one stands, smallest first."""
        return self._outlooks_from(self.state)

    def _outlooks_from(self, state: str) -> tuple[Outlook, ...]:
        return tuple(self._outlook(state, level.name) for level in self.ladder if level.name != state)

    def _outlook(self, source: str, dest: str) -> Outlook:
        up = self.ladder.index(dest) > self.ladder.index(source)
        ways = (RECOVER,) if source == OFF else (CLIMB,) if up else (DESCEND, GIVE_WAY)
        return min(
            (self._outlook_by(when, source, dest) for when in ways),
            key=lambda outlook: (math.inf if outlook.wait_s is None else outlook.wait_s, len(outlook.lacking)),
        )

    def _outlook_by(self, when: tuple[str, ...], source: str, dest: str) -> Outlook:
        """How a level stands by one of the ways that lead there."""
        evidence = self.evidence
        findings, lacking = [], []
        wait: float | None = 0.0
        earliest: float | None = 0.0
        for name in (*when, "backing_off"):
            row = Row("observe", source, dest, (name,))
            position = self._subject(name, row)
            verdict = GUARDS[name].test(evidence, position)
            subject = OFF if position < 0 else self.ladder[position].name
            finding = Finding(name, subject, verdict.holds, explain(evidence, position, verdict))
            findings.append(finding)
            if verdict.holds == (name == "backing_off"):
                lacking.append(finding.sentence)
                left = self._time_left(name, position, verdict.extra)
                wait = None if left is None or wait is None else max(wait, left)
                soonest = self._soonest(name, position) if left is None else left
                earliest = None if soonest is None or earliest is None else max(earliest, soonest)
        return Outlook(dest, tuple(findings), tuple(lacking), wait, earliest)

    def _soonest(self, guard: str, position: int) -> float | None:
        """Seconds until a guard that no time opens would let through if room came now; None if only people open it."""
        if guard in ("allowed", "wanted"):
            return None
        if guard == "stays_allowed":
            return self.evidence.dwell_s(position) if allowed(self.evidence, position).holds else None
        if guard == "fits_below_band":
            return self.evidence.dwell_s(position)
        return self.policy.recovery_s if guard == "recovers" else 0.0

    def _time_left(self, guard: str, position: int, held: float | None) -> float | None:
        """Seconds after which a guard that stands in the way lets through if readings stay as they are."""
        evidence = self.evidence
        if guard == "forecast_fits":
            limit = evidence.limits[position]
            ahead = evidence.ahead(position, evidence.horizon_s(position))
            return None if ahead is None or ahead.usage > limit else evidence.clears_in_s(position, limit)
        if held is None:
            return None
        if guard == "backing_off":
            return held
        if guard == "over_limit":
            usage = evidence.usage_at(position)
            return None if usage is None else debounce_s(evidence, position, usage) - held
        if guard in ("rested", "fits_below_band", "stays_allowed"):
            return evidence.dwell_s(position) - held
        if guard == "over_ceiling":
            return self.policy.recovery_s - held
        if guard == "recovers" and evidence.recovers_since[position] is not None and held < self.policy.recovery_s:
            return self.policy.recovery_s - held
        return None


def _direction(source: int, dest: int) -> Direction:
    return "same" if source == dest else "up" if dest > source else "down"


def _standing_by(ladder: Ladder, state: str) -> set[str]:
    """The levels that stand by beside a state, which is on the ladder, or off."""
    return {level.name for level in ladder[: max(ladder.index(state), 0)] if level.standby}
