"""The chunks of an answer, as servers with OpenAI's API write them: read out of their events, and checked.

Owns how they may differ from llama.cpp's. Whoever reads a chunk behind this may rely on the types of what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scaler.runtimes.event_stream import EventStream

EVENT_LIMIT_BYTES = 16 * 1024**2
"""The longest server-sent event that is read: a tool call with a long argument is one event."""
COUNTS = ("prompt_tokens", "completion_tokens")
"""What the use of tokens is told with."""
_NONE = type(None)
_TEXT, _NUMBER, _LIST, _OBJECT = (str, _NONE), (int, _NONE), (list, _NONE), (dict, _NONE)


class EventReader:
    """Reads server-sent events, ``[DONE]`` at the end."""

    def __init__(self) -> None:
        import orjson

        # Here, because to import it again for every block is a good part of what reading a block costs.
        self._loads = orjson.loads
        self._events = EventStream(EVENT_LIMIT_BYTES)
        self._open: dict[int, bool] = {}
        self.ended = False

    @property
    def whole(self) -> bool:
        """Whether every choice had its finish_reason: some servers then hang up without ``[DONE]``."""
        return bool(self._open) and not any(self._open.values())

    def feed(self, block: bytes) -> Iterator[dict[str, Any]]:
        """The chunks in the events."""
        for data in self._events.feed(block):
            if data == b"[DONE]":
                self.ended = True
                return
            # llama.cpp's completion of several prompts begins with null.
            if (chunk := self._loads(data)) is None:
                continue
            if not isinstance(chunk, dict):
                raise ValueError(f"it sends an event that is no object: {chunk!r:.60}")
            yield self._in_our_words(chunk)

    def _in_our_words(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """A chunk as llama.cpp has it, of servers that call a part otherwise or leave one empty: vLLM's ``reasoning``.

        Raises ValueError for one that has something else where a part is known to be.
        """
        if chunk.get("object") == "error":
            # An older vLLM's, without OpenAI's object around it.
            return {"error": chunk}
        if (choices := chunk.get("choices", ())) is None:
            choices = chunk["choices"] = []
        if not isinstance(choices, list | tuple):
            raise ValueError(f"it sends choices that are no list: {choices!r:.60}")
        for choice in choices:
            if not _is_choice(choice):
                raise ValueError(f"it sends a choice that is none: {choice!r:.60}")
            if choice.get("index") is None:
                choice["index"] = 0
            self._open[choice["index"]] = not choice.get("finish_reason")
            if delta := choice.get("delta"):
                if "reasoning" in delta:
                    delta.setdefault("reasoning_content", delta.pop("reasoning"))
                for call in delta.get("tool_calls") or ():
                    if call.get("index", 0) is None:
                        del call["index"]
        if (usage := chunk.get("usage")) is not None and not _is_usage(usage):
            # As good as none: nobody's answer is to fail for it.
            chunk["usage"] = None
        return chunk


def _is_choice(choice: Any) -> bool:
    """Whether it is a choice of a chunk. In one expression, for it is asked of every token."""
    return (
        isinstance(choice, dict)
        and isinstance(choice.get("index"), _NUMBER)
        and isinstance(choice.get("text"), _TEXT)
        and isinstance(choice.get("finish_reason"), _TEXT)
        and isinstance(choice.get("logprobs"), _OBJECT)
        and isinstance(delta := choice.get("delta"), _OBJECT)
        and (
            not delta
            or (
                isinstance(delta.get("content"), _TEXT)
                and isinstance(delta.get("reasoning_content"), _TEXT)
                and isinstance(delta.get("reasoning"), _TEXT)
                and isinstance(calls := delta.get("tool_calls"), _LIST)
                and (not calls or all(map(_is_call, calls)))
            )
        )
    )


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict) and isinstance(call.get("index"), _NUMBER) and isinstance(call.get("function"), _OBJECT)
    )


def _is_usage(usage: Any) -> bool:
    return isinstance(usage, dict) and all(isinstance(usage.get(key), int) for key in COUNTS)
