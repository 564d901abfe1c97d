"""What is read of the machine: memory, control groups, pressure, swap, processors, power, heat, GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaler.cli.examination import Finding, Patient, note, ok, problem
from scaler.levels import RAM, gpu_resource
from scaler.monitor import MonitorEvent, ResourceMonitor, SensorLost
from scaler.readings import Reading
from scaler.words import gib, percent

NVIDIA_DRIVER = Path("/dev/nvidiactl")
"""Where NVIDIA's driver is spoken to on Linux."""
NOTHING_DECIDED = "nothing is decided without it, so that no level is ever loaded"
LOST = {
    "memory": NOTHING_DECIDED,
    "own_bytes": NOTHING_DECIDED,
    "gpus": "levels on a GPU are not climbed to",
    "pressure": "whether tasks wait for memory is not known",
    "swap": "swapping is not seen",
    "cpu": "how busy the processors are is not known",
    "power": "battery power is not seen",
    "thermal": "heat is not seen",
}
"""What it means that a sensor fails."""


def examine(patient: Patient) -> Iterator[Finding]:
    """One reading, as `scaler run` takes it: a sensor that hangs is given up after the monitor's time limit."""
    lost: dict[str, str] = {}

    def take(event: MonitorEvent) -> None:
        if isinstance(event, SensorLost):
            lost[event.sensor] = event.reason

    monitor = ResourceMonitor()
    monitor.subscribe(take)
    reading = monitor.read_now()
    for sensor, reason in lost.items():
        means = LOST.get(sensor, "it is not known")
        do = "see docs/gpus.md" if sensor == "gpus" else "see that scaler may read the file that is named"
        yield problem("GPUs" if sensor == "gpus" else sensor.removesuffix("_bytes"), f"{reason}: {means}", do)
    yield from _memory(reading)
    if "pressure" not in lost:
        yield _pressure(reading)
    if "swap" not in lost:
        swap = reading.swap
        used = "none" if swap is None or not swap.total_bytes else f"{gib(swap.used_bytes)} of {gib(swap.total_bytes)}"
        yield ok("swap", used)
    if reading.cpu is not None:
        yield ok("processors", f"{reading.cpu.cores} cores")
    if "power" not in lost:
        yield ok("power", _power(reading))
    if "thermal" not in lost:
        yield ok("heat", _heat(reading))
    if "gpus" not in lost:
        yield from _gpus(reading)
        yield from _absent_gpus(patient, reading)


def _memory(reading: Reading) -> Iterator[Finding]:
    memory = reading.memory
    if memory is None:
        return
    by = "" if memory.limited_by == "machine" else f"; the limit is that of {memory.limited_by}"
    yield ok("memory", f"{gib(memory.total_bytes)}, {gib(memory.available_bytes)} of it available{by}")


def _pressure(reading: Reading) -> Finding:
    if reading.pressure is None or reading.pressure.memory is None:
        return note(
            "pressure",
            "this kernel does not tell whether tasks wait for memory (PSI); climbs are decided without it",
            "on Linux 4.20 or newer: boot with psi=1",
        )
    stalled = percent(reading.pressure.memory.some_avg10_ratio)
    return ok("pressure", f"told by the kernel (PSI): tasks waited for memory {stalled} of the last 10 s")


def _power(reading: Reading) -> str:
    power = reading.power
    if power is None or power.plugged_in is None:
        return "this machine tells of no battery"
    battery = "" if power.battery_ratio is None else f", battery at {percent(power.battery_ratio)}"
    return f"{'plugged in' if power.plugged_in else 'on battery'}{battery}"


def _heat(reading: Reading) -> str:
    if reading.thermal is None or reading.thermal.throttled is None:
        return "this machine does not tell whether heat slows its processors down"
    return "slows the processors down now" if reading.thermal.throttled else "does not slow the processors down"


def _gpus(reading: Reading) -> Iterator[Finding]:
    for gpu in reading.gpus or ():
        hot = ", slowed down for heat" if gpu.throttled else ""
        yield ok(
            gpu_resource(gpu.index),
            f"{gpu.name}: {gib(gpu.used_bytes)} of {gib(gpu.total_bytes)} used{hot}",
        )
    if reading.gpus:
        return
    if NVIDIA_DRIVER.exists():
        yield note(
            "GPUs",
            "NVIDIA's driver is here, and its library libnvidia-ml.so.1 tells of no GPU",
            "in a container, have it given the GPU and the library (--gpus all); see docs/gpus.md",
        )
    else:
        yield ok("GPUs", "none that tells of memory of its own")


def _absent_gpus(patient: Patient, reading: Reading) -> Iterator[Finding]:
    """Levels that are said to be on a GPU that is not there: they are never climbed to."""
    if patient.settings is None or patient.fault:
        return
    for level in patient.settings.ladder:
        for resource in level.declared:
            if resource != RAM and reading.usage(resource) is None:
                yield problem(
                    f"level {level.name}",
                    f"takes memory of {resource}, of which nothing is told here: it is never climbed to",
                    "correct the level's gpu, or leave vram_gib out; docs/gpus.md says which are seen",
                )
