"""An answer of which nothing was said yet is begun again; one that was begun is not."""

from __future__ import annotations

import asyncio

import pytest

from scaler.answering import Answering
from scaler.errors import LevelUnavailable
from tests.effects.test_switching import Stage, on_stage


@on_stage
async def test_a_level_that_gives_way_before_the_first_word_gives_no_empty_answer(stage: Stage) -> None:
    """Half of the twenty who waited for a slot would else get nothing, and be told that it was whole."""
    await stage.serve("small")
    lease = await stage.switcher.lease(10, lambda: "testing")
    answering = Answering(lease)

    async def read() -> None:
        async for _ in answering.stream({"words": 5}):
            pass

    reading = asyncio.create_task(read())
    ticket = stage.ask("large", beside=False, drain_s=0.0)
    with pytest.raises(LevelUnavailable, match="before the answer had begun"):
        await reading
    assert answering.sample() is None
    lease.release()
    await stage.told.until("switched", ticket)


@on_stage
async def test_a_level_that_gave_way_before_it_was_even_asked_gives_no_empty_answer(stage: Stage) -> None:
    """The limits may be used up while the request is still being prepared."""
    await stage.serve("small")
    lease = await stage.switcher.lease(10, lambda: "testing")
    lease.limit(0.0, 0)
    async with asyncio.timeout(10):
        with pytest.raises(LevelUnavailable, match="before the answer had begun"):
            async for _ in Answering(lease).stream({"words": 5}):
                pass
    lease.release()


@on_stage
async def test_a_slow_taker_loses_nothing_of_a_long_answer(stage: Stage) -> None:
    """The model is made to wait, and every word gets through, once."""
    small = await stage.serve("small")
    for _ in range(500):
        small.more.release()
    lease = await stage.switcher.lease(10, lambda: "testing")
    text = ""
    async for _, data in Answering(lease).stream({"words": 500}):
        for _ in range(3):
            await asyncio.sleep(0)
        text += data["choices"][0]["delta"].get("content", "")
    lease.release()
    assert text == "".join(f"small{number} " for number in range(500))
