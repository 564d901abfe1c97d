"""Mains and batteries."""

from __future__ import annotations

import errno
from pathlib import Path

import psutil
import pytest

from scaler.readings import Power
from scaler.sensors import power
from scaler.sensors.power import PowerSensor
from tests.sensors.conftest import write


def supply(root: Path, name: str, **attributes: object) -> None:
    """Write one power supply as Linux shows it."""
    for attribute, value in attributes.items():
        write(root / name / attribute, value)


def battery(root: Path, capacity: int, status: str, name: str = "BAT0") -> None:
    """Write a battery."""
    supply(root, name, type="Battery", present=1, capacity=capacity, status=status)


def test_a_desktop_lists_no_supplies_and_lacks_them(tmp_path: Path) -> None:
    """Neither an empty list nor a missing one is a failure."""
    assert PowerSensor(supplies=tmp_path).read() is None
    assert PowerSensor(supplies=tmp_path / "absent").read() is None


@pytest.mark.parametrize(("online", "plugged_in"), [(1, True), (0, False)])
def test_the_charger_says_whether_it_is_plugged_in(tmp_path: Path, online: int, plugged_in: bool) -> None:
    """A full battery may say "Not charging" while plugged in."""
    supply(tmp_path, "AC", type="Mains", online=online)
    battery(tmp_path, 80, "Not charging")
    assert PowerSensor(supplies=tmp_path).read() == Power(plugged_in, 0.8)


def test_one_of_several_chargers_is_enough(tmp_path: Path) -> None:
    """A laptop lists each of its USB-C sockets."""
    supply(tmp_path, "AC", type="Mains", online=0)
    supply(tmp_path, "ucsi-1", type="USB", online=1)
    battery(tmp_path, 50, "Charging")
    assert PowerSensor(supplies=tmp_path).read() == Power(True, 0.5)


@pytest.mark.parametrize(
    ("status", "plugged_in"), [("Discharging", False), ("Charging", True), ("Full", True), ("Unknown", None)]
)
def test_a_battery_tells_when_no_charger_is_listed(tmp_path: Path, status: str, plugged_in: bool | None) -> None:
    """And where it does not know, nor does the reading."""
    battery(tmp_path, 30, status)
    assert PowerSensor(supplies=tmp_path).read() == Power(plugged_in, 0.3)


def test_two_batteries_count_together(tmp_path: Path) -> None:
    """The charge is their mean; one that drains means no mains."""
    battery(tmp_path, 100, "Full")
    battery(tmp_path, 40, "Discharging", name="BAT1")
    assert PowerSensor(supplies=tmp_path).read() == Power(False, 0.7)


def test_a_mouse_is_not_the_machine(tmp_path: Path) -> None:
    """A peripheral's battery has the scope Device."""
    supply(tmp_path, "hidpp_0", type="Battery", scope="Device", capacity=5, status="Discharging")
    assert PowerSensor(supplies=tmp_path).read() is None


def test_an_empty_battery_bay_is_not_a_battery(tmp_path: Path) -> None:
    """A bay is listed without what it could hold."""
    supply(tmp_path, "AC", type="Mains", online=1)
    supply(tmp_path, "BAT1", type="Battery", present=0)
    assert PowerSensor(supplies=tmp_path).read() == Power(True, None)


@pytest.mark.parametrize("code", [errno.ENODATA, errno.ENODEV])
def test_what_a_battery_cannot_tell_now_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The charger is known all the same; any other fault is one."""
    supply(tmp_path, "AC", type="Mains", online=0)
    battery(tmp_path, 80, "Discharging")
    codes = [code, errno.EIO]

    def read(path: Path) -> bytes:
        if path.name == "capacity":
            raise OSError(codes.pop(0), "it cannot tell", str(path))
        return path.read_bytes()

    monkeypatch.setattr(power, "read_file", read)
    sensor = PowerSensor(supplies=tmp_path)
    assert sensor.read() == Power(False, None)
    with pytest.raises(OSError, match="cannot tell"):
        sensor.read()


def test_a_platform_without_sysfs_is_read_through_psutil() -> None:
    """It agrees with psutil on whether there is a battery."""
    assert (PowerSensor(supplies=None).read() is None) == (psutil.sensors_battery() is None)
