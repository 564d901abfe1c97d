"""NVIDIA's GPUs, against a fake NVML library that the real pynvml talks to."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pynvml
import pytest

import scaler
from scaler.errors import SensorFailed
from scaler.readings import Gpu
from scaler.sensors.gpu import GpuSensor
from scaler.sensors.processes import ProcessKey
from tests.sensors.conftest import GIB, FakeNvml

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 4, 9, 13, 15
NOT_AVAILABLE = 2**64 - 1


class Tree:
    """A process tree of given processes."""

    def __init__(self, *pids: int) -> None:
        self._pids = set(pids)

    def pids(self) -> set[int]:
        return self._pids

    def ram_bytes(self) -> int:
        return 0

    def cpu_s(self) -> Mapping[ProcessKey, float]:
        return {}


def test_two_gpus_are_read_each_with_our_part(nvml: FakeNvml) -> None:
    """Own is what our processes hold, on this GPU, whether they compute or draw."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB, load=37, celsius=61)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB, load=5, celsius=45)
    nvml.process(0, "compute", 4242, 6 * GIB)
    nvml.process(0, "compute", 4243, 1 * GIB)
    nvml.process(0, "compute", 999, 2 * GIB)
    nvml.process(1, "graphics", 4243, GIB // 2)
    assert GpuSensor(Tree(4242, 4243)).read() == (
        Gpu(0, "NVIDIA A", 24 * GIB, 10 * GIB, 14 * GIB, 7 * GIB, 0.37, 61.0),
        Gpu(1, "NVIDIA B", 8 * GIB, GIB, 7 * GIB, GIB // 2, 0.05, 45.0),
    )


def test_a_process_that_computes_and_draws_counts_once(nvml: FakeNvml) -> None:
    """NVML lists all of its memory in both lists."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", 4242, 3 * GIB)
    nvml.process(0, "graphics", 4242, 3 * GIB)
    assert own_bytes(GpuSensor(Tree(4242))) == 3 * GIB


def own_bytes(sensor: GpuSensor) -> int | None:
    """Our part of the first GPU."""
    gpus = sensor.read()
    assert gpus is not None
    return gpus[0].own_bytes


def test_nothing_loaded_holds_nothing(nvml: FakeNvml) -> None:
    """Without processes of ours the lists need not even be supported."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.fail("compute", NOT_SUPPORTED)
    nvml.fail("graphics", NOT_SUPPORTED)
    assert own_bytes(GpuSensor(Tree())) == 0


def test_our_part_is_unknown_when_the_lists_are_not_supported(nvml: FakeNvml) -> None:
    """0 would blame others for our own memory."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.fail("compute", NOT_SUPPORTED)
    nvml.fail("graphics", NOT_SUPPORTED)
    assert own_bytes(GpuSensor(Tree(4242))) is None


def test_one_list_is_enough(nvml: FakeNvml) -> None:
    """A card without displays has no graphics list."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", 4242, GIB)
    nvml.fail("graphics", NOT_SUPPORTED)
    assert own_bytes(GpuSensor(Tree(4242))) == GIB


def test_our_part_is_unknown_when_the_driver_does_not_tell_a_process_its_size(nvml: FakeNvml) -> None:
    """Windows' display driver model keeps it to itself."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", 4242, NOT_AVAILABLE)
    assert own_bytes(GpuSensor(Tree(4242))) is None


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND])
def test_what_a_gpu_does_not_support_is_missing(nvml: FakeNvml, code: int) -> None:
    """A GPU in MIG mode has no load of its own; old cards have no sensor."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB, load=37)
    for call in ("utilization", "temperature", "temperature_v"):
        nvml.fail(call, code)
    assert GpuSensor(Tree()).read() == (Gpu(0, "NVIDIA A", 24 * GIB, 10 * GIB, 14 * GIB, 0, None, None),)


def test_an_older_driver_tells_the_temperature_the_older_way(nvml: FakeNvml) -> None:
    """The newer call is not in its library."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB, celsius=55)
    nvml.fail("temperature_v", FUNCTION_NOT_FOUND)
    gpus = GpuSensor(Tree()).read()
    assert gpus is not None
    assert gpus[0].temperature_c == 55.0


def test_an_older_pynvml_tells_the_temperature_the_older_way(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older release does not know the newer call."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB, celsius=55)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV")
    gpus = GpuSensor(Tree()).read()
    assert gpus is not None
    assert gpus[0].temperature_c == 55.0


def test_a_gpu_without_memory_of_its_own_is_left_out(nvml: FakeNvml) -> None:
    """A chip that shares the machine's RAM is no resource beside it; the other keeps its number."""
    nvml.gpu("NVIDIA shared", GIB, GIB)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    nvml.fail("memory", NOT_SUPPORTED, gpu=0)
    gpus = GpuSensor(Tree()).read()
    assert gpus is not None
    assert [gpu.index for gpu in gpus] == [1]


def test_a_lost_gpu_is_a_failure_until_it_is_back(nvml: FakeNvml) -> None:
    """NVML keeps saying so until its session is begun anew, so the sensor does that; sessions do not pile up."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    sensor = GpuSensor(Tree())
    before = sensor.read()
    nvml.fail("memory", GPU_IS_LOST, gpu=0)
    for _ in range(3):
        with pytest.raises(SensorFailed, match="GPU is lost"):
            sensor.read()
    nvml.heal()
    assert sensor.read() == before
    assert ctypes.CDLL(str(nvml.library)).fake_sessions() == 1


def test_a_driver_that_is_restarted_is_a_failure_meanwhile(nvml: FakeNvml) -> None:
    """Once a GPU was seen, a driver that is not loaded is not "this machine has none"."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    sensor = GpuSensor(Tree())
    before = sensor.read()
    nvml.fail("count", DRIVER_NOT_LOADED)
    nvml.fail("init", DRIVER_NOT_LOADED)
    for _ in range(2):
        with pytest.raises(SensorFailed, match="Driver Not Loaded"):
            sensor.read()
    nvml.heal()
    assert sensor.read() == before


def test_one_gpu_less_than_before_is_a_failure(nvml: FakeNvml) -> None:
    """NVML numbers what is left anew: what is called 0 now may be what was called 1."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    sensor = GpuSensor(Tree())
    before = sensor.read()
    first = nvml.gpus.pop(0)
    nvml.save()
    with pytest.raises(SensorFailed, match="1 of 2 GPUs answer"):
        sensor.read()
    nvml.gpus.insert(0, first)
    nvml.save()
    assert sensor.read() == before


def test_a_machine_without_the_library_lacks_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the usual machine, and not a failure."""

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", absent)
    assert GpuSensor(Tree()).read() is None


def test_a_library_without_a_driver_lacks_gpus(nvml: FakeNvml) -> None:
    """A package may bring the library to a machine that never had a GPU."""
    nvml.fail("init", DRIVER_NOT_LOADED)
    assert GpuSensor(Tree()).read() is None


def test_a_driver_without_gpus_lacks_them(nvml: FakeNvml) -> None:
    """And one that is plugged in later is found."""
    sensor = GpuSensor(Tree())
    assert sensor.read() is None
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    assert sensor.read() is not None


def test_the_library_is_found_by_its_name_in_a_fresh_process(nvml: FakeNvml) -> None:
    """As on a machine with a driver: nothing here is patched."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    program = (
        "from scaler.sensors.gpu import GpuSensor\n"
        "from scaler.sensors.processes import process_tree\n"
        "print(GpuSensor(process_tree(lambda: ())).read()[0].name)"
    )
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(nvml.library.parent),
        "PYTHONPATH": str(Path(scaler.__file__).parents[1]),
    }
    child = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert child.stdout == "NVIDIA A\n"
