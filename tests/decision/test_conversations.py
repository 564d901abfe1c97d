"""The fit of a conversation into a smaller context window."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from scaler.conversations.fitting import fit
from scaler.conversations.protocol import Message

ROLES = st.sampled_from(["user", "assistant", "tool", "system"])
MESSAGES = st.lists(st.tuples(ROLES, st.integers(0, 40)), min_size=1, max_size=12).map(
    lambda turns: [{"role": role, "content": f"{number}" + "x" * size} for number, (role, size) in enumerate(turns)]
)


def exact(messages: Sequence[Message]) -> int:
    """A tokenizer of four bytes a token, with two for the template."""
    return sum(2 + -(-len(str(message.get("content"))) // 4) for message in messages)


def fitted(messages: Sequence[Message], room: int) -> tuple[list[Message], int]:
    """The fitted messages, and how often tokens were counted."""
    asked = 0

    async def count(some: Sequence[Message]) -> int:
        nonlocal asked
        asked += 1
        return exact(some)

    return asyncio.run(fit(messages, room, count)), asked


def test_what_surely_fits_is_not_counted() -> None:
    """Counting costs a round trip to the model; a token is one byte at least."""
    messages = [{"role": "user", "content": "hello"}]
    assert fitted(messages, 21) == (messages, 0)
    assert fitted(messages, 20) == (messages, 1)


@given(MESSAGES, st.integers(1, 200))
def test_the_system_prompt_and_the_longest_recent_past_that_fits_are_kept(messages: list[Message], room: int) -> None:
    """What is left out is the oldest; the last message is always there, and no answer lacks its question."""
    kept, asked = fitted(messages, room)
    assert asked <= 2 + len(messages).bit_length()
    if exact(messages) <= room:
        assert kept == messages
        return
    head = list(takewhile(lambda message: message["role"] == "system", messages))
    turns = messages[len(head) :]
    assert kept[: len(head)] == head
    tail = kept[len(head) :]
    assert tail[-1:] == turns[-1:]
    if not turns:
        return
    if any(message["role"] == "user" for message in turns):
        assert tail[0]["role"] == "user"
    longer = [turns[start:] for start, message in enumerate(turns) if message["role"] == "user"]
    whole = next((turn for turn in longer if exact([*head, *turn]) <= room), None)
    if whole is not None:
        assert tail == whole
    elif longer:
        # Not even the last turn fits: its question, and as many of its last steps as do.
        question, *steps = longer[-1]
        assert tail[0] == question
        assert tail[1:] == steps[len(steps) - len(tail[1:]) :]


CALLED = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=4)),
    min_size=1,
    max_size=5,
)
"""Turns: how long the question is, and for each step how many tools are called and how long each one's result is."""


@given(CALLED, st.integers(1, 300))
def test_a_tools_result_is_never_without_its_call(turns: list[tuple[int, list[tuple[int, int]]]], room: int) -> None:
    """Runtimes refuse it, or take it for nonsense; so does a call of which some results are missing."""
    messages: list[Message] = [{"role": "system", "content": "be brief"}]
    for turn, (length, steps) in enumerate(turns):
        messages.append({"role": "user", "content": f"{turn}" + "q" * length})
        for step, (calls, size) in enumerate(steps):
            names = [f"{turn}.{step}.{call}" for call in range(calls)]
            made = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in names]
            messages.append(
                {"role": "assistant", "content": f"{turn}.{step}", **({"tool_calls": made} if made else {})}
            )
            messages += [{"role": "tool", "tool_call_id": name, "content": "r" * size} for name in names]
    kept, _ = fitted(messages, room)
    assert kept[0] == messages[0]
    assert kept[1]["role"] == "user"
    assert kept[-1] == messages[-1]
    called = [call["id"] for message in kept for call in message.get("tool_calls", ())]
    assert called == [message["tool_call_id"] for message in kept if message["role"] == "tool"]
    places = [messages.index(message) for message in kept]
    assert places == sorted(places)


def test_of_a_turn_that_is_too_long_the_oldest_calls_go_before_the_question() -> None:
    """A program that calls many tools would otherwise be answered without what it was asked."""
    question: Message = {"role": "user", "content": "q" * 20}
    steps: list[Message] = []
    for number in range(4):
        steps.append({"role": "assistant", "content": "", "tool_calls": [{"id": f"{number}"}]})
        steps.append({"role": "tool", "tool_call_id": f"{number}", "content": "r" * 40})
    kept, _ = fitted([question, *steps], exact([question, *steps[4:]]))
    assert kept == [question, *steps[4:]]
    assert fitted([question, *steps], 1)[0] == [question, *steps[-2:]]


def test_messages_without_text_are_counted_too() -> None:
    """Tool calls and pictures have no plain content."""
    messages: list[Message] = [
        {"role": "user", "content": [{"type": "text", "text": "x" * 50}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f" * 50}}]},
    ]
    kept, asked = fitted(messages, 30)
    assert asked > 0
    assert kept[-1] == messages[-1]


def test_a_call_beside_text_is_counted_and_text_that_is_no_unicode_too() -> None:
    """Half a character, which JSON can bring, must not end in a fault of ours: the runtime says what it thinks."""
    call: Message = {"role": "assistant", "content": "so:", "tool_calls": [{"function": {"name": "f" * 50}}]}
    assert fitted([call], 40)[1] > 0
    half: Message = {"role": "user", "content": "\ud800"}
    assert fitted([half], 100) == ([half], 0)
