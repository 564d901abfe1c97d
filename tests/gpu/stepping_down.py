"""The larger of two levels is driven off the GPU by another process, in the middle of an answer.

For a real GPU and for a stand-in alike: they differ in how the GPU is read, and in who takes its memory.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaler.events import AnswerHandedOver, ModelDied, SwitchFailed
from scaler.levels import GIB
from scaler.readings import Gpu, Memory
from scaler.sensors import Sensor
from scaler.sensors.gpu import GpuSensor
from scaler.sensors.processes import process_tree
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine
from tests.end_to_end.test_ladder import COUNT, COUNTED, decisions, settles_at

SCALE_AT, CRITICAL_AT = 0.80, 0.95
VRAM_GIB = 2.5
"""What the larger level is declared to take: 0.6 GiB of weights, 1 GiB of cache, and what CUDA takes for itself."""
WEIGHTS_BYTES = 600 * MIB
"""A little less than the larger model's file; a process that holds less has no layers on the GPU."""
CONTEXT_TOKENS = 8192
LOOK_EVERY_S = 0.005


class GpuMachine(Machine):
    """Its GPUs are those that NVML tells of, and it has so much RAM that nothing is decided by it."""

    def sensors(self, own_pids: Callable[[], Collection[int]]) -> Sequence[Sensor]:
        """What ModelManager asks for."""
        return (*super().sensors(own_pids), GpuSensor(process_tree(own_pids)))

    def read(self) -> Memory:
        """RAM."""
        return Memory(1024 * GIB, 512 * GIB)


@dataclass(frozen=True)
class Card:
    """The GPU."""

    number: int
    look: Callable[[Collection[int]], Gpu]
    """What it is now, with the part of these processes as its own."""
    take: Callable[[int], None]
    """Has another process take so many bytes of it."""


@dataclass(frozen=True)
class Figures:
    """What a step down was like."""

    held_bytes: int
    """What the larger level held of the GPU."""
    taken_bytes: int
    """What the other process took."""
    taking_s: float
    """How long that took."""
    freed_s: float
    """From when it began to take it until what the level held was free."""


def ladder(models: Mapping[str, Path], binary: Path, gpu: int) -> list[dict[str, Any]]:
    """Two llama-servers, a small one beside the GPU and a large one on it."""
    both = {"runtime": "llama-server", "binary": str(binary), "context_tokens": CONTEXT_TOKENS}
    return [
        {"name": "small", "model": str(models["small"]), "ram_gib": 0.3, **both},
        {
            "name": "large",
            "model": str(models["large"]),
            "ram_gib": 2.0,
            "vram_gib": VRAM_GIB,
            "gpu": gpu,
            "gpu_layers": 99,
            **both,
        },
    ]


def step_down(
    running: Callable[..., Any], levels: Sequence[Mapping[str, Any]], card: Card, answer_tokens: int
) -> Figures:
    """Climb the ladder, take the GPU's memory until its use is critical, and see that all gives way as it should.

    The answer that is under way meanwhile has ``answer_tokens``, the first thousand of them a count. Skips when NVML
    shows that the large level does not hold its weights in the GPU.
    """
    empty = card.look(())
    room = SCALE_AT * 0.9 * empty.total_bytes - empty.used_bytes
    if room < VRAM_GIB * GIB:
        pytest.skip(f"{empty.name}: others use {empty.used_bytes // MIB} of {empty.total_bytes // MIB} MiB")
    policy = {"vram_scale_at": SCALE_AT, "vram_critical_at": CRITICAL_AT}
    with running(ladder=levels, policy=policy) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        (pid,) = manager._switcher.pids()
        before = card.look([pid])
        if before.own_bytes is None or before.own_bytes < WEIGHTS_BYTES:
            pytest.skip(
                f"{levels[-1]['binary']} did not load onto {empty.name}: NVML tells of {before.own_bytes} bytes of its"
                " process; name a llama-server that can in SCALER_GPU_LLAMA_SERVER (in a container, see --pid=host)"
            )
        held = before.own_bytes
        taken = math.ceil(CRITICAL_AT * before.total_bytes) - before.used_bytes + 64 * MIB

        def press() -> Figures:
            began = time.monotonic()
            card.take(taken)
            full = time.monotonic()
            while (gpu := card.look([pid])).own_bytes or gpu.used_bytes > before.used_bytes + taken - 0.95 * held:
                assert time.monotonic() < full + PATIENCE_S, f"{gpu}; seen: {watch.told()}"
                time.sleep(LOOK_EVERY_S)
            return Figures(held, taken, full - began, time.monotonic() - began)

        async def talk() -> tuple[str, list[str], Figures]:
            text, by = "", list[str]()
            pressing: asyncio.Task[Figures] | None = None
            async for level, data in manager.chat({**COUNT, "ignore_eos": True, "max_tokens": answer_tokens}):
                text += "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))
                if level not in by:
                    by.append(level)
                if pressing is None and len(text) > 20:
                    pressing = asyncio.create_task(asyncio.to_thread(press))
            assert pressing is not None
            return text, by, await pressing

        text, by, figures = asyncio.run(talk())
        assert text.startswith(COUNTED)
        assert len(text.split()) == answer_tokens
        assert by == ["large", "small"]
        assert [event.reason for event in watch.told() if isinstance(event, AnswerHandedOver)] == [None]
        settles_at(manager, watch, "small")
        assert decisions(watch)[-1] == ("large", "small")
        assert not psutil.pid_exists(pid)
        assert not any(isinstance(event, ModelDied | SwitchFailed) for event in watch.told())
        return figures
