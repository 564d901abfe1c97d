"""Where control groups are mounted: the folder in which the files of a group lie.

Knows nothing of what those files say. Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class CgroupMount(NamedTuple):
    """One mount of a hierarchy: the group that it shows at its top, and the folder where that is."""

    root: PurePosixPath
    point: Path

    def folder_of(self, group: PurePosixPath) -> Path | None:
        """The folder of ``group``, by its path as ``/proc/PID/cgroup`` has it; ``None`` where this does not show it."""
        # A path that leads out of our namespace must not be taken for a folder beside the mount point.
        if ".." in group.parts or not group.is_relative_to(self.root):
            return None
        return self.point / group.relative_to(self.root)


def cgroup_mounts(proc: Path, *, controller: str | None = None) -> Iterator[CgroupMount]:
    """The mounts of version 2, or those of version 1 that have ``controller``, in the kernel's order.

    Raises OSError.
    """
    kind, option = ("cgroup2", None) if controller is None else ("cgroup", controller)
    # Mount points may be of any bytes, in any encoding; a line ends where the kernel ends it, and nowhere else.
    mountinfo = os.fsdecode((proc / "self" / "mountinfo").read_bytes())
    for line in filter(None, mountinfo.split("\n")):
        left, _, right = line.partition(" - ")
        filesystem, _, options = right.split(" ", 2)
        if filesystem == kind and option in (None, *options.split(",")):
            root, point = left.split(" ")[3:5]
            yield CgroupMount(PurePosixPath(_unescape(root)), Path(_unescape(point)))


def _unescape(text: str) -> str:
    """Undo the octal escapes of blanks."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
