"""Keeps what a scaler remembers in a file, and has the next one know it, however this one ends.

Owns the file and when it is written; what is remembered, and what it means later, is in `remembered`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from scaler.events import DecisionMade, ModelDied, PinChanged, Reconfigured, SwitchDone, SwitchFailed
from scaler.file_lock import locked, unlocked
from scaler.level_settings import LevelSettings
from scaler.levels import Ladder
from scaler.private_files import private_folder
from scaler.proactive import Event, ProactiveScaler
from scaler.remembered import Remembered

log = logging.getLogger(__name__)

VERSION = 1
"""The form of the file."""
EVERY_S = 120.0
"""What is learned in small steps, such as footprints, is written so often; what happens is written at once."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Source: https://docs.kernel.org/admin-guide/sysctl/kernel.html#random."""
HAPPENINGS = (DecisionMade, SwitchDone, SwitchFailed, ModelDied, PinChanged, Reconfigured)

_REMEMBERED = TypeAdapter(Remembered)


class Remembering:
    """Has a scaler know what the one before it learned, and writes down what it learns itself.

    One scaler has the file at a time: a second one says so, and remembers nothing.
    """

    def __init__(self, path: Path, scaler: ProactiveScaler, marks: Mapping[str, str]) -> None:
        """``marks`` as `marks` makes them. Nothing is read or written before `begin`."""
        self._path = Path(os.path.realpath(path))
        self._scaler, self._marks, self._boot = scaler, marks, boot()
        self._happened = threading.Event()
        self._ending = False
        self._failed = False
        self._kept: Remembered | None = None
        self._lock: int | None = None
        self._thread: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def begin(self) -> Remembered | None:
        """Have the scaler know what the file says, and keep it from now on; to be called before it sees a reading.

        Returns what was remembered. A file that cannot be read, or be kept, is one warning: nothing is remembered.
        """
        try:
            private_folder(self._path.parent)
            self._lock = locked(self._path.with_name(f"{self._path.name}.lock"))
            remembered = self._read() if self._lock is not None else None
        except OSError as error:
            log.warning("nothing is remembered over a restart: %s: %s", self._path, error.strerror or error)
            self._unlock()
            return None
        if self._lock is None:
            log.warning(
                "nothing is remembered over a restart: another scaler keeps %s; set remembered.path to another file",
                self._path,
            )
            return None
        if remembered is not None:
            self._scaler.recall(remembered, self._marks, self._boot)
        self._unsubscribe = self._scaler.subscribe(self._take)
        # At once: from here on an end that nobody asked for must be told from one that was.
        self._happened.set()
        # In a thread: to force it onto a busy disk takes longer than a reading, or an answer, may wait.
        self._thread = threading.Thread(target=self._work, name="scaler-remembering", daemon=True)
        self._thread.start()
        return remembered

    def change_marks(self, marks: Mapping[str, str]) -> None:
        """Know the levels by these marks; to be called before the scaler has another ladder."""
        self._marks = {**self._marks, **marks}

    def close(self) -> None:
        """Write down that the scaler was asked to end, and what it knows. Safe to call twice."""
        if self._thread is None:
            return
        self._unsubscribe()
        self._ending = True
        self._happened.set()
        self._thread.join()
        self._thread = None
        self._keep(ended=True)
        self._unlock()

    def _take(self, event: Event) -> None:
        if isinstance(event, HAPPENINGS):
            self._happened.set()

    def _work(self) -> None:
        while True:
            self._happened.wait(EVERY_S)
            self._happened.clear()
            if self._ending:
                return
            self._keep(ended=False)

    def _keep(self, *, ended: bool) -> None:
        now = self._scaler.remember(self._marks, self._boot, ended=ended)
        if self._kept is not None and replace(now, at_s=self._kept.at_s) == self._kept:
            return
        try:
            text = json.dumps({"version": VERSION, **asdict(now)}, allow_nan=False, ensure_ascii=False)
            # Why a level failed may name a file whose name is no text: the next scaler could not read that.
            _write(self._path, text.encode(errors="replace"))
        except OSError as error:
            # Serving goes on; it is tried again the next time.
            if not self._failed:
                log.error("nothing new is remembered over a restart: %s: %s", self._path, error.strerror or error)
            self._failed = True
            return
        if self._failed:
            log.warning("what is learned is remembered again, in %s", self._path)
        self._kept, self._failed = now, False

    def _read(self) -> Remembered | None:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return parsed(text)
        except ValueError as error:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            os.replace(self._path, aside)
            log.warning("what was remembered cannot be read (%s): begun anew, the file is now %s", error, aside)
            return None

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            unlocked(lock)


def parsed(text: bytes) -> Remembered:
    """What a file says. Raises ValueError with the first fault, for anything that this scaler did not write."""
    told = from_json(text, allow_inf_nan=False)
    version = told.pop("version", None) if isinstance(told, dict) else None
    if version != VERSION:
        raise ValueError(f"its version is {version!r}; this scaler writes {VERSION}")
    try:
        return _REMEMBERED.validate_python(told)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error


def marks(ladder: Ladder, settings: Sequence[LevelSettings]) -> dict[str, str]:
    """A mark of each level's model and settings, and of those that stand by beside it: learned of these, true of these.

    A model's file counts by its size and time. What is left at its default does not count, so that a scaler with new
    settings forgets nothing.
    """
    found: dict[str, str] = {}
    beside: list[object] = []
    for level, one in zip(ladder, settings, strict=True):
        facts: list[object] = [
            type(one).__name__,
            one.model_dump(mode="json", exclude_defaults=True),
            dict(level.footprint),
        ]
        model = getattr(one, "model", None)
        if isinstance(model, Path):
            with suppress(OSError):
                stat = model.stat()
                facts += [stat.st_size, stat.st_mtime_ns]
        found[level.name] = hashlib.sha256(json.dumps([*beside, facts], sort_keys=True).encode()).hexdigest()
        if level.standby:
            beside.append(facts)
    return found


def boot() -> str | None:
    """Which start of this machine this is; None where the system does not tell."""
    try:
        return BOOT_ID.read_text("ascii").strip() or None
    except OSError:
        return None


def _write(path: Path, text: bytes) -> None:
    """Have the file say this or what it said before, whatever happens meanwhile, a power cut too."""
    new = path.with_name(f"{path.name}.new")
    with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
