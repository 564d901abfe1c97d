"""What a program asks in Ollama's words, as the levels are asked."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.errors import RequestRejected
from scaler.serving.ollama_requests import chat, generate

HELLO = {"role": "user", "content": "hello"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and so on").decode()


def called(call: Any) -> dict[str, Any]:
    """A conversation in which a tool was called."""
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


def asked(body: dict[str, Any]) -> dict[str, Any]:
    """What a level is asked for a body of ``/api/chat``."""
    request = chat({"messages": [HELLO], **body}).request
    assert request is not None
    return dict(request)


def test_the_options_reach_the_runtime_by_its_own_names() -> None:
    """What a person has set for Ollama counts."""
    options: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40.0, "min_p": 0, "typical_p": None, "seed": 7, "num_predict": 20,
        "repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2, "stop": ["\n"], "num_ctx": 32768,
        "num_gpu": 99, "odd": {},
    }  # fmt: skip
    assert asked({"options": options}) == {
        "messages": [HELLO],
        **{name: options[name] for name in ("temperature", "top_p", "min_p", "stop")},
        **{name: options[name] for name in ("repeat_penalty", "presence_penalty", "frequency_penalty")},
        "top_k": 40,
        "seed": 7,
        "max_tokens": 20,
    }


@pytest.mark.parametrize("limit", [-2, -1, 0])
def test_what_means_no_limit_to_ollama_is_none(limit: int) -> None:
    """Else programs that ask for no limit would be refused, or answered with nothing."""
    assert "max_tokens" not in asked({"options": {"num_predict": limit}})


def test_a_seed_by_chance_stays_one() -> None:
    """The runtime's word for it is the largest number of 32 bits."""
    assert asked({"options": {"seed": -1}})["seed"] == 2**32 - 1


@pytest.mark.parametrize(
    ("form", "asks"),
    [
        (None, None),
        ("", None),
        ("json", {"type": "json_object"}),
        (
            {"type": "object"},
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        ),
    ],
)
def test_a_format_becomes_a_response_format(form: Any, asks: Any) -> None:
    """So that the runtime holds the model to it, and a hand-off knows that half of it is of no use."""
    assert asked({"format": form}).get("response_format") == asks


@pytest.mark.parametrize(
    ("think", "variables"),
    [
        (None, None),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
    ],
)
def test_thinking_is_switched_by_the_variables_of_the_chat_template(think: Any, variables: Any) -> None:
    """Templates know no other switch."""
    assert asked({"think": think}).get("chat_template_kwargs") == variables


def test_a_conversation_with_tools_is_told_as_openai_tells_it() -> None:
    """Arguments are an object with the one and a text with the other; answers go by name here, and by id there."""
    messages = [
        HELLO,
        {
            "role": "assistant",
            "content": "",
            "thinking": "two cities",
            "tool_calls": [
                {"function": {"name": "weather", "arguments": {"city": "Praha", "days": 1}}},
                {"function": {"name": "weather", "arguments": {"city": "Brno", "days": 1}}},
                {"function": {"name": "time", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_name": "time", "content": "noon"},
        {"role": "tool", "tool_name": "weather", "content": "sun"},
        {"role": "tool", "tool_name": "weather", "content": "rain"},
    ]
    told = asked({"messages": messages})["messages"]
    calls = told[1]["tool_calls"]
    assert told[1]["reasoning_content"] == "two cities"
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city": "Praha", "days": 1}'},
        {"name": "weather", "arguments": '{"city": "Brno", "days": 1}'},
        {"name": "time", "arguments": "{}"},
    ]
    praha, brno, time = (call["id"] for call in calls)
    assert len({praha, brno, time}) == 3
    assert [(one["tool_call_id"], one["content"]) for one in told[2:]] == [
        (time, "noon"),
        (praha, "sun"),
        (brno, "rain"),
    ]


def test_a_tools_answer_keeps_the_id_that_a_program_gave_it() -> None:
    """Newer programs say which call they answer."""
    call = {"id": "mine", "function": {"name": "f", "arguments": {}}}
    told = asked(
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}, call]},
                {"role": "tool", "tool_call_id": "mine", "content": "x"},
            ]
        }
    )["messages"]
    assert (told[1]["tool_call_id"], told[1]["name"]) == ("mine", "f")


def test_a_tool_is_passed_on_with_what_the_runtime_insists_on() -> None:
    """Ollama does without the type and the parameters of a function; llama.cpp answers such a tool with an error."""
    tool = {"function": {"name": "now", "description": "the time"}}
    assert asked({"tools": [tool]})["tools"] == [
        {
            "type": "function",
            "function": {"name": "now", "description": "the time", "parameters": {"type": "object"}},
        }
    ]


def test_pictures_become_data_uris_of_their_kind() -> None:
    """That is where OpenAI's form has them."""
    request = chat({"messages": [{"role": "user", "content": "What is it?", "images": [PNG]}]})
    assert request.pictured
    assert request.request is not None
    assert request.request["messages"][0]["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]


def test_a_prompt_is_asked_as_a_chat_and_a_raw_one_as_it_is() -> None:
    """The chat template is the model's own; who has applied one says so."""
    plain = generate({"prompt": "Why?", "system": "Be brief.", "format": "json"}).request
    assert plain == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "response_format": {"type": "json_object"},
    }
    raw = generate({"prompt": "<s>Why?", "raw": True, "format": "json", "logprobs": True}).request
    assert raw == {"prompt": "<s>Why?", "json_schema": {"type": "object"}, "logprobs": 1}


def test_nothing_to_answer_means_to_load() -> None:
    """Programs warm a model up this way, and say that they have no more use for it."""
    assert chat({"messages": []}).request is None
    assert generate({}).request is None
    assert [chat({"keep_alive": keep}).unload for keep in (0, "0", "0s", "0m0s", -1, "5m", "-1", 300, 0.5, None)] == [
        *(True,) * 4,
        *(False,) * 6,
    ]


def test_an_answer_is_streamed_unless_the_program_says_otherwise() -> None:
    """The other way round than with OpenAI."""
    assert chat({"messages": [HELLO]}).streamed
    assert not chat({"messages": [HELLO], "stream": False}).streamed


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": "hello"}, "'messages' must be a list"),
        ({"messages": ["hello"]}, "'messages' must be a list"),
        ({"messages": [{"content": "hello"}]}, "'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, "'content' must be a text"),
        ({"messages": [{"role": "user", "images": ["?"]}]}, "base64"),
        ({"messages": [{"role": "user", "images": [base64.b64encode(b"text").decode()]}]}, "png"),
        (called({}), "'tool_calls'"),
        (called({"function": {"name": "f", "arguments": "{}"}}), "'tool_calls'"),
        ({"tools": {}}, "'tools' must be a list"),
        ({"tools": [{"a": 1}]}, "'tools'"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "'parameters'"),
        ({"stream": "yes"}, "'stream' must be true or false"),
        ({"format": "xml"}, "'format'"),
        ({"format": []}, "'format'"),
        ({"think": "hard"}, "'think'"),
        ({"think": 1}, "'think'"),
        ({"keep_alive": "soon"}, "'keep_alive'"),
        ({"keep_alive": True}, "'keep_alive'"),
        ({"options": []}, "'options' must be an object"),
        ({"options": {"temperature": "warm"}}, "'temperature' must be a number"),
        ({"options": {"temperature": True}}, "'temperature' must be a number"),
        ({"options": {"top_p": float("inf")}}, "'top_p' must be a number"),
        ({"options": {"num_predict": 2**40}}, "'num_predict'"),
        ({"options": {"seed": "7"}}, "'seed'"),
        ({"options": {"stop": "\n"}}, "'stop' must be a list"),
        ({"options": {"stop": [1]}}, "'stop' must be a list"),
        ({"logprobs": 1}, "'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, "'top_logprobs'"),
    ],
)
def test_a_wrong_type_is_refused_by_the_name_of_its_field(body: dict[str, Any], words: str) -> None:
    """Before a level is asked, which would say it in other words, or with a server error."""
    with pytest.raises(RequestRejected, match="'") as caught:
        chat({"messages": [HELLO], **body})
    assert words in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": ["x"]}, "'prompt' must be a text"),
        ({"prompt": "x", "suffix": "y"}, "'suffix'"),
        ({"prompt": "x", "template": "{{ .Prompt }}"}, "'template'"),
        ({"prompt": "x", "raw": True, "system": "y"}, "raw mode does not support"),
        ({"prompt": "x", "raw": 1}, "'raw' must be true or false"),
        ({"prompt": "x", "context": ["a"]}, "'context'"),
        ({"prompt": "x", "images": "a"}, "'images'"),
    ],
)
def test_what_cannot_be_done_with_a_prompt_is_refused(body: dict[str, Any], words: str) -> None:
    """Rather than answered as if it had not been asked."""
    with pytest.raises(RequestRejected) as caught:
        generate(body)
    assert words in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "messages", "prompt", "system", "images", "raw", "template", "suffix", "context", "tools", "format", "think",
    "options", "stream", "keep_alive", "logprobs", "top_logprobs",
)  # fmt: skip
OPTIONS = ("temperature", "top_k", "seed", "stop", "num_predict")
PARTS = ("role", "content", "images", "tool_calls", "tool_name", "tool_call_id", "thinking")


@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4),
    st.dictionaries(st.sampled_from(OPTIONS), JSON, max_size=2),
    st.dictionaries(st.sampled_from(PARTS), JSON, max_size=4),
)
def test_whatever_stands_in_a_body_it_is_taken_or_refused(
    body: dict[str, Any], options: dict[str, Any], message: dict[str, Any]
) -> None:
    """Never a server error."""
    for changed in (body, {**body, "options": options}, {**body, "messages": [{"role": "user", **message}]}):
        for translate in (chat, generate):
            with contextlib.suppress(RequestRejected):
                translate(changed)
