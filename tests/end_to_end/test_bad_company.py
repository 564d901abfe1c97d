"""What the endpoint's neighbours may do: a client that does not read, a runtime that breaks off or says nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from http.client import HTTPConnection
from typing import Any, cast
from unittest import mock
from urllib.parse import urlsplit

import openai
import pytest

from scaler.descriptions import Description
from scaler.events import AnswerHandedOver
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB, RAM, Saving
from scaler.runtimes import llama_cpp
from scaler.runtimes.embedded import EmbeddedModel
from scaler.runtimes.embedded_process import EmbeddedProcess
from tests.end_to_end.test_endpoint import MESSAGES, client
from tests.end_to_end.test_ladder import COUNTED, settles_at
from tests.runtimes.test_embedded_dialect import Alive, chunked

Running = Callable[..., Any]
COUNTING = {
    "messages": [{"role": "user", "content": "Count to a thousand."}],
    "stream": True,
    # Every chunk is some kilobytes long, so that the buffers between us are full before the count is over.
    "logprobs": True,
    "top_logprobs": 100,
}


def test_a_client_that_does_not_read_holds_up_no_switch_and_gets_its_answer(serving: Running) -> None:
    """Its model gives way within the drain limits; what is missing is made by the next one when it reads on."""
    policy = {"max_level": "medium", "drain_seconds": 0.5}
    with serving(policy=policy) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        there = urlsplit(url)
        assert there.hostname is not None
        slow = HTTPConnection(there.hostname, there.port)
        slow.sock = socket.socket()
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sock.connect((there.hostname, there.port))
        slow.request("POST", "/v1/chat/completions", json.dumps(COUNTING), {"Content-Type": "application/json"})
        watch.until(
            lambda: manager.answering == 1 and next(iter(manager._switcher._current.leases)).tokens > 0, "words"
        )
        # Until the buffers between us are full and the model is made to wait.
        (lease,) = manager._switcher._current.leases
        before = 0
        while before < lease.tokens:
            before = lease.tokens
            watch.readings(10)
        manager.scaler.pin("small")
        settles_at(manager, watch, "small")
        # Others are answered meanwhile.
        assert client(url).chat.completions.create(model="auto", messages=MESSAGES).model == "small"
        lines = slow.getresponse().read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert text == COUNTED
        assert [event.level for event in watch.told() if isinstance(event, AnswerHandedOver)] == ["medium"]
        slow.close()


class Breaking:
    """A runtime whose server sends the given replies, one a request, and hangs up; the last one for ever."""

    def __init__(self, *replies: bytes) -> None:
        self._replies = list(replies)
        self.asked: list[dict[str, Any]] = []

    def require(self) -> None:
        """Nothing is needed."""

    def footprint(self, _: EmbeddedLevel) -> Mapping[str, int]:
        return {RAM: GIB // 10}

    def describe(self, settings: EmbeddedLevel) -> Description:
        return Description(settings.model, settings.context_tokens)

    def savings(self, _: EmbeddedLevel) -> Sequence[Saving]:
        return ()

    def apart(self, *_: EmbeddedLevel) -> bool:
        return True

    def pids(self) -> Collection[int]:
        return ()

    async def release(self, _: EmbeddedLevel) -> None:
        """Nothing is held."""

    async def close(self) -> None:
        """Nothing goes on in the background."""

    async def load(self, settings: EmbeddedLevel, _: Callable[[float], None]) -> EmbeddedModel:
        folder = tempfile.TemporaryDirectory(prefix="s")
        server = await asyncio.start_unix_server(self._serve, f"{folder.name}/model.sock")

        async def end(_: EmbeddedProcess) -> None:
            server.close()
            folder.cleanup()

        return EmbeddedModel(settings, cast("EmbeddedProcess", Alive()), f"unix://{folder.name}/model.sock", end)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-len"))
        asked = json.loads(await reader.readexactly(size))
        if head.startswith(b"POST /v1/chat"):
            self.asked.append(asked)
            reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        else:
            # How long the prompt is.
            body = json.dumps({"prompt": "", "tokens": []}).encode()
            reply = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
        writer.write(reply)
        await writer.drain()
        writer.close()


def words(*said: str, end: str | None = None) -> list[bytes]:
    """Chunks as llama.cpp sends them."""
    each: list[tuple[dict[str, str], str | None]] = [({"content": word}, None) for word in said]
    choices = [
        {"index": 0, "delta": delta, "finish_reason": reason}
        for delta, reason in [*each, *([({}, end)] if end is not None else [])]
    ]
    return [b"data: " + json.dumps({"id": "a", "choices": [choice]}).encode() + b"\n\n" for choice in choices]


HALF = chunked([*words("one", " two"), words(" three")[0][:40]], end=b"")
REST = chunked([*words(" three", " four", end="stop"), b"data: [DONE]\n\n"])
NOTHING = chunked([b"data: [DONE]\n\n"])


@pytest.fixture
def quickly_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the end of a process that does not end."""
    monkeypatch.setattr(llama_cpp, "GONE_S", 0.05)


@pytest.mark.usefixtures("quickly_broken")
@pytest.mark.parametrize("streamed", [True, False])
def test_half_a_chunk_is_never_passed_on_and_the_answer_goes_on(serving: Running, streamed: bool) -> None:
    """What came whole counts, and what is missing is asked for anew."""
    runtime = Breaking(HALF, REST)
    with mock.patch("scaler.assembly.runtime_called", return_value=runtime), serving(levels=("small",)) as (url, _, _):
        assert answer(client(url), streamed) == "one two three four"
    assert [asked["messages"][-1]["content"] for asked in runtime.asked] == ["Who are you?", "one two"]


@pytest.mark.usefixtures("quickly_broken")
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("reply", "why"),
    [(HALF, "the model ended in the middle of the answer"), (NOTHING, "the model ended its answer without a word")],
)
def test_a_runtime_that_always_breaks_off_is_a_clean_error(
    serving: Running, streamed: bool, reply: bytes, why: str
) -> None:
    """In OpenAI's form, and the server lives."""
    runtime = Breaking(reply)
    with (
        mock.patch("scaler.assembly.runtime_called", return_value=runtime),
        serving(levels=("small",)) as (url, manager, watch),
    ):
        talk = client(url)
        for _ in range(2):
            with pytest.raises(openai.APIError, match=why):
                answer(talk, streamed)
        watch.until(lambda: not manager.answering and not manager.waiting, "nothing to be left over")


def answer(talk: openai.OpenAI, streamed: bool) -> str:
    """What the client gets."""
    if not streamed:
        return talk.chat.completions.create(model="auto", messages=MESSAGES).choices[0].message.content or ""
    stream = talk.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
