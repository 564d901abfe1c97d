"""What holds of conversations wherever they are kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scaler.conversations.memory import MemoryConversations
from scaler.conversations.protocol import Said
from scaler.conversations.sqlite import SqliteConversations
from tests.conversations.conftest import AT, Keeper, questions, turn

TEXT = st.text(st.characters())  # with surrogates, NUL and all
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.fixed_dictionaries({"role": TEXT, "content": JSON}, optional={"tool_calls": JSON, "name": TEXT})
TIMES = st.datetimes(timezones=st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))))
TURNS = st.lists(st.builds(Said, MESSAGES, TIMES, st.lists(TEXT, max_size=3).map(tuple)), max_size=4)
IDS = st.sampled_from(["a", "b", "c", "", "\ud800", "\0", "ß" * 300])
STEPS = st.lists(st.tuples(IDS, TURNS) | st.tuples(IDS, st.none()), max_size=12)
folders = count()


def test_a_conversation_is_remembered_in_order_and_by_its_id(keeper: Keeper) -> None:
    """A switch of the level changes nothing of what was said."""
    kept = keeper()
    kept.extend("a", turn("1"))
    kept.extend("b", turn("x"))
    kept.extend("a", turn("2", "no", ("large", "small")))
    assert kept.history("a") == (*turn("1"), *turn("2", "no", ("large", "small")))
    assert kept.history("nobody") == ()
    kept.forget("a")
    kept.forget("a")
    assert kept.history("a") == ()
    assert kept.history("b") == tuple(turn("x"))


def test_what_was_said_stays_said_whatever_becomes_of_the_message(keeper: Keeper) -> None:
    """A program may use one for its next question, or put what it is given into words of its own."""
    kept = keeper()
    asked: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "one"}]}
    kept.extend("a", [Said(asked, AT)])
    asked["content"][0]["text"] = "two"
    assert kept.history("a")[0].message["content"] == [{"type": "text", "text": "one"}]


def test_the_conversation_that_was_continued_longest_ago_is_forgotten_first(keeper: Keeper) -> None:
    """Room for histories is bounded like all other room."""
    kept = keeper(keep=2)
    for name in ("a", "b", "a", "c"):
        kept.extend(name, turn(name))
    assert [len(questions(kept, name)) for name in "abc"] == [2, 0, 1]
    assert kept.known() == ("c", "a")


def test_turns_of_many_threads_are_all_kept_and_whole(keeper: Keeper) -> None:
    """Answers of one conversation may end at the same time, and be read meanwhile."""
    kept = keeper()
    faults: list[BaseException] = []

    def talk(name: str) -> None:
        try:
            for number in range(25):
                kept.extend("a", turn(f"{name}{number}", f"{name}{number}"))
                said = kept.history("a")
                assert [one.message["content"] for one in said[::2]] == [one.message["content"] for one in said[1::2]]
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=talk, args=(name,)) for name in "wxyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert sorted(questions(kept, "a")) == sorted(f"{name}{number}" for name in "wxyz" for number in range(25))


def test_a_long_conversation_with_long_messages_is_kept_whole(keeper: Keeper) -> None:
    """A pasted book, and a picture as OpenAI's clients send it."""
    book = "Ω≈ç√∫ 😀\n" * 200_000
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_000_000}}]
    said = [Said({"role": "user", "content": book}, AT), Said({"role": "user", "content": picture}, AT)]
    kept = keeper()
    kept.extend("a", said)
    for number in range(200):
        kept.extend("a", turn(f"{number}"))
    assert kept.history("a")[:2] == tuple(said)
    assert questions(kept, "a")[2:] == [f"{number}" for number in range(200)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([("a", [Said({"role": "user", "content": "\ud83d\ude00"}, AT)])], 1)  # halves that JSON would join
@given(STEPS, st.integers(1, 4))
def test_a_file_remembers_what_memory_does(
    tmp_path: Path, steps: Sequence[tuple[str, Sequence[Said] | None]], keep: int
) -> None:
    """Whatever is said, in whatever order, and over closing and opening: the same, to the letter."""
    path = tmp_path / f"{next(folders)}.sqlite"
    memory, names = MemoryConversations(keep), {name for name, _ in steps}
    for name, said in steps:
        with closing(SqliteConversations(path, keep)) as file:
            for kept in (memory, file):
                if said is None:
                    kept.forget(name)
                else:
                    kept.extend(name, said)
            assert file.known() == memory.known()
    with closing(SqliteConversations(path, keep)) as file:
        for name in names:
            assert file.history(name) == memory.history(name)


@pytest.mark.parametrize("number", [2**63, -(10**30), 1e308])
def test_numbers_of_any_size_are_kept(keeper: Keeper, number: float) -> None:
    """JSON has no largest number."""
    kept = keeper()
    said = Said({"role": "tool", "content": [number]}, AT)
    kept.extend("a", [said])
    assert kept.history("a") == (said,)
