"""Chunks of a level as Ollama's programs read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from ollama import ChatResponse, GenerateResponse

from scaler.answering import Chunk, collect
from scaler.errors import LevelUnavailable
from scaler.serving.errors import body_of
from scaler.serving.ollama_answers import Form, chat_layout, generate_layout

NOON = datetime(2026, 1, 2, 12, 0, 0, 5, UTC)
USAGE = {"prompt_tokens": 31, "completion_tokens": 13, "total_tokens": 44}
TIMINGS = {"prompt_n": 31, "prompt_ms": 20.5, "predicted_n": 13, "predicted_ms": 30.25}
CALLED: list[dict[str, Any]] = [
    {"role": "assistant", "content": None},
    {"reasoning_content": "They ask for"},
    {"reasoning_content": " two."},
    {"content": "Let me see."},
    {"tool_calls": [{"index": 0, "id": "one", "type": "function", "function": {"name": "weather", "arguments": "{"}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"city":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"Praha"}'}}]},
    {"tool_calls": [{"index": 1, "id": "two", "type": "function", "function": {"name": "now", "arguments": "{}"}}]},
]
"""What llama.cpp sends when a model thinks, speaks and calls two tools."""


def form(layout: Any = chat_layout, **changes: Any) -> Form:
    """One whose answer takes two seconds, at noon."""
    seconds = iter((10.0, 12.0))
    return Form(layout, clock=lambda: next(seconds), now=lambda: NOON, **changes)


def chunks(deltas: Sequence[dict[str, Any]], finish: str | None = "stop", level: str = "small") -> list[Chunk]:
    """A chat answer of these deltas."""

    def chunk(choices: list[dict[str, Any]], **besides: Any) -> Chunk:
        return Chunk(level, {"object": "chat.completion.chunk", "choices": choices, **besides})

    said = [chunk([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    end = [chunk([{"index": 0, "delta": {}, "finish_reason": finish}])] if finish else []
    return [*said, *end, chunk([], usage=USAGE, timings=TIMINGS)]


def streamed(parts: Sequence[Chunk], layout: Any = chat_layout) -> list[dict[str, Any]]:
    """The lines of the stream."""
    told = form(layout)
    lines = b"".join(map(told.piece, parts)) + told.end()
    return [json.loads(line) for line in lines.splitlines()]


def whole(parts: Sequence[Chunk], layout: Any = chat_layout) -> dict[str, Any]:
    """The same answer in one piece."""

    async def one() -> AsyncIterator[list[Chunk]]:
        for part in parts:
            yield [part]

    return form(layout).whole(asyncio.run(collect(one())))


def together(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a program makes of a stream."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for line in lines:
        for key, value in line["message"].items():
            message[key] = value if key == "role" else message[key] + value if key in message else value
    return {**lines[-1], "message": message}


def test_a_stream_ends_with_a_line_that_has_the_figures() -> None:
    """Programs count tokens a second by them; nanoseconds, and none that nobody measured."""
    *said, last = streamed(chunks([{"content": "a"}, {"content": "b"}]))
    assert [(line["message"]["content"], line["done"]) for line in said] == [("a", False), ("b", False)]
    assert last == {
        "model": "small",
        "created_at": "2026-01-02T12:00:00.000005Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": 2_000_000_000,
        "prompt_eval_count": 31,
        "prompt_eval_duration": 20_500_000,
        "eval_count": 13,
        "eval_duration": 30_250_000,
    }
    assert ChatResponse(**last).eval_count == 13


def test_a_completion_is_a_response() -> None:
    """As `/api/generate` calls it."""
    parts = [
        Chunk("small", {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": end}]})
        for text, end in (("a", None), ("b", None), ("", "length"))
    ]
    lines = streamed(parts, generate_layout)
    assert [line["response"] for line in lines] == ["a", "b", ""]
    assert lines[-1]["done_reason"] == "length"
    answer = GenerateResponse(**whole(parts, generate_layout))
    assert (answer.response, answer.done_reason, answer.eval_count) == ("ab", "length", None)


def test_tool_calls_come_whole_with_their_arguments_as_an_object() -> None:
    """Each as soon as it is known to be whole."""
    lines = streamed(chunks(CALLED, "tool_calls"))
    calls = [line["message"].get("tool_calls") for line in lines]
    first = {"id": "one", "function": {"index": 0, "name": "weather", "arguments": {"city": "Praha"}}}
    second = {"id": "two", "function": {"index": 1, "name": "now", "arguments": {}}}
    assert calls == [None, None, None, [first], [second], None]
    assert [line["message"].get("thinking") for line in lines[:2]] == ["They ask for", " two."]
    assert lines[-1]["done_reason"] == "stop"
    answer = ChatResponse(**whole(chunks(CALLED, "tool_calls")))
    assert answer.message.thinking == "They ask for two."
    assert answer.message.content == "Let me see."
    assert [call.function.name for call in answer.message.tool_calls or ()] == ["weather", "now"]


def test_half_a_tool_call_comes_as_the_text_that_it_is() -> None:
    """An object cannot be half; and what a model has said does not get lost."""
    lines = streamed(chunks(CALLED[:6], "length"))
    assert not any("tool_calls" in line["message"] for line in lines)
    assert json.loads(lines[-2]["message"]["content"]) == {"name": "weather", "arguments": '{"city":'}
    assert lines[-1]["done_reason"] == "length"


def test_an_answer_of_several_levels_has_no_times_of_only_one() -> None:
    """The runtime of the last level knows nothing of the tokens before."""
    parts = [*chunks([{"content": "a"}], None, "large")[:1], *chunks([{"content": "b"}])]
    parts[-1].data["usage"] = {**USAGE, "completion_tokens": 20}
    last = streamed(parts)[-1]
    assert last["model"] == "small"
    assert last["eval_count"] == 20
    assert not {"eval_duration", "prompt_eval_duration"} & last.keys()


def test_an_answer_that_was_ended_has_no_figures() -> None:
    """They were never told; zero would be a lie."""
    last = streamed(chunks([{"content": "a"}], "length")[:-1])[-1]
    assert last["done_reason"] == "length"
    assert not {key for key in last if "eval" in key}


def test_probabilities_are_told_as_they_were_asked_for() -> None:
    """The likely others only to those who want them."""
    token: dict[str, Any] = {"id": 3, "token": "a", "logprob": -0.5, "bytes": [97]}
    told: dict[str, Any] = {"content": [{**token, "top_logprobs": [token]}]}
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": told}
    chunk = Chunk("small", {"choices": [choice]})
    plain = json.loads(form().piece(chunk))["logprobs"]
    assert plain == [{"token": "a", "logprob": -0.5, "bytes": [97]}]
    more = json.loads(form(alternatives=True).piece(chunk))["logprobs"]
    assert more == [{**plain[0], "top_logprobs": plain}]


def test_what_breaks_off_is_told_in_a_line_of_its_own() -> None:
    """Ollama's programs look for it in every line."""
    assert json.loads(form().broken(LevelUnavailable("small: it died"))) == {"error": "small: it died"}


def test_a_stream_breaks_off_with_its_error_also_where_a_file_is_named_by_no_text() -> None:
    """As in a folder that an older system has named; UTF-8 has no place for it."""
    error = LevelUnavailable("small: /mod\udce8les/größer.gguf: it died")
    told = "small: /mod\\udce8les/größer.gguf: it died"
    assert json.loads(form().broken(error)) == {"error": told}
    assert orjson.loads(orjson.dumps(body_of(error)))["error"]["message"] == told


ARGUMENTS = st.dictionaries(st.text(max_size=4), st.integers(-9, 9) | st.text(max_size=4), max_size=3)


@st.composite
def splits(draw: st.DrawFn, text: str) -> list[str]:
    """A text cut into pieces, some of which may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """An answer in two ways: each of its parts in one delta, and in any pieces."""
    thinking, content = draw(st.text(max_size=12)), draw(st.text(max_size=12))
    at_once: list[dict[str, Any]] = [{"reasoning_content": thinking}, {"content": content}]
    pieces: list[dict[str, Any]] = [{"reasoning_content": piece} for piece in draw(splits(thinking))]
    pieces += [{"content": piece} for piece in draw(splits(content))]
    for index, arguments in enumerate(draw(st.lists(ARGUMENTS, max_size=3))):
        written = json.dumps(arguments)
        # Some are cut short.
        written = written[: draw(st.integers(0, len(written)) | st.just(len(written)))]
        head = {"index": index, "id": f"call{index}"}
        at_once.append({"tool_calls": [{**head, "function": {"name": "f", "arguments": written}}]})
        pieces.append({"tool_calls": [{**head, "function": {"name": "f", "arguments": ""}}]})
        pieces += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in draw(splits(written))
        ]
    return at_once, pieces


@given(answers())
def test_however_an_answer_is_cut_into_chunks_it_is_the_same_answer(
    answer: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    """Streamed or whole, and whatever comes together."""
    at_once, pieces = answer
    expected = whole(chunks(at_once))
    assert whole(chunks(pieces)) == expected
    assert together(streamed(chunks(at_once))) == expected
    assert together(streamed(chunks(pieces))) == expected
