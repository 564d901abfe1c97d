"""Whether the processors are slowed down for heat: by themselves, which Intel's count, or by the kernel.

Temperatures are not read: at which one a processor slows itself down is its own, and no file tells it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from scaler.errors import SensorFailed
from scaler.readings import Thermal
from scaler.sensors.procfs import read_file

SYS = Path("/sys") if sys.platform == "linux" else None
"""Where Linux tells of processors and of what cools them; ``None`` elsewhere, where nobody is asked."""
COOLS_PROCESSORS = re.compile(r"Processor|(thermal-)?(cpufreq|idle)-.+")
"""What the kernel calls the ways in which it slows processors down: on a PC, or where there is a device tree.

Sources: drivers/acpi/processor_driver.c, drivers/thermal/cpufreq_cooling.c, drivers/thermal/cpuidle_cooling.c.
"""


class ThermalSensor:
    """Whether heat slowed the processors since the read before; ``None`` on a machine that does not tell.

    Reads one file for each package and one for each kind of cooling. All processors of a package count its events, and
    those of a PC share how far the kernel slows them down. Sources:
    https://docs.kernel.org/admin-guide/thermal/intel_thermal_throttle.html, drivers/acpi/processor_thermal.c.
    """

    name = "thermal"

    def __init__(self, *, sys: Path | None = SYS) -> None:
        self._sys = sys
        self._files: tuple[list[Path], list[Path]] | None = None
        self._counts: dict[Path, int] = {}

    def read(self) -> Thermal | None:
        """Whether it is so now; raises OSError and SensorFailed."""
        if self._sys is None:
            return None
        try:
            return self._read(self._sys)
        except FileNotFoundError:
            # A processor was switched off: another one of its package tells the same.
            self._files = None
            return self._read(self._sys)

    def _read(self, sys: Path) -> Thermal | None:
        if self._files is None:
            self._files = list(_counters(sys)), list(_cooling(sys))
        counters, cooling = self._files
        if not counters and not cooling:
            return None
        before, self._counts = self._counts, {path: _number(path) for path in counters}
        # Source: Documentation/ABI/testing/sysfs-class-thermal: a state of 0 means no cooling.
        if any(_number(path) > 0 for path in cooling):
            return Thermal(True)
        known = [count > before[path] for path, count in self._counts.items() if path in before]
        return Thermal(any(known) if known or not counters else None)


def _counters(sys: Path) -> Iterator[Path]:
    """One count of a package's events for each package; none where the processors do not count."""
    packages = set()
    for path in sorted(sys.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/package_throttle_count")):
        package = _number(path.parent.parent / "topology" / "physical_package_id")
        if package not in packages:
            packages.add(package)
            yield path


def _cooling(sys: Path) -> Iterator[Path]:
    """How far the kernel slows processors down: the first of each kind."""
    kinds = set()
    for device in sorted(sys.glob("class/thermal/cooling_device*"), key=lambda device: (len(device.name), device.name)):
        kind = read_file(device / "type").decode(errors="replace").strip()
        if COOLS_PROCESSORS.fullmatch(kind) and kind not in kinds:
            kinds.add(kind)
            yield device / "cur_state"


def _number(path: Path) -> int:
    text = read_file(path)
    try:
        return int(text)
    except ValueError:
        raise SensorFailed(f"{path}: expected a number, found {text[:80]!r}") from None
