"""The sensors: each reads one part of the machine from the operating system or a driver.

Owns what a sensor is and which ones scaler uses. Knows the data types of a reading and nothing of
thresholds, threads, time limits or who listens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from scaler.sensors.cpu import CpuSensor
from scaler.sensors.gpu import GpuSensor
from scaler.sensors.memory import MemorySensor
from scaler.sensors.power import PowerSensor
from scaler.sensors.pressure import PressureSensor
from scaler.sensors.processes import ProcessesSensor, process_tree
from scaler.sensors.swap import SwapSensor
from scaler.sensors.thermal import ThermalSensor


class Sensor(Protocol):
    """Reads one part of the machine."""

    @property
    def name(self) -> str:
        """The field of :class:`scaler.readings.Reading` that it fills."""

    def read(self) -> object:
        """Return that field's value now, or ``None`` for what this machine lacks.

        Raises SensorFailed or OSError when the machine has it and it could not be read.
        """


def default_sensors(own_pids: Callable[[], Collection[int]]) -> tuple[Sensor, ...]:
    """Every sensor there is; ``own_pids`` returns the roots of our model's process trees."""
    tree = process_tree(own_pids)
    return (
        MemorySensor(),
        ProcessesSensor(tree),
        SwapSensor(),
        CpuSensor(tree),
        PressureSensor(),
        GpuSensor(tree),
        PowerSensor(),
        ThermalSensor(),
    )
