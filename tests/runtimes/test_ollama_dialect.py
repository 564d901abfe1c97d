"""OpenAI's words in Ollama's, and back."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ollama._types import ChatRequest, GenerateRequest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from scaler.errors import RequestRejected
from scaler.runtimes.ollama_dialect import LIMITS, NUMBERS, Lines, chat, completion

OURS = {"num_ctx": 4096, "num_gpu": 99}
ASK = [{"role": "user", "content": "Who are you?"}]
PICTURE = base64.b64encode(b"\x89PNG and so on").decode()
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.one_of(st.integers(-(2**31), 2**31), st.floats(allow_nan=False, allow_infinity=False))
plain_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, plain_values, max_size=4)


def asked(**request: Any) -> dict[str, Any]:
    """The body of a chat, which the official client would send as well."""
    body = chat({"messages": ASK, **request}, "small", OURS)
    return accepted(body)


def accepted(body: dict[str, Any]) -> dict[str, Any]:
    kind = GenerateRequest if "prompt" in body else ChatRequest
    read = kind(**body)
    # Ollama's own client has no word for the latter.
    assert set(body) <= {*kind.model_fields, "truncate"}
    assert read.model == body["model"]
    json.dumps(body)
    return body


def lines(*, plain: bool = False) -> Lines:
    return Lines("small", plain=plain, created_s=1700000000, identity="x")


def deltas(chunks: list[dict[str, Any]], key: str) -> list[Any]:
    return [c["delta"][key] for chunk in chunks for c in chunk["choices"] if c.get("delta", {}).get(key)]


def ended(reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"done": True, "done_reason": reason, "prompt_eval_count": 7, "eval_count": 3, **more}


# -------------------------------------------------------------------- requests


def test_a_chat_streams_and_keeps_its_model() -> None:
    """Ollama would unload it after five minutes, while scaler believes it to be there."""
    body = {"model": "small", "messages": ASK, "stream": True, "keep_alive": -1, "options": OURS}
    assert asked(stream=False, model="other", user="me") == body


def test_a_completion_goes_as_it_is() -> None:
    """A prompt is written for a model by its program: a template around it, or marks taken out, would spoil it."""
    body = accepted(completion({"prompt": "Once", "max_tokens": 5, "logprobs": 1}, "small", OURS))
    assert body == {
        "model": "small",
        "prompt": "Once",
        "raw": True,
        "think": False,
        "truncate": False,
        "stream": True,
        "keep_alive": -1,
        "options": {"num_predict": 5, **OURS},
    }


@given(st.dictionaries(st.sampled_from(NUMBERS), numbers | st.none()), st.dictionaries(texts, st.integers()))
def test_options_are_passed_on_and_the_levels_own_win(request: dict[str, Any], own: dict[str, int]) -> None:
    """A request must not resize the context of a level: another request's model would be loaded anew."""
    body = chat({"messages": ASK, **request, "num_ctx": 1}, "small", own)
    given_ones = {name: value for name, value in request.items() if value is not None}
    assert body["options"] == {**given_ones, **own}
    raw = completion({"prompt": "", **request, "options": {"num_ctx": 1}}, "small", own)
    assert raw["options"] == body["options"]


@given(st.dictionaries(st.sampled_from(LIMITS), st.integers(1, 2**20), min_size=1))
def test_the_limit_of_an_answer_is_told_under_each_of_its_names(request: dict[str, int]) -> None:
    """Without one, a model may go on until its context is full."""
    first = next(request[name] for name in LIMITS if name in request)
    assert asked(**request)["options"]["num_predict"] == first


def test_a_limit_of_nothing_does_not_become_no_limit() -> None:
    """To Ollama, 0 says to go on as long as it likes."""
    assert asked(max_tokens=0)["options"]["num_predict"] == 1


def test_where_to_stop_is_always_a_list() -> None:
    """Ollama refuses a text."""
    assert asked(stop="END")["options"]["stop"] == ["END"]
    assert asked(stop=["A", "B"])["options"]["stop"] == ["A", "B"]
    assert "stop" not in asked(stop=[])["options"]


@given(st.lists(texts | st.binary(), max_size=6))
def test_parts_become_one_text_and_pictures(parts: list[str | bytes]) -> None:
    """Ollama knows no parts: what is in them must not get lost, nor out of order."""
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            url = f"data:image/png;base64,{base64.b64encode(part).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
    message = chat({"messages": [{"role": "user", "content": content}]}, "small", OURS)["messages"][0]
    assert message["content"] == "".join(part for part in parts if isinstance(part, str))
    pictures = [base64.b64decode(image) for image in message.get("images", ())]
    assert pictures == [part for part in parts if isinstance(part, bytes)]


def test_a_conversation_with_tools_is_told_in_ollamas_words() -> None:
    """A model that does not know which answer belongs to which tool mixes them up."""
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I look.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Brno"}'}},
                {"id": "b", "type": "function", "function": {"name": "time", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "b", "content": "noon"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "tool", "tool_call_id": "unknown", "name": "moon", "content": "full"},
        {"role": "tool", "tool_call_id": "unknown", "content": "?"},
    ]
    calls = [
        {"function": {"name": "weather", "arguments": {"at": "Brno"}}},
        {"function": {"name": "time", "arguments": {}}},
    ]
    assert asked(messages=messages)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "", "images": [PICTURE]},
        {"role": "assistant", "content": "", "thinking": "I look.", "tool_calls": calls},
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "sunny", "tool_name": "weather"},
        {"role": "tool", "content": "full", "tool_name": "moon"},
        {"role": "tool", "content": "?"},
    ]


def test_tools_are_offered_unless_none_is_to_be_called() -> None:
    """A program that says none does not expect a call."""
    assert asked(tools=[TOOL], tool_choice="auto")["tools"] == [TOOL]
    assert "tools" not in asked(tools=[TOOL], tool_choice="none")
    assert "tools" not in asked(tools=[])


@pytest.mark.parametrize(
    ("request_", "form"),
    [
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, SCHEMA),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, SCHEMA),
        ({"json_schema": SCHEMA}, SCHEMA),
        ({"response_format": {"type": "text"}}, None),
    ],
)
def test_the_form_of_an_answer_is_asked_for(request_: dict[str, Any], form: object) -> None:
    """Programs parse it without looking."""
    assert asked(**request_).get("format") == form
    assert accepted(completion({"prompt": "p", **request_}, "small", OURS)).get("format") == form


@pytest.mark.parametrize(
    ("request_", "think"),
    [
        ({}, None),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "max"}}, "max"),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        *(({"reasoning_effort": effort}, effort) for effort in ("low", "medium", "high")),
    ],
)
def test_thinking_is_switched_as_asked(request_: dict[str, Any], think: object) -> None:
    """Where none was asked for, thousands of tokens would be waited for; unasked, Ollama's own habit holds."""
    body = asked(**request_)
    assert body.get("think") == think
    assert ("think" in body) == (think is not None)


def test_likelihoods_are_asked_for_when_wanted_only() -> None:
    """They make every line several times as long."""
    body = asked(logprobs=True, top_logprobs=3)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    assert not {"logprobs", "top_logprobs"} & set(asked(logprobs=False, top_logprobs=3))
    assert "top_logprobs" not in asked(logprobs=True)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"n": 2}, "'n'"),
        ({"logit_bias": {"5": 1}}, "'logit_bias'"),
        ({"grammar": "root ::= x"}, "'grammar'"),
        ({"tool_choice": "required"}, "'tool_choice'"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "'tool_choice'"),
        ({"response_format": {"type": "xml"}}, "'response_format'"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "text and pict"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
                ]
            },
            "data:image/png;base64",
        ),
    ],
)
def test_what_ollama_cannot_do_is_refused_and_the_way_out_named(request_: dict[str, Any], named: str) -> None:
    """Ignored in silence, the program would take the answer for what it had asked for."""
    with pytest.raises(RequestRejected, match=f"Ollama cannot .*{re.escape(named)}") as refusal:
        asked(**request_)
    assert refusal.value.status == 400


@pytest.mark.parametrize("request_", [{"n": 1, "logit_bias": {}, "grammar": ""}, {"n": None, "tool_choice": None}])
def test_a_wish_for_the_usual_is_no_reason_to_refuse(request_: dict[str, Any]) -> None:
    """Client libraries send the usual values along."""
    assert asked(**request_)["messages"] == ASK


@pytest.mark.parametrize("prompt", [None, ["a", "b"], [1, 2], 5])
def test_a_prompt_must_be_one_text(prompt: object) -> None:
    """Ollama has no way to take tokens, and several prompts would need several answers."""
    with pytest.raises(RequestRejected, match="'prompt' must be one text"):
        completion({"prompt": prompt}, "small", OURS)
    with pytest.raises(RequestRejected, match="Ollama cannot"):
        completion({"prompt": "p", "n": 2}, "small", OURS)


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": ["text"]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,x"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": ["call"]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 10**5}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
        {"temperature": "hot"},
        {"max_tokens": True},
        {"stop": 5},
        {"stop": [5]},
        {"response_format": "json"},
        {"reasoning_effort": "heroic"},
        {"reasoning_effort": ["high"]},
    ],
)
def test_what_makes_no_sense_is_refused_as_the_programs_fault(request_: dict[str, Any]) -> None:
    """Anything but a refusal would be taken for a level that broke."""
    with pytest.raises(RequestRejected):
        asked(**request_)


@given(st.dictionaries(st.sampled_from([*NUMBERS, *LIMITS, "messages", "prompt", "stop", "n", "tools"]), plain_values))
def test_no_request_breaks_the_translation(request: dict[str, Any]) -> None:
    """Whatever a program sends, it gets a body or a refusal."""
    for translate in (chat, completion):
        with contextlib.suppress(RequestRejected):
            assert translate(request, "small", OURS)["options"].items() >= OURS.items()


# -------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "line",
    [
        {"message": "x"},
        {"message": {"content": 5}},
        {"message": {"thinking": ["x"]}},
        {"message": {"tool_calls": {"function": {}}}},
        {"message": {"tool_calls": ["x"]}},
        {"message": {"tool_calls": [{"function": "f"}]}},
        {"message": {}, "logprobs": ["x"]},
        {"message": {}, "done": True, "eval_count": "many"},
        {"response": 5},
    ],
)
def test_a_line_of_another_form_is_told_as_such(line: dict[str, Any]) -> None:
    """As of a version to come: a level that breaks is handed over from, a fault of scaler's own is not."""
    for plain in (False, True):
        with pytest.raises(ValueError, match=r"^it sends "):
            Lines("small", plain=plain, created_s=1, identity="1").feed(line)


@given(st.lists(st.tuples(texts, texts)), texts)
def test_the_text_of_any_split_comes_whole(pieces: list[tuple[str, str]], last: str) -> None:
    """Ollama cuts where it likes, and its last line may still say something."""
    reader = lines()
    chunks = []
    for thinking, text in pieces:
        message = {"role": "assistant", "content": text, "thinking": thinking}
        chunks += reader.feed({"message": message, "done": False})
    chunks += reader.feed(ended(message={"role": "assistant", "content": last}))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert "".join(deltas(chunks, "content")) == "".join(text for _, text in pieces) + last
    assert "".join(deltas(chunks, "reasoning_content")) == "".join(thinking for thinking, _ in pieces)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"] == []


@given(st.lists(texts), texts)
def test_the_text_of_a_completion_comes_whole(pieces: list[str], last: str) -> None:
    """A completion has texts in place of deltas, and no role."""
    reader = lines(plain=True)
    chunks = [chunk for piece in pieces for chunk in reader.feed({"response": piece, "done": False})]
    chunks += reader.feed(ended(response=last, logprobs=[{"token": last, "logprob": -1.0}]))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "".join(pieces) + last
    assert chunks[-2]["choices"] == [{"index": 0, "text": "", "finish_reason": "stop"}]
    assert {(chunk["id"], chunk["object"]) for chunk in chunks} == {("cmpl-x", "text_completion")}
    assert not any("logprobs" in choice for chunk in chunks for choice in chunk["choices"])
    Completion.model_validate({**chunks[-2], "usage": chunks[-1]["usage"]})


def test_an_answer_reads_as_llama_cpps_does() -> None:
    """The rest of scaler splices answers of several runtimes into one."""
    reader = lines()
    head = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1700000000, "model": "small"}
    begin = {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}
    hello = {"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "length"}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert reader.feed({"message": {"role": "assistant", "content": "Hello"}, "done": False}) == [
        {**head, "choices": [begin]},
        {**head, "choices": [hello]},
    ]
    assert reader.feed({"message": {"role": "assistant", "content": ""}, "done": False}) == []
    assert reader.feed(ended("length", message={"role": "assistant", "content": ""})) == [
        {**head, "choices": [end]},
        {**head, "choices": [], "usage": usage},
    ]


@given(st.lists(st.lists(st.tuples(texts.filter(bool), objects), max_size=3), min_size=1, max_size=3))
def test_tool_calls_come_back_as_they_were_made(answer: list[list[tuple[str, dict[str, Any]]]]) -> None:
    """What a model called must be what it reads in its next turn."""
    reader = lines()
    chunks = []
    for calls in answer:
        told = [{"function": {"index": 0, "name": name, "arguments": arguments}} for name, arguments in calls]
        chunks += reader.feed({"message": {"role": "assistant", "content": "", "tool_calls": told}, "done": False})
    chunks += reader.feed(ended())
    made = [call for delta in deltas(chunks, "tool_calls") for call in delta]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    flat = [call for calls in answer for call in calls]
    assert [(call["index"], call["id"]) for call in made] == [(n, f"call_x_{n}") for n in range(len(flat))]
    assert chunks[-2]["choices"][0]["finish_reason"] == ("tool_calls" if flat else "stop")
    again = [{key: call[key] for key in ("id", "type", "function")} for call in made]
    answers = [{"role": "tool", "tool_call_id": call["id"], "content": ""} for call in made]
    history = [{"role": "assistant", "content": None, "tool_calls": again}, *answers]
    spoken, *heard = chat({"messages": history}, "small", OURS)["messages"]
    sent = [{"function": {"name": name, "arguments": arguments}} for name, arguments in flat]
    assert spoken.get("tool_calls", []) == sent
    assert [message["tool_name"] for message in heard] == [name for name, _ in flat]


@pytest.mark.parametrize(
    ("reason", "called", "finish"),
    [
        ("stop", False, "stop"),
        ("length", False, "length"),
        ("stop", True, "tool_calls"),
        ("length", True, "length"),
        ("load", False, "stop"),
        ("unload", False, "stop"),
        (None, False, "stop"),
        (None, True, "tool_calls"),
    ],
)
def test_the_reason_of_the_end_is_one_of_openais(reason: str | None, called: bool, finish: str) -> None:
    """Programs run tools only when told that the model waits for them, and a cut answer must not look whole."""
    call = {"function": {"name": "weather", "arguments": {}}}
    message = {"role": "assistant", "content": "", **({"tool_calls": [call]} if called else {})}
    assert lines().feed(ended(reason, message=message))[-2]["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize("plain", [True, False])
def test_figures_that_ollama_leaves_out_are_none(plain: bool) -> None:
    """It leaves out what is 0; a program adds the figures up."""
    usage = lines(plain=plain).feed({"done": True, "done_reason": "load"})[-1]["usage"]
    assert usage == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_likelihoods_go_with_the_text_they_belong_to() -> None:
    """Each token once: a program reckons with their sum."""
    other: Mapping[str, Any] = {"token": "Ho", "logprob": -2.0}
    token: Mapping[str, Any] = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": [other]}
    reader = lines()
    said = reader.feed({"message": {"content": "Hi", "thinking": "t"}, "logprobs": [token], "done": False})
    expected = {"content": [{**token, "top_logprobs": [{**other, "bytes": None}]}]}
    assert [chunk["choices"][0].get("logprobs") for chunk in said] == [None, expected, None]
    withheld = reader.feed({"message": {"content": ""}, "logprobs": [other], "done": False})
    assert withheld[0]["choices"][0]["logprobs"] == {"content": [{**other, "bytes": None, "top_logprobs": []}]}
    for chunk in said + withheld:
        ChatCompletionChunk.model_validate(chunk)
