"""The processors: how busy all of them are together, and our model's part of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from scaler.errors import SensorFailed
from scaler.readings import Cpu
from scaler.sensors.processes import ProcessKey, ProcessTree
from scaler.sensors.procfs import PROC, read_file

# The kernel counts in ticks of 10 ms: over less than this a ratio is mostly rounding.
SHORTEST_WINDOW_S = 0.2


class _Sample(NamedTuple):
    """Seconds since the start of the machine, of all cores together."""

    cores: int
    total_s: float
    idle_s: float
    own_s: Mapping[ProcessKey, float]


class CpuSensor:
    """Shares of all cores together, 0..1, since the read before; ``None`` on the first.

    Reads within 0.2 s of each other give the same answer.
    """

    name = "cpu"

    def __init__(self, tree: ProcessTree, *, proc: Path | None = PROC) -> None:
        self._tree = tree
        self._proc = proc
        self._previous: _Sample | None = None
        self._latest: Cpu | None = None

    def read(self) -> Cpu:
        """How busy the processors were; raises OSError and SensorFailed."""
        sample = self._sample()
        previous = self._previous
        if previous is None:
            self._previous = sample
            return Cpu(sample.cores)
        # The machine's own count of its cores' seconds is the clock here: what it lost in a suspend is in neither.
        elapsed_s = sample.total_s - previous.total_s
        if elapsed_s < SHORTEST_WINDOW_S * sample.cores:
            return self._latest or Cpu(sample.cores)
        busy = _ratio(elapsed_s - (sample.idle_s - previous.idle_s), elapsed_s)
        # A process met for the first time has no interval yet: all its past would count as this one's.
        own_s = sum(now - previous.own_s.get(key, now) for key, now in sample.own_s.items())
        self._previous = sample
        self._latest = Cpu(sample.cores, busy, min(_ratio(own_s, elapsed_s), busy))
        return self._latest

    def _sample(self) -> _Sample:
        own_s = self._tree.cpu_s()
        if self._proc is None:
            import psutil  # here, because it takes 35 ms and is of no use on Linux

            times = psutil.cpu_times()._asdict()
            # Linux counts a guest's time in user and nice as well.
            total_s = sum(seconds for kind, seconds in times.items() if not kind.startswith("guest"))
            return _Sample(psutil.cpu_count() or 1, total_s, times["idle"] + times.get("iowait", 0.0), own_s)
        path = self._proc / "stat"
        text = read_file(path)
        # Source: proc_stat(5): user nice system idle iowait irq softirq steal; guest time is in user and nice.
        match = re.match(rb"cpu +((?:\d+ ){7}\d+)", text)
        cores = len(re.findall(rb"^cpu\d", text, re.MULTILINE))
        if match is None or not cores:
            raise SensorFailed(f"{path}: expected a line 'cpu' with eight counts, found {text[:80]!r}")
        ticks = [int(count) for count in match[1].split()]
        per_s = os.sysconf("SC_CLK_TCK")
        return _Sample(cores, sum(ticks) / per_s, (ticks[3] + ticks[4]) / per_s, own_s)


def _ratio(part: float, whole: float) -> float:
    # Idle and waiting time may run backwards by a tick.
    return min(max(part / whole, 0.0), 1.0)
