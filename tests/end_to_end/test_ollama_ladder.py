"""A whole ladder of models that Ollama holds: up, down under pressure in the middle of an answer, and away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from scaler.events import AnswerHandedOver, ModelDied, SwitchFailed
from tests.end_to_end.conftest import MIB, TOTAL, Machine
from tests.end_to_end.test_endpoint import client
from tests.end_to_end.test_ladder import COUNTED, decisions, settles_at
from tests.ollama_binary import needs_ollama, ollama_serves
from tests.runtimes.ollama_server import Model, OllamaServer

SIZES = {"small": 20 * MIB, "medium": 60 * MIB, "large": 120 * MIB}


def test_a_ladder_of_ollamas_models_is_climbed_and_left_under_pressure(
    serving: Callable[..., Any], machine: Machine
) -> None:
    """An answer that is under way is handed over whole, one model is held at a time, and at the end none."""
    models = {f"{name}:latest": Model(size_bytes=size) for name, size in SIZES.items()}
    with OllamaServer(models=models) as ollama:
        ladder = [
            {"name": name, "runtime": "ollama", "url": ollama.url, "model": name, "ram_gib": size / 1024**3}
            for name, size in SIZES.items()
        ]
        with serving(ladder=ladder, policy={"drain_seconds": 0.1}) as (url, manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "large")
            (pid,) = manager._switcher.pids()
            assert psutil.Process(pid).memory_info().rss > SIZES["large"]
            ollama.token_s = 0.005
            stream = client(url).chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "Count."}], stream=True
            )
            text, levels = "", []
            for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                if chunk.model not in levels:
                    levels.append(chunk.model)
                if len(text) > 100:
                    # Room for the smallest level only.
                    machine.other_bytes = TOTAL * 80 // 100 - SIZES["small"] - 15 * MIB
            assert text == "".join(f" {number}" for number in range(1, 1000))
            assert levels == ["large", "small"]
            assert any(isinstance(event, AnswerHandedOver) for event in watch.told())
            settles_at(manager, watch, "small")
            assert list(ollama.loaded) == ["small:latest"]
            machine.other_bytes = TOTAL * 97 // 100
            settles_at(manager, watch, "off")
            assert not ollama.loaded
            assert decisions(watch)[-2:] == [("large", "small"), ("small", "off")]


def test_levels_of_one_model_with_other_windows_are_never_loaded_beside_each_other(serving: Callable[..., Any]) -> None:
    """Ollama holds a model once: what served is unloaded first, although there is room for both."""
    with OllamaServer(models={"small:latest": Model(size_bytes=SIZES["small"])}) as ollama:
        ladder = [
            {
                "name": name,
                "runtime": "ollama",
                "url": ollama.url,
                "model": "small",
                "ram_gib": ram,
                "context_tokens": n,
            }
            for name, ram, n in (("short", 0.03, 512), ("long", 0.04, 8192))
        ]
        with serving(ladder=ladder) as (url, manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "long")
            assert ollama.loaded["small:latest"].num_ctx == 8192
            answer = client(url).chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "Count."}], max_tokens=3
            )
            assert (answer.model, answer.choices[0].message.content) == ("long", " 1 2 3")
            assert ollama.loaded["small:latest"].num_ctx == 8192
            assert decisions(watch) == [("off", "short"), ("short", "long")]
            assert not any(isinstance(event, ModelDied | SwitchFailed) for event in watch.told())


@needs_ollama
def test_a_ladder_of_a_real_ollamas_models_is_climbed_and_left_under_pressure(
    serving: Callable[..., Any], machine: Machine, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """The same of the real thing, with footprints as it tells them: not a word of the answer is lost or said twice."""
    with ollama_serves(tmp_path / "ollama", demo_models) as (address, ollama):
        ladder = [
            {"name": name, "runtime": "ollama", "url": address, "model": name, "context_tokens": 8192}
            for name in demo_models
        ]
        with serving(ladder=ladder, policy={"drain_seconds": 0.1}) as (url, manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "large")
            (pid,) = manager._switcher.pids()
            assert psutil.Process(pid).memory_info().rss > 600 * MIB
            text, levels = "", []
            stream = client(url).chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "Count to a thousand."}], temperature=0, stream=True
            )
            for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                if chunk.model not in levels:
                    levels.append(chunk.model)
                if len(text) > 100:
                    # Room for the smallest level only.
                    machine.other_bytes = TOTAL * 74 // 100
            assert text == COUNTED
            assert levels == ["large", "small"]
            assert any(isinstance(event, AnswerHandedOver) for event in watch.told())
            settles_at(manager, watch, "small")
            assert not psutil.pid_exists(pid)
            assert [one.model for one in ollama.ps().models] == ["small:latest"]
            machine.other_bytes = TOTAL * 97 // 100
            settles_at(manager, watch, "off")
            assert not ollama.ps().models
            assert decisions(watch)[-2:] == [("large", "small"), ("small", "off")]
            assert not any(isinstance(event, ModelDied | SwitchFailed) for event in watch.told())
