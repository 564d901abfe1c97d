"""Processors that are slowed down for heat, from files laid out as in sysfs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scaler.errors import SensorFailed
from scaler.readings import Thermal
from scaler.sensors.thermal import ThermalSensor
from tests.sensors.conftest import write


class Machine:
    """A /sys with the processors and cooling devices that a test gives it."""

    def __init__(self, sys: Path) -> None:
        self.sys = sys
        self.sensor = ThermalSensor(sys=sys)

    def cpu(self, number: int, package: int, count: int) -> None:
        """A processor of a package that has counted so many events."""
        folder = self.sys / "devices" / "system" / "cpu" / f"cpu{number}"
        write(folder / "topology" / "physical_package_id", package)
        write(folder / "thermal_throttle" / "package_throttle_count", count)
        write(folder / "thermal_throttle" / "core_throttle_count", 7 * count)

    def cooling(self, number: int, kind: str, state: int) -> None:
        """A cooling device."""
        folder = self.sys / "class" / "thermal" / f"cooling_device{number}"
        write(folder / "type", kind)
        write(folder / "cur_state", state)

    def throttled(self) -> bool | None:
        """What the sensor says of a machine that tells."""
        thermal = self.sensor.read()
        assert thermal is not None
        return thermal.throttled


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without either."""
    return Machine(tmp_path)


def test_a_machine_that_does_not_tell_lacks_it(machine: Machine) -> None:
    """Neither a virtual machine nor another system is a failure."""
    assert machine.sensor.read() is None
    machine.cpu(0, 0, 0)
    shutil.rmtree(machine.sys / "devices" / "system" / "cpu" / "cpu0" / "thermal_throttle")
    machine.cooling(0, "Fan", 3)
    machine.cooling(1, "intel_powerclamp", -1)
    assert ThermalSensor(sys=machine.sys).read() is None
    assert ThermalSensor(sys=None).read() is None


def test_events_since_the_read_before_are_heat_and_those_of_long_ago_are_not(machine: Machine) -> None:
    """A counter says what happened since the start of the machine; the first read cannot know when."""
    machine.cpu(0, 0, 4711)
    assert machine.throttled() is None
    assert machine.throttled() is False
    machine.cpu(0, 0, 4712)
    assert machine.throttled() is True
    assert machine.throttled() is False


def test_any_package_that_is_hot_is_enough_and_one_processor_tells_for_its_package(machine: Machine) -> None:
    """Two files on a machine with two packages, not one for each of its processors."""
    for number in range(12):
        machine.cpu(number, number % 2, 0)
    assert machine.throttled() is None
    for number in range(12):
        machine.cpu(number, number % 2, number % 2)
    assert machine.throttled() is True
    for number in range(2, 12):
        (machine.sys / f"devices/system/cpu/cpu{number}/thermal_throttle/package_throttle_count").unlink()
    assert machine.throttled() is False


@pytest.mark.parametrize("kind", ["Processor", "cpufreq-cpu0", "thermal-cpufreq-0", "idle-cpu4", "thermal-idle-1"])
def test_the_kernel_slowing_processors_down_is_heat_for_as_long_as_it_does(machine: Machine, kind: str) -> None:
    """Its state is what is now: the first read knows it already."""
    machine.cooling(0, "Fan", 9)
    machine.cooling(1, kind, 2)
    assert machine.throttled() is True
    assert machine.throttled() is True
    machine.cooling(1, kind, 0)
    assert machine.throttled() is False


@pytest.mark.parametrize(
    "kind", ["Fan", "LCD", "intel_powerclamp", "thermal-devfreq-0", "mmc0", "Processor fan", "L\udcfcfter"]
)
def test_what_cools_by_other_means_is_no_heat(machine: Machine, kind: str) -> None:
    """A fan that turns slows nothing down."""
    machine.cooling(0, kind, 1)
    machine.cooling(1, "Processor", 0)
    assert machine.throttled() is False


def test_each_cluster_is_asked_and_of_a_pcs_processors_the_first(machine: Machine) -> None:
    """The small cores may be slowed down alone; a PC has one such device for each processor, which share the state."""
    machine.cooling(0, "cpufreq-cpu0", 0)
    machine.cooling(1, "cpufreq-cpu4", 1)
    assert machine.throttled() is True
    for number in range(2, 130):
        machine.cooling(number, "Processor", 0)
    machine.cooling(1, "cpufreq-cpu4", 0)
    sensor = ThermalSensor(sys=machine.sys)
    assert sensor.read() == Thermal(False)
    for number in range(3, 130):
        (machine.sys / f"class/thermal/cooling_device{number}/cur_state").unlink()
    assert sensor.read() == Thermal(False)


def test_cooling_and_counts_are_one_answer(machine: Machine) -> None:
    """Either of them is heat; that the kernel does nothing says nothing of the processor, before it has counted."""
    machine.cpu(0, 0, 5)
    machine.cooling(0, "Processor", 0)
    assert machine.throttled() is None
    machine.cooling(0, "Processor", 1)
    assert machine.throttled() is True
    machine.cooling(0, "Processor", 0)
    assert machine.throttled() is False
    machine.cpu(0, 0, 6)
    assert machine.throttled() is True


def test_events_are_counted_while_the_kernel_cools_as_well(machine: Machine) -> None:
    """Those of then must not be taken for new ones later."""
    machine.cpu(0, 0, 5)
    machine.cooling(0, "Processor", 1)
    assert machine.throttled() is True
    machine.cpu(0, 0, 9)
    assert machine.throttled() is True
    machine.cooling(0, "Processor", 0)
    assert machine.throttled() is False


def test_when_a_processor_is_switched_off_another_of_its_package_tells(machine: Machine) -> None:
    """Its count is its own, so that a read passes until it is known to rise."""
    machine.cpu(0, 0, 5)
    machine.cpu(1, 0, 900)
    machine.throttled()
    assert machine.throttled() is False
    shutil.rmtree(machine.sys / "devices" / "system" / "cpu" / "cpu0" / "thermal_throttle")
    assert machine.throttled() is None
    machine.cpu(1, 0, 901)
    assert machine.throttled() is True


def test_a_file_without_a_number_is_a_failure(machine: Machine) -> None:
    """It is told where and what, and is never taken for 0."""
    machine.cooling(0, "Processor", 0)
    write(machine.sys / "class" / "thermal" / "cooling_device0" / "cur_state", "hot")
    with pytest.raises(SensorFailed, match=r"cooling_device0/cur_state: expected a number, found b'hot\\n'"):
        machine.sensor.read()
