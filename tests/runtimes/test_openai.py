"""Levels of a server with OpenAI's API, to which requests are sent only."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import HttpUrl

from scaler.errors import LevelUnavailable, NeverAsked, RequestRejected
from scaler.level_settings import OpenAILevel
from scaler.runtimes.openai import OpenAIModel, OpenAIRuntime
from scaler.runtimes.openai_chunks import EventReader
from scaler.runtimes.token_estimate import estimated_tokens
from tests.runtimes.answers import said
from tests.runtimes.openai_server import OpenAIServer

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Who are you?"}]}


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(big=" The big one speaks", other=" The other one speaks") as running:
        yield running


def level(server: OpenAIServer, **changes: Any) -> OpenAILevel:
    settings: dict[str, Any] = {"name": "far", "runtime": "openai", "model": "big", "url": HttpUrl(server.url)}
    return OpenAILevel(**{**settings, **changes})


async def load(settings: OpenAILevel) -> OpenAIModel:
    return await OpenAIRuntime().load(settings, lambda _: None)


@pytest.mark.parametrize("path", ["", "/v1", "/v1/"])
def test_a_level_answers_with_the_model_it_names(server: OpenAIServer, path: str) -> None:
    """However the address is written; of this machine it takes nothing."""

    async def body() -> None:
        settings = level(server, url=HttpUrl(server.url + path))
        model = await load(settings)
        assert said([chunk async for chunk in model.chat(ASKED)]) == " The big one speaks"
        completed = [chunk async for chunk in model.complete({"prompt": "x", "max_tokens": 2})]
        assert "".join(choice["text"] for chunk in completed for choice in chunk["choices"]) == " The big"
        assert await model.count_tokens(ASKED) >= 3
        assert await model.health()
        assert OpenAIRuntime().footprint(settings) == {}
        await model.unload()
        await model.unload()
        with pytest.raises(LevelUnavailable, match="it was unloaded"):
            [chunk async for chunk in model.chat(ASKED)]

    asyncio.run(body())


@pytest.mark.parametrize("content", [["x" * 900], [None, {"type": "text", "text": "x" * 900}], [5, "x" * 900]])
def test_whatever_a_message_holds_its_length_is_estimated(content: list[Any]) -> None:
    """Whether it can be answered is for the server to say."""
    assert 300 <= estimated_tokens({"messages": [{"role": "user", "content": content}]}) <= 320


def test_a_server_without_a_list_of_models_is_taken_at_its_word(server: OpenAIServer) -> None:
    """Whether the model is there shows with the first answer, and it is not the request that is blamed."""
    server.lists = False

    async def body() -> None:
        model = await load(level(server))
        assert said([chunk async for chunk in model.chat(ASKED)]) == " The big one speaks"
        await model.unload()
        model = await load(level(server, model="gone"))
        with pytest.raises(LevelUnavailable, match=r"far: gone of .*: the model refused to answer: .*does not exist"):
            [chunk async for chunk in model.chat(ASKED)]
        await model.unload()

    asyncio.run(body())


def test_what_scaler_adds_where_memory_is_short_is_not_sent(server: OpenAIServer) -> None:
    """A server that does not know it would refuse the request; what the person adds goes on as it is."""

    async def body() -> None:
        model = await load(level(server))
        [chunk async for chunk in model.chat({**ASKED, "chat_template_kwargs": {"enable_thinking": False}})]
        with pytest.raises(RequestRejected, match="chat_template_kwargs"):
            [chunk async for chunk in model.chat({**ASKED, "chat_template_kwargs": {"enable_thinking": True}})]
        await model.unload()

    asyncio.run(body())


def test_a_token_limit_is_called_what_the_server_wants_it_called(server: OpenAIServer) -> None:
    """OpenAI's newer models refuse the old name, of which the client knows nothing; that is asked once only."""

    async def body() -> None:
        server.renames_limit = True
        model = await load(level(server))
        for _ in range(2):
            assert said([chunk async for chunk in model.chat({**ASKED, "max_tokens": 2})]) == " The big"
        assert [request.get("max_completion_tokens") for request in server.requests] == [None, 2, 2]
        completed = [chunk async for chunk in model.complete({"prompt": "x", "max_tokens": 2})]
        assert "".join(choice["text"] for chunk in completed for choice in chunk["choices"]) == " The big"
        await model.unload()

    asyncio.run(body())


def test_an_answer_is_handed_over_only_to_a_server_that_is_said_to_go_on_with_it(server: OpenAIServer) -> None:
    """Another one would begin anew, and the text would be there twice."""
    begun = {"messages": [*ASKED["messages"], {"role": "assistant", "content": " The big"}]}

    async def body() -> None:
        model = await load(level(server))
        with pytest.raises(RequestRejected, match="set the level's continues to true if it knows"):
            [chunk async for chunk in model.chat(begun)]
        await model.unload()
        model = await load(level(server, continues=True))
        assert said([chunk async for chunk in model.chat(begun)]) == " one speaks"
        await model.unload()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("changes", "raw", "message"),
    [
        ({"model": "none"}, None, "far: none of a server .*: the server has no such model; it has big, other"),
        ({}, b"<html>no</html>", "does not speak the API of a server with OpenAI's API .*correct the level's url"),
        ({}, b'{"data": [{"id": "bi', "does not speak the API"),
        ({}, b'{"models": []}', r"does not speak the API .*\(/v1/models: data: Field required\)"),
        ({"key_env": "SCALER_TEST_NO_KEY"}, None, "far: the environment variable SCALER_TEST_NO_KEY is not set"),
    ],
)
def test_what_goes_wrong_is_one_message(
    server: OpenAIServer, changes: dict[str, Any], raw: bytes | None, message: str
) -> None:
    """It names the level, the server and its address, and says what to do."""
    server.raw = raw
    with pytest.raises(LevelUnavailable, match=message):
        asyncio.run(load(level(server, **changes)))


def test_a_connection_that_cannot_be_secure_is_one_message(server: OpenAIServer) -> None:
    """As with https written for http; in the system's words, without how the client would have done it."""
    with pytest.raises(
        LevelUnavailable, match=r"no secure connection could be made \(\[SSL.*\); correct the level's url"
    ) as raised:
        asyncio.run(load(level(server, url=HttpUrl(server.url.replace("http", "https")))))
    assert "ssl:" not in str(raised.value)


def test_a_key_is_read_from_the_environment_and_shows_in_no_message(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration file is no place for secrets."""
    server.key = "sesame"
    monkeypatch.setenv("SCALER_TEST_KEY", "sesame")

    async def body() -> None:
        model = await load(level(server, key_env="SCALER_TEST_KEY"))
        assert said([chunk async for chunk in model.chat(ASKED)]) == " The big one speaks"
        await model.unload()
        with pytest.raises(LevelUnavailable, match="answered 401: set key_env"):
            await load(level(server))
        monkeypatch.setenv("SCALER_TEST_KEY", "open-up")
        with pytest.raises(LevelUnavailable, match="the key in SCALER_TEST_KEY is not the right one") as raised:
            await load(level(server, key_env="SCALER_TEST_KEY"))
        assert "open-up" not in str(raised.value)

    asyncio.run(body())


def test_a_server_that_is_gone_is_noticed(server: OpenAIServer) -> None:
    """By those who wait for it, and before that by the answer that it broke off."""
    server.token_s = 0.01

    async def body() -> None:
        model = await load(level(server))
        chunks = model.chat({"messages": [{"role": "user", "content": "Count."}]})
        assert (await anext(chunks))["choices"]
        await asyncio.to_thread(server.stop)
        with pytest.raises(
            LevelUnavailable, match=r"the model ended in the middle of the answer.*nothing answers there"
        ):
            [chunk async for chunk in chunks]
        async with asyncio.timeout(30):
            assert "nothing answers there" in await model.died()
        assert not await model.health()
        await model.unload()
        with pytest.raises(
            LevelUnavailable,
            match=rf"at {server.url}: nothing answers there \({os.strerror(errno.ECONNREFUSED)}\); "
            "start it, or correct the level's url$",
        ):
            await load(level(server))

    asyncio.run(body())


def test_a_server_that_lost_the_model_is_noticed(server: OpenAIServer) -> None:
    """As when its owner started it anew with another one."""

    async def body() -> None:
        model = await load(level(server))
        del server.models["big"]
        async with asyncio.timeout(30):
            assert "does not have the model any more" in await model.died()
        await model.unload()

    asyncio.run(body())


@pytest.mark.parametrize("path", ["everything", "answers"])
def test_a_server_that_fails_every_answer_is_given_up(server: OpenAIServer, path: str) -> None:
    """A proxy whose server is gone says 502 to everything; one without quota still lists its models."""

    async def body() -> None:
        model = await load(level(server))
        server.fails[path] = 502 if path == "everything" else 429
        death = asyncio.create_task(model.died())
        for _ in range(3 if path == "answers" else 1):
            with pytest.raises(LevelUnavailable):
                [chunk async for chunk in model.chat(ASKED)]
        async with asyncio.timeout(60):
            assert str(server.fails[path]) in await death
        with pytest.raises(NeverAsked):
            [chunk async for chunk in model.chat(ASKED)]
        await model.unload()

    asyncio.run(body())


def test_a_few_failed_answers_are_forgotten_with_one_that_comes(server: OpenAIServer) -> None:
    """Two in a row, a whole one, and two more."""

    async def body() -> None:
        model = await load(level(server))
        for _ in range(2):
            server.fails["answers"] = 500
            for _ in range(2):
                with pytest.raises(LevelUnavailable):
                    [chunk async for chunk in model.chat(ASKED)]
            del server.fails["answers"]
            assert said([chunk async for chunk in model.chat(ASKED)]) == " The big one speaks"
        await model.unload()

    asyncio.run(body())


def test_a_key_that_no_header_can_hold_is_one_message(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when two lines were pasted into the variable."""
    monkeypatch.setenv("SCALER_TEST_KEY", "sesame\nopen")
    with pytest.raises(
        LevelUnavailable, match=r"SCALER_TEST_KEY holds what no API key can, .*; set it to the key"
    ) as raised:
        asyncio.run(load(level(server, key_env="SCALER_TEST_KEY")))
    assert "sesame" not in str(raised.value)


def test_what_a_server_says_of_a_wrong_key_is_not_passed_on(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may repeat the beginning of it; who has sent none is told to."""
    monkeypatch.setenv("SCALER_TEST_KEY", "open-up")

    async def body() -> None:
        for settings, told in (
            (level(server), "it wants an API key; set the level's key_env"),
            (level(server, key_env="SCALER_TEST_KEY"), "it does not take the API key"),
        ):
            server.key = None
            model = await load(settings)
            server.key = "sesame"
            with pytest.raises(LevelUnavailable, match=rf"refused to answer: {told} \(401\)$"):
                [chunk async for chunk in model.chat(ASKED)]
            await model.unload()

    asyncio.run(body())


def test_other_servers_words_are_read_as_llama_cpps() -> None:
    """vLLM calls thinking otherwise, and empty parts may be null."""
    chunks = [
        {"choices": [{"index": 0, "delta": {"reasoning": "Hm"}}], "error": None},
        {"choices": None, "usage": {"completion_tokens": 1}},
    ]
    block = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    thought, used = EventReader({}).feed(block)
    assert thought["choices"] == [{"index": 0, "delta": {"reasoning_content": "Hm"}}]
    assert used["choices"] == []


def event(choice: object, **besides: Any) -> bytes:
    return b"data: " + json.dumps({"choices": choice, **besides}, ensure_ascii=False).encode() + b"\n\n"


WORD, LAST = (
    event([{"index": 0, "delta": {"content": "h\u00e9 \U0001f600"}}]),
    event([{"delta": {}, "finish_reason": "stop"}]),
)
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [WORD, LAST, DONE],
        [bytes([one]) for one in WORD + LAST + DONE],
        [b": keep-alive\n\n", WORD, b":\n\nevent: message\nid: 7\n", LAST, DONE],
        [(WORD + LAST + DONE).replace(b"\n", b"\r\n")],
        [WORD, LAST],
        [WORD, LAST, b"data: [DONE]"],
        [WORD, LAST, b"data: {"],
        [
            event([{"index": None, "delta": {"content": "h\u00e9 \U0001f600", "tool_calls": None}}], usage=None),
            LAST,
            DONE,
        ],
        [WORD, LAST, event([], usage={"prompt_tokens": None}), event(None, usage="many"), DONE],
        [WORD, LAST, event([{"delta": None, "text": None, "finish_reason": None}])],
    ],
)
def test_an_answer_is_whole_however_the_server_writes_it(server: OpenAIServer, pieces: list[bytes]) -> None:
    """Cut in the middle of a letter, with lines that keep the connection awake, without [DONE] or figures: three such
    answers in a row would make the level dead if they counted as failed.
    """
    server.pieces = pieces

    async def body() -> None:
        model = await load(level(server))
        for _ in range(4):
            assert said([chunk async for chunk in model.chat(ASKED)]) == "h\u00e9 \U0001f600"
        await model.unload()

    asyncio.run(body())


def calling(name: str | None, arguments: str, **more: Any) -> bytes:
    """A piece of a tool call."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return event([{"index": 0, "delta": {"tool_calls": [{**more, "function": function}]}, "finish_reason": None}])


@pytest.mark.parametrize(
    "pieces",
    [
        [calling("a", '{"x"', index=0, id="1"), calling(None, ":1}", index=0), calling("b", "{}", index=1, id="2")],
        # Gemini's, and older ones of Ollama and mistral.rs.
        [calling("a", '{"x"', id="1"), calling(None, ":1}"), calling("b", "{}", id="2")],
        [calling("a", '{"x":1}', index=None), calling("b", "{}", index=None)],
        # Ollama's and Dynamo's.
        [calling("a", '{"x"', index=0, id="1"), calling(None, ":1}", index=0), calling("b", "{}", index=0, id="2")],
        # vLLM has made up an id for each piece.
        [calling("a", '{"x"', index=0, id="1"), calling(None, ":1}", index=0, id="3"), calling("b", "{}", index=1)],
        [calling("a", '{"x"', index=1, id="1"), calling("b", "{}", index=2, id="2"), calling(None, ":1}", index=1)],
    ],
)
def test_the_tool_calls_of_an_answer_are_told_apart_however_the_server_counts_them(pieces: list[bytes]) -> None:
    """Else their names and arguments would run together; who reads the stream goes by their numbers."""
    found: dict[int, list[str]] = {}
    for chunk in EventReader({}).feed(b"".join(pieces)):
        (call,) = chunk["choices"][0]["delta"]["tool_calls"]
        name, arguments = found.setdefault(call["index"], ["", ""])
        found[call["index"]] = [name + call["function"].get("name", ""), arguments + call["function"]["arguments"]]
    assert found == {0: ["a", '{"x":1}'], 1: ["b", "{}"]}


@pytest.mark.parametrize("number", [0, -1])
def test_an_answer_that_is_cut_is_never_whole(server: OpenAIServer, number: int) -> None:
    """However few are asked for."""
    server.pieces = [WORD]

    async def body() -> None:
        model = await load(level(server))
        with pytest.raises(LevelUnavailable, match="in the middle of the answer: the stream ended early"):
            [chunk async for chunk in model.chat({**ASKED, "n": number})]
        await model.unload()

    asyncio.run(body())


def test_of_several_answers_one_that_is_missing_is_told(server: OpenAIServer) -> None:
    """A server may make them one after the other, and break off between two."""
    server.pieces = [WORD, LAST]

    async def body() -> None:
        model = await load(level(server))
        with pytest.raises(LevelUnavailable, match="in the middle of the answer: the stream ended early"):
            [chunk async for chunk in model.chat({**ASKED, "n": 2})]
        await model.unload()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("pieces", "kind", "told"),
    [
        ([b"<html>hello</html>"], "text/html", "does not answer: it sends text/html in place of a stream; correct the"),
        ([b'{"choices": []}'], "application/json", "does not answer: it sends application/json in place of a stream"),
        ([], "text/event-stream", "the model does not answer: the stream ended early"),
        ([WORD], "text/event-stream", "ended in the middle of the answer: the stream ended early"),
        (
            [WORD, b'data: {"cho\n\n'],
            "text/event-stream",
            "ended in the middle of the answer: it sends what is no JSON",
        ),
        ([b"data: [1]\n\n"], "text/event-stream", r"it sends an event that is no object: \[1\]"),
        ([event(["x"])], "text/event-stream", "it sends a choice that is none: 'x'"),
        ([event({"a": 1})], "text/event-stream", "it sends choices that are no list: {'a': 1}"),
        ([event([{"delta": "x"}])], "text/event-stream", "it sends a choice that is none: {'delta': 'x'}"),
        ([event([{"delta": {"content": 5}}])], "text/event-stream", "it sends a choice that is none: .*5"),
        ([event([{"text": ["x"]}])], "text/event-stream", r"it sends a choice that is none: .*\['x'\]"),
        ([event([{"index": "0"}])], "text/event-stream", "it sends a choice that is none: .*'0'"),
        ([event([{"delta": {"tool_calls": ["x"]}}])], "text/event-stream", "it sends a choice that is none: .*'x'"),
        (
            [event([{"delta": {"tool_calls": [{"function": 1}]}}])],
            "text/event-stream",
            "it sends a choice that is none: .*1",
        ),
        (
            [event([{"delta": {"tool_calls": [{"function": {"arguments": {}}}]}}])],
            "text/event-stream",
            "it sends a choice that is none: .*{}",
        ),
        ([event([{"delta": {"tool_calls": [{"index": -1}]}}])], "text/event-stream", "it sends a choice that is none"),
        (
            [event([{"delta": {}, "logprobs": {"content": 5}}])],
            "text/event-stream",
            "it sends a choice that is none: .*5",
        ),
        (
            [WORD, b'data: {"error": "out of memory"}\n\n'],
            "text/event-stream",
            r"refused to answer: out of memory \(500",
        ),
    ],
)
def test_what_is_no_answer_is_one_message(server: OpenAIServer, pieces: list[bytes], kind: str, told: str) -> None:
    """It names level, server and address, is one line, and another level goes on."""
    server.pieces, server.kind = pieces, kind

    async def body() -> None:
        model = await load(level(server))
        with pytest.raises(LevelUnavailable, match=rf"^far: big of a server with OpenAI's API at http.*{told}"):
            [chunk async for chunk in model.chat(ASKED)]
        await model.unload()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("status", "content", "kind", "told"),
    [
        (400, b'{"object": "error", "message": "too long", "code": 400}', RequestRejected, "^too long$"),
        (422, b'{"detail": [{"msg": "field required"}]}', RequestRejected, "field required"),
        (413, b"Payload Too\nLarge", RequestRejected, "^Payload Too Large$"),
        (404, b'{"detail": "Not Found"}', LevelUnavailable, r"refused to answer: Not Found \(404\)$"),
        (429, b'{"error": {"message": "slow down"}}', LevelUnavailable, r"refused to answer: slow down \(429\)$"),
        (
            500,
            b'{"error": "{\\"error\\": {\\"code\\": 500, \\"message\\": \\"out of memory\\"}}"}',
            LevelUnavailable,
            r"refused to answer: out of memory \(500\)$",
        ),
        (503, b"", LevelUnavailable, r"refused to answer: HTTP 503 \(503\)$"),
        (204, b"", LevelUnavailable, "does not answer: it says 204 and nothing more$"),
        (200, b'data: {"object": "error", "message": "too long", "code": 400}\n\n', RequestRejected, "^too long$"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(
    server: OpenAIServer, status: int, content: bytes, kind: type[Exception], told: str
) -> None:
    """Whichever of the usual forms they have."""
    server.pieces, server.status = [content] if content else [], status

    async def body() -> None:
        model = await load(level(server))
        with pytest.raises(kind, match=told):
            [chunk async for chunk in model.chat(ASKED)]
        await model.unload()

    asyncio.run(body())


def test_nobody_is_followed_elsewhere_with_a_conversation(server: OpenAIServer) -> None:
    """It is for the server that the person has named."""

    async def body() -> None:
        with OpenAIServer(big=" Mine now") as other:
            server.elsewhere = f"{other.url}/v1/chat/completions"
            model = await load(level(server))
            with pytest.raises(
                LevelUnavailable, match=f"sends whoever asks on to {other.url}.*; correct the level's url"
            ):
                [chunk async for chunk in model.chat(ASKED)]
            await model.unload()
            assert not other.requests

    asyncio.run(body())
