"""OpenAI's requests as LM Studio takes them.

Owns which fields it knows, how others can be said in them, and which wishes it cannot fulfil. Pure: bodies in, bodies
out; it must know nothing of HTTP, of levels, nor of when a model is loaded.

Source: https://lmstudio.ai/docs/developer/openai-compat
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from scaler.errors import RequestRejected

ALIKE = (
    "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "repeat_penalty", "seed", "stop",
    "logit_bias",
)  # fmt: skip
"""Fields that both know."""
LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
"""Ways to say how long an answer may get; the first that is given counts."""
IMPOSSIBLE = {
    "logprobs": "tell how likely each token was",
    "grammar": "hold an answer to a grammar",
    "suffix": "fill a gap between two texts",
    "echo": "repeat the prompt",
}
"""Wishes that it cannot fulfil, and what they are."""


def chat(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The body of ``/v1/chat/completions``. Raises RequestRejected."""
    return {
        **_frame(request, model),
        "messages": [_message(message) for message in _objects(request.get("messages"), "messages")],
        **_tools(request),
        **_format(request),
    }


def completion(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The body of ``/v1/completions``. Raises RequestRejected."""
    prompt = request.get("prompt")
    if not isinstance(prompt, str):
        raise RequestRejected("'prompt' must be one text: LM Studio takes neither tokens nor several prompts at once")
    for field in ("json_schema", "response_format"):
        if request.get(field) not in (None, {"type": "text"}):
            _cannot("hold a raw completion to a form", f"leave out {field!r}, or ask in a chat")
    return {**_frame(request, model), "prompt": prompt}


def _frame(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What both bodies have. An answer that passes over a wish would look as if it had been fulfilled."""
    if request.get("n") not in (None, 1):
        _cannot("give several answers to one request", "leave out 'n', and ask once for each")
    for field, wish in IMPOSSIBLE.items():
        if request.get(field) not in (None, False, ""):
            _cannot(wish, f"leave out {field!r}")
    body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= {key: request[key] for key in ALIKE if request.get(key) is not None}
    limit = next((request[key] for key in LIMITS if request.get(key) is not None), None)
    return body if limit is None else {**body, "max_tokens": limit}


def _cannot(what: str, remedy: str) -> NoReturn:
    raise RequestRejected(f"LM Studio cannot {what}: {remedy}")


def _objects(value: object, name: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise RequestRejected(f"{name!r} must be a list of objects")
    return value


# -------------------------------------------------------------------- messages and tools


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    match role:
        case "system" | "developer":
            return {"role": "system", "content": _text(content)}
        case "user":
            return {"role": "user", "content": _content(content)}
        case "assistant":
            told: dict[str, Any] = {"role": "assistant", "content": _text(content)}
            if calls := message.get("tool_calls"):
                told["tool_calls"] = [_call(call, number) for number, call in enumerate(_objects(calls, "tool_calls"))]
            return told
        case "tool":
            identity = message.get("tool_call_id")
            of = {} if identity is None else {"tool_call_id": identity}
            return {"role": "tool", "content": _text(content), **of}
    raise RequestRejected(f"each of 'messages' must have the 'role' system, user, assistant or tool, not {role!r:.60}")


def _content(content: object) -> str | list[dict[str, Any]]:
    """What a person says: a text, or parts where there are pictures."""
    if not isinstance(content, list):
        return _text(content)
    parts = [_part(part) for part in content]
    return parts if any(part["type"] == "image_url" for part in parts) else "".join(part["text"] for part in parts)


def _text(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestRejected("'content' must be a text or a list of parts")
    parts = [_part(part) for part in content]
    if any(part["type"] != "text" for part in parts):
        _cannot("read pictures but in what a user says", "send them in a message of the user")
    return "".join(part["text"] for part in parts)


def _part(part: object) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": str(kind)} if kind not in ("text", "image_url"):
            _cannot(f"read a part of the type {kind!r:.60}", "send text and pictures only")
    raise RequestRejected("each part of 'content' must be a text, or an image_url with a 'url'")


def _call(call: Mapping[str, Any], number: int) -> dict[str, Any]:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise RequestRejected("each of 'tool_calls' must have a function with a name")
    arguments = function.get("arguments") or "{}"
    return {
        "id": call.get("id") or f"call_{number}",
        "type": "function",
        "function": {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)},
    }


def _tools(request: Mapping[str, Any]) -> dict[str, Any]:
    if not (tools := request.get("tools")):
        return {}
    asked: dict[str, Any] = {"tools": [_tool(tool) for tool in _objects(tools, "tools")]}
    choice = request.get("tool_choice")
    return asked if choice is None else {**asked, "tool_choice": choice}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise RequestRejected("each of 'tools' must be of the type function and have a 'function'")
    known = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"type": "function", "function": known}


# -------------------------------------------------------------------- how to answer


def _format(request: Mapping[str, Any]) -> dict[str, Any]:
    form = request.get("response_format")
    if schema := request.get("json_schema"):
        # llama.cpp's short form.
        form = {"type": "json_schema", "json_schema": {"schema": schema}}
    match form:
        case None | {"type": "text"}:
            return {}
        case {"type": "json_object", **others}:
            # Of OpenAI's two ways to ask for JSON it knows the other one only.
            return _with_schema(others.get("schema") or {"type": "object"}, {})
        case {"type": "json_schema", "json_schema": dict(described)}:
            return _with_schema(described.get("schema") or {"type": "object"}, described)
        case {"type": str(kind)} if kind != "json_schema":
            _cannot(f"answer in the form {kind!r:.60}", "leave out 'response_format', or send json_schema")
    raise RequestRejected("'response_format' must have a 'type', and for json_schema a 'json_schema'")


def _with_schema(schema: object, described: Mapping[str, Any]) -> dict[str, Any]:
    strict = {} if described.get("strict") is None else {"strict": described["strict"]}
    form = {"name": described.get("name") or "answer", **strict, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": form}}
