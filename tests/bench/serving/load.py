"""Asks for streamed answers, so many at a time, and tells how they came.

Run as ``python -m tests.bench.serving.load URL KEY REQUESTS CONCURRENCY CHUNK_MS``; it prints a JSON object with the
seconds to the first word and to the end of each answer, the seconds of the whole, and how many were not whole.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp
import uvloop

CHUNKS = 50


async def main(url: str, key: str, requests: int, concurrency: int, chunk_ms: float) -> None:
    first_s: list[float] = []
    whole_s: list[float] = []
    broken = 0
    asked = {
        "model": "auto",
        "messages": [{"role": "user", "content": "Say fifty words."}],
        "stream": True,
        "max_tokens": CHUNKS,
        "chunk_ms": chunk_ms,
    }
    body = json.dumps(asked).encode()
    left = requests

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            nonlocal broken, left
            while left > 0:
                left -= 1
                began = time.perf_counter()
                first, got = 0.0, b""
                headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
                async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as answer:
                    async for block in answer.content.iter_any():
                        got += block
                        if not first and b" word0" in got:
                            first = time.perf_counter()
                ended = time.perf_counter()
                if got.count(b" word") != CHUNKS or not got.rstrip().endswith(b"[DONE]"):
                    broken += 1
                    continue
                first_s.append(first - began)
                whole_s.append(ended - began)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        took = time.perf_counter() - began
    print(json.dumps({"first_s": first_s, "whole_s": whole_s, "took_s": took, "broken": broken}))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
