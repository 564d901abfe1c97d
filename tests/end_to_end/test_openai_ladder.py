"""A ladder whose top is a server elsewhere: it costs nothing here, and what is here takes over when it is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaler.events import AnswerHandedOver, ModelDied
from tests.end_to_end.conftest import TOTAL, Machine
from tests.end_to_end.test_endpoint import client
from tests.end_to_end.test_ladder import decisions, settles_at
from tests.runtimes.openai_server import OpenAIServer


def test_a_level_elsewhere_is_climbed_to_whatever_memory_says_and_left_when_it_is_gone(
    serving: Callable[..., Any], machine: Machine, demo_models: dict[str, Path]
) -> None:
    """An answer that the server elsewhere breaks off is finished here; pressure here does not drive it away."""
    with OpenAIServer(big=" The big one speaks") as server:
        ladder = [
            {"name": "small", "model": str(demo_models["small"]), "ram_gib": 0.08, "threads": 1},
            {"name": "far", "runtime": "openai", "url": server.url, "model": "big"},
        ]
        with serving(ladder=ladder) as (url, manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "far")
            assert not manager._switcher.pids()
            explained = subprocess.run(
                [sys.executable, "-m", "scaler", "explain", "--url", url], capture_output=True, text=True, check=True
            ).stdout
            assert "far is the level now" in explained
            assert "requests are only sent there: nothing of it is loaded or unloaded here" in explained
            machine.other_bytes = TOTAL * 97 // 100
            watch.readings(20)
            assert manager.scaler.status().state == "far"
            machine.other_bytes = TOTAL // 10
            watch.readings(5)
            server.token_s = 0.005
            stream = client(url).chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "Count."}], stream=True, max_tokens=400
            )
            text, levels = "", []
            for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                if chunk.model not in levels:
                    levels.append(chunk.model)
                if len(text) > 100 and server.url:
                    server.stop()
                    server.url = ""
            assert levels == ["far", "small"]
            assert text.startswith("".join(f" {number}" for number in range(1, 300)))
            assert any(isinstance(event, ModelDied) for event in watch.told())
            assert any(isinstance(event, AnswerHandedOver) for event in watch.told())
            assert ("off", "small") in decisions(watch)
