"""OpenAI's requests as LM Studio takes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scaler.errors import RequestRejected
from scaler.runtimes.lmstudio_dialect import chat, completion

HELLO = {"role": "user", "content": "Hello."}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
STREAMED = {"model": "small:2", "stream": True, "stream_options": {"include_usage": True}}


def asked(**fields: Any) -> dict[str, Any]:
    """What LM Studio is asked for, but for what always is."""
    body = chat({"messages": [HELLO], **fields}, "small:2")
    return {key: value for key, value in body.items() if key not in (*STREAMED, "messages")}


def sent(*messages: dict[str, Any]) -> Any:
    """The messages as LM Studio gets them."""
    return chat({"messages": list(messages)}, "small:2")["messages"]


def test_the_instance_is_asked_in_a_stream_with_its_usage() -> None:
    """Whatever the request says of that."""
    assert chat({"model": "auto", "messages": [HELLO], "stream": False}, "small:2") == {**STREAMED, "messages": [HELLO]}
    assert completion({"prompt": "Hello", "stream": False}, "small:2") == {**STREAMED, "prompt": "Hello"}


def test_what_both_know_is_passed_on_and_what_says_nothing_is_not() -> None:
    """Fields that are null mean the same as none; LM Studio knows neither them nor the others."""
    known = {"temperature": 0, "top_p": 0.5, "seed": 3, "stop": ["."], "logit_bias": {"5": 1}}
    unknown = {
        "user": "me",
        "store": False,
        "ttl": 5,
        "min_p": 0.1,
        "presence_penalty": None,
        "logprobs": False,
        "n": 1,
    }
    assert asked(**known, **unknown) == known
    assert completion({"prompt": "Hello", **known, **unknown}, "small:2") == {**STREAMED, "prompt": "Hello", **known}


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens", "n_predict"])
def test_a_limit_is_a_limit_whatever_it_is_called(name: str) -> None:
    """LM Studio knows one of the names."""
    assert asked(**{name: 7}) == {"max_tokens": 7}


def test_messages_come_in_the_roles_and_fields_that_lm_studio_knows() -> None:
    """What was thought before is left out: Zed and others do not send it back either."""
    call = {"id": "1", "index": 0, "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    bare = {"function": {"name": "look", "arguments": {"at": 2}}}
    assert sent(
        {"role": "developer", "content": "Be short.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call, bare]},
        {"role": "tool", "content": [{"type": "text", "text": "Nothing."}], "tool_call_id": "1", "name": "look"},
        {"role": "tool", "content": "Something."},
        {"role": "assistant", "content": [{"type": "text", "text": "So it"}]},
    ) == [
        {"role": "system", "content": "Be short."},
        HELLO,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}},
                {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": json.dumps({"at": 2})}},
            ],
        },
        {"role": "tool", "content": "Nothing.", "tool_call_id": "1"},
        {"role": "tool", "content": "Something."},
        {"role": "assistant", "content": "So it"},
    ]


def test_a_picture_is_passed_on() -> None:
    """In either way to write its address."""
    url = PICTURE["image_url"]["url"]  # type: ignore[index]
    picture = {"type": "image_url", "image_url": {"url": url}}
    for written in (PICTURE, {"type": "image_url", "image_url": url}):
        content = [{"type": "text", "text": "What is it?"}, written]
        assert sent({"role": "user", "content": content}) == [
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}
        ]


def test_tools_are_passed_on_without_what_lm_studio_does_not_know() -> None:
    """And how they are to be used."""
    function = {"name": "look", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": {**function, "strict": True}}
    assert asked(tools=[tool], tool_choice="required", parallel_tool_calls=True) == {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
    }
    assert asked(tools=[tool]) == {"tools": [{"type": "function", "function": function}]}
    assert asked(tools=[], tool_choice="auto") == {}


@pytest.mark.parametrize(
    ("wish", "form"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"name": "answer", "schema": {"type": "object"}}),
        ({"response_format": {"type": "json_object", "schema": {"a": 1}}}, {"name": "answer", "schema": {"a": 1}}),
        ({"json_schema": {"a": 1}}, {"name": "answer", "schema": {"a": 1}}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": {"a": 1}},
                }
            },
            {"name": "x", "strict": True, "schema": {"a": 1}},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"description": "d", "schema": {"a": 1}}}},
            {"name": "answer", "schema": {"a": 1}},
        ),
    ],
)
def test_every_way_to_ask_for_json_is_said_in_the_one_that_lm_studio_knows(
    wish: dict[str, Any], form: dict[str, Any] | None
) -> None:
    """It refuses json_object."""
    expected = {} if form is None else {"response_format": {"type": "json_schema", "json_schema": form}}
    assert asked(**wish) == expected


@pytest.mark.parametrize(
    "wish",
    [
        {"n": 2},
        {"logprobs": True},
        {"grammar": "root ::= 'a'"},
        {"response_format": {"type": "grammar"}},
        {"response_format": {"type": "json_schema"}},
        {"messages": "Hello"},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "tool", "content": [PICTURE]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": "look"}]}]},
        {"tools": [{"type": "function"}]},
    ],
)
def test_what_cannot_be_fulfilled_is_refused(wish: dict[str, Any]) -> None:
    """An answer that passes over it would look as if it had been."""
    with pytest.raises(RequestRejected):
        asked(**wish)


@pytest.mark.parametrize(
    "wish",
    [
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2]},
        {"suffix": "end"},
        {"echo": True},
        {"json_schema": {"a": 1}},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_what_a_completion_cannot_be_is_refused(wish: dict[str, Any]) -> None:
    """LM Studio takes one text, and holds it to no form."""
    with pytest.raises(RequestRejected):
        completion({"prompt": "Hello", **wish}, "small:2")
