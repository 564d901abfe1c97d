"""A runtime that takes no time: it answers chats as llama.cpp does, with ``max_tokens`` chunks, one per ``chunk_ms``.

Run as ``python -m tests.bench.serving.upstream SOCKET [CHUNK_MS]``; it listens there, as the embedded runtime's
processes do, and on a port of loopback, whose address it prints. Ollama's ``/api/chat`` it answers as well.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys

import uvloop
from aiohttp import web

NUMBERS = itertools.count()
CHUNK_MS = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
"""The pause between chunks for requests that do not name one."""


def event(number: int, delta: dict[str, object], finish_reason: str | None = None) -> bytes:
    """One chunk as llama.cpp writes it."""
    data = {
        "choices": [{"finish_reason": finish_reason, "index": 0, "delta": delta}],
        "created": 1764000000,
        "id": f"chatcmpl-{number:032d}",
        "model": "level",
        "system_fingerprint": "b11549-0123456789",
        "object": "chat.completion.chunk",
    }
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def chat(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    number, chunks, pause_s = next(NUMBERS), asked["max_tokens"], asked.get("chunk_ms", CHUNK_MS) / 1000
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await response.write(event(number, {"role": "assistant", "content": None}))
    for position in range(chunks):
        if pause_s:
            await asyncio.sleep(began_s + position * pause_s - loop.time())
        await response.write(event(number, {"content": f" word{position}"}))
    last = json.loads(event(number, {}, "stop").removeprefix(b"data: "))
    await response.write(b"data: " + json.dumps(last).encode() + b"\n\n")
    if (asked.get("stream_options") or {}).get("include_usage"):
        usage = {"completion_tokens": chunks, "prompt_tokens": 10, "total_tokens": chunks + 10}
        await response.write(b"data: " + json.dumps({**last, "choices": [], "usage": usage}).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def ollama_chat(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    began_s, chunks = loop.time(), asked["options"]["num_predict"]
    for position in range(chunks):
        await asyncio.sleep(began_s + position * CHUNK_MS / 1000 - loop.time())
        message = {"role": "assistant", "content": f" word{position}"}
        line = {"model": "level", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": False}
        await response.write(json.dumps(line).encode() + b"\n")
    counts = {"prompt_eval_count": 10, "eval_count": chunks}
    await response.write(json.dumps({**line, "done": True, "done_reason": "stop", **counts}).encode() + b"\n")
    await response.write_eof()
    return response


async def models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "level"}]})


async def main(socket: str) -> None:
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat),
            web.post("/api/chat", ollama_chat),
            web.get("/v1/models", models),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await web.UnixSite(runner, socket).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
