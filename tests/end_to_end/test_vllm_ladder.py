"""A whole ladder of vLLM servers on one GPU: up, down under pressure there in the middle of an answer, and away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from scaler.errors import LevelUnavailable
from scaler.events import AnswerHandedOver
from scaler.levels import GIB
from scaler.sensors import Sensor
from scaler.sensors.gpu import GpuSensor
from scaler.sensors.processes import process_tree
from tests.end_to_end.conftest import Machine
from tests.end_to_end.test_endpoint import client
from tests.end_to_end.test_ladder import decisions, settles_at
from tests.runtimes.vllm_server import VllmServer, hold
from tests.sensors.conftest import FakeNvml, nvml, nvml_library

__all__ = ["nvml", "nvml_library"]
SIZES = {"small": 4 * GIB, "large": 16 * GIB}
ASLEEP = GIB // 8
TOTAL = 24 * GIB
SOMEBODY = 1


class GpuMachine(Machine):
    """The same with a GPU, which the real pynvml reads from the stand-in's library."""

    def sensors(self, own_pids: Callable[[], Collection[int]]) -> Sequence[Sensor]:
        """What ModelManager asks for."""
        return (*super().sensors(own_pids), GpuSensor(process_tree(own_pids)))


@pytest.fixture
def machine(nvml: FakeNvml) -> Machine:
    """A machine with a GPU of 24 GiB that nobody uses."""
    nvml.gpu("Fake GPU", TOTAL, 0)
    return GpuMachine()


@pytest.fixture
def servers(nvml: FakeNvml, machine: Machine) -> Iterator[dict[str, VllmServer]]:
    """A server for each level; both stand awake."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(VllmServer(name, size, state=nvml.state, asleep_bytes=ASLEEP))
            for name, size in SIZES.items()
        }


def test_a_ladder_of_vllm_servers_is_climbed_and_left_under_pressure_on_the_gpu(
    serving: Callable[..., Any], nvml: FakeNvml, servers: dict[str, VllmServer]
) -> None:
    """An answer that is under way is handed over whole; one server is awake at a time, and at the end none."""
    ladder = [
        {
            "name": name,
            "runtime": "vllm",
            "url": servers[name].url,
            "model": name,
            "vram_gib": SIZES[name] / GIB,
            "sleep": 1 if name == "small" else 2,
        }
        for name in ("small", "large")
    ]

    def others(size: int) -> None:
        hold(nvml.state, (0,), SOMEBODY, size)

    with serving(ladder=ladder, policy={"drain_seconds": 0.1}) as (url, manager, watch):
        manager.scaler.want(True)
        # Both stood awake: with 20 of 24 GiB in use nothing could have been climbed to.
        settles_at(manager, watch, "large")
        servers["large"].set(token_s=0.005)
        servers["small"].set(token_s=0.001)
        stream = client(url).chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Count."}], stream=True
        )
        text, levels = "", []
        for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            if chunk.model not in levels:
                levels.append(chunk.model)
            if len(text) > 100 and levels == ["large"]:
                # Room for the small one only, and not for both at once.
                others(7 * GIB)
        assert text == "".join(f" {number}" for number in range(1, 1000))
        assert levels == ["large", "small"]
        assert any(isinstance(event, AnswerHandedOver) for event in watch.told())
        settles_at(manager, watch, "small")
        (pid,) = manager._switcher.pids()
        assert pid == servers["small"].pid
        others(19 * GIB)
        settles_at(manager, watch, "off")
        assert not manager._switcher.pids()
        assert decisions(watch)[-2:] == [("large", "small"), ("small", "off")]
        others(0)
        settles_at(manager, watch, "large")
        answer = client(url).chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Count."}], max_tokens=3
        )
        # From its deep sleep the large one has its weights again.
        assert (answer.model, answer.choices[0].message.content) == ("large", " 1 2 3")


def test_a_server_that_will_not_sleep_keeps_nothing_else_from_ending(
    serving: Callable[..., Any], servers: dict[str, VllmServer]
) -> None:
    """It is told at the end, and every thread and file is closed all the same."""
    ladder = [{"name": "small", "runtime": "vllm", "url": servers["small"].url, "model": "small", "vram_gib": 4}]
    with ExitStack() as running:
        _, manager, watch = running.enter_context(serving(ladder=ladder))
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        servers["small"].set(stays_awake=True)
        ending = running.pop_all()
    with pytest.raises(LevelUnavailable, match="told to sleep, the server is still awake"):
        ending.close()
    assert not manager.effects.running
    assert not any(thread.name.startswith("scaler") for thread in threading.enumerate())
    # There is nothing left to do.
    manager.shutdown()
