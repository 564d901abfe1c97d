"""Pressure stall information."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from scaler.errors import SensorFailed
from scaler.readings import Pressure, Stall
from scaler.sensors import pressure
from scaler.sensors.pressure import PressureSensor
from tests.sensors.conftest import FakeProc, write

SOME = "some avg10=12.50 avg60=1.00 avg300=0.10 total=1"
FULL = "full avg10=0.75 avg60=1.00 avg300=0.10 total=1"


def test_the_last_ten_seconds_become_ratios(proc: FakeProc) -> None:
    """The kernel writes percent; a reading holds 0..1."""
    for resource in ("memory", "cpu", "io"):
        write(proc.path / "pressure" / resource, f"{SOME}\n{FULL}")
    stall = Stall(0.125, 0.0075)
    assert PressureSensor(proc=proc.path).read() == Pressure(memory=stall, cpu=stall, io=stall)


def test_an_older_kernel_has_no_full_line_for_the_processors(proc: FakeProc) -> None:
    """What it does not tell is missing, not 0."""
    write(proc.path / "pressure/cpu", SOME)
    assert PressureSensor(proc=proc.path).read() == Pressure(cpu=Stall(0.125, None))


def test_a_kernel_without_pressure_files_lacks_them(proc: FakeProc) -> None:
    """PSI is a build option."""
    assert PressureSensor(proc=proc.path).read() is None


def test_a_kernel_booted_without_pressure_lacks_it(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files may be there and answer EOPNOTSUPP."""

    def refuse(path: Path | str) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(path))

    monkeypatch.setattr(pressure, "read_file", refuse)
    assert PressureSensor(proc=proc.path).read() is None


def test_any_other_error_is_a_failure(proc: FakeProc) -> None:
    """A folder in place of the file stands for whatever may go wrong."""
    (proc.path / "pressure/memory").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        PressureSensor(proc=proc.path).read()


def test_an_unknown_format_is_a_failure_that_shows_it(proc: FakeProc) -> None:
    """The message must be enough to mend the parser."""
    write(proc.path / "pressure/memory", "gibberish")
    with pytest.raises(SensorFailed, match="gibberish"):
        PressureSensor(proc=proc.path).read()


def test_a_platform_without_proc_lacks_it() -> None:
    """Only Linux keeps it."""
    assert PressureSensor(proc=None).read() is None


@pytest.mark.skipif(not Path("/proc/pressure/memory").exists(), reason="this kernel keeps no pressure information")
def test_this_machine_answers() -> None:
    """The real files are understood."""
    stalls = PressureSensor().read()
    assert stalls is not None
    assert stalls.memory is not None
    assert 0 <= stalls.memory.some_avg10_ratio <= 1
