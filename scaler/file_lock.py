"""A file that one program at a time may have: a lock that the system takes away from whoever ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


def locked(path: Path, *, wait: bool = False) -> int | None:
    """An open file that is ours until `unlocked`, or we end; None while it is another's, unless we ``wait`` for it.

    Raises OSError; on Windows also where another has it for longer than ten seconds.
    """
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def unlocked(file: int) -> None:
    """Give up what `locked` gave: for every process that was forked meanwhile as well, and has the same file open."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
