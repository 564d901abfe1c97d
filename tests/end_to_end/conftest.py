"""A machine whose other programs do as the test says, with a real ladder of real llama.cpp processes on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaler.events import ScalerEvent
from scaler.manager import ModelManager
from scaler.monitor import ReadingTaken
from scaler.proactive import Event
from scaler.readings import Memory
from scaler.sensors import Sensor
from scaler.sensors.processes import ProcessesSensor, process_tree
from scaler.serving.app import Endpoint

MIB = 1024**2
TOTAL = 4096 * MIB
PATIENCE_S = 60.0
"""How long a test waits for something that takes a second or two; only a failing test waits that long."""


class Machine:
    """4 GiB of RAM, of which the test says what others use; our own part is read from the real processes."""

    name = "memory"

    def __init__(self) -> None:
        self.other_bytes = 400 * MIB
        self.missing = False
        self._own: _Own | None = None

    def sensors(self, own_pids: Callable[[], Collection[int]]) -> Sequence[Sensor]:
        """What ModelManager asks for."""
        self._own = _Own(ProcessesSensor(process_tree(own_pids)))
        return (self, self._own)

    def read(self) -> Memory:
        """RAM as the test has it."""
        if self.missing:
            raise OSError("the test took the sensor away")
        assert self._own is not None
        return Memory(TOTAL, max(0, TOTAL - self.other_bytes - self._own.look()))


class _Own:
    """Our own part, the same in all of a reading: seen twice while a model comes or goes, others would seem to change.

    The real sensors cannot help that; here others take what the test says, to the byte.
    """

    name = ProcessesSensor.name

    def __init__(self, sensor: ProcessesSensor) -> None:
        self._sensor = sensor
        self._seen: int | None = None

    def look(self) -> int:
        """What it is now, and at the next `read`."""
        self._seen = seen = self._sensor.read()
        return seen

    def read(self) -> int:
        """Our own RAM."""
        seen, self._seen = self._seen, None
        return self._sensor.read() if seen is None else seen


class Watch:
    """Everything that a scaler tells, to wait for."""

    def __init__(self, manager: ModelManager) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()
        manager.scaler.subscribe(self._take)

    def _take(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until ``holds()``; it is asked after every event."""
        with self._changed:
            assert self._changed.wait_for(holds, PATIENCE_S), f"{what}; seen: {self.told()}"

    def readings(self, count: int) -> None:
        """Wait until ``count`` readings that were begun from now on were taken: of what is so now, or later."""
        now_s = time.monotonic()
        self.until(lambda: self._begun_since(now_s) >= count, f"{count} more readings")

    def told(self) -> list[ScalerEvent]:
        """The events but for the readings."""
        return [event for event in self.events if isinstance(event, ScalerEvent)]

    def _begun_since(self, since_s: float) -> int:
        return sum(isinstance(event, ReadingTaken) and event.reading.at_s >= since_s for event in self.events)


@pytest.fixture
def machine() -> Machine:
    """The machine of the test."""
    return Machine()


@pytest.fixture
def configure(tmp_path: Path, demo_models: dict[str, Path]) -> Callable[..., Path]:
    """Writes a configuration of the demo ladder with a dwell of a second, changed as asked."""

    def write(levels: Sequence[str] = ("small", "medium", "large"), **changes: Any) -> Path:
        ram_gib = {"small": 0.08, "medium": 0.24, "large": 0.8}
        config: dict[str, Any] = {
            "tier": "mid_range",
            "ladder": [
                {
                    "name": name,
                    "model": str(demo_models[name]),
                    "quality": 0.5,
                    "ram_gib": ram_gib[name],
                    "context_tokens": 2048,
                    "threads": 1,
                }
                for name in levels
            ],
            "queue": {"limit": 64, "wait_s": 30},
            "monitor": {"interval_s": 0.05},
            "journal": {"path": str(tmp_path / "journal.jsonl")},
            "recording": {"path": str(tmp_path / "recording")},
            "remembered": {"path": str(tmp_path / "remembered.json")},
            "policy": {
                "dwell_s": 1.0,
                "dwell_max_s": 1.0,
                "debounce_s": 0.2,
                "recovery_s": 0.2,
                "backoff_s": 1.0,
                "backoff_max_s": 4.0,
                "trend_window_s": 0.4,
                "switch_margin_s": 0.1,
            },
        }
        for section, values in changes.items():
            config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
        path = tmp_path / "scaler.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def running(machine: Machine, configure: Callable[..., Path]) -> Callable[..., Any]:
    """Starts a manager on the machine: ``with running(...) as (manager, watch)``."""

    @contextmanager
    def start(**changes: Any) -> Iterator[tuple[ModelManager, Watch]]:
        with ModelManager(configure(**changes), sensors=machine.sensors) as manager:
            yield manager, Watch(manager)

    return start


@pytest.fixture
def serving(running: Callable[..., Any]) -> Callable[..., Any]:
    """Starts a manager with an endpoint on a free port."""

    @contextmanager
    def start(**changes: Any) -> Iterator[tuple[str, ModelManager, Watch]]:
        with running(**changes) as (manager, watch):
            endpoint = Endpoint(manager, "127.0.0.1", 0)
            endpoint.start()
            try:
                yield endpoint.url, manager, watch
            finally:
                endpoint.stop()

    return start
