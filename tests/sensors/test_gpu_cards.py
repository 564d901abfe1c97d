"""AMD's and Intel's cards, against files laid out as Linux lays them out, and a fake of Intel's driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import scaler
from scaler.errors import SensorFailed
from scaler.readings import Gpu, Reading
from scaler.sensors import amd, gpu, intel
from scaler.sensors.drm import DrmGpus
from scaler.sensors.gpu import Gpus, GpuSensor, Numbers
from scaler.sensors.nvidia import NvidiaGpus
from tests.sensors.conftest import GIB, MIB, FakeNvml, write
from tests.sensors.test_gpu_sensor import OtherGpus, Tree

AMD_0, AMD_1 = "0000:03:00.0", "0000:0a:00.0"


class Machine:
    """A machine's /sys, /proc and /dev/dri with graphics cards."""

    def __init__(self, path: Path) -> None:
        self.sys, self.proc, self.devices = path / "sys", path / "proc", path / "dri"
        self.numbers = Numbers()
        self.clients = 0
        for folder in (self.sys / "class" / "drm", self.sys / "bus" / "pci" / "devices", self.proc, self.devices):
            folder.mkdir(parents=True)

    def pci(self, address: str, vendor: str, kind: str = "0x030000") -> Path:
        """Add a device to the PCI bus; return its folder."""
        device = self.sys / "devices" / address
        write(device / "vendor", vendor)
        write(device / "class", kind)
        (self.sys / "bus" / "pci" / "devices" / address).symlink_to(device)
        return device

    def card(self, number: int, address: str, driver: str, vendor: str, **files: object) -> Path:
        """Add a card with its driver; ``number`` is that of its nodes. Return its folder."""
        device = self.pci(address, vendor)
        for name, text in files.items():
            write(device / name, text)
        (device / "driver").symlink_to(f"../../bus/pci/drivers/{driver}")
        for node in (f"card{number}", f"renderD{128 + number}"):
            (device / "drm" / node).mkdir(parents=True)
            write(self.devices / node, "")
            entry = self.sys / "class" / "drm" / node
            entry.mkdir()
            (entry / "device").symlink_to(f"../../../devices/{address}")
        return device

    def amd(self, number: int, address: str, total: int, used: int, **files: object) -> Path:
        """Add an AMD card."""
        sizes = {"mem_info_vram_total": total, "mem_info_vram_used": used}
        return self.card(number, address, "amdgpu", "0x1002", device="0x744c", **sizes, **files)

    def opens(self, pid: int, node: str, *lines: str, client: int | None = None) -> None:
        """Have a process open a card's node; ``lines`` are what the kernel tells of its memory."""
        if client is None:
            self.clients += 1
            client = self.clients
        files = self.proc / str(pid) / "fd"
        files.mkdir(parents=True, exist_ok=True)
        file = len(list(files.iterdir()))
        (files / str(file)).symlink_to(self.devices / node)
        head = ("pos:\t0", "flags:\t02100002", "drm-driver:\tamdgpu", f"drm-client-id:\t{client}")
        write(self.proc / str(pid) / "fdinfo" / str(file), "\n".join([*head, *lines]))

    def gpus(self) -> DrmGpus:
        """What reads AMD's cards here."""
        return DrmGpus(self.numbers.of, {"amdgpu": amd.figures}, sys=self.sys, proc=self.proc, devices=self.devices)

    def sensor(self, *own: int) -> GpuSensor:
        """A sensor of AMD's cards here, with our processes."""
        return GpuSensor(Tree(*own), gpus=[self.gpus()])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without a card."""
    return Machine(tmp_path)


def resident(size: int) -> str:
    """How a kernel tells the memory that a client has on an AMD card."""
    return f"drm-total-vram:\t{size // 1024} KiB\ndrm-resident-vram:\t{size // 1024} KiB\ndrm-resident-gtt:\t7 MiB"


def own_bytes(sensor: GpuSensor) -> list[int | None]:
    """Our part of each card."""
    return [card.own_bytes for card in sensor.read() or ()]


def test_two_cards_are_read_each_with_our_part(machine: Machine) -> None:
    """In the order of the bus, whichever came up first; what others hold is the rest."""
    second = machine.amd(0, AMD_1, 8 * GIB, 1 * GIB, gpu_busy_percent=3)
    first = machine.amd(1, AMD_0, 24 * GIB, 10 * GIB, gpu_busy_percent=37, product_name="Radeon A")
    write(first / "hwmon" / "hwmon5" / "temp1_input", 61000)
    write(second / "hwmon" / "hwmon2" / "temp1_input", 45500)
    machine.opens(4242, "renderD129", resident(6 * GIB))
    machine.opens(4243, "renderD129", resident(GIB))
    machine.opens(4243, "renderD128", resident(GIB // 2))
    machine.opens(999, "renderD129", resident(2 * GIB))
    gpus = machine.sensor(4242, 4243).read()
    assert gpus == (
        Gpu(0, "Radeon A", 24 * GIB, 10 * GIB, 14 * GIB, 7 * GIB, 0.37, 61.0),
        Gpu(1, "AMD 0x744c", 8 * GIB, GIB, 7 * GIB, GIB // 2, 0.03, 45.5),
    )
    usage = Reading(0.0, gpus=gpus).usage("gpu0")
    assert usage is not None
    assert (usage.own_bytes, usage.other_bytes) == (7 * GIB, 3 * GIB)


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        (("drm-memory-vram:\t2048 KiB", "drm-memory-gtt: \t9 KiB"), 2 * MIB),
        (("drm-memory-vram:\t3 MiB", "drm-total-vram:\t9 MiB", "drm-resident-vram:\t3072 KiB"), 3 * MIB),
        (("drm-resident-vram:\t3072 KiB", "drm-memory-vram:\t3 MiB"), 3 * MIB),
        (("drm-resident-vram:\t4096",), 4096),
        (("drm-resident-vram:\t0", "drm-total-vram:\t7 MiB"), 0),
        (("drm-resident-vram0:\t1 MiB", "drm-resident-vram1:\t2 MiB", "drm-resident-system:\t5 MiB"), 3 * MIB),
    ],
)
def test_what_lies_on_the_card_counts_in_every_kernels_words(
    machine: Machine, lines: tuple[str, ...], size: int
) -> None:
    """Older kernels have another name for it; what was moved out to RAM would not come back."""
    machine.amd(0, AMD_0, 8 * GIB, GIB)
    machine.opens(4242, "renderD128", *lines)
    assert own_bytes(machine.sensor(4242)) == [size]


def test_what_files_or_processes_share_counts_once(machine: Machine) -> None:
    """A file that was opened once and handed on is one client; two that were opened are two."""
    machine.amd(0, AMD_0, 8 * GIB, 4 * GIB)
    machine.opens(4242, "renderD128", resident(GIB), client=7)
    machine.opens(4242, "renderD128", resident(GIB), client=7)
    machine.opens(4243, "renderD128", resident(GIB), client=7)
    machine.opens(4243, "card0", resident(GIB), client=8)
    assert own_bytes(machine.sensor(4242, 4243)) == [2 * GIB]


def test_a_process_without_the_card_holds_nothing_of_it(machine: Machine) -> None:
    """Other files of it, other cards' nodes, and processes that have ended do not count."""
    machine.amd(0, AMD_0, 8 * GIB, GIB)
    write(machine.devices / "renderD200", "")
    machine.opens(4242, "renderD200", "drm-driver:\tnvidia-drm")
    (machine.proc / "4242" / "fd" / "9").symlink_to("socket:[1]")
    assert own_bytes(machine.sensor(4242, 4243)) == [0]
    assert own_bytes(machine.sensor()) == [0]


@pytest.mark.parametrize("text", ["drm-engine-gfx:\t123 ns", None])
def test_our_part_is_unknown_where_the_kernel_does_not_tell_it(machine: Machine, text: str | None) -> None:
    """0 would blame others for our own memory. The first kernels told the memory otherwise, or no client."""
    machine.amd(0, AMD_0, 8 * GIB, GIB)
    machine.opens(4242, "renderD128", text or "")
    if text is None:
        write(machine.proc / "4242" / "fdinfo" / "0", "pos:\t0\npdev:\t0000:03:00.0\nvram mem:\t9 kB")
    assert own_bytes(machine.sensor(4242)) == [None]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be a user who may not look at everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_our_part_is_unknown_where_we_may_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a service holds the model, under a user of its own; a survey tells what it may see."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        machine = Machine(Path(folder))
        machine.amd(0, AMD_0, 8 * GIB, 4 * GIB)
        machine.opens(4242, "renderD128", resident(GIB))
        machine.opens(4243, "renderD128", resident(2 * GIB))
        (machine.proc / "4242" / "fd").chmod(0o000)
        with unprivileged():
            assert own_bytes(machine.sensor(4242, 4243)) == [None]
            assert own_bytes(machine.sensor(4243)) == [2 * GIB]
            assert machine.gpus().held() == {0: {4243: 2 * GIB}}
        (machine.proc / "4242" / "fd").chmod(0o755)


@pytest.mark.parametrize("kept", ["mem_info_vram_total", "mem_info_vram_used", "drm"])
def test_a_card_that_is_kept_from_us_costs_the_others_nothing(kept: str) -> None:
    """As in a sandbox: what it may not look at is not a card that fails."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        machine = Machine(Path(folder))
        hidden = machine.amd(0, AMD_0, 8 * GIB, 4 * GIB) / kept
        machine.amd(1, AMD_1, 24 * GIB, GIB)
        hidden.chmod(0o000)
        with unprivileged():
            assert [card.total_bytes for card in machine.sensor().read() or ()] == [24 * GIB]
            assert machine.gpus().held() == {0: {}}
        hidden.chmod(0o755)


def test_where_no_card_may_be_looked_at_the_other_makers_are_read() -> None:
    """The folder of all cards may be kept from us, too."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        machine = Machine(Path(folder))
        machine.amd(0, AMD_0, 8 * GIB, 4 * GIB)
        cards, nvidia = machine.sys / "class" / "drm", Gpu(0, "NVIDIA A", GIB, 0, GIB)
        cards.chmod(0o000)
        with unprivileged():
            assert GpuSensor(Tree(), gpus=[OtherGpus(nvidia), machine.gpus()]).read() == (nvidia,)
        cards.chmod(0o755)


def test_what_every_process_holds_is_told_once(machine: Machine) -> None:
    """What one opened and handed on is held by whom it was handed to."""
    machine.amd(0, AMD_0, 8 * GIB, 5 * GIB)
    machine.amd(1, AMD_1, 8 * GIB, GIB)
    machine.opens(900, "card0", resident(GIB), client=7)
    machine.opens(1200, "card0", resident(GIB), client=7)
    machine.opens(1200, "renderD128", resident(2 * GIB))
    machine.opens(1300, "renderD129", resident(GIB))
    assert machine.gpus().held() == {0: {1200: 3 * GIB}, 1: {1300: GIB}}


def test_what_a_card_does_not_tell_is_missing(machine: Machine) -> None:
    """Old cards have no sensor; one in a reset refuses."""
    card = machine.amd(0, AMD_0, 8 * GIB, GIB)
    (card / "gpu_busy_percent").mkdir()
    assert machine.sensor().read() == (Gpu(0, "AMD 0x744c", 8 * GIB, GIB, 7 * GIB, 0, None, None),)


def test_a_card_that_sleeps_is_not_woken(machine: Machine) -> None:
    """On a laptop that would cost hours of its battery; its memory can be told all the same."""
    card = machine.amd(0, AMD_0, 8 * GIB, 10 * MIB, gpu_busy_percent=0)
    write(card / "hwmon" / "hwmon5" / "temp1_input", 61000)
    status = write(card / "power" / "runtime_status", "suspended")
    assert machine.sensor().read() == (Gpu(0, "AMD 0x744c", 8 * GIB, 10 * MIB, 8 * GIB - 10 * MIB, 0, None, None),)
    write(status, "active")
    assert machine.sensor().read() == (Gpu(0, "AMD 0x744c", 8 * GIB, 10 * MIB, 8 * GIB - 10 * MIB, 0, 0.0, 61.0),)


def test_cards_of_other_drivers_and_displays_are_left_out(machine: Machine) -> None:
    """They tell no memory; nor does a kernel from before it was told."""
    machine.card(0, "0000:00:02.0", "i915", "0x8086")
    machine.card(1, "0000:01:00.0", "nvidia", "0x10de")
    machine.card(2, AMD_0, "amdgpu", "0x1002")
    (machine.sys / "class" / "drm" / "card1-DP-1").mkdir()
    (machine.sys / "class" / "drm" / "card7").mkdir()
    write(machine.sys / "class" / "drm" / "version", "drm 1.1.0")
    assert machine.sensor().read() is None
    assert machine.gpus().held() == {}


def test_a_machine_without_cards_lacks_them(tmp_path: Path) -> None:
    """As one without graphics, and one that is not Linux."""
    numbers = Numbers()
    for root in (tmp_path, None):
        gpus = DrmGpus(numbers.of, {"amdgpu": amd.figures}, sys=root)
        assert gpus.read({1}) == []
        assert gpus.held() == {}


def test_nvidias_cards_come_first_even_if_their_driver_comes_late(machine: Machine, nvml: FakeNvml) -> None:
    """Else gpu0 would be one card after one start and another after the next."""
    machine.pci("0000:01:00.0", "0x10de", "0x030200")
    machine.pci("0000:01:00.1", "0x10de", "0x040300")
    machine.amd(0, "0000:00:01.0", 8 * GIB, GIB)
    sensor = GpuSensor(Tree(), gpus=[NvidiaGpus(machine.numbers.of), machine.gpus()])
    assert [card.index for card in sensor.read() or ()] == [1]
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    assert [(card.index, card.name) for card in sensor.read() or ()] == [(0, "NVIDIA A"), (1, "AMD 0x744c")]
    nvml.gpu("NVIDIA B", 8 * GIB, GIB)
    assert [card.index for card in sensor.read() or ()] == [0, 1, 2]


def test_a_card_that_is_taken_out_is_a_failure_until_it_is_back(machine: Machine) -> None:
    """And no other takes its number meanwhile, though it takes its nodes."""
    machine.amd(0, AMD_0, 24 * GIB, 10 * GIB)
    machine.amd(1, AMD_1, 8 * GIB, GIB)
    sensor = machine.sensor()
    before = sensor.read()
    entry = machine.sys / "class" / "drm" / "card0"
    (entry / "device").unlink()
    with pytest.raises(SensorFailed, match=r"1 of 2 GPUs answer, gpu0 \(AMD 0x744c\) not"):
        sensor.read()
    machine.amd(5, "0000:0c:00.0", 16 * GIB, GIB)
    with pytest.raises(SensorFailed, match="gpu0"):
        sensor.read()
    (entry / "device").symlink_to(f"../../../devices/{AMD_0}")
    after = sensor.read()
    assert before is not None
    assert after is not None
    assert after[:2] == before
    assert after[2].total_bytes == 16 * GIB


def test_a_card_whose_driver_fails_is_a_failure_that_names_it(machine: Machine) -> None:
    """So that a person knows which."""
    card = machine.amd(0, AMD_0, 24 * GIB, 10 * GIB)
    sensor = machine.sensor()
    sensor.read()
    (card / "mem_info_vram_used").unlink()
    (card / "mem_info_vram_used").mkdir()
    with pytest.raises(SensorFailed, match=r"amdgpu 0000:03:00\.0: .*see the kernel's log"):
        sensor.read()


def test_a_survey_of_programs_sees_all_makers_cards(
    machine: Machine, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the numbers that readings have."""
    machine.pci("0000:01:00.0", "0x10de")
    machine.amd(0, AMD_0, 8 * GIB, 5 * GIB)
    machine.opens(1200, "renderD128", resident(2 * GIB))
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    nvml.process(0, "compute", 1200, GIB)

    def here() -> tuple[Gpus, ...]:
        return NvidiaGpus(machine.numbers.of), machine.gpus()

    monkeypatch.setattr(gpu, "every_gpu", here)
    assert gpu.held_by_processes() == {"gpu0": {1200: GIB}, "gpu1": {1200: 2 * GIB}}


XE_0 = "0000:04:00.0"


@pytest.fixture(scope="session")
def xe_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake of Intel's driver, compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler to build the fake xe driver with, or not Linux")
    library = tmp_path_factory.mktemp("xe") / "xe.so"
    source = Path(__file__).with_name("fake_gpu_xe.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(source)], check=True)
    return library


def intels(machine: Machine, xe_driver: Path, regions: str) -> str:
    """What is read of Intel's cards, by a program that the fake driver answers."""
    program = f"""if True:
        from pathlib import Path
        from scaler.sensors import intel
        from scaler.sensors.drm import DrmGpus
        from scaler.sensors.gpu import Numbers
        root = Path({str(machine.sys.parent)!r})
        drivers = {{"xe": intel.figures}}
        gpus = DrmGpus(Numbers().of, drivers, sys=root / "sys", proc=root / "proc", devices=root / "dri")
        print(gpus.read({{4242}}), gpus.held())
    """
    environment = os.environ | {
        "LD_PRELOAD": str(xe_driver),
        "FAKE_XE": regions,
        "PYTHONPATH": str(Path(scaler.__file__).parents[1]),
    }
    child = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    return child.stdout.strip()


@pytest.mark.parametrize(
    ("regions", "total", "used"),
    [(f"{12 * GIB} {3 * GIB}", 12 * GIB, 3 * GIB), (f"{12 * GIB} {3 * GIB} {12 * GIB} {GIB}", 24 * GIB, 4 * GIB)],
)
def test_an_intel_card_is_asked_for_its_memory(
    machine: Machine, xe_driver: Path, regions: str, total: int, used: int
) -> None:
    """One of two tiles has two regions of it; RAM that it may use as well is not it."""
    card = machine.card(0, XE_0, "xe", "0x8086", device="0xe20b")
    write(card / "hwmon" / "hwmon5" / "temp2_input", 52000)
    machine.opens(4242, "renderD128", "drm-total-vram0:\t2097152 KiB", "drm-resident-vram0:\t2097152 KiB")
    expected = Gpu(0, "Intel 0xe20b", total, used, total - used, 2 * GIB, None, 52.0)
    assert intels(machine, xe_driver, regions) == f"{[expected]} {{0: {{4242: {2 * GIB}}}}}"


@pytest.mark.parametrize("regions", [f"{12 * GIB} 0", ""])
def test_an_intel_card_whose_use_is_kept_from_us_is_left_out(machine: Machine, xe_driver: Path, regions: str) -> None:
    """To a user without the right to know, the kernel says 0; a chip within the processor has no memory of its own."""
    machine.card(0, XE_0, "xe", "0x8086", device="0xe20b")
    assert intels(machine, xe_driver, regions) == "[] {}"


def test_an_intel_card_that_a_container_was_not_given_costs_the_others_nothing(
    machine: Machine, nvml: FakeNvml
) -> None:
    """It sees the host's cards in sysfs, and none of their nodes."""
    nvml.gpu("NVIDIA A", 24 * GIB, 10 * GIB)
    machine.pci("0000:01:00.0", "0x10de")
    machine.card(0, XE_0, "xe", "0x8086", device="0xe20b")
    shutil.rmtree(machine.devices)
    drivers = {"xe": intel.figures}
    cards = DrmGpus(machine.numbers.of, drivers, sys=machine.sys, proc=machine.proc, devices=machine.devices)
    sensor = GpuSensor(Tree(), gpus=[NvidiaGpus(machine.numbers.of), cards])
    assert [card.name for card in sensor.read() or ()] == ["NVIDIA A"]
    assert cards.held() == {}
