"""Swap space: how much is used, and how fast pages go in and out.

Knows nothing of when it is read but through the clock that it is given.
"""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scaler.readings import Swap
from scaler.sensors.procfs import PROC, read_counters


class _Sample(NamedTuple):
    at_s: float
    in_bytes: int
    out_bytes: int


class SwapSensor:
    """Swap in bytes and its traffic in bytes per second; ``None`` on a machine without swap space."""

    name = "swap"

    def __init__(self, *, proc: Path | None = PROC, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._clock = clock
        self._previous: _Sample | None = None

    def read(self) -> Swap | None:
        """Swap now; the rates are since the read before, ``None`` on the first. Raises OSError and SensorFailed."""
        total, used, sample = self._sample()
        previous, self._previous = self._previous, sample
        if not total:
            return None
        if previous is None or sample is None or sample.at_s <= previous.at_s:
            return Swap(total, used)
        elapsed_s = sample.at_s - previous.at_s
        return Swap(
            total,
            used,
            (sample.in_bytes - previous.in_bytes) / elapsed_s,
            (sample.out_bytes - previous.out_bytes) / elapsed_s,
        )

    def _sample(self) -> tuple[int, int, _Sample | None]:
        if self._proc is None:
            import psutil  # here, because it takes 35 ms and is of no use on Linux

            swap = psutil.swap_memory()
            # Windows does not count the traffic: psutil answers 0 for ever.
            sample = None if sys.platform == "win32" else _Sample(self._clock(), swap.sin, swap.sout)
            return swap.total, swap.used, sample
        total_kib, free_kib = read_counters(self._proc / "meminfo", "SwapTotal", "SwapFree")
        if not total_kib:
            return 0, 0, None
        at_s = self._clock()
        pages_in, pages_out = read_counters(self._proc / "vmstat", "pswpin", "pswpout")
        sample = _Sample(at_s, pages_in * mmap.PAGESIZE, pages_out * mmap.PAGESIZE)
        return total_kib * 1024, (total_kib - free_kib) * 1024, sample
