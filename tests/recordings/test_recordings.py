"""What is recorded is read back, whatever happened to the files, the clocks and the disk meanwhile."""

from __future__ import annotations

import gzip
import logging
import math
import random
import subprocess
import sys
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.errors import RecordingError
from scaler.levels import GIB
from scaler.readings import Cpu, Gpu, Memory, Power, Pressure, Reading, Stall, Swap
from scaler.recordings import Recorder, Recording
from scaler.recordings.columns import UNIT
from scaler.recordings.recorder import FLUSH_S, files_of

TOTAL = 16 * GIB - 4096  # no machine has a whole number of the units that are recorded
GPU = GIB - 4096
WALL = 1.76e9
# What the disk takes for an example says nothing about the recorder.
ON_DISK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

sizes = st.integers(0, TOTAL)
gpu_sizes = st.integers(0, GPU)
ratios = st.floats(0, 1)
optional = st.none() | ratios
readings = st.builds(
    Reading,
    st.just(0.0),
    st.none(),
    st.builds(Memory, st.just(TOTAL), sizes),
    st.none() | sizes,
    st.none() | st.builds(Swap, st.just(2 * GIB), st.integers(0, 2 * GIB)),
    st.none() | st.builds(Cpu, st.just(8), optional, optional),
    st.none() | st.builds(Pressure, st.none() | st.builds(Stall, ratios)),
    st.none()
    | st.tuples(st.builds(Gpu, st.just(1), st.just("g"), st.just(GPU), gpu_sizes, st.just(0), st.none() | gpu_sizes)),
    st.sampled_from([None, Power(True), Power(False)]),
)


def reading(at_s: float, used_gib: float = 4.0, wall_s: float | None = None) -> Reading:
    """One with memory only."""
    free = int(TOTAL - used_gib * GIB)
    return Reading(at_s, WALL + at_s if wall_s is None else wall_s, Memory(TOTAL, free), GIB)


def record(folder: Path, some: Sequence[Reading]) -> list[Path]:
    """Record readings; returns the files."""
    recorder = Recorder(folder, wall_clock=lambda: WALL)
    for one in some:
        recorder.take(one)
    recorder.close()
    return [path for path, _ in files_of(folder)]


@ON_DISK
@given(some=st.lists(readings, min_size=1, max_size=40), gaps=st.lists(st.floats(0.02, 500), min_size=40))
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, some: list[Reading], gaps: list[float]
) -> None:
    """Each figure up to its rounding, and what was missing is missing."""
    at_s = 0.0
    for one, gap in zip(some, gaps, strict=False):
        at_s += gap
        one.at_s, one.wall_s = at_s, WALL + at_s
    folder = tmp_path_factory.mktemp("recording")
    record(folder, some)
    recording = Recording(folder)
    back = list(recording)
    assert recording.notes == []
    assert len(back) == len(some)
    for one, two in zip(some, back, strict=True):
        assert one.memory is not None
        assert two.memory is not None
        assert two.wall_s == pytest.approx(one.wall_s, abs=0.03)
        assert two.memory.total_bytes == TOTAL
        assert abs(two.memory.available_bytes - one.memory.available_bytes) <= UNIT
        assert (one.own_bytes is None) == (two.own_bytes is None)
        assert abs((one.own_bytes or 0) - (two.own_bytes or 0)) <= UNIT
        assert (one.swap is None) == (two.swap is None)
        assert one.power == two.power
        assert _ratios(two) == pytest.approx(_ratios(one), abs=0.0051)
        for gpu, again in zip(one.gpus or (), two.gpus or (), strict=True):
            assert abs(gpu.used_bytes - again.used_bytes) <= UNIT
            assert (gpu.own_bytes is None) == (again.own_bytes is None)
    for (a, c), (b, d) in zip(pairwise(some), pairwise(back), strict=True):
        assert d.at_s - b.at_s == pytest.approx(c.at_s - a.at_s, abs=0.05)


def _ratios(one: Reading) -> dict[str, float]:
    stall = one.pressure.memory if one.pressure else None
    found = {
        "busy": one.cpu.busy_ratio if one.cpu else None,
        "own": one.cpu.own_ratio if one.cpu else None,
        "stalled": stall.some_avg10_ratio if stall else None,
    }
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def test_a_file_torn_at_any_byte_gives_what_it_held_until_there(tmp_path: Path) -> None:
    """A power cut costs the last minutes and never the rest."""
    some = [reading(at_s * 20.0, 4 + at_s % 7) for at_s in range(30)]
    (path,) = record(tmp_path / "whole", some)
    content = path.read_bytes()
    assert content.count(b"\x1f\x8b\x08") > 3
    torn = tmp_path / "torn" / path.name
    torn.parent.mkdir()
    whole, longest = list(Recording(path)), 0
    for size in range(len(content)):
        torn.write_bytes(content[:size])
        recording = Recording(torn.parent)
        found = list(recording)
        assert found == whole[: len(found)]
        assert len(found) >= longest
        longest = len(found)
        assert len(recording.notes) <= 1
    assert longest >= 24


def test_a_damaged_file_ends_at_the_damage_and_says_so(tmp_path: Path) -> None:
    """The next file is read all the same."""
    (path,) = record(tmp_path, [reading(at_s * 20.0) for at_s in range(30)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    record(tmp_path, [reading(5000.0 + at_s) for at_s in range(10)])
    recording = Recording(tmp_path)
    assert len([one for one in recording if (one.wall_s or 0) >= WALL + 5000]) == 10
    assert "damaged" in recording.notes[0]
    assert path.name in recording.notes[0]


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(0, 9))
def test_the_folder_stays_within_its_bound(tmp_path_factory: pytest.TempPathFactory, kib: int, seed: int) -> None:
    """Whatever is recorded: the oldest goes first, and what is left is still readable."""
    source = random.Random(seed)
    folder = tmp_path_factory.mktemp("bounded")
    recorder = Recorder(folder, max_mib=kib / 1024, wall_clock=lambda: WALL)
    largest = 0
    for at_s in range(6000):
        recorder.take(reading(float(at_s), source.uniform(0, 16)))
        if at_s % FLUSH_S == 0:
            largest = max(largest, recorder.size_bytes)
    recorder.close()
    member = 2000
    assert largest <= kib * 1024 + member
    times = [one.at_s for one in Recording(folder)]
    assert times[-1] == 5999
    assert times == sorted(set(times))


def test_what_is_older_than_a_month_is_deleted(tmp_path: Path) -> None:
    """And what else lies in the folder is left alone."""
    foreign = tmp_path / "mine.csv.gz"
    foreign.write_bytes(b"")
    now_s = WALL
    recorder = Recorder(tmp_path, max_days=31, wall_clock=lambda: now_s)
    for day in range(40):
        now_s = WALL + day * 86_400
        for second in range(3):
            recorder.take(reading(day * 86_400 + second * 100.0))
    recorder.close()
    days = {int(one.at_s // 86_400) for one in Recording(tmp_path)}
    assert days == set(range(40 - 32, 40))
    assert foreign.exists()


@pytest.mark.parametrize("step_s", [-7200.0, -30.0, 30.0, 7200.0])
def test_setting_the_clock_while_recording_changes_no_duration(tmp_path: Path, step_s: float) -> None:
    """The monotonic clock rules; the step is told."""
    record(tmp_path, [reading(at_s, wall_s=WALL + at_s + step_s * (at_s >= 50)) for at_s in range(100)])
    recording = Recording(tmp_path)
    back = list(recording)
    assert [b.at_s - a.at_s for a, b in pairwise(back)] == pytest.approx([1.0] * 99)
    (note,) = recording.notes
    assert f"the clock was set by {step_s:+.0f} s" in note


def test_a_restart_of_the_machine_is_a_gap_as_long_as_the_wall_clock_says(tmp_path: Path) -> None:
    """The monotonic clock begins anew, and may by chance be ahead of where it was."""
    for began_at_s, booted in ((100.0, WALL), (20.0, WALL + 10_000), (90_000.0, WALL + 20_000)):
        record(tmp_path, [reading(began_at_s + n, wall_s=booted + began_at_s + n) for n in range(5)])
    back = list(Recording(tmp_path))
    gaps = [b.at_s - a.at_s for a, b in pairwise(back)]
    assert gaps == pytest.approx([1] * 4 + [9916] + [1] * 4 + [99_976] + [1] * 4)


def test_two_recorders_on_one_folder_are_read_once(tmp_path: Path) -> None:
    """A daemon and a command may run side by side."""
    one, two = (Recorder(tmp_path, wall_clock=lambda: WALL) for _ in range(2))
    for at_s in range(1000):
        one.take(reading(float(at_s)))
        if at_s >= 500:
            two.take(reading(at_s + 0.5))
    for at_s in range(1000, 1200):
        two.take(reading(at_s + 0.5))
    one.close()
    two.close()
    recording = Recording(tmp_path)
    times = [reading.at_s for reading in recording]
    assert times == pytest.approx([*range(1000), *(at_s + 0.5 for at_s in range(999, 1200))])
    assert "no later than those before" in recording.notes[0]


def test_a_file_whose_name_is_no_time_is_left_alone(tmp_path: Path) -> None:
    """No recorder gave it."""
    (tmp_path / "99999999T999999Z-0000.csv.gz").write_bytes(b"somebody's")
    assert files_of(tmp_path) == []


def test_only_the_time_that_is_asked_for_is_read(tmp_path: Path) -> None:
    """Files before it are not even opened."""
    for day in range(4):
        record(tmp_path, [reading(day * 86_400.0 + n * 30) for n in range(20)])
    files = files_of(tmp_path)
    recording = Recording(tmp_path, since_wall_s=WALL + 2 * 86_400 + 300)
    back = list(recording)
    assert len(back) == 10 + 20
    assert recording.size_bytes == sum(size for _, size in files[2:])
    assert recording.progress() == 1.0


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("a,b\n1,2\n", 1, "expected what `scaler record` writes, or the columns t,mem"),
        ("t,mem\n1,0.5\n2,half\n", 3, "expected numbers"),
        ("# scaler recording version=9\nat_s\n", 1, "this scaler reads version 1"),
        ("# scaler recording version=1 wall_s=x\nat_s\n", 1, "'wall_s=x' cannot be read"),
        ("# scaler recording version=1 wall_s=1 at_s=1 unit=1\nat_s\n", 1, "memory is missing"),
        (
            "# scaler recording version=1 wall_s=1 at_s=1 unit=1 memory=9\nat_s,own\n1,2\n",
            2,
            "no column or figure 'available'",
        ),
        ("# scaler recording version=1 wall_s=1 at_s=1 unit=1 memory=9\nat_s,available,own\n1,2\n", 3, "2 values"),
        ("# scaler recording version=1 wall_s=1 at_s=1 unit=1 memory=9\nat_s,available,own\nx,2,3\n", 3, "'x,2,3'"),
        ("# scaler recording version=1 wall_s=1 at_s=1 unit=1 memory=9\nat_s,available,own\nnan,2,3\n", 3, "'nan,2,3'"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, expected: str, packed: bool
) -> None:
    """And with what was expected."""
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(RecordingError) as failed:
        list(Recording(path))
    assert str(failed.value).startswith(f"{path}:{line}: ")
    assert expected in str(failed.value)


def test_nothing_to_read_is_said_with_what_to_do(tmp_path: Path) -> None:
    """An empty folder, and one that is not there."""
    with pytest.raises(RecordingError, match="nothing is recorded here yet"):
        Recording(tmp_path)
    with pytest.raises(RecordingError, match="no such recording"):
        Recording(tmp_path / "absent")


def test_a_public_trace_is_a_machine_of_the_size_that_is_given(tmp_path: Path) -> None:
    """Columns t and mem; what cannot be is left out."""
    path = tmp_path / "trace.csv"
    path.write_text("t,mem,cpu\n0,0.5,1\n2,1.5,1\n4,0.25,1\n6,0.5")
    back = list(Recording(path, total_bytes=8 * GIB))
    assert [one.at_s for one in back] == [0, 4, 6]
    usage = [one.usage("ram") for one in back]
    assert [part.other_bytes if part else None for part in usage] == [4 * GIB, 2 * GIB, 4 * GIB]


def test_times_of_a_public_trace_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """After an endless time nothing could follow; a share that is no number is told."""
    path = tmp_path / "trace.csv"
    path.write_text("t,mem\n0,nan\n1,0.5\n")
    recording = Recording(path)
    assert [one.at_s for one in recording] == [1]
    assert "1 lines whose mem is no share" in recording.notes[0]
    path.write_text("t,mem\n1,0.5\ninf,0.5\n")
    with pytest.raises(RecordingError, match=r"trace.csv:3: 'inf,0.5' cannot be read"):
        list(Recording(path))


def test_figures_that_cannot_be_are_missing(tmp_path: Path) -> None:
    """Less than nothing, more than all, and what is no number must not look as if it had been measured."""
    path = tmp_path / "a.csv"
    path.write_text(
        "# scaler recording version=1 wall_s=9 at_s=1 unit=1 memory=9 swap=4 cores=2 gpu0=9\n"
        "at_s,available,own,swap,cpu,own_cpu,stalled,gpu0_used,gpu0_own\n"
        "1,2,-3,-1,nan,-.5,inf,-4,2\n"
        "2,2,10,5,1.5,.2,7,9,10\n"
    )
    one, two = Recording(path)
    assert (one.own_bytes, one.swap, one.cpu, one.pressure, one.gpus) == (None, None, Cpu(2), None, ())
    assert (two.own_bytes, two.swap, two.cpu, two.pressure) == (None, None, Cpu(2, None, 0.2), None)
    assert two.gpus == (Gpu(0, "", 9, 9, 0, None),)


def test_what_a_sensor_says_that_is_no_number_is_recorded_as_missing(tmp_path: Path) -> None:
    """As 0 it would read as an idle machine; as a time it would make the rest of the file unreadable."""
    some = [reading(1.0), reading(2.0), reading(math.nan, wall_s=WALL), reading(3.0)]
    some[0].cpu = Cpu(8, math.nan, 0.5)
    some[1].cpu = Cpu(8, 0.5, -0.1)
    record(tmp_path, some)
    back = list(Recording(tmp_path))
    assert [one.at_s for one in back] == [1, 2, 3]
    assert [one.cpu for one in back] == [Cpu(8, None, 0.5), Cpu(8, 0.5, None), None]


def test_a_limit_that_changes_while_a_sensor_is_missing_is_recorded(tmp_path: Path) -> None:
    """A container's memory may be raised, and its GPU's sensor may be broken for good."""
    some = [reading(float(at_s)) for at_s in range(4)]
    some[0].gpus = (Gpu(0, "g", GIB, 0, GIB, 0),)
    for one in some[1:]:
        one.missing = ("gpu",)
    for one in some[2:]:
        one.memory = Memory(2 * TOTAL, TOTAL + GIB)
    assert len(record(tmp_path, some)) == 2
    memories = [one.memory for one in Recording(tmp_path)]
    assert [memory.total_bytes if memory else None for memory in memories] == [TOTAL, TOTAL, 2 * TOTAL, 2 * TOTAL]


def test_memory_that_cannot_be_is_no_reading(tmp_path: Path) -> None:
    """Less than nothing, more than all, and none."""
    head = "# scaler recording version=1 wall_s=9 at_s=1 unit=1 memory=9\nat_s,available,own\n"
    path = tmp_path / "a.csv"
    path.write_text(f"{head}1,2,3\n2,-2,3\n3,10,3\n4,,3\n5,9,\n")
    recording = Recording(path)
    assert [one.at_s for one in recording] == [1, 5]
    assert "3 lines" in recording.notes[0]


def test_a_full_disk_is_told_once_and_recording_goes_on_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be written is a gap."""
    folder = tmp_path / "recording"
    recorder = Recorder(folder, wall_clock=lambda: WALL)
    folder.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        for at_s in range(600):
            recorder.take(reading(float(at_s)))
        folder.unlink()
        for at_s in range(600, 1200):
            recorder.take(reading(float(at_s)))
    recorder.close()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    times = [one.at_s for one in Recording(folder)]
    assert times == pytest.approx([float(at_s) for at_s in range(int(times[0]), 1200)])
    assert times[0] <= 600 + FLUSH_S


def test_files_deleted_while_recording_cost_no_more_than_they_held(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A person tidies up, or another recorder's bound is smaller; what follows begins a file of its own."""
    recorder = Recorder(tmp_path, wall_clock=lambda: WALL)
    for at_s in range(1000):
        if at_s == 500:
            for path, _ in files_of(tmp_path):
                path.unlink()
        recorder.take(reading(float(at_s)))
    recorder.close()
    recording = Recording(tmp_path)
    times = [one.at_s for one in recording]
    assert times == pytest.approx([float(at_s) for at_s in range(int(times[0]), 1000)])
    assert 500 - FLUSH_S <= times[0] <= 500
    assert recording.notes == []
    assert not caplog.records


def test_a_file_that_the_system_cut_short_costs_only_its_end(tmp_path: Path) -> None:
    """A real limit, in a process of its own: the write fails in the middle of a member."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        from tests.recordings.test_recordings import reading
        from scaler.recordings import Recorder
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        recorder = Recorder(Path(sys.argv[1]), wall_clock=lambda: 1.76e9)
        for at_s in range(3000):
            recorder.take(reading(float(at_s), (at_s * 7919 % 1600) / 100))
        recorder.close()
    """
    pytest.importorskip("resource", reason="file size limits are Unix only")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "readings are not recorded" in done.stderr
    recording = Recording(tmp_path)
    times = [one.at_s for one in recording]
    assert len(times) > 2000
    assert times == sorted(set(times))
    assert any("ends in the middle" in note for note in recording.notes)


def test_a_month_of_a_busy_machine_fits_the_default_bound(tmp_path: Path) -> None:
    """An hour is measured: every figure moves with every reading, as on a machine that is worked on."""
    noise = zlib.crc32
    some = []
    for at_s in range(3600):
        one = reading(at_s + 0.001 * (noise(b"%d" % at_s) % 9), 4 + noise(b"m%d" % (at_s // 3)) % 1000 / 2000)
        one.cpu = Cpu(8, noise(b"c%d" % at_s) % 100 / 100, noise(b"o%d" % at_s) % 10 / 100)
        some.append(one)
    record(tmp_path, some)
    assert sum(size for _, size in files_of(tmp_path)) * 24 * 31 < 64 * 1024**2
