"""A `scaler run` in a folder of its own, and what it holds of the machine, seen from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from scaler.sensors.memory import MemorySensor

MIB = 1024**2
GIB = 1024**3
RAM_GIB = {"small": 0.08, "medium": 0.24, "large": 0.8}
ROOM_BYTES = 300 * MIB
"""What others may take beyond the present use before the largest level has to go."""
CRITICAL_BYTES = 1100 * MIB
"""What they may take beyond that until usage is critical with the smallest level."""
SPARE_BYTES = 4 * GIB
"""What must be available before it begins: the ladder, the pressure and half as much again."""
WAIT_S = 20.0
HANG_S = 6.0
LOAD_S = 30.0
"""A load that has not ended by then has failed."""
DESCRIPTORS = 128
"""How many files and connections it may have open: as few as some systems allow a program, halved."""
MARK = "SCALER_SOAK"
"""The variable by which whatever it started is found again."""
START_S, END_S = 60.0, 40.0


@dataclass(frozen=True)
class Held:
    """What the daemon has of the machine at a moment at which it should have as much as at any other."""

    processes: int
    threads: int
    descriptors: int
    folders: int
    files: tuple[str, ...]
    """What the descriptors are of."""


def least(looks: Sequence[Held]) -> Held:
    """The least of each figure of several moments, with the files of the fewest descriptors.

    What has leaked is there at each of them. A sensor's second thread, an open file or the connection of somebody who
    asks is there by chance.
    """
    return replace(
        min(looks, key=lambda held: held.descriptors),
        processes=min(held.processes for held in looks),
        threads=min(held.threads for held in looks),
        folders=min(held.folders for held in looks),
    )


def lacking() -> str | None:
    """Why this machine can have no soak; None where it can."""
    if sys.platform != "linux":
        return "what befalls the daemon takes Linux"
    available = MemorySensor().read().available_bytes
    if available < SPARE_BYTES:
        return f"only {available / GIB:.1f} GiB are available; {SPARE_BYTES / GIB:.0f} GiB are wanted"
    return None


class Daemon:
    """The process under test. Only `limit_files` and signals touch it; everything else is asked over HTTP."""

    def __init__(self, folder: Path, disk: Path, models: Mapping[str, Path], environment: Mapping[str, str]) -> None:
        """``disk``: where the journal, the recording and the conversations go."""
        self.folder, self.disk = folder, disk
        self.sockets = folder / "t"
        self.sockets.mkdir()
        self.output = folder / "output.txt"
        self.journal = disk / "journal.jsonl"
        self._mark = f"{folder}-{os.getpid()}"
        config = folder / "scaler.yaml"
        memory = MemorySensor().read()
        self.total_bytes = memory.total_bytes
        used = memory.total_bytes - memory.available_bytes
        self.scale_at_bytes = used + int(RAM_GIB["large"] * GIB) + ROOM_BYTES
        config.write_text(yaml.safe_dump(self._config(models)))
        # Its address goes to the output, where it is read; the port is a free one.
        with open(self.output, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scaler", "run", "--config", config, "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **environment,
                    MARK: self._mark,
                    "TMPDIR": str(self.sockets),
                    "XDG_STATE_HOME": str(disk),
                },
                start_new_session=True,
            )
        self.process = psutil.Process(self._process.pid)
        self.limit_files(DESCRIPTORS)

    def _config(self, models: Mapping[str, Path]) -> dict[str, Any]:
        total = self.total_bytes
        return {
            "tier": "mid_range",
            "ladder": [
                {
                    "name": name,
                    "model": str(models[name]),
                    "ram_gib": ram_gib,
                    "context_tokens": 2048,
                    "threads": 1,
                    "hang_s": HANG_S,
                    "load_timeout_s": LOAD_S,
                }
                for name, ram_gib in RAM_GIB.items()
            ],
            "queue": {"limit": 64, "wait_s": WAIT_S},
            "monitor": {"interval_s": 0.25},
            "journal": {"path": str(self.journal), "max_mib": 0.25, "files": 3},
            "conversations": {"path": str(self.disk / "conversations.sqlite")},
            "recording": {"path": str(self.disk / "recording"), "max_mib": 0.5},
            "policy": {
                "scale_at": self.scale_at_bytes / total,
                "critical_at": (self.scale_at_bytes + CRITICAL_BYTES) / total,
                "band": 60 * MIB / total,
                "band_max": 60 * MIB / total,
                "caution_max": 0.0,
                "dwell_s": 3.0,
                "dwell_max_s": 3.0,
                "debounce_s": 0.5,
                "recovery_s": 0.5,
                "backoff_s": 0.5,
                "backoff_max_s": 2.0,
                "trend_window_s": 2.0,
                "switch_margin_s": 0.3,
                "drain_seconds": 0.5,
                "max_level": None,
                "battery_max_level": None,
                "throttled_max_level": None,
            },
        }

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def url(self) -> str | None:
        """Where it answers, once it has said so."""
        for line in self.output.read_text(errors="replace").splitlines():
            if line.startswith("endpoint"):
                return line.split()[1].removesuffix("/v1")
        return None

    def limit_files(self, most: int) -> None:
        """Let it, and what it starts from now on, have so many files open."""
        self.process.rlimit(psutil.RLIMIT_NOFILE, (most, self.process.rlimit(psutil.RLIMIT_NOFILE)[1]))

    def highest_descriptor(self) -> int:
        """Of those it has open; its limit is compared with the number of the next."""
        return max(int(link.name) for link in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def limit_file_size(self, most: int | None) -> None:
        """Let no file of it grow beyond so many bytes: how a disk is made full without being root."""
        hard = self.process.rlimit(psutil.RLIMIT_FSIZE)[1]
        self.process.rlimit(psutil.RLIMIT_FSIZE, (hard if most is None else most, hard))

    def models(self) -> list[psutil.Process]:
        """The processes of models, those that were killed and not yet waited for left out."""
        found = []
        for child in self.process.children(recursive=True):
            with suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return found

    async def served(self) -> list[str]:
        """What the servers of models behind the private sockets say that they have loaded."""
        names = []
        for socket in self.sockets.glob("scaler-*/model.sock"):
            with suppress(aiohttp.ClientError, TimeoutError):
                async with (
                    aiohttp.ClientSession(
                        connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(5)
                    ) as session,
                    session.get("http://localhost/v1/models") as answer,
                ):
                    names += [model["id"] for model in (await answer.json())["data"]]
        return names

    def held(self) -> Held:
        """What it has now."""
        with self.process.oneshot():
            return Held(
                len(self.models()),
                self.process.num_threads(),
                self.process.num_fds(),
                len(list(self.sockets.iterdir())),
                self._files(),
            )

    def _files(self) -> tuple[str, ...]:
        names = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                names.append(os.readlink(link))
        return tuple(sorted(names))

    def rss_mib(self) -> float:
        """What it holds of memory, its models left out, in MiB."""
        return float(self.process.memory_info().rss) / MIB

    def stop(self) -> int | None:
        """End it as a person does; returns its status, None when it had to be killed."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None

    def left(self) -> Sequence[str]:
        """What is left of it after its end: processes, and folders of sockets."""
        found = [f"folder {path}" for path in self.sockets.iterdir()]
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    found.append(f"process {process.pid}: {' '.join(process.cmdline())}")
        return found
