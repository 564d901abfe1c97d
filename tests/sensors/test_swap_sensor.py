"""Swap space and its traffic."""

from __future__ import annotations

import mmap

import psutil
import pytest

from scaler.errors import SensorFailed
from scaler.readings import Swap
from scaler.sensors.swap import SwapSensor
from tests.sensors.conftest import GIB, FakeProc, write


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def traffic(proc: FakeProc, pages_in: int, pages_out: int) -> None:
    """Set the kernel's counters."""
    write(proc.path / "vmstat", f"pgpgin 5\npswpin {pages_in}\npswpout {pages_out}\npswpin_zero 9")


def test_a_machine_without_swap_lacks_it(proc: FakeProc) -> None:
    """Nothing is not 0 bytes used of 0."""
    assert SwapSensor(proc=proc.path).read() is None


def test_the_rates_are_unknown_until_the_second_sample(proc: FakeProc) -> None:
    """A rate needs two points."""
    proc.meminfo(swap=(8 * GIB, 5 * GIB))
    traffic(proc, 1000, 1000)
    assert SwapSensor(proc=proc.path).read() == Swap(8 * GIB, 3 * GIB, None, None)


def test_the_rates_are_pages_between_two_samples(proc: FakeProc) -> None:
    """Traffic is what hurts; swap that lies still does not."""
    clock = Clock()
    proc.meminfo(swap=(8 * GIB, 5 * GIB))
    traffic(proc, 1000, 1000)
    sensor = SwapSensor(proc=proc.path, clock=clock)
    sensor.read()
    clock.now += 2
    traffic(proc, 1010, 1500)
    assert sensor.read() == Swap(8 * GIB, 3 * GIB, 5.0 * mmap.PAGESIZE, 250.0 * mmap.PAGESIZE)


def test_the_rates_start_anew_after_the_swap_was_off(proc: FakeProc) -> None:
    """A sample from before must not be mistaken for the last one."""
    clock = Clock()
    sensor = SwapSensor(proc=proc.path, clock=clock)
    for swap in ((8 * GIB, 8 * GIB), (0, 0), (8 * GIB, 8 * GIB)):
        proc.meminfo(swap=swap)
        traffic(proc, 1000, 1000)
        clock.now += 1
        swapped = sensor.read()
    assert swapped == Swap(8 * GIB, 0)


def test_two_samples_at_the_same_moment_have_no_rate(proc: FakeProc) -> None:
    """No time, no rate, and no division by zero."""
    proc.meminfo(swap=(8 * GIB, 8 * GIB))
    traffic(proc, 1, 1)
    sensor = SwapSensor(proc=proc.path, clock=Clock())
    sensor.read()
    assert sensor.read() == Swap(8 * GIB, 0)


def test_swap_without_counters_is_a_failure(proc: FakeProc) -> None:
    """It is there and cannot be read."""
    proc.meminfo(swap=(8 * GIB, 8 * GIB))
    write(proc.path / "vmstat", "pgpgin 5")
    with pytest.raises(SensorFailed, match="pswpin, pswpout"):
        SwapSensor(proc=proc.path).read()


def test_a_platform_without_proc_is_read_through_psutil() -> None:
    """The total agrees, and a machine without swap lacks it there as well."""
    swap = SwapSensor(proc=None).read()
    assert (swap.total_bytes if swap else 0) == psutil.swap_memory().total
