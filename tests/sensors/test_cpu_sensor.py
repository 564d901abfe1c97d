"""How busy the processors are, and our part of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.errors import SensorFailed
from scaler.readings import Cpu
from scaler.sensors.cpu import CpuSensor
from scaler.sensors.processes import ProcessKey, PsutilTree, process_tree
from tests.sensors.conftest import FakeProc, Spawn, write

TICKS = os.sysconf("SC_CLK_TCK")


class Tree:
    """A process tree whose processor times are set by hand."""

    def __init__(self) -> None:
        self.seconds: dict[ProcessKey, float] = {}

    def pids(self) -> set[int]:
        return {key.pid for key in self.seconds}

    def ram_bytes(self) -> int:
        return 0

    def cpu_s(self) -> Mapping[ProcessKey, float]:
        return dict(self.seconds)


OURS = ProcessKey(10, 1)


def elapsed(proc: FakeProc, user_s: float, idle_s: float, iowait_s: float = 0, steal_s: float = 0) -> None:
    """Set what four cores have done since the start."""
    user, idle, iowait, steal = (round(seconds * TICKS) for seconds in (user_s, idle_s, iowait_s, steal_s))
    lines = [f"cpu  {user} 0 0 {idle} {iowait} 0 0 {steal} 17 0", *(f"cpu{core} 1 2 3" for core in range(4))]
    write(proc.path / "stat", "\n".join([*lines, "intr 5 6 7", "ctxt 9"]))


def shares(cpu: Cpu) -> tuple[float | None, float | None]:
    """How busy, and our part."""
    return cpu.busy_ratio, cpu.own_ratio


def test_the_first_answer_knows_only_the_cores(proc: FakeProc) -> None:
    """A share needs two points; 0 would be a lie."""
    elapsed(proc, 100, 100)
    assert CpuSensor(Tree(), proc=proc.path).read() == Cpu(4, None, None)


def test_the_shares_are_of_all_cores_together(proc: FakeProc) -> None:
    """One second of four cores: one was busy, half of that with our model."""
    tree = Tree()
    tree.seconds[OURS] = 50.0
    elapsed(proc, 100, 100)
    sensor = CpuSensor(tree, proc=proc.path)
    sensor.read()
    elapsed(proc, 101, 103)
    tree.seconds[OURS] += 0.5
    assert shares(sensor.read()) == pytest.approx((0.25, 0.125))


def test_waiting_for_a_disk_is_not_busy_and_a_stolen_core_is(proc: FakeProc) -> None:
    """A core that waits can be had; one that the host took away cannot."""
    elapsed(proc, 100, 100)
    sensor = CpuSensor(Tree(), proc=proc.path)
    sensor.read()
    elapsed(proc, 100, 101, iowait_s=1, steal_s=2)
    assert shares(sensor.read()) == pytest.approx((0.5, 0.0))


def test_a_process_counts_from_its_second_sample_on(proc: FakeProc) -> None:
    """The hour that a daemon has taken before we met it was not taken now."""
    tree = Tree()
    elapsed(proc, 100, 100)
    sensor = CpuSensor(tree, proc=proc.path)
    sensor.read()
    tree.seconds[OURS] = 3600.0
    elapsed(proc, 102, 102)
    assert sensor.read().own_ratio == 0.0
    tree.seconds[OURS] += 1
    elapsed(proc, 104, 104)
    assert sensor.read().own_ratio == pytest.approx(0.25)


def test_two_questions_at_once_have_the_same_answer(proc: FakeProc) -> None:
    """Over a few ticks a share is rounding; the next window still begins where the last one ended."""
    elapsed(proc, 100, 100)
    sensor = CpuSensor(Tree(), proc=proc.path)
    sensor.read()
    elapsed(proc, 102, 102)
    answer = sensor.read()
    elapsed(proc, 102.5, 102)
    assert sensor.read() == answer
    elapsed(proc, 104, 102.5)
    assert sensor.read().busy_ratio == pytest.approx(0.8)


counts = st.floats(0, 1e6, allow_nan=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(samples=st.lists(st.tuples(counts, counts, counts), min_size=2, max_size=5))
def test_whatever_the_counters_do_shares_stay_shares(proc: FakeProc, samples: list[tuple[float, float, float]]) -> None:
    """Counters of idle time are known to run backwards."""
    tree = Tree()
    sensor = CpuSensor(tree, proc=proc.path)
    for user_s, idle_s, own_s in samples:
        elapsed(proc, user_s, idle_s)
        tree.seconds[OURS] = own_s
        cpu = sensor.read()
        if cpu.busy_ratio is not None:
            assert cpu.own_ratio is not None
            assert 0 <= cpu.own_ratio <= cpu.busy_ratio <= 1


def test_an_unknown_format_is_a_failure_that_shows_it(proc: FakeProc) -> None:
    """The message must be enough to mend the parser."""
    write(proc.path / "stat", "cpu  1 2 3")
    with pytest.raises(SensorFailed, match="cpu  1 2 3"):
        CpuSensor(Tree(), proc=proc.path).read()


BUSY = """
import sys, time
print(1, flush=True)
while sys.stdin.readline():
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    print(1, flush=True)
"""


@pytest.mark.parametrize("through_psutil", [False, True])
def test_a_busy_child_shows_as_our_part(spawn: Spawn, through_psutil: bool) -> None:
    """Half a second of a real processor, whatever else the machine does."""
    child = spawn(BUSY)
    tree = PsutilTree(lambda: (child.pid,)) if through_psutil else process_tree(lambda: (child.pid,))
    sensor = CpuSensor(tree, proc=None) if through_psutil else CpuSensor(tree)
    sensor.read()
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    child.stdout.readline()
    cpu = sensor.read()
    assert cpu.cores == psutil.cpu_count()
    assert cpu.own_ratio is not None
    assert cpu.busy_ratio is not None
    assert 0 < cpu.own_ratio <= cpu.busy_ratio
