"""Whether processes have ended, whoever's children they are."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil

ENDS_S = 60.0
"""How long an end is waited for, on a machine that may be busy."""


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether all have ended, or do so in time; who reaps them is not for us to say.

    psutil's own waiting takes the end of a child away from a loop that waits for it.
    """
    until = time.monotonic() + ENDS_S
    while any(map(runs, processes)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
