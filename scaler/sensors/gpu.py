"""NVIDIA's GPUs through NVML: memory, load, temperature, and which part of the memory is our model's.

Owns the NVML session and its renewal. The library is first touched by a read, never by an import.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Collection
from typing import Any

from scaler.errors import SensorFailed
from scaler.levels import gpu_resource
from scaler.readings import Gpu
from scaler.sensors.processes import ProcessTree


class GpuSensor:
    """Every GPU that NVML reports memory for; ``None`` on a machine without NVML or without such a GPU.

    Source: https://docs.nvidia.com/deploy/nvml-api/.
    """

    name = "gpus"

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._initialised = False
        self._most_seen = 0

    def read(self) -> tuple[Gpu, ...] | None:
        """The GPUs now, in NVML's order; raises SensorFailed, and starts NVML anew at the next read."""
        nvml = importlib.import_module("pynvml")
        try:
            if not self._initialised:
                nvml.nvmlInit()
                self._initialised = True
            gpus = self._gpus(nvml)
        except nvml.NVMLError_LibraryNotFound:
            return None
        except nvml.NVMLError as error:
            self._end_session(nvml)
            # The library without a driver is what a package leaves on a machine without a GPU; a driver that is
            # gone after it answered is a fault.
            if isinstance(error, nvml.NVMLError_DriverNotLoaded) and not self._most_seen:
                return None
            raise SensorFailed(f"NVML: {error}; see 'nvidia-smi' and the kernel's log") from error
        if len(gpus) < self._most_seen:
            # NVML numbers anew when one is gone: gpu1 may now be called 0.
            self._end_session(nvml)
            raise SensorFailed(f"NVML: {len(gpus)} of {self._most_seen} GPUs answer; see 'nvidia-smi'")
        self._most_seen = len(gpus)
        return gpus or None

    def _end_session(self, nvml: Any) -> None:
        """End NVML's session: only a new one sees a GPU or a driver that came back."""
        if self._initialised:
            self._initialised = False
            # A driver that is gone cannot end its session either, and there is nothing left to end.
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _gpus(self, nvml: Any) -> tuple[Gpu, ...]:
        own = self._tree.pids()
        found = (_gpu(nvml, index, own) for index in range(nvml.nvmlDeviceGetCount()))
        return tuple(gpu for gpu in found if gpu is not None)


def _gpu(nvml: Any, index: int, own: Collection[int]) -> Gpu | None:
    """One GPU; ``None`` when it has no memory of its own to report, as where it shares the machine's RAM."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    # The first version of this call, because it counts what the driver keeps for itself as used.
    memory = _if_supported(nvml, "nvmlDeviceGetMemoryInfo", handle)
    if memory is None:
        return None
    load = _if_supported(nvml, "nvmlDeviceGetUtilizationRates", handle)
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        total_bytes=memory.total,
        used_bytes=memory.used,
        free_bytes=memory.free,
        own_bytes=_own_bytes(nvml, handle, own),
        utilisation_ratio=None if load is None else load.gpu / 100,
        temperature_c=_temperature(nvml, handle),
    )


def _temperature(nvml: Any, handle: object) -> float | None:
    sensor = nvml.NVML_TEMPERATURE_GPU
    try:
        celsius = _if_supported(nvml, "nvmlDeviceGetTemperatureV", handle, sensor)
    except nvml.NVMLError_ArgumentVersionMismatch:
        celsius = None
    if celsius is None:
        # Drivers and releases of pynvml from before this call have only its deprecated elder.
        celsius = _if_supported(nvml, "nvmlDeviceGetTemperature", handle, sensor)
    return None if celsius is None else float(celsius)


def _own_bytes(nvml: Any, handle: object, own: Collection[int]) -> int | None:
    if not own:
        return 0
    held = _held(nvml, handle)
    if held is None:
        return None
    sizes = [size for (pid, _), size in held.items() if pid in own]
    return None if None in sizes else sum(sizes)


def _held(nvml: Any, handle: object) -> dict[tuple[int, int], Any] | None:
    """What each process holds, by its pid and MIG instance: bytes, or None where the driver keeps it to itself.

    None altogether where this GPU has no list of its processes.
    """
    queries = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3")
    lists = [listed for query in queries if (listed := _if_supported(nvml, query, handle)) is not None]
    if not lists:
        return None
    # A process that computes and draws is in both lists with all of its memory, and once a MIG instance in each.
    return {(process.pid, process.gpuInstanceId): process.usedGpuMemory for listed in lists for process in listed}


def held_by_processes() -> dict[str, dict[int, int]]:
    """The bytes of each GPU's memory that each process holds, by resource and pid, as far as the driver tells.

    Empty on a machine without NVML. Raises SensorFailed. Starts and ends a session of its own, which NVML counts.
    """
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        try:
            held: dict[str, dict[int, int]] = {}
            for index in range(nvml.nvmlDeviceGetCount()):
                sizes = held.setdefault(gpu_resource(index), {})
                for (pid, _), size in (_held(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) or {}).items():
                    if size is not None:
                        sizes[pid] = sizes.get(pid, 0) + size
            return held
        finally:
            nvml.nvmlShutdown()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
        return {}
    except nvml.NVMLError as error:
        raise SensorFailed(f"NVML: {error}; see 'nvidia-smi' and the kernel's log") from error


def _if_supported(nvml: Any, query: str, *arguments: object) -> Any:
    """What NVML's ``query`` answers; ``None`` where the GPU, its MIG mode, its driver or our rights do not allow it."""
    # An older release of pynvml may lack a call that the driver has, or the other way round.
    if not hasattr(nvml, query):
        return None
    try:
        return getattr(nvml, query)(*arguments)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return None
