"""Conversations in memory: they end with the program."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy

from scaler.conversations.protocol import Said


class MemoryConversations:
    """Keeps conversations for as long as the program runs; fulfils `Conversations`."""

    def __init__(self, keep: int) -> None:
        """``keep``: how many conversations are kept at the most."""
        self._keep = keep
        self._lock = threading.Lock()
        self._histories: OrderedDict[str, tuple[Said, ...]] = OrderedDict()

    def history(self, conversation_id: str) -> tuple[Said, ...]:
        """What was said so far, oldest first; empty for a conversation that is not known."""
        with self._lock:
            return self._histories.get(conversation_id, ())

    def extend(self, conversation_id: str, turn: Sequence[Said]) -> None:
        """Append a turn."""
        if not turn:
            return
        # The messages are the caller's, who may change them.
        kept = deepcopy(tuple(turn))
        with self._lock:
            self._histories[conversation_id] = (*self._histories.pop(conversation_id, ()), *kept)
            while len(self._histories) > self._keep:
                self._histories.popitem(last=False)

    def forget(self, conversation_id: str) -> None:
        """Drop a conversation; does nothing when it is not known."""
        with self._lock:
            self._histories.pop(conversation_id, None)

    def known(self) -> tuple[str, ...]:
        """The ids of all conversations, the one continued last first."""
        with self._lock:
            return tuple(reversed(self._histories))

    def close(self) -> None:
        """Nothing is held that would have to be given back."""
