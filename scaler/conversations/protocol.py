"""What a conversation is made of, and what is asked of whatever keeps conversations.

A keeper knows nothing of levels beyond their names, and nothing of requests: it keeps what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

Message = Mapping[str, Any]
"""A message as OpenAI has it, and nothing else: it goes into the next request as it is."""


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a conversation, when it was said by the wall clock (with its zone), and the levels that made it.

    ``levels`` are in order: more than one where the answer was handed over; none where a person or program said it.
    """

    message: Message
    at: datetime
    levels: tuple[str, ...] = ()


class Conversations(Protocol):
    """Keeps conversations by their id, so many at the most; the one continued longest ago is forgotten first.

    Safe to use from many threads. Every method but `close` may take as long as a disk does, and raises
    ConversationError when what keeps the conversations fails.
    """

    def history(self, conversation_id: str) -> tuple[Said, ...]:
        """What was said so far, oldest first; empty for a conversation that is not known."""

    def extend(self, conversation_id: str, turn: Sequence[Said]) -> None:
        """Append a turn, the question with its answer: all of it or, when this raises, nothing."""

    def forget(self, conversation_id: str) -> None:
        """Drop a conversation; does nothing when it is not known."""

    def known(self) -> tuple[str, ...]:
        """The ids of all conversations, the one continued last first."""

    def close(self) -> None:
        """Give back what is held; nothing is lost. Safe to call twice."""
