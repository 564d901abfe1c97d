"""One answer made by one level after another: what was passed on of it, and how the next level goes on with it.

Pure: requests and chunks in, requests and chunks out. Knows nothing of levels' sizes, processes or HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scaler.normal_form import answers_asked

LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
"""What a request may call its token limit; the first that is set counts."""
FORMS = (
    "grammar", "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip
"""What a request may call the form of an answer, beside ``response_format``: llama.cpp's words, and vLLM's new and old.

Source: https://docs.vllm.ai/en/latest/features/structured_outputs/
"""


def says_something(data: Mapping[str, Any]) -> bool:
    """Whether a chunk carries any part of the answer itself."""
    for choice in data.get("choices", ()):
        delta = choice.get("delta")
        if choice.get("text") or (delta and (delta.get("content") or _thought(delta) or delta.get("tool_calls"))):
            return True
    return False


def ends(data: Mapping[str, Any]) -> bool:
    """Whether a chunk ends the answer, or one of several."""
    return any(choice.get("finish_reason") for choice in data.get("choices", ()))


def token_limit(request: Mapping[str, Any]) -> int | None:
    """How many tokens the answer may have; None when the request does not say."""
    return next((request[key] for key in LIMITS if request.get(key) is not None), None)


def without_thinking(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the model's thinking switched off; templates that know of none ignore it."""
    return {
        **request,
        "chat_template_kwargs": {**(request.get("chat_template_kwargs") or {}), "enable_thinking": False},
    }


class Splice:
    """Passes on the chunks of one answer as if a single level had made it.

    `next_request` says what to ask the next level, `add` what to pass on of its chunks, `ending` how to end
    what cannot be continued.
    """

    def __init__(self, request: Mapping[str, Any], *, streamed: bool) -> None:
        """``streamed``: whether the client sees the chunks as they come, or the whole answer only."""
        self._request = request
        # Half a tool call or half a JSON document is of no use to the next level. Where the client sees nothing
        # before the end, it can be begun anew; so nothing counts as passed on until it is whole.
        self._asked = answers_asked(request)
        self._several, self._formed = self._asked > 1 or _of_tokens(request), _formed(request)
        self._whole_only = not streamed and (self._several or self._formed or bool(request.get("tools")))
        self._stops = _stops(request)
        self._held: list[tuple[str, dict[str, Any]]] = []
        self._text: list[str] = []
        self._first: dict[str, Any] = {}
        self._ended: set[int] = set()
        self._seam: Seam | None = None
        self._carried = self._read_again = 0
        self._called = False
        self.tokens = 0
        """How many tokens were passed on."""
        self.finished = False
        """Whether the end of the answer, of each where it is several, has come, or nothing more could come."""
        self.level = ""
        """The level that made the latest of what was passed on."""

    @property
    def begun(self) -> bool:
        """Whether anything of the answer was passed on, so that it cannot be begun anew unseen."""
        return self.tokens > 0

    @property
    def text(self) -> str:
        """The text that was passed on."""
        return "".join(self._text)

    @property
    def stopped(self) -> bool:
        """Whether a stop string that the seam runs through ended the answer: nothing more is to be read."""
        return self._seam is not None and self._seam.stopped

    def next_request(self) -> dict[str, Any] | None:
        """What to ask the next level for, or None when the answer can only be ended.

        The text so far is the start of the assistant's turn, and what is left of the token limit is the limit.
        Call it when a level begins: what the level before had not passed on is forgotten.
        """
        self._held.clear()
        if not self.begun:
            self._ended.clear()
            return dict(self._request)
        if self._called or self._several or (self._text and self._formed):
            return None
        request = {key: value for key, value in self._request.items() if key not in LIMITS}
        limit = token_limit(self._request)
        if limit is not None:
            if limit <= self.tokens:
                return None
            request["max_tokens"] = limit - self.tokens
        text = self.text
        self._seam = Seam(text, self._stops) if self._stops else None
        self._carried, self._read_again = self.tokens, len(self._text)
        if "prompt" in request:
            prompt = request["prompt"]
            # What was echoed of it is told already.
            going_on = text.removeprefix(prompt) if request.pop("echo", None) else text
            return {**request, "prompt": f"{prompt}{going_on}"}
        # What it thought is told already; to think again would repeat it.
        request = without_thinking(request)
        if not text:
            return request
        messages = list(request["messages"])
        if messages and messages[-1].get("role") == "assistant":
            text = f"{_text_of(messages.pop().get('content'))}{text}"
        return {**request, "messages": [*messages, {"role": "assistant", "content": text}]}

    def add(self, level: str, data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Take a chunk from ``level``; returns what to pass on now, each with the level that made it."""
        if self.finished and data.get("choices"):
            return []
        if self._carried and not self._continue(data):
            return []
        self._held.append((level, data))
        if ended := {choice.get("index", 0) for choice in data.get("choices", ()) if choice.get("finish_reason")}:
            self._ended |= ended
            self.finished = len(self._ended) >= self._asked
        if self._whole_only or not (self.begun or ended or says_something(data)):
            return []
        return self.rest()

    def rest(self) -> list[tuple[str, dict[str, Any]]]:
        """What was held back and can be passed on now that the level has said all."""
        passed, self._held = self._held, []
        for by, one in passed:
            self._note(by, one)
        return passed

    def ending(self) -> list[dict[str, Any]]:
        """The chunk that ends an answer as any other token limit does; none where it has ended."""
        if self.finished:
            return []
        self.finished = True
        plain = "prompt" in self._request
        return [
            {
                **self._first,
                "choices": [
                    {"index": index, **({"text": ""} if plain else {"delta": {}}), "finish_reason": "length"}
                    for index in range(self._asked)
                    if index not in self._ended
                ],
            }
        ]

    def _note(self, level: str, data: Mapping[str, Any]) -> None:
        if not self._first:
            self._first = {key: data[key] for key in ("id", "object", "created", "model") if key in data}
        self.level = level
        for choice in data.get("choices", ()):
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content")
            if text and choice.get("index", 0) == 0:
                self._text.append(text)
            called = bool(delta.get("tool_calls"))
            self._called = self._called or called
            if text or called or _thought(delta):
                self.tokens += 1

    def _continue(self, data: dict[str, Any]) -> bool:
        """Make a chunk of a later level one of the same answer; False when there is nothing in it to pass on."""
        data |= {key: value for key, value in self._first.items() if key != "model" and key in data}
        if (usage := data.get("usage")) is not None:
            data["usage"] = _added(usage, self._carried, self._read_again)
        choices = data.get("choices")
        if not choices:
            return usage is not None
        for choice in choices:
            delta = choice.get("delta")
            if delta is not None:
                delta.pop("role", None)
                if delta.get("content") is None:
                    delta.pop("content", None)
            if self._seam is not None:
                self._pass_seam(choice, self._seam)
        # Of a text that the seam withholds, the tokens are told as they come.
        return ends(data) or says_something(data) or any(choice.get("logprobs") for choice in choices)

    def _pass_seam(self, choice: dict[str, Any], seam: Seam) -> None:
        where, key = (choice["delta"], "content") if "delta" in choice else (choice, "text")
        text = seam.feed(where.get(key) or "", last=bool(choice.get("finish_reason")))
        if text or key in where:
            where[key] = text
        if seam.stopped:
            choice["finish_reason"] = "stop"


class Seam:
    """Finds a stop string that begins in what was said before and ends in what is said now.

    The runtime finds those within its own words; one that the seam runs through, only who sees both sides.
    """

    def __init__(self, said: str, stops: Sequence[str]) -> None:
        """``said``: the text before the seam; its last characters matter."""
        longest = max(map(len, stops))
        self._stops = tuple(stops)
        self._before = said[-(longest - 1) :] if longest > 1 else ""
        self._pending = ""
        self._open = bool(self._before)
        self.stopped = False
        """Whether one was found: nothing more is to be said."""

    def feed(self, text: str, *, last: bool = False) -> str:
        """Take text from behind the seam; returns what may be passed on of it. ``last``: nothing follows."""
        if self.stopped:
            return ""
        if not self._open:
            return text
        self._pending += text
        both, edge = self._before + self._pending, len(self._before)
        for start in range(edge):
            for stop in self._stops:
                if start + len(stop) > edge and both.startswith(stop, start):
                    self._pending, self.stopped = "", True
                    return ""
        undecided = any(stop.startswith(both[start:]) for start in range(edge) for stop in self._stops)
        if undecided and not last:
            return ""
        self._open = undecided
        out, self._pending = self._pending, ""
        return out


def _text_of(content: Any) -> str:
    """The text of a message, which may come in parts; a runtime that goes on with them puts nothing between them."""
    parts = content if isinstance(content, list) else [{"text": content}]
    return "".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _thought(delta: Mapping[str, Any]) -> Any:
    return delta.get("reasoning_content")


def _stops(request: Mapping[str, Any]) -> tuple[str, ...]:
    stop = request.get("stop")
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return tuple(one for one in stops if isinstance(one, str) and one)


def _of_tokens(request: Mapping[str, Any]) -> bool:
    """Whether it has a prompt that no text can be added to."""
    return "prompt" in request and not isinstance(request["prompt"], str)


def _formed(request: Mapping[str, Any]) -> bool:
    """Whether the whole text has to be of a form, which a level that gets it half done cannot know the rest of."""
    form = request.get("response_format")
    structured = isinstance(form, Mapping) and form.get("type") not in (None, "text")
    return structured or any(request.get(key) for key in FORMS)


def _added(usage: Mapping[str, Any], carried: int, read_again: int) -> dict[str, Any]:
    """The usage of the whole answer: the levels before made ``carried`` tokens, of which the last one read some."""
    made = usage.get("completion_tokens", 0) + carried
    read = max(0, usage.get("prompt_tokens", 0) - read_again)
    return {**usage, "prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
