"""A journal that a power cut tore, at every byte of its last record."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from scaler import past
from scaler.journal import Journal, read

RECORDS = [
    {"at": "2026-01-01T10:00:00+00:00", "event": "pin", "level": "größer"},
    {"at": "2026-01-01T10:00:01+00:00", "event": "died", "level": "small", "reason": "two\nlines \u2028 {}"},
    {"at": "2026-01-01T10:00:02+00:00", "event": "pin", "level": None},
]
LATER = {"at": "2026-01-01T10:00:03+00:00", "event": "pin", "level": "later"}


def lines() -> list[bytes]:
    """As they stand in the file."""
    return [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS]


@pytest.mark.parametrize("tail", [b"", bytes(7), bytes(5000)], ids=["torn", "some zeros", "a page of zeros"])
def test_a_journal_torn_at_any_byte_loses_that_record_and_no_other(
    tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Read before it is mended and after, by `scaler history` too; what comes next is whole, and it is said once."""
    first, second, third = lines()
    path = tmp_path / "journal.jsonl"
    for size in range(len(third) + 1):
        path.write_bytes(first + second + third[:size] + (tail if size < len(third) else b""))
        complete = size == len(third) or (size == len(third) - 1 and not tail)
        there = RECORDS if complete else RECORDS[:2]
        assert list(read(path)) == there
        assert list(past.records(path)) == there
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            journal = Journal(path)
            journal.write(LATER)
            journal.close()
            journal.write(LATER)
            journal.close()
        assert list(read(path)) == [*there, LATER, LATER]
        said = [record.getMessage() for record in caplog.records]
        lost = 0 if complete else size + len(tail)
        assert said == (
            [f"{path}: its last record was unfinished, as after a power cut; its {lost} bytes are gone"] if lost else []
        )


def test_an_older_file_that_was_torn_before_it_was_full_is_read_as_well(tmp_path: Path) -> None:
    """Of each file the last line may be unfinished."""
    first, second, third = lines()
    (tmp_path / "journal.jsonl.1").write_bytes(first + second[:9])
    (tmp_path / "journal.jsonl").write_bytes(third)
    assert list(read(tmp_path / "journal.jsonl")) == [RECORDS[0], RECORDS[2]]
