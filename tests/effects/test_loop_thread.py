"""A loop in a thread of its own: what its callers see when they are cancelled, and when it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from scaler.errors import ScalerError
from scaler.loop_thread import LoopThread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """Stopped at the end."""
    thread = LoopThread("test")
    yield thread
    thread.stop()


class Endless:
    """Something that never comes, and takes a while to end."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            self.begun.set()
            await asyncio.get_running_loop().create_future()
            yield 1
        finally:
            # As an answer does, whose connection is closed.
            await asyncio.sleep(0.02)
            self.ended.set()

    async def work(self) -> None:
        async for _ in self.items():
            pass


def test_who_is_cancelled_while_an_item_is_awaited_is_cancelled_and_nothing_else(thread: LoopThread) -> None:
    """A client that hangs up, or a time limit: what made the items ends, and no error of ours comes in between."""

    async def body() -> None:
        endless = Endless()

        async def take() -> None:
            async for _ in thread.iterate(endless.items()):
                pass

        taking = asyncio.create_task(take())
        await asyncio.to_thread(endless.begun.wait, 10)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert endless.ended.is_set()

    asyncio.run(body())


def test_who_waits_when_it_ends_is_told_so(thread: LoopThread) -> None:
    """A cancellation that nobody asked for would end the caller's task without a word."""
    waiting, listening, plain = Endless(), Endless(), Endless()

    async def body() -> None:
        async def take() -> None:
            async for _ in thread.iterate(listening.items()):
                pass

        tasks = [asyncio.create_task(thread.run(waiting.work())), asyncio.create_task(take())]
        with ThreadPoolExecutor() as pool:
            call = pool.submit(thread.call, plain.work())
            for one in (waiting, listening, plain):
                await asyncio.to_thread(one.begun.wait, 10)
            await asyncio.to_thread(thread.stop)
            for outcome in (*await asyncio.gather(*tasks, return_exceptions=True), call.exception(10)):
                assert isinstance(outcome, ScalerError)
                assert "was shut down" in str(outcome)

    asyncio.run(body())
    assert not thread.running


def test_what_comes_while_it_ends_is_refused(thread: LoopThread) -> None:
    """Nobody would be left to do it, and who asked would wait for ever."""
    storing, may_end = threading.Event(), threading.Event()

    def store() -> None:
        storing.set()
        may_end.wait(10)

    with ThreadPoolExecutor() as pool:
        begun = pool.submit(thread.call, asyncio.to_thread(store))
        assert storing.wait(10)
        stopping = pool.submit(thread.stop)
        # It waits for what is being stored; its caller is told at once.
        assert isinstance(begun.exception(10), ScalerError)
        with pytest.raises(ScalerError, match="was shut down"):
            thread.call(asyncio.sleep(0))
        assert not stopping.done()
        may_end.set()
        stopping.result(10)
