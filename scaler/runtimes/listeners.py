"""Which process of this machine listens on a port, and whether a process has ended.

So that the memory of models which a server holds can be told from everybody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psutil

LOOK_EVERY_S = 0.2


def listener(port: int) -> int | None:
    """The process that listens on a TCP port; None when there is none, or none that we may see into."""
    try:
        for one in psutil.net_connections("tcp"):
            if _listens(one, port) and one.pid is not None:
                return int(one.pid)
    except psutil.AccessDenied:
        # macOS shows all connections to root only, but each process its own.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(_listens(one, port) for one in process.net_connections("tcp")):
                    return int(process.pid)
    return None


def _listens(connection: Any, port: int) -> bool:
    return bool(connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port)


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
