"""NVIDIA's GPUs, against a fake NVML library that the real pynvml talks to, and what holds for all makers'."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pynvml
import pytest

import scaler
from scaler.errors import SensorFailed
from scaler.monitor import ResourceMonitor, SensorLost, SensorRecovered
from scaler.readings import Gpu
from scaler.sensors import drm
from scaler.sensors.gpu import GpuSensor, held_by_processes
from scaler.sensors.memory import MemorySensor
from scaler.sensors.processes import ProcessKey
from tests.sensors.conftest import GIB, NOBODYS, FakeNvml, FakeProc, compile_nvml

UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST = 1, 3, 4, 9, 13, 15
VERSION_MISMATCH, GPU_NOT_FOUND, UNKNOWN = 18, 28, 999
NOT_AVAILABLE = 2**64 - 1
OURS, OURS_TOO, ANOTHERS, A_THIRDS = range(NOBODYS + 1, NOBODYS + 5)
"""Processes that are only said to be there: a thread of a real one that had such a number would be taken for that."""
LIMIT_S = 5.0
"""A time limit that a test waits for, though a busy machine must not reach it with what answers."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="there a thread has a number of the processes' row")


class Tree:
    """A process tree of given processes."""

    def __init__(self, *pids: int) -> None:
        self._pids = set(pids)

    def pids(self) -> set[int]:
        return self._pids

    def ram_bytes(self) -> int:
        return 0

    def cpu_s(self) -> Mapping[ProcessKey, float]:
        return {}


def test_two_gpus_are_read_each_with_our_part(nvml: FakeNvml) -> None:
    """Own is what our processes hold, on this GPU, whether they compute or draw."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB, load=37, celsius=61)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB, load=5, celsius=45)
    nvml.process(0, "compute", OURS, 6 * GIB)
    nvml.process(0, "compute", OURS_TOO, 1 * GIB)
    nvml.process(0, "compute", ANOTHERS, 2 * GIB)
    nvml.process(1, "graphics", OURS_TOO, GIB // 2)
    assert GpuSensor(Tree(OURS, OURS_TOO)).read() == (
        Gpu(0, "NVIDIA A", 24 * GIB, 10 * GIB, 14 * GIB, 7 * GIB, 0.37, 61.0, False),
        Gpu(1, "NVIDIA B", 8 * GIB, GIB, 7 * GIB, GIB // 2, 0.05, 45.0, False),
    )


@pytest.mark.parametrize(
    ("mask", "throttled"), [(0, False), (0x1 | 0x4, False), (0x80, False), (0x20, True), (0x40 | 0x8, True)]
)
@pytest.mark.parametrize("older", [False, True])
def test_a_gpu_is_throttled_when_heat_slows_it_down(nvml: FakeNvml, mask: int, throttled: bool, older: bool) -> None:
    """Not when it idles, and not for its power; an older driver knows the call by its older name."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.slowed(0, mask)
    if older:
        nvml.fail("event_reasons", FUNCTION_NOT_FOUND)
    gpus = GpuSensor(Tree()).read()
    assert gpus is not None
    assert gpus[0].throttled is throttled


def test_a_process_that_computes_and_draws_counts_once(nvml: FakeNvml) -> None:
    """NVML lists all of its memory in both lists."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", OURS, 3 * GIB)
    nvml.process(0, "graphics", OURS, 3 * GIB)
    assert own_bytes(GpuSensor(Tree(OURS))) == 3 * GIB


def own_bytes(sensor: GpuSensor) -> int | None:
    """Our part of the first GPU."""
    gpus = sensor.read()
    assert gpus is not None
    return gpus[0].own_bytes


def test_nothing_loaded_holds_nothing(nvml: FakeNvml) -> None:
    """Without processes of ours the lists need not even be supported."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.fail("compute", NOT_SUPPORTED)
    nvml.fail("graphics", NOT_SUPPORTED)
    assert own_bytes(GpuSensor(Tree())) == 0


def test_our_part_is_unknown_when_the_lists_are_not_supported(nvml: FakeNvml) -> None:
    """0 would blame others for our own memory."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.fail("compute", NOT_SUPPORTED)
    nvml.fail("graphics", NOT_SUPPORTED)
    assert own_bytes(GpuSensor(Tree(OURS))) is None


def test_one_list_is_enough(nvml: FakeNvml) -> None:
    """A card without displays has no graphics list."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", OURS, GIB)
    nvml.fail("graphics", NOT_SUPPORTED)
    assert own_bytes(GpuSensor(Tree(OURS))) == GIB


def test_our_part_is_unknown_when_the_driver_does_not_tell_a_process_its_size(nvml: FakeNvml) -> None:
    """Windows' display driver model keeps it to itself."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", OURS, NOT_AVAILABLE)
    assert own_bytes(GpuSensor(Tree(OURS))) is None


@pytest.fixture
def thread() -> Iterator[int]:
    """The number of a thread of this process, which is not its first."""
    ended = threading.Event()
    waiting = threading.Thread(target=ended.wait)
    waiting.start()
    assert waiting.native_id is not None
    yield waiting.native_id
    ended.set()
    waiting.join()


@linux
def test_what_a_thread_of_ours_opened_is_ours(nvml: FakeNvml, thread: int) -> None:
    """Some drivers tell its number in place of the process's; a process may come to a GPU by several."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", thread, 3 * GIB)
    assert own_bytes(GpuSensor(Tree(os.getpid()))) == 3 * GIB
    assert held_by_processes() == {"gpu0": {os.getpid(): 3 * GIB}}
    nvml.process(0, "compute", os.getpid(), GIB)
    assert own_bytes(GpuSensor(Tree(os.getpid()))) == 4 * GIB


@linux
def test_nobody_who_is_listed_holds_nothing(nvml: FakeNvml, thread: int) -> None:
    """Some drivers tell a process's size by its first thread only, and in a container of none."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", thread, 0)
    assert own_bytes(GpuSensor(Tree(os.getpid()))) is None
    nvml.process(0, "compute", os.getpid(), 3 * GIB)
    assert own_bytes(GpuSensor(Tree(os.getpid()))) == 3 * GIB


@linux
@pytest.mark.parametrize("number", [NOBODYS, 0, 2**32 - 1])
def test_a_number_that_nobody_here_has_may_be_ours(nvml: FakeNvml, number: int) -> None:
    """As an older driver tells them to a container: by the host's numbers."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", os.getpid(), 2 * GIB)
    assert own_bytes(GpuSensor(Tree(OURS))) == 0
    nvml.process(0, "compute", number, 3 * GIB)
    assert own_bytes(GpuSensor(Tree(OURS))) is None
    assert own_bytes(GpuSensor(Tree())) == 0
    nvml.process(0, "compute", OURS, GIB)
    assert own_bytes(GpuSensor(Tree(OURS))) == GIB


def test_an_older_driver_tells_its_processes_the_older_way(nvml: FakeNvml) -> None:
    """Without the newer calls in its library, as those for Kepler's cards."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", OURS, 2 * GIB)
    nvml.process(0, "graphics", OURS_TOO, GIB)
    nvml.fail("compute_v3", FUNCTION_NOT_FOUND)
    nvml.fail("graphics_v3", FUNCTION_NOT_FOUND)
    assert own_bytes(GpuSensor(Tree(OURS, OURS_TOO))) == 3 * GIB


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND])
def test_what_a_gpu_does_not_support_is_missing(nvml: FakeNvml, code: int) -> None:
    """A GPU in MIG mode has no load of its own; old cards have no sensor."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB, load=37)
    for call in ("utilization", "temperature", "temperature_v", "event_reasons", "throttle_reasons"):
        nvml.fail(call, code)
    assert GpuSensor(Tree()).read() == (Gpu(0, "NVIDIA A", 24 * GIB, 10 * GIB, 14 * GIB, 0, None, None),)


def test_an_older_driver_tells_the_temperature_the_older_way(nvml: FakeNvml) -> None:
    """The newer call is not in its library."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB, celsius=55)
    nvml.fail("temperature_v", FUNCTION_NOT_FOUND)
    gpus = GpuSensor(Tree()).read()
    assert gpus is not None
    assert gpus[0].temperature_c == 55.0


def test_an_older_pynvml_tells_the_temperature_the_older_way(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older release does not know the newer call."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB, celsius=55)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV", raising=False)
    gpus = GpuSensor(Tree()).read()
    assert gpus is not None
    assert gpus[0].temperature_c == 55.0


def test_a_gpu_without_memory_of_its_own_is_left_out(nvml: FakeNvml) -> None:
    """A chip that shares the machine's RAM is no resource beside it; the other keeps its number."""
    nvml.gpu("NVIDIA shared", GIB, GIB)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    nvml.gpu("NVIDIA shared, too", 0, 0)
    nvml.fail("memory", NOT_SUPPORTED, gpu=0)
    gpus = GpuSensor(Tree()).read()
    assert gpus is not None
    assert [gpu.index for gpu in gpus] == [1]


@pytest.mark.parametrize("code", [GPU_IS_LOST, UNKNOWN, GPU_NOT_FOUND, UNINITIALIZED])
@pytest.mark.parametrize("call", ["memory", "utilization", "compute", "count"])
def test_a_lost_gpu_is_a_failure_until_it_is_back(nvml: FakeNvml, call: str, code: int) -> None:
    """NVML keeps saying so until its session is begun anew, so the sensor does that; sessions do not pile up."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    sensor = GpuSensor(Tree(OURS))
    before = sensor.read()
    nvml.fail(call, code, gpu=-1 if call == "count" else 1)
    for _ in range(3):
        with pytest.raises(SensorFailed, match="NVML: " if call == "count" else r"NVML: gpu1 \(NVIDIA B\): "):
            sensor.read()
    nvml.heal()
    assert sensor.read() == before
    assert ctypes.CDLL(str(nvml.library)).fake_sessions() == 1


def test_a_gpu_that_is_gone_from_the_bus_is_a_failure_until_it_is_back(nvml: FakeNvml) -> None:
    """A new session does not even count it, or has no handle for it; and it comes back without a restart of ours."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    sensor = GpuSensor(Tree())
    before = sensor.read()
    nvml.fail("memory", GPU_IS_LOST, gpu=1)
    nvml.fail("handle", GPU_IS_LOST, gpu=1)
    for _ in range(2):
        with pytest.raises(SensorFailed, match="NVML: "):
            sensor.read()
    nvml.heal()
    second = nvml.gpus.pop()
    nvml.save()
    for _ in range(2):
        with pytest.raises(SensorFailed, match=r"1 of 2 GPUs answer, gpu1 \(NVIDIA B\) not"):
            sensor.read()
    nvml.gpus.append(second)
    nvml.save()
    assert sensor.read() == before


def test_a_driver_that_is_restarted_is_a_failure_meanwhile(nvml: FakeNvml) -> None:
    """Once a GPU was seen, a driver that is not loaded is not "this machine has none"."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    sensor = GpuSensor(Tree())
    before = sensor.read()
    nvml.fail("count", DRIVER_NOT_LOADED)
    nvml.fail("init", DRIVER_NOT_LOADED)
    for _ in range(2):
        with pytest.raises(SensorFailed, match="Driver Not Loaded"):
            sensor.read()
    nvml.heal()
    assert sensor.read() == before


def test_a_driver_that_was_updated_meanwhile_is_read_again(tmp_path: Path) -> None:
    """The library in memory refuses every driver but its own: the new one is loaded, once it is there."""
    libraries = [compile_nvml(tmp_path, version) for version in (1, 2)]
    if None in libraries:
        pytest.skip("no C compiler to build the fake NVML library with, or not Linux")
    # A link that leads to a file with the version in its name, as a driver installs it.
    library = tmp_path / "libnvidia-ml.so.1"
    library.symlink_to("libnvidia-ml.so.1.0")
    fake = FakeNvml(library, tmp_path / "state")
    fake.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    program = f"""if True:
        import os
        from pathlib import Path
        from scaler.errors import SensorFailed
        from scaler.sensors.gpu import GpuSensor
        from scaler.sensors.processes import process_tree
        sensor = GpuSensor(process_tree(lambda: ()))
        def told():
            try:
                print([(gpu.index, gpu.name) for gpu in sensor.read()])
            except SensorFailed as error:
                print("failed:", error)
        told()
        state = Path(os.environ["FAKE_NVML_STATE"])
        state.write_text(state.read_text().replace("driver 1", "driver 2"))
        told()
        told()
        os.unlink({str(libraries[0])!r})
        os.unlink({str(library)!r})
        told()
        os.symlink("libnvidia-ml.so.2.0", {str(library)!r})
        told()
        told()
        told()
        print(sum("libnvidia-ml.so" in line and "r-xp" in line for line in open("/proc/self/maps")), "libraries")
    """
    seen = run_with(fake, program).splitlines()
    assert seen[0] == seen[5] == seen[6] == "[(0, 'NVIDIA A')]"
    assert all("mismatch" in line for line in seen[1:5])
    assert seen[7] == "2 libraries"


def test_one_gpu_less_than_before_is_a_failure(nvml: FakeNvml) -> None:
    """NVML numbers what is left anew: what is called 0 now may be what was called 1."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    sensor = GpuSensor(Tree())
    before = sensor.read()
    first = nvml.gpus.pop(0)
    nvml.save()
    with pytest.raises(SensorFailed, match="1 of 2 GPUs answer"):
        sensor.read()
    nvml.gpus.insert(0, first)
    nvml.save()
    assert sensor.read() == before


def test_a_number_never_moves_to_another_card(nvml: FakeNvml) -> None:
    """NVML goes by the place on the bus: a card in front of the others, or in place of one, is not their number's."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    nvml.process(1, "compute", OURS, GIB)
    sensor = GpuSensor(Tree())
    sensor.read()
    nvml.gpu("NVIDIA new", 12 * GIB, 2 * GIB)
    nvml.gpus.insert(0, nvml.gpus.pop())
    nvml.processes = [f"process 2 compute {OURS} {GIB} -1"]
    nvml.save()
    assert numbered(sensor) == {0: "NVIDIA A", 1: "NVIDIA B", 2: "NVIDIA new"}
    assert held_by_processes() == {"gpu0": {}, "gpu1": {OURS: GIB}, "gpu2": {}}
    del nvml.gpus[1]
    nvml.save()
    with pytest.raises(SensorFailed, match=r"2 of 3 GPUs answer, gpu0 \(NVIDIA A\) not"):
        sensor.read()
    nvml.processes = [f"process 1 compute {OURS} {GIB} -1"]
    nvml.save()
    assert held_by_processes() == {"gpu1": {OURS: GIB}, "gpu2": {}}


def numbered(sensor: GpuSensor) -> dict[int, str]:
    """The names of the GPUs by their numbers."""
    return {gpu.index: gpu.name for gpu in sensor.read() or ()}


def test_a_gpu_that_is_not_for_us_costs_the_others_nothing(nvml: FakeNvml) -> None:
    """NVML counts those of other containers, too; the numbers are as NVML has them."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    nvml.fail("handle", NO_PERMISSION, gpu=0)
    assert numbered(GpuSensor(Tree())) == {1: "NVIDIA B"}
    assert held_by_processes() == {"gpu1": {}}


def test_a_machine_without_the_library_lacks_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the usual machine, and not a failure."""

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(drm, "SYS", None)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", absent)
    assert GpuSensor(Tree()).read() is None


def test_a_library_without_a_driver_lacks_gpus(nvml: FakeNvml) -> None:
    """A package may bring the library to a machine that never had a GPU."""
    nvml.fail("init", DRIVER_NOT_LOADED)
    assert GpuSensor(Tree()).read() is None


def test_a_driver_without_gpus_lacks_them(nvml: FakeNvml) -> None:
    """And one that is plugged in later is found."""
    sensor = GpuSensor(Tree())
    assert sensor.read() is None
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    assert sensor.read() is not None


def in_mig_mode(nvml: FakeNvml, *, parent: bool) -> None:
    """One GPU of two instances: 3 holds ours and another's, 5 another's; ``parent``: we may look at it as a whole."""
    nvml.gpu("NVIDIA A", 80 * GIB, 21 * GIB, load=37, celsius=61)
    nvml.instance(0, 0, 3, 40 * GIB, 12 * GIB)
    nvml.instance(0, 4, 5, 20 * GIB, 8 * GIB)
    nvml.process(0, "compute", OURS, 7 * GIB, instance=3)
    nvml.process(0, "compute", ANOTHERS, 4 * GIB, instance=3)
    nvml.process(0, "compute", A_THIRDS, 8 * GIB, instance=5)
    nvml.fail("utilization", NOT_SUPPORTED)
    nvml.fail("instance_graphics", NOT_SUPPORTED)
    for call in ("memory", "compute", "graphics") if not parent else ():
        nvml.fail(call, NO_PERMISSION)


def test_a_gpu_in_mig_mode_is_one_with_all_its_instances(nvml: FakeNvml) -> None:
    """It has no load as a whole: that is missing, and not 0."""
    in_mig_mode(nvml, parent=True)
    sensor = GpuSensor(Tree(OURS))
    assert sensor.read() == (Gpu(0, "NVIDIA A", 80 * GIB, 21 * GIB, 59 * GIB, 7 * GIB, None, 61.0, False),)


def test_where_only_its_instances_may_be_looked_at_they_are_it(nvml: FakeNvml) -> None:
    """As in a container that was given some of them; a place without an instance is passed over."""
    in_mig_mode(nvml, parent=False)
    sensor = GpuSensor(Tree(OURS))
    assert sensor.read() == (Gpu(0, "NVIDIA A", 60 * GIB, 20 * GIB, 40 * GIB, 7 * GIB, None, 61.0, False),)
    assert held_by_processes() == {"gpu0": {OURS: 7 * GIB, ANOTHERS: 4 * GIB, A_THIRDS: 8 * GIB}}


def test_compute_instances_share_the_memory_of_theirs(nvml: FakeNvml) -> None:
    """Each tells all of it, and all the processes."""
    in_mig_mode(nvml, parent=False)
    nvml.instance(0, 1, 3, 40 * GIB, 12 * GIB)
    sensor = GpuSensor(Tree(OURS))
    assert sensor.read() == (Gpu(0, "NVIDIA A", 60 * GIB, 20 * GIB, 40 * GIB, 7 * GIB, None, 61.0, False),)


def test_a_process_in_two_instances_holds_in_both(nvml: FakeNvml) -> None:
    """Once in each, though it is one process."""
    in_mig_mode(nvml, parent=True)
    nvml.process(0, "compute", OURS, GIB, instance=5)
    assert own_bytes(GpuSensor(Tree(OURS))) == 8 * GIB


def test_a_gpu_in_mig_mode_that_tells_us_nothing_is_left_out(nvml: FakeNvml) -> None:
    """Without an instance for us nothing can be loaded there either."""
    in_mig_mode(nvml, parent=False)
    nvml.fail("mig_handle", NO_PERMISSION)
    assert GpuSensor(Tree(OURS)).read() is None


def test_a_call_that_hangs_holds_up_one_reading_and_costs_one_thread(nvml: FakeNvml, proc: FakeProc) -> None:
    """RAM is told all the same, at once from the second reading on, and the GPUs when the driver has recovered."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    now = 0.0
    monitor = ResourceMonitor(
        sensors=[GpuSensor(Tree()), MemorySensor(proc=proc.path)], sensor_timeout_s=LIMIT_S, clock=lambda: now
    )
    told: list[object] = []
    monitor.subscribe(lambda event: told.append(event) if isinstance(event, SensorLost | SensorRecovered) else None)
    before = monitor.read_now()
    nvml.hang("memory", 60_000)
    now = 60.0
    monitor.read_now()
    threads, began = threading.active_count(), time.monotonic()
    for _ in range(20):
        now += 60
        reading = monitor.read_now()
        assert (reading.memory, reading.gpus, reading.missing) == (before.memory, None, ("gpus",))
    assert threading.active_count() <= threads
    assert time.monotonic() < began + 20 * LIMIT_S / 2, "they waited for the limit again"
    nvml.heal()
    while (reading := monitor.read_now()).missing:
        now += 60
    assert reading.gpus == before.gpus
    assert told == [SensorLost("gpus", "no answer within 5 s", 1.0), SensorRecovered("gpus")]


class OtherGpus:
    """GPUs of another maker."""

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = list(gpus)
        self.renewed = 0

    def read(self, own: Collection[int]) -> list[Gpu]:
        return self.gpus

    def held(self) -> dict[int, dict[int, int]]:
        return {}

    def renew(self) -> None:
        self.renewed += 1


def test_the_gpus_of_all_makers_are_one_list(nvml: FakeNvml) -> None:
    """By number, and one that is gone is missed whoever made it, and looked for from the start."""
    one, two = Gpu(1, "AMD A", GIB, 0, GIB), Gpu(0, "NVIDIA A", GIB, 0, GIB)
    first, second = OtherGpus(one), OtherGpus(two)
    sensor = GpuSensor(Tree(), gpus=[first, second])
    assert sensor.read() == (two, one)
    second.gpus.clear()
    with pytest.raises(SensorFailed, match=r"1 of 2 GPUs answer, gpu0 \(NVIDIA A\) not"):
        sensor.read()
    assert (first.renewed, second.renewed) == (1, 1)
    second.gpus.append(two)
    assert sensor.read() == (two, one)


def test_the_library_is_found_by_its_name_in_a_fresh_process(nvml: FakeNvml) -> None:
    """As on a machine with a driver: nothing here is patched."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    program = (
        "from scaler.sensors.gpu import GpuSensor\n"
        "from scaler.sensors.processes import process_tree\n"
        "print(GpuSensor(process_tree(lambda: ())).read()[0].name)"
    )
    assert run_with(nvml, program) == "NVIDIA A\n"


def run_with(nvml: FakeNvml, program: str) -> str:
    """What a Python program prints that finds the fake library where the driver's would be."""
    environment = os.environ | {
        "FAKE_NVML_STATE": str(nvml.state),
        "LD_LIBRARY_PATH": str(nvml.library.parent),
        "PYTHONPATH": str(Path(scaler.__file__).parents[1]),
    }
    child = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    return child.stdout
