"""A real NVIDIA GPU, what is read of it, and processes that take its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
    # The sensor's own session is still open.
    whole = [gpu for gpu in gpus if not in_mig_mode(gpu.index)]
    if not whole:
        pytest.skip("every GPU here is in MIG mode")
    best = max(whole, key=lambda gpu: gpu.free_bytes)
    if best.free_bytes < 1.5 * LARGE:
        pytest.skip(f"{best.name} has {best.free_bytes // MIB} MiB left; 3 GiB are needed")
    found = Device(best.index, best.name, pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(best.index)))
    try:
        with holder(found, SMALL):
            return found
    except CudaRefuses as error:
        pytest.skip(f"CUDA cannot be used on {found.name}: {error}")


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


def listed(device: Device) -> list[tuple[int, int | None]]:
    """The processes that NVML tells of on the GPU, by their pids, and what each holds; none where it tells of none."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(device.number)
    try:
        return [(one.pid, one.usedGpuMemory) for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except pynvml.NVMLError:
        return []


class CudaRefuses(Exception):
    """A process could not take memory of the GPU, and why."""


@dataclass(frozen=True)
class Holder:
    """Another process, which holds some of the GPU's memory."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Its own."""
        return self.process.pid

    def take(self, size: int) -> None:
        """Have it hold so many bytes more; it does when this returns. Raises CudaRefuses."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            # Unbuffered: it may have ended before it was asked, and said why; nothing may be left to be written then.
            os.write(self.process.stdin.fileno(), f"{size}\n".encode())
        if (reply := self.process.stdout.readline().strip()) != "ready":
            raise CudaRefuses(reply or "it ended and did not say why")


@contextmanager
def holder(device: Device, size: int) -> Iterator[Holder]:
    """A process that holds so much of the GPU's memory."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": device.uuid}
    program = [sys.executable, str(Path(__file__).with_name("allocate.py"))]
    with subprocess.Popen(
        program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        held = Holder(process)
        held.take(size)
        yield held


def own_bytes(device: Device, held: Holder) -> int:
    """What is read of a process as ours; skips where NVML does not tell of that process what it holds."""
    own = look(device, [held.pid]).own_bytes
    if not own:
        told = listed(device)
        assert not dict(told).get(held.pid), f"{told} are listed, and {own} is read of {held.pid}"
        pytest.skip(
            f"the driver of {device.name} does not tell what process {held.pid} holds, it tells of {told};"
            " in a container, see --pid=host in docs/gpus.md"
        )
    return own
