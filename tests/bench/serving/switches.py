"""What clients see of a switch: how long they wait for a word beside what the new level takes by itself."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson

from scaler.demo.models import make_demo_models
from scaler.events import DecisionMade, SwitchDone
from scaler.manager import ModelManager
from scaler.paths import demo_models
from scaler.proactive import Event
from scaler.serving.app import Endpoint

STREAMS = 16
ASKED = {"messages": [{"role": "user", "content": "Count."}], "stream": True, "max_tokens": 40}
LADDER = "[{{name: small, model: 'demo:small', {0}}}, {{name: medium, model: 'demo:medium', {1}}}]"


@dataclass
class Words:
    """When the chunks of one answer came, and which level made each."""

    asked_s: float
    came: list[tuple[float, str]] = field(default_factory=list)
    whole: bool = False

    def waits(self) -> Iterator[tuple[float, float]]:
        """Each wait for a chunk: when it ended and how many seconds it took."""
        before = self.asked_s
        for at, _ in self.came:
            yield at, at - before
            before = at


@contextmanager
def serving(ladder: str, policy: str = "{}") -> Iterator[tuple[ModelManager, str]]:
    """A manager on the demo models, with an endpoint."""
    make_demo_models(demo_models(), lambda *_: None)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "scaler.yaml"
        config.write_text(f"ladder: {ladder}\njournal: {{path: {folder}/journal.jsonl}}\npolicy: {policy}\n")
        with ModelManager(config) as manager:
            endpoint = Endpoint(manager, "127.0.0.1", 0)
            endpoint.start()
            try:
                yield manager, endpoint.url
            finally:
                endpoint.stop()


async def ask(session: aiohttp.ClientSession, url: str, words: Words) -> None:
    """Stream one answer."""
    async with session.post(f"{url}/v1/chat/completions", json=ASKED) as response:
        async for line in response.content:
            now = time.perf_counter()
            if line.startswith(b"data: {"):
                data = orjson.loads(line[6:])
                words.came.append((now, data["model"]))
                words.whole = words.whole or bool(data["choices"] and data["choices"][0]["finish_reason"])


@asynccontextmanager
async def clients(url: str) -> AsyncIterator[list[Words]]:
    """Sixteen who ask one thing after the other; yields what they got, which grows."""
    answers: list[Words] = []
    asking = True

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            while asking:
                words = Words(time.perf_counter())
                answers.append(words)
                await ask(session, url, words)

        running = [asyncio.create_task(client()) for _ in range(STREAMS)]
        try:
            yield answers
        finally:
            asking = False
            await asyncio.gather(*running)


async def go_to(manager: ModelManager, level: str) -> tuple[float, float]:
    """Switch; returns when that was decided and when it was done, by the clock of `Words`."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    times: dict[type, float] = {}

    def take(event: Event) -> None:
        if isinstance(event, DecisionMade | SwitchDone):
            times[type(event)] = time.perf_counter()
        if isinstance(event, SwitchDone):
            loop.call_soon_threadsafe(done.set)

    leave = manager.scaler.subscribe(take)
    await asyncio.to_thread(manager.scaler.pin, level)
    await done.wait()
    leave()
    return times[DecisionMade], times[SwitchDone]


async def cut_over() -> tuple[int, float, float]:
    """Climb with room under sixteen streams: answers that were not whole, the longest wait, and the usual one.

    The longest is for a token, from the decision to a second after the switch; the usual one is the median wait for the
    first token of an answer at the new level, under the same load, when nothing switches.
    """
    slots = "context_tokens: 512, parallel: 16"
    with serving(LADDER.format(slots, slots)) as (manager, url):
        await manager.generate_response("Hello")
        async with clients(url) as answers:
            await asyncio.sleep(2)
            began, ended = await go_to(manager, "medium")
            until = ended + 1
            await asyncio.sleep(until - time.perf_counter())
            during = [wait for words in answers for at, wait in words.waits() if began <= at <= until]
            await asyncio.sleep(5)
        firsts = [next(words.waits())[1] for words in answers if words.asked_s >= until]
    return sum(not words.whole for words in answers), max(during), statistics.median(firsts)


async def step_down() -> tuple[float, float]:
    """Seconds from the decision to step down to a standby until its first word: for a new request, and for one that

    was being answered when the level above had to go.
    """
    policy = "{drain_seconds: 0, drain_tokens: 0}"
    slots = "context_tokens: 512, parallel: 2"
    with serving(LADDER.format(f"standby: true, {slots}", slots), policy) as (manager, url):
        await manager.generate_response("Hello")
        fresh, handed = [], []
        async with aiohttp.ClientSession() as session:
            for _ in range(5):
                await go_to(manager, "medium")
                running, new = Words(time.perf_counter()), Words(0.0)
                asking = asyncio.create_task(ask(session, url, running))
                while not running.came:
                    await asyncio.sleep(0.001)
                switch = asyncio.create_task(go_to(manager, "small"))
                new.asked_s = time.perf_counter()
                await asyncio.gather(ask(session, url, new), asking)
                decided, _ = await switch
                fresh.append(next(at for at, level in new.came if level == "small") - max(decided, new.asked_s))
                handed.append(next(at for at, level in running.came if level == "small") - decided)
    return max(fresh), max(handed)
