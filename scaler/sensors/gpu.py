"""The GPUs of every maker as one list: memory, load, temperature, and which part of the memory is our model's.

Owns their numbers, and that one which answered before is missed when it does not. Knows no maker's interface.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Sequence
from typing import Protocol

from scaler.errors import SensorFailed
from scaler.levels import gpu_resource
from scaler.readings import Gpu
from scaler.sensors import amd, drm, intel
from scaler.sensors.nvidia import NvidiaGpus
from scaler.sensors.processes import ProcessTree


class Numbers:
    """Which number each GPU has: given at first sight and kept, so that ``gpu1`` stays the same card."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()

    def of(self, identity: str, first: int) -> int:
        """The number of the GPU that ``identity`` names for good; a new one gets the next free from ``first`` on."""
        with self._lock:
            if identity not in self._numbers:
                taken = set(self._numbers.values())
                self._numbers[identity] = next(number for number in itertools.count(first) if number not in taken)
            return self._numbers[identity]


NUMBERS = Numbers()
"""One for the whole process: a survey of programs and a reading mean the same card by ``gpu1``."""


class Gpus(Protocol):
    """The GPUs behind one interface."""

    def read(self, own: Collection[int]) -> list[Gpu]:
        """Those that tell of memory of their own, now; ``own`` are the pids of our model's processes.

        Raises SensorFailed and OSError.
        """

    def held(self) -> dict[int, dict[int, int]]:
        """The bytes that each process holds, by GPU and pid, as far as it is told. Raises SensorFailed and OSError."""

    def renew(self) -> None:
        """Look for them from the start at the next read."""


def every_gpu() -> tuple[Gpus, ...]:
    """The makers whose GPUs can be read. NVIDIA's first: ``gpu0`` is what NVML calls 0."""
    return NvidiaGpus(NUMBERS.of), drm.DrmGpus(NUMBERS.of, {"amdgpu": amd.figures, "xe": intel.figures}, sys=drm.SYS)


class GpuSensor:
    """Every GPU that tells of memory of its own; ``None`` on a machine without such a GPU."""

    name = "gpus"

    def __init__(self, tree: ProcessTree, *, gpus: Sequence[Gpus] | None = None) -> None:
        self._tree = tree
        self._gpus = every_gpu() if gpus is None else gpus
        self._seen: dict[int, str] = {}

    def read(self) -> tuple[Gpu, ...] | None:
        """The GPUs now, by number. Raises OSError, and SensorFailed also when one that answered before is gone."""
        own = self._tree.pids()
        found = sorted((gpu for gpus in self._gpus for gpu in gpus.read(own)), key=lambda gpu: gpu.index)
        names = {gpu.index: gpu.name for gpu in found}
        gone = [f"{gpu_resource(index)} ({name})" for index, name in self._seen.items() if index not in names]
        if gone:
            for gpus in self._gpus:
                gpus.renew()
            raise SensorFailed(
                f"{len(self._seen) - len(gone)} of {len(self._seen)} GPUs answer, {', '.join(gone)} not;"
                f" see the kernel's log, or restart scaler if it was taken out"
            )
        self._seen = names
        return tuple(found) or None


def held_by_processes() -> dict[str, dict[int, int]]:
    """The bytes of each GPU's memory that each process holds, by resource and pid, as far as it is told.

    Empty on a machine without GPUs. Raises SensorFailed and OSError.
    """
    return {gpu_resource(number): sizes for gpus in every_gpu() for number, sizes in gpus.held().items()}
