"""OpenAI's chunks as Ollama's objects, a line each. Knows nothing of HTTP, nor of how a request was asked.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from scaler.answering import Chunk
from scaler.errors import ScalerError

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000

Layout = Callable[[str, Mapping[str, Any]], dict[str, Any]]
"""Where a text, and what belongs to it (``thinking``, ``tool_calls``), stand in an object."""


def chat_layout(text: str, besides: Mapping[str, Any]) -> dict[str, Any]:
    """As ``/api/chat`` has it."""
    return {"message": {"role": "assistant", "content": text, **besides}}


def generate_layout(text: str, besides: Mapping[str, Any]) -> dict[str, Any]:
    """As ``/api/generate`` has it."""
    return {"response": text, **besides}


def now() -> datetime:
    """The time of day, for `created_at`."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def error_of(error: ScalerError) -> dict[str, Any]:
    """Ollama's error object."""
    return {"error": str(error)}


class Form:
    """How one answer is written."""

    content_type = "application/x-ndjson"

    def __init__(
        self,
        layout: Layout,
        *,
        alternatives: bool = False,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = now,
    ) -> None:
        """Its time begins now. ``alternatives``: tell other likely tokens beside each, where there are any."""
        self._layout, self._alternatives = layout, alternatives
        self._clock, self._now = clock, now
        self._began_s = clock()
        self._calls = ToolCalls()
        self._level = ""
        self._finish: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}

    def piece(self, chunk: Chunk) -> bytes:
        """A line for each chunk that says something; the end of the answer waits for its figures."""
        self._take(chunk)
        said = b""
        for choice in chunk.data.get("choices", ()):
            part = choice if "text" in choice else choice.get("delta") or {}
            text, besides = self._said(part, ended=bool(choice.get("finish_reason")))
            logprobs = self._logprobs(choice)
            if text or besides or logprobs:
                said += self._line(self._object(text, besides, logprobs) | {"done": False})
        return said

    def end(self) -> bytes:
        """What is left of tool calls, and the figures."""
        text, besides = self._said({}, ended=True)
        left = self._line(self._object(text, besides, []) | {"done": False}) if text or besides else b""
        return left + self._line(self._object("", {}, []) | self._ending())

    def broken(self, error: ScalerError) -> bytes:
        """A line with the error: programs look for it in every line."""
        return self._line(error_of(error))

    def whole(self, answer: Chunk) -> dict[str, Any]:
        """The answer in one object."""
        self._take(answer)
        choice: dict[str, Any] = next(iter(answer.data.get("choices", ())), {})
        text, besides = self._said(choice if "text" in choice else choice.get("message") or {}, ended=True)
        return self._object(text, besides, self._logprobs(choice)) | self._ending()

    def loaded(self, level: str, reason: str) -> dict[str, Any]:
        """What answers a request that asks for nothing but a model."""
        self._level, self._finish = level, reason
        return self._object("", {}, []) | {"done": True, "done_reason": reason}

    def refusal(self, error: ScalerError) -> dict[str, Any]:
        """Where nothing of the answer has gone out."""
        return error_of(error)

    def _take(self, chunk: Chunk) -> None:
        self._level = chunk.level
        self._usage = chunk.data.get("usage") or self._usage
        self._timings = chunk.data.get("timings") or self._timings
        for choice in chunk.data.get("choices", ()):
            self._finish = choice.get("finish_reason") or self._finish

    def _said(self, part: Mapping[str, Any], *, ended: bool) -> tuple[str, dict[str, Any]]:
        """The text of a chunk, and what belongs to it."""
        text = part.get("text") or part.get("content") or ""
        besides: dict[str, Any] = {}
        if thinking := part.get("reasoning_content"):
            besides["thinking"] = thinking
        calls = self._calls.feed(part.get("tool_calls") or ())
        if ended:
            calls += self._calls.rest()
        if whole := [call for call in calls if isinstance(call, dict)]:
            besides["tool_calls"] = whole
        return text + "".join(call for call in calls if isinstance(call, str)), besides

    def _logprobs(self, choice: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [self._logprob(token) for token in (choice.get("logprobs") or {}).get("content") or ()]

    def _logprob(self, token: Mapping[str, Any]) -> dict[str, Any]:
        told = {key: token[key] for key in ("token", "logprob", "bytes") if key in token}
        if self._alternatives:
            told["top_logprobs"] = [self._likely(other) for other in token.get("top_logprobs") or ()]
        return told

    @staticmethod
    def _likely(token: Mapping[str, Any]) -> dict[str, Any]:
        return {key: token[key] for key in ("token", "logprob", "bytes") if key in token}

    def _object(self, text: str, besides: Mapping[str, Any], logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"model": self._level, "created_at": timestamp(self._now())}
        return head | self._layout(text, besides) | ({"logprobs": logprobs} if logprobs else {})

    def _ending(self) -> dict[str, Any]:
        """How the answer ended, and its figures. What is not known is left out, as Ollama does."""
        ending: dict[str, Any] = {"done": True}
        if self._finish is not None:
            # Ollama knows no end for the sake of a tool call.
            ending["done_reason"] = "length" if self._finish == "length" else "stop"
        ending["total_duration"] = int((self._clock() - self._began_s) * NS_PER_S)
        read, made = self._usage.get("prompt_tokens"), self._usage.get("completion_tokens")
        # Where several levels made the answer, the runtime's times are those of the last one's part only.
        alone = made is not None and self._timings.get("predicted_n") == made
        if read is not None:
            ending["prompt_eval_count"] = read
        if alone and (took := self._timings.get("prompt_ms")) is not None:
            ending["prompt_eval_duration"] = int(took * NS_PER_MS)
        if made is not None:
            ending["eval_count"] = made
        if alone and (took := self._timings.get("predicted_ms")) is not None:
            ending["eval_duration"] = int(took * NS_PER_MS)
        return ending

    @staticmethod
    def _line(data: Mapping[str, Any]) -> bytes:
        return orjson.dumps(data) + b"\n"


class ToolCalls:
    """Puts tool calls together from their pieces: Ollama sends each whole, with its arguments as an object.

    One that was cut short, or whose arguments are no object, comes as text: that is all it is.
    """

    def __init__(self) -> None:
        self._index: int | None = None
        self._identity: str | None = None
        self._name = self._arguments = ""
        self._made = 0

    def feed(self, pieces: Iterable[Mapping[str, Any]]) -> list[dict[str, Any] | str]:
        """Take the pieces of a chunk; returns the calls that are known to be whole now."""
        done = []
        for position, piece in enumerate(pieces):
            index = piece.get("index", position)
            if index != self._index:
                # A model writes one call after the other.
                done += self.rest()
                self._index = index
            function = piece.get("function") or {}
            self._identity = piece.get("id") or self._identity
            self._name += function.get("name") or ""
            self._arguments += function.get("arguments") or ""
        return done

    def rest(self) -> list[dict[str, Any] | str]:
        """The call that nothing more can be added to."""
        if self._index is None:
            return []
        name, written, identity = self._name, self._arguments, self._identity
        self._index, self._identity, self._name, self._arguments = None, None, "", ""
        try:
            arguments = orjson.loads(written or "{}")
        except ValueError:
            arguments = None
        if not name or not isinstance(arguments, dict):
            return [orjson.dumps({"name": name, "arguments": written}).decode()]
        function = {"index": self._made, "name": name, "arguments": arguments}
        self._made += 1
        return [{**({"id": identity} if identity else {}), "function": function}]
