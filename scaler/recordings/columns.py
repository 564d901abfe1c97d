"""The form of a recording: which figures of a reading are kept, in what unit, and how they are read back.

The one home of the format; the recorder writes it, the recording reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from typing import NamedTuple

from scaler.readings import Cpu, Gpu, Memory, Power, Pressure, Reading, Stall, Swap

VERSION = 1
MARK = "# scaler recording"
"""How the first line of a file begins; `key=value` pairs follow."""
UNIT = 1024 * 256
"""Sizes are kept in quarters of a MiB: 0.002 % of 16 GiB, and short to write."""
COLUMNS = ("at_s", "available", "own", "swap", "cpu", "own_cpu", "stalled", "mains")
GPU_COLUMNS = ("used", "own")


class Machine(NamedTuple):
    """What does not change while a file is written. Sizes are bytes; GPUs are index and size."""

    memory: int | None
    swap: int | None
    cores: int | None
    gpus: tuple[tuple[int, int], ...]


def machine_of(reading: Reading) -> Machine:
    """What of a reading belongs into a file's first line."""
    return Machine(
        None if reading.memory is None else reading.memory.total_bytes,
        None if reading.swap is None else reading.swap.total_bytes,
        None if reading.cpu is None else reading.cpu.cores,
        tuple((gpu.index, gpu.total_bytes) for gpu in reading.gpus or ()),
    )


def completed(machine: Machine, before: Machine) -> Machine:
    """A machine with what it is known to have from before, where a sensor missed it now."""
    return Machine(
        before.memory if machine.memory is None else machine.memory,
        before.swap if machine.swap is None else machine.swap,
        before.cores if machine.cores is None else machine.cores,
        tuple(sorted({**dict(before.gpus), **dict(machine.gpus)}.items())),
    )


def header(machine: Machine, wall_s: float, at_s: float) -> str:
    """The two lines that a file begins with: what is constant, with both clocks at one moment, and the columns."""
    facts: dict[str, object] = {"version": VERSION, "wall_s": f"{wall_s:.2f}", "at_s": f"{at_s:.2f}", "unit": UNIT}
    constants = {"memory": machine.memory, "swap": machine.swap, "cores": machine.cores}
    facts |= {name: value for name, value in constants.items() if value is not None}
    facts |= {f"gpu{index}": total for index, total in machine.gpus}
    names = [*COLUMNS, *(f"gpu{index}_{name}" for index, _ in machine.gpus for name in GPU_COLUMNS)]
    return f"{MARK} {' '.join(f'{key}={value}' for key, value in facts.items())}\n{','.join(names)}\n"


def row(reading: Reading, machine: Machine) -> str:
    """One reading as a line; what is missing is empty."""
    memory, swap, cpu = reading.memory, reading.swap, reading.cpu
    stall = None if reading.pressure is None else reading.pressure.memory
    mains = None if reading.power is None else reading.power.plugged_in
    cells = [
        f"{reading.at_s:.2f}",
        _size(None if memory is None else memory.available_bytes),
        _size(reading.own_bytes),
        _size(None if swap is None else swap.used_bytes),
        _ratio(None if cpu is None else cpu.busy_ratio),
        _ratio(None if cpu is None else cpu.own_ratio),
        _ratio(None if stall is None else stall.some_avg10_ratio),
        "" if mains is None else str(int(mains)),
    ]
    gpus = {gpu.index: gpu for gpu in reading.gpus or ()}
    for index, _ in machine.gpus:
        gpu = gpus.get(index)
        cells += [_size(None if gpu is None else gpu.used_bytes), _size(None if gpu is None else gpu.own_bytes)]
    return ",".join(cells) + "\n"


def _size(size: int | None) -> str:
    # Rounded down, so that no figure comes to more than there is in all.
    return "" if size is None else str(size // UNIT)


def _ratio(ratio: float | None) -> str:
    # 0.07 as .07: shorter, and read back the same.
    if ratio is None or not 0 <= ratio < inf:
        return ""  # also NaN: it is missing, and not 0
    return f"{ratio:.2f}".removeprefix("0") if ratio >= 0.005 else "0"


def parser(facts: Mapping[str, float], names: Sequence[str]) -> Callable[[Sequence[str], float], Reading | None]:
    """What turns a line's cells into a reading, given a file's first two lines.

    It is called with the cells and the difference of the wall clock and the monotonic one, and returns None where the
    memory was not read. What cannot be, such as less than nothing or more than all, is missing. It raises ValueError
    for a cell that is no number, or too few of them. Raises KeyError when a column is missing that no reading can do
    without.
    """
    column = {name: position for position, name in enumerate(names)}
    at, available, own = column["at_s"], column["available"], column["own"]
    swap, cpu, own_cpu, stalled = (column.get(name) for name in ("swap", "cpu", "own_cpu", "stalled"))
    mains = column.get("mains")
    unit, total = int(facts["unit"]), int(facts["memory"])
    swap_total, cores = facts.get("swap"), int(facts.get("cores", 1))
    gpus = [
        (int(key[3:]), int(value), column[f"{key}_used"], column[f"{key}_own"])
        for key, value in facts.items()
        if key.startswith("gpu")
    ]
    width = len(names)

    def parse(cells: Sequence[str], wall_less_at_s: float) -> Reading | None:
        if len(cells) != width:
            raise ValueError(f"{len(cells)} values")
        at_s = float(cells[at])
        if not isfinite(at_s):
            raise ValueError("time is no number")
        free = int(cells[available]) * unit if cells[available] else -1
        if not 0 <= free <= total:
            return None
        reading = Reading(at_s, at_s + wall_less_at_s, Memory(total, free))
        reading.own_bytes = _within(cells[own], unit, total)
        if swap is not None and swap_total is not None:
            used = _within(cells[swap], unit, swap_total)
            reading.swap = None if used is None else Swap(int(swap_total), used)
        if cpu is not None and own_cpu is not None and (cells[cpu] or cells[own_cpu]):
            reading.cpu = Cpu(cores, _share(cells[cpu]), _share(cells[own_cpu]))
        if stalled is not None and (share := _share(cells[stalled])) is not None:
            reading.pressure = Pressure(Stall(share))
        if mains is not None and cells[mains]:
            reading.power = Power(cells[mains] != "0")
        if gpus:
            reading.gpus = tuple(
                Gpu(index, "", size, used, size - used, _within(cells[own_at], unit, size))
                for index, size, used_at, own_at in gpus
                if (used := _within(cells[used_at], unit, size)) is not None
            )
        return reading

    return parse


def _within(cell: str, unit: int, total: float) -> int | None:
    """A size in bytes, if it is one that can be."""
    if not cell:
        return None
    size = int(cell) * unit
    return size if 0 <= size <= total else None


def _share(cell: str) -> float | None:
    """A ratio 0..1, if it is one."""
    if not cell:
        return None
    ratio = float(cell)
    return ratio if 0 <= ratio <= 1 else None
