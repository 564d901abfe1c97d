"""What waits for a receiver: in order, bounded, and with a last chance at the end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from scaler.notices import Notice
from scaler.notify.outbox import LIMIT, Outbox

PATIENCE_S = 60.0


def notice(number: int) -> Notice:
    return Notice("failure", "large", f"number {number}")


class Friend:
    """A receiver that takes notices once it is let."""

    name = "friend"

    def __init__(self, *, ready: bool = True, fails_on: str = "") -> None:
        self.taken: list[str] = []
        self.let = asyncio.Event()
        self.asked = asyncio.Event()
        self.closed = 0
        self._fails_on = fails_on
        if ready:
            self.let.set()

    async def deliver(self, notice: Notice) -> None:
        """Take one."""
        self.asked.set()
        await self.let.wait()
        if notice.text == self._fails_on:
            raise ValueError("too heavy")
        self.taken.append(notice.text)

    async def close(self) -> None:
        """Count it."""
        self.closed += 1


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, PATIENCE_S))


def test_notices_of_other_threads_arrive_in_order_also_at_the_end() -> None:
    """Who brings one never waits; closing delivers what was taken just before."""

    async def body() -> None:
        friend = Friend()
        outbox = Outbox(friend, patience_s=PATIENCE_S)
        outbox.take(notice(-1))  # before the start there is nobody to take it
        await outbox.start()
        thread = threading.Thread(target=lambda: [outbox.take(notice(number)) for number in range(50)])
        thread.start()
        await asyncio.to_thread(thread.join)
        await outbox.close()
        await outbox.close()
        assert friend.taken == [f"number {number}" for number in range(50)]
        assert friend.closed == 1

    run(body())


def test_the_oldest_is_dropped_where_too_many_wait(caplog: pytest.LogCaptureFixture) -> None:
    """What happened last is worth the most."""

    async def body() -> None:
        friend = Friend(ready=False)
        outbox = Outbox(friend, patience_s=PATIENCE_S)
        await outbox.start()
        outbox.take(notice(0))
        await friend.asked.wait()
        for number in range(1, LIMIT + 3):
            outbox.take(notice(number))
        friend.let.set()
        await outbox.close()
        assert friend.taken == [f"number {number}" for number in (0, *range(3, LIMIT + 3))]

    with caplog.at_level(logging.WARNING):
        run(body())
    assert [record.getMessage() for record in caplog.records] == [
        f"friend: {LIMIT} notices wait, the oldest is dropped: number {number}" for number in (1, 2)
    ]


def test_the_end_does_not_wait_for_who_never_takes(caplog: pytest.LogCaptureFixture) -> None:
    """It is said how many were lost."""

    async def body() -> None:
        friend = Friend(ready=False)
        outbox = Outbox(friend, patience_s=0.0)
        await outbox.start()
        for number in range(3):
            outbox.take(notice(number))
        await friend.asked.wait()
        await outbox.close()
        assert (friend.taken, friend.closed) == ([], 1)
        assert len(asyncio.all_tasks()) == 1 + 1  # this one, and the one that bounds its time

    with caplog.at_level(logging.WARNING):
        run(body())
    assert [record.getMessage() for record in caplog.records] == ["friend: 3 notices were not told before scaler ended"]


def test_a_receiver_that_fails_gets_the_next_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """And the fault is to be read."""

    async def body() -> None:
        friend = Friend(fails_on="number 1")
        outbox = Outbox(friend, patience_s=PATIENCE_S)
        await outbox.start()
        for number in range(3):
            outbox.take(notice(number))
        await outbox.close()
        assert friend.taken == ["number 0", "number 2"]

    with caplog.at_level(logging.ERROR):
        run(body())
    assert "friend: a notice was lost: number 1" in caplog.text
    assert "too heavy" in caplog.text


def test_who_takes_after_the_loop_has_ended_is_not_troubled() -> None:
    """The scaler may tell something while a manager ends."""

    async def body(outbox: Outbox) -> None:
        await outbox.start()
        await outbox.close()

    outbox = Outbox(Friend())
    run(body(outbox))
    outbox.take(notice(1))
