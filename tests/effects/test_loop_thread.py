"""A loop in a thread of its own: what its callers see when they are cancelled, and when it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

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


class Watched:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock, self.waited_for = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waited_for.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_what_comes_at_the_moment_of_its_end_is_told_so_too(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found running, and before the work is handed over somebody ends it: nobody would do it any more."""
    taking = Watched()
    thread._taking = taking  # type: ignore[assignment]
    found_running = threading.Event()
    hand_over = asyncio.run_coroutine_threadsafe

    def late(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Future[Any]:
        monkeypatch.undo()
        found_running.set()
        # Until whoever ends it has done so, or has to wait.
        assert taking.waited_for.wait(10)
        return hand_over(work, loop)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", late)

    def stop() -> None:
        thread.stop()
        taking.waited_for.set()

    with ThreadPoolExecutor() as pool:
        call = pool.submit(thread.call, asyncio.Event().wait())
        assert found_running.wait(10)
        stopping = pool.submit(stop)
        failure = call.exception(10)
        stopping.result(10)
    assert isinstance(failure, ScalerError)
    assert "was shut down" in str(failure)


def test_the_loop_may_take_work_from_itself_but_not_wait_for_its_own_end(thread: LoopThread) -> None:
    """Neither may hang: what runs on the loop keeps all the rest from running."""

    async def one() -> int:
        return 1

    async def body() -> int:
        with pytest.raises(ScalerError, match="from another thread"):
            thread.stop()
        return await asyncio.wrap_future(thread.submit(one()))

    assert thread.submit(body()).result(10) == 1
    assert thread.running
