"""A disk under the journal that is full for a while: serving goes on, and it is said once."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scaler.journal import Journal, JournalError, Writer, read
from tests.effects.test_proactive import Bench


@contextmanager
def full(at: int = 0) -> Iterator[None]:
    """No file of this process can grow beyond ``at`` bytes: a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_journal_that_cannot_be_written_is_told_once_and_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each record would fill whatever keeps the log."""
    journal = Journal(tmp_path / "journal.jsonl")
    bench = Bench(journal)
    scaler = bench.scaler
    bench.read(other_gib=2.0)
    scaler.pin("small")
    for _ in range(2):
        caplog.clear()
        with full():
            for level in ("medium", "small", "medium"):
                scaler.pin(level)
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(told) == 1
        assert "the journal is not written, and serving goes on without it" in told[0]
        assert str(journal.path) in told[0]
        scaler.pin("small")
        assert "the journal is written again" in caplog.text
    journal.close()
    pins = [record["level"] for record in read(journal.path) if record["event"] == "pin"]
    assert pins[0] == "small"
    assert pins[-1] == "small"


@pytest.mark.parametrize("half", [20, len('{"number":1,"program":"one","pid":1}')])
def test_a_record_that_found_half_its_room_leaves_none_of_it_to_another_program(tmp_path: Path, half: int) -> None:
    """Who writes next would write on in the same line, and nobody could read the journal any more."""
    one, other = (Journal(tmp_path / "journal.jsonl", writer=Writer(name, 1)) for name in ("one", "two"))
    for journal in (one, other):
        journal.write({"number": 0})
    with full(one.path.stat().st_size + half), pytest.raises(JournalError, match="File too large"):
        one.write({"number": 1})
    other.write({"number": 2})
    one.write({"number": 3})
    assert [(record["program"], record["number"]) for record in read(one.path)] == [
        ("one", 0),
        ("two", 0),
        ("two", 2),
        ("one", 3),
    ]
    for journal in (one, other):
        journal.close()
