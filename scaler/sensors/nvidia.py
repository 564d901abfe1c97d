"""NVIDIA's GPUs through NVML: memory, load, temperature, and which part of the memory is our model's.

Owns the NVML session and its renewal. The library is first touched by a read, never by an import.
Source: https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from scaler.errors import SensorFailed
from scaler.levels import gpu_resource
from scaler.readings import Gpu
from scaler.sensors.processes import is_here, process_of, threads_of
from scaler.sensors.procfs import PROC

LIBRARY = "libnvidia-ml.so"
HEAT = 0x20 | 0x40
"""The reasons for slow clocks that are heat: SwThermalSlowdown and HwThermalSlowdown of nvml.h."""


class _Card(NamedTuple):
    """One GPU as long as a session lasts. Its handle and its name cost as much as a figure of it, and do not change."""

    number: int
    name: str
    handle: Any


class NvidiaGpus:
    """Every GPU that NVML reports memory for; none on a machine without NVML."""

    def __init__(self, number: Callable[[str, int], int]) -> None:
        """``number`` gives a GPU's number by its UUID and NVML's index."""
        self._number = number
        self._initialised = False
        self._count = -1
        self._cards: list[_Card] = []
        self._answered = False

    def read(self, own: Collection[int]) -> list[Gpu]:
        """The GPUs now; raises SensorFailed and OSError, and starts NVML anew at the next read."""
        nvml = importlib.import_module("pynvml")
        where, gpus = "", []
        try:
            self._begin(nvml)
            ours = threads_of(own) if self._cards else {}
            for card in self._cards:
                where = f"{gpu_resource(card.number)} ({card.name}): "
                if (gpu := _gpu(nvml, card, ours)) is not None:
                    gpus.append(gpu)
        except nvml.NVMLError_LibraryNotFound:
            return []
        except nvml.NVMLError as error:
            self._end(nvml)
            # The library without a driver is what a package leaves on a machine without a GPU; a driver that is
            # gone after it answered is a fault.
            if isinstance(error, nvml.NVMLError_DriverNotLoaded) and not self._answered:
                return []
            if isinstance(error, nvml.NVMLError_LibRmVersionMismatch):
                _load_anew(nvml)
            raise SensorFailed(f"NVML: {where}{error}; see 'nvidia-smi' and the kernel's log") from error
        self._answered = self._answered or bool(gpus)
        return gpus

    def held(self) -> dict[int, dict[int, int]]:
        """What each process holds, by GPU and pid; raises SensorFailed. In a session of its own: NVML counts them."""
        nvml = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
            try:
                held: dict[int, dict[int, int]] = {}
                for card in _cards(nvml, nvml.nvmlDeviceGetCount(), self._number):
                    sizes = held.setdefault(card.number, {})
                    for (number, _), size in (_held(nvml, card.handle) or {}).items():
                        if size is not None:
                            pid = process_of(number)
                            sizes[pid] = sizes.get(pid, 0) + size
                return held
            finally:
                nvml.nvmlShutdown()
        except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
            return {}
        except nvml.NVMLError as error:
            raise SensorFailed(f"NVML: {error}; see 'nvidia-smi' and the kernel's log") from error

    def renew(self) -> None:
        """End the session: only a new one sees a GPU or a driver that came back."""
        self._end(importlib.import_module("pynvml"))

    def _begin(self, nvml: Any) -> None:
        if not self._initialised:
            nvml.nvmlInit()
            self._initialised = True
        count = nvml.nvmlDeviceGetCount()
        if count != self._count:
            self._cards = list(_cards(nvml, count, self._number))
            self._count = count

    def _end(self, nvml: Any) -> None:
        if self._initialised:
            self._initialised = False
            self._count = -1
            # A driver that is gone cannot end its session either, and there is nothing left to end.
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def _cards(nvml: Any, count: int, number: Callable[[str, int], int]) -> Iterator[_Card]:
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError_NoPermission:
            # Counted all the same: the GPU of another container or user.
            continue
        # By its UUID, since NVML numbers anew when a GPU came or went: what was 1 may be called 0.
        yield _Card(number(nvml.nvmlDeviceGetUUID(handle), index), nvml.nvmlDeviceGetName(handle), handle)


def _gpu(nvml: Any, card: _Card, ours: Mapping[int, int]) -> Gpu | None:
    """One GPU; ``None`` when it has no memory of its own to report, as where it shares the machine's RAM.

    ``ours`` has the threads of our model's processes, each with its process.
    """
    memory = _memory(nvml, card.handle)
    if memory is None:
        return None
    total, used, free = memory
    load = _if_allowed(nvml, "nvmlDeviceGetUtilizationRates", card.handle)
    return Gpu(
        index=card.number,
        name=card.name,
        total_bytes=total,
        used_bytes=used,
        free_bytes=free,
        own_bytes=_own_bytes(nvml, card.handle, ours),
        utilisation_ratio=None if load is None else load.gpu / 100,
        temperature_c=_temperature(nvml, card.handle),
        throttled=_throttled(nvml, card.handle),
    )


def _memory(nvml: Any, handle: object) -> tuple[int, int, int] | None:
    """Total, used and free; those of its MIG instances together where only they may be looked at."""
    # The first version of this call, because it counts what the driver keeps for itself as used.
    memory = _if_allowed(nvml, "nvmlDeviceGetMemoryInfo", handle)
    # One that shares the machine's RAM may also answer, with nothing.
    if memory is not None and memory.total:
        return memory.total, memory.used, memory.free
    # By GPU instance: the compute instances within one share its memory.
    parts = {
        nvml.nvmlDeviceGetGpuInstanceId(instance): nvml.nvmlDeviceGetMemoryInfo(instance)
        for instance in _instances(nvml, handle)
    }.values()
    if not parts:
        return None
    return sum(part.total for part in parts), sum(part.used for part in parts), sum(part.free for part in parts)


def _instances(nvml: Any, handle: object) -> Iterator[object]:
    """The MIG instances of a GPU that we may use; none out of MIG mode.

    Asked for at each read: an instance may be made anew under the same handle.
    Source: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/.
    """
    for place in range(_if_allowed(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except (nvml.NVMLError_NotFound, nvml.NVMLError_NoPermission):
            # No instance in this place, or another container's.
            continue


def _temperature(nvml: Any, handle: object) -> float | None:
    sensor = nvml.NVML_TEMPERATURE_GPU
    try:
        celsius = _if_allowed(nvml, "nvmlDeviceGetTemperatureV", handle, sensor)
    except nvml.NVMLError_ArgumentVersionMismatch:
        celsius = None
    if celsius is None:
        # Drivers and releases of pynvml from before this call have only its deprecated elder.
        celsius = _if_allowed(nvml, "nvmlDeviceGetTemperature", handle, sensor)
    return None if celsius is None else float(celsius)


def _throttled(nvml: Any, handle: object) -> bool | None:
    """Whether heat slows it down: by software, or by the hardware's own protection."""
    reasons = _if_allowed(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:
        # The same bits under the name that it had before.
        reasons = _if_allowed(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return None if reasons is None else bool(reasons & HEAT)


def _own_bytes(nvml: Any, handle: object, ours: Mapping[int, int]) -> int | None:
    if not ours:
        return 0
    held = _held(nvml, handle)
    if held is None:
        return None
    own: dict[int, int] = {}
    for (number, _), size in held.items():
        if number in ours:
            if size is None:
                return None
            own[ours[number]] = own.get(ours[number], 0) + size
    # Nobody who is listed holds nothing: drivers 535 to 560 tell 0 of processes in a container, and of those that came
    # to the GPU by another than their first thread. Before, and where such a thread has ended, a number that nobody
    # here has may be ours. Source: gpu_rmapi.c and os-interface.c in NVIDIA's open-gpu-kernel-modules.
    unknown = not all(own.values()) if own else not all(is_here(number) for number, _ in held)
    return None if unknown else sum(own.values())


def _held(nvml: Any, handle: object) -> dict[tuple[int, int], Any] | None:
    """What each process holds, by its pid and MIG instance: bytes, or None where the driver keeps it to itself.

    In place of the pid, drivers 535 to 570 may tell the number of the thread that first came to the GPU. None
    altogether where this GPU has no list of its processes.
    """
    lists = list(_lists(nvml, [handle])) or list(_lists(nvml, _instances(nvml, handle)))
    if not lists:
        return None
    # A process that computes and draws is in both lists with all of its memory, and once a MIG instance in each.
    return {(process.pid, process.gpuInstanceId): process.usedGpuMemory for listed in lists for process in listed}


def _lists(nvml: Any, handles: Iterable[object]) -> Iterator[Any]:
    for handle in handles:
        for query in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            listed = _if_allowed(nvml, f"{query}_v3", handle)
            if listed is None:
                # Drivers from before 510 have the version before only, which tells the same.
                listed = _if_allowed(nvml, f"{query}_v2", handle)
            if listed is not None:
                yield listed


def _if_allowed(nvml: Any, query: str, *arguments: object) -> Any:
    """What NVML's ``query`` answers; ``None`` where the GPU, its MIG mode, its driver or our rights do not allow it."""
    # An older release of pynvml may lack a call that the driver has, or the other way round.
    if not hasattr(nvml, query):
        return None
    try:
        return getattr(nvml, query)(*arguments)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return None


def _load_anew(nvml: Any) -> None:
    """Have pynvml use the library that an update of the driver put in place of the one that it has loaded.

    The old one is of no use any more: it refuses every driver but its own. It stays in memory, once an update, since a
    call of another thread may still be in it.
    """
    if PROC is None:
        return
    for line in (PROC / "self" / "maps").read_text(errors="replace").splitlines():
        # The last of six fields is the file. Source: proc_pid_maps(5).
        *_, file = line.split(maxsplit=5)
        if LIBRARY in file:
            # Where the link leads: by the name of the link itself the loader would hand out the old one again.
            library = os.path.realpath(os.path.join(os.path.dirname(file), f"{LIBRARY}.1"))
            if os.path.exists(library):
                nvml.nvmlLib = ctypes.CDLL(library)
                nvml._nvmlGetFunctionPointer_cache.clear()
            return
