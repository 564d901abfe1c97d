"""What a program asks in Ollama's words, in OpenAI's. Pure: bodies in, requests out; knows nothing of levels.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from scaler.errors import RequestRejected

T = TypeVar("T")

FRACTIONS = ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
"""Options that are called the same by the runtime. Those named nowhere here are ignored, as Ollama does."""
MOST, LARGEST = 2**31 - 1, 2.0**63
"""Of whole numbers, and of any; no option means anything beyond."""
SEEDS = 2**32
"""A seed beyond is taken modulo this; -1 becomes the runtime's word for a seed by chance."""
THINKING = ("low", "medium", "high", "max")
MOST_LOGPROBS = 20
DURATION = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|(?:\d+(?:\.\d*)?(?:ns|us|µs|μs|ms|s|m|h))+)")
"""Go's, with or without a unit: ``5m``, ``1h30m``, ``-1``, ``0``."""
PICTURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
"""How the kinds of pictures begin. Ollama's programs do not say which kind it is, OpenAI's form has to."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a program asks for."""

    request: Mapping[str, Any] | None
    """OpenAI's chat or completion; None when there is nothing to answer, and a model is to be loaded only."""
    streamed: bool
    pictured: bool
    """Whether there are pictures in it."""
    alternatives: bool
    """Whether other likely tokens are to be told beside each."""
    unload: bool
    """Whether the program has no more use for the model."""


def chat(body: Mapping[str, Any]) -> Asked:
    """What a body of ``/api/chat`` asks for; raises RequestRejected."""
    messages = [_message(one) for one in _list(body, "messages", dict, "message objects")]
    tools = [_tool(one) for one in _list(body, "tools", dict, "tool objects")]
    _name_calls(messages)
    request = {
        "messages": messages,
        **({"tools": tools} if tools else {}),
        **_options(body),
        **_format(body),
        **_thinking(body),
        **_logprobs(body),
    }
    return _asked(body, request if messages else None)


def generate(body: Mapping[str, Any]) -> Asked:
    """What a body of ``/api/generate`` asks for; raises RequestRejected."""
    prompt = _of(body, "prompt", str, "a text") or ""
    system = _of(body, "system", str, "a text")
    template = _of(body, "template", str, "a text")
    images = _pictures(body)
    raw = _flag(body, "raw", default=False)
    context = _list(body, "context", int, "tokens")
    if _of(body, "suffix", str, "a text"):
        raise RequestRejected("'suffix': scaler does not support insert; send the text before the gap only")
    if raw and (system or template or context or images):
        raise RequestRejected(
            "raw mode does not support template, system, context or images: it sends the prompt as it is"
        )
    if template:
        raise RequestRejected("'template': a model answers with the template of its file; leave it out, or use 'raw'")
    options = _options(body)
    if raw:
        request: dict[str, Any] = {"prompt": prompt, **options, **_raw_format(body), **_raw_logprobs(body)}
        _thinking(body)
    else:
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": _content(prompt, images)})
        request = {"messages": messages, **options, **_format(body), **_thinking(body), **_logprobs(body)}
    return _asked(body, request if prompt or images else None)


def _asked(body: Mapping[str, Any], request: Mapping[str, Any] | None) -> Asked:
    return Asked(
        request,
        streamed=_flag(body, "stream", default=True),
        pictured=request is not None and any(isinstance(m["content"], list) for m in request.get("messages", ())),
        alternatives=bool(body.get("top_logprobs")),
        unload=_unloads(body),
    )


# -------------------------------------------------------------------- messages and tools


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = _of(message, "role", str, "a text")
    if not role:
        raise RequestRejected("each of 'messages' must have a 'role', such as user")
    content = _of(message, "content", str, "a text") or ""
    said: dict[str, Any] = {"role": role.lower(), "content": _content(content, _pictures(message))}
    if thinking := _of(message, "thinking", str, "a text"):
        said["reasoning_content"] = thinking
    if calls := _list(message, "tool_calls", dict, "tool calls"):
        said["tool_calls"] = [_call(one) for one in calls]
    if name := _of(message, "tool_name", str, "a text"):
        said["name"] = name
    if identity := _of(message, "tool_call_id", str, "a text"):
        said["tool_call_id"] = identity
    return said


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = _of(call, "function", dict, "an object") or {}
    name, arguments = function.get("name"), function.get("arguments") or {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise RequestRejected("each of 'tool_calls' must have a function with a name and an object of arguments")
    identity = _of(call, "id", str, "a text")
    written = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {**({"id": identity} if identity else {}), "type": "function", "function": written}


def _name_calls(messages: Sequence[dict[str, Any]]) -> None:
    """Give every tool call an id, and every tool's answer that of its call: Ollama has them go by name and order."""
    waiting: list[tuple[str, str]] = []
    number = 0
    for message in messages:
        for call in message.get("tool_calls", ()):
            call.setdefault("id", f"call_{number}")
            waiting.append((call["id"], call["function"]["name"]))
            number += 1
        if message["role"] != "tool":
            continue
        identity, name = message.get("tool_call_id"), message.get("name")
        of = next((one for one in waiting if identity in (None, one[0]) and name in (None, one[1])), None)
        if of is not None:
            waiting.remove(of)
            message["tool_call_id"], message["name"] = of


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise RequestRejected("each of 'tools' must be of the type function and have a 'function'")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not isinstance(parameters, dict | None):
        raise RequestRejected("each function of 'tools' must have a 'name', and as 'parameters' a JSON schema")
    return {**tool, "type": "function", "function": {**function, "parameters": parameters or {"type": "object"}}}


def _content(text: str, images: Sequence[str]) -> str | list[dict[str, Any]]:
    if not images:
        return text
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    return [*([{"type": "text", "text": text}] if text else []), *pictures]


def _pictures(body: Mapping[str, Any]) -> list[str]:
    """The pictures as data URIs."""
    uris = []
    for image in _list(body, "images", str, "pictures in base64"):
        try:
            picture = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestRejected(f"'images' must be a list of pictures in base64: {error}") from error
        kind = next((kind for begin, kind in PICTURES.items() if picture.startswith(begin)), None)
        if kind is None:
            raise RequestRejected(f"'images': expected pictures of the kinds {', '.join(PICTURES.values())}")
        uris.append(f"data:image/{kind};base64,{image}")
    return uris


# -------------------------------------------------------------------- how to answer


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    options = _of(body, "options", dict, "an object") or {}
    asked: dict[str, Any] = {}
    for name in FRACTIONS:
        if (value := _number(options, name)) is not None:
            asked[name] = value
    if (top_k := _whole(options, "top_k")) is not None:
        asked["top_k"] = top_k
    if (seed := _number(options, "seed")) is not None:
        asked["seed"] = int(seed) % SEEDS
    # Ollama has -1 mean no limit, -2 the rest of the context window, and 0 the same.
    if (limit := _whole(options, "num_predict")) is not None and limit > 0:
        asked["max_tokens"] = limit
    if stop := _list(options, "stop", str, "texts"):
        asked["stop"] = stop
    return asked


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema that the answer must be of; None for any text. The empty one stands for ``json``."""
    form = body.get("format")
    if form in (None, ""):
        return None
    if form == "json":
        return {}
    if not isinstance(form, dict):
        raise RequestRejected(f"'format' must be \"json\" or a JSON schema, not {form!r:.60}")
    return form


def _format(body: Mapping[str, Any]) -> dict[str, Any]:
    schema = _schema(body)
    if schema is None:
        return {}
    if not schema:
        return {"response_format": {"type": "json_object"}}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def _raw_format(body: Mapping[str, Any]) -> dict[str, Any]:
    schema = _schema(body)
    return {} if schema is None else {"json_schema": schema or {"type": "object"}}


def _thinking(body: Mapping[str, Any]) -> dict[str, Any]:
    """The variables by which chat templates switch thinking, and how much of it."""
    think = body.get("think")
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think in THINKING:
        return {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": think}}
    raise RequestRejected(f"'think' must be true, false or one of {', '.join(THINKING)}")


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    alternatives = _whole(body, "top_logprobs") or 0
    if not 0 <= alternatives <= MOST_LOGPROBS:
        raise RequestRejected(f"'top_logprobs' must be a whole number from 0 to {MOST_LOGPROBS}")
    if not _flag(body, "logprobs", default=False):
        return {}
    # llama.cpp tells of no token at all where none besides it are asked for.
    return {"logprobs": True, "top_logprobs": max(1, alternatives)}


def _raw_logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    asked = _logprobs(body)
    return {"logprobs": asked["top_logprobs"]} if asked else {}


def _unloads(body: Mapping[str, Any]) -> bool:
    keep = body.get("keep_alive")
    if isinstance(keep, str) and DURATION.fullmatch(keep):
        return not re.search("[1-9]", keep)
    if keep is None or (isinstance(keep, int | float) and not isinstance(keep, bool)):
        return keep == 0
    raise RequestRejected("'keep_alive' must be seconds, or a duration such as 5m")


# -------------------------------------------------------------------- values of one type


def _of(body: Mapping[str, Any], key: str, kind: type[T], what: str) -> T | None:
    value = body.get(key)
    if value is None or isinstance(value, kind):
        return value
    raise RequestRejected(f"{key!r} must be {what}")


def _flag(body: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = _of(body, key, bool, "true or false")
    return default if value is None else value


def _list(body: Mapping[str, Any], key: str, kind: type[T], what: str) -> list[T]:
    values = _of(body, key, list, f"a list of {what}") or []
    if not all(isinstance(value, kind) for value in values):
        raise RequestRejected(f"{key!r} must be a list of {what}")
    return values


def _number(body: Mapping[str, Any], key: str) -> float | int | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise RequestRejected(f"{key!r} must be a number")
    return value


def _whole(body: Mapping[str, Any], key: str) -> int | None:
    value = _number(body, key)
    if value is None:
        return None
    # As Ollama does, 40.0 is taken for 40, and what stands behind the point is dropped.
    if abs(whole := int(value)) > MOST:
        raise RequestRejected(f"{key!r} must be a whole number of at most {MOST}")
    return whole
