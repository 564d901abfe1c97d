"""A request of OpenAI's Responses API as the chat request that means the same.

Pure: dictionaries in, dictionaries out, RequestRejected for what there is no chat for. Nothing is stored here, so a
request that leans on an earlier one is told to bring the whole input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scaler.errors import RequestRejected

_NOT_HERE = {
    "previous_response_id": "nothing is stored here: send the whole conversation as 'input'",
    "conversation": "nothing is stored here: send the whole conversation as 'input'",
    "prompt": "no prompts are stored here: send 'instructions' and 'input'",
    "background": "nothing is stored here: wait for the answer, or stream it",
    "top_logprobs": "log probabilities are told by /v1/chat/completions",
}
"""What cannot be done, and what to do instead."""
_UNUSED = (
    "client_metadata", "context_management", "include", "max_tool_calls", "metadata", "moderation",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier", "store",
    "stream_options", "truncation", "user",
)  # fmt: skip
"""What means nothing to a local model, or is only repeated in the answer."""
_TEXTS = ("input_text", "output_text", "text")
_SYSTEM = ("system", "developer")
_ROLES = (*_SYSTEM, "user", "assistant")


def chat_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request. Options that only llama.cpp knows are passed on. Raises RequestRejected."""
    for key, instead in _NOT_HERE.items():
        if body.get(key):
            raise RequestRejected(f"{key!r} is not possible: {instead}")
    known = {"input", "instructions", "max_output_tokens", "reasoning", "text", "tool_choice", "tools"}
    chat = {key: value for key, value in body.items() if key not in known.union(_NOT_HERE, _UNUSED)}
    chat["messages"] = _messages(body.get("input"), _of(body, "instructions", str, "a text"))
    _of(body, "metadata", dict, "an object")
    limit = body.get("max_output_tokens")
    if limit is not None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise RequestRejected("'max_output_tokens' must be a whole number from 1")
        chat["max_tokens"] = limit
    form = _response_format(_of(body, "text", dict, "an object") or {})
    if form is not None:
        chat["response_format"] = form
    _add_tools(chat, body)
    _add_effort(chat, (_of(body, "reasoning", dict, "an object") or {}).get("effort"))
    return chat


def _of(where: Mapping[str, Any], key: str, kind: type, words: str, at: str = "") -> Any:
    value = where.get(key)
    if value is not None and not isinstance(value, kind):
        raise RequestRejected(f"'{at}{key}' must be {words}")
    return value


# -------------------------------------------------------------------- input


def _messages(given: Any, instructions: str | None) -> list[dict[str, Any]]:
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise RequestRejected("'input' must be a text, or a list of at least one item")
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for number, item in enumerate(items):
        _add_item(messages, item, f"input[{number}]")
    if all(message["role"] == "system" for message in messages):
        raise RequestRejected("'input' must have an item that can be answered, such as a message of the user")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Any, at: str) -> None:
    if not isinstance(item, dict):
        raise RequestRejected(f"'{at}' must be an object")
    match item.get("type", "message"):
        case "message":
            _add_message(messages, item, at)
        case "function_call":
            _add_call(messages, item, at)
        case "function_call_output":
            output = item.get("output")
            content = output if isinstance(output, str) else _text_of(output, f"{at}.output")
            messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", at), "content": content})
        case "reasoning":
            # What it thought in earlier turns no chat template shows to a model again.
            pass
        case "item_reference":
            raise RequestRejected(f"'{at}' refers to an item by its id, but nothing is stored here: send it whole")
        case kind:
            raise RequestRejected(
                f"'{at}' is of the type {kind!r}; possible are message, function_call, function_call_output, reasoning"
            )


def _add_message(messages: list[dict[str, Any]], item: Mapping[str, Any], at: str) -> None:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise RequestRejected(f"'{at}.role' must be one of {', '.join(_ROLES)}")
    if role in _SYSTEM:
        text = content if isinstance(content, str) else _text_of(content, f"{at}.content")
        if messages and all(message["role"] == "system" for message in messages):
            # Most chat templates take one, at the beginning.
            messages[0] = {"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}
        else:
            messages.append({"role": "system", "content": text})
    elif role == "assistant":
        text = content if isinstance(content, str) else _text_of(content, f"{at}.content")
        messages.append({"role": "assistant", "content": text})
    else:
        messages.append({"role": "user", "content": content if isinstance(content, str) else _parts(content, at)})


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], at: str) -> None:
    call = {
        "id": _text(item, "call_id", at),
        "type": "function",
        "function": {"name": _text(item, "name", at), "arguments": _text(item, "arguments", at)},
    }
    # A turn is one message in a chat: what was said before the calls, and all of them.
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(item: Mapping[str, Any], key: str, at: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise RequestRejected(f"'{at}.{key}' must be a text")
    return value


def _listed(parts: Any, at: str) -> Iterable[tuple[str, dict[str, Any]]]:
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestRejected(f"'{at}' must be a text, or a list of parts, which are objects")
    return ((f"{at}[{number}]", part) for number, part in enumerate(parts))


def _text_of(parts: Any, at: str) -> str:
    """The text of parts that may be nothing else."""
    texts = []
    for where, part in _listed(parts, at):
        kind = part.get("type")
        if kind not in (*_TEXTS, "refusal"):
            raise RequestRejected(f"'{where}' is of the type {kind!r}; only text is possible here")
        texts.append(_text(part, "refusal" if kind == "refusal" else "text", where))
    return "".join(texts)


def _parts(parts: Any, at: str) -> str | list[dict[str, Any]]:
    """What a user said: as a text where it is nothing else, which every template takes."""
    listed = list(_listed(parts, f"{at}.content"))
    if len(listed) == 1 and listed[0][1].get("type") in _TEXTS:
        return _text_of(parts, f"{at}.content")
    return [_part(part, where) for where, part in listed]


def _part(part: Mapping[str, Any], at: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in _TEXTS:
        return {"type": "text", "text": _text(part, "text", at)}
    if kind != "input_image":
        raise RequestRejected(f"'{at}' is of the type {kind!r}; possible are input_text and input_image")
    if not isinstance(part.get("image_url"), str):
        raise RequestRejected(f"'{at}.image_url' must be a text: no files are stored here")
    return {"type": "image_url", "image_url": {"url": part["image_url"]}}


# -------------------------------------------------------------------- options


def _response_format(text: Mapping[str, Any]) -> dict[str, Any] | None:
    form = _of(text, "format", dict, "an object", "text.") or {"type": "text"}
    match form.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            if not isinstance(form.get("schema"), dict):
                raise RequestRejected("'text.format.schema' must be an object")
            inner = {key: form[key] for key in ("name", "description", "schema", "strict") if key in form}
            return {"type": "json_schema", "json_schema": inner}
        case kind:
            raise RequestRejected(f"'text.format.type' is {kind!r}; possible are text, json_object, json_schema")


def _add_tools(chat: dict[str, Any], body: Mapping[str, Any]) -> None:
    """Tools and the choice between them in their chat form."""
    tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(_of(body, "tools", list, "a list") or ())]
    choice = body.get("tool_choice")
    if tools:
        chat["tools"] = tools
    if choice is not None:
        chat["tool_choice"] = _choice(choice) if isinstance(choice, dict) else choice


def _tool(tool: Any, at: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise RequestRejected(f"'{at}' must be an object")
    if tool.get("type") != "function":
        raise RequestRejected(f"'{at}' is of the type {tool.get('type')!r}; only functions can be called here")
    _of(tool, "parameters", dict, "an object", f"{at}.")
    function = {key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": {"name": _text(tool, "name", at), **function}}


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice by names. Which of the tools are meant, and which kinds there are, is the chat's affair."""
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": _text(choice, "name", "tool_choice")}}
    if choice.get("type") == "allowed_tools":
        named = [_text(tool, "name", at) for at, tool in _listed(choice.get("tools"), "tool_choice.tools")]
        tools = [{"type": "function", "function": {"name": name}} for name in named]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": tools}}
    return {"type": choice.get("type")}


def _add_effort(chat: dict[str, Any], effort: Any) -> None:
    """How hard to think, as chat templates know it; those that know nothing of it ignore it."""
    if effort is None:
        return
    if not isinstance(effort, str):
        raise RequestRejected("'reasoning.effort' must be a text")
    chosen = {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
    chat["chat_template_kwargs"] = {**chosen, **(chat.get("chat_template_kwargs") or {})}
