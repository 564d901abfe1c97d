"""A recording read back: one unbroken row of readings out of many files, whatever happened to them.

Owns what a gap, a set clock, a torn file and two recorders at once mean for time; the form of a line is in `columns`.
A reading is never made up: what cannot be read is left out, and a note says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from scaler.errors import RecordingError
from scaler.levels import GIB
from scaler.readings import Memory, Reading
from scaler.recordings.columns import COLUMNS, MARK, VERSION, parser
from scaler.recordings.recorder import CLOCK_STEP_S, began_s, files_of

CHUNK = 1 << 16
GAP_S = 60.0
"""How long a gap is taken to be when the clocks do not tell: longer than any evidence outlives."""
SAME_RUN_S = 30.0
"""When the wall clock jumped but the monotonic one moved by less than this, the clock was set."""


class Recording:
    """The readings of a folder or of one file, in order; iterate over it as often as needed.

    ``at_s`` ascends strictly through all files. ``wall_s`` is as it was recorded. A file with the columns ``t,mem``
    (seconds, and the share of memory that others use) is read as a machine with ``total_bytes`` of memory; it has no
    ``wall_s``, and all of it is read.
    """

    def __init__(self, source: Path, *, since_wall_s: float | None = None, total_bytes: int = 16 * GIB) -> None:
        """Leave out what was recorded before ``since_wall_s``. Raises RecordingError when there is nothing to read."""
        self.source = source
        self.notes: list[str] = []
        """What was left out and where, in sentences; filled while iterating."""
        self.since_wall_s = since_wall_s
        self._since_wall_s = float("-inf") if since_wall_s is None else since_wall_s
        self.total_bytes = total_bytes
        if source.is_dir():
            files = files_of(source)
            # A file may reach into the time that is asked for as long as the next one has not begun before it.
            first = max((i for i, (path, _) in enumerate(files) if began_s(path) <= self._since_wall_s), default=0)
            self._files = files[first:]
        elif source.is_file():
            self._files = [(source, source.stat().st_size)]
        else:
            raise RecordingError(f"{source}: there is no such recording; `scaler run` and `scaler record` make one")
        if not self._files:
            raise RecordingError(f"{source}: nothing is recorded here yet; `scaler run` and `scaler record` do that")
        self.size_bytes = sum(size for _, size in self._files)
        self._read_bytes = 0

    def progress(self) -> float:
        """The share of the bytes that was read by now, 0..1."""
        return min(1.0, self._read_bytes / self.size_bytes) if self.size_bytes else 1.0

    def __iter__(self) -> Iterator[Reading]:
        """Raises RecordingError for a file that is none of ours, or a line that cannot be read."""
        self.notes.clear()
        self._read_bytes = 0
        last: Reading | None = None
        shift_s, last_offset_s = 0.0, 0.0
        for path, _ in self._files:
            doubles = 0
            begun = False
            for reading in self._readings(path):
                if reading.wall_s is None:
                    # A public trace has no dates, and is one file.
                    yield reading
                    continue
                if reading.wall_s < self._since_wall_s:
                    continue
                if last is not None:
                    if not begun:
                        offset_s = reading.wall_s - reading.at_s
                        shift_s += self._gap(path, last, reading, shift_s, offset_s - last_offset_s)
                    if reading.at_s + shift_s <= last.at_s:
                        doubles += 1
                        begun = True
                        continue
                begun = True
                last_offset_s = reading.wall_s - reading.at_s
                reading.at_s += shift_s
                last = reading
                yield reading
            if doubles:
                self.notes.append(f"{path.name}: {doubles} readings are no later than those before and were left out")

    def _gap(self, path: Path, last: Reading, now: Reading, shift_s: float, stepped_s: float) -> float:
        """By how much more a new file's monotonic times must be moved to follow on the last reading."""
        assert last.wall_s is not None
        assert now.wall_s is not None
        gap_s = now.at_s + shift_s - last.at_s
        if abs(stepped_s) <= CLOCK_STEP_S:
            return 0.0
        if 0 < gap_s <= SAME_RUN_S:
            self.notes.append(f"{path.name}: the clock was set by {stepped_s:+.0f} s, or the machine slept")
            return 0.0
        away_s = now.wall_s - last.wall_s
        if away_s <= 0:
            self.notes.append(f"{path.name}: the clock was set back; how long the gap before it is, is not known")
            away_s = GAP_S
        return away_s - gap_s

    def _readings(self, path: Path) -> Iterator[Reading]:
        """One file's readings, with the file's own monotonic times."""
        lines = self._lines(path)
        first = next(lines, None)
        if first is None:
            return
        number = 1
        if first.startswith(MARK):
            facts = _facts(path, first)
            names = next(lines, None)
            if names is None:
                return
            number = 2
            try:
                parse = parser(facts, names.split(","))
            except KeyError as error:
                raise RecordingError(
                    f"{path}:2: there is no column or figure {error}; expected {','.join(COLUMNS)}"
                ) from None
            offset_s, unread = facts["wall_s"] - facts["at_s"], 0
            for line in lines:
                number += 1
                try:
                    reading = parse(line.split(","), offset_s)
                except ValueError as error:
                    raise RecordingError(
                        f"{path}:{number}: {line[:80]!r} cannot be read ({error}); expected a number in each of {names}"
                    ) from None
                if reading is None:
                    unread += 1
                else:
                    yield reading
            if unread:
                self.notes.append(f"{path.name}: {unread} lines without memory that can be, left out")
            return
        columns = first.split(",")
        if "t" not in columns or "mem" not in columns:
            raise RecordingError(
                f"{path}:1: {first[:80]!r} is no recording; expected what `scaler record` writes, or the columns t,mem"
            )
        t, mem = columns.index("t"), columns.index("mem")
        last_s, impossible = float("-inf"), 0
        for number, line in enumerate(lines, 2):
            cells = line.split(",")
            try:
                at_s, share = float(cells[t]), float(cells[mem])
                if not isfinite(at_s):
                    raise ValueError
            except (ValueError, IndexError):
                raise RecordingError(f"{path}:{number}: {line[:80]!r} cannot be read; expected numbers") from None
            if at_s <= last_s:
                raise RecordingError(
                    f"{path}:{number}: time {at_s:g} is not after {last_s:g}; expected ascending times"
                )
            last_s = at_s
            if 0 <= share <= 1:
                free = int(self.total_bytes * (1 - share))
                yield Reading(at_s, None, Memory(self.total_bytes, free), 0)
            else:
                impossible += 1
        if impossible:
            self.notes.append(f"{path.name}: {impossible} lines whose mem is no share of 0 to 1, left out")

    def _lines(self, path: Path) -> Iterator[str]:
        """A file's whole lines; the last one is left out if it has no end, and a torn file ends where it is torn."""
        rest = ""
        try:
            for text in self._texts(path):
                *whole, rest = (rest + text).split("\n")
                yield from (line.rstrip("\r") for line in whole)
        except OSError as error:
            raise RecordingError(f"{path}: cannot be read: {error}") from error
        if rest and not path.name.endswith(".gz"):
            yield rest

    def _texts(self, path: Path) -> Iterator[str]:
        packed = path.name.endswith(".gz")
        with open(path, "rb") as file:
            unpack = zlib.decompressobj(31)
            fresh = True
            while chunk := file.read(CHUNK):
                self._read_bytes += len(chunk)
                if not packed:
                    yield chunk.decode("ascii", "replace")
                    continue
                while chunk:
                    try:
                        text = unpack.decompress(chunk)
                    except zlib.error:
                        self.notes.append(f"{path.name}: damaged from byte {file.tell() - len(chunk)} on, left out")
                        return
                    fresh = False
                    yield text.decode("ascii", "replace")
                    chunk = unpack.unused_data
                    if unpack.eof:
                        unpack, fresh = zlib.decompressobj(31), True
            if packed and not fresh:
                self.notes.append(f"{path.name}: ends in the middle; what was written of its end was used")
                yield unpack.flush().decode("ascii", "replace")


def _facts(path: Path, line: str) -> dict[str, float]:
    """The first line's figures. Raises RecordingError for another version, or what is no number."""
    facts = {}
    for pair in line.removeprefix(MARK).split():
        key, _, value = pair.partition("=")
        try:
            facts[key] = float(value)
        except ValueError:
            raise RecordingError(f"{path}:1: {pair!r} cannot be read; expected a number") from None
    if facts.get("version") != VERSION:
        raise RecordingError(
            f"{path}:1: this is a recording of version {facts.get('version')}; this scaler reads version {VERSION}"
        )
    if lacking := {"wall_s", "at_s", "unit", "memory"} - facts.keys():
        raise RecordingError(f"{path}:1: {', '.join(sorted(lacking))} is missing; expected what `scaler record` writes")
    return facts
