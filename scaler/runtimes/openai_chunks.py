"""The chunks of an answer, as servers with OpenAI's API write them: read out of their events, and checked.

Owns how they may differ from llama.cpp's. Whoever reads a chunk behind this may rely on the types of what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaler.normal_form import answers_asked
from scaler.runtimes.event_stream import EventStream

EVENT_LIMIT_BYTES = 16 * 1024**2
"""The longest server-sent event that is read: a tool call with a long argument is one event."""
COUNTS = ("prompt_tokens", "completion_tokens")
"""What the use of tokens is told with."""
NO_DELTA: dict[str, Any] = {}
MOST_CALLS = 1024
"""No answer calls so many tools; who counts further has none to call."""
_NONE = type(None)
_TEXT, _NUMBER, _LIST, _OBJECT = (str, _NONE), (int, _NONE), (list, _NONE), (dict, _NONE)


class EventReader:
    """Reads server-sent events, ``[DONE]`` at the end."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        """``request``: what the answer is to, which may ask for several."""
        import orjson

        # Here, because to import it again for every block is a good part of what reading a block costs.
        self._loads = orjson.loads
        self._events = EventStream(EVENT_LIMIT_BYTES)
        self._asked, self._finished = answers_asked(request), set[int]()
        self._calls: dict[int, list[tuple[int | None, str | None]]] = {}
        self.ended = False

    @property
    def whole(self) -> bool:
        """Whether every choice had its finish_reason: some servers then hang up without ``[DONE]``."""
        return len(self._finished) >= self._asked

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
            if _is_a_word(choice):
                continue
            if not _is_choice(choice):
                raise ValueError(f"it sends a choice that is none: {choice!r:.60}")
            if (index := choice.get("index")) is None:
                index = choice["index"] = 0
            if choice.get("finish_reason"):
                self._finished.add(index)
            if choice.get("text", "") is None:
                choice["text"] = ""
            if (delta := choice.get("delta", NO_DELTA)) is None:
                choice["delta"] = {}
            elif delta:
                if "reasoning" in delta:
                    delta.setdefault("reasoning_content", delta.pop("reasoning"))
                for call in delta.get("tool_calls") or ():
                    self._number(call, self._calls.setdefault(index, []))
        if (usage := chunk.get("usage")) is not None and not _is_usage(usage):
            # As good as none: nobody's answer is to fail for it.
            chunk["usage"] = None
        return chunk

    @staticmethod
    def _number(call: dict[str, Any], begun: list[tuple[int | None, str | None]]) -> None:
        """Give a piece of a tool call the number of its call: some servers tell none, or 0 for each.

        ``begun`` are the numbers, as the server tells them, and the ids of the calls that have begun.
        """
        told, identity, named = call.get("index"), call.get("id"), bool((call.get("function") or {}).get("name"))
        place = next((one for one in reversed(range(len(begun))) if told in (None, begun[one][0])), None)
        if place is None or (named and (identity != begun[place][1] if identity else told is None)):
            place = len(begun)
            begun.append((told, identity))
        call["index"] = place


def _is_a_word(choice: Any) -> bool:
    """Whether it is what nearly all of an answer is made of, in which nothing more need be looked at: half the cost."""
    return (
        type(choice) is dict
        and len(choice) == 3
        and type(choice.get("index")) is int
        and choice.get("finish_reason", NO_DELTA) is None
        and type(delta := choice.get("delta")) is dict
        and len(delta) == 1
        and type(delta.get("content")) is str
    )


def _is_choice(choice: Any) -> bool:
    """Whether it is a choice of a chunk."""
    return (
        isinstance(choice, dict)
        and isinstance(choice.get("index"), _NUMBER)
        and isinstance(choice.get("text"), _TEXT)
        and isinstance(choice.get("finish_reason"), _TEXT)
        and isinstance(logprobs := choice.get("logprobs"), _OBJECT)
        and (not logprobs or isinstance(logprobs.get("content"), _LIST))
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
        isinstance(call, dict)
        and isinstance(index := call.get("index"), _NUMBER)
        and 0 <= (index or 0) < MOST_CALLS
        and isinstance(function := call.get("function"), _OBJECT)
        and (not function or all(isinstance(function.get(part), _TEXT) for part in ("name", "arguments")))
    )


def _is_usage(usage: Any) -> bool:
    return isinstance(usage, dict) and all(isinstance(usage.get(key), int) for key in COUNTS)
