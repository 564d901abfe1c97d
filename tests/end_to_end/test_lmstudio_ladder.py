"""A whole ladder of models that LM Studio holds: up, down under pressure in the middle of an answer, and away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from scaler.events import AnswerHandedOver, ModelDied, SwitchFailed
from tests.end_to_end.conftest import MIB, TOTAL, Machine
from tests.end_to_end.test_endpoint import client
from tests.end_to_end.test_ladder import decisions, settles_at
from tests.runtimes.lmstudio_server import LmStudioServer, Model, Workers
from tests.runtimes.ollama_server import COUNTED

SIZES = {"small": 20 * MIB, "medium": 60 * MIB, "large": 120 * MIB}


def ladder_of(studio: LmStudioServer) -> list[dict[str, Any]]:
    return [
        {"name": name, "runtime": "lmstudio", "url": studio.url, "model": f"acme/{name}", "ram_gib": size / 1024**3}
        for name, size in SIZES.items()
    ]


@pytest.mark.parametrize("workers", ["llama-server", "llama-server below llmworker"])
def test_a_ladder_of_lm_studios_models_is_climbed_and_left_under_pressure(
    serving: Callable[..., Any], machine: Machine, workers: Workers
) -> None:
    """An answer that is under way is handed over whole, one model is held at a time, and at the end none."""
    with LmStudioServer({f"acme/{name}": Model(size) for name, size in SIZES.items()}) as studio:
        studio.workers = workers
        with serving(ladder=ladder_of(studio), policy={"drain_seconds": 0.1}) as (url, manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "large")
            (pid,) = manager._switcher.pids()
            held = psutil.Process(studio.loaded["acme/large"].pid)
            assert held.memory_info().rss > SIZES["large"]
            assert pid in (held.pid, held.ppid())
            studio.token_s = 0.005
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
            assert text == COUNTED
            assert levels == ["large", "small"]
            assert any(isinstance(event, AnswerHandedOver) for event in watch.told())
            settles_at(manager, watch, "small")
            assert list(studio.loaded) == ["acme/small"]
            machine.other_bytes = TOTAL * 97 // 100
            settles_at(manager, watch, "off")
            assert not studio.loaded
            assert decisions(watch)[-2:] == [("large", "small"), ("small", "off")]
            assert not any(isinstance(event, ModelDied | SwitchFailed) for event in watch.told())


def test_a_model_that_dies_in_an_answer_comes_back_and_the_answer_is_whole(serving: Callable[..., Any]) -> None:
    """What runs of the answer is handed over to whatever serves next; LM Studio holds no copy that nobody knows of."""
    with LmStudioServer({f"acme/{name}": Model(size) for name, size in SIZES.items()}) as studio:
        with serving(ladder=ladder_of(studio)) as (url, manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "large")
            studio.token_s = 0.005
            stream = client(url).chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "Count."}], stream=True
            )
            text, killed = "", False
            for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                if len(text) > 100 and not killed:
                    studio.kill("acme/large")
                    killed = True
            assert text == COUNTED
            assert any(isinstance(event, ModelDied) for event in watch.told())
            settles_at(manager, watch, "large")
            assert list(studio.loaded) == ["acme/large"]
        assert not studio.loaded
