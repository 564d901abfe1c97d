"""Fake /proc folders, cgroup trees and an NVML library, as files in a temporary folder."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest

from scaler.sensors import drm, gpu

GIB = 1024**3
MIB = 1024**2
NOBODYS = 2**22 + 1
"""A number that Linux gives to no process and no thread: it gives none above 2 ** 22."""


def write(path: Path, text: object) -> Path:
    """Write a file and the folders above it; text of any bytes, as `os.fsdecode` has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(f"{text}\n"))
    return path


class FakeProc:
    """A /proc with 16 GiB of RAM, 12 of them available, no swap and no control groups."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meminfo()
        self.cgroup("0::/")
        self.mounts()

    def meminfo(self, total: int = 16 * GIB, available: int = 12 * GIB, swap: tuple[int, int] = (0, 0)) -> None:
        """Set the sizes, in bytes; ``swap`` is total and free."""
        lines = {"MemTotal": total, "MemFree": 1, "MemAvailable": available, "SwapTotal": swap[0], "SwapFree": swap[1]}
        write(self.path / "meminfo", "\n".join(f"{name}: {size // 1024:>10} kB" for name, size in lines.items()))

    def cgroup(self, *lines: str) -> None:
        """Set which groups this process is in."""
        write(self.path / "self" / "cgroup", "\n".join(lines))

    def mounts(self, *cgroups: tuple[str, Path, str]) -> None:
        """Set the mounts: the group shown at the top, the mount point, and `fstype source options`."""
        lines = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
        lines += [
            f"{30 + number} 22 0:{number} {root} {str(point).replace(' ', chr(92) + '040')} rw shared:9 - {kind}"
            for number, (root, point, kind) in enumerate(cgroups)
        ]
        write(self.path / "self" / "mountinfo", "\n".join(lines))


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    """A fake /proc."""
    return FakeProc(tmp_path / "proc")


class FakeNvml:
    """The machine of the fake NVML library: a file that it looks at in each call."""

    def __init__(self, library: Path, state: Path) -> None:
        self.library = library
        self.state = state
        self.gpus: list[str] = []
        self.instances: list[str] = []
        self.processes: list[str] = []
        self.reasons: list[str] = []
        self.errors: list[str] = []
        self.slow: list[str] = []
        self.driver = 1
        self._saves = itertools.count(1)

    def gpu(self, name: str, total: int, used: int, load: int = 0, celsius: int = 40) -> None:
        """Add a GPU."""
        self.gpus.append(f"gpu GPU-{len(self.gpus)} {total} {used} {load} {celsius} {name}")
        self.save()

    def instance(self, gpu: int, place: int, number: int, total: int, used: int) -> None:
        """Add a MIG device to a GPU: compute instances of one ``number`` share the memory of that GPU instance."""
        self.instances.append(f"instance {gpu} {place} {number} {total} {used}")
        self.save()

    def process(self, gpu: int, kind: str, pid: int, size: int, *, instance: int = -1) -> None:
        """Add a process to the ``compute`` or ``graphics`` list of a GPU, in a MIG instance of it if so."""
        self.processes.append(f"process {gpu} {kind} {pid} {size} {instance}")
        self.save()

    def slowed(self, gpu: int, mask: int) -> None:
        """Say why a GPU's clocks are slow, in NVML's bits."""
        self.reasons.append(f"reasons {gpu} {mask}")
        self.save()

    def fail(self, call: str, code: int, gpu: int = -1) -> None:
        """Make a call end with an error code, on one GPU or on all."""
        self.errors.append(f"error {call} {gpu} {code}")
        self.save()

    def hang(self, call: str, milliseconds: int, gpu: int = -1) -> None:
        """Make a call take that long, or until it is healed."""
        self.slow.append(f"slow {call} {gpu} {milliseconds}")
        self.save()

    def heal(self) -> None:
        """Take every error and every delay back."""
        self.errors.clear()
        self.slow.clear()
        self.save()

    def save(self) -> None:
        """Write the state down: at once for who looks, and with a time of its own, by which a change is known."""
        machine = [*self.gpus, *self.instances, *self.processes, *self.reasons]
        lines = [*machine, *self.errors, *self.slow, f"driver {self.driver}"]
        new = write(self.state.with_name(f"{self.state.name}.new"), "\n".join(lines))
        now = next(self._saves)
        os.utime(new, (now, now))
        new.replace(self.state)


def compile_nvml(folder: Path, version: int) -> Path | None:
    """Compile the fake NVML library that goes with a driver of that version; ``None`` where that cannot be done.

    Under the name of a driver's file, which is not yet that by which it is looked for.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / f"libnvidia-ml.so.{version}.0"
    source = Path(__file__).with_name("fake_nvml.c")
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-pthread", f"-DVERSION={version}"]
    flags += ["-Wl,-soname,libnvidia-ml.so.1", "-o", str(library)]
    subprocess.run([compiler, *flags, str(source)], check=True)
    return library


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake NVML library, compiled."""
    library = compile_nvml(tmp_path_factory.mktemp("nvml"), 1)
    if library is None:
        pytest.skip("no C compiler to build the fake NVML library with, or not Linux")
    return library.rename(library.with_name("libnvidia-ml.so.1"))


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """A machine with the fake library, without GPUs at first."""
    fake = FakeNvml(nvml_library, tmp_path / "nvml-state")
    fake.save()
    monkeypatch.setenv("FAKE_NVML_STATE", str(fake.state))
    loaded = ctypes.CDLL(str(nvml_library))
    monkeypatch.setattr(pynvml, "nvmlLib", loaded)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    # Neither the cards of the machine that the tests run on nor the numbers of an earlier test's.
    monkeypatch.setattr(drm, "SYS", None)
    monkeypatch.setattr(gpu, "NUMBERS", gpu.Numbers())
    yield fake
    loaded.fake_reset()


Spawn = Callable[[str], subprocess.Popen[str]]


@contextmanager
def spawning() -> Iterator[Spawn]:
    """Start Python programs that print a line when ready; end them and all they started."""
    started: list[subprocess.Popen[str]] = []

    def spawn(program: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline()
        return child

    try:
        yield spawn
    finally:
        for child in started:
            child.communicate()


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start Python programs that print a line when ready and must end when their input ends."""
    with spawning() as start:
        yield start
