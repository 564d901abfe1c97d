"""An answer of which nothing was said yet is begun again; one that was begun is not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from scaler.answering import Answering
from tests.effects.test_switching import Stage, on_stage


async def asked(words: int) -> Mapping[str, Any]:
    """A request that is ready at once."""
    return {"messages": [], "words": words}


@on_stage
async def test_a_level_that_gives_way_before_the_first_word_gives_no_empty_answer(stage: Stage) -> None:
    """Half of the twenty who waited for a slot would else get nothing, and be told that it was whole."""
    await stage.serve("small")
    reading = asyncio.create_task(stage.answer(3))
    while not stage.switcher.answering:
        await asyncio.sleep(0)
    ticket = stage.ask("large", beside=False, drain_s=0.0)
    await stage.told.until("switched", ticket)
    for _ in range(3):
        stage.runtime.models["large"].more.release()
    level, choice = await reading
    assert (level, choice["message"]["content"]) == ("large", "large0 large1 large2 ")
    assert "small" not in stage.scaler.status().performance


@on_stage
async def test_a_level_that_gave_way_before_it_was_even_asked_is_not_heard(stage: Stage) -> None:
    """The limits may be used up while the request is still being prepared."""
    await stage.serve("small")
    lease = await stage.switcher.lease(10, lambda: "testing")
    lease.limit(0.0, 0)
    answering = Answering(lease)
    async with asyncio.timeout(10):
        assert [data async for data in answering.stream(partial(asked, 5))] == []
    assert answering.gave_way
    assert answering.sample() is None
    assert stage.switcher.answering == 0


@on_stage
async def test_a_slow_taker_loses_nothing_of_a_long_answer(stage: Stage) -> None:
    """The model is made to wait, and every word gets through, once."""
    small = await stage.serve("small")
    for _ in range(500):
        small.more.release()
    lease = await stage.switcher.lease(10, lambda: "testing")
    text = ""
    async for arrived in Answering(lease).stream(partial(asked, 500)):
        for _ in range(3):
            await asyncio.sleep(0)
        text += "".join(data["choices"][0]["delta"].get("content", "") for data in arrived)
    lease.release()
    assert text == "".join(f"small{number} " for number in range(500))
