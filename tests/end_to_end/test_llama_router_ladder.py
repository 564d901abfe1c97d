"""A whole ladder of models that a llama-server in router mode holds: up, down in the middle of an answer, and away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from scaler.events import AnswerHandedOver, ModelDied, SwitchFailed
from tests.end_to_end.conftest import MIB, TOTAL, Machine
from tests.end_to_end.test_ladder import COUNT, COUNTED, decisions, settles_at
from tests.llama_server_binary import Router, needs_llama_server, router

pytestmark = needs_llama_server
RAM_GIB = {"small": 0.08, "medium": 0.24, "large": 0.8}
WINDOWS = ("--ctx-size", "4096", "--parallel", "2")


def ladder(at: Router, ram_gib: Mapping[str, float] = RAM_GIB) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "runtime": "llama-router",
            "url": at.url,
            "model": name,
            "ram_gib": size,
            "context_tokens": 2048,
        }
        for name, size in ram_gib.items()
    ]


def loaded(at: Router) -> list[str]:
    return [name for name, status in at.status().items() if status == "loaded"]


def test_a_ladder_of_a_routers_models_is_climbed_and_left_under_pressure(
    running: Callable[..., Any], machine: Machine, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """An answer that is under way is handed over whole, one model is held at a time, and at the end none."""
    policy = {"drain_tokens": 40, "drain_seconds": 20.0}
    with (
        router(tmp_path / "models", demo_models, "--models-max", "2", *WINDOWS) as at,
        running(ladder=ladder(at), policy=policy) as (manager, watch),
    ):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        (pid,) = manager._switcher.pids()
        assert psutil.Process(pid).memory_info().rss > 600 * MIB
        assert loaded(at) == ["large"]
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
        assert loaded(at) == ["medium"]
        assert not psutil.pid_exists(pid)
        machine.other_bytes = TOTAL * 97 // 100
        settles_at(manager, watch, "off")
        assert loaded(at) == []
        assert decisions(watch)[-1][1] == "off"
        assert not any(isinstance(event, ModelDied | SwitchFailed) for event in watch.told())


def test_a_router_for_one_model_climbs_by_unloading_first(
    running: Callable[..., Any], demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """The router would unload what serves by itself, in the middle of an answer; requests wait instead."""
    with (
        router(tmp_path / "models", demo_models, "--models-max", "1", *WINDOWS) as at,
        running(ladder=ladder(at, {"small": 0.08, "medium": 0.24})) as (manager, watch),
    ):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        assert decisions(watch) == [("off", "small"), ("small", "medium")]
        assert loaded(at) == ["medium"]
        assert "medium" in manager.generate_response_sync("Who are you?").text
        assert not any(isinstance(event, ModelDied | SwitchFailed) for event in watch.told())


def test_a_model_that_somebody_else_unloads_is_loaded_again_for_who_asks(
    running: Callable[..., Any], machine: Machine, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """The answer goes on where it stood."""
    machine.other_bytes = 3000 * MIB
    with (
        router(tmp_path / "models", demo_models, *WINDOWS) as at,
        running(ladder=ladder(at, {"small": 0.08})) as (manager, watch),
    ):
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
        assert "the router unloaded it or its process ended" in died.reason
        settles_at(manager, watch, "small")
        assert loaded(at) == ["small"]
