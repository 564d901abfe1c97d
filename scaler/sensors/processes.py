"""Our model's process trees: which processes they are, what RAM would come back and what CPU time they took.

Owns the walk over the trees; knows nothing of what the processes do or who started them.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scaler.sensors.procfs import PROC, read_file

if TYPE_CHECKING:
    import psutil

Roots = Callable[[], Collection[int]]


class ProcessKey(NamedTuple):
    """One process for good: pids are used again, pids with a start time are not."""

    pid: int
    started: float


class ProcessTree(Protocol):
    """Some processes and all their descendants; those that end meanwhile count as gone."""

    def pids(self) -> set[int]:
        """The roots and their descendants."""

    def ram_bytes(self) -> int:
        """The RAM that would come back if they ended; 0 without roots."""

    def cpu_s(self) -> Mapping[ProcessKey, float]:
        """The processor seconds that each has taken since it started."""


class ProcessesSensor:
    """The RAM in bytes that would come back if our model ended; 0 when nothing is loaded."""

    name = "own_bytes"

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree

    def read(self) -> int:
        """Our own RAM now; raises OSError."""
        return self._tree.ram_bytes()


def process_tree(roots: Roots, *, proc: Path | None = PROC) -> ProcessTree:
    """The trees under the processes that ``roots`` returns at each look; psutil answers where there is no /proc."""
    return PsutilTree(roots) if proc is None else ProcfsTree(roots, proc)


class ProcfsTree:
    """Reads the trees from /proc: 0.1 ms a look, where psutil's children() takes 1.2 ms on a small machine."""

    def __init__(self, roots: Roots, proc: Path) -> None:
        self._roots = roots
        self._proc = str(proc)
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
        # A kernel without CONFIG_PROC_CHILDREN has no such files; not finding them must not read as no children.
        self._lists_children = (proc / "thread-self" / "children").exists()

    def pids(self) -> set[int]:
        """The roots and their descendants; raises OSError."""
        roots = self._roots()
        if not roots:
            return set()
        children_of = self._children if self._lists_children else self._scanned().get
        found: set[int] = set()
        waiting = list(roots)
        while waiting:
            pid = waiting.pop()
            if pid not in found:
                found.add(pid)
                waiting.extend(children_of(pid) or ())
        return found

    def ram_bytes(self) -> int:
        """Resident less file-backed and shared pages, summed over the trees; raises OSError.

        Source: proc_pid_statm(5); its third field is RssFile + RssShmem.
        """
        pages = 0
        for _, text in self._each("statm"):
            _, resident, shared, _ = text.split(maxsplit=3)
            pages += int(resident) - int(shared)
        return pages * mmap.PAGESIZE

    def cpu_s(self) -> Mapping[ProcessKey, float]:
        """User and system time of each process; raises OSError. Source: proc_pid_stat(5), fields 14, 15 and 22."""
        seconds = {}
        for pid, text in self._each("stat"):
            fields = _after_name(text)
            seconds[ProcessKey(pid, int(fields[19]))] = (int(fields[11]) + int(fields[12])) * self._tick_s
        return seconds

    def _each(self, name: str) -> Iterator[tuple[int, bytes]]:
        for pid in self.pids():
            text = _read_if_alive(f"{self._proc}/{pid}/{name}")
            if text is not None:
                yield pid, text

    def _children(self, pid: int) -> list[int]:
        tasks = f"{self._proc}/{pid}/task"
        try:
            threads = os.listdir(tasks)
        except (FileNotFoundError, ProcessLookupError):
            return []
        # A child is listed under the thread that started it, which need not be the first.
        texts = (_read_if_alive(f"{tasks}/{thread}/children") for thread in threads)
        return [int(child) for text in texts if text for child in text.split()]

    def _scanned(self) -> Mapping[int, list[int]]:
        children: dict[int, list[int]] = {}
        for entry in os.listdir(self._proc):
            if entry.isdecimal() and (text := _read_if_alive(f"{self._proc}/{entry}/stat")) is not None:
                children.setdefault(int(_after_name(text)[1]), []).append(int(entry))
        return children


def threads_of(pids: Collection[int]) -> dict[int, int]:
    """Which of these processes each of their threads belongs to, the first thread of each included; raises OSError.

    Linux numbers threads and processes in one row, and a process as its first thread. Elsewhere there are no others.
    """
    found = {pid: pid for pid in pids}
    for pid in pids if PROC is not None else ():
        try:
            found |= dict.fromkeys(map(int, os.listdir(f"{PROC}/{pid}/task")), pid)
        except (FileNotFoundError, ProcessLookupError):
            # It ended meanwhile.
            continue
    return found


def process_of(thread: int) -> int:
    """The process that a thread belongs to, by their numbers; the thread's own where that is not told."""
    if PROC is None:
        return thread
    try:
        told = re.search(rb"^Tgid:\s+(\d+)", read_file(f"{PROC}/{thread}/status"), re.MULTILINE)
    except OSError:
        # It ended, is hidden from us, or this is not Linux.
        return thread
    return int(told[1]) if told else thread


def is_here(pid: int) -> bool:
    """Whether there is a process or a thread of that number; whoever's, also where ``/proc`` hides it from us."""
    if PROC is None:
        return True
    try:
        os.getpgid(pid)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        # A security module keeps from us what there is.
        return True
    # 0 is no number but means whoever asks.
    return pid > 0


def _after_name(stat: bytes) -> list[bytes]:
    """The fields of /proc/<pid>/stat from the third on: the second, a name, may hold blanks and brackets."""
    return stat[stat.rindex(b")") + 1 :].split()


def _read_if_alive(path: str) -> bytes | None:
    try:
        return read_file(path)
    except (FileNotFoundError, ProcessLookupError):
        # The process ended between the walk and this look; what it held is back already.
        return None


class PsutilTree:
    """Reads the trees through psutil, for platforms without /proc."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def pids(self) -> set[int]:
        """The roots and their descendants."""
        return {process.pid for process in self._each()}

    def ram_bytes(self) -> int:
        """Resident less shared pages where the platform tells them apart, resident otherwise, summed."""
        import psutil

        total = 0
        for process in self._each():
            try:
                memory = process.memory_info()
            except psutil.NoSuchProcess:
                continue
            total += memory.rss - getattr(memory, "shared", 0)
        return total

    def cpu_s(self) -> Mapping[ProcessKey, float]:
        """User and system time of each process."""
        import psutil

        seconds = {}
        for process in self._each():
            try:
                times = process.cpu_times()
                seconds[ProcessKey(process.pid, process.create_time())] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return seconds

    def _each(self) -> Collection[psutil.Process]:
        roots = self._roots()
        if not roots:
            return ()
        import psutil  # here, because it takes 35 ms and is of no use on Linux

        found: dict[int, psutil.Process] = {}
        for pid in roots:
            try:
                root = psutil.Process(pid)
                for process in (root, *root.children(recursive=True)):
                    found[process.pid] = process
            except psutil.NoSuchProcess:
                continue
        return found.values()
