"""Responses objects and their events: judged by the official client's own types and its own way to add events up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._types import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseCompletedEvent, ResponseStreamEvent
from pydantic import TypeAdapter

from scaler.answering import Chunk, collect
from scaler.errors import LevelUnavailable, RequestRejected, ScalerError
from scaler.serving.responses import ResponseForm
from scaler.serving.responses_request import chat_request

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 20,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 3},
}
Parts = Sequence[tuple[str, str]]
"""What an answer consists of: ``thought``, ``said`` or the name of a function, and the text of it."""

texts = st.text(min_size=1, max_size=30)
answers = st.builds(
    lambda thought, said, calls: (
        [*([("thought", thought)] if thought else []), *([("said", said)] if said else [])]
        + [(f"tool{number}", arguments) for number, arguments in enumerate(calls)]
    ),
    st.none() | texts,
    st.none() | texts,
    st.lists(texts, max_size=3),
)


def form() -> ResponseForm:
    return ResponseForm({"model": "auto", "metadata": {"a": "b"}, "instructions": "Be brief."}, "1", lambda: 5.0)


def chunk(delta: dict[str, Any], finish: str | None = None, level: str = "small") -> Chunk:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return Chunk(level, {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]})


def chunks_of(parts: Parts, cuts: Sequence[int], finish: str) -> list[Chunk]:
    """The answer as a runtime streams it, every text cut at ``cuts``."""
    made, called = [chunk({"role": "assistant", "content": None})], 0
    for kind, text in parts:
        places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
        pieces = [text[begin:end] for begin, end in pairwise(places)]
        if kind == "thought":
            made += [chunk({"reasoning_content": piece}) for piece in pieces]
        elif kind == "said":
            made += [chunk({"content": piece}) for piece in pieces]
        else:
            call = {"index": called, "id": f"id{called}", "type": "function"}
            made.append(chunk({"tool_calls": [{**call, "function": {"name": kind, "arguments": ""}}]}))
            for piece in pieces:
                made.append(chunk({"tool_calls": [{"index": called, "function": {"arguments": piece}}]}))
            called += 1
    made.append(chunk({}, finish, "medium"))
    made.append(Chunk("medium", {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": USAGE}))
    return made


def events_of(stream: bytes) -> list[dict[str, Any]]:
    events = []
    for block in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n", 1)
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def streamed(chunks: Sequence[Chunk], error: ScalerError | None = None) -> list[dict[str, Any]]:
    one = form()
    pieces = [one.piece(chunk) for chunk in chunks]
    return events_of(b"".join([*pieces, one.end() if error is None else one.broken(error)]))


def whole(chunks: Sequence[Chunk]) -> dict[str, Any]:
    async def parts() -> AsyncIterator[list[Chunk]]:
        yield list(chunks)

    response: dict[str, Any] = form().whole(asyncio.run(collect(parts())))
    return response


@settings(max_examples=60)
@given(answers, st.lists(st.integers(1, 30), max_size=8), st.sampled_from(["stop", "length", "tool_calls"]))
def test_however_an_answer_is_cut_into_chunks_the_response_is_the_same(
    parts: Parts, cuts: Sequence[int], finish: str
) -> None:
    """Whole, streamed in one piece and streamed word by word; and the deltas add up to what is told as done."""
    events = streamed(chunks_of(parts, cuts, finish))
    final = events[-1]["response"]
    assert final == streamed(chunks_of(parts, [], finish))[-1]["response"]
    assert final == whole(chunks_of(parts, cuts, finish))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    added: dict[int, str] = {}
    for event in events:
        EVENT.validate_python(event)
        if event["type"].endswith(".delta"):
            added[event["output_index"]] = added.get(event["output_index"], "") + event["delta"]
        elif event["type"].endswith(("_text.done", "arguments.done")):
            assert (event.get("text") or event.get("arguments")) == added[event["output_index"]]
    assert [added[position] for position in sorted(added)] == [text for _, text in parts]
    Response.model_validate(final)


@settings(max_examples=30)
@given(answers, st.lists(st.integers(1, 30), max_size=8))
def test_the_official_client_adds_the_events_up_to_the_same_response(parts: Parts, cuts: Sequence[int]) -> None:
    """Its `responses.stream()` refuses events that come without their item, or items that change."""
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    events = streamed(chunks_of(parts, cuts, "stop"))
    told = [one for event in events for one in state.handle_event(EVENT.validate_python(event))][-1]
    assert isinstance(told, ResponseCompletedEvent)
    assert told.response.output_text == "".join(text for kind, text in parts if kind == "said")
    assert len(told.response.output) == len(parts)


def test_a_response_tells_how_it_ended_and_what_it_took() -> None:
    """Agents go by the status, and people by the figures."""
    parts = [("thought", "a" * 10), ("said", "b" * 30)]
    response = whole(chunks_of(parts, [], "length"))
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [(item["type"], item["status"]) for item in response["output"]] == [
        ("reasoning", "completed"),
        ("message", "incomplete"),
    ]
    assert response["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 27,
    }
    assert response["metadata"] == {"a": "b"}
    assert response["model"] == "medium"
    assert response["store"] is False


def test_a_stream_that_cannot_go_on_ends_with_a_failed_response() -> None:
    """With what was said, the reason, and no item left open."""
    begun = chunks_of([("said", "The small")], [4], "stop")[:3]
    events = streamed(begun, LevelUnavailable("small: it died"))
    EVENT.validate_python(events[-1])
    assert events[-1]["type"] == "response.failed"
    assert events[-2]["type"] == "response.output_item.done"
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "small: it died"}
    assert response["output"][0]["content"][0]["text"] == "The small"


def test_the_turns_of_an_agent_become_a_chat() -> None:
    """What the model did and what came of it, in the order in which it happened."""
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    chat = chat_request(
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look."}]},
                {"type": "reasoning", "id": "r", "summary": []},
                {"role": "assistant", "content": [{"type": "output_text", "text": "I do.", "annotations": []}]},
                call,
                {**call, "call_id": "c2"},
                {"type": "function_call_output", "call_id": "c1", "output": "a dog"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "a cat"}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "And this?"},
                        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"},
                    ],
                },
            ],
        }
    )

    def called(identity: str) -> dict[str, Any]:
        return {"id": identity, "type": "function", "function": {"name": "look", "arguments": "{}"}}

    assert chat["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "I do.", "tool_calls": [called("c1"), called("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "a dog"},
        {"role": "tool", "tool_call_id": "c2", "content": "a cat"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ],
        },
    ]


def test_options_become_those_of_a_chat() -> None:
    """Tools are flat here and nested there; what only llama.cpp knows goes through."""
    look = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
    chat = chat_request(
        {
            "input": "Look.",
            "tools": [look, {"type": "function", "name": "smell"}],
            "tool_choice": {"type": "function", "name": "look"},
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}},
            "max_output_tokens": 7,
            "temperature": 0.5,
            "reasoning": {"effort": "low"},
            "store": True,
            "include": ["reasoning.encrypted_content"],
            "stream": True,
            "top_k": 3,
        }
    )
    assert chat == {
        "messages": [{"role": "user", "content": "Look."}],
        "tools": [
            {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}, "strict": True}},
            {"type": "function", "function": {"name": "smell"}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
        },
        "max_tokens": 7,
        "temperature": 0.5,
        "chat_template_kwargs": {"reasoning_effort": "low"},
        "stream": True,
        "top_k": 3,
    }
    assert chat_request({"input": "x", "reasoning": {"effort": "none"}})["chat_template_kwargs"] == {
        "enable_thinking": False
    }


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"input": None}, "'input' must be a text"),
        ({"input": []}, "'input' must be a text"),
        ({"input": 3}, "'input' must be a text"),
        ({"input": [3]}, r"'input\[0\]' must be an object"),
        ({"input": [{"role": "tool", "content": "x"}]}, r"'input\[0\]\.role' must be one of system"),
        ({"input": [{"role": "user", "content": 3}]}, r"'input\[0\]\.content' must be a text, or a list"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 3}]}]}, "text' must be a text"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "'input_audio'; possible are input_text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "no files are stored"),
        ({"input": [{"role": "system", "content": "x"}]}, "that can be answered"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "nothing is stored here: send it whole"),
        ({"input": [{"type": "computer_call"}]}, "'computer_call'; possible are message"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": 3}]}, r"'input\[0\]\.name' must be a text"),
        ({"previous_response_id": "resp_1"}, "send the whole conversation as 'input'"),
        ({"conversation": "conv_1"}, "send the whole conversation as 'input'"),
        ({"background": True}, "wait for the answer, or stream it"),
        ({"tools": [{"type": "web_search"}]}, r"'tools\[0\]' is of the type 'web_search'; only functions"),
        ({"tools": [{"type": "function"}]}, r"'tools\[0\]\.name' must be a text"),
        ({"tools": 3}, "'tools' must be a list"),
        ({"tool_choice": {"type": "function"}}, r"'tool_choice\.name' must be a text"),
        ({"tool_choice": {"type": "allowed_tools", "tools": 3}}, r"'tool_choice\.tools' must be a text, or a list"),
        ({"text": {"format": {"type": "xml"}}}, "possible are text, json_object, json_schema"),
        ({"text": {"format": {"type": "json_schema"}}}, r"'text\.format\.schema' must be an object"),
        ({"text": "x"}, "'text' must be an object"),
        ({"max_output_tokens": 0}, "'max_output_tokens' must be a whole number from 1"),
        ({"reasoning": {"effort": 3}}, r"'reasoning\.effort' must be a text"),
        ({"instructions": 3}, "'instructions' must be a text"),
        ({"metadata": 3}, "'metadata' must be an object"),
    ],
)
def test_what_there_is_no_chat_for_is_told_by_its_place(wrong: dict[str, Any], words: str) -> None:
    """And, where there is another way, what that is."""
    with pytest.raises(RequestRejected, match=words):
        chat_request({"input": "x", **wrong})
