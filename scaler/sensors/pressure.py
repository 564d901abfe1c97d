"""Pressure stall information: the share of time in which tasks waited for memory, processors or disks.

Source: https://docs.kernel.org/accounting/psi.html.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from scaler.errors import SensorFailed
from scaler.readings import Pressure, Stall
from scaler.sensors.procfs import PROC, read_file


class PressureSensor:
    """The stalls of the last ten seconds as ratios 0..1; ``None`` where the kernel does not keep them."""

    name = "pressure"

    def __init__(self, *, proc: Path | None = PROC) -> None:
        self._folder = proc / "pressure" if proc is not None else None

    def read(self) -> Pressure | None:
        """PSI of the whole machine now; raises OSError and SensorFailed."""
        if self._folder is None:
            return None
        pressure = Pressure(*(_stall(self._folder / resource) for resource in ("memory", "cpu", "io")))
        return None if pressure == Pressure() else pressure


def _stall(path: Path) -> Stall | None:
    try:
        text = read_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        # A kernel booted with psi=0 may still have the files; reading them says so with this code.
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise
    percent = {kind: float(avg10) for kind, avg10 in re.findall(rb"^(some|full) avg10=([\d.]+)", text, re.MULTILINE)}
    if b"some" not in percent:
        raise SensorFailed(f"{path}: expected a line 'some avg10=...', found {text[:80]!r}")
    # Kernels before 5.13 have no "full" line for the processors.
    return Stall(percent[b"some"] / 100, percent[b"full"] / 100 if b"full" in percent else None)
