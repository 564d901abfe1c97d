"""What is read of a real NVIDIA GPU: `make test-gpu`. Skipped where there is none; nothing else need be installed."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pynvml
import pytest

from scaler.errors import SensorFailed
from scaler.readings import Gpu
from scaler.sensors.gpu import GpuSensor, Numbers
from scaler.sensors.nvidia import NvidiaGpus
from scaler.sensors.processes import process_tree

MIB = 1024**2
LARGE, SMALL = 2048 * MIB, MIB
MOST_WRONG = 0.05
BACK_WITHIN_S = 1.0
MONITOR_WAITS_S = 2.0
"""The monitor's own limit, after which a reading goes on without the GPUs."""


class Device(NamedTuple):
    """The GPU that is tried: its number, its name, and the name by which CUDA is told to use it."""

    number: int
    name: str
    uuid: str


def sensor(*own: int) -> GpuSensor:
    """A sensor of NVIDIA's GPUs, with our processes."""
    return GpuSensor(process_tree(lambda: own), gpus=[NvidiaGpus(Numbers().of)])


@pytest.fixture(scope="module")
def device() -> Device:
    """The GPU with most memory left, of those that are whole."""
    if sys.platform != "linux":
        pytest.skip("only on Linux does NVIDIA's driver tell what each process holds")
    try:
        gpus = sensor().read()
    except SensorFailed as error:
        pytest.skip(f"no NVIDIA GPU answers: {error}")
    if gpus is None:
        pytest.skip("no NVIDIA GPU here")
    pynvml.nvmlInit()
    try:
        whole = [gpu for gpu in gpus if not in_mig_mode(gpu.index)]
        if not whole:
            pytest.skip("every GPU here is in MIG mode")
        best = max(whole, key=lambda gpu: gpu.free_bytes)
        if best.free_bytes < 1.5 * LARGE:
            pytest.skip(f"{best.name} has {best.free_bytes // MIB} MiB left; 3 GiB are needed")
        return Device(best.index, best.name, pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(best.index)))
    finally:
        pynvml.nvmlShutdown()


def in_mig_mode(index: int) -> bool:
    """Whether a GPU is parted into instances."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(index))[0])
    except pynvml.NVMLError:
        # Most cannot be.
        return False


def look(device: Device, own: Collection[int] = ()) -> Gpu:
    """The GPU now."""
    (gpu,) = (gpu for gpu in sensor(*own).read() or () if gpu.index == device.number)
    return gpu


@contextmanager
def holder(device: Device, size: int) -> Iterator[int]:
    """A process that holds so much of the GPU's memory, by its pid."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": device.uuid}
    program = [sys.executable, str(Path(__file__).with_name("allocate.py")), str(size)]
    with subprocess.Popen(
        program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "CUDA could not be used; its error stands above"
        yield process.pid


def wrong_by(found: int) -> float:
    """How far what was found more with a large allocation than with a small one is from the truth, of the large one."""
    return abs(found - (LARGE - SMALL)) / LARGE


def test_a_reading_is_quick(device: Device) -> None:
    """With a process of ours to be looked for; the monitor asks once a second."""
    reader, times = sensor(os.getpid()), []
    count = len(reader.read() or ())
    for _ in range(200):
        began = time.perf_counter()
        reader.read()
        times.append(time.perf_counter() - began)
    print(
        f"\n{device.name}: a reading of all GPUs, {count} here, takes {1000 * statistics.median(times):.2f} ms,"
        f" at most {1000 * max(times):.2f} ms of 200"
    )
    assert max(times) < MONITOR_WAITS_S


def test_what_our_process_holds_is_own(device: Device) -> None:
    """Less what CUDA takes for itself, which is measured with a small allocation."""
    with holder(device, SMALL) as pid:
        overhead = look(device, [pid]).own_bytes
    with holder(device, LARGE) as pid:
        own = look(device, [pid]).own_bytes
    if own is None or overhead is None:
        pytest.skip(f"the driver of {device.name} does not tell what each process holds")
    error = wrong_by(own - overhead)
    print(
        f"\n{device.name}: {(LARGE - SMALL) // MIB} MiB of our process are read as {(own - overhead) / MIB:.1f} MiB own"
        f" beside {overhead / MIB:.1f} MiB for CUDA itself, wrong by {error:.2%}"
    )
    assert error <= MOST_WRONG, "0 MiB of a process that holds some: is this a container with pids of its own?"


def test_what_another_process_holds_is_other(device: Device) -> None:
    """Nothing of it is own; on a GPU that others use meanwhile this may be off."""
    used = {}
    for size in (SMALL, LARGE):
        with holder(device, size):
            gpu = look(device)
            assert gpu.own_bytes == 0
            used[size] = gpu.used_bytes
    error = wrong_by(used[LARGE] - used[SMALL])
    print(
        f"\n{device.name}: {(LARGE - SMALL) // MIB} MiB of another process are read as"
        f" {(used[LARGE] - used[SMALL]) / MIB:.1f} MiB other, wrong by {error:.2%}"
    )
    assert error <= MOST_WRONG


def test_memory_is_back_soon_after_its_process_has_ended(device: Device) -> None:
    """Else a switch that waits for the room would wait for nothing."""
    before = look(device).used_bytes
    with holder(device, LARGE) as pid:
        assert look(device).used_bytes >= before + LARGE // 2
    ended = time.monotonic()
    while (gpu := look(device, [pid])).used_bytes > before + LARGE // 20 or gpu.own_bytes:
        assert time.monotonic() < ended + BACK_WITHIN_S, f"{(gpu.used_bytes - before) / MIB:.1f} MiB are not back"
    print(f"\n{device.name}: {LARGE // MIB} MiB are back {1000 * (time.monotonic() - ended):.0f} ms after the end")
