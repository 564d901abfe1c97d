"""A model that hangs in the middle of an answer: the client gets a whole one all the same."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaler.events import AnswerHandedOver, ModelDied
from tests.end_to_end.conftest import MIB, Machine
from tests.end_to_end.test_ladder import COUNT, COUNTED, settles_at
from tests.llama_server_binary import BINARY, needs_llama_server


@pytest.mark.parametrize("runtime", ["embedded", pytest.param("llama-server", marks=needs_llama_server)])
def test_an_answer_whose_model_is_stopped_for_good_goes_on_where_it_stood(
    running: Callable[..., Any], machine: Machine, demo_models: dict[str, Path], runtime: str
) -> None:
    """Nothing ends, nothing breaks: only silence tells. It is told with its cause, and a new model takes over."""
    machine.other_bytes = 3000 * MIB
    level: dict[str, Any] = {
        "name": "small",
        "runtime": runtime,
        "model": str(demo_models["small"]),
        "ram_gib": 0.08,
        "context_tokens": 2048,
        "threads": 1,
        "hang_s": 1.5,
    }
    if runtime == "llama-server":
        level["binary"] = str(BINARY)
    with running(ladder=[level]) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        (pid,) = manager._switcher.pids()
        text, stopped = "", False

        async def talk() -> None:
            nonlocal text, stopped
            async for _, data in manager.chat(COUNT):
                text += "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))
                if len(text) > 100 and not stopped:
                    stopped = True
                    os.kill(pid, signal.SIGSTOP)

        asyncio.run(talk())
        assert text == COUNTED
        (died,) = [event for event in watch.events if isinstance(event, ModelDied)]
        assert "it hung: it said nothing and computed nothing for 1.5 s, and was killed" in died.reason
        (over,) = [event for event in watch.events if isinstance(event, AnswerHandedOver)]
        assert "it hung" in (over.reason or "")
        settles_at(manager, watch, "small")
        assert pid not in manager._switcher.pids()
