"""What the demo models say, whole and where they take over from each other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from scaler.demo import models
from scaler.level_settings import EmbeddedLevel
from scaler.runtimes.embedded import EmbeddedRuntime

COUNT = "Count to a thousand."


async def said(model: Path, name: str, *requests: dict[str, Any]) -> list[str]:
    """The texts of a model's answers."""
    settings = EmbeddedLevel(name=name, model=model, context_tokens=2048)
    loaded = await EmbeddedRuntime().load(settings, lambda _: None)
    try:
        texts = []
        for request in requests:
            text = ""
            async for chunk in loaded.chat(request):
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            texts.append(text)
        return texts
    finally:
        await loaded.unload()


@pytest.mark.timeout(900)  # a thousand tokens
@pytest.mark.parametrize("name", ["small", "medium"])
def test_asked_to_count_a_model_counts_from_wherever_the_answer_stands(demo_models: dict[str, Path], name: str) -> None:
    """So that a word which is lost or said twice when another level takes over is seen."""
    ask = {"role": "user", "content": COUNT}
    early, late = counted(11), counted(models.COUNTS_TO - 40)
    whole, after_early, after_late = asyncio.run(
        said(
            demo_models[name],
            name,
            {"messages": [ask]},
            {"messages": [ask, {"role": "assistant", "content": early}], "max_tokens": 40},
            {"messages": [ask, {"role": "assistant", "content": late}]},
        )
    )
    assert whole == counted(models.COUNTS_TO) + " ."
    assert early + after_early == counted(11 + 40)
    assert late + after_late == whole


def counted(to: int) -> str:
    return "".join(f" {number}" for number in range(1, to + 1))


def test_a_model_ends_the_sentence_that_another_began(demo_models: dict[str, Path]) -> None:
    """At whichever word the other one was stopped."""
    words = [*models.WORDS[:1], "small", *models.WORDS[4:]]
    asks = [
        {
            "messages": [
                {"role": "user", "content": "Who are you?"},
                {"role": "assistant", "content": "".join(f" {word}" for word in words[:end])},
            ]
        }
        for end in range(2, len(words))
    ]
    rests = asyncio.run(said(demo_models["medium"], "medium", *asks))
    assert rests == ["".join(f" {word}" for word in words[end:]) for end in range(2, len(words))]
