"""Requests that are wrong in every way that programs get them wrong: told so, and nothing dies or is blamed for it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.end_to_end.test_endpoint import post

Running = Callable[..., Any]
USER = {"role": "user", "content": "Who are you?"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
CHAIN = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(20_000)}
ENDLESS = {"$ref": "#/$defs/d0", "$defs": {**CHAIN, "d20000": {"type": "string"}}}
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("temperature", {"temperature": "hot"}),
    ("top_p", {"top_p": [1]}),
    ("seed", {"seed": "x"}),
    ("max_tokens", {"max_tokens": 10**30}),
    ("'n'", {"n": 1.5}),
    ("'n'", {"n": True}),
    ("'n'", {"n": 0}),
    ("'n' must be a whole number from 1 to 128", {"n": 129}),
    ("'stop'", {"stop": 3}),
    ("'stop'", {"stop": [3]}),
    ("'tools'", {"tools": "x"}),
    ("tools", {"tools": ["x"]}),
    ("tools", {"tools": [{"type": "function"}]}),
    ("tools", {"tools": [{"type": "function", "function": {"name": 3}}]}),
    ("'tool_choice'", {"tools": [TOOL], "tool_choice": 3}),
    ("tool_choice", {"tools": [TOOL], "tool_choice": "maybe"}),
    ("'response_format'", {"response_format": "json"}),
    ("response_format", {"response_format": {"type": "xml"}}),
    ("schema", {"response_format": SCHEMA}),
    ("'response_format.json_schema.schema'", {"response_format": {"type": "json_schema"}}),
    (
        "'response_format.json_schema.schema'",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    ),
    ("'logit_bias'", {"logit_bias": "x"}),
    ("'parallel_tool_calls'", {"parallel_tool_calls": "x"}),
    ("$ref", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}}),
    ("none of 'tools'", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}),
    ("'grammar'", {"grammar": 3}),
    ("'grammar'", {"grammar": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000}),
    ("reasoning format", {"reasoning_format": "x"}),
    ("content", {"messages": [{"role": "user", "content": 3}]}),
    ("content", {"messages": [{"role": "user", "content": [3]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}),
    ("image", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}),
    ("role", {"messages": [{"content": "x"}]}),
    ("content", {"messages": [{}]}),
    ("tool call", {"messages": [{"role": "assistant", "content": "", "tool_calls": [3]}, USER]}),
]
"""A word that must stand in the message, and what is wrong."""


def test_a_wrong_value_is_told_by_its_name(serving: Running) -> None:
    """Neither the model's fault nor the daemon's: 400, at once, and the same process answers the next request."""
    with serving(levels=["small"]) as (url, manager, _):
        ask = f"{url}/v1/chat/completions"
        good = json.dumps({"messages": [USER]}).encode()
        assert post(ask, good)[0] == 200
        pids = manager._switcher.pids()
        for streamed in (False, True):
            for words, wrong in WRONG:
                body = {"messages": [USER], "max_tokens": 20, "stream": streamed, **wrong}
                status, answer, _ = post(ask, json.dumps(body).encode())
                assert status == 400, (wrong, answer)
                assert answer["error"]["type"] == "invalid_request_error"
                assert words in answer["error"]["message"]
        assert post(ask, good)[0] == 200
        assert manager._switcher.pids() == pids
        assert manager.scaler.status().performance["small"].failures == 0


def test_json_that_nothing_could_pass_on_is_refused(serving: Running) -> None:
    """Half a character, no number, and brackets without end."""
    with serving() as (url, _, _):
        for rest in (
            '"x": "\\ud800"',
            '"x": NaN',
            f'"x": {"[" * 100_000}{"]" * 100_000}',
            f'"x": {"[" * 900}{"]" * 900}',
        ):
            body = f'{{"messages": [{json.dumps(USER)}], {rest}}}'
            status, answer, _ = post(f"{url}/v1/chat/completions", body.encode())
            assert status == 400, rest[:20]
            assert "not JSON" in answer["error"]["message"]


def test_a_pin_that_names_nothing_is_refused(serving: Running) -> None:
    """However it is written: it is no fault of scaler's."""
    with serving() as (url, _, _):
        for body in (b"", b"{}", b"[]", b'{"level": 3}', b'{"level": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"):
            request = urllib.request.Request(f"{url}/pin", body, method="PUT")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=30)
            assert refused.value.code == 400
            assert json.load(refused.value)["error"]["type"] == "invalid_request_error"


def test_several_prompts_are_completed_at_once(serving: Running) -> None:
    """llama.cpp begins such an answer with an event that says nothing."""
    with serving(levels=["small"]) as (url, _, _):
        body = {"prompt": ["The small", "random"], "max_tokens": 1, "temperature": 0}
        status, answer, _ = post(f"{url}/v1/completions", json.dumps(body).encode())
        assert status == 200
        assert [choice["text"] for choice in answer["choices"]] == [" model", " weights"]
