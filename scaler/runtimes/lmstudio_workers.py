"""Which processes hold LM Studio's models: descendants of the one that listens, the app's or `llmster`.

For each load there is a new one: a Node process with ``llmworker.js``, or since 0.4.19 a ``llama-server``, with or
without such a Node process above it. Knows nothing of which model is whose.

Source: https://lmstudio.ai/changelog/lmstudio-v0.4.19 and https://github.com/lmstudio-ai/lms/issues/502
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from pathlib import PurePath

import psutil

from scaler.runtimes.listeners import below

SURVEYOR = "systemresourcesworker.js"
"""Looks at the machine, and never holds a model."""
WORKER, SERVER = "llmworker.js", "llama-server"


def holders(server: int, before: Collection[int]) -> frozenset[int]:
    """Of the descendants that were not there ``before``, those that may hold a model; of each tree the topmost.

    Where some are called as LM Studio calls its workers, they alone: the app starts others as it likes.
    """
    named: dict[int, int] = {}
    others: dict[int, int] = {}
    for pid in below(server) - frozenset(before):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            command = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and not _runs_script(command, SURVEYOR):
                (named if _is_worker(command) else others)[pid] = process.ppid()
    found = named or others
    return frozenset(pid for pid, parent in found.items() if parent not in found)


def _is_worker(command: Sequence[str]) -> bool:
    return bool(command) and (PurePath(command[0]).stem == SERVER or _runs_script(command, WORKER))


def _runs_script(command: Sequence[str], script: str) -> bool:
    return any(PurePath(argument).name == script for argument in command)
