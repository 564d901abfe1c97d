"""The SQLite file: whose it is, what it survives, and what is said of one that cannot be used."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaler.conversations.sqlite import FORMAT, SqliteConversations
from scaler.errors import ConversationError
from tests.conversations.conftest import questions, turn

PATIENCE_S = 60.0
"""How long a test waits for another process; only a failing test waits that long."""

WRITER = """
import sys
from pathlib import Path
from scaler.conversations.sqlite import SqliteConversations
from tests.conversations.conftest import turn
path, name, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
kept = SqliteConversations(path, 1000)
print("open", flush=True)
sys.stdin.readline()
for number in range(turns):
    text = f"{name}{number} " + "x" * (number % 7 * 2000)
    kept.extend("a", turn(text, text, ("large", "small")))
    print(number, flush=True)
"""


@contextmanager
def writer(path: Path, name: str, turns: int) -> Iterator[subprocess.Popen[str]]:
    """Another program that has the file open; it writes ``turns`` turns when it gets a line, and tells each."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(turns)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that the process printed."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def begin(process: subprocess.Popen[str]) -> None:
    """Have it write."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def mode(path: Path) -> int:
    """Who may do what with a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_its_owners_alone_and_so_is_what_lies_beside_it(path: Path) -> None:
    """What people say to a model is nobody else's business, whatever the umask."""
    before = os.umask(0)
    try:
        with closing(SqliteConversations(path, 10)) as kept:
            kept.extend("a", turn("secret"))
            modes = {file.name: mode(file) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {path.name + ending: 0o600 for ending in ("", "-wal", "-shm")}
    assert mode(path.parent) == 0o700
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_link_to_a_file_that_is_not_there_yet_makes_it_its_owners_alone(tmp_path: Path) -> None:
    """The file may lie on another disk."""
    link, there = tmp_path / "link", tmp_path / "there"
    link.symlink_to(there)
    SqliteConversations(link, 10).close()
    assert mode(there) == 0o600


def test_what_was_forgotten_is_not_in_the_file_any_more(path: Path) -> None:
    """Who has a conversation forgotten means it."""
    with closing(SqliteConversations(path, 10)) as kept:
        kept.extend("a", turn("the secret of the pyramids"))
        kept.extend("b", turn("something else"))
        kept.forget("a")
    content = path.read_bytes()
    assert b"something else" in content
    assert b"pyramids" not in content


def test_a_killed_writer_leaves_whole_turns_and_loses_none_that_it_was_told_were_stored(path: Path) -> None:
    """kill -9 in the middle of anything: the file opens, and no question is in it without its answer."""
    told = 0
    places = random.Random(0)
    for run in range(8):
        with writer(path, f"{run}.", 10_000) as process:
            assert said(process) == "open"
            begin(process)
            # Anywhere in a turn: from between two of them to far into one.
            for _ in range(places.randint(1, 30)):
                told += bool(said(process))
            os.kill(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)
            told += len(process.stdout.read().split()) if process.stdout else 0
        with closing(SqliteConversations(path, 10)) as kept:
            history = kept.history("a")
        asked, answered = history[::2], history[1::2]
        assert [one.message["content"] for one in asked] == [one.message["content"] for one in answered]
        assert {one.levels for one in answered} == {("large", "small")}
        # One more at each kill may be in the file before it was told.
        assert told <= len(asked) <= told + run + 1


def test_two_programs_may_write_the_same_conversation(path: Path) -> None:
    """Each turn is whole; they follow each other as they were stored."""
    with writer(path, "x", 40) as one, writer(path, "y", 40) as two:
        assert [said(one), said(two)] == ["open", "open"]
        begin(one)
        begin(two)
        for process in (one, two):
            assert [said(process) for _ in range(40)] == [f"{number}" for number in range(40)]
            assert process.wait(PATIENCE_S) == 0
    with closing(SqliteConversations(path, 10)) as kept:
        history = kept.history("a")
    assert [one.message for one in history[::2]] == [{**one.message, "role": "user"} for one in history[1::2]]
    names = [str(one.message["content"]).split()[0] for one in history[::2]]
    for letter in "xy":
        assert [name for name in names if name[0] == letter] == [f"{letter}{number}" for number in range(40)]


def test_programs_that_make_the_same_file_at_the_same_time_all_get_it(path: Path) -> None:
    """A daemon and a program may be started by the same login."""
    for number in range(3):
        file = path.with_name(f"{number}.sqlite")
        processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(file), "x", "0"], stdin=subprocess.PIPE,
                     stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in range(4)]  # fmt: skip
        try:
            assert [said(process) for process in processes] == ["open"] * 4
        finally:
            for process in processes:
                process.communicate("\n", PATIENCE_S)
        assert [process.returncode for process in processes] == [0] * 4


def test_another_keeper_in_the_same_program_does_not_break_the_first_ones_locks(path: Path) -> None:
    """Closing a file drops the locks that a process has on it, which only SQLite's own closing knows how to avoid."""
    with closing(SqliteConversations(path, 10)) as one:
        SqliteConversations(path, 10).close()
        with closing(SqliteConversations(path, 10)) as two:
            one.extend("a", turn("1"))
            two.extend("a", turn("2"))
            assert questions(one, "a") == ["1", "2"]


def test_who_reads_the_file_does_not_keep_a_turn_from_being_stored(path: Path) -> None:
    """A backup, or somebody who looks."""
    with closing(SqliteConversations(path, 10, wait_s=0.0)) as kept:
        kept.extend("a", turn("1"))
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM message").fetchone() == (2,)
            kept.extend("a", turn("2"))
        assert questions(kept, "a") == ["1", "2"]


# -------------------------------------------------------------------------------------------- what cannot be used


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE recipes (name)")


def newer(path: Path) -> None:
    SqliteConversations(path, 10).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")


def letter(path: Path) -> None:
    path.write_text("Dear Ada, " * 1000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (letter, "cannot be opened (file is not a database); see that it is scaler's"),
        (other_database, "is another program's database; set conversations.path to a file of its own"),
        (newer, f"was written by a newer scaler (its format is {FORMAT + 1}, this one's {FORMAT}); update scaler"),
        (Path.mkdir, "cannot be opened (it is no regular file); see that"),
        (os.mkfifo, "cannot be opened (it is no regular file); see that"),
    ],
)
def test_what_is_no_file_of_ours_is_told_and_left_as_it_is(tmp_path: Path, make: Any, words: str) -> None:
    """A wrong path in the configuration must not cost anybody their file."""
    path = tmp_path / "mine"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ConversationError) as raised:
        SqliteConversations(path, 10)
    assert str(raised.value).startswith(f"{path}: {words}")
    assert "conversations.path" in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("place", ["file/x/c.sqlite", "file/c.sqlite", "a\0b"])
def test_where_no_file_can_be_made_is_told(tmp_path: Path, place: str) -> None:
    """The cause is the operating system's own word."""
    (tmp_path / "file").touch()
    with pytest.raises(ConversationError, match=r"cannot be opened \(.+\); see that"):
        SqliteConversations(tmp_path / place, 10)


@contextmanager
def folder_of_somebody() -> Iterator[Path]:
    """A folder whose owner we are, and not as root, to whom nothing is forbidden."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize(("file", "folder"), [(None, 0o500), (0o400, 0o700), (0o600, 0o500), (0o000, 0o700)])
def test_a_folder_or_file_that_may_not_be_written_is_told(file: int | None, folder: int) -> None:
    """At the start, not with the first answer."""
    with folder_of_somebody() as place:
        path = place / "conversations.sqlite"
        if file is not None:
            with closing(SqliteConversations(path, 10)) as kept:
                kept.extend("a", turn("1"))
            path.chmod(file)
        place.chmod(folder)
        try:
            with pytest.raises(ConversationError, match=r"cannot be opened \(.+\); see that .* can be written to"):
                SqliteConversations(path, 10)
        finally:
            place.chmod(0o700)


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_file_that_somebody_holds_is_waited_for_and_then_told(path: Path) -> None:
    """Nothing of the turn is in it, and the next one finds all as it was."""
    with closing(SqliteConversations(path, 10, wait_s=0.05)) as kept:
        kept.extend("a", turn("1"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(ConversationError, match=r"cannot be written \(database is locked\)"):
                kept.extend("a", turn("2"))
            assert questions(kept, "a") == ["1"]
        kept.extend("a", turn("3"))
        assert questions(kept, "a") == ["1", "3"]


def test_a_full_disk_costs_the_turn_that_did_not_fit_and_no_other(path: Path) -> None:
    """Nor half of it: the file is as it was, and goes on when there is room."""
    with closing(SqliteConversations(path, 10)) as kept:
        kept.extend("a", turn("1"))
        size = max(file.stat().st_size for file in path.parent.iterdir())
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The kernel refuses whatever would make a file of ours larger than this, as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, hard))
        try:
            with pytest.raises(ConversationError, match=r"cannot be written \(.+\); see that .* has space left"):
                kept.extend("a", turn("x" * 500_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert questions(kept, "a") == ["1"]
        kept.extend("a", turn("2"))
    with closing(SqliteConversations(path, 10)) as kept:
        assert questions(kept, "a") == ["1", "2"]


def test_a_damaged_file_is_told(path: Path) -> None:
    """Whoever asks for a conversation that cannot be read is not answered as if there had been none."""
    with closing(SqliteConversations(path, 10)) as kept:
        for number in range(50):
            kept.extend("a", turn(f"{number}" * 500))
    content = bytearray(path.read_bytes())
    content[4096 * 4 :] = b"\xff" * len(content[4096 * 4 :])
    path.write_bytes(content)
    with closing(SqliteConversations(path, 10)) as kept, pytest.raises(ConversationError, match="cannot be read"):
        kept.history("a")


def test_what_somebody_wrote_into_it_that_is_no_message_is_told(path: Path) -> None:
    """It is a plain database, and people edit those."""
    with closing(SqliteConversations(path, 10)) as kept:
        kept.extend("a", turn("1"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("UPDATE message SET message = 'hello'")
        with pytest.raises(ConversationError, match="cannot be read"):
            kept.history("a")


def test_after_the_end_it_says_so(path: Path) -> None:
    """And closing again is no fault."""
    kept = SqliteConversations(path, 10)
    kept.close()
    kept.close()
    with pytest.raises(ConversationError, match="closed database"):
        kept.history("a")
