"""The decisions on real recordings are those of the committed journal: a change of behaviour is seen, and meant."""

from __future__ import annotations

import json

from tests.replay.journal import JOURNAL, RECORDINGS, lines


def test_the_decisions_on_real_recordings_are_those_of_the_journal() -> None:
    """Line by line; if the change is meant, `python -m tests.replay.journal` writes them anew for review."""
    assert list(lines()) == JOURNAL.read_text().splitlines()


def test_the_journal_is_of_every_recording_and_each_shows_something() -> None:
    """The ladder moves in each, and no model was killed."""
    records = [json.loads(line) for line in JOURNAL.read_text().splitlines()]
    outcomes = {record["recording"]: record for record in records if "seconds" in record}
    assert outcomes.keys() == {path.name.removesuffix(".csv.gz") for path in RECORDINGS.iterdir()}
    assert len(outcomes) >= 4
    assert all(outcome["kills"] == 0 and outcome["switches"] >= 1 for outcome in outcomes.values())
