"""Who asks the manager: clients whose answers count, and who hang up, insist, dawdle, pin and ask for less."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from scaler.errors import (
    ConfigError,
    LevelUnavailable,
    PinRefused,
    QueueFull,
    RequestRejected,
    RequestTimedOut,
    ScalerError,
)
from scaler.levels import OFF
from scaler.loop_thread import SHUT_DOWN
from scaler.manager import ModelManager
from tests.simulation.configuration import Configuration
from tests.simulation.invariants import Force, Watcher
from tests.simulation.loop import VirtualLoop
from tests.simulation.runtime import SimulatedRuntime

ENDS_S = 1800.0
"""A request that takes longer hangs: all that it may wait for in turn, at the worst, is less."""
GONE = re.compile("(.*): it is not on the ladder any more; .*")
DOCUMENTED = (QueueFull, RequestTimedOut, LevelUnavailable, RequestRejected)


class People:
    """The clients of one life of a manager."""

    def __init__(
        self,
        dice: random.Random,
        loop: VirtualLoop,
        manager: ModelManager,
        runtime: SimulatedRuntime,
        configuration: Configuration,
        watcher: Watcher,
    ) -> None:
        self.leaving = False
        """Whether the manager is being shut down: who still asks is sent away."""
        self.slept_s = 0.0
        self.asking: dict[asyncio.Task[None], None] = {}
        self._dice, self._loop, self._manager, self._runtime = dice, loop, manager, runtime
        self._configuration, self._watcher, self._figures = configuration, watcher, watcher.figures
        self._numbers = 0

    def ask(self) -> None:
        """A client comes."""
        dice = self._dice
        self._numbers += 1
        self._figures["requests"] += 1
        kind = dice.choice(["answer", "answer", "answer", "answer", "insist", "turn", "stream", "load"])
        task = self._loop.create_task(self._request(kind, self._numbers), name=f"{kind} {self._numbers}")
        self.asking[task] = None
        task.add_done_callback(lambda _: self.asking.pop(task, None))
        if dice.random() < 0.12:
            self._loop.call_later(dice.expovariate(1 / 8.0), task.cancel)
        self._loop.call_later(ENDS_S, self._overdue, task, self.slept_s)

    def _overdue(self, task: asyncio.Task[None], slept_s: float) -> None:
        if task.done():
            return
        if self.slept_s > slept_s:
            self._loop.call_later(ENDS_S, self._overdue, task, self.slept_s)
        else:
            self._watcher.violated(f"{task.get_name()} has had no end for {ENDS_S:g} s")

    async def _request(self, kind: str, number: int) -> None:
        words, text = self._dice.randint(1, 30), list[str]()
        finish: str | None = None
        began_s, forces, troubles = self._loop.time(), len(self._watcher.forces) - 1, self._troubles()
        try:
            async with aclosing(self._pieces(kind, number, words)) as pieces:
                async for piece, finish in pieces:  # noqa: B007  # the last one counts
                    text.append(piece)
        except asyncio.CancelledError:
            outcome = "sent away at the end" if self.leaving else "cancelled"
        except DOCUMENTED as error:
            outcome = type(error).__name__
            since = self._watcher.forces[forces:]
            if (
                isinstance(error, RequestTimedOut)
                and self._loop.time() - began_s < min(one.wait_s for one in since) - 1e-6
            ):
                self._watcher.violated(f"{kind} {number} was sent away early: {error}")
            elif isinstance(error, LevelUnavailable):
                self._judge(kind, number, error, since, troubled=self._troubles() > troubles)
        except ScalerError as error:
            outcome = "sent away at the end"
            if not (self.leaving and str(error) == SHUT_DOWN):
                self._watcher.violated(f"{kind} {number} ended with {error!r}")
        except Exception as error:
            outcome = "undocumented"
            self._watcher.violated(f"{kind} {number} ended with what is not documented: {error!r}")
        else:
            outcome = self._judged(kind, number, words, "".join(text), finish)
        self._figures[f"outcome: {outcome}"] += 1
        said = "".join(text).split()
        if said != [str(one) for one in range(1, len(said) + 1)]:
            self._watcher.violated(f"{kind} {number} was told: {' '.join(said)}")
        if len(said) > words:
            self._watcher.violated(f"{kind} {number} asked for {words} and was told {len(said)}")

    def _troubles(self) -> int:
        return self._runtime.faults.injected.total() + self._runtime.deaths

    def _judge(
        self, kind: str, number: int, error: LevelUnavailable, since: Sequence[Force], *, troubled: bool
    ) -> None:
        """No answer is dropped, but to who insists on a level that is gone, and where something has gone wrong."""
        gone = GONE.fullmatch(str(error))
        if gone is not None and (kind != "insist" or all(gone[1] in one.names for one in since)):
            self._watcher.violated(f"{kind} {number} was told of a level that is not gone: {error}")
        elif gone is None and not troubled:
            self._watcher.violated(f"{kind} {number} ended with {error!r}, and nothing had gone wrong")

    def _judged(self, kind: str, number: int, words: int, text: str, finish: str | None) -> str:
        if kind == "load":
            return "loaded"
        told = len(text.split())
        if finish == "stop" or (kind == "stream" and told == words):
            if told != words:
                self._watcher.violated(f"{kind} {number} ended whole after {told} of {words}")
            return "whole"
        if finish == "length":
            return "shortened"
        if kind == "stream":
            # It shows text only: that it was shortened is not to be seen.
            return "shortened" if number not in self._runtime.broken_off else "broken off by its model"
        if number not in self._runtime.broken_off:
            self._watcher.violated(f"{kind} {number} ended after {told} of {words} with finish reason {finish}")
        return "broken off by its model"

    async def _pieces(self, kind: str, number: int, words: int) -> AsyncGenerator[tuple[str, str | None], None]:
        """The text as it comes, each with the finish reason that it came with."""
        dice, manager = self._dice, self._manager
        said: dict[str, Any] = {"words": words, "number": number}
        if dice.random() < 0.2:
            said["max_tokens"] = dice.randint(1, 30)
        level = dice.choice(manager.scaler.ladder.names) if kind == "insist" else None
        if kind == "load":
            yield "", await manager.load(level)
        elif kind == "turn":
            answer = await manager.generate_response("count", conversation_id=dice.choice("abc"), **said)
            yield answer.text, answer.finish_reason
        elif kind == "stream":
            async for piece in manager.stream_response("count", conversation_id=dice.choice("abc"), **said):
                yield piece, None
        else:
            request = {"messages": [{"role": "user", "content": "count"}], **said}
            dawdles = dice.random() < 0.1
            finish = None
            async with aclosing(manager.answer(request, level=level, streamed=dice.random() < 0.7)) as chunks:
                async for some in chunks:
                    for by, data in some:
                        if level not in (None, by):
                            self._watcher.violated(f"{kind} {number} insisted on {level}, and {by} answered")
                        for choice in data.get("choices", ()):
                            finish = choice.get("finish_reason") or finish
                            yield choice["delta"].get("content") or "", finish
                    if dawdles:
                        await asyncio.sleep(dice.expovariate(1 / 5.0))

    # ---------------------------------------------------------------- who sits at the machine

    def pin(self) -> None:
        """Somebody pins a level for a while."""
        level = self._dice.choice([OFF, *self._manager.scaler.ladder.names])
        try:
            self._manager.scaler.pin(level)
        except PinRefused:
            self._figures["pins refused"] += 1
            return
        self._figures["pins"] += 1
        self._loop.call_later(self._dice.expovariate(1 / 600.0), self._unpin)

    def _unpin(self) -> None:
        if not self.leaving:
            self._manager.scaler.unpin()

    def degrade(self) -> None:
        """Somebody asks for a step down."""
        self._manager.scaler.initiate_graceful_degradation()

    def reload(self) -> None:
        """Somebody changes the configuration, perhaps with a mistake, and has it read anew; at times they hang up."""
        dice = self._dice
        if dice.random() < 0.3:
            self._watcher.say(f"the configuration is spoilt: {self._configuration.spoil()}")
        else:
            self._configuration.edit()
            self._watcher.say("the configuration is changed")
        self._figures["reloads"] += 1
        task = self._loop.create_task(self._reload(), name="reload")
        self.asking[task] = None
        task.add_done_callback(lambda _: self.asking.pop(task, None))
        if dice.random() < 0.15:
            self._loop.call_later(dice.expovariate(1.0), task.cancel)

    async def _reload(self) -> None:
        written, faults = self._configuration.written, self._runtime.faults.injected
        first, drawn = len(written) - 1, _drawn(faults)
        try:
            reload = await self._manager.reload()
        except asyncio.CancelledError:
            outcome = "cancelled"
        except (ConfigError, OSError) as error:
            outcome = "refused"
            if all(written[first:]) and _drawn(faults) == drawn:
                self._watcher.violated(f"a configuration that can be used was refused: {error!r}")
        except ScalerError as error:
            outcome = "sent away at the end"
            if not (self.leaving and str(error) == SHUT_DOWN):
                self._watcher.violated(f"a reload ended with {error!r}")
        else:
            outcome = "applied"
            if not any(written[first:]):
                self._watcher.violated(f"a configuration with a mistake was applied: {reload.changes}")
        self._figures[f"reload: {outcome}"] += 1


def _drawn(faults: Mapping[str, int]) -> int:
    """How often it was drawn that the configuration cannot be put together."""
    return sum(number for fault, number in faults.items() if fault.startswith("reload "))
