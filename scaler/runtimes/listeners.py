"""Which process of this machine listens on a port, and whether a process has ended.

So that the memory of models which a server holds can be told from everybody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psutil

LOOK_EVERY_S = 0.2
HERE, EVERYWHERE = ("127.0.0.1", "::1"), ("0.0.0.0", "::")
"""The addresses of localhost, and those of a socket that listens at all addresses."""


def listener(port: int, host: str | None = None) -> int | None:
    """The process that listens on a TCP port; None when there is none, or none that we may see into.

    ``host``: the address that it is reached by, where several listen on one port; any when left out. Of several that
    share the socket it is the one that the others came of. Looks at every process, which may take a tenth of a second.
    """
    found: list[tuple[Any, int | None]]
    try:
        found = [(one, one.pid) for one in psutil.net_connections("tcp") if _listens(one, port, host)]
    except psutil.AccessDenied:
        # macOS shows all connections to root only, but each process its own.
        found = [(one, process.pid) for process in psutil.process_iter() for one in _of(process, port, host)]
    # One that listens at the address itself goes before one that listens at all of them.
    found.sort(key=lambda one: one[0].laddr.ip in EVERYWHERE)
    pid = next((pid for _, pid in found if pid is not None), None)
    return None if pid is None else _topmost(psutil.Process(pid), port, host)


def _topmost(process: psutil.Process, port: int, host: str | None) -> int:
    with contextlib.suppress(psutil.Error):
        while (parent := process.parent()) is not None and _of(parent, port, host):
            process = parent
    return int(process.pid)


def _of(process: psutil.Process, port: int, host: str | None) -> list[Any]:
    """The sockets on which a process listens there; none where we may not look."""
    with contextlib.suppress(psutil.Error):
        return [one for one in process.net_connections("tcp") if _listens(one, port, host)]
    return []


def _listens(connection: Any, port: int, host: str | None) -> bool:
    if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
        return False
    hosts = HERE if host == "localhost" else (host.strip("[]"),) if host else ()
    return not hosts or connection.laddr.ip in (*hosts, *EVERYWHERE)


def runs(pid: int) -> bool:
    """Whether a process has not ended; one that ended and was not yet waited for has."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    while True:
        if not runs(pid):
            return
        await asyncio.sleep(LOOK_EVERY_S)
