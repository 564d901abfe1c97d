"""What a real Ollama was recorded to answer (`ollama_exchanges`), to be asked of others and compared with theirs."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

RECORDED = Path(__file__).with_name("ollama_exchanges")
SENTENCE = " The small model speaks : I am made of random weights ."
"""What the recorded model says."""
TEMPLATES = {
    "tooled": (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}{{ range .ToolCalls }}"
        '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}<|im_end|>\n'
        "{{ end }}{{ .Tools }}<|im_start|>assistant\n"
    ),
    "thinker": (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}"
        "{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n<think>"
    ),
}
"""The recorded models besides ``small``: the same file, with these templates."""
LONG = "... word, 5000 times ..."
"""What stands in the record for a text that is longer than the window."""
GO = ("no JSON", "of the wrong type")
"""Exchanges whose errors are worded by Go's own library: that there are some is enough."""
OTHER_VALUES = {
    *("created_at", "modified_at", "expires_at", "digest", "size", "version", "created", "id"),
    *("content", "response", "thinking", "context", "token", "logprob", "bytes"),
    *("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"),
    *(
        "modelfile",
        "template",
        "parent_model",
        "parameter_size",
        "quantization_level",
        "context_length",
        "embedding_length",
    ),
}
"""What differs from one server and one answer to the next."""


def recorded(name: str) -> list[dict[str, Any]]:
    """The exchanges of a file."""
    exchanges: list[dict[str, Any]] = json.loads((RECORDED / f"{name}.json").read_text())["exchanges"]
    return exchanges


def told(exchange: Mapping[str, Any]) -> str:
    """Which exchange it is, for whoever reads why a test failed."""
    asked = exchange["request"]
    what = json.dumps(asked.get("body", asked.get("text")))
    return f"{exchange.get('title', '')}: {asked['method']} {asked['path']} {what:.300}"


def replayed(url: str, exchange: Mapping[str, Any]) -> httpx.Response:
    """What a server answers to the request of an exchange."""
    asked = exchange["request"]
    content = asked.get("text")
    if content is None and "body" in asked:
        content = json.dumps(asked["body"]).replace(LONG, "word " * 5000)
    headers = {"Content-Type": "application/json", **asked.get("headers", {})}
    return httpx.request(asked["method"], url + asked["path"], content=content, headers=headers, timeout=120)


def shape(value: Any, key: str = "") -> Any:
    """The value without what differs from one answer to the next."""
    if isinstance(value, dict):
        return {name: shape(each, name) for name, each in value.items()}
    if key in OTHER_VALUES:
        # Go writes 0 for 0.0.
        return "number" if isinstance(value, int | float) else type(value).__name__
    if isinstance(value, list):
        return [shape(each) for each in value]
    if key == "error":
        return re.sub(r"\d+", "0", value)
    return value


def shapes(lines: list[Any]) -> list[Any]:
    """A stream's lines by their shape, the like ones that follow each other as one."""
    return [each for each, _ in itertools.groupby(map(shape, lines))]


def lines_of(response: httpx.Response) -> list[Any]:
    """The objects of a stream."""
    return [json.loads(line) for line in response.text.splitlines()]


def assert_like(
    response: httpx.Response, exchange: Mapping[str, Any], known: Callable[[Any], Any] = lambda body: body
) -> None:
    """That the answer is of the recorded one's status, type and shape; ``known`` takes away what is known to differ."""
    which, expected = told(exchange), exchange["response"]
    assert response.status_code == expected["status"], f"{which}: {response.text:.300}"
    kinds = [one.get("content-type", "").partition(";")[0] for one in (response.headers, expected["headers"])]
    assert kinds[0] == kinds[1], which
    if "lines" in expected:
        assert shapes(known(lines_of(response))) == shapes(known(expected["lines"])), which
    elif "text" in expected:
        assert response.text == expected["text"], which
    elif "body" in expected:
        given, due = response.json(), expected["body"]
        if exchange.get("title") in GO:
            assert isinstance(given["error"], str), which
            assert list(given) == ["error"], which
        else:
            assert shape(known(given)) == shape(known(due)), which
