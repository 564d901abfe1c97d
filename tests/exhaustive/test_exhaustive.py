"""Every reachable state is gone through, and what is gone through is the machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scaler import guards
from scaler.evidence import Evidence
from scaler.journal import read
from tests.cli.conftest import Run, places, scaler
from tests.exhaustive.counterexample import steps, write
from tests.exhaustive.faults import FAULTS, SAMPLE
from tests.exhaustive.figures import HEAD, line, names, searched, total
from tests.exhaustive.letters import PARTS, Event, Read
from tests.exhaustive.mutants import run_all
from tests.exhaustive.scopes import DONE, ladder, policy, scopes
from tests.exhaustive.search import Search, Stepper
from tests.exhaustive.world import NONE, Scope, World

__all__ = ["places", "scaler"]  # fixtures

STEPS = 1500
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_no_invariant_is_broken_on_any_edge(figures: Callable[[str], None]) -> None:
    """Nor is there a trap or a cycle; all of it was gone through."""
    by_name = {scope.name: scope for scope in scopes()}
    done = list(searched(names()))
    figures("\n".join([HEAD, *map(line, done), total(done)]))
    broken = [found for found in done if found.broken is not None]
    assert not broken, "\n".join(
        row for found in broken if found.broken for row in steps(found.broken, by_name[found.scope])
    )
    assert all(found.complete for found in done)
    for count in (1, 2, 3, 4, 5):
        rests = {level for found in done if found.levels == count for level in found.rests}
        assert rests == set(range(-1, count)), "each level is the best at some usage"


@pytest.mark.parametrize("scope", scopes(), ids=lambda scope: scope.name)
def test_what_is_saved_is_all_that_matters(scope: Scope) -> None:
    """A machine that is never saved, with times that grow, comes through the same states as one restored each time."""
    source = random.Random(scope.name)
    going, restored = Stepper(scope), Stepper(scope)
    beginnings = going.world.beginnings()
    key = beginnings[0]
    going.world.restore(key)
    seen = set[bytes]()
    for _ in range(STEPS):
        number = source.randrange(len(scope.letters))
        # What leads somewhere is rarer than what leads back.
        if source.random() < 0.3 and isinstance(scope.letters[number], Event):
            number = scope.letters.index(DONE)
        if not going.world.applies(scope.letters[number]):
            continue
        assert going.step(number, key) is None
        restored.world.restore(key)
        assert restored.step(number, key) is None
        assert (going.world.machine.open, going.world.position) == (
            restored.world.machine.open,
            restored.world.position,
        )
        key = going.world.key()
        assert restored.world.key() == key, scope.letters[number]
        seen.add(key)
    assert len(seen) > 50


def test_the_parts_of_a_band_are_alike() -> None:
    """No guard tells two usages of one band apart: so a letter a band is enough."""
    levels, times = ladder([8, 16, 24]), policy()
    every = tuple(Read(ram) for ram in range(PARTS + 1))
    scope = next(one for one in scopes() if one.name == "3 levels: failing")
    scope = replace(scope, ladder=levels, policy=times, letters=(*every, DONE))
    cut = {
        read.ram
        for read in next(one for one in scopes() if one.name == "3 levels: failing").letters
        if isinstance(read, Read)
    }
    assert len(cut) < len(every)
    worlds = World(scope)
    source = random.Random(1)
    key = worlds.beginnings()[0]
    for _ in range(300):
        after: dict[tuple[bool, ...], set[bytes]] = {}
        for number in range(len(every)):
            worlds.restore(key)
            seen = worlds.seen[number]
            assert seen is not None
            worlds.read(number, seen)
            band = tuple(
                holds
                for share in seen.known
                for holds in (
                    share <= times.scale_at - times.band,
                    share <= times.scale_at,
                    share >= (times.scale_at + times.critical_at) / 2,
                    share >= times.critical_at,
                    share <= times.critical_at - times.recovery_band,
                )
            )
            after.setdefault(band, set()).add(worlds.key())
        assert all(len(keys) == 1 for keys in after.values())
        key = source.choice(sorted(source.choice(list(after.values()))))
        if source.random() < 0.4:
            worlds.restore(key)
            worlds.happen(DONE)
            key = worlds.key()
    assert worlds.last == NONE


def test_a_search_that_was_stopped_does_not_claim_to_be_complete() -> None:
    """It proves nothing, and says so."""
    found = Search(scopes()[0]).run(most_states=100)
    assert (found.complete, found.broken) == (False, None)
    assert found.states > 100


# ---------------------------------------------------------------------- planted faults


def without_band(evidence: Evidence, position: int) -> guards.Verdict:
    """A planted fault: usage in the band below the limit, and there only, is climbed with, at once."""
    usage, limit = evidence.projected[position], evidence.limits[position]
    within = usage is not None and limit - evidence.policy.band < usage <= limit
    return guards.Verdict(True, usage, limit, "faulty") if within else guards.fits_below_band(evidence, position)


def plain() -> Scope:
    """Two levels, readings and switches that are done."""
    return replace(next(one for one in scopes() if one.name == "2 levels: times that double"), name="plain")


def test_a_counterexample_is_a_shortest_one_and_replay_shows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scaler: Run, places: dict[str, str]
) -> None:
    """The first reading in the band climbs, in the search and in a replay of the same fault; without it, it stays."""
    fault = replace(guards.GUARDS["fits_below_band"], test=without_band)
    monkeypatch.setattr("scaler.guards.GUARDS", {**guards.GUARDS, "fits_below_band": fault})
    monkeypatch.setattr("scaler.machine.GUARDS", {**guards.GUARDS, "fits_below_band": fault})
    monkeypatch.setattr("tests.exhaustive.world.GUARDS", {**guards.GUARDS, "fits_below_band": fault})
    scope = plain()
    found = Search(scope).run()
    broken = found.broken
    assert broken is not None
    assert not found.complete
    assert broken.invariant == "an_upgrade_had_room_throughout"
    assert len(broken.path) == 1  # one reading is enough, and fewer cannot be
    commands = write(broken, scope, tmp_path / "found")
    (decision,) = read(tmp_path / "found" / "journal.jsonl")
    assert (decision["source"], decision["dest"]) == ("level0", "level1")
    assert "level1, switching" in (tmp_path / "found" / "steps.txt").read_text()
    history, replay = commands
    assert history.startswith("scaler history --path ")
    shown = scaler(*history.split()[1:])
    assert (shown.returncode, "level1" in shown.stdout) == (0, True), shown.stderr
    right = json.loads(scaler(*replay.split()[1:], "--json").stdout)
    assert right["switches"] == 0
    folder = tmp_path / "faulty"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FAULTY)
    wrong = scaler(*replay.split()[1:], "--json", env={"PYTHONPATH": f"{folder}:{ROOT}"})
    assert wrong.returncode == 0, wrong.stderr
    assert json.loads(wrong.stdout)["switches"] == 1
    assert json.loads(wrong.stdout)["seconds_at"]["level1"] > 0
    assert (tmp_path / "found" / "replay.svg").stat().st_size > 0


FAULTY = """
from dataclasses import replace
from tests.exhaustive.test_exhaustive import without_band
from scaler import guards
guards.GUARDS["fits_below_band"] = replace(guards.GUARDS["fits_below_band"], test=without_band)
"""


def test_what_a_replay_cannot_know_is_told_as_a_journal_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as a level that is gone to although it failed a moment ago."""
    never = replace(guards.GUARDS["backing_off"], test=lambda *_: guards.Verdict(False, None, None, "never"))
    for module in ("scaler.guards", "scaler.machine", "tests.exhaustive.world"):
        monkeypatch.setattr(f"{module}.GUARDS", {**guards.GUARDS, "backing_off": never})
    scope = plain()
    broken = Search(scope).run().broken
    assert broken is not None
    assert broken.invariant == "what_failed_is_left_alone"
    (command,) = write(broken, scope, tmp_path)
    assert command.startswith("scaler history")


def test_every_planted_fault_has_its_place_still() -> None:
    """All are planted once in a while only, for it takes an hour, which would end at the first that has none."""
    places = {fault.what: (ROOT / "scaler" / fault.file).read_text("utf-8").count(fault.old) for fault in FAULTS}
    assert places == dict.fromkeys(places, 1)


@pytest.mark.timeout(600)
def test_planted_faults_are_found(figures: Callable[[str], None], tmp_path: Path) -> None:
    """A sample of those of `make mutants`, by this search alone and over the smallest ladders."""
    chosen = [fault for fault in FAULTS if fault.what in SAMPLE]
    assert len(chosen) == len(SAMPLE)
    outcomes = run_all(chosen, tmp_path, quick=True)
    figures("\n".join(f"{outcome.fault.what:<60} {outcome.caught_by or 'ALIVE'}" for outcome in outcomes))
    assert all(outcome.caught_by for outcome in outcomes)
