"""The process trees of our model, with real processes."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import psutil
import pytest

from scaler.sensors.processes import ProcessesSensor, ProcessTree, ProcfsTree, PsutilTree, process_tree
from tests.sensors.conftest import MIB, Spawn, write

linux = pytest.mark.skipif(not psutil.LINUX, reason="/proc is Linux's")

# Each of three generations holds 32 MiB; the second is started by a thread other than the first.
FAMILY = """
import subprocess, sys, threading
held = bytearray(b"x") * (32 << 20)
generation = int(sys.argv[1]) if len(sys.argv) > 1 else 0
started = []
def start():
    command = [sys.executable, "-c", open("/proc/self/cmdline").read().split(chr(0))[2], str(generation + 1)]
    started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    begun.set()
    ended.wait()
begun, ended = threading.Event(), threading.Event()
if generation < 2:
    threading.Thread(target=start).start()
    begun.wait()
    print(started[0].stdout.readline().strip(), end=" ")
import os
print(os.getpid(), flush=True)
sys.stdin.read()
for child in started:
    child.communicate()
ended.set()
"""


def both(pid: int) -> list[ProcessTree]:
    """The two ways to look."""
    return [ProcfsTree(lambda: (pid,), Path("/proc")), PsutilTree(lambda: (pid,))]


def family_of(spawn: Spawn) -> tuple[int, set[int]]:
    """Start three generations; return the root and all three."""
    root = spawn(FAMILY).pid
    return root, {root, *(child.pid for child in psutil.Process(root).children(recursive=True))}


@linux
def test_the_tree_holds_every_generation_whichever_thread_started_it(spawn: Spawn) -> None:
    """A model server may start its workers from any thread."""
    root, family = family_of(spawn)
    assert len(family) == 3
    for tree in both(root):
        assert tree.pids() == family


@linux
def test_the_tree_is_found_without_the_kernels_lists_of_children(spawn: Spawn, tmp_path: Path) -> None:
    """Some kernels are built without them; then every process is looked at, and no child is overlooked."""
    root, family = family_of(spawn)
    for pid in (*family, os.getpid()):
        stat = Path(f"/proc/{pid}/stat").read_text()
        write(tmp_path / str(pid) / "stat", stat.replace("(python", "(py) (thon 1 S 1"))
    assert ProcfsTree(lambda: (root,), tmp_path).pids() == family


@linux
def test_the_ram_of_the_whole_tree_counts(spawn: Spawn) -> None:
    """Three times 32 MiB would come back, and little more: mapped libraries stay for others."""
    root, _ = family_of(spawn)
    for tree in both(root):
        assert 96 * MIB <= ProcessesSensor(tree).read() < 96 * MIB + 3 * 20 * MIB


@linux
def test_a_mapped_file_is_not_own(spawn: Spawn, tmp_path: Path) -> None:
    """Its pages belong to the cache, which counts as available already; anonymous memory does not."""
    (tmp_path / "weights").write_bytes(b"w" * (64 * MIB))
    program = f"""
import mmap, sys
with open({str(tmp_path / "weights")!r}, "rb") as file:
    held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print(sum(held[at] for at in range(0, len(held), mmap.PAGESIZE)), flush=True)
sys.stdin.read()
"""
    child = spawn(program)
    assert psutil.Process(child.pid).memory_info().rss > 64 * MIB
    for tree in both(child.pid):
        assert tree.ram_bytes() < 32 * MIB


def test_nothing_loaded_is_nothing_held() -> None:
    """No roots means that no model runs: a truth, not a missing reading."""
    for tree in (process_tree(lambda: ()), PsutilTree(lambda: ())):
        assert ProcessesSensor(tree).read() == 0
        assert tree.pids() == set()
        assert tree.cpu_s() == {}


def test_a_process_that_ended_holds_nothing(spawn: Spawn) -> None:
    """Between the question and the answer anything may end."""
    child = spawn("print(1)")
    child.communicate()
    for tree in (process_tree(lambda: (child.pid,)), PsutilTree(lambda: (child.pid,))):
        assert tree.ram_bytes() == 0
        assert tree.cpu_s() == {}


@linux
def test_a_process_that_ends_during_the_walk_does_not_hide_the_others(tmp_path: Path) -> None:
    """Its files are gone while its parent still lists it."""
    write(tmp_path / "thread-self/children", "")
    write(tmp_path / "10/task/10/children", "11 12")
    write(tmp_path / "12/task/12/children", "")
    write(tmp_path / "10/statm", "999 300 100 1 0 50 0")
    write(tmp_path / "12/statm", "999 50 10 1 0 50 0")
    assert ProcfsTree(lambda: (10,), tmp_path).ram_bytes() == 240 * mmap.PAGESIZE


@linux
def test_roots_within_each_other_count_once(tmp_path: Path) -> None:
    """A runtime may name a server and its worker."""
    write(tmp_path / "thread-self/children", "")
    write(tmp_path / "10/task/10/children", "11")
    for pid in (10, 11):
        write(tmp_path / f"{pid}/statm", "999 30 10 1 0 50 0")
    assert ProcfsTree(lambda: (10, 11), tmp_path).ram_bytes() == 40 * mmap.PAGESIZE


@linux
def test_the_processor_time_of_a_process_with_an_odd_name_is_read(tmp_path: Path) -> None:
    """A name may hold blanks and brackets; a pid that is used again is another process."""
    write(tmp_path / "thread-self/children", "")
    stat = "10 (a) b (c) S 1 1 1 0 -1 4194304 91 176 0 1 {user} 300 7 9 20 0 1 0 {started} 2654208 358"
    tree = ProcfsTree(lambda: (10,), tmp_path)
    write(tmp_path / "10/stat", stat.format(user=200, started=555))
    first = dict(tree.cpu_s())
    write(tmp_path / "10/stat", stat.format(user=0, started=777))
    assert list(first.values()) == [pytest.approx(500 / os.sysconf("SC_CLK_TCK"))]
    assert first.keys().isdisjoint(tree.cpu_s())


@linux
def test_an_unreadable_process_is_a_failure(tmp_path: Path) -> None:
    """What is there and cannot be read must not count as nothing."""
    write(tmp_path / "thread-self/children", "")
    (tmp_path / "10/statm").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        ProcfsTree(lambda: (10,), tmp_path).ram_bytes()
