"""What a real GPU is tried with, beside a stand-in for NVML, so that it is known to work before there is a GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaler.levels import GIB
from scaler.readings import Gpu
from scaler.sensors import Sensor
from scaler.sensors.gpu import GpuSensor
from scaler.sensors.processes import process_tree
from tests.gpu.stepping_down import Card, GpuMachine, ladder, step_down
from tests.llama_server_binary import BINARY, needs_llama_server
from tests.runtimes.vllm_server import hold
from tests.sensors.conftest import FakeNvml, nvml, nvml_library

__all__ = ["nvml", "nvml_library"]
pytestmark = needs_llama_server
TOTAL = 24 * GIB
SOMEBODY = 1
HELD = 2 * GIB
ANSWER_TOKENS = 1200


class HeldByLarge:
    """Has the process of the large level hold some of the GPU for as long as it lives, as each reading finds it."""

    name = "gpus"

    def __init__(self, state: Path, own_pids: Callable[[], Collection[int]], held_bytes: int) -> None:
        self._state, self._own_pids, self._held_bytes = state, own_pids, held_bytes
        self._gpus = GpuSensor(process_tree(own_pids))
        self._holders: set[int] = set()

    def read(self) -> tuple[Gpu, ...] | None:
        """The GPUs."""
        live = {pid for pid in self._own_pids() if _is_large(pid)}
        for pid in live - self._holders:
            hold(self._state, (0,), pid, self._held_bytes)
        for pid in self._holders - live:
            hold(self._state, (0,), pid, 0)
        self._holders = live
        return self._gpus.read()


def _is_large(pid: int) -> bool:
    try:
        return any(argument.endswith("large.gguf") for argument in psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return False


class StandIn(GpuMachine):
    """One GPU of 24 GiB."""

    def __init__(self, nvml: FakeNvml) -> None:
        super().__init__()
        nvml.gpu("Fake GPU", TOTAL, 0)
        self.state = nvml.state
        self.held_bytes = HELD

    def sensors(self, own_pids: Callable[[], Collection[int]]) -> Sequence[Sensor]:
        """What ModelManager asks for."""
        *others, _ = super().sensors(own_pids)
        return (*others, HeldByLarge(self.state, own_pids, self.held_bytes))

    def card(self) -> Card:
        """It, and somebody who takes its memory."""

        def look(own: Collection[int]) -> Gpu:
            (gpu,) = GpuSensor(process_tree(lambda: own)).read() or ()
            return gpu

        return Card(0, look, lambda size: hold(self.state, (0,), SOMEBODY, size))


@pytest.fixture
def machine(nvml: FakeNvml) -> StandIn:
    """The machine of the test."""
    return StandIn(nvml)


def test_a_level_on_the_gpu_gives_way_to_another_process(
    running: Callable[..., Any], machine: StandIn, demo_models: dict[str, Path]
) -> None:
    """Its memory is free again, and the answer that it was giving is whole."""
    figures = step_down(running, ladder(demo_models, BINARY, 0), machine.card(), ANSWER_TOKENS)
    assert figures.held_bytes == HELD
    assert figures.taken_bytes > 0.95 * TOTAL - HELD
    assert figures.taking_s <= figures.freed_s


def test_what_did_not_load_onto_the_gpu_is_skipped_and_not_passed(
    running: Callable[..., Any], machine: StandIn, demo_models: dict[str, Path]
) -> None:
    """A llama-server that finds no GPU computes without one, and would show nothing."""
    machine.held_bytes = 0
    with pytest.raises(pytest.skip.Exception, match="did not load onto Fake GPU: NVML tells of 0 bytes"):
        step_down(running, ladder(demo_models, BINARY, 0), machine.card(), ANSWER_TOKENS)
