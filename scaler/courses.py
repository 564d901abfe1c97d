"""The course of each request: how long it waited, which levels had a part in its answer, how it ended.

Owns the record, and who is told of it. Data and times only: no text of a question or an answer, and no word of what
becomes of the record, such as metrics and traces.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Literal, Protocol, Self

from scaler.errors import QueueFull, RequestRejected, RequestTimedOut
from scaler.levels import OFF
from scaler.passed_on import NO_HEADERS

PartOutcome = Literal["completed", "gave_way", "failed", "rejected", "not_asked", "abandoned"]
Outcome = Literal["completed", "shortened", "failed", "rejected", "queue_full", "timed_out", "abandoned"]

PART_OUTCOMES: Mapping[PartOutcome, str] = MappingProxyType(
    {
        "completed": "the level said the end of the answer",
        "gave_way": "the level had to go in the middle of it",
        "failed": "the model died under it, or failed to answer",
        "rejected": "the level did not take the request",
        "not_asked": "the model was gone before the request had reached it",
        "abandoned": "the client left, or the daemon ended",
    }
)
"""How one level's part of an answer may end."""
OUTCOMES: Mapping[Outcome, str] = MappingProxyType(
    {
        "completed": "answered to the end",
        "shortened": "ended where it stood, because no level could go on with it",
        "failed": "an error, for want of a model that lives",
        "rejected": "refused by the runtime for a fault of its own",
        "queue_full": "refused, because too many waited already",
        "timed_out": "refused, because no level came in time",
        "abandoned": "the client left, or the daemon ended, before the end",
    }
)
"""How a request may end."""


@dataclass(slots=True)
class Part:
    """What one level made of an answer. Times are monotonic seconds; `first_token_s` is None when no token came."""

    level: str
    waiting_since_s: float
    began_s: float
    ended_s: float | None = None
    first_token_s: float | None = None
    tokens: int = 0
    outcome: PartOutcome = "completed"

    @property
    def waited_s(self) -> float:
        """How long the request waited for this level."""
        return self.began_s - self.waiting_since_s


class Making(Protocol):
    """An answer of one level, as it is made."""

    @property
    def tokens(self) -> int:
        """How many there are."""

    @property
    def first_token_s(self) -> float | None:
        """The time from the asking to the first of them; None before it has come."""


class Following(Protocol):
    """Who follows one request while it goes on."""

    def asks(self, part: Part) -> Mapping[str, str]:
        """A level is asked; returns the headers that go with it to a runtime's HTTP server."""

    def left(self, part: Part) -> None:
        """A level's part has ended."""

    def ended(self, course: Course) -> None:
        """The request has ended."""


@dataclass(eq=False, slots=True)
class Course:
    """One request, around whose answering it is entered. ``insists_on`` is the level that was asked for, if any.

    ``kind`` is ``chat`` or ``text_completion``.
    """

    kind: str
    insists_on: str | None
    began_s: float
    clock: Callable[[], float]
    tell: Callable[[Course], None]
    parts: list[Part] = field(default_factory=list)
    outcome: Outcome = "completed"
    ended_s: float | None = None
    waited_in_vain_s: float = 0.0
    """How long it waited for the level that would have gone on with it, where none came."""
    following: Following | None = None
    _waiting_since_s: float = 0.0
    _open: Part | None = None
    _making: Making | None = None

    def __enter__(self) -> Self:
        self._waiting_since_s = self.began_s
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.outcome = _outcome_of(error)
        waits = self._open is None
        self.left("completed" if error is None else _part_outcome_of(error))
        self.ended_s = self.clock()
        if waits:
            self.waited_in_vain_s = self.ended_s - self._waiting_since_s
        self.tell(self)
        if self.following is not None:
            self.following.ended(self)

    def asks(self, level: str, making: Making) -> Mapping[str, str]:
        """``level`` is asked from now on, and ``making`` tells what it has made; returns the headers to go with it."""
        part, self._making = Part(level, self._waiting_since_s, self.clock()), making
        self._open = part
        self.parts.append(part)
        return NO_HEADERS if self.following is None else self.following.asks(part)

    def left(self, outcome: PartOutcome) -> None:
        """The level that is asked, if one is, has no more part in it; what is missing is waited for."""
        part, making = self._open, self._making
        self._open = self._making = None
        if part is not None and making is not None:
            part.outcome, part.ended_s = outcome, self.clock()
            part.tokens = making.tokens
            if making.first_token_s is not None:
                part.first_token_s = part.began_s + making.first_token_s
            self._waiting_since_s = part.ended_s
            if self.following is not None:
                self.following.left(part)

    @property
    def level(self) -> str:
        """The level that made the end of the answer; ``off`` where none made any of it."""
        return next((part.level for part in reversed(self.parts) if part.tokens), OFF)

    @property
    def tokens(self) -> int:
        """How many tokens all levels made of it."""
        return sum(part.tokens for part in self.parts)

    @property
    def handed_over(self) -> int:
        """How often another level went on with it."""
        return max(0, sum(bool(part.tokens) for part in self.parts) - 1)

    @property
    def waited_s(self) -> float:
        """For how long it waited for levels, in all."""
        return sum(part.waited_s for part in self.parts) + self.waited_in_vain_s

    @property
    def first_token_s(self) -> float | None:
        """The time from its arrival to the first token; None when none came."""
        first = next((part.first_token_s for part in self.parts if part.first_token_s is not None), None)
        return None if first is None else first - self.began_s


class Courses:
    """Begins the course of every request, and tells who asked for it. On the effects' loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._takers: list[Callable[[Course], None]] = []
        self.follow: Callable[[Course, Mapping[str, str]], Following] | None = None
        """Begins to follow a request, given the headers that it came with; None where nobody does."""

    def begin(self, kind: str, insists_on: str | None, headers: Mapping[str, str]) -> Course:
        """A request has come, with these headers."""
        course = Course(kind, insists_on, self._clock(), self._clock, self._tell)
        if self.follow is not None:
            course.following = self.follow(course, headers)
        return course

    def subscribe(self, taker: Callable[[Course], None]) -> Callable[[], None]:
        """Have ``taker`` told of every request that has ended; returns the way out. It must not block or raise."""
        self._takers.append(taker)
        return lambda: self._takers.remove(taker) if taker in self._takers else None

    def _tell(self, course: Course) -> None:
        for taker in self._takers:
            taker(course)


def _outcome_of(error: BaseException) -> Outcome:
    if isinstance(error, QueueFull):
        return "queue_full"
    if isinstance(error, RequestTimedOut):
        return "timed_out"
    return _part_outcome_of(error)


def _part_outcome_of(error: BaseException) -> Literal["rejected", "abandoned", "failed"]:
    if isinstance(error, RequestRejected):
        return "rejected"
    return "abandoned" if isinstance(error, GeneratorExit | CancelledError) else "failed"
