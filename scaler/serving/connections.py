"""Connections within bounds: how many there are, for how long one may take to bring its request, how much they hold.

aiohttp bounds lines, headers and bodies, but not the time in which they come, nor the number of those who send them.
Owns the protocol between a transport and aiohttp's.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import cast

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from scaler.serving.answers import RETRY_AFTER_S
from scaler.serving.errors import error_body

if sys.platform != "win32":
    import resource

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STALLED_S = 300.0
"""A client that has not read a byte of its answer for so long is gone."""
HELD_BYTES = 256 * 1024**2
"""What the bodies of all requests together may take, as they come in and while they are answered."""
SPARED_DESCRIPTORS = 64
"""What connections leave to the rest of the process: at rest it has about 20 open, and two models that start take two
dozen for a moment."""
DESCRIPTORS_EACH = 2
"""Of a connection: its own, and the one to the model that answers."""
FULL_BODY = orjson.dumps(error_body("too many connections; try again later", "server_error", "too_many_connections"))
FULL = (
    f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: {RETRY_AFTER_S}\r\nConnection: close\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(FULL_BODY)}\r\n\r\n"
).encode() + FULL_BODY
"""No dialect was spoken yet: OpenAI's is the one that most clients read."""

log = logging.getLogger(__name__)
# What is no HTTP is answered so; a traceback of it would let anybody write into the log.
FOREIGN_FAULTS = (HttpProcessingError, web.RequestPayloadError)
log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], FOREIGN_FAULTS)))


class Connections:
    """Makes the protocol of each connection to a server, and knows them all."""

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        *,
        most: int,
        receive_s: float,
        stalled_s: float = STALLED_S,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        """``make`` is aiohttp's server. ``most`` connections at a time; a request has ``receive_s`` seconds for its
        head and as many for its body.
        """
        self.receive_s, self.stalled_s = receive_s, stalled_s
        self._make, self._most = make, most
        self._open: set[_Connection] = set()
        self._unasked: dict[_Connection, None] = {}
        """Those that have asked for nothing that is not answered, the oldest first."""
        self._held, self._held_bytes = 0, held_bytes
        self._owed = 0
        self._none_owed = asyncio.Event()
        self._none_owed.set()

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Connection(self, self._make())

    def admit(self, connection: _Connection) -> bool:
        """Whether there is room for one more, and the descriptors: of those that ask nothing, the oldest makes it."""
        if len(self._open) >= min(self._most, affordable_connections()):
            if not self._unasked:
                return False
            next(iter(self._unasked)).drop()
        self._open.add(connection)
        self._unasked[connection] = None
        return True

    def forget(self, connection: _Connection) -> None:
        """One that is gone."""
        self._open.discard(connection)
        self._unasked.pop(connection, None)

    def asks(self, connection: _Connection, *, whether: bool) -> None:
        """Whether an answer is owed to one."""
        self._owed += 1 if whether else -1
        if whether:
            self._none_owed.clear()
            self._unasked.pop(connection, None)
            return
        if not self._owed:
            self._none_owed.set()
        if connection in self._open:
            self._unasked[connection] = None

    async def answered(self) -> None:
        """Wait until no answer is owed; to a client that has gone it is until its handler has ended."""
        await self._none_owed.wait()

    @contextmanager
    def holding(self, size: int) -> Iterator[Callable[[int], None]]:
        """Keep ``size`` bytes of memory for a body; yields what tells its real size. Raises HTTPServiceUnavailable."""
        if self._held + size > self._held_bytes:
            raise web.HTTPServiceUnavailable(
                text="the requests that are being answered are too large together; try again later",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        held = size
        self._held += held

        def real(size: int) -> None:
            nonlocal held
            self._held += size - held
            held = size

        try:
            yield real
        finally:
            self._held -= held


def affordable_connections() -> int:
    """How many connections this process may have while it can still open what it needs to read sensors and to switch.

    By its limit of open files at this moment (`ulimit -n`); at least 1.
    """
    if sys.platform == "win32":
        return sys.maxsize
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (most - SPARED_DESCRIPTORS) // DESCRIPTORS_EACH)


@web.middleware
async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """From here on the head is in, and the connection is owed an answer."""
    connection = _connection_of(request)
    connection.begin()
    try:
        return await handler(request)
    finally:
        connection.end()


@web.middleware
async def received(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Take in the whole body first: within its time, and as large as is allowed."""
    if not request.body_exists:
        return await handler(request)
    bounds = _connection_of(request).bounds
    said = None if "Content-Encoding" in request.headers else request.content_length
    if said is not None and said > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=said)
    with bounds.holding(request.client_max_size if said is None else said) as real:
        try:
            async with asyncio.timeout(bounds.receive_s):
                real(len(await request.read()))
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"the body did not come within {bounds.receive_s:g} s") from None
        except web.RequestPayloadError as error:
            raise web.HTTPBadRequest(text="the body is not such as its headers say") from error
        return await handler(request)


def _connection_of(request: web.Request) -> _Connection:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    connection = transport.get_protocol()
    assert isinstance(connection, _Connection)
    return connection


class _Connection(asyncio.Protocol):
    """One connection: passes everything on, and watches the clock."""

    def __init__(self, bounds: Connections, inner: asyncio.Protocol) -> None:
        self.bounds, self._inner = bounds, inner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._owed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        line = cast(asyncio.Transport, transport)
        if not self.bounds.admit(self):
            line.write(FULL)
            line.close()
            return
        self._transport = line
        self._await_head()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.bounds.forget(self)
        if self._transport is None:
            return
        for timer in (self._head, self._reader):
            if timer is not None:
                timer.cancel()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        if self._head is None and not self._owed:
            self._await_head()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._reader = self._loop.call_later(self.bounds.stalled_s, self.drop)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        self._inner.resume_writing()

    def begin(self) -> None:
        """A head is in."""
        self._owed = True
        if self._head is not None:
            self._head.cancel()
            self._head = None
        self.bounds.asks(self, whether=True)

    def end(self) -> None:
        """Its answer is made."""
        self._owed = False
        self.bounds.asks(self, whether=False)

    def drop(self) -> None:
        """End it without a word."""
        self.bounds.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def _await_head(self) -> None:
        self._head = self._loop.call_later(self.bounds.receive_s, self.drop)
