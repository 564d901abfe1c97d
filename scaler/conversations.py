"""Conversations: what was said, kept across switches, and fitted to a level's context window.

Owns the histories; knows nothing of levels beyond a number of tokens.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

TEMPLATE_TOKENS = 16
"""Room that a chat template takes for each message, at the most that we have seen of common ones."""


class Conversations:
    """Histories by conversation id, the least recently used forgotten first; safe to use from many threads."""

    def __init__(self, keep: int = 1000) -> None:
        """``keep``: how many conversations are remembered at the most."""
        self._keep = keep
        self._lock = threading.Lock()
        self._histories: OrderedDict[str, tuple[Message, ...]] = OrderedDict()

    def history(self, conversation_id: str) -> tuple[Message, ...]:
        """The messages so far, oldest first; empty for a conversation that is not known."""
        with self._lock:
            return self._histories.get(conversation_id, ())

    def extend(self, conversation_id: str, messages: Sequence[Message]) -> None:
        """Append messages."""
        with self._lock:
            self._histories[conversation_id] = (*self._histories.pop(conversation_id, ()), *messages)
            while len(self._histories) > self._keep:
                self._histories.popitem(last=False)

    def forget(self, conversation_id: str) -> None:
        """Drop a conversation; does nothing when it is not known."""
        with self._lock:
            self._histories.pop(conversation_id, None)


async def fit(
    messages: Sequence[Message],
    room_tokens: int,
    count: Callable[[Sequence[Message]], Awaitable[int]],
) -> list[Message]:
    """The messages that fit into ``room_tokens``: system prompt and latest turns first.

    Keeps leading system messages, and of the rest as long a tail as fits, but always the last message. The
    exact count is asked for only when the text could be too long: a token stands for one byte at least.
    """
    if sum(_most_tokens(message) for message in messages) <= room_tokens or await count(messages) <= room_tokens:
        return list(messages)
    first = next((i for i, m in enumerate(messages) if m.get("role") not in ("system", "developer")), len(messages))
    head, turns = list(messages[:first]), list(messages[first:])
    # The longest tail that fits, by bisection: tokens grow with the number of turns.
    fewest, most = 1, len(turns)
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if await count([*head, *_tail(turns, middle)]) <= room_tokens:
            fewest = middle
        else:
            most = middle - 1
    return [*head, *_tail(turns, fewest)]


def _tail(turns: Sequence[Message], number: int) -> Sequence[Message]:
    """The last ``number`` turns, less answers at their head whose question is cut off."""
    tail = turns[-number:]
    start = next((i for i, m in enumerate(tail) if m.get("role") == "user"), len(tail) - 1)
    return tail[start:]


def _most_tokens(message: Message) -> int:
    content = message.get("content")
    text = content if isinstance(content, str) else str(content) + str(message.get("tool_calls", ""))
    return len(text.encode()) + TEMPLATE_TOKENS
