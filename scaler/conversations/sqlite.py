"""Conversations in a SQLite file: they outlive the program, however it ends.

Owns the file and its form; knows nothing of who speaks. A turn is one transaction, so that it is in the file whole or
not at all. The file is readable by its owner only, and may be open in several programs at once.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from scaler.conversations.protocol import Said
from scaler.errors import ConversationError
from scaler.private_files import private_folder

log = logging.getLogger(__name__)

WAIT_S = 2.0
"""For so many seconds another program may hold the file before it counts as locked."""
FORMAT = 1
"""The form of the tables below, as the file's ``user_version``; a file of a later one is left alone."""
APPLICATION = 0x5343414C
"""``SCAL``, as the file's ``application_id``: tells our files from those of other programs."""

TABLES = """
CREATE TABLE conversation (
    id TEXT PRIMARY KEY,
    latest INTEGER NOT NULL UNIQUE  -- the number of its last message: the order in which they were continued
);
CREATE TABLE message (
    number INTEGER PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversation ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    at TEXT NOT NULL,      -- ISO 8601, with its zone
    levels TEXT NOT NULL,  -- JSON: the names of the levels that made it
    message TEXT NOT NULL  -- JSON, as OpenAI has it
);
CREATE INDEX message_of_conversation ON message (conversation, number);
"""


class SqliteConversations:
    """Keeps conversations in a file; fulfils `Conversations`."""

    def __init__(self, path: Path, keep: int, *, wait_s: float = WAIT_S) -> None:
        """``keep``: how many conversations are kept at the most. ``wait_s``: for how long a locked file is waited for.

        Raises ConversationError when the file cannot be made, cannot be written, or is something else.
        """
        self._path, self._keep = path, keep
        self._lock = threading.Lock()
        self._connection = self._opened(wait_s)

    def history(self, conversation_id: str) -> tuple[Said, ...]:
        """What was said so far, oldest first; empty for a conversation that is not known. Raises ConversationError."""
        query = "SELECT message, at, levels FROM message WHERE conversation = CAST(? AS TEXT) ORDER BY number"
        with self._lock, self._failing("read"):
            rows = self._connection.execute(query, (_bytes(conversation_id),)).fetchall()
            return tuple(
                Said(json.loads(_text(message)), datetime.fromisoformat(_text(at)), tuple(json.loads(_text(levels))))
                for message, at, levels in rows
            )

    def extend(self, conversation_id: str, turn: Sequence[Said]) -> None:
        """Append a turn: all of it or, when this raises ConversationError, nothing."""
        if not turn:
            return
        rows = [
            (_bytes(conversation_id), said.at.isoformat(), _json(list(said.levels)), _json(dict(said.message)))
            for said in turn
        ]
        with self._transaction() as connection:
            for row in rows:
                number = connection.execute(
                    "INSERT INTO message (conversation, at, levels, message)"
                    " VALUES (CAST(? AS TEXT), ?, CAST(? AS TEXT), CAST(? AS TEXT))",
                    row,
                ).lastrowid
            connection.execute(
                "INSERT INTO conversation VALUES (CAST(? AS TEXT), ?)"
                " ON CONFLICT (id) DO UPDATE SET latest = excluded.latest",
                (_bytes(conversation_id), number),
            )
            connection.execute(
                "DELETE FROM conversation WHERE latest IN"
                " (SELECT latest FROM conversation ORDER BY latest DESC LIMIT -1 OFFSET ?)",
                (self._keep,),
            )

    def forget(self, conversation_id: str) -> None:
        """Drop a conversation; does nothing when it is not known. Raises ConversationError."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM conversation WHERE id = CAST(? AS TEXT)", (_bytes(conversation_id),))

    def known(self) -> tuple[str, ...]:
        """The ids of all conversations, the one continued last first. Raises ConversationError."""
        with self._lock, self._failing("read"):
            rows = self._connection.execute("SELECT id FROM conversation ORDER BY latest DESC").fetchall()
        return tuple(_text(identity) for (identity,) in rows)

    def close(self) -> None:
        """Close the file. The last program to close it leaves the one file and none beside it."""
        with self._lock:
            self._connection.close()

    # ---------------------------------------------------------------- the file

    def _opened(self, wait_s: float) -> sqlite3.Connection:
        with self._failing("opened"):
            path = Path(os.path.realpath(self._path))
            private_folder(path.parent)
            # Made here, because SQLite would let everybody read it; what it makes beside the file has the file's mode.
            # Never opened here when it exists: closing it would drop the locks of others in this program.
            try:
                return self._connected(path, wait_s)
            except sqlite3.DatabaseError as error:
                if not _damaged(error, path):
                    raise
                aside = _put_aside(path)
                log.warning(
                    "%s is damaged (%s), as after a power cut: it is now %s, and conversations begin anew; `sqlite3 %s "
                    ".recover` may find some of the old ones",
                    *(self._path, error, aside, aside),
                )
            return self._connected(path, wait_s)

    def _connected(self, path: Path, wait_s: float) -> sqlite3.Connection:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            if not path.is_file():
                raise OSError("it is no regular file") from None
        # Whoever closes it last takes the log away: where it is still there, somebody was killed, or has it open.
        unclean = _beside(path, "-wal").exists()
        # One connection for all threads, each call under our lock, each transaction begun and ended by us.
        connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
            if unclean:
                _check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.text_factory = bytes
        connection.execute("PRAGMA foreign_keys = ON")
        # What was forgotten is overwritten, not only unlinked.
        connection.execute("PRAGMA secure_delete = ON")
        # One program at a time makes the tables.
        with _transaction(connection):
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if (application, version, tables) == (0, 0, 0):
                for statement in TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
            elif application != APPLICATION:
                raise ConversationError(
                    f"{self._path}: is another program's database; set conversations.path to a file of its own"
                )
            elif version != FORMAT:
                raise ConversationError(
                    f"{self._path}: was written by a newer scaler (its format is {version}, this one's {FORMAT}); "
                    "update scaler, or set conversations.path to another file"
                )
            # Each time, for it tells now whether the file can be written.
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        # A write-ahead log: who reads the file, such as a backup, never keeps a turn from being written, and a turn
        # costs one fsync in place of three. Where a file system cannot have one, SQLite stays with what it can.
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # SQLite does not wait here. Another program that has just made the file does the same at this moment.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
        connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._failing("written"), _transaction(self._connection):
            yield self._connection

    @contextmanager
    def _failing(self, done: str) -> Iterator[None]:
        """Make what SQLite and the operating system say an error of ours; ``done`` is what could not be."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ConversationError(
                f"{self._path}: cannot be {done} ({cause}); see that it is scaler's, that its folder can be written to "
                "and has space left, and that nobody holds it, or set conversations.path to another (null: in memory)"
            ) from error


def _check(connection: sqlite3.Connection) -> None:
    """Raise DatabaseError where a page is damaged: it would be found in the middle of a conversation otherwise."""
    (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if (fault := _text(said)) != "ok":
        damaged = sqlite3.DatabaseError(fault)
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged


def _damaged(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Whether this is a file of ours with which nothing can be done any more."""
    with open(path, "rb") as file:
        head = file.read(100)
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_CORRUPT:
            return head[68:72] == APPLICATION.to_bytes(4, "big")
        case sqlite3.SQLITE_NOTADB:
            # What a power cut leaves of a file whose first page was never written: nobody's.
            return not any(head)
    return False


def _put_aside(path: Path) -> Path:
    """Give the file, and what lies beside it, a name with the time in it; nothing is deleted."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    for ending in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(_beside(path, ending), _beside(aside, ending))
    return aside


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything in it, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Some failures, a full disk among them, have ended it already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


# Python's text may have halves of characters in it, which SQLite's may not; as bytes they come back as they were.


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")


def _json(value: object) -> bytes:
    return _bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
