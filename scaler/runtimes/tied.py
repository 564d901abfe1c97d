"""Runs a program that ends when scaler does, however scaler ends: ``tied.py SCALER PROGRAM ARGUMENT...``.

The program takes the place of this process, so that it has the number that was started. For a file that is run alone:
it knows the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to scaler's, whose number comes first, and become the program."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        die_with_parent(int(parent))
    else:
        _watch_parent()
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, also when that is killed itself.

    It outlives becoming another program. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent died before the kernel was told.
        os._exit(1)


def _watch_parent() -> None:
    """Leave a process behind that kills this one at the end of stdin, which only the parent holds open."""
    program = os.getpid()
    if os.fork():
        return
    # Else whoever reads them would wait for us, too, for their end.
    os.close(1)
    os.close(2)
    while os.read(0, 4096):
        pass
    # Its number may be another's by now, but not as our parent.
    if os.getppid() == program:
        os.kill(program, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
