"""The memory limits that control groups put on this process: cgroup v2, v1, or both at once (hybrid).

Owns which groups hold us and how their files are read; knows nothing of the machine's own memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scaler.cgroup_mounts import cgroup_mounts
from scaler.sensors.procfs import read_counters, read_file


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """One group's limit and what is left inside it, in bytes."""

    limit_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class _Interface:
    """The names of one version's files, and of the line in memory.stat for cache that can be dropped."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: str


# Past memory.high the kernel stalls the group's tasks until they give memory back: for whoever waits for an
# answer that is a limit like memory.max.
_V2 = _Interface(("memory.max", "memory.high"), "memory.current", "inactive_file")
# v1's plain inactive_file leaves out the groups below; its usage does not.
_V1 = _Interface(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


class CgroupLimits:
    """The groups that hold this process, from its own up to the topmost that can be seen.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory and cgroup-v1/memory.html.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._membership: bytes | None = None
        self._interface = _V2
        self._groups: tuple[Path, ...] = ()

    def below(self, total_bytes: int) -> list[CgroupMemory]:
        """Each limit below ``total_bytes`` that holds for this process; empty where none does.

        ``total_bytes`` is the machine's memory: v1 writes "no limit" as a number near 2**63. Raises OSError
        and SensorFailed.
        """
        try:
            membership = read_file(self._proc / "self" / "cgroup")
        except FileNotFoundError:
            # A kernel built without control groups.
            return []
        if membership != self._membership:
            self._interface, self._groups = self._locate(os.fsdecode(membership))
            self._membership = membership
        return [found for group in self._groups if (found := self._limit(group, total_bytes)) is not None]

    def _limit(self, group: Path, total_bytes: int) -> CgroupMemory | None:
        limits = (_read_limit(group / name) for name in self._interface.limits)
        limit = min((limit for limit in limits if limit is not None), default=total_bytes)
        if limit >= total_bytes:
            return None
        usage = int(read_file(group / self._interface.usage))
        (reclaimable,) = read_counters(group / "memory.stat", self._interface.reclaimable)
        return CgroupMemory(limit, min(max(limit - (usage - reclaimable), 0), limit))

    def _locate(self, membership: str) -> tuple[_Interface, tuple[Path, ...]]:
        """Find our groups' folders; none where the hierarchy is not mounted or does not show our group."""
        paths = {}
        for line in membership.rstrip("\n").split("\n"):
            number, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                paths[_V1] = path
            elif number == "0":
                paths[_V2] = path
        # In hybrid mode a controller belongs to one version only, and v1 says so by naming it.
        interface = _V1 if _V1 in paths else _V2
        own = PurePosixPath(paths.get(interface, "/"))
        mounts = cgroup_mounts(self._proc, controller="memory" if interface is _V1 else None)
        for mount in sorted(mounts, key=lambda found: len(found.root.parts)):
            if (group := mount.folder_of(own)) is not None:
                return interface, (group, *(above for above in group.parents if above.is_relative_to(mount.point)))
        return interface, ()


def _read_limit(path: Path) -> int | None:
    try:
        text = read_file(path).strip()
    except FileNotFoundError:
        # The topmost group has no limit, nor has one for which the controller is not switched on.
        return None
    return None if text == b"max" else int(text)
