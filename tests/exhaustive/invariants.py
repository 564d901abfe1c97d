"""What must hold on every edge: one function an invariant, which returns a sentence where it does not.

They judge by the letters and by the world's own account of when what was last so. Of the machine they ask what it says,
and where the rule is about what it remembers (a back-off, a lengthened dwell), what that is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scaler.evidence import NEVER
from scaler.machine import Switch
from tests.exhaustive.letters import PARTS, Event
from tests.exhaustive.world import Key, Seen, World

SLACK = 1e-9


@dataclass(slots=True)
class Edge:
    """One letter taken. Positions are those on the ladder, -1 for off; ``before`` and ``after`` are states."""

    world: World
    key: Key
    event: Event | None
    seen: Seen | None
    before: int = -1
    after: int = -1
    at: float = 0.0
    answer: Any = None
    pinned: int | None = None
    settled: bool = True
    wanted: bool = True
    serving: int | None = None
    changed: float = NEVER
    switch: Switch | None = None
    """The switch that was in progress before."""
    failures: tuple[int, ...] = ()
    untouched: Callable[[], bool] = lambda: True
    """Whether all is as it was, but for the time."""

    @property
    def usage(self) -> list[float]:
        """Usage at each level, of what could be read."""
        assert self.seen is not None
        return self.seen.known

    def backs_off(self, position: int) -> bool:
        """Whether the machine leaves a level alone."""
        evidence = self.world.evidence
        return evidence.backoff_until_s[position] > evidence.now_s

    def unknown(self, position: int) -> bool:
        """Whether a level takes more of a resource that was not read than what is loaded."""
        seen, evidence = self.seen, self.world.evidence
        assert seen is not None
        if seen.complete[position] is not None:
            return False
        loaded = [self.before] if self.serving is None else [self.before, self.serving]
        highest = max(loaded)
        if position > highest:
            return True
        held = evidence.footprints.of(highest)
        return any(
            part is None and need > has
            for part, need, has in zip(seen.usage, evidence.footprints.of(position), held, strict=True)
        )

    def bearable(self, position: int) -> bool:
        """Whether a smaller level would do: under critical-at, and no worse soon after the switch."""
        assert self.seen is not None
        critical = self.world.policy.critical_at
        return (
            not self.unknown(position)
            and self.usage[position] < critical
            and self.seen.ahead[position] < critical
            and not self.backs_off(position)
        )

    def fits(self, position: int) -> bool:
        """The same under the limit."""
        assert self.seen is not None
        return self.bearable(position) and not self.seen.over[position]

    def debounce(self) -> float:
        """For how long usage at the state before is watched."""
        policy, seen = self.world.policy, self.seen
        assert seen is not None
        critical, usage = policy.critical_at, seen.known[self.before]
        asked = policy.debounce_s * max(0.0, critical - usage) / (critical - policy.scale_at)
        if asked < policy.needle_s and seen.read.trusted:
            return policy.needle_s
        return min(asked, policy.debounce_s)


def an_upgrade_waits_for_the_dwell(edge: Edge) -> str | None:
    """Between it and the change before lie ``dwell_s``, twice that after a wasted one."""
    if not edge.after > edge.before >= 0:
        return None
    passed, asked = edge.at - edge.changed, edge.world.evidence.dwell_s(edge.after)
    asked = max(asked, edge.world.policy.dwell_s)
    return None if passed >= asked else f"{passed} ticks after the last change; {asked:g} are asked"


def an_upgrade_had_room_throughout(edge: Edge) -> str | None:
    """No reading of the dwell was above scale-at less the band, lacked a resource, or came late."""
    if not edge.after > edge.before >= 0:
        return None
    since, asked = edge.world.room[edge.after], edge.world.evidence.dwell_s(edge.after)
    if since is None:
        return "there is no room"
    if edge.world.doubted[edge.after] is not None:
        return "there is no room now, even if it may be a needle"
    held = edge.at - since
    return None if held >= asked else f"there was room for {held} ticks; {asked:g} are asked"


def an_upgrade_expects_to_last(edge: Edge) -> str | None:
    """Neither a rise nor the expected peak leads above the limit, no task waits for memory, no switch is going on."""
    if not edge.after > edge.before >= 0:
        return None
    seen = edge.seen
    assert seen is not None
    peak = seen.peak[edge.after]
    if seen.ahead[edge.after] > seen.limit:
        return "it rises above the limit"
    if peak is not None and peak > seen.limit:
        return "more is to be expected"
    if seen.read.stalled:
        return "tasks wait for memory"
    return None if edge.settled else "a switch is in progress"


def an_upgrade_is_the_largest_that_may_be(edge: Edge) -> str | None:
    """The machine does not climb past what has to give way, nor by less than it could."""
    if not edge.after > edge.before >= 0:
        return None
    world, seen = edge.world, edge.seen
    assert seen is not None
    for larger in range(edge.after + 1, world.count):
        if _has_had_room(edge, larger) and not seen.over[edge.before]:
            return f"{world.ladder.names[larger]} has room as well"
    return None


def _has_had_room(edge: Edge, position: int) -> bool:
    """Whether there has been room at a level for the dwell, will be, and it may be gone to."""
    world, seen = edge.world, edge.seen
    assert seen is not None
    since, asked = world.room[position], world.evidence.dwell_s(position)
    peak = seen.peak[position]
    return (
        since is not None
        and world.doubted[position] is None
        and edge.at - since >= asked
        and edge.at - edge.changed >= asked
        and seen.ahead[position] <= seen.limit
        and (peak is None or peak <= seen.limit)
        and not edge.backs_off(position)
        and not _forbidden(edge, position)
    )


def _forbidden(edge: Edge, position: int) -> bool:
    world = edge.world
    if edge.pinned is not None:
        return position > edge.pinned
    if not world.evidence.ceilings or position <= world.evidence.ceilings[0].highest:
        return False
    plugged = world.plugged_since
    return plugged is None or edge.at - plugged < world.evidence.dwell_s(position)


def pressure_is_answered(edge: Edge) -> str | None:
    """What is critical is left at once, what is over its limit after the debounce, where there is anywhere to go."""
    if edge.before < 0 or edge.after > edge.before:
        return None
    world, seen, policy = edge.world, edge.seen, edge.world.policy
    assert seen is not None
    here = edge.before
    usage = seen.known[here]
    if edge.unknown(here):
        return None
    since = world.over[here]
    held = -1 if since is None else edge.at - since
    stays = edge.after == here
    if not stays:
        return None
    if edge.pinned == here:
        return None if usage < policy.critical_at else "it is critical, pinned or not"
    if usage >= policy.critical_at and held >= edge.debounce():
        return f"it is critical for {held} ticks"
    rises = seen.soon[here] >= policy.exhausted_at and seen.soon[here] > usage
    if rises and not any(edge.bearable(lower) for lower in range(here)):
        return "nothing will be left, and nothing lower is bearable"
    if rises and any(edge.fits(lower) for lower in range(here)):
        return "nothing will be left, and a lower level fits"
    if not seen.over[here] or held < edge.debounce():
        return None
    relief = [
        lower for lower in range(here) if edge.fits(lower) or (edge.bearable(lower) and seen.known[lower] < usage)
    ]
    return (
        f"over the limit for {held} ticks, and {world.ladder.names[relief[-1]]} would be a relief" if relief else None
    )


def a_step_down_has_a_reason(edge: Edge) -> str | None:
    """Usage over the limit for the debounce, a rise to where nothing is left, or what forbids the level for long."""
    if not 0 <= edge.after < edge.before and not (edge.after < 0 <= edge.before):
        return None
    world, seen, policy = edge.world, edge.seen, edge.world.policy
    assert seen is not None
    here, since = edge.before, edge.world.over[edge.before]
    usage = seen.known[here]
    if edge.pinned == here:
        return None if usage >= policy.critical_at else "it is pinned, and not critical"
    if since is not None and edge.at - since >= edge.debounce():
        return None
    if seen.soon[here] >= policy.exhausted_at and seen.soon[here] > usage:
        return None
    if world.evidence.ceilings and edge.pinned is None:
        ceiling = world.evidence.ceilings[0]
        if edge.after >= 0 and world.on_battery and here > ceiling.highest and ceiling.lasted_s >= policy.recovery_s:
            return None
    return f"usage {usage * PARTS:g}, over for {None if since is None else edge.at - since} ticks"


def a_step_down_leads_to_the_largest_that_fits(edge: Edge) -> str | None:
    """Or, if none does, to the smallest that is bearable and eases, or to off if nothing is."""
    if edge.after >= edge.before or edge.before < 0:
        return None
    world, seen, names = edge.world, edge.seen, edge.world.ladder.names
    assert seen is not None
    fitting = [lower for lower in range(edge.before) if edge.fits(lower)]
    bearable = [lower for lower in range(edge.before) if edge.bearable(lower)]
    ceilings = world.evidence.ceilings
    if ceilings and edge.pinned is None and edge.before > ceilings[0].highest and world.on_battery:
        permitted = [lower for lower in fitting if lower <= ceilings[0].highest]
        if edge.after in permitted[-1:]:
            return None
    if edge.after < 0:
        return f"{names[bearable[-1]]} would be bearable" if bearable else None
    if edge.backs_off(edge.after):
        return f"{names[edge.after]} is backing off"
    if fitting:
        return None if edge.after == fitting[-1] else f"{names[fitting[-1]]} is the largest that fits"
    if edge.after not in bearable:
        return f"{names[edge.after]} is not bearable"
    eases = seen.known[edge.after] < seen.known[edge.before]
    return None if eases else f"{names[edge.after]} is no easier"


def off_is_left_with_room_only(edge: Edge) -> str | None:
    """For the recovery time, if there was a change before; and for the smallest that has it."""
    if not edge.before < 0 <= edge.after:
        return None
    world, seen, policy = edge.world, edge.seen, edge.world.policy
    assert seen is not None
    asked = policy.recovery_s if edge.changed > NEVER else 0.0

    def recovered(position: int) -> bool:
        since = world.recovers[position]
        limit = policy.critical_at - policy.recovery_band if position == 0 else seen.limit - policy.band
        return since is not None and edge.at - since >= asked and seen.ahead[position] <= limit

    if not edge.wanted:
        return "nobody asks for a model"
    if not edge.settled:
        return "a switch is in progress"
    if not recovered(edge.after):
        return f"{world.ladder.names[edge.after]} has had no room for {asked:g} ticks"
    forbidden = _forbidden_now(edge)
    for smaller in range(edge.after):
        if recovered(smaller) and not edge.backs_off(smaller) and smaller not in forbidden:
            return f"{world.ladder.names[smaller]} is smaller and has room"
    return None


def off_is_left_when_there_is_room(edge: Edge) -> str | None:
    """No level that has had room for the recovery time is waited with."""
    if edge.before >= 0 or edge.after >= 0 or not edge.wanted or not edge.settled:
        return None
    world, seen, policy = edge.world, edge.seen, edge.world.policy
    assert seen is not None
    asked = policy.recovery_s if edge.changed > NEVER else 0.0
    forbidden = _forbidden_now(edge)
    for position in range(world.count):
        since = world.recovers[position]
        limit = policy.critical_at - policy.recovery_band if position == 0 else seen.limit - policy.band
        room = since is not None and edge.at - since >= asked and seen.ahead[position] <= limit
        if room and not edge.backs_off(position) and position not in forbidden:
            return f"{world.ladder.names[position]} has had room for {asked:g} ticks"
    return None


def _forbidden_now(edge: Edge) -> set[int]:
    world = edge.world
    if edge.pinned is not None:
        return set(range(edge.pinned + 1, world.count))
    if world.evidence.ceilings and world.on_battery:
        return set(range(world.evidence.ceilings[0].highest + 1, world.count))
    return set()


def room_is_used(edge: Edge) -> str | None:
    """A level that has had room for the dwell, and is not left alone, is climbed to."""
    if edge.before < 0 or edge.after != edge.before or not edge.settled:
        return None
    world, seen = edge.world, edge.seen
    assert seen is not None
    if seen.over[edge.before] or seen.read.stalled or seen.soon[edge.before] >= world.policy.exhausted_at:
        return None
    for larger in range(edge.before + 1, world.count):
        if _has_had_room(edge, larger):
            return f"{world.ladder.names[larger]} has had room for {world.evidence.dwell_s(larger):g} ticks"
    return None


def what_failed_is_left_alone(edge: Edge) -> str | None:
    """Nothing leads to a level before its back-off is over, but a person, or that it still serves or stands by."""
    world = edge.world
    if edge.after == edge.before or edge.after < 0:
        return None
    if edge.event is not None and edge.event.kind == "pin":
        return None
    if edge.event is not None and edge.event.kind in ("failed", "lost", "done") and edge.after == world.loaded:
        return None
    if edge.event is not None and edge.event.kind == "died" and world.ladder[edge.after].standby:
        return None
    since = edge.at - world.failed[edge.after]
    return None if since >= world.policy.backoff_s else f"it failed {since} ticks ago"


def a_failure_is_remembered(edge: Edge) -> str | None:
    """What failed or died backs off, twice as long as the last time if it has not served for a dwell since."""
    event, world = edge.event, edge.world
    if event is None or event.kind not in ("failed", "lost", "died"):
        return None
    if event.kind == "died":
        position = event.position
    elif edge.settled or edge.before < 0 or world.loaded == edge.before:
        return None
    else:
        position = edge.before
    policy, evidence = world.policy, world.evidence
    pause = min(policy.backoff_s * 2.0 ** edge.failures[position], policy.backoff_max_s)
    left = evidence.backoff_until_s[position] - edge.at
    return None if left == pause else f"it is left alone for {left} ticks; {pause:g} are asked"


def it_serves_what_it_says(edge: Edge) -> str | None:
    """What serves is what is loaded; settled, that is the state; in a switch, the state is where that leads."""
    world, machine = edge.world, edge.world.machine
    if machine.evidence.state != world.position:
        return f"the evidence has {machine.evidence.state}"
    loaded = "off" if world.loaded < 0 else world.ladder.names[world.loaded]
    if machine.serving != loaded:
        return f"{machine.serving} serves and {loaded} is loaded"
    if machine.settled:
        return None if machine.state == loaded else f"{loaded} is loaded"
    dest = None if machine.switch is None else machine.switch.dest
    return None if dest == machine.state else f"the switch leads to {dest}"


def every_change_is_told(edge: Edge) -> str | None:
    """Entering a state asks the effects for it, with the limits of draining; staying asks for nothing."""
    world, entered = edge.world, edge.world.machine.entered
    if edge.after == edge.before:
        return None if entered is None else f"asked for {entered.dest}"
    if entered is None:
        return "nobody was asked to switch"
    if entered.dest != world.machine.state or world.machine.settled:
        return f"asked for {entered.dest}, settled {world.machine.settled}"
    decision = entered.decision
    source = "off" if edge.before < 0 else world.ladder.names[edge.before]
    return None if (decision.source, decision.dest) == (source, entered.dest) else "the decision tells of another"


def hurry_only_shortens(edge: Edge) -> str | None:
    """A switch in progress is told to be quicker, never to take its time or to go elsewhere."""
    hurries = edge.world.machine.hurries
    if not hurries:
        return None
    known = edge.switch
    switch = hurries[0]
    if edge.settled or known is None or switch.dest != known.dest or len(hurries) > 1:
        return "nothing was to be hurried"
    shorter = (switch.drain_s, switch.drain_tokens) < (known.drain_s, known.drain_tokens)
    return None if shorter else f"{switch.drain_s:g} s in place of {known.drain_s:g} s"


def draining_is_as_short_as_it_is_tight(edge: Edge) -> str | None:
    """A tenth where what serves is critical, nothing where nothing is left, and no longer than the policy says."""
    world, policy, seen = edge.world, edge.world.policy, edge.seen
    switch, serving = world.machine.switch, edge.serving
    if seen is None or world.machine.settled or switch is None or serving is None or not world.scope.drains:
        return None
    usage = seen.known[serving]
    since = world.evidence.exhausted_since
    if usage < policy.critical_at:
        asked = policy.drain_seconds
    elif usage >= policy.exhausted_at and since is not None and edge.at - since >= policy.exhausted_s:
        asked = 0.0
    else:
        asked = policy.drain_seconds * 0.1
    if switch.drain_s > asked + SLACK:
        return f"{switch.drain_s:g} s, and usage is {usage * PARTS:g}"
    if edge.after != edge.before and switch.drain_s < asked - SLACK:
        return f"{switch.drain_s:g} s only, and usage is {usage * PARTS:g}"
    return None


def pins_are_held(edge: Edge) -> str | None:
    """A pinned level is where the machine is or the most that it climbs to; a refusal changes nothing."""
    event, world = edge.event, edge.world
    if event is not None and event.kind == "pin":
        if isinstance(edge.answer, Exception):
            return None if edge.untouched() else "refused, and changed all the same"
        return None if edge.after == event.position == world.evidence.pinned else "accepted, and not there"
    if event is not None and event.kind == "unpin":
        return None if world.evidence.pinned is None and edge.after == edge.before else "still pinned, or moved"
    if world.evidence.pinned != edge.pinned:
        return "the pin is gone"
    if edge.pinned is None or edge.event is not None:
        return None
    return None if edge.after <= max(edge.pinned, edge.before) else f"climbed above {edge.pinned}"


def a_pin_is_refused_for_want_of_room_only(edge: Edge) -> str | None:
    """Critical there, or soon, or not known; and never taken where it is so."""
    event, world = edge.event, edge.world
    if event is None or event.kind != "pin" or event.position < 0:
        return None
    last = world.seen[edge.key[9]] if edge.key[9] < len(world.seen) else None
    refused = isinstance(edge.answer, Exception)
    if last is None:
        return None if refused else "nothing was read yet"
    critical, position = world.policy.critical_at, event.position
    room = last.known[position] < critical and last.ahead[position] < critical
    if last.complete[position] is None:
        return "refused" if refused and room and position <= max(edge.before, -1) else None
    return None if room != refused else f"refused: {refused}, usage {last.known[position] * PARTS:g}"


def what_says_nothing_changes_nothing(edge: Edge) -> str | None:
    """Readings without RAM, from the past, NaN; answers for switches that nobody waits for."""
    event = edge.event
    if event is None:
        return None
    idle = event.kind in ("missing", "past", "nonsense", "stale")
    idle = idle or (event.kind in ("done", "failed", "lost") and edge.settled)
    if not idle:
        return None
    if event.kind in ("missing", "past") and edge.answer:
        return "it was answered with a change"
    if event.kind == "nonsense" and any(edge.answer):
        return "it was answered with a change"
    return None if edge.untouched() else "something changed"


def events_move_as_the_table_says(edge: Edge) -> str | None:
    """Each kind of event leads where it may lead, and nowhere else."""
    event, world, before, after = edge.event, edge.world, edge.before, edge.after
    if event is None:
        return None
    kind = event.kind
    if kind in ("want", "serves", "done", "unpin"):
        return None if after == before else f"{kind} moved it"
    if kind == "degrade":
        if edge.answer:
            return None if 0 <= after < before else "not down"
        free = [lower for lower in range(before) if not edge.backs_off(lower)]
        return None if after == before and not free else "a step down was asked for and there is one"
    if kind in ("failed", "lost") and not edge.settled and world.loaded != before:
        if world.loaded >= 0:
            return None if after == world.loaded else "what still serves is not the state"
        free = [lower for lower in range(before) if not edge.backs_off(lower)]
        return None if after == (free[-1] if free else -1) else "not the next lower one"
    if kind == "died":
        if event.position != before:
            return None if after == before else "another one died"
        beside = [lower for lower in range(before) if world.ladder[lower].standby]
        return None if after == (beside[-1] if beside else -1) else "not to what stands by, or off"
    return None


def one_way_at_most_is_open(edge: Edge) -> str | None:
    """Of the table, worked out anew: all open rows lead one way, and the machine takes the first."""
    world, rows = edge.world, edge.world.machine.open
    ways = {_way(edge.before, world.ladder.index(row.dest)) for row in rows}
    if len(ways) > 1:
        return f"it could go {' and '.join(sorted(ways))}"
    first = world.ladder.index(rows[0].dest) if rows else edge.before
    return None if first == edge.after else f"the table says {first}, the machine went to {edge.after}"


def _way(here: int, there: int) -> str:
    return "off" if there < 0 else "up" if there > here else "down"


def battery_is_heeded(edge: Edge) -> str | None:
    """Nothing above the ceiling is gone up to on battery or within a dwell of it, and it leads down in time."""
    world, policy = edge.world, edge.world.policy
    if not world.evidence.ceilings or edge.pinned is not None:
        return None
    highest = world.evidence.ceilings[0].highest
    if edge.after > edge.before and edge.after > highest:
        if world.on_battery:
            return "it runs on battery"
        if edge.before >= 0 and _forbidden(edge, edge.after):
            return "it ran on battery a moment ago, or nobody knows"
    since = world.battery_since
    if edge.after == edge.before > highest and since is not None and edge.at - since >= policy.recovery_s:
        seen = edge.seen
        assert seen is not None
        if seen.read.power == "battery" and any(edge.fits(lower) for lower in range(highest + 1)):
            return f"on battery for {edge.at - since} ticks"
    return None


Invariant = Callable[[Edge], str | None]

ON_READINGS: tuple[Invariant, ...] = (
    one_way_at_most_is_open,
    pressure_is_answered,
    room_is_used,
    off_is_left_when_there_is_room,
)
ON_MOVES: tuple[Invariant, ...] = (
    what_failed_is_left_alone,
    an_upgrade_waits_for_the_dwell,
    an_upgrade_had_room_throughout,
    an_upgrade_expects_to_last,
    an_upgrade_is_the_largest_that_may_be,
    off_is_left_with_room_only,
    a_step_down_has_a_reason,
    a_step_down_leads_to_the_largest_that_fits,
)
"""Of readings that move the machine."""
ON_EVENTS: tuple[Invariant, ...] = (
    what_says_nothing_changes_nothing,
    events_move_as_the_table_says,
    a_failure_is_remembered,
    what_failed_is_left_alone,
    a_pin_is_refused_for_want_of_room_only,
)
ALWAYS: tuple[Invariant, ...] = (it_serves_what_it_says, every_change_is_told, pins_are_held)
ON_BATTERY: tuple[Invariant, ...] = (battery_is_heeded,)
WHEN_DRAINING: tuple[Invariant, ...] = (hurry_only_shortens, draining_is_as_short_as_it_is_tight)
EVERY: tuple[Invariant, ...] = (*ON_READINGS, *ON_MOVES, *ON_EVENTS, *ALWAYS, *ON_BATTERY, *WHEN_DRAINING)


def level_of(key: Key) -> int:
    """The state that a saved state is in."""
    return key[0] - 1


def is_settled(key: Key) -> bool:
    """Whether no switch is in progress in a saved state."""
    return bool(key[2] & 1)


def is_pinned(key: Key) -> bool:
    """Whether a person has pinned a level in a saved state."""
    return key[3] != 0


def is_wanted(key: Key) -> bool:
    """Whether anybody asks for a model in a saved state."""
    return bool(key[2] & 2)
