"""Files that a power cut tore: conversations go on, and nothing is deleted."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from scaler.conversations.sqlite import SqliteConversations
from scaler.errors import ConversationError
from tests.conversations.conftest import questions, turn


def torn_log(path: Path, into: Path) -> bytes:
    """Files as they are when the program is killed after six turns; returns the log, of which a part may be lost."""
    with closing(SqliteConversations(path, 10)) as kept:
        for number in range(6):
            kept.extend("a", turn(f"{number}", "x" * 3000))
        into.parent.mkdir()
        shutil.copy(path, into)
        return path.with_name(path.name + "-wal").read_bytes()


def test_a_log_torn_anywhere_costs_the_last_turns_and_no_half_of_one(path: Path, tmp_path: Path) -> None:
    """Six turns are in it; wherever it ends, what was whole before is whole, in order."""
    copy = tmp_path / "copy" / "c.sqlite"
    log = torn_log(path, copy)
    main, wal = copy.read_bytes(), copy.with_name("c.sqlite-wal")
    # In its header and the first frame's, then all over it, and every byte of its end.
    sizes = sorted({*range(0, 70, 3), *range(70, len(log), 1493), *range(len(log) - 8, len(log) + 1)})
    counts = []
    for size in sizes:
        copy.write_bytes(main)
        copy.with_name("c.sqlite-shm").unlink(missing_ok=True)
        wal.write_bytes(log[:size])
        with closing(SqliteConversations(copy, 10)) as kept:
            asked = questions(kept, "a")
            assert asked == [f"{number}" for number in range(len(asked))]
            assert len(kept.history("a")) == 2 * len(asked)
            counts.append(len(asked))
            kept.extend("a", turn("after"))
            assert questions(kept, "a")[-1] == "after"
    assert counts == sorted(counts)
    assert (counts[0], counts[-1], len(set(counts))) == (0, 6, 7)
    assert {file.name for file in copy.parent.iterdir()} <= {"c.sqlite", "c.sqlite-wal", "c.sqlite-shm"}


def filled(path: Path) -> bytes:
    """A file with some pages."""
    with closing(SqliteConversations(path, 10)) as kept:
        for number in range(20):
            kept.extend("a", turn(f"{number}", "x" * 3000))
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
def test_a_file_that_lost_its_end_is_put_aside_and_conversations_begin_anew(
    path: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, with where the old file is now; the next start finds nothing to say."""
    whole = filled(path)
    # Disks lose whole blocks, and a page is never smaller.
    torn = whole[: max(1, int(len(whole) * share) // 4096) * 4096]
    path.write_bytes(torn)
    with caplog.at_level(logging.WARNING), closing(SqliteConversations(path, 10)) as kept:
        assert questions(kept, "a") == []
        kept.extend("a", turn("anew"))
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes() == torn
    assert str(aside) in caplog.text
    assert caplog.text.count("damaged (") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING), closing(SqliteConversations(path, 10)) as kept:
        assert questions(kept, "a") == ["anew"]
    assert not caplog.records
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_nothing_but_zeros_is_put_aside(path: Path) -> None:
    """Its length was written and its pages were not."""
    whole = filled(path)
    path.write_bytes(bytes(len(whole)))
    with closing(SqliteConversations(path, 10)) as kept:
        assert questions(kept, "a") == []
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_after_a_kill_a_page_that_was_lost_is_found_before_anybody_asks(path: Path) -> None:
    """The log that was left behind tells that somebody was killed."""
    whole = bytearray(filled(path))
    middle = 4096 * (len(whole) // 4096 // 2)
    whole[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(whole)
    with closing(SqliteConversations(path, 10)) as kept, pytest.raises(ConversationError, match="cannot be read"):
        kept.history("a")
    path.with_name(path.name + "-wal").touch()
    with closing(SqliteConversations(path, 10)) as kept:
        assert kept.history("a") == ()
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_a_damaged_database_of_another_program_is_left_where_it_is(path: Path) -> None:
    """A wrong path in the configuration must not cost anybody their file."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE recipes (name)")
        database.executemany("INSERT INTO recipes VALUES (?)", [("soup" * 500,)] * 50)
        database.commit()
    torn = path.read_bytes()[:9000]
    path.write_bytes(torn)
    with pytest.raises(ConversationError, match="cannot be opened"):
        SqliteConversations(path, 10)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == torn
