"""Where the power comes from: the mains or a battery, and how full the battery is."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from scaler.readings import Power
from scaler.sensors.procfs import read_file

SUPPLIES = Path("/sys/class/power_supply") if sys.platform == "linux" else None
"""Where Linux lists chargers and batteries; ``None`` elsewhere, where psutil answers."""


class PowerSensor:
    """Whether the machine is plugged in, and its charge 0..1; ``None`` on a machine that does not tell."""

    name = "power"

    def __init__(self, *, supplies: Path | None = SUPPLIES) -> None:
        self._supplies = supplies

    def read(self) -> Power | None:
        """The power supply now; raises OSError.

        Source: https://docs.kernel.org/power/power_supply_class.html and its ABI file sysfs-class-power.
        """
        if self._supplies is None:
            return _from_psutil()
        online: list[bool] = []
        charges: list[float] = []
        states: list[str] = []
        for supply in sorted(self._supplies.iterdir()) if self._supplies.is_dir() else ():
            kind = _attribute(supply, "type")
            # A mouse or a headset is a supply too: of scope Device.
            if _attribute(supply, "scope") == "Device" or _attribute(supply, "present") == "0":
                continue
            if kind == "Battery":
                states.append(_attribute(supply, "status") or "Unknown")
                if (percent := _attribute(supply, "capacity")) is not None:
                    charges.append(float(percent) / 100)
            elif (plugged := _attribute(supply, "online")) is not None:
                online.append(plugged != "0")
        if not online and not states:
            return None
        # A charger knows best; a tablet may list none, and then the battery's own state tells.
        if online:
            plugged_in: bool | None = any(online)
        elif "Discharging" in states:
            plugged_in = False
        else:
            plugged_in = True if {"Charging", "Full"} & set(states) else None
        return Power(plugged_in, sum(charges) / len(charges) if charges else None)


def _attribute(supply: Path, name: str) -> str | None:
    try:
        return read_file(supply / name).decode().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        # What a battery that comes or goes cannot tell now. Source: drivers/power/supply/power_supply_sysfs.c.
        if error.errno in (errno.ENODATA, errno.ENODEV):
            return None
        raise


def _from_psutil() -> Power | None:
    import psutil  # here, because it takes 35 ms and is of no use on Linux

    battery = psutil.sensors_battery()
    return None if battery is None else Power(battery.power_plugged, battery.percent / 100)
