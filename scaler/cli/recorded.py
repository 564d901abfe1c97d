"""What `scaler replay` and `scaler tune` are given: a recording, and the ladder and policy to play it with."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from scaler.cli.progress import bar, clear, watched
from scaler.errors import ConfigError, RecordingError
from scaler.levels import GIB, Ladder
from scaler.policy import Policy
from scaler.readings import Reading
from scaler.words import span

if TYPE_CHECKING:
    from scaler.assembly import Parts
    from scaler.recordings import Recording

REDRAW_S = 0.2


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording with what plays it. ``resources`` are those that the ladder takes."""

    recording: Recording
    parts: Parts

    @property
    def ladder(self) -> Ladder:
        """The configuration's."""
        return self.parts.ladder

    @property
    def policy(self) -> Policy:
        """The tier's, with the configuration's overrides."""
        return self.parts.policy

    def readings(self, doing: str) -> Iterator[Reading]:
        """All of them, with a line on a terminal that tells how far it is.

        Raises RecordingError when none of them can be used.
        """
        resources = tuple(dict.fromkeys(r for level in self.ladder for r in level.footprint))
        lacking: dict[str, int] = {}
        count = usable = near = 0
        last_s = float("-inf")
        for reading in shown(self.recording, doing):
            count += 1
            missing = [resource for resource in resources if reading.usage(resource) is None]
            usable += not missing
            near += reading.at_s - last_s <= self.policy.stale_after_s
            last_s = reading.at_s
            for resource in missing:
                lacking[resource] = lacking.get(resource, 0) + 1
            yield reading
        if not usable:
            source = self.recording.source
            if not count:
                raise RecordingError(f"{source}: nothing was recorded in that time; give a longer --last, or none")
            raise RecordingError(
                f"{source}: none of its {count} readings has {' and '.join(lacking)}, which the ladder takes; "
                "expected a recording of a machine that has it"
            )
        if not near:
            raise RecordingError(
                f"{self.recording.source}: its {count} readings lie more than {self.policy.stale_after_s:g} s apart; "
                "expected one every second or so, since nothing is decided on older ones"
            )
        for resource, times in lacking.items():
            self.recording.notes.append(f"{times} of {count} readings lack {resource} and were passed over")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is played."""
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="a recording: a folder, a file of it, or a CSV with the columns t,mem; the configured folder if left out",
    )
    parser.add_argument("--last", metavar="TIME", help="only what was recorded since then: 90m, 12h, 7d ago")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")
    parser.add_argument(
        "--total-gib",
        type=float,
        metavar="GIB",
        help="the memory that the shares in a t,mem file are of; this machine's if left out",
    )


def recorded(args: argparse.Namespace) -> Recorded:
    """Find the recording, read the configuration. Raises ConfigError, RecordingError, LevelUnavailable."""
    from scaler.assembly import assemble
    from scaler.recordings import Recording

    since = None if args.last is None else time.time() - span("--last", args.last)
    total_gib = psutil.virtual_memory().total / GIB if args.total_gib is None else args.total_gib
    if not 0 < total_gib < 1e6:
        raise ConfigError(f"--total-gib: {total_gib:g} cannot be used; expected the size of a memory in GiB")
    parts = assemble(args.config)
    source = args.source or parts.settings.recording.path
    return Recorded(Recording(source, since_wall_s=since, total_bytes=int(total_gib * GIB)), parts)


def shown(recording: Recording, doing: str) -> Iterator[Reading]:
    """Pass readings on, and tell on a terminal how far it is."""
    terminal = watched()
    drawn_s = began_s = time.monotonic()
    for number, reading in enumerate(recording):
        if terminal and number % 1024 == 0 and time.monotonic() - drawn_s > REDRAW_S:
            drawn_s = time.monotonic()
            bar(doing, recording.progress(), drawn_s - began_s)
        yield reading
    clear()
