"""What a server may send, or fail to send: said by a server of the test's own, where llama.cpp cannot be made to."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.errors import LevelUnavailable, RequestRejected
from scaler.level_settings import EmbeddedLevel
from scaler.runtimes import llama_cpp
from scaler.runtimes.embedded import EmbeddedModel
from scaler.runtimes.embedded_process import EmbeddedProcess

LEVEL = EmbeddedLevel(name="small", model=Path("/models/x.gguf"))
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TEXT = "čeština 你好 🦙"
EVENTS = (
    ": a comment that keeps the connection awake\n\n"
    + f"data: {json.dumps({'text': TEXT}, ensure_ascii=False)}\n\n"
    + 'data:{"text": "without a space"}\r\n\r\n'
    + "data: [DONE]\n\n"
).encode()


class Alive:
    """A process that goes on."""

    async def died(self) -> str:
        return str(await asyncio.get_running_loop().create_future())


async def _ended(_: EmbeddedProcess) -> None:
    """There is no process to end."""


async def answer_to(reply: bytes) -> list[dict[str, Any]]:
    """The chunks of a chat with a server that sends ``reply`` and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-len"))
        await reader.readexactly(size)
        writer.write(reply)
        await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="s") as folder:
        async with await asyncio.start_unix_server(serve, f"{folder}/model.sock"):
            model = EmbeddedModel(LEVEL, cast("EmbeddedProcess", Alive()), f"unix://{folder}/model.sock", _ended)
            try:
                return [chunk async for chunk in model.chat({"messages": []})]
            finally:
                await model.unload()


def chunked(pieces: Sequence[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    return STREAM + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + end


@settings(max_examples=40)
@given(st.lists(st.integers(0, len(EVENTS)), max_size=30))
def test_events_are_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    """Also within a character, a line or the marker of the end."""
    places = [0, *sorted(cuts), len(EVENTS)]
    pieces = [EVENTS[begin:end] for begin, end in pairwise(places)]
    assert asyncio.run(answer_to(chunked(pieces))) == [{"text": TEXT}, {"text": "without a space"}]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (chunked([b'data: {"a": 1}\n\n']), "ended in the middle of the answer: the stream ended early"),
        (chunked([b'data: {"a": 1}\n\n'], end=b""), "ended in the middle of the answer: "),
        (chunked([b'data: {"a": \n\n']), "does not answer: it sends what is no JSON"),
        (b"", "does not answer: "),
        (b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n", "refused to answer: HTTP 503"),
        (chunked([b'data: {"error": {"code": 500, "message": "no room"}}\n\n']), "refused to answer: no room"),
    ],
)
def test_a_broken_answer_is_the_models_fault(monkeypatch: pytest.MonkeyPatch, reply: bytes, words: str) -> None:
    """An answer that merely stops must not pass for a whole one."""
    monkeypatch.setattr(llama_cpp, "GONE_S", 0.05)
    with pytest.raises(LevelUnavailable, match=f"^small: /models/x.gguf: the model {words}"):
        asyncio.run(answer_to(reply))


@pytest.mark.parametrize(
    "reply",
    [
        b'HTTP/1.1 400 X\r\nContent-Length: 42\r\n\r\n{"error": {"code": 400, "message": "bad"}}',
        chunked([b'data: {"error": {"code": 400, "message": "bad"}}\n\n']),
    ],
)
def test_a_fault_of_the_request_keeps_its_status_and_body(reply: bytes) -> None:
    """Before the answer began or after: who asked can read what was wrong."""
    with pytest.raises(RequestRejected, match=r"^bad$") as caught:
        asyncio.run(answer_to(reply))
    assert caught.value.status == 400
    assert caught.value.body == {"error": {"code": 400, "message": "bad"}}
