"""Has the endpoint and its peers answer the same requests in turn, and reckons what each adds to the runtime's own."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PEERS = Path(".venv-peers")
"""Where `make bench` installs LiteLLM, which must not mix with what scaler needs."""
STREAM_MS = 5.0
"""The pause between chunks: a model at 200 tokens a second."""
KEY = "sk-of-the-benchmark"
PATIENCE_S = 90.0
"""How long a peer may take to start; LiteLLM's proxy took 7 s."""


@dataclass
class Party:
    """A server that answers chats, and how it did."""

    name: str
    url: str
    process: psutil.Process
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def ask(self, kind: str, requests: int, concurrency: int, chunk_ms: float) -> None:
        """Have it answer so many requests and keep how it went."""
        before = self._cpu_s()
        run = json.loads(subprocess.check_output(load(self.url, requests, concurrency, chunk_ms)))
        run["cpu_s"] = (self._cpu_s() - before) / requests
        self.runs.setdefault(kind, []).append(run)

    def _cpu_s(self) -> float:
        times = [one.cpu_times() for one in (self.process, *self.process.children(recursive=True))]
        return sum(float(time.user) + float(time.system) for time in times)

    def first_ms(self, kind: str, share: float = 0.5) -> list[float]:
        """Milliseconds to the first word that ``share`` of the answers kept to, a figure a round."""
        return [1000 * quantile(run["first_s"], share) for run in self.runs[kind]]

    def rate(self, kind: str) -> list[float]:
        """Whole answers a second, a figure a round."""
        return [len(run["whole_s"]) / run["took_s"] for run in self.runs[kind]]

    def cpu_ms(self, kind: str) -> list[float]:
        """Milliseconds of processor time of an answer, a figure a round."""
        return [1000 * run["cpu_s"] for run in self.runs[kind]]

    def broken(self) -> int:
        """How many answers were not whole."""
        return sum(run["broken"] for runs in self.runs.values() for run in runs)


def load(url: str, requests: int, concurrency: int, chunk_ms: float) -> list[str]:
    """The command that asks."""
    return [sys.executable, "-m", "tests.bench.serving.load", url, KEY, *map(str, (requests, concurrency, chunk_ms))]


def quantile(values: list[float], share: float) -> float:
    """The value that ``share`` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@contextmanager
def party(name: str, *argv: str) -> Iterator[Party]:
    """One of the servers beside this file, which print their address."""
    command = [sys.executable, "-m", f"tests.bench.serving.{argv[0]}", *argv[1:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Party(name, process.stdout.readline().strip(), psutil.Process(process.pid))
        finally:
            process.terminate()


@contextmanager
def litellm_proxy(upstream: str, folder: str) -> Iterator[Party]:
    """LiteLLM's proxy before the same runtime."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = Path(folder) / "litellm.yaml"
    parameters = {"model": "openai/level", "api_base": f"{upstream}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": "auto", "litellm_params": parameters}]}))
    command = [str(PEERS / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    log = Path(folder) / "litellm.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(int(PATIENCE_S * 2)):
                if process.poll() is not None:
                    raise RuntimeError(f"LiteLLM's proxy did not start: {log.read_text()[-2000:]}")
                if _answers(f"{url}/health/liveliness"):
                    break
                threading.Event().wait(0.5)
            yield Party("LiteLLM's proxy", url, psutil.Process(process.pid))
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' ratios: the parties of one round ran one after the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def added(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' differences."""
    return statistics.median(a - b for a, b in zip(ours, theirs, strict=True))


def compare(rounds: int, tell: Callable[[str], None]) -> tuple[Mapping[str, Party], float]:
    """Run the parties in turn, ``rounds`` times; returns them by name, and MiB with 100 streams open."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        model = f"{folder}/model.sock"
        direct = stack.enter_context(party("direct", "upstream", model))
        bare = stack.enter_context(party("bare pass-through", "passthrough", direct.url))
        ours = stack.enter_context(party("scaler", "endpoint", f"unix://{model}", folder))
        parties = [direct, bare, ours]
        if PEERS.is_dir():
            parties.append(stack.enter_context(litellm_proxy(direct.url, folder)))
        for one in parties:
            # The first request of a process pays for what is imported and compiled then.
            one.ask("warm-up", 20, 4, 0)
        for _ in range(rounds):
            for one in parties:
                slow = one.name == "LiteLLM's proxy"
                one.ask("alone", 40, 1, STREAM_MS)
                one.ask("many", 64 if slow else 320, 32, STREAM_MS)
                one.ask("rush", 64 if slow else 1000, 32, 0)
        for one in parties:
            for kind in ("alone", "many", "rush"):
                first, late = (statistics.median(one.first_ms(kind, share)) for share in (0.5, 0.99))
                tell(
                    f"  {one.name:<18} {kind:<6} first word {first:7.2f} ms, p99 {late:7.2f}; "
                    f"{statistics.median(one.rate(kind)):7.1f} answers/s; "
                    f"{statistics.median(one.cpu_ms(kind)):6.2f} ms of CPU each; {one.broken()} broken"
                )
        return {one.name: one for one in parties}, _with_open_streams(ours, 100)


def _with_open_streams(one: Party, streams: int) -> float:
    """MiB that its process holds while so many answers run."""
    with subprocess.Popen(load(one.url, streams, streams, 60.0), stdout=subprocess.PIPE) as asking:
        most = 0
        while asking.poll() is None:
            most = max(most, one.process.memory_info().rss)
            threading.Event().wait(0.1)
        assert asking.stdout is not None
        assert json.loads(asking.stdout.read())["broken"] == 0
    return most / 1024**2
