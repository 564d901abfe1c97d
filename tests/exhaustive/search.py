"""The search: breadth first through every state that the letters lead to, and what the graph of them must be like."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scaler.levels import OFF
from tests.exhaustive.invariants import (
    ALWAYS,
    ON_BATTERY,
    ON_EVENTS,
    ON_MOVES,
    ON_READINGS,
    WHEN_DRAINING,
    Edge,
    Invariant,
    is_pinned,
    is_settled,
    is_wanted,
    level_of,
)
from tests.exhaustive.letters import Event, Letter, Read
from tests.exhaustive.world import BACK_OFF, EACH, HEADER, Key, Scope, World

NOWHERE = -1
MOST_STATES = 100_000
"""A search that finds more is given up: the largest has a third of them, so that something must be wrong."""
CALM = ("untold", "plugged in")
"""What is said of the power where it lowers nothing."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An invariant that does not hold: on the last letter of a path, which begins with ``initial`` loaded."""

    invariant: str
    complaint: str
    initial: str
    path: tuple[Letter, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to. ``complete``: every state was looked at; else it was stopped, and proves nothing."""

    scope: str
    levels: int
    letters: int
    states: int
    edges: int
    seconds: float
    complete: bool
    broken: Broken | None
    rests: frozenset[int]
    """The levels at which constant usage of some band comes to rest."""


class Stepper:
    """Takes one letter in a world and judges it."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.world = World(scope)
        extra = (ON_BATTERY if self.world.evidence.ceilings else ()) + (WHEN_DRAINING if scope.drains else ())
        self._events = (*ON_EVENTS, *ALWAYS)
        self._readings = (*ON_READINGS, *ALWAYS, *extra)
        self._moves = (*ON_MOVES, *self._readings)

    def step(self, number: int, key: Key) -> tuple[Invariant, str] | None:
        """Take a letter in the state that the world is in, which is saved as ``key``; the invariant that it breaks."""
        world = self.world
        machine, evidence, letter = world.machine, world.evidence, self.scope.letters[number]
        seen = world.seen[number]
        machine.entered = None
        machine.hurries.clear()
        edge = Edge(
            world,
            key,
            letter if isinstance(letter, Event) else None,
            seen,
            before=evidence.state,
            pinned=evidence.pinned,
            settled=evidence.settled,
            wanted=evidence.wanted,
            serving=evidence.serving,
            changed=world.changed,
            switch=machine.switch,
        )
        if seen is not None:
            moved = world.read(number, seen)
            edge.at, edge.after = evidence.now_s, world.position
            checks = self._moves if moved or edge.after != edge.before else self._readings
        else:
            assert isinstance(letter, Event)
            edge.failures = tuple(evidence.failures)
            edge.at = clock = world.clock
            last = world.last
            edge.answer = world.happen(letter)
            edge.after = world.position

            def untouched() -> bool:
                now, world.clock = world.clock, clock
                same = world.key() == key and world.last == last
                world.clock = now
                return same

            edge.untouched = untouched
            checks = self._events
        complaint = None
        for invariant in checks:
            said = invariant(edge)
            if said is not None:
                complaint = invariant, said
                break
        self._note(edge, letter)
        return complaint

    def _note(self, edge: Edge, letter: Letter) -> None:
        """Keep the account of changes and failures, for the letters that follow."""
        world, event = edge.world, edge.event
        if edge.after != edge.before:
            world.changed = max(world.changed, edge.at)
        if event is None:
            return
        if event.kind in ("done", "failed", "lost") and not edge.settled:
            world.changed = edge.at
            if event.kind != "done" and edge.before >= 0 and world.loaded != edge.before:
                world.failed[edge.before] = edge.at
        elif event.kind == "died":
            world.failed[event.position] = edge.at
            if event.position == edge.before:
                world.changed = edge.at


class Search:
    """One scope's graph: states by number in the order in which they were found, so that paths back are shortest."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._stepper = Stepper(scope)
        self._numbers: dict[Key, int] = {}
        self._keys: list[Key] = []
        self._from = array("i")
        self._by = array("B")
        self._next = [array("i") for _ in scope.letters]
        self._edges = 0
        self._rests = set[int]()

    def run(self, most_states: int = MOST_STATES, tick: Callable[[int, int], None] | None = None) -> Found:
        """Look at every state, or at ``most_states``; then at the graph. Stops at the first thing that is broken."""
        began = time.process_time()
        broken = self._explore(most_states, tick)
        complete = broken is None and len(self._next[0]) == len(self._keys)
        if complete:
            broken = next(self._faults_of_the_graph(), None)
        names = self.scope.name
        return Found(
            names,
            len(self.scope.ladder),
            len(self.scope.letters),
            len(self._keys),
            self._edges,
            time.process_time() - began,
            complete and broken is None,
            broken,
            frozenset(self._rests),
        )

    def _explore(self, most: int, tick: Callable[[int, int], None] | None) -> Broken | None:
        stepper, world = self._stepper, self._stepper.world
        keys, numbers, letters = self._keys, self._numbers, self.scope.letters
        for key in world.beginnings():
            self._add(key, NOWHERE, 0)
        number = 0
        while number < len(keys) and number < most:
            key = keys[number]
            if tick is not None and number % 4096 == 0:
                tick(number, len(keys))
            for position, letter in enumerate(letters):
                world.restore(key)
                if not world.applies(letter):
                    self._next[position].append(NOWHERE)
                    continue
                self._edges += 1
                complaint = stepper.step(position, key)
                if complaint is not None:
                    invariant, said = complaint
                    return self._broken(invariant.__name__, said, number, [position])
                key_after = world.key()
                there = numbers.get(key_after)
                if there is None:
                    there = self._add(key_after, number, position)
                self._next[position].append(there)
            number += 1
        return None

    def _add(self, key: Key, before: int, letter: int) -> int:
        number = self._numbers[key] = len(self._keys)
        self._keys.append(key)
        self._from.append(before)
        self._by.append(letter)
        return number

    def _broken(self, invariant: str, complaint: str, number: int, letters: list[int]) -> Broken:
        path = list(reversed(letters))
        while self._from[number] != NOWHERE:
            path.append(self._by[number])
            number = self._from[number]
        names = (OFF, *self.scope.ladder.names)
        initial = names[level_of(self._keys[number]) + 1]
        return Broken(invariant, complaint, initial, tuple(self.scope.letters[letter] for letter in reversed(path)))

    # ------------------------------------------------------------------ the graph

    def _faults_of_the_graph(self) -> Iterator[Broken]:
        """What no single edge shows: states that nothing leads to, traps, and cycles."""
        letters, count = self.scope.letters, len(self.scope.ladder)
        reached = {level_of(key) for key in self._keys}
        for level in range(-1, count):
            if level not in reached:
                yield self._broken("every_state_is_reached", f"nothing leads to {level}", 0, [])
        plain = [
            (number, letter)
            for number, letter in enumerate(letters)
            if isinstance(letter, Read) and letter.steady and not letter.stalled
        ]
        room = [(n, one) for n, one in plain if one.gpu is not None and one.peak is None and one.power in CALM]
        least = min(room, key=lambda pair: (pair[1].power == "untold", pair[1].cautious, pair[1].ram, _card(pair[1])))
        most = max(room, key=lambda pair: (pair[1].ram, _card(pair[1])))
        done = letters.index(Event("done"))
        ask: dict[Callable[[Key], bool], int] = {
            is_asked: letters.index(event)
            for is_asked, event in ((is_pinned, Event("unpin")), (_is_unwanted, Event("want", 1)))
            if event in letters
        }
        ends = [("room_leads_to_the_top", least[0], count - 1), ("pressure_leads_to_off", most[0], -1)]
        ceilings = self._stepper.world.evidence.ceilings
        if ceilings:
            unplugged = [(letter.ram, n) for n, letter in plain if letter.power == "battery"]
            ends.append(("battery_leads_to_its_ceiling", min(unplugged)[1], ceilings[0].highest))
        for name, number, end in ends:
            yield from self._where_it_ends(name, number, done, ask, end)
        for number, letter in plain:
            yield from self._cycles(number, done, most_down=2 if letter.power == "battery" else 1)

    def _follow(self, reading: int, done: int, ask: dict[Callable[[Key], bool], int]) -> list[int]:
        """By state, the letter that comes: people let go, effects do what they are asked, else the same reading."""
        chosen = []
        for key in self._keys:
            for is_asked, letter in ask.items():
                if is_asked(key):
                    chosen.append(letter)
                    break
            else:
                chosen.append(reading if is_settled(key) else done)
        return chosen

    def _where_it_ends(
        self, name: str, reading: int, done: int, ask: dict[Callable[[Key], bool], int], end: int
    ) -> Iterator[Broken]:
        """None is a trap: from every state, room for long leads to the top, and pressure to off."""
        chosen = self._follow(reading, done, ask)
        good = bytearray(len(self._keys))  # 0 not looked at, 1 on the way, 2 ends well
        for start in range(len(self._keys)):
            path, at = list[int](), start
            while not good[at]:
                good[at] = 1
                path.append(at)
                at = self._next[chosen[at]][at]
            if good[at] == 1:
                for node in path[path.index(at) :]:
                    if level_of(self._keys[node]) != end or not is_settled(self._keys[node]):
                        letters = [chosen[one] for one in path]
                        yield self._broken(name, f"it ends at {level_of(self._keys[node])}", start, letters)
                        return
            for node in path:
                good[node] = 2

    def _backing_off(self, node: int) -> int:
        """How many levels are left alone in a state."""
        return sum(self._keys[node][HEADER + BACK_OFF + EACH * level] > 0 for level in range(len(self.scope.ladder)))

    def _cycles(self, reading: int, done: int, most_down: int) -> Iterator[Broken]:
        """With constant usage the level goes down once at the most, then climbs, and stays."""
        chosen = self._follow(reading, done, {})
        keys, after = self._keys, [self._next[letter] for letter in (reading, done)]
        downs, ups = bytearray(len(keys)), bytearray(len(keys))
        known = bytearray(len(keys))
        for start in range(len(keys)):
            path, at = list[int](), start
            while not known[at]:
                known[at] = 1
                path.append(at)
                at = after[chosen[at] != reading][at]
            if known[at] == 1:
                ring = path[path.index(at) :]
                levels = {level_of(keys[node]) for node in ring}
                if not is_pinned(keys[ring[0]]):
                    self._rests |= levels
                if len(levels) > 1:
                    letters = [chosen[one] for one in (*path, *ring)]
                    yield self._broken("no_cycle_under_constant_usage", "it goes round and round", start, letters)
                    return
            for node in reversed(path):
                there = after[chosen[node] != reading][node]
                step = level_of(keys[there]) - level_of(keys[node])
                # Of what follows; in a ring, nothing does.
                downs[node] = downs[there] + (step < 0)
                ups[node] = 1 if step > 0 else ups[there]
                # What was chosen because a better one was backing off may be left once more for that.
                allowed = most_down + self._backing_off(node)
                if downs[node] > allowed or (step > 0 and downs[there]):
                    run, at = list[int](), node
                    while after[chosen[at] != reading][at] != at:
                        run.append(chosen[at])
                        at = after[chosen[at] != reading][at]
                    said = f"{downs[node]} times down" if downs[node] > allowed else "up, and then down"
                    yield self._broken("constant_usage_settles", said, node, run)
                    return
                known[node] = 2


def _is_unwanted(key: Key) -> bool:
    return not is_wanted(key)


def _card(read: Read) -> int:
    return read.gpu or 0
