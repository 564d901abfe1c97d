"""A whole ladder of llama-servers that scaler starts: up, down under pressure in the middle of an answer, and away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaler.events import AnswerHandedOver, ModelDied, SwitchFailed
from tests.end_to_end.conftest import MIB, TOTAL, Machine
from tests.end_to_end.test_ladder import COUNT, COUNTED, decisions, settles_at
from tests.llama_server_binary import BINARY, needs_llama_server

pytestmark = needs_llama_server
RAM_GIB = {"small": 0.08, "medium": 0.24, "large": 0.8}


@pytest.fixture
def ladder(demo_models: dict[str, Path]) -> list[dict[str, Any]]:
    """The demo models, each in a llama-server of its own."""
    return [
        {
            "name": name,
            "runtime": "llama-server",
            "binary": str(BINARY),
            "model": str(demo_models[name]),
            "ram_gib": ram_gib,
            "context_tokens": 2048,
            "threads": 1,
        }
        for name, ram_gib in RAM_GIB.items()
    ]


def test_a_ladder_of_llama_servers_is_climbed_and_left_under_pressure(
    running: Callable[..., Any], machine: Machine, ladder: list[dict[str, Any]]
) -> None:
    """An answer that is under way is handed over whole, and at the end no process is left."""
    with running(ladder=ladder, policy={"drain_tokens": 40, "drain_seconds": 20.0}) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        (pid,) = manager._switcher.pids()
        memory = psutil.Process(pid).memory_info()
        assert memory.rss - memory.shared > 600 * MIB
        text, levels = "", list[str]()

        async def talk() -> None:
            nonlocal text
            async for level, data in manager.chat(COUNT):
                text += "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))
                if level not in levels:
                    levels.append(level)
                if len(text) > 20:
                    machine.other_bytes = 2900 * MIB

        asyncio.run(talk())
        assert text == COUNTED
        assert levels == ["large", "medium"]
        assert [event.reason for event in watch.told() if isinstance(event, AnswerHandedOver)] == [None]
        settles_at(manager, watch, "medium")
        assert not psutil.pid_exists(pid)
        machine.other_bytes = TOTAL * 97 // 100
        settles_at(manager, watch, "off")
        assert not manager._switcher.pids()
        assert decisions(watch)[-1][1] == "off"
        assert not any(isinstance(event, ModelDied | SwitchFailed) for event in watch.told())


def test_an_answer_whose_llama_server_is_killed_goes_on_where_it_stood(
    running: Callable[..., Any], machine: Machine, ladder: list[dict[str, Any]]
) -> None:
    """kill -9 in the middle of it: the client sees one whole answer, and the death is told."""
    machine.other_bytes = 3000 * MIB
    with running(ladder=ladder[:1]) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        pids, text = list(manager._switcher.pids()), ""

        async def talk() -> None:
            nonlocal text
            async for _, data in manager.chat(COUNT):
                text += "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))
                if len(text) > 100 and pids:
                    os.kill(pids.pop(), signal.SIGKILL)

        asyncio.run(talk())
        assert text == COUNTED
        (died,) = [event for event in watch.told() if isinstance(event, ModelDied)]
        assert "killed" in died.reason


def test_a_level_that_cannot_be_loaded_is_told_and_the_one_below_serves_on(
    running: Callable[..., Any], ladder: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Here its program was never built."""
    ladder[1]["binary"] = str(tmp_path / "llama-server")
    with running(ladder=ladder[:2]) as (manager, watch):
        manager.scaler.want(True)
        watch.until(lambda: any(isinstance(event, SwitchFailed) for event in watch.told()), "a failed switch")
        failed = next(event for event in watch.told() if isinstance(event, SwitchFailed))
        assert f"medium: {tmp_path / 'llama-server'}: no such file; correct the level's binary" in failed.reason
        settles_at(manager, watch, "small")
        assert "small" in manager.generate_response_sync("Who are you?").text
