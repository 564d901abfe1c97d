"""Those who ask: have every answer count, over HTTP, and judge each number; and those who do not behave.

What is lost or said twice at a hand-over is a number that is missing or comes again.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from scaler.demo.models import NUMBERS

STALL_S = 120.0
"""Nothing for so long is a hang: twice a wait for a level, twice a model that hangs, and one's turn at two slots."""
WHOLE = [*NUMBERS, "."]
FIGURES = re.compile(r"[\d.]+")


class BrokenOff(Exception):
    """The connection ended before the answer did, without a word why."""


class Refused(Exception):
    """An error in the documented form."""


class Tally:
    """What became of every request."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.handed_over = 0
        """Answers that more than one level made."""
        self.wrong: list[str] = []
        """Text lost or said twice, connections broken off, errors in no documented form."""
        self.hangs: list[str] = []
        self.longest_s = 0.0

    @property
    def requests(self) -> int:
        """How many were judged, those whose client left among them."""
        return self.outcomes.total()


class Clients:
    """Asks one question after the other in each of several tasks until it is told to stop."""

    def __init__(self, url: str, tally: Tally, chance: random.Random, starved: Callable[[float], bool]) -> None:
        """``starved``: whether the daemon has lacked descriptors since a time; only then may it hang up unasked."""
        self._url, self._tally, self._chance, self._starved = url, tally, chance, starved
        there = urlsplit(url)
        self._host, self._port = str(there.hostname), int(there.port or 0)
        self._tasks: list[asyncio.Task[None]] = []
        self._asking = False

    def start(self, behaved: int, others: bool) -> None:
        """Have ``behaved`` of them ask, half of them for a stream of each dialect; ``others`` adds those who do not."""
        self._asking = True
        kinds: list[Callable[[], Any]] = [self._chat, self._chat, self._ollama, self._whole]
        work = [kinds[number % len(kinds)] for number in range(behaved)]
        if others:
            work += [self._vanish, self._do_not_read, self._ask_half]
        self._tasks = [asyncio.create_task(self._again(one)) for one in work]

    async def stop(self) -> None:
        """Have every one end its present request."""
        self._asking = False
        await asyncio.gather(*self._tasks)

    async def _again(self, ask: Callable[[], Any]) -> None:
        while self._asking:
            began = time.monotonic()
            try:
                outcome = await ask()
            except Refused as error:
                outcome = "error"
                self._tally.errors[FIGURES.sub("#", str(error))[:160]] += 1
            except TimeoutError:
                outcome = "hang"
                self._tally.hangs.append(f"{ask.__name__}: nothing for {STALL_S:.0f} s")
            except (aiohttp.ClientError, OSError, BrokenOff, asyncio.IncompleteReadError) as error:
                outcome = "refused for want of descriptors"
                if not self._starved(began):
                    outcome = "broken off"
                    self._tally.wrong.append(f"{ask.__name__}: {type(error).__name__}: {error}")
                await asyncio.sleep(0.5)
            except ValueError as error:
                outcome = "wrong"
                self._tally.wrong.append(f"{ask.__name__}: {error}")
            self._tally.outcomes[outcome] += 1
            self._tally.longest_s = max(self._tally.longest_s, time.monotonic() - began)
            if outcome == "error":
                await asyncio.sleep(0.5)

    # ---------------------------------------------------------------- those who behave

    def _tokens(self) -> int | None:
        return None if self._chance.random() < 0.05 else self._chance.randint(5, 150)

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
        return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True))

    async def _chat(self) -> str:
        tokens = self._tokens()
        async with (
            self._session() as session,
            session.post(f"{self._url}/v1/chat/completions", json=asked(tokens)) as r,
        ):
            await _check(r)
            said = Said()
            async for line in r.content:
                said.event(line)
        return self._judge(said, tokens)

    async def _ollama(self) -> str:
        tokens = self._tokens()
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": "Count to a thousand."}],
            **({} if tokens is None else {"options": {"num_predict": tokens}}),
        }
        async with self._session() as session, session.post(f"{self._url}/api/chat", json=body) as r:
            await _check(r)
            said = Said()
            async for line in r.content:
                said.line(line)
        return self._judge(said, tokens)

    async def _whole(self) -> str:
        tokens = self._tokens()
        body = {**asked(tokens), "stream": False}
        async with self._session() as session, session.post(f"{self._url}/v1/chat/completions", json=body) as r:
            await _check(r)
            choice = (await r.json())["choices"][0]
        said = Said()
        said.text, said.reason, said.ended = choice["message"]["content"] or "", choice["finish_reason"], True
        return self._judge(said, tokens)

    def _judge(self, said: Said, tokens: int | None) -> str:
        outcome = said.outcome(tokens)
        self._tally.handed_over += len(said.levels) > 1
        return outcome

    # ---------------------------------------------------------------- those who do not

    async def _vanish(self) -> str:
        """Leaves in the middle of an answer, without a word."""
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        until = self._chance.randint(0, 40)
        async with self._session() as session, session.post(f"{self._url}/v1/chat/completions", json=asked(None)) as r:
            await _check(r)
            async for _ in r.content:
                until -= 1
                if until < 0:
                    break
            if r.connection is not None and r.connection.transport is not None:
                r.connection.transport.abort()
        return "left"

    async def _do_not_read(self) -> str:
        """Reads nothing of an answer for some seconds, then all of it."""
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        reader, writer = await self._connect(1024)
        tokens = self._chance.randint(50, 150)
        body = json.dumps(
            # Every chunk is some kilobytes long, so that what lies between us is full before the count is over.
            {**asked(tokens), "logprobs": True, "top_logprobs": 50}
        ).encode()
        try:
            # The older protocol has no chunks to be put together: the body goes on until the end of the connection.
            writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await asyncio.sleep(self._chance.uniform(1.0, 10.0))
            return await self._read_all(reader, tokens)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _read_all(self, reader: asyncio.StreamReader, tokens: int) -> str:
        pieces = []
        while True:
            async with asyncio.timeout(STALL_S):
                piece = await reader.read(65536)
            if not piece:
                break
            pieces.append(piece)
        head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
        if not head:
            raise BrokenOff("not a byte of an answer")
        status = int(head.split()[1])
        if status != 200:
            raise refusal(status, body)
        said = Said()
        for line in body.split(b"\n"):
            said.event(line)
        return self._judge(said, tokens)

    async def _ask_half(self) -> str:
        """Sends a part of a request, and leaves."""
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        _, writer = await self._connect(65536)
        body = json.dumps(asked(5)).encode()
        request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request += b"Content-Length: %d\r\n\r\n" % len(body) + body
        try:
            writer.write(request[: self._chance.randrange(len(request))])
            await asyncio.sleep(self._chance.uniform(0.0, 5.0))
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
        return "left"

    async def _connect(self, buffer_bytes: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket()
        connection.setblocking(False)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            async with asyncio.timeout(STALL_S):
                await asyncio.get_running_loop().sock_connect(connection, (self._host, self._port))
            return await asyncio.open_connection(sock=connection, limit=buffer_bytes)
        except BaseException:
            connection.close()
            raise


class Said:
    """What has come of one answer."""

    def __init__(self) -> None:
        self.text = ""
        self.reason: str | None = None
        self.levels: list[str] = []
        self.ended = False
        self.error: str | None = None

    def event(self, line: bytes) -> None:
        """Take a line of OpenAI's stream."""
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.ended = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self._broken(chunk["error"]["message"])
            return
        for choice in chunk["choices"]:
            self._add(choice["delta"].get("content") or "", chunk["model"])
            self.reason = choice["finish_reason"] or self.reason

    def line(self, line: bytes) -> None:
        """Take a line of Ollama's."""
        chunk = json.loads(line)
        if "error" in chunk:
            self._broken(chunk["error"])
            return
        self._add(chunk["message"]["content"], chunk["model"])
        if chunk["done"]:
            self.ended, self.reason = True, chunk["done_reason"]

    def _add(self, text: str, level: str) -> None:
        if self.ended or self.error:
            raise ValueError(f"{text!r} came after the end")
        self.text += text
        if text and (not self.levels or self.levels[-1] != level):
            self.levels.append(level)

    def _broken(self, message: str) -> None:
        if not message:
            raise ValueError("an error that says nothing")
        self.error = message

    def outcome(self, tokens: int | None) -> str:
        """Whether it is whole. Raises ValueError for what is lost or said twice, Refused, BrokenOff."""
        words = self.text.split()
        whole = WHOLE if tokens is None else WHOLE[:tokens]
        if words != whole[: len(words)] or self.text != "".join(f" {word}" for word in words):
            told = f"at {len(words)} words: …{self.text[-120:]!r} by {self.levels}, ended {self.reason}, {self.error}"
            raise ValueError(f"lost or said twice {told}")
        if self.error is not None:
            raise Refused(f"in the stream: {self.error}")
        if not self.ended:
            raise BrokenOff(f"after {len(words)} words")
        if len(words) == len(whole):
            return "whole"
        if self.reason != "length":
            raise ValueError(f"only {len(words)} of {len(whole)} words, ended {self.reason!r}")
        return "shortened"


def asked(tokens: int | None) -> dict[str, Any]:
    """A request to count, by OpenAI."""
    limit = {} if tokens is None else {"max_tokens": tokens}
    return {
        "model": "auto",
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "stream": True,
        **limit,
    }


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        raise refusal(response.status, await response.read())


def refusal(status: int, body: bytes) -> Exception:
    """The error that a body tells; a ValueError when that is in none of the documented forms."""
    try:
        error = json.loads(body)["error"]
        message = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError):
        return ValueError(f"{status} with {body[:200]!r}")
    if status != 503 or not message:
        return ValueError(f"{status}: {message}")
    return Refused(f"{status}: {message}")
