"""One answer over several levels: nothing lost, nothing said twice, and no half of what has no halves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.handoff import Seam, Splice

ASK = {"role": "user", "content": "talk"}
TEXT = st.text(alphabet="ab .é日🦙", max_size=12)


def said(text: str | None = None, *, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk."""
    if text is not None:
        delta["content"] = text
    return {"id": "1", "created": 7, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def text_of(chunks: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(choice["delta"].get("content") or "" for _, chunk in chunks for choice in chunk["choices"])


@given(st.lists(st.lists(TEXT, max_size=4), min_size=1, max_size=4), st.booleans())
def test_the_parts_of_all_levels_make_one_answer(parts: list[list[str]], streamed: bool) -> None:
    """Each level is asked to go on exactly where the one before stopped, and its words come once."""
    splice = Splice({"messages": [ASK]}, streamed=streamed)
    passed: list[tuple[str, dict[str, Any]]] = []
    for number, pieces in enumerate(parts):
        request = splice.next_request()
        assert request is not None
        messages = request["messages"]
        assert "".join(m["content"] for m in messages if m["role"] == "assistant") == text_of(passed)
        passed += splice.add(f"level{number}", {**said(None, role="assistant"), "id": f"id{number}"})
        for piece in pieces:
            passed += splice.add(f"level{number}", {**said(piece), "id": f"id{number}"})
    passed += splice.add("last", {**said(finish="stop"), "id": f"id{len(parts) - 1}"})
    assert text_of(passed) == "".join(piece for pieces in parts for piece in pieces)
    assert splice.finished
    assert splice.ending() == []
    assert len({chunk["id"] for _, chunk in passed if "id" in chunk}) == 1
    assert (
        sum("role" in choice["delta"] for _, chunk in passed for choice in chunk["choices"])
        <= len([pieces for pieces in parts if not "".join(pieces)]) + 1
    )


@given(st.integers(1, 20), st.integers(0, 25))
def test_what_is_left_of_the_token_limit_is_the_next_levels_limit(limit: int, tokens: int) -> None:
    """Two levels together say no more than was asked for."""
    splice = Splice({"messages": [ASK], "max_completion_tokens": limit, "max_tokens": 1000}, streamed=True)
    splice.next_request()
    for _ in range(tokens):
        splice.add("large", said("x"))
    request = splice.next_request()
    if tokens >= limit:
        assert request is None
    elif tokens:
        assert request is not None
        assert request["max_tokens"] == limit - tokens
        assert "max_completion_tokens" not in request


STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3)


@given(st.text(alphabet="ab", max_size=8), st.lists(st.text(alphabet="ab", max_size=3), max_size=8), STOPS)
def test_a_stop_string_that_the_seam_runs_through_ends_the_answer(
    before: str, pieces: list[str], stops: list[str]
) -> None:
    """However the text behind the seam is cut into pieces; and without one, nothing is lost, and only so much held."""
    after = "".join(pieces)
    seam = Seam(before, stops)
    out = "".join(seam.feed(piece, last=number == len(pieces) - 1) for number, piece in enumerate(pieces))
    across = [
        (start, stop)
        for start in range(len(before))
        for stop in stops
        if start + len(stop) > len(before) and (before + after).startswith(stop, start)
    ]
    assert seam.stopped == bool(across)
    if not across:
        assert out == after
    else:
        # What was passed on cannot have held any that could be found before it.
        assert after.startswith(out)
        assert not any(start + len(stop) <= len(before + out) for start, stop in across)


def test_a_stop_string_across_the_seam_gives_the_clients_a_stop() -> None:
    """The finish reason is the one that a single level would have given, and nothing after it comes."""
    splice = Splice({"messages": [ASK], "stop": "END"}, streamed=True)
    splice.next_request()
    splice.add("large", said("text E"))
    splice.next_request()
    passed = splice.add("small", said("N")) + splice.add("small", said("D more"))
    assert text_of(passed) == ""
    assert passed[-1][1]["choices"][0]["finish_reason"] == "stop"
    assert splice.stopped
    assert splice.add("small", said("and more")) == []


def test_the_assistants_turn_that_the_client_began_goes_on() -> None:
    """Its own beginning, and what came since, are one message."""
    begun = [ASK, {"role": "assistant", "content": "I "}]
    splice = Splice({"messages": begun}, streamed=True)
    assert splice.next_request() == {"messages": begun}
    splice.add("large", said("am"))
    request = splice.next_request()
    assert request is not None
    assert request["messages"] == [ASK, {"role": "assistant", "content": "I am"}]


def test_a_thought_is_not_thought_twice() -> None:
    """What comes after it is begun, without thinking again."""
    splice = Splice({"messages": [ASK], "chat_template_kwargs": {"x": 1}}, streamed=True)
    splice.next_request()
    splice.add("large", said(reasoning_content="hm"))
    assert splice.begun
    request = splice.next_request()
    assert request is not None
    assert request["messages"] == [ASK]
    assert request["chat_template_kwargs"] == {"x": 1, "enable_thinking": False}


CALL: dict[str, Any] = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}]}
FORM: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {}}}


@pytest.mark.parametrize(
    ("options", "chunk"),
    [
        ({"tools": [{}]}, said(**CALL)),
        (FORM, said('{"a"')),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, said("y")),
        ({"n": 2}, {"choices": [{"index": 1, "delta": {"content": "x"}}]}),
    ],
    ids=["tool call", "JSON", "vLLM's form", "several choices"],
)
def test_half_a_tool_call_is_ended_when_streamed_and_begun_anew_when_not(
    options: dict[str, Any], chunk: dict[str, Any]
) -> None:
    """A client that saw half of it cannot be given another half; one that saw nothing gets a whole one."""
    shown = Splice({"messages": [ASK], **options}, streamed=True)
    shown.next_request()
    assert shown.add("large", chunk)
    assert shown.next_request() is None
    (last,) = shown.ending()
    assert {choice["finish_reason"] for choice in last["choices"]} == {"length"}

    unseen = Splice({"messages": [ASK], **options}, streamed=False)
    first = unseen.next_request()
    assert unseen.add("large", chunk) == []
    assert unseen.next_request() == first
    unseen.add("small", said("whole", finish="stop"))
    assert text_of(unseen.rest()) == "whole"


def test_text_before_a_tool_call_goes_on_with_the_tools() -> None:
    """Nothing of the call was sent, so the next level makes it."""
    splice = Splice({"messages": [ASK], "tools": [{}]}, streamed=True)
    splice.next_request()
    splice.add("large", said("I look it up."))
    request = splice.next_request()
    assert request is not None
    assert request["tools"] == [{}]


def test_the_usage_is_that_of_the_whole_answer() -> None:
    """The last level read as prompt what the first had said; the person pays for it as an answer, once."""
    splice = Splice({"messages": [ASK]}, streamed=True)
    splice.next_request()
    for word in ("a", "b", "c"):
        splice.add("large", said(word))
    splice.next_request()
    splice.add("small", said("d", finish="stop"))
    ((_, last),) = splice.add(
        "small", {"choices": [], "usage": {"prompt_tokens": 13, "completion_tokens": 1, "total_tokens": 14}}
    )
    assert last["usage"] == {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


def test_what_was_thought_is_no_part_of_the_prompt_that_the_next_level_reads() -> None:
    """It is not told to the next level; to take it off the prompt would leave nothing of that."""
    splice = Splice({"messages": [ASK]}, streamed=True)
    splice.next_request()
    for _ in range(50):
        splice.add("large", said(reasoning_content="hm "))
    splice.add("large", said("a"))
    splice.next_request()
    splice.add("small", said("b", finish="stop"))
    ((_, last),) = splice.add(
        "small", {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}}
    )
    assert last["usage"] == {"prompt_tokens": 10, "completion_tokens": 52, "total_tokens": 62}


def test_several_answers_are_passed_on_to_the_end_also_where_they_come_one_after_the_other() -> None:
    """As llama.cpp completes several prompts with one slot: the end of the first is not that of all."""
    splice = Splice({"prompt": ["One", "Two"]}, streamed=True)
    splice.next_request()
    passed = []
    for index, text in ((0, "a"), (1, "b")):
        assert not splice.finished
        passed += splice.add("small", {"choices": [{"index": index, "text": text, "finish_reason": None}]})
        passed += splice.add("small", {"choices": [{"index": index, "text": "", "finish_reason": "stop"}]})
    assert [(choice["index"], choice["text"]) for _, chunk in passed for choice in chunk["choices"]] == [
        *((0, "a"), (0, "")),
        *((1, "b"), (1, "")),
    ]
    assert splice.finished
    assert splice.ending() == []


def test_of_several_answers_those_that_had_not_ended_are_ended() -> None:
    """One that had not even begun, too: the client waits for it."""
    splice = Splice({"messages": [ASK], "n": 3}, streamed=True)
    splice.next_request()
    splice.add("large", said("whole", finish="stop"))
    splice.add("large", {"choices": [{"index": 1, "delta": {"content": "half"}, "finish_reason": None}]})
    assert splice.next_request() is None
    (last,) = splice.ending()
    assert [(choice["index"], choice["finish_reason"]) for choice in last["choices"]] == [(1, "length"), (2, "length")]


def test_probabilities_of_what_is_withheld_at_the_seam_are_told() -> None:
    """The text comes a chunk later; its tokens come as they were made."""
    splice = Splice({"messages": [ASK], "stop": "END"}, streamed=True)
    splice.next_request()
    splice.add("large", said("an E"))
    splice.next_request()
    passed = []
    for text in ("N", "ough"):
        chunk = said(text)
        chunk["choices"][0]["logprobs"] = {"content": [{"token": text}]}
        passed += splice.add("small", chunk)
    assert text_of(passed) == "Nough"
    tokens = [token for _, chunk in passed for token in chunk["choices"][0]["logprobs"]["content"]]
    assert [token["token"] for token in tokens] == ["N", "ough"]


def test_a_prompt_that_is_echoed_is_not_completed_twice() -> None:
    """vLLM repeats the prompt where it is asked to: that is no part of what was said, and is told already."""
    splice = Splice({"prompt": "Once", "echo": True}, streamed=True)
    splice.next_request()
    splice.add("large", {"choices": [{"index": 0, "text": "Once upon", "finish_reason": None}]})
    assert splice.next_request() == {"prompt": "Once upon"}


def test_a_prompt_is_completed_from_where_it_stands() -> None:
    """The older form of request, without turns."""
    splice = Splice({"prompt": "Once", "max_tokens": 9}, streamed=True)
    splice.next_request()
    splice.add("large", {"choices": [{"index": 0, "text": " upon", "finish_reason": None}]})
    assert splice.next_request() == {"prompt": "Once upon", "max_tokens": 8}
    assert splice.ending() == [{"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}]


def test_an_answer_that_the_client_began_in_parts_is_gone_on_with_as_one_text() -> None:
    """What a list looks like in Python is nothing that a model should read as its own words."""
    parts = [{"type": "text", "text": "One, "}, {"type": "text", "text": "two"}]
    splice = Splice({"messages": [ASK, {"role": "assistant", "content": parts}]}, streamed=True)
    splice.next_request()
    splice.add("large", said(", three"))
    request = splice.next_request()
    assert request is not None
    assert request["messages"] == [ASK, {"role": "assistant", "content": "One, two, three"}]
