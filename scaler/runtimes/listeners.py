"""Which process of this machine listens on a port, and whether a process has ended.

So that the memory of models which a server holds can be told from everybody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import psutil

LOOK_EVERY_S = 0.2
HERE, EVERYWHERE = ("127.0.0.1", "::1"), ("0.0.0.0", "::")
"""The addresses of localhost, and those of a socket that listens at all addresses."""


def listener(port: int, host: str | None = None) -> int | None:
    """The process that listens on a TCP port; None when there is none, or none that we may see into.

    ``host``: the address that it is reached by, where several listen on one port; any when left out. Of several that
    share the socket it is the one that the others came of. Looks at every process, which may take a tenth of a second.
    """
    found = [one for one in listeners() if _meant(one, port, host)]
    # One that listens at the address itself goes before one that listens at all of them.
    first = min(found, key=lambda one: one.host in EVERYWHERE, default=None)
    return None if first is None else _topmost(psutil.Process(first.pid), port, host)


def occupant(port: int) -> str:
    """The process that listens on a TCP port, in words, as far as it may be seen."""
    try:
        pid = listener(port)
        return "another program" if pid is None else f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return "another program"


class Listener(NamedTuple):
    """A process, and a TCP address at which it listens."""

    pid: int
    host: str
    port: int


def listeners() -> Iterator[Listener]:
    """Every process that listens on TCP, once for each address, as far as we may see. Looks at every process."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.pid is not None and one.laddr:
                yield Listener(one.pid, one.laddr.ip, one.laddr.port)
    except psutil.AccessDenied:
        # macOS shows all connections to root only, but each process its own.
        for process in psutil.process_iter():
            yield from _of(process)


def below(pid: int) -> frozenset[int]:
    """The descendants of a process; none where it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return frozenset(one.pid for one in psutil.Process(pid).children(recursive=True))
    return frozenset()


def parent(pid: int) -> int | None:
    """The process that started another; None where that cannot be told: it is another container's (0), say."""
    with contextlib.suppress(psutil.Error, OSError):
        return int(psutil.Process(pid).ppid()) or None
    return None


def _topmost(process: psutil.Process, port: int, host: str | None) -> int:
    with contextlib.suppress(psutil.Error):
        while (parent := process.parent()) is not None and any(_meant(one, port, host) for one in _of(parent)):
            process = parent
    return int(process.pid)


def _of(process: psutil.Process) -> list[Listener]:
    """Where a process listens; nowhere if we may not look."""
    with contextlib.suppress(psutil.Error):
        return [
            Listener(process.pid, one.laddr.ip, one.laddr.port)
            for one in process.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr
        ]
    return []


def _meant(one: Listener, port: int, host: str | None) -> bool:
    hosts = HERE if host == "localhost" else (host.strip("[]"),) if host else ()
    return one.port == port and (not hosts or one.host in (*hosts, *EVERYWHERE))


def runs(pid: int) -> bool:
    """Whether a process has not ended; one that ended and was not yet waited for has.

    Where that cannot be told, it runs.
    """
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except (psutil.AccessDenied, OSError):
        # For want of descriptors, say.
        return True


async def gone_within(seconds: float, *pids: int) -> bool:
    """Whether a process, or any of several, ends in that time; returns as soon as it has."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await gone(*pids)
    return not all(map(runs, pids))


async def gone(*pids: int) -> None:
    """Wait until a process, or any of several, has ended."""
    while True:
        if not all(map(runs, pids)):
            return
        await asyncio.sleep(LOOK_EVERY_S)
