"""`scaler record`: keep this machine's readings without running a model, for `scaler replay` and `scaler tune`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scaler.cli import EXIT_NO, EXIT_OK, Command
from scaler.cli.daemon import daemon
from scaler.errors import ConfigError, RecordingError, ScalerError
from scaler.monitor import MonitorEvent, ReadingTaken, ResourceMonitor
from scaler.private_files import private_folder
from scaler.recordings import Recorder
from scaler.words import duration, gib, span

if TYPE_CHECKING:
    from scaler.settings import RecordingSettings

LOOK_EVERY_S = 10.0
"""So often it is looked whether another recorder has begun."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, metavar="DIR", help="record there instead of in the configured folder")
    parser.add_argument("--for", dest="length", metavar="TIME", help="end by itself: 10m, 8h, 7d; else at Ctrl-C")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="the time between readings; else as configured")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")


def _run(args: argparse.Namespace) -> int:
    from scaler.settings import load_settings

    length_s = None if args.length is None else span("--for", args.length)
    if args.every is not None and not 0.01 <= args.every <= 3600:
        raise ConfigError(f"--every: {args.every:g} cannot be used; expected 0.01 to 3600 seconds")
    settings = load_settings(args.config)
    folder, bounds = args.folder or settings.recording.path, settings.recording
    if args.folder is None and bounds.enabled and (url := _daemon(args)):
        print(f"the daemon at {url} records into {folder} already; nothing to do")
        return EXIT_NO
    try:
        private_folder(folder)
    except OSError as error:
        raise RecordingError(f"{folder}: cannot be made: {error.strerror or error}; choose another --folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RecordingError(f"{folder}: cannot be written to; choose another --folder")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    interval_s = settings.monitor.interval_s if args.every is None else args.every
    recorder = Recorder(folder, max_days=bounds.max_days, max_mib=bounds.max_mib)
    monitor = ResourceMonitor(interval_s=interval_s)
    monitor.subscribe(lambda event: keep(recorder, event))
    monitor.read_now()  # what is promised below has worked once
    print(f"recording into {folder}, a reading every {interval_s:g} s: memory, swap, processors and GPUs, in numbers")
    print(f"kept for {bounds.max_days:g} days, in at most {bounds.max_mib:g} MiB; Ctrl-C ends it", flush=True)
    began, looked_s = time.monotonic(), 0.0
    monitor.start()
    try:
        while not stop.wait(1.0 if length_s is None else max(0.0, min(1.0, began + length_s - time.monotonic()))):
            passed = time.monotonic() - began
            if sys.stderr.isatty():
                used = gib(recorder.size_bytes)
                print(f"\r{recorder.taken} readings in {duration(passed)}, {used} on disk ", end="", file=sys.stderr)
            if length_s is not None and passed >= length_s:
                break
            if passed - looked_s >= LOOK_EVERY_S:
                looked_s = passed
                if recorder.another():
                    # Both would be read as one, and to this one the daemon's model is what others use.
                    print(f"another recorder, such as a daemon, writes into {folder} now; this one ends")
                    break
    finally:
        monitor.stop()
        recorder.close()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"{recorder.taken} readings were recorded; the folder has {recorder.size_bytes / 1024:.1f} KiB now")
    return EXIT_OK


def _daemon(args: argparse.Namespace) -> str | None:
    """The address of the daemon that runs with this configuration, if one does."""
    running = daemon(argparse.Namespace(url=None, config=args.config))
    try:
        running.status()
    except ScalerError:
        # Nothing answers there, or something that is no daemon of ours.
        return None
    return running.url


class Recording:
    """Keeps a daemon's readings as its configuration says, and as it says later."""

    def __init__(self, settings: RecordingSettings) -> None:
        self._settings = settings
        self._recorder = _recorder(settings)

    def take(self, event: MonitorEvent) -> None:
        """Keep a monitor's reading, if readings are kept."""
        if self._recorder is not None:
            keep(self._recorder, event)

    def change(self, settings: RecordingSettings) -> None:
        """Keep them so from now on."""
        if settings != self._settings:
            before, self._settings, self._recorder = self._recorder, settings, _recorder(settings)
            if before is not None:
                before.close()

    def close(self) -> None:
        """Write what is still held."""
        if self._recorder is not None:
            self._recorder.close()


def _recorder(settings: RecordingSettings) -> Recorder | None:
    if not settings.enabled:
        return None
    return Recorder(settings.path, max_days=settings.max_days, max_mib=settings.max_mib)


def keep(recorder: Recorder, event: MonitorEvent) -> None:
    """Hand a monitor's readings to a recorder."""
    if isinstance(event, ReadingTaken):
        recorder.take(event.reading)


COMMAND = Command(
    "record",
    "keep this machine's readings without running a model, for replay and tune",
    _add_arguments,
    _run,
    yes="recorded",
    no="a daemon records already",
)
