"""A control group for each model process, with a memory limit: what the kernel kills for memory is the model alone.

Owns where the groups lie and what is written into their files; knows no levels and no processes. Version 2 only.
Source: https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import re
from pathlib import Path, PurePosixPath

from scaler.cgroup_mounts import cgroup_mounts
from scaler.errors import LevelUnavailable
from scaler.levels import GIB

log = logging.getLogger(__name__)

OURS = "scaler-"
"""How the name of each group begins that a scaler made; its number follows."""
LEFT_BY = re.compile(rf"{OURS}(\d+)(-.*)?")
"""Such a name, and the number in it."""
GONE_S = 5.0
"""How long the processes of a group may take to end once they were killed."""
LOOK_EVERY_S = 0.02
OF_SYSTEMD = (".service", ".scope")
"""How groups end that systemd holds for its own: it could not start a unit's other commands beside groups of ours."""
HANDED_OVER = "user.delegate"
"""What it marks a group with that it leaves to the unit. Source: https://systemd.io/CGROUP_DELEGATION/"""
COUNT = itertools.count(1)
"""Numbers the groups of this process."""


class NotPermitted(Exception):
    """Why there can be no groups, in a sentence."""


class ModelCgroups:
    """Makes groups below scaler's own, which must be scaler's alone."""

    def __init__(self, home: Path) -> None:
        self._home = home

    @classmethod
    def below_own(cls, proc: Path = Path("/proc")) -> ModelCgroups:
        """Groups below the one that this process is in. It moves into one of these itself; raises NotPermitted.

        For the kernel lets no group that holds processes share its memory out among groups below it.
        """
        own = _own_group(proc)
        leaf = f"{OURS}{os.getpid()}"
        if own.name == leaf:
            return cls(own.parent)
        _check_shareable(own)
        _remove_leftovers(own, proc)
        moved = False
        try:
            (own / leaf).mkdir(exist_ok=True)
            _write(own / leaf / "cgroup.procs", os.getpid())
            moved = True
            _write(own / "cgroup.subtree_control", "+memory")
        except OSError as error:
            if moved:
                _write(own / "cgroup.procs", os.getpid())
            _remove_empty(own / leaf)
            why = "it holds processes that are not scaler's" if error.errno == errno.EBUSY else _words(error)
            raise NotPermitted(f"{own}: {why}") from error
        return cls(own)

    def make(self, name: str, limit_bytes: int) -> ModelCgroup:
        """A group of ``limit_bytes`` for the level called ``name``; raises LevelUnavailable."""
        safe = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:60]
        path = self._home / f"{OURS}{os.getpid()}-{next(COUNT)}-{safe}"
        try:
            path.mkdir()
            _write(path / "memory.max", limit_bytes)
            # Whatever else the program started goes with it.
            _write(path / "memory.oom.group", 1)
            if (path / "memory.swap.max").exists():
                # Else a model that grows would fill the person's swap before it is killed.
                _write(path / "memory.swap.max", limit_bytes)
        except OSError as error:
            _remove_empty(path)
            raise LevelUnavailable(
                f"{name}: {path}: {_words(error)}; leave processes.memory_limit_share out"
            ) from error
        return ModelCgroup(path, limit_bytes)


class ModelCgroup:
    """The group of one model process."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path, self.limit_bytes = path, limit_bytes
        self._why: str | None = None

    def why_killed(self) -> str | None:
        """Why the kernel killed what was in it; None if it did not. Also when it is removed."""
        try:
            limited, killed = (_counter(self.path / name, key) for name, key in _COUNTERS)
        except OSError:
            # It is removed, or cannot be read for want of descriptors.
            return self._why
        if killed and limited:
            self._why = (
                f"the kernel killed it at its memory limit of {self.limit_bytes / GIB:.1f} GiB; "
                "raise the level's ram_gib, or processes.memory_limit_share"
            )
        elif killed:
            self._why = "the kernel killed it for want of memory; choose a smaller model or a shorter context"
        return self._why

    async def remove(self) -> None:
        """Kill what is left in it, and remove it. Safe to call twice."""
        self.why_killed()
        try:
            async with asyncio.timeout(GONE_S):
                while True:
                    if self._removed():
                        return
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            log.warning("%s: its processes do not end; it stays until scaler is started again", self.path)

    def _removed(self) -> bool:
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                log.warning("%s: it cannot be removed: %s", self.path, _words(error))
                return True
            # Kernels before 5.14 have no such file; what was started there is left alone then.
            if (self.path / "cgroup.kill").exists():
                _write(self.path / "cgroup.kill", 1)
            return False
        return True


def shareable(proc: Path = Path("/proc")) -> Path:
    """The group that this process is in, if it may share it out, as far as looking tells; raises NotPermitted."""
    own = _own_group(proc)
    _check_shareable(own)
    if not os.access(own, os.W_OK):
        raise NotPermitted(f"{own}: it is not ours to write to")
    return own


def _check_shareable(own: Path) -> None:
    if own.suffix in OF_SYSTEMD and not _handed_over(own):
        raise NotPermitted(f"{own}: systemd has not handed it over; that takes Delegate=yes, and systemd 251")
    if "memory" not in _read(own / "cgroup.controllers").split():
        raise NotPermitted(f"{own}: memory is not among the controllers that were handed down to it")


_COUNTERS = (("memory.events.local", "oom"), ("memory.events", "oom_kill"))
"""How often the group itself was at its limit, and how many of its processes were killed, for whatever limit."""


def _counter(path: Path, key: str) -> int:
    found = re.search(rf"^{key} (\d+)$", _read(path), re.MULTILINE)
    return int(found[1]) if found else 0


def _own_group(proc: Path) -> Path:
    """The folder of the group that this process is in; raises NotPermitted."""
    try:
        own = re.search(r"^0::(/.*)$", _read(proc / "self" / "cgroup"), re.MULTILINE)
        mounts = list(cgroup_mounts(proc))
    except FileNotFoundError as error:
        raise NotPermitted("this kernel has no control groups") from error
    for mount in mounts:
        if own is not None and (folder := mount.folder_of(PurePosixPath(own[1]))) is not None:
            return folder
    raise NotPermitted("scaler's own control group (version 2) is not to be seen from here")


def _handed_over(own: Path) -> bool:
    try:
        return os.getxattr(own, HANDED_OVER) == b"1"
    except OSError:
        # It is not marked, or the kernel has no such marks there.
        return False


def _remove_leftovers(home: Path, proc: Path) -> None:
    """Remove the groups of scalers that are gone, as far as they are empty."""
    for path in home.glob(f"{OURS}*"):
        made = LEFT_BY.fullmatch(path.name)
        # In a container each scaler may have the same number. This one has made none yet.
        if made is not None and (int(made[1]) == os.getpid() or not (proc / made[1]).exists()):
            _remove_empty(path)


def _remove_empty(path: Path) -> None:
    """Remove a group; one that holds something stays, as the kernel has it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        log.info("%s: left as it is: %s", path, _words(error))


def _read(path: Path) -> str:
    # Names of groups and mount points may be of any bytes.
    return os.fsdecode(path.read_bytes())


def _write(path: Path, value: int | str) -> None:
    path.write_text(str(value))


def _words(error: OSError) -> str:
    return error.strerror or str(error)
