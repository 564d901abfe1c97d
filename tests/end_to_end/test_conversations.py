"""Conversations on a real ladder: stored once and whole, with the levels that made each answer, over restarts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaler.answering import Chunk
from scaler.conversations.protocol import Said
from scaler.errors import ConversationError, LevelUnavailable
from scaler.events import AnswerHandedOver, TurnNotRemembered
from scaler.journal import read
from scaler.manager import ModelManager
from scaler.notices import Notice
from tests.end_to_end.conftest import MIB, Machine
from tests.end_to_end.test_ladder import COUNTED, Running, settles_at
from tests.runtimes.openai_server import OpenAIServer

COUNT = "Count to a thousand."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the conversations are kept."""
    return tmp_path / "conversations.sqlite"


def told(history: Sequence[Said]) -> list[tuple[Any, Any, tuple[str, ...]]]:
    """A conversation without its times."""
    return [(said.message["role"], said.message["content"], said.levels) for said in history]


def test_an_answer_that_was_handed_over_is_stored_once_and_whole_and_known_after_a_restart(
    running: Running, machine: Machine, path: Path
) -> None:
    """Its level had to go in the middle; who starts anew on the same file goes on with all of it."""
    kept = {"path": str(path)}
    began = datetime.now(UTC)
    drain, two = {"drain_tokens": 40, "drain_seconds": 20.0}, ("small", "medium")
    with running(levels=two, policy=drain, conversations=kept) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        text = ""

        async def talk() -> None:
            nonlocal text
            async for piece in manager.stream_response(COUNT, conversation_id="ada", system="Be brief.", temperature=0):
                text += piece
                if len(text) > 20:
                    machine.other_bytes = 3150 * MIB

        asyncio.run(talk())
        assert text == COUNTED
        history = manager.conversations.history("ada")
    expected = [("system", "Be brief.", ()), ("user", COUNT, ()), ("assistant", COUNTED, ("medium", "small"))]
    assert told(history) == expected
    assert began <= history[0].at == history[1].at <= history[2].at <= datetime.now(UTC)
    with running(levels=two, conversations=kept) as (manager, _):
        assert manager.conversations.history("ada") == history
        answer = manager.generate_response_sync("Who are you?", conversation_id="ada")
        assert told(manager.conversations.history("ada")) == [
            *expected,
            ("user", "Who are you?", ()),
            ("assistant", answer.text, answer.levels),
        ]
        assert manager.conversations.known() == ("ada",)


def test_an_answer_whose_model_was_killed_is_stored_once_and_whole(
    running: Running, machine: Machine, path: Path
) -> None:
    """kill -9 in the middle of it; the level that came back finished it."""
    machine.other_bytes = 3000 * MIB
    with running(conversations={"path": str(path)}) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        pids = list(manager._switcher.pids())
        text = ""

        async def talk() -> None:
            nonlocal text
            async for piece in manager.stream_response(COUNT, conversation_id="ada", temperature=0):
                text += piece
                if len(text) > 100 and pids:
                    os.kill(pids.pop(), signal.SIGKILL)

        asyncio.run(talk())
        assert any(isinstance(event, AnswerHandedOver) for event in watch.told())
        assert told(manager.conversations.history("ada")) == [("user", COUNT, ()), ("assistant", COUNTED, ("small",))]


def test_half_a_tool_call_is_not_remembered(running: Running) -> None:
    """It reached the limit: a runtime would refuse it, and so every later turn of the conversation."""
    look = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at'}}
    pieces = [({"content": "I look."}, None), ({"tool_calls": [call]}, None), ({}, "length")]
    with OpenAIServer(big="") as server:
        server.pieces = [
            *(
                b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": end}]}).encode()
                for delta, end in pieces
            ),
            b"data: [DONE]\n\n",
        ]
        with running(ladder=[{"name": "far", "runtime": "openai", "url": server.url, "model": "big"}]) as (manager, _):
            answer = manager.generate_response_sync("Where?", conversation_id="ada", tools=[look])
            assert (answer.text, answer.finish_reason, answer.tokens) == ("I look.", "length", 2)
            assert [said.message for said in manager.conversations.history("ada")] == [
                {"role": "user", "content": "Where?"},
                {"role": "assistant", "content": "I look."},
            ]


def test_a_file_that_cannot_be_used_is_told_before_anything_is_started(
    configure: Callable[..., Path], machine: Machine, path: Path
) -> None:
    """One error, no thread, no process, and nothing of the file is lost."""
    path.write_text("Dear Ada, " * 1000)
    threads, children = set(threading.enumerate()), set(psutil.Process().children(recursive=True))
    with pytest.raises(ConversationError, match=r"conversations\.sqlite: cannot be opened \(file is not a database\)"):
        ModelManager(configure(conversations={"path": str(path)}), sensors=machine.sensors)
    assert set(threading.enumerate()) <= threads
    # One that another test left may end meanwhile.
    assert set(psutil.Process().children(recursive=True)) <= children
    assert path.read_text() == "Dear Ada, " * 1000


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_cannot_be_stored_is_given_and_what_is_lost_is_told(
    running: Running, path: Path, tmp_path: Path, streamed: bool
) -> None:
    """The person waited for it; that it will not be remembered they learn as well."""
    notices: list[Notice] = []
    with running(conversations={"path": str(path)}, policy={"max_level": "small"}) as (manager, watch):
        manager.on_notice(notices.append)
        manager.generate_response_sync("My name is Ada.", conversation_id="ada")
        before = manager.conversations.history("ada")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            if streamed:
                text = asyncio.run(joined(manager.stream_response("Who are you?", conversation_id="ada")))
            else:
                answer = manager.generate_response_sync("Who are you?", conversation_id="ada")
                text = answer.text
                assert isinstance(answer.not_remembered, ConversationError)
                assert "database is locked" in str(answer.not_remembered)
        assert "small" in text
        assert manager.conversations.history("ada") == before
        watch.until(
            lambda: bool(notices) and any(isinstance(event, TurnNotRemembered) for event in watch.told()), "a notice"
        )
        (event,) = [event for event in watch.told() if isinstance(event, TurnNotRemembered)]
        assert (event.conversation_id, event.level) == ("ada", "small")
        (notice,) = notices
        assert notice.kind == "failure"
        assert "will not be remembered" in notice.text
        assert str(path) in notice.text
        answer = manager.generate_response_sync("Who are you?", conversation_id="ada")
        assert answer.not_remembered is None
        assert len(manager.conversations.history("ada")) == len(before) + 2
    assert "not_remembered" in [record["event"] for record in read(tmp_path / "journal.jsonl")]


async def joined(pieces: AsyncIterator[str]) -> str:
    """All that was said."""
    return "".join([piece async for piece in pieces])


def test_who_leaves_a_stream_early_leaves_the_conversation_as_it_was(running: Running, path: Path) -> None:
    """They were not answered; the question can be put again."""
    with running(levels=("small",), conversations={"path": str(path)}) as (manager, watch):

        async def leave() -> None:
            async with asyncio.timeout(60):
                stream = manager.stream_response(COUNT, conversation_id="ada", temperature=0)
                await anext(stream)
                await stream.aclose()

        asyncio.run(leave())
        watch.until(lambda: manager.answering == 0, "the answer to end")
        assert manager.conversations.history("ada") == ()
        asyncio.run(joined(manager.stream_response(COUNT, conversation_id="ada", temperature=0)))
        assert told(manager.conversations.history("ada"))[1][:2] == ("assistant", COUNTED)


def test_turns_of_many_conversations_at_once_are_all_stored(running: Running, path: Path) -> None:
    """Each in its own conversation, and the turns of one after each other."""
    with running(conversations={"path": str(path), "keep": 8}) as (manager, _):

        async def ask() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(24):
                    group.create_task(manager.generate_response("Who are you?", conversation_id=f"{number % 8}"))

        asyncio.run(ask())
        for number in range(8):
            assert [role for role, *_ in told(manager.conversations.history(f"{number}"))] == ["user", "assistant"] * 3
        assert len(manager.conversations.known()) == 8


# ------------------------------------------------------------------------------------- what the next request has

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Oslo"}'}}


def chunk(level: str, reason: str | None = None, **delta: Any) -> Chunk:
    """A piece of an answer."""
    return Chunk(level, {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


@pytest.fixture
def scripted(running: Running, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A manager whose levels say what the test has them say: random weights call no tools."""

    def ask(chunks: Sequence[Chunk], *messages: Any, **options: Any) -> tuple[Any, list[Any], list[Any]]:
        asked: list[Any] = []

        async def answer(request: Mapping[str, Any], *, streamed: bool = True) -> AsyncIterator[list[Chunk]]:
            asked.append(request["messages"])
            for one in chunks:
                yield [one]

        with running() as (manager, _):
            monkeypatch.setattr(manager, "answer", answer)
            for message in messages:
                given = manager.generate_response_sync(message, conversation_id="ada", **options)
            return given, asked, told(manager.conversations.history("ada"))

    return ask


def test_the_next_request_has_plain_messages_only(scripted: Callable[..., Any]) -> None:
    """Levels and times are ours; a runtime would refuse or ignore them."""
    _, asked, _ = scripted([chunk("large", content="yes"), chunk("small", "stop")], "a", "b")
    assert asked[1] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "b"},
    ]


def test_tool_calls_are_kept_and_given_and_their_results_can_follow(scripted: Callable[..., Any]) -> None:
    """The next request must have the call in it, as OpenAI's clients send it."""
    result = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    said = [chunk("small", role="assistant"), chunk("small", tool_calls=[{"index": 0, **CALL}])]
    answer, asked, history = scripted([*said, chunk("small", "tool_calls")], "Weather?", [result])
    assert answer.tool_calls == (CALL,)
    assert (answer.text, answer.finish_reason, answer.levels) == ("", "tool_calls", ("small",))
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert asked[1] == [{"role": "user", "content": "Weather?"}, called, result]
    assert [role for role, *_ in history] == ["user", "assistant", "tool", "assistant"]


def test_thinking_is_not_sent_back(scripted: Callable[..., Any]) -> None:
    """It is not part of the answer, and takes room in the context."""
    said = [chunk("large", reasoning_content="hm"), chunk("small", content="42"), chunk("small", "stop")]
    answer, asked, history = scripted(said, "a", "b")
    assert asked[1][1] == {"role": "assistant", "content": "42"}
    assert answer.levels == ("large", "small")
    assert history[1] == ("assistant", "42", ("large", "small"))


@pytest.mark.parametrize(
    ("said", "levels"),
    [
        ([chunk("a", content="1"), chunk("b", content="2"), chunk("a", content="3")], ("a", "b", "a")),
        ([chunk("a", role="assistant"), chunk("b", content="1"), chunk("b", "stop")], ("b",)),
        ([chunk("a", content="1"), chunk("b", "stop")], ("a",)),
        ([chunk("a", role="assistant"), chunk("a", "stop")], ("a",)),
    ],
    ids=["back again", "the first said nothing", "the last said nothing", "nobody said anything"],
)
def test_the_levels_of_an_answer_are_those_that_said_something_of_it(
    scripted: Callable[..., Any], said: Sequence[Chunk], levels: tuple[str, ...]
) -> None:
    """In order; of an empty answer, the one that gave it."""
    answer, _, history = scripted(said, "?")
    assert answer.levels == history[1][2] == levels
    assert answer.level == levels[-1]


def test_a_refused_turn_leaves_the_conversation_as_it_was(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it failed in the middle."""
    with running() as (manager, _):

        async def answer(request: Mapping[str, Any], *, streamed: bool = True) -> AsyncIterator[list[Chunk]]:
            yield [chunk("small", content="half")]
            raise LevelUnavailable("small: killed")

        monkeypatch.setattr(manager, "answer", answer)
        with pytest.raises(LevelUnavailable):
            manager.generate_response_sync("a", conversation_id="ada")
        assert manager.conversations.history("ada") == ()
