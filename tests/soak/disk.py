"""A disk that can be made full, and emptied again, under a process that writes to it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SIZE_MIB = 4
BLOCK = 4096


@dataclass
class Disk:
    """Where it is, how it is made full and emptied, and in words what it is."""

    path: Path
    fill: Callable[[], None]
    free: Callable[[], None]
    kind: str


@contextmanager
def small_disk(path: Path, limit_file_size: Callable[[int | None], None]) -> Iterator[Disk]:
    """A file system of its own where one may be mounted, else a limit for every file of the process.

    ``limit_file_size`` sets that limit, None the one at the beginning.
    """
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "scaler-soak", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        yield Disk(path, lambda: limit_file_size(0), lambda: limit_file_size(None), "a limit for files")
        return
    ballast = path / "ballast"
    try:
        yield Disk(path, lambda: _fill(ballast), lambda: ballast.unlink(missing_ok=True), "a tmpfs")
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _fill(ballast: Path) -> None:
    with open(ballast, "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(BLOCK))
