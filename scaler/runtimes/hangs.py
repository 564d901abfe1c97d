"""Whether a model's server hangs: it says nothing at all, and computes nothing, for longer than it may.

A process that is stopped or locked up does not end, so nothing else would ever tell whoever waits for it. Ends nothing.
"""

from __future__ import annotations

import asyncio

import psutil

from scaler.runtimes.model_server import ModelServer

ATTEMPTS = 3
"""So many questions in a row have to go unanswered: one may, where it was scaler that stood still."""
COMPUTES = 0.01
"""A process that takes more than this share of one core computes: every thread of its server may be taken meanwhile."""
PATIENCE = 10
"""One that computes and says nothing has so many times as long."""


async def hung(server: ModelServer, path: str, pid: int, hang_s: float) -> str:
    """Wait until the server has said nothing for ``hang_s`` seconds, to ``path`` or to anybody; return that in words.

    ``path`` is one that the server answers at once whatever it computes. An answer under way counts as well: its next
    words.
    """
    within_s = hang_s / ATTEMPTS
    still = silent = 0
    while still < ATTEMPTS and silent < ATTEMPTS * PATIENCE:
        if not silent:
            await asyncio.sleep(within_s)
        heard, computed_s = server.heard, _computed_s(pid)
        if not await server.silent(path, within_s) or server.heard != heard:
            still = silent = 0
            continue
        silent += 1
        still = still + 1 if _stood_still(computed_s, _computed_s(pid), within_s) else 0
    if still < ATTEMPTS:
        return f"it hung: it computed but said nothing for {hang_s * PATIENCE:g} s, and was killed"
    return f"it hung: it said nothing and computed nothing for {hang_s:g} s, and was killed"


def _stood_still(before_s: float | None, after_s: float | None, within_s: float) -> bool:
    return before_s is not None and after_s is not None and after_s - before_s <= COMPUTES * within_s


def _computed_s(pid: int) -> float | None:
    """The processor time that a process has taken; None where that cannot be told."""
    try:
        times = psutil.Process(pid).cpu_times()
    # For want of descriptors, say; that a process has ended is told elsewhere.
    except (psutil.Error, OSError):
        return None
    return float(times.user + times.system)
