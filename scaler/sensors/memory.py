"""RAM: what this process may use of it and what is left, within the machine and within its control groups.

Knows nothing of whose memory it is.
"""

from __future__ import annotations

from pathlib import Path

from scaler.readings import Memory
from scaler.sensors.cgroup import CgroupLimits
from scaler.sensors.procfs import PROC, read_counters


class MemorySensor:
    """Total and available RAM in bytes; the smaller of the machine and the tightest cgroup limit is the total."""

    name = "memory"

    def __init__(self, *, proc: Path | None = PROC) -> None:
        self._proc = proc
        self._cgroups = CgroupLimits(proc) if proc is not None else None

    def read(self) -> Memory:
        """RAM as far as this process may use it; raises OSError and SensorFailed."""
        total, available = self._machine()
        limits = self._cgroups.below(total) if self._cgroups is not None else []
        if not limits:
            return Memory(total, available)
        tightest = min(limit.limit_bytes for limit in limits)
        # A wide group above may be fuller than the tight one that we are in, and the machine fuller than both:
        # no more can be had than the fullest of them has left.
        left = min(available, *(limit.available_bytes for limit in limits))
        return Memory(tightest, min(left, tightest), "cgroup")

    def _machine(self) -> tuple[int, int]:
        if self._proc is None:
            import psutil  # here, because it takes 35 ms and is of no use on Linux

            memory = psutil.virtual_memory()
            return memory.total, memory.available
        total_kib, available_kib = read_counters(self._proc / "meminfo", "MemTotal", "MemAvailable")
        return total_kib * 1024, available_kib * 1024
