"""One answer, over as many levels as it takes: pre-flight check, a share of a level, the answer, the hand-off.

Owns a request from its arrival to its end. Knows no thresholds, loads nothing and speaks no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from scaler.answering import Answering, Chunk
from scaler.conversations.fitting import fit
from scaler.courses import Courses
from scaler.errors import LevelUnavailable, NeverAsked, QueueFull, RequestRejected, RequestTimedOut
from scaler.events import AnswerHandedOver
from scaler.handoff import LIMITS, Splice, token_limit, without_thinking
from scaler.normal_form import normal_form
from scaler.passed_on import NO_HEADERS
from scaler.proactive import ProactiveScaler
from scaler.runtimes.protocol import LoadedModel
from scaler.switching import Lease, Switcher

ANSWER_SHARE = 4
"""Where a request names no token limit, this part of the context window (a quarter) is kept for the answer."""
BESIDES = ("tools", "response_format", "chat_template_kwargs")
"""What a chat template may put into the prompt beside the messages."""
AGAIN_S = 0.2
"""For so long a model that was gone is not asked again: whoever watches it hears of its end a little later."""
DEATHS = 2
"""An answer under which so many models died may be what kills them; no further level is tried."""


class Relay:
    """Answers requests with whatever level serves, and lets the next one finish what a level could not."""

    def __init__(
        self,
        scaler: ProactiveScaler,
        switcher: Switcher,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``wait_s``: for how long a request waits for a level, at its beginning and at each hand-off."""
        self._scaler, self._switcher = scaler, switcher
        self.wait_s, self._clock = wait_s, clock
        self.courses = Courses(clock)
        """What became of each request."""

    async def answer(
        self,
        request: Mapping[str, Any],
        *,
        level: str | None = None,
        streamed: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield the answer's chunks, each with the level that made it, those together that came together.

        Never an empty list, and at least one. Runs on the effects' loop.

        ``level`` insists on one level: the request waits for it, and no other one answers. ``streamed`` says that
        chunks are shown as they come; else an answer that cannot be continued half way is begun anew. ``headers`` are
        those that the request came with, for whoever follows it.
        Raises QueueFull, RequestTimedOut, LevelUnavailable, RequestRejected.
        """
        kind = "text_completion" if "prompt" in request else "chat"
        with self.courses.begin(kind, level, headers or NO_HEADERS) as course:
            scaler, splice = self._scaler, Splice(normal_form(request), streamed=streamed)
            scaler.want(True)
            until, deaths = self._clock() + self.wait_s, 0
            failure: LevelUnavailable | None = None
            gone: tuple[LoadedModel, NeverAsked] | None = None
            todo = splice.next_request()
            while todo is not None:
                try:
                    left = max(0.0, until - self._clock())
                    lease = await self._switcher.lease(left, self._why(level), level=level, ahead=bool(course.parts))
                except (QueueFull, RequestTimedOut):
                    if not splice.begun:
                        raise
                    if failure is not None:
                        raise failure from None
                    # The level gave way, and none came in its place: what was said of the answer stands.
                    break
                if gone is not None and lease.model is gone[0]:
                    lease.release()
                    if self._clock() < until:
                        await asyncio.sleep(AGAIN_S)
                        continue
                    if not splice.begun:
                        raise gone[1]
                    if failure is not None:
                        raise failure
                    break
                before, failure = failure, None
                answering, leased_s = Answering(lease, self._clock), self._clock()
                answering.headers = course.asks(lease.level, answering)
                try:
                    asking = partial(self._prepare, todo, splice, lease)
                    async with aclosing(answering.stream(asking)) as arriving:
                        async for arrived in arriving:
                            if passed := [Chunk(*one) for data in arrived for one in splice.add(lease.level, data)]:
                                yield passed
                            if splice.stopped:
                                return
                except LevelUnavailable as error:
                    failure = error
                    if isinstance(error, NeverAsked):
                        gone = lease.model, error
                    else:
                        deaths += 1
                except RequestRejected:
                    if not splice.begun:
                        raise
                    # This level cannot take what the one before could: its context window may be smaller.
                    course.left("rejected")
                    break
                finally:
                    lease.release()
                    if not lease.replaced and (sample := answering.sample()) is not None:
                        scaler.update_performance_metrics(sample)
                if splice.finished or not (answering.gave_way or failure):
                    rest = splice.rest()
                    if not (splice.begun or splice.finished):
                        raise LevelUnavailable(f"{lease.level}: the model ended its answer without a word; try again")
                    if rest:
                        yield [Chunk(*one) for one in rest]
                    return
                unasked = isinstance(failure, NeverAsked)
                course.left("gave_way" if answering.gave_way else "not_asked" if unasked else "failed")
                failure = failure or LevelUnavailable(f"{lease.level}: it gave way before the answer had begun")
                if deaths >= DEATHS:
                    raise failure
                todo = splice.next_request()
                # What counts is the waiting for a level, not that for one's turn at it.
                until = self._clock() + self.wait_s if lease.tokens else until + self._clock() - leased_s
                if splice.begun:
                    if level is not None:
                        # No other level may go on with it: by our will that is all of it, by nobody's it is an error.
                        if answering.gave_way:
                            break
                        raise failure
                    failure = None if answering.gave_way else failure
                    if isinstance(failure, NeverAsked):
                        # It had no part in the answer.
                        failure = before
                        continue
                    if todo is not None:
                        scaler.note(AnswerHandedOver(lease.level, splice.tokens, str(failure) if failure else None))
            if ending := splice.ending():
                course.outcome = "shortened"
                yield [Chunk(splice.level, one) for one in ending]

    def _why(self, level: str | None) -> Callable[[], str]:
        def why() -> str:
            reason = self._scaler.check_preflight_resources().reason
            return (
                reason if level is None else f"only {level} was asked for, and {self._scaler.status().serving} serves"
            )

        return why

    async def _prepare(self, request: Mapping[str, Any], splice: Splice, lease: Lease) -> dict[str, Any]:
        """The request as the level can take it: shortened where the pre-flight check says so of it, and fitted."""
        # By one name: of two that differ, llama.cpp goes by the one of its own.
        asked, limit = {key: value for key, value in request.items() if key not in LIMITS}, token_limit(request)
        check = self._scaler.check_preflight_resources()
        # One that has begun goes on as it was meant to be: if this level has to give way as well, the next one goes on.
        # So it is with one for which nothing is left: its lease is about to be cut.
        if check.max_tokens and check.level == lease.level and not splice.begun:
            limit = min(limit or check.max_tokens, check.max_tokens)
            if "messages" in asked:
                asked = without_thinking(asked)
        if limit is not None:
            asked["max_tokens"] = limit
            if isinstance(least := asked.get("min_tokens"), int):
                # vLLM refuses one that is above the limit, which may be ours.
                asked["min_tokens"] = min(least, limit)
        if "messages" in asked:
            context = lease.settings.context_tokens
            reserved = min(limit or context // ANSWER_SHARE, context // 2)
            messages, said = list(asked["messages"]), []
            if splice.text:
                # What was said already is no turn that could be left out.
                said = [messages.pop()]

            async def count(some: Sequence[Mapping[str, Any]]) -> int:
                return await lease.model.count_tokens({**asked, "messages": [*some, *said]})

            besides = bool(said) or any(asked.get(key) for key in BESIDES)
            asked["messages"] = [*await fit(messages, context - reserved, count, besides=besides), *said]
        return asked
