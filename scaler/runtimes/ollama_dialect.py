"""OpenAI's requests in Ollama's words, and Ollama's answers in OpenAI's.

Owns what a field of the one means in the other, and which wishes Ollama cannot fulfil. Pure: bodies in, bodies out; it
must know nothing of HTTP, of levels, nor of when a model is loaded.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from scaler.errors import RequestRejected

T = TypeVar("T")

NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "presence_penalty", "frequency_penalty",
    "repeat_penalty",
)  # fmt: skip
"""Options of one number that both call the same."""
LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
"""Ways to say how long an answer may get; the first that is given counts."""
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "max"}
"""How much to think: Ollama refuses words that it does not know."""
FOREVER = -1
"""The model goes when scaler says so, and not after five idle minutes."""


def chat(request: Mapping[str, Any], model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of ``/api/chat``; ``options`` win over those of the request. Raises RequestRejected."""
    _refuse_impossible(request)
    return {
        "model": model,
        "messages": _messages(_list(request, "messages", "message objects")),
        **_frame(request, options),
        **_tools(request),
        **_thinking(request),
        **_logprobs(request),
    }


def completion(request: Mapping[str, Any], model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of ``/api/generate``; ``options`` win over those of the request. Raises RequestRejected."""
    _refuse_impossible(request)
    prompt = request.get("prompt")
    if not isinstance(prompt, str):
        raise RequestRejected("'prompt' must be one text: Ollama takes neither tokens nor several prompts at once")
    # Where a model can think, Ollama takes what stands between its marks out of the text, unless told not to; and of a
    # prompt that is too long it takes the beginning away.
    plain = {"raw": True, "think": False, "truncate": False}
    return {"model": model, "prompt": prompt, **plain, **_frame(request, options)}


def _frame(request: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What both bodies have."""
    asked = {**_options(request), **options}
    return {"stream": True, "keep_alive": FOREVER, "options": asked, **_format(request)}


def _refuse_impossible(request: Mapping[str, Any]) -> None:
    """An answer that passes over such a wish would look as if it had been fulfilled."""
    if request.get("n") not in (None, 1):
        _cannot("give several answers to one request", "leave out 'n', and ask once for each")
    if request.get("logit_bias"):
        _cannot("make single tokens more or less likely", "leave out 'logit_bias'")
    if request.get("grammar"):
        _cannot("hold an answer to a grammar", "leave out 'grammar', or give a JSON schema in 'response_format'")


def _cannot(what: str, remedy: str) -> NoReturn:
    raise RequestRejected(f"Ollama cannot {what}: {remedy}")


# -------------------------------------------------------------------- messages and tools


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}
    told = []
    for message in messages:
        told.append(_message(message, names))
        for call in message.get("tool_calls") or ():
            if isinstance(identity := call.get("id"), str):
                names[identity] = call["function"]["name"]
    return told


def _message(message: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """One message; ``names`` are those of the tools that were called before, by the id of the call."""
    role = _of(message, "role", str, "a text")
    if not role:
        raise RequestRejected("each of 'messages' must have a 'role', such as user")
    text, images = _content(message.get("content"))
    told: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": text}
    if images:
        told["images"] = images
    if thinking := _of(message, "reasoning_content", str, "a text"):
        told["thinking"] = thinking
    if calls := _list(message, "tool_calls", "tool calls"):
        told["tool_calls"] = [_call(call) for call in calls]
    if role == "tool":
        identity = _of(message, "tool_call_id", str, "a text") or ""
        if name := names.get(identity) or _of(message, "name", str, "a text"):
            told["tool_name"] = name
    return told


def _content(content: object) -> tuple[str, list[str]]:
    """The text of a message, and its pictures in base64."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise RequestRejected("'content' must be a text or a list of parts")
    texts, images = [], []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
                images.append(_image(url))
            case {"type": str(kind)} if kind not in ("text", "image_url"):
                _cannot(f"read a part of the type {kind!r:.60}", "send text and pictures only")
            case _:
                raise RequestRejected("each part of 'content' must be a text, or an image_url with a 'url'")
    return "".join(texts), images


def _image(url: str) -> str:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().startswith("data:") or not head.lower().endswith(";base64"):
        _cannot("fetch pictures", "send them as a URL like data:image/png;base64,...")
    return data


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = _of(call, "function", dict, "an object") or {}
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str | None):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise RequestRejected(f"the arguments of each of 'tool_calls' must be JSON: {error}") from error
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise RequestRejected("each of 'tool_calls' must have a function with a name and, as JSON, an object")
    return {"function": {"name": name, "arguments": arguments}}


def _tools(request: Mapping[str, Any]) -> dict[str, Any]:
    choice = request.get("tool_choice")
    if choice not in (None, "auto", "none"):
        _cannot("be made to call a tool", "leave out 'tool_choice', or send auto or none")
    tools = request.get("tools")
    return {"tools": tools} if tools and choice != "none" else {}


# -------------------------------------------------------------------- how to answer


def _options(request: Mapping[str, Any]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for name in NUMBERS:
        if (value := _number(request, name)) is not None:
            asked[name] = value
    if stop := request.get("stop"):
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
            raise RequestRejected("'stop' must be a text or a list of texts")
        asked["stop"] = stops
    limit = next((value for name in LIMITS if (value := _number(request, name)) is not None), None)
    if limit is not None:
        # Ollama has 0 mean no limit, which is as far from what was asked as can be.
        asked["num_predict"] = limit or 1
    return asked


def _format(request: Mapping[str, Any]) -> dict[str, Any]:
    if schema := _of(request, "json_schema", dict, "a JSON schema"):
        # llama.cpp's short form, which raw completions have in place of OpenAI's.
        return {"format": schema}
    form = _of(request, "response_format", dict, "an object") or {}
    match form.get("type", "text"):
        case "text":
            return {}
        case "json_object":
            return {"format": form.get("schema") or "json"}
        case "json_schema":
            described = _of(form, "json_schema", dict, "an object") or {}
            return {"format": described.get("schema") or "json"}
        case kind:
            _cannot(f"answer in the form {kind!r:.60}", "leave out 'response_format', or send json_schema")


def _thinking(request: Mapping[str, Any]) -> dict[str, Any]:
    wishes = _of(request, "chat_template_kwargs", dict, "an object") or {}
    enabled = wishes.get("enable_thinking")
    effort = request.get("reasoning_effort") or wishes.get("reasoning_effort")
    if enabled is False or effort == "none":
        return {"think": False}
    if effort:
        if not isinstance(effort, str) or effort not in EFFORTS:
            raise RequestRejected(f"'reasoning_effort' must be none or one of {', '.join(EFFORTS)}")
        return {"think": EFFORTS[effort]}
    return {"think": True} if enabled is True else {}


def _logprobs(request: Mapping[str, Any]) -> dict[str, Any]:
    if not request.get("logprobs"):
        return {}
    alternatives = _number(request, "top_logprobs")
    return {"logprobs": True} | ({"top_logprobs": alternatives} if alternatives else {})


# -------------------------------------------------------------------- values of one type


def _of(body: Mapping[str, Any], key: str, kind: type[T], what: str) -> T | None:
    value = body.get(key)
    if value is None or isinstance(value, kind):
        return value
    raise RequestRejected(f"{key!r} must be {what}")


def _list(body: Mapping[str, Any], key: str, what: str) -> list[Mapping[str, Any]]:
    values = _of(body, key, list, f"a list of {what}") or []
    if not all(isinstance(value, Mapping) for value in values):
        raise RequestRejected(f"{key!r} must be a list of {what}")
    return values


def _number(body: Mapping[str, Any], key: str) -> float | int | None:
    value = body.get(key)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise RequestRejected(f"{key!r} must be a number")


# -------------------------------------------------------------------- answers


class Lines:
    """Ollama's lines of one answer as OpenAI's chunks, in the order in which llama.cpp sends them.

    ``plain`` is the answer to a completion, rather than to a chat. A line with an error is the caller's to see.
    """

    def __init__(self, model: str, *, plain: bool, created_s: int, identity: str) -> None:
        self._identity = identity
        self._plain = plain
        self._begun = plain  # A completion has no role to tell.
        self._calls = 0
        self._head = {
            "id": f"{'cmpl' if plain else 'chatcmpl'}-{identity}",
            "object": "text_completion" if plain else "chat.completion.chunk",
            "created": created_s,
            "model": model,
        }

    def feed(self, line: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The chunks that a line makes; none where it says nothing. Raises ValueError for one of another form."""
        _check_line(line)
        chunks = []
        if not self._begun:
            self._begun = True
            chunks.append(self._chunk({"delta": {"role": "assistant", "content": None}}))
        chunks += self._texts(line) if self._plain else self._deltas(line)
        if line.get("done"):
            chunks += self._ending(line)
        return chunks

    def _texts(self, line: Mapping[str, Any]) -> list[dict[str, Any]]:
        text = line.get("response")
        return [self._chunk({"text": text})] if text else []

    def _deltas(self, line: Mapping[str, Any]) -> list[dict[str, Any]]:
        message = line.get("message") or {}
        deltas: list[dict[str, Any]] = []
        if thinking := message.get("thinking"):
            deltas.append({"reasoning_content": thinking})
        if text := message.get("content"):
            deltas.append({"content": text})
        deltas += [{"tool_calls": [self._called(call)]} for call in message.get("tool_calls") or ()]
        tokens = [_token(token) for token in line.get("logprobs") or ()]
        if tokens and not deltas:
            # Ollama withholds the text of a mark or of a call that is not whole yet, and not its tokens.
            deltas.append({"content": ""})
        choices: list[dict[str, Any]] = [{"delta": delta} for delta in deltas]
        if tokens:
            choices[0]["logprobs"] = {"content": tokens}
        return [self._chunk(choice) for choice in choices]

    def _called(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function, index = call.get("function") or {}, self._calls
        self._calls += 1
        arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        return {
            "index": index,
            "id": f"call_{self._identity}_{index}",
            "type": "function",
            "function": {"name": function.get("name") or "", "arguments": arguments},
        }

    def _ending(self, line: Mapping[str, Any]) -> list[dict[str, Any]]:
        """How the answer ended, and its figures. Ollama leaves out figures that are 0."""
        if line.get("done_reason") == "length":
            finish = "length"
        else:
            finish = "tool_calls" if self._calls and line.get("done_reason") in (None, "", "stop") else "stop"
        read, made = line.get("prompt_eval_count") or 0, line.get("eval_count") or 0
        usage = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        nothing: dict[str, Any] = {"text": ""} if self._plain else {"delta": {}}
        return [self._chunk(nothing, finish), {**self._head, "choices": [], "usage": usage}]

    def _chunk(self, choice: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**self._head, "choices": [{"index": 0, **choice, "finish_reason": finish}]}


def _check_line(line: Mapping[str, Any]) -> None:
    """Raise ValueError for a line that has something else where a part is known to be."""
    _check(line, str, "response")
    _check(line, int, "prompt_eval_count", "eval_count")
    _check(line, dict, "message")
    _check(line, list, "logprobs")
    message = line.get("message") or {}
    _check(message, str, "content", "thinking")
    _check(message, list, "tool_calls")
    for part in (*(message.get("tool_calls") or ()), *(line.get("logprobs") or ())):
        if not isinstance(part, dict):
            raise ValueError(f"it sends {part!r:.60} where an object belongs")
        _check(part, dict, "function")


def _check(part: Mapping[str, Any], kind: type, *keys: str) -> None:
    for key in keys:
        if (value := part.get(key)) is not None and not isinstance(value, kind):
            raise ValueError(f"it sends {value!r:.60} as {key}")


def _token(token: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI always has all of these, Ollama only those that were asked for."""
    return {"bytes": None, **token, "top_logprobs": [{"bytes": None, **one} for one in token.get("top_logprobs") or ()]}
