"""The journal: every decision with its context and every outcome, as JSON lines in files that rotate.

Owns the file and its form; knows nothing of how decisions come about. The files are readable by their
owner only.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any, NamedTuple

from scaler.errors import ScalerError
from scaler.events import (
    Advised,
    AnswerHandedOver,
    BudgetLowered,
    BudgetRestored,
    DecisionMade,
    Drained,
    EmbeddingsGone,
    EmbeddingsLoaded,
    Hurried,
    ModelDied,
    PersonTold,
    PinChanged,
    Reconfigured,
    StandbyLost,
    SwitchDone,
    SwitchFailed,
    TurnNotRemembered,
    UnloadFailed,
)
from scaler.file_lock import locked, unlocked
from scaler.private_files import private_folder

log = logging.getLogger(__name__)

DAEMON = "scaler run"
"""The daemon's name. Records of before writers were named are the daemon's, too."""


class Writer(NamedTuple):
    """Who decided what a record tells: a program by its name, in one of its lives."""

    program: str
    pid: int


def this_program() -> Writer:
    """This process, named as syslog names one: by its script, without folder and arguments, which may be private."""
    script = Path(sys.argv[0] if sys.argv else "")
    name = script.parent.name if script.name == "__main__.py" else script.name
    # Such as of `python -c`, and of a Python that a person types into.
    scripted = name and not name.startswith("-")
    return Writer(name if scripted else Path(sys.executable or "python").name, os.getpid())


class JournalError(ScalerError):
    """The journal could not be written or read: names the file and the cause."""


class _Lines(RotatingFileHandler):
    """A rotating file that raises, where the standard library's would print to stderr and go on."""

    def _open(self) -> IO[str]:  # type: ignore[override]
        private_folder(Path(self.baseFilename).parent)
        _mend(Path(self.baseFilename))
        return open(
            self.baseFilename, self.mode, encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
        )

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802  # the standard library's name
        self._follow()
        return bool(super().shouldRollover(record))

    def _follow(self) -> None:
        """Let go of a file that has another name now: another program on the same journal moved it away, and what were
        written on there would soon be in the oldest, and deleted.
        """
        if self.stream is None:
            return
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self.stream.fileno()), os.stat(self.baseFilename)):
                return
        stream, self.stream = self.stream, None
        stream.close()

    def doRollover(self) -> None:  # noqa: N802  # the standard library's name
        try:
            lock = locked(Path(f"{self.baseFilename}.lock"), wait=True)
        except OSError:
            # Some file systems have no locks, and a full one may have no room for the file: better rotated without one.
            lock = None
        try:
            self._follow()
            # Where there is less than we saw, another program has begun the only file anew meanwhile.
            if self.stream is not None and os.fstat(self.stream.fileno()).st_size >= self.stream.tell():
                self.stream.close()
                self.stream = None
                self._rotate()
        finally:
            if lock is not None:
                unlocked(lock)

    def _rotate(self) -> None:
        if self.backupCount == 0:
            # With no file to move it to, the standard library would let this one grow for ever.
            os.truncate(self.baseFilename, 0)
        try:
            os.rename(self.baseFilename, self.baseFilename)
        except PermissionError:
            # Windows moves no file that another program has open. Until it closes it, this one grows.
            return
        super().doRollover()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the standard library's name
        """Raise, and leave no half of the record: what another program writes next would run into it."""
        stream, self.stream = self.stream, None
        with suppress(OSError):
            if stream is not None:
                stream.close()
        with suppress(OSError):
            whole, line = _unfinished(Path(self.baseFilename))
            if line:
                os.truncate(self.baseFilename, whole)
        raise


class Journal:
    """Appends records; safe to use from many threads."""

    def __init__(
        self, path: Path, *, max_bytes: int = 5 * 1024 * 1024, files: int = 5, writer: Writer | None = None
    ) -> None:
        """``max_bytes`` a file, ``files`` files in all. Nothing is created before the first record.

        ``writer`` is added to each record: programs may share a journal. Without one, none is named.
        """
        self.path = path
        self._writer = writer
        self._max_bytes, self._files = max_bytes, files
        self._lines: _Lines | None = None
        self._lock = threading.Lock()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it; figures that are no number as null. Raises JournalError if it cannot."""
        if self._writer is not None:
            record = {**record, **self._writer._asdict()}
        try:
            line = _json(record)
        except ValueError:
            # Of a reading that was handed in. JSON has no NaN; to look for one every time takes as long as to write.
            line = _json(_finite(record))
        try:
            with self._lock:
                if self._lines is None:
                    self._lines = _Lines(
                        self.path, maxBytes=self._max_bytes, backupCount=self._files - 1, encoding="utf-8"
                    )
                self._lines.handle(logging.makeLogRecord({"msg": line}))
        except OSError as error:
            raise self._failed(error) from error

    def resize(self, *, max_bytes: int, files: int) -> None:
        """Keep so many files of this size from the next record on; what there is too much of is left where it is."""
        with self._lock:
            self._max_bytes, self._files = max_bytes, files
            if self._lines is not None:
                self._lines.maxBytes, self._lines.backupCount = max_bytes, files - 1

    def close(self) -> None:
        """Close the file; a later write opens it again. Raises JournalError when the last records cannot be kept."""
        with self._lock:
            lines, self._lines = self._lines, None
            if lines is None:
                return
            try:
                lines.close()
            except OSError as error:
                raise self._failed(error) from error

    def _failed(self, error: OSError) -> JournalError:
        return JournalError(f"{self.path}: {error.strerror or error}; free some space or set journal.path")


def _json(record: object) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    """The same with None in the place of each number that is none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _mend(path: Path) -> None:
    """End a last line that a power cut left without its end, or take it away, so that no record runs into it."""
    whole, line = _unfinished(path)
    if not line:
        return
    try:
        json.loads(line)
    except ValueError:
        os.truncate(path, whole)
        log.warning("%s: its last record was unfinished, as after a power cut; its %d bytes are gone", path, len(line))
    else:
        with open(path, "ab") as file:
            file.write(b"\n")


def _unfinished(path: Path) -> tuple[int, bytes]:
    """Where the last line begins that has no end yet, and what there is of it."""
    text = path.read_bytes() if path.is_file() else b""
    whole = text.rfind(b"\n") + 1
    return whole, text[whole:]


def read(path: Path, *, files: int = 5) -> Iterator[dict[str, Any]]:
    """The records, oldest first, from the rotated files and the present one.

    A last line that a power cut left unfinished is passed over. Raises JournalError for any other line
    that is not a JSON object, and when a file cannot be read.
    """
    for number in range(files - 1, -1, -1):
        part = path if number == 0 else path.with_name(f"{path.name}.{number}")
        try:
            text = part.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise JournalError(f"{part}: {error.strerror or error}") from error
        lines = text.splitlines(keepends=True)
        for row, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                if row == len(lines) and not line.endswith(b"\n"):
                    continue
                raise JournalError(f"{part}:{row}: not JSON ({error}); expected one object a line") from error
            if not isinstance(record, dict):
                raise JournalError(f"{part}:{row}: {type(record).__name__}; expected one JSON object a line")
            yield record


KINDS = {
    DecisionMade: "decision",
    Hurried: "hurried",
    SwitchDone: "switched",
    SwitchFailed: "switch_failed",
    ModelDied: "died",
    StandbyLost: "standby_lost",
    UnloadFailed: "unload_failed",
    PinChanged: "pin",
    BudgetLowered: "budget_lowered",
    BudgetRestored: "budget_restored",
    Drained: "drained",
    AnswerHandedOver: "handed_over",
    TurnNotRemembered: "not_remembered",
    Advised: "advised",
    EmbeddingsLoaded: "embeddings_loaded",
    EmbeddingsGone: "embeddings_gone",
    PersonTold: "told",
    Reconfigured: "reconfigured",
}


def record_of(event: object, wall_s: float) -> dict[str, Any] | None:
    """An event as a record of the journal; None for what is not kept (readings, sensors)."""
    if isinstance(event, DecisionMade):
        record = asdict(event.switch)
        record |= record.pop("decision")
        wall_s = event.wall_s
    elif type(event) in KINDS:
        record = asdict(event)  # type: ignore[call-overload]
    else:
        return None
    return {
        "at": datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds"),
        "event": KINDS[type(event)],
        **record,
    }
