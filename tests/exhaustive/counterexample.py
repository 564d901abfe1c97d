"""A path that breaks an invariant, told step by step, as a journal, and as a recording that `scaler replay` plays.

A replay knows readings only, begins with the smallest level loaded and does what it is asked: it can play a path that
has nothing else in it. A switch is done at the next reading there; so after each there is one more, a moment later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from scaler.events import DecisionMade
from scaler.journal import record_of
from scaler.levels import OFF, RAM
from tests.exhaustive.letters import PART, PARTS, Event, Letter, Read
from tests.exhaustive.search import Broken
from tests.exhaustive.world import BEGIN, Scope, World

MOMENT_S = 1 / 64
AFTER = 3
"""So many readings more, for what was begun last to be seen."""
WALL_S = 1.7e9
REPLAYED = ("dwell_s", "dwell_max_s", "debounce_s", "recovery_s", "stale_after_s", "wasted_within_s")
LIMITS = ("scale_at", "band", "critical_at", "exhausted_at", "recovery_band")


def steps(broken: Broken, scope: Scope) -> Iterator[str]:
    """The path, a line a letter with where it led, and what is wrong in the end."""
    yield f"{scope.name}: {broken.invariant}: {broken.complaint}"
    yield f"  {'begins with':<44} {broken.initial}"
    for letter, world, _ in _walked(broken, scope):
        going = "" if world.machine.settled else ", switching"
        yield f"  {letter!s:<44} {world.machine.state}{going}"


def _walked(broken: Broken, scope: Scope) -> Iterator[tuple[Letter, World, bool]]:
    """The machine after each letter, and whether it moved."""
    world = World(scope)
    beginning = (*scope.ladder.names, OFF).index(broken.initial)
    world.restore(world.beginnings()[beginning])
    for letter in broken.path:
        number, before = scope.letters.index(letter), world.machine.state
        seen = world.seen[number]
        if seen is not None:
            world.read(number, seen)
        elif isinstance(letter, Event):
            world.happen(letter)
        yield letter, world, world.machine.state != before


def write(broken: Broken, scope: Scope, folder: Path) -> list[str]:
    """Write a counterexample's files; the commands that show them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "steps.txt").write_text("\n".join(steps(broken, scope)) + "\n")
    records = []
    for _, world, moved in _walked(broken, scope):
        if moved and world.machine.entered is not None:
            at = WALL_S + world.clock - BEGIN
            records.append(record_of(DecisionMade(world.machine.entered, at), at))
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    commands = [f"scaler history --path {folder / 'journal.jsonl'}"]
    if can_be_replayed(broken, scope):
        (folder / "readings.csv").write_text("\n".join(["t,mem", *_recording(broken)]) + "\n")
        (folder / "scaler.yaml").write_text(_configuration(scope))
        where = f"--config {folder / 'scaler.yaml'} --total-gib {PARTS}"
        commands.append(f"scaler replay {folder / 'readings.csv'} {where} --picture {folder / 'replay.svg'}")
    return commands


def can_be_replayed(broken: Broken, scope: Scope) -> bool:
    """Whether it has only what a replay has."""
    plain = all(letter == Event("done") or letter == _plain(letter) for letter in broken.path)
    return (
        plain and broken.initial == scope.ladder.names[0] and all(set(one.footprint) == {RAM} for one in scope.ladder)
    )


def _plain(letter: Letter) -> Letter | None:
    return Read(letter.ram) if isinstance(letter, Read) else None


def _recording(broken: Broken) -> Iterator[str]:
    at_s = share = 0.0
    for letter in (*broken.path, *[None] * AFTER):
        if letter == Event("done"):
            at_s += MOMENT_S
            yield f"{at_s:.6f},{share:.6f}"
            continue
        at_s += 1.0
        if isinstance(letter, Read):
            share = letter.ram / PARTS
        yield f"{at_s:.6f},{share:.6f}"


def _configuration(scope: Scope) -> str:
    policy = {name: getattr(scope.policy, name) for name in (*REPLAYED, *LIMITS)}
    return yaml.safe_dump(
        {
            "tier": "mid_range",
            "ladder": [
                {
                    "name": level.name,
                    "model": "absent.gguf",
                    "quality": (position + 1) / len(scope.ladder),
                    "ram_gib": level.footprint[RAM] // PART,
                    "load_s": MOMENT_S,
                }
                for position, level in enumerate(scope.ladder)
            ],
            # What looks back over a long history is another matter: see `oracles.py`.
            "policy": {**policy, "rise_s": 0.0, "needle_s": 0.0, "caution_max": 0.0, "band_max": policy["band"]},
        },
        sort_keys=False,
    )
