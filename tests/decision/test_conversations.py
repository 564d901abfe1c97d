"""Histories that survive switches, and their fit into a smaller context window."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from scaler.conversations import Conversations, Message, fit

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


def test_a_conversation_is_remembered_in_order_and_by_its_id() -> None:
    """A switch of the level changes nothing of what was said."""
    conversations = Conversations()
    conversations.extend("a", [{"content": "1"}, {"content": "2"}])
    conversations.extend("b", [{"content": "x"}])
    conversations.extend("a", [{"content": "3"}])
    assert [m["content"] for m in conversations.history("a")] == ["1", "2", "3"]
    assert conversations.history("nobody") == ()
    conversations.forget("a")
    conversations.forget("a")
    assert conversations.history("a") == ()
    assert len(conversations.history("b")) == 1


def test_the_conversation_that_was_continued_longest_ago_is_forgotten_first() -> None:
    """Memory for histories is bounded like all other memory."""
    conversations = Conversations(keep=2)
    for name in ("a", "b", "a", "c"):
        conversations.extend(name, [{"content": name}])
    assert [len(conversations.history(name)) for name in "abc"] == [2, 0, 1]


def test_messages_of_many_threads_are_all_kept() -> None:
    """Answers of one conversation may end at the same time."""
    conversations = Conversations()
    threads = [
        threading.Thread(target=lambda: [conversations.extend("a", [{"content": "x"}]) for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversations.history("a")) == 2000


def test_what_surely_fits_is_not_counted() -> None:
    """Counting costs a round trip to the model; a token is one byte at least."""
    messages = [{"role": "user", "content": "hello"}]
    assert fitted(messages, 21) == (messages, 0)
    assert fitted(messages, 20) == (messages, 1)


@given(MESSAGES, st.integers(1, 200))
def test_the_system_prompt_and_the_longest_recent_past_that_fits_are_kept(messages: list[Message], room: int) -> None:
    """The last message is always there; what is left out is the oldest, and an answer never lacks its question."""
    kept, asked = fitted(messages, room)
    assert asked <= 2 + len(messages).bit_length()
    if exact(messages) <= room:
        assert kept == messages
        return
    head = []
    for message in messages:
        if message["role"] != "system":
            break
        head.append(message)
    turns = messages[len(head) :]
    assert kept[: len(head)] == head
    tail = kept[len(head) :]
    assert tail == turns[len(turns) - len(tail) :]
    if not turns:
        assert tail == []
        return
    assert tail[-1] == turns[-1]
    assert len(tail) == 1 or tail[0]["role"] == "user"
    if len(tail) > 1:
        assert exact(kept) <= room
    longer = [turns[start:] for start in range(len(turns) - len(tail)) if turns[start]["role"] == "user"]
    assert all(exact([*head, *more]) > room for more in longer)


def test_messages_without_text_are_counted_too() -> None:
    """Tool calls and pictures have no plain content."""
    messages: list[Message] = [
        {"role": "user", "content": [{"type": "text", "text": "x" * 50}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f" * 50}}]},
    ]
    kept, asked = fitted(messages, 30)
    assert asked > 0
    assert kept[-1] == messages[-1]
