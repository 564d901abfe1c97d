"""How the sensors read the kernel's text files.

Owns where they are and how their lines are parsed; knows nothing of what the figures mean.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scaler.errors import SensorFailed

PROC = Path("/proc") if sys.platform == "linux" else None
"""Where the kernel tells about itself; ``None`` where there is no such place and psutil must answer."""


def read_file(path: Path | str) -> bytes:
    """The whole of a kernel file; raises OSError."""
    # Unbuffered: these files are made when they are read, and a buffer costs more than the read.
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def read_counters(path: Path, *names: str) -> tuple[int, ...]:
    """The numbers on the lines of ``path`` that begin with ``names``, in the order of ``names``.

    Raises OSError, and SensorFailed when a line is not there.
    """
    # Only the wanted lines: vmstat has about 180 of them, and a reading wants two.
    wanted = "|".join(names).encode()
    found = dict(re.findall(rb"^(" + wanted + rb"):?\s+(\d+)", read_file(path), re.MULTILINE))
    absent = [name for name in names if name.encode() not in found]
    if absent:
        raise SensorFailed(f"{path}: no line {', '.join(absent)}; this kernel does not report it")
    return tuple(int(found[name.encode()]) for name in names)
