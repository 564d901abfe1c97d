"""RAM within the machine and within control groups."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scaler
from scaler.errors import SensorFailed
from scaler.readings import Memory
from scaler.sensors.memory import MemorySensor
from tests.sensors.conftest import GIB, MIB, FakeProc, write

V1_UNLIMITED = 9223372036854771712


def v2_group(folder: Path, limit: object, usage: int = 0, inactive: int = 0, high: object = "max") -> Path:
    """Write the memory files of a cgroup v2 group."""
    write(folder / "memory.max", limit)
    write(folder / "memory.high", high)
    write(folder / "memory.current", usage)
    write(folder / "memory.stat", f"anon 1\nactive_file 7\ninactive_file {inactive}\ninactive_anon 5")
    return folder


def v1_group(folder: Path, limit: int, usage: int = 0, inactive: int = 0) -> Path:
    """Write the memory files of a cgroup v1 group; its plain inactive_file leaves out the groups below."""
    write(folder / "memory.limit_in_bytes", limit)
    write(folder / "memory.usage_in_bytes", usage)
    write(folder / "memory.stat", f"inactive_file 0\ntotal_inactive_file {inactive}")
    return folder


def v2(proc: FakeProc, mount: Path, group: str, root: str = "/") -> MemorySensor:
    """A sensor in a v2 group."""
    proc.cgroup(f"0::{group}")
    proc.mounts((root, mount, "cgroup2 cgroup2 rw,nsdelegate"))
    return MemorySensor(proc=proc.path)


def test_the_machine_sets_the_limit_without_control_groups(proc: FakeProc) -> None:
    """A plain machine's RAM is what meminfo says."""
    assert MemorySensor(proc=proc.path).read() == Memory(16 * GIB, 12 * GIB, "machine")


def test_a_meminfo_without_available_memory_is_a_failure_that_names_the_line(proc: FakeProc) -> None:
    """A figure that is not there must never be taken for 0."""
    write(proc.path / "meminfo", "MemTotal: 16 kB")
    with pytest.raises(SensorFailed, match="meminfo: no line MemAvailable"):
        MemorySensor(proc=proc.path).read()


def test_an_unreadable_meminfo_is_a_failure(proc: FakeProc) -> None:
    """The operating system's own message goes through."""
    (proc.path / "meminfo").unlink()
    with pytest.raises(FileNotFoundError, match="meminfo"):
        MemorySensor(proc=proc.path).read()


def test_a_kernel_without_control_groups_leaves_the_machine_in_charge(proc: FakeProc) -> None:
    """They are a build option."""
    (proc.path / "self/cgroup").unlink()
    assert MemorySensor(proc=proc.path).read() == Memory(16 * GIB, 12 * GIB, "machine")


def test_a_v2_limit_wins_over_a_larger_machine(proc: FakeProc, tmp_path: Path) -> None:
    """In a container the host's RAM is not ours; cache that can be dropped is still available."""
    v2_group(tmp_path / "cg/box", 4 * GIB, usage=3 * GIB, inactive=GIB)
    assert v2(proc, tmp_path / "cg", "/box").read() == Memory(4 * GIB, 2 * GIB, "cgroup")


def test_a_group_without_a_limit_leaves_the_machine_in_charge(proc: FakeProc, tmp_path: Path) -> None:
    """memory.max says "max" for no limit."""
    v2_group(tmp_path / "cg/box", "max", usage=3 * GIB)
    assert v2(proc, tmp_path / "cg", "/box").read().limited_by == "machine"


def test_a_limit_above_the_machine_leaves_the_machine_in_charge(proc: FakeProc, tmp_path: Path) -> None:
    """The smaller of the two wins."""
    v2_group(tmp_path / "cg/box", 64 * GIB, usage=GIB)
    assert v2(proc, tmp_path / "cg", "/box").read() == Memory(16 * GIB, 12 * GIB, "machine")


def test_a_group_above_ours_may_be_the_tightest(proc: FakeProc, tmp_path: Path) -> None:
    """A limit holds for every group below it, whether these set one or not."""
    v2_group(tmp_path / "cg/slice", 2 * GIB, usage=GIB)
    v2_group(tmp_path / "cg/slice/service", 8 * GIB, usage=GIB // 2)
    (tmp_path / "cg/slice/service/ours").mkdir()
    assert v2(proc, tmp_path / "cg", "/slice/service/ours").read() == Memory(2 * GIB, GIB, "cgroup")


def test_no_more_is_available_than_the_fullest_group_has_left(proc: FakeProc, tmp_path: Path) -> None:
    """A wide slice whose other services ate nearly everything leaves us little of our own narrow limit."""
    v2_group(tmp_path / "cg/slice", 8 * GIB, usage=8 * GIB - 100 * MIB)
    v2_group(tmp_path / "cg/slice/ours", 4 * GIB, usage=GIB)
    assert v2(proc, tmp_path / "cg", "/slice/ours").read() == Memory(4 * GIB, 100 * MIB, "cgroup")


def test_no_more_is_available_than_the_machine_has_left(proc: FakeProc, tmp_path: Path) -> None:
    """A limit promises nothing: the host may be full."""
    proc.meminfo(available=GIB)
    v2_group(tmp_path / "cg/box", 4 * GIB)
    assert v2(proc, tmp_path / "cg", "/box").read() == Memory(4 * GIB, GIB, "cgroup")


def test_a_group_over_its_limit_has_nothing_left(proc: FakeProc, tmp_path: Path) -> None:
    """Usage may exceed a limit that was just lowered; less than nothing is no answer."""
    v2_group(tmp_path / "cg/box", GIB, usage=2 * GIB)
    assert v2(proc, tmp_path / "cg", "/box").read() == Memory(GIB, 0, "cgroup")


def test_memory_high_counts_as_a_limit(proc: FakeProc, tmp_path: Path) -> None:
    """Past it the kernel stalls the group, which is what scaler is there to prevent."""
    v2_group(tmp_path / "cg/box", 4 * GIB, high=3 * GIB, usage=GIB)
    assert v2(proc, tmp_path / "cg", "/box").read() == Memory(3 * GIB, 2 * GIB, "cgroup")


def test_a_namespace_shows_our_group_as_the_root(proc: FakeProc, tmp_path: Path) -> None:
    """In a container the path is "/" and the limit lies in the mount point itself."""
    v2_group(tmp_path / "cg", 2 * GIB, usage=GIB)
    assert v2(proc, tmp_path / "cg", "/").read() == Memory(2 * GIB, GIB, "cgroup")


def test_a_mount_may_show_only_our_own_group(proc: FakeProc, tmp_path: Path) -> None:
    """Docker with v1 names the host's path but mounts only the container's group."""
    v1_group(tmp_path / "cg", 2 * GIB, usage=GIB)
    proc.cgroup("4:memory:/docker/abc", "0::/docker/abc")
    proc.mounts(("/docker/abc", tmp_path / "cg", "cgroup cgroup rw,memory"))
    assert MemorySensor(proc=proc.path).read() == Memory(2 * GIB, GIB, "cgroup")


def test_a_group_outside_what_is_mounted_sets_no_limit(proc: FakeProc, tmp_path: Path) -> None:
    """A path that leads out of the namespace must not be taken for a folder beside the mount point."""
    v2_group(tmp_path / "other", GIB)
    v2_group(tmp_path / "cg", GIB)
    assert v2(proc, tmp_path / "cg", "/../other").read().limited_by == "machine"


def test_a_mount_point_with_a_blank_is_found(proc: FakeProc, tmp_path: Path) -> None:
    """mountinfo escapes blanks."""
    v2_group(tmp_path / "c g/box", GIB)
    assert v2(proc, tmp_path / "c g", "/box").read().total_bytes == GIB


@pytest.mark.parametrize("name", [b"M\xfcsik", "M\N{NO-BREAK SPACE}u\N{LINE SEPARATOR}\r\x85sik".encode()])
def test_a_mount_point_and_a_group_may_be_of_any_bytes(proc: FakeProc, tmp_path: Path, name: bytes) -> None:
    """A disk's label in another encoding: it kept `scaler tier` from telling, and ended a daemon that read anew."""
    odd = os.fsdecode(name)
    v2_group(tmp_path / odd / odd, GIB)
    proc.cgroup(f"0::/{odd}")
    disk = ("/", Path("/media") / odd, "vfat /dev/sdb1 rw,codepage=437")
    proc.mounts(disk, ("/", tmp_path / odd, "cgroup2 cgroup2 rw,nsdelegate"))
    assert MemorySensor(proc=proc.path).read().total_bytes == GIB


def test_a_v1_limit_holds_with_the_cache_of_the_groups_below(proc: FakeProc, tmp_path: Path) -> None:
    """v1 counts the whole hierarchy in usage, and only total_inactive_file does so for the cache."""
    v1_group(tmp_path / "cg", V1_UNLIMITED, usage=9 * GIB)
    v1_group(tmp_path / "cg/box", 4 * GIB, usage=3 * GIB, inactive=2 * GIB)
    proc.cgroup("5:cpu,cpuacct:/elsewhere", "4:memory:/box")
    proc.mounts(("/", tmp_path / "cpu", "cgroup cgroup rw,cpu"), ("/", tmp_path / "cg", "cgroup cgroup rw,memory"))
    assert MemorySensor(proc=proc.path).read() == Memory(4 * GIB, 3 * GIB, "cgroup")


def test_v1_writes_no_limit_as_a_huge_number(proc: FakeProc, tmp_path: Path) -> None:
    """2**63 less a page is not a size."""
    v1_group(tmp_path / "cg/box", V1_UNLIMITED, usage=3 * GIB)
    proc.cgroup("4:memory:/box")
    proc.mounts(("/", tmp_path / "cg", "cgroup cgroup rw,memory"))
    assert MemorySensor(proc=proc.path).read() == Memory(16 * GIB, 12 * GIB, "machine")


def test_hybrid_takes_memory_from_v1_when_v1_has_it(proc: FakeProc, tmp_path: Path) -> None:
    """systemd's hybrid mode mounts v2 without the memory controller."""
    v1_group(tmp_path / "memory/box", 2 * GIB, usage=GIB)
    (tmp_path / "unified/user").mkdir(parents=True)
    proc.cgroup("4:memory:/box", "1:name=systemd:/user", "0::/user")
    proc.mounts(
        ("/", tmp_path / "memory", "cgroup cgroup rw,memory"),
        ("/", tmp_path / "unified", "cgroup2 cgroup2 rw"),
    )
    assert MemorySensor(proc=proc.path).read() == Memory(2 * GIB, GIB, "cgroup")


def test_hybrid_takes_memory_from_v2_when_v1_lacks_it(proc: FakeProc, tmp_path: Path) -> None:
    """A machine may keep v1 for one old controller alone."""
    v2_group(tmp_path / "unified/box", 2 * GIB, usage=GIB)
    proc.cgroup("3:net_cls:/", "0::/box")
    proc.mounts(
        ("/", tmp_path / "net_cls", "cgroup cgroup rw,net_cls"),
        ("/", tmp_path / "unified", "cgroup2 cgroup2 rw"),
    )
    assert MemorySensor(proc=proc.path).read() == Memory(2 * GIB, GIB, "cgroup")


def test_a_move_to_another_group_is_noticed(proc: FakeProc, tmp_path: Path) -> None:
    """A service manager may move a running process."""
    v2_group(tmp_path / "cg/a", 4 * GIB)
    v2_group(tmp_path / "cg/b", 2 * GIB)
    sensor = v2(proc, tmp_path / "cg", "/a")
    assert sensor.read().total_bytes == 4 * GIB
    proc.cgroup("0::/b")
    assert sensor.read().total_bytes == 2 * GIB


def test_a_limited_group_whose_usage_cannot_be_read_is_a_failure(proc: FakeProc, tmp_path: Path) -> None:
    """To answer with the machine's room instead would be to answer too much."""
    (v2_group(tmp_path / "cg/box", GIB) / "memory.current").unlink()
    with pytest.raises(FileNotFoundError, match=r"memory\.current"):
        v2(proc, tmp_path / "cg", "/box").read()


LIMIT = st.one_of(st.just("max"), st.integers(1, 32 * GIB))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(groups=st.lists(st.tuples(LIMIT, st.integers(0, 32 * GIB), st.integers(0, 32 * GIB)), min_size=1, max_size=4))
def test_whatever_the_groups_say_the_answer_lies_within_the_machine(
    proc: FakeProc, tmp_path: Path, groups: list[tuple[int | str, int, int]]
) -> None:
    """The total is the smallest limit, and what is available lies between nothing and the total."""
    folder = tmp_path / "cg"
    for number, (limit, usage, inactive) in enumerate(groups):
        folder = v2_group(folder / str(number), limit, usage, inactive)
    memory = v2(proc, tmp_path / "cg", f"/{folder.relative_to(tmp_path / 'cg')}").read()
    limits = [limit for limit, _, _ in groups if isinstance(limit, int)]
    assert memory.total_bytes == min([16 * GIB, *limits])
    assert 0 <= memory.available_bytes <= min(memory.total_bytes, 12 * GIB)


@pytest.mark.skipif(not psutil.LINUX, reason="/proc is Linux's")
def test_this_machine_reads_like_psutil() -> None:
    """The total is exact; what is available moves, but not by a quarter of the machine in a moment."""
    memory = MemorySensor().read()
    if memory.limited_by == "cgroup":
        pytest.skip("this process is in a limited control group, which psutil does not see")
    expected = psutil.virtual_memory()
    assert memory.total_bytes == expected.total
    assert abs(memory.available_bytes - expected.available) < expected.total / 4


def test_a_platform_without_proc_is_read_through_psutil() -> None:
    """macOS and Windows have no /proc."""
    memory = MemorySensor(proc=None).read()
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.available_bytes <= memory.total_bytes


@pytest.fixture
def limited_group() -> Iterator[tuple[Path, str]]:
    """A real control group of ours with room for a limit, and the name of its limit's file."""
    mounts = [
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ]
    name = f"scaler-test-{uuid.uuid4().hex[:8]}"
    for mount, limit in mounts:
        group = mount / name
        if not mount.is_dir():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                yield group, limit
                return
        finally:
            group.rmdir()
    pytest.skip("no memory control group can be made here; needs root and a mounted memory controller")


def test_a_real_control_group_limits_what_is_seen(limited_group: tuple[Path, str]) -> None:
    """The kernel's own files: the limit is the total, and 100 MiB that are taken are no longer available."""
    group, limit = limited_group
    (group / limit).write_text(str(512 * MIB))
    program = f"""
import os
open({str(group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
from scaler.sensors.memory import MemorySensor
sensor = MemorySensor()
before = sensor.read()
taken = bytearray(os.urandom(1)) * (100 << 20)
after = sensor.read()
print(before.total_bytes, before.limited_by, before.available_bytes - after.available_bytes)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(scaler.__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    total, limited_by, taken = child.stdout.split()
    assert (int(total), limited_by) == (512 * MIB, "cgroup")
    assert 90 * MIB < int(taken) < 130 * MIB
