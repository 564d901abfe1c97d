"""Runs a program that ends when scaler does and gives way to a person's: ``tied.py BOUNDS PROGRAM ARGUMENT...``.

BOUNDS is a JSON object: scaler's number as ``parent``, and what `give_way` takes. The program takes the place of this
process, so that it has the number that was started. For a file that is run alone: it knows the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
AUTOGROUP_TRIES = 20
"""The kernel takes a figure for a session every 0.1 s, of everybody who has no privileges. Source: sched(7)."""


def main() -> None:
    """Tie this process to scaler's, have it give way, and become the program."""
    bounds, *command = sys.argv[1:]
    wanted = json.loads(bounds)
    if os.getpgrp() != os.getpid():
        # What the program starts is ended by the number of its group, and no other process must be in that.
        os.setpgid(0, 0)
    if sys.platform == "linux":
        die_with_parent(wanted["parent"])
    if sys.platform != "linux" or _is_script(command[0]):
        _watch_parent()
    give_way(wanted["nice"], wanted["oom_score_adj"], wanted["cgroup"])
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, also when that is killed itself.

    It outlives becoming another program, and does not reach what that starts. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent died before the kernel was told.
        os._exit(1)


def give_way(nice: int, oom_score_adj: int | None, cgroup: str | None) -> None:
    """Put this process into the folder of a cgroup and behind the person's programs; exits where it cannot enter.

    Nothing is lowered that stands higher already. Call it before there are threads: ``nice`` is a thread's.
    Source: setpriority(2), sched(7) on autogroups, proc_pid_oom_score_adj(5).
    """
    if cgroup is not None:
        try:
            _write(f"{cgroup}/cgroup.procs", 0)
        except OSError as error:
            sys.exit(f"{cgroup}: it cannot be entered: {error.strerror}")
    if sys.platform == "win32":
        return
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    if sys.platform != "linux":
        return
    if os.getsid(0) == os.getpid():
        # Where each session is a group of its own for the scheduler, nice counts within it alone.
        _nice_of_session(nice)
    if oom_score_adj is not None:
        own = "/proc/self/oom_score_adj"
        with open(own) as file:
            standing = int(file.read())
        _write(own, max(oom_score_adj, standing))


def _nice_of_session(nice: int) -> None:
    for _ in range(AUTOGROUP_TRIES):
        try:
            _write("/proc/self/autogroup", nice)
        except BlockingIOError:
            time.sleep(0.1)
        except FileNotFoundError:
            # A kernel without such groups.
            return
        except OSError as error:
            # A sandbox may keep /proc from being written; what nice does within the session is left.
            print(f"/proc/self/autogroup: {error.strerror}", file=sys.stderr)
            return
        else:
            return


def _write(path: str, figure: int) -> None:
    with open(path, "w") as file:
        file.write(str(figure))


def _is_script(program: str) -> bool:
    """Whether it names an interpreter, as a script does that may not end in ``exec``."""
    try:
        with open(program, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        # To run it will tell.
        return False


def _watch_parent() -> None:
    """Leave a process behind that kills this one, and what it started, at the end of stdin, which the parent holds."""
    program = os.getpid()
    if os.fork():
        return
    # Else whoever reads them would wait for us, too, for their end.
    os.close(1)
    os.close(2)
    while os.read(0, 4096):
        pass
    # Its number is nobody else's for as long as we are in its group.
    os.killpg(program, signal.SIGKILL)


if __name__ == "__main__":
    main()
