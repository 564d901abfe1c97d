"""Which processes hold Ollama's models: each is an ``ollama runner``, a child of the server.

Owns the look at the processes; knows nothing of which model is whose.

Source: https://github.com/ollama/ollama/blob/main/llm/server.go, which starts itself with the argument ``runner``.
"""

from __future__ import annotations

import asyncio
from pathlib import PurePath

import psutil

LOOK_EVERY_S = 0.2


def runners() -> frozenset[int]:
    """The processes on this machine that hold a model of Ollama's, anybody's."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        match process.info["cmdline"]:
            case [program, "runner", *_] if PurePath(program).stem == "ollama":
                found.append(process.pid)
    return frozenset(found)


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
