"""A level on a real NVIDIA GPU that another process drives away: `make test-gpu`. Skipped where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Machine, configure, running
from tests.gpu.conftest import MIB, SMALL, Device, holder, look, own_bytes
from tests.gpu.stepping_down import Card, GpuMachine, ladder, step_down
from tests.llama_server_binary import BINARY, needs_llama_server

__all__ = ["configure", "running"]
NAMED = os.environ.get("SCALER_GPU_LLAMA_SERVER")
pytestmark = [pytest.mark.timeout(300), *([] if NAMED else [needs_llama_server])]
ANSWER_TOKENS = 5000
"""Fewer, and a quick GPU might have said them all before its memory is taken."""


@pytest.fixture
def machine() -> Machine:
    """This machine's GPUs."""
    return GpuMachine()


@pytest.fixture
def card(device: Device) -> Iterator[Card]:
    """The GPU; another process stands ready to take its memory. Skips where no level on it could be judged."""
    with holder(device, SMALL) as other:
        own_bytes(device, other)
        yield Card(device.number, lambda own: look(device, own), other.take)


def test_a_level_on_the_gpu_gives_way_to_another_process(
    card: Card, running: Callable[..., Any], demo_models: dict[str, Path], device: Device
) -> None:
    """Its memory is free again, and the answer that it was giving is whole."""
    levels = ladder(demo_models, Path(NAMED) if NAMED else BINARY, card.number)
    figures = step_down(running, levels, card, ANSWER_TOKENS)
    print(
        f"\n{device.name}: another process took {figures.taken_bytes / MIB:.0f} MiB in {figures.taking_s:.2f} s;"
        f" {figures.held_bytes / MIB:.0f} MiB of our model were free {figures.freed_s:.2f} s after it had begun"
    )
