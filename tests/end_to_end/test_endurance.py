"""Many switches under load, and models that die at any moment: a whole answer or a clean error for every client.

Short in the common run; `make endurance` has the full numbers.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import openai
import psutil
import pytest

from scaler.demo.models import NUMBERS
from scaler.events import AnswerHandedOver, SwitchDone, SwitchFailed
from scaler.relaying import DEATHS
from tests.end_to_end.conftest import MIB, TOTAL, Machine
from tests.processes import gone

FULL = os.environ.get("ENDURANCE") == "full"
SWITCHES = 200 if FULL else 30
KILLS = 100 if FULL else 12
STREAMS = 16
LONG_S = 240.0
"""An answer that is begun anew under many deaths may take a minute; one that takes so long hangs."""
QUEUE = {"limit": 64, "wait_s": LONG_S}
"""Nobody is sent away, nor cut short, for the time that a busy machine takes to load a level."""
SENTENCE = re.compile(r" ?The (small|medium) model speaks : I am made of random weights \.")
Serving = Callable[..., Any]


def counted(tokens: int) -> str:
    """What every level says to "Count." within so many tokens."""
    return "".join(f" {number}" for number in NUMBERS[:tokens])


class Clients:
    """Sixteen who ask over HTTP with the official client, one question after the other, and judge what they get."""

    def __init__(self, url: str, seed: int) -> None:
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=LONG_S)
        self._random = random.Random(seed)
        self._asking = True
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest_s = 0.0
        self.kills_begun = self.kills_done = 0
        """How many models were killed so far. Once begun, one may still take a request; done, none does."""

    async def ask_until(self, enough: Callable[[], bool]) -> None:
        """Have them ask until ``enough()`` at the end of an answer, and all have their last one."""
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(self._one(number, enough))
        await self._client.close()

    async def _one(self, number: int, enough: Callable[[], bool]) -> None:
        while not enough():
            began, before, tokens = time.monotonic(), self.kills_done, self._random.randint(5, 120)
            asked = "Count." if self._random.random() < 0.8 else "Who are you?"
            try:
                async with asyncio.timeout(LONG_S):
                    text, reason = await (self._streamed if number % 4 else self._whole)(asked, tokens)
            except openai.APIStatusError as error:
                self._judge_error(error.status_code, str(error.message), self.kills_begun - before)
            except openai.APIError as error:
                # A stream that ended with an error event; a connection that broke would be an APIConnectionError.
                status = 0 if isinstance(error, openai.APIConnectionError) else 503
                self._judge_error(status, str(error.message), self.kills_begun - before)
            except TimeoutError:
                self.wrong.append(f"no end within {LONG_S:.0f} s: {asked} {tokens}")
            else:
                self._judge(asked, tokens, text, reason)
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    async def _streamed(self, asked: str, tokens: int) -> tuple[str, str | None]:
        text, reason = "", None
        stream = await self._client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": asked}], max_tokens=tokens, stream=True
        )
        async for chunk in stream:
            for choice in chunk.choices:
                text, reason = text + (choice.delta.content or ""), choice.finish_reason or reason
        return text, reason

    async def _whole(self, asked: str, tokens: int) -> tuple[str, str | None]:
        answer = await self._client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": asked}], max_tokens=tokens
        )
        return answer.choices[0].message.content or "", answer.choices[0].finish_reason

    def _judge(self, asked: str, tokens: int, text: str, reason: str | None) -> None:
        if asked == "Count.":
            whole = text == counted(tokens) and reason == "length"
        elif reason == "stop":
            whole = SENTENCE.fullmatch(text) is not None
        else:
            # Cut by the token limit; the sentence has twelve words.
            whole = tokens <= 12 and len(text.split()) == tokens
        if whole:
            self.outcomes["whole"] += 1
        else:
            self.wrong.append(f"{asked} {tokens} tokens: {text!r} ({reason})")

    def _judge_error(self, status: int, message: str, kills: int) -> None:
        """503 with the reason is what docs/serving.md promises where no level could go on, and two models have died."""
        if status == 503 and message and kills >= DEATHS:
            self.outcomes["error"] += 1
            self.errors[message] += 1
        else:
            self.wrong.append(f"status {status} after {kills} kills: {message}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_answer_is_whole_over_many_switches(serving: Serving, machine: Machine) -> None:
    """Sixteen ask without a pause while levels go up and down, beside each other where there is room and not elsewhere.

    A short drain has answers handed over in their middle; the count shows a word that is lost or said twice.
    """
    policy = {"drain_seconds": 0.3, "drain_tokens": 256}
    with serving(policy=policy, levels=("small", "medium"), queue=QUEUE) as (url, manager, watch):
        manager.scaler.want(True)
        watch.until(lambda: manager.scaler.status().serving != "off", "a level to serve")
        done = 0

        def switch() -> None:
            nonlocal done
            for number in range(SWITCHES):
                # Every other pair of switches finds no room for both levels, so that the old one has to go first.
                machine.other_bytes = (400 if number % 4 < 2 else TOTAL // MIB * 95 // 100 - 330) * MIB
                watch.readings(2)
                seen = sum(isinstance(event, SwitchDone) for event in watch.events)
                there = manager.scaler.status().serving
                manager.scaler.pin("small" if there == "medium" else "medium")
                watch.until(
                    lambda seen=seen: sum(isinstance(event, SwitchDone) for event in watch.events) > seen,
                    f"switch {number}",
                )
                done += 1

        async def scene() -> Clients:
            clients = Clients(url, seed=1)
            switching = asyncio.create_task(asyncio.to_thread(switch))
            await clients.ask_until(switching.done)
            await switching
            return clients

        clients = asyncio.run(scene())
        handed = sum(isinstance(event, AnswerHandedOver) for event in watch.told())
        print(f"{done} switches, {dict(clients.outcomes)}, {handed} handed over, wrong: {clients.wrong}")
        assert done == SWITCHES
        assert not any(isinstance(event, SwitchFailed) for event in watch.told())
        assert clients.wrong == []
        assert clients.outcomes["error"] == 0
        assert handed > SWITCHES // 4
        watch.until(lambda: not manager.answering and not manager.waiting, "nothing to be left over")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_client_gets_a_whole_answer_or_a_clean_error_when_models_are_killed(serving: Serving) -> None:
    """kill -9 at any moment: while nothing, one or sixteen answers run, and while the next model is being loaded."""
    policy = {"backoff_s": 0.05, "backoff_max_s": 0.05, "recovery_s": 0.05}
    with serving(policy=policy, levels=("small", "medium"), queue=QUEUE) as (url, manager, watch):
        manager.scaler.want(True)
        moments = random.Random(2)
        clients, rounds = Clients(url, seed=3), 0

        async def kill() -> None:
            nonlocal rounds
            while rounds < KILLS:
                # Whole ones, and as many as ask: however slow the machine, few answers are met by two kills.
                enough = clients.outcomes["whole"] + STREAMS
                await asyncio.sleep(moments.uniform(0.0, 1.0))
                while clients.outcomes["whole"] < enough and not clients.wrong:
                    await asyncio.sleep(0.01)
                killed = [psutil.Process(pid) for pid in manager._switcher.pids()]
                # During a switch there are two, and an answer may lose both.
                clients.kills_begun += len(killed)
                for process in killed:
                    process.kill()
                assert await asyncio.to_thread(gone, killed)
                clients.kills_done += len(killed)
                rounds += 1

        async def scene() -> None:
            killing = asyncio.create_task(kill())
            await clients.ask_until(killing.done)
            await killing

        asyncio.run(scene())
        handed = sum(isinstance(event, AnswerHandedOver) for event in watch.told())
        print(f"{rounds} times killed, {dict(clients.outcomes)}, {handed} handed over, wrong: {clients.wrong}")
        print(f"the longest took {clients.longest_s:.1f} s; {clients.errors}")
        assert clients.wrong == []
        assert clients.outcomes["whole"] > 5 * clients.outcomes["error"]
        assert handed > 0
        watch.until(lambda: not manager.answering and not manager.waiting, "nothing to be left over")
