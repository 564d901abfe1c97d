"""The recorder: writes the readings that it is handed into files that stay within a bound.

Owns the files' names, when they are written and which are deleted; the form of a line is in `columns`. Knows no
sensors: whoever has readings hands them in.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path

from scaler.private_files import private_folder
from scaler.readings import Reading
from scaler.recordings.columns import Machine, completed, header, machine_of, row

log = logging.getLogger(__name__)

SUFFIX = ".csv.gz"
FLUSH_S = 120.0
"""Readings are written together, after so many seconds: as much is lost when the power fails."""
CLOCK_STEP_S = 2.0
"""When the wall clock has moved by more than this against the monotonic one, a new file is begun."""
PARTS = 16
"""A file is closed when it has this part of the bound, so that the oldest can go in small steps."""
DAY_S = 86_400.0
NAME = re.compile(r"\d{8}T\d{6}Z-\d{4,}\.csv\.gz")
"""What else lies in the folder is left alone."""


class Recorder:
    """Keeps readings in a folder, at most ``max_days`` old and ``max_mib`` large all together.

    Each recorder writes files of its own, so two of them on one folder damage nothing. What both recorded is read once,
    from the file that was begun first: also what it took for our own. Safe to use from many threads.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_days: float = 31.0,
        max_mib: float = 64.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is created before the first readings are written, ``FLUSH_S`` after the first came."""
        self.folder = folder
        self.taken = 0
        """How many readings were handed in."""
        self._max_s, self._max_bytes = max_days * DAY_S, int(max_mib * 1024**2)
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._first_at_s = 0.0
        self._file: Path | None = None
        self._machine: Machine | None = None
        self._wall_less_at_s = 0.0
        self._day = 0
        self._failed = False
        self._own: set[Path] = set()
        self._began_wall_s = time.time()

    def take(self, reading: Reading) -> None:
        """Record one reading; those without memory or time are left out.

        A disk that is full is logged once, and what could not be written is a gap.
        """
        if reading.memory is None or not isfinite(reading.at_s):
            return
        wall_s = self._wall_clock() if reading.wall_s is None else reading.wall_s
        with self._lock:
            machine = machine_of(reading)
            offset, day = wall_s - reading.at_s, int(wall_s // DAY_S)
            # A sensor that misses once must not begin a new file.
            if self._machine is not None and reading.missing:
                machine = completed(machine, self._machine)
            if machine != self._machine or abs(offset - self._wall_less_at_s) > CLOCK_STEP_S or day != self._day:
                self._flush()
                self._file, self._machine, self._wall_less_at_s, self._day = None, machine, offset, day
            if not self._lines:
                self._first_at_s = reading.at_s
            self._lines.append(row(reading, machine))
            self.taken += 1
            if not 0 <= reading.at_s - self._first_at_s < FLUSH_S:
                self._flush()

    def close(self) -> None:
        """Write what is still held. May be used on; readings after it begin a new file."""
        with self._lock:
            self._flush()
            self._file = self._machine = None

    def another(self) -> Path | None:
        """A file that another recorder has written into the folder since this one began, if any."""
        for path, _ in files_of(self.folder):
            # It may be deleted meanwhile. By the files' own times, so not by a clock that was handed in.
            with suppress(FileNotFoundError):
                if path not in self._own and path.stat().st_mtime > self._began_wall_s:
                    return path
        return None

    @property
    def size_bytes(self) -> int:
        """What the folder's recordings take on disk."""
        return sum(size for _, size in files_of(self.folder))

    def _flush(self) -> None:
        if not self._lines or self._machine is None:
            return
        lines, self._lines = self._lines, []
        try:
            self._append("".join(lines), self._machine)
            self._prune()
        except OSError as error:
            # Serving must go on. What is in the file may end in the middle, so the next flush begins a new one.
            self._file = self._machine = None
            if not self._failed:
                log.error("readings are not recorded: %s: %s; free some space, or mend the folder", self.folder, error)
            self._failed = True
        else:
            if self._failed:
                log.warning("readings are recorded again in %s; what came meanwhile is a gap", self.folder)
            self._failed = False

    def _append(self, rows: str, machine: Machine) -> None:
        """Append one gzip member, complete in itself: what was written before stays readable whatever happens."""
        # A person, or another recorder's bound, may have deleted the file meanwhile.
        if self._file is None or not self._file.exists():
            private_folder(self.folder)
            self._file = self._new_file()
            rows = header(machine, self._first_at_s + self._wall_less_at_s, self._first_at_s) + rows
        member = gzip.compress(rows.encode(), 9, mtime=0)
        # Never created here: a file without its first lines would make the whole folder unreadable.
        with open(self._file, "ab", opener=lambda path, flags: os.open(path, flags & ~os.O_CREAT)) as file:
            file.write(member)
            size = file.tell()
        if size > self._max_bytes / PARTS:
            self._file = self._machine = None

    def _new_file(self) -> Path:
        began = f"{datetime.fromtimestamp(self._first_at_s + self._wall_less_at_s, UTC):%Y%m%dT%H%M%SZ}"
        number, files = 0, files_of(self.folder)
        # Names sort in the order of recording, also when the clock was set back, and within the same second.
        if files and (newest := files[-1][0].name) >= began:
            began, number = newest[:16], int(newest[17:21]) + 1
        while True:
            path = self.folder / f"{began}-{number:04d}{SUFFIX}"
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                number += 1
            else:
                self._own.add(path)
                return path

    def _prune(self) -> None:
        """Delete the oldest files until the rest is within the bounds; never the one that is written."""
        files = files_of(self.folder)
        total, now = sum(size for _, size in files), self._wall_clock()
        for path, size in files:
            if path == self._file:
                continue
            if total <= self._max_bytes and now - began_s(path) <= self._max_s:
                break
            path.unlink(missing_ok=True)
            total -= size


def files_of(folder: Path) -> list[tuple[Path, int]]:
    """A folder's recorded files with their sizes in bytes, oldest first."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        # Another recorder may delete one meanwhile; and a name that is no time, no recorder gave.
        with suppress(FileNotFoundError, ValueError):
            if NAME.fullmatch(path.name) and began_s(path) >= 0:
                found.append((path, path.stat().st_size))
    return sorted(found)


def began_s(path: Path) -> float:
    """When a recorded file was begun, in seconds since the epoch, from its name."""
    return datetime.strptime(path.name[:16], "%Y%m%dT%H%M%S%z").timestamp()
