"""What is asked of a model's server, and its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import TypeAdapter

from scaler.errors import LevelUnavailable
from scaler.runtimes.model_server import ModelServer
from scaler.runtimes.openai_chunks import EventReader


@pytest.mark.parametrize("status", [200, 500])
def test_what_is_being_read_when_the_model_is_unloaded_is_broken_off(status: int) -> None:
    """Answers, refusals and what is asked beside them: nobody waits for the rest of what a server begins to say."""

    async def body() -> None:
        begun, asked, ended = asyncio.Event(), 0, asyncio.Event()

        async def begins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 100\r\n\r\n{" % status)
            await writer.drain()
            asked += 1
            if asked == 2:
                begun.set()
            await ended.wait()
            writer.close()

        async def nothing() -> None:
            return None

        async with await asyncio.start_server(begins, "127.0.0.1", 0) as listening:
            address = "http://{}:{}".format(*listening.sockets[0].getsockname())
            server = ModelServer("small", address, answers=1, calls=1, why_gone=nothing)

            async def answer() -> list[dict[str, Any]]:
                return [chunk async for chunk in server.stream("/", {}, EventReader({}))]

            waiting = [
                asyncio.create_task(answer()),
                asyncio.create_task(server.post("/", {}, TypeAdapter(dict[str, Any]))),
            ]
            await begun.wait()
            # What was sent has to be read before it can be waited for.
            async with asyncio.timeout(20):
                while len(server._answers) < len(waiting):
                    await asyncio.sleep(0.01)
            await server.close()
            for one in waiting:
                with pytest.raises(LevelUnavailable, match="does not answer: it was unloaded"):
                    await asyncio.wait_for(one, 20)
            ended.set()

    asyncio.run(body())
