"""From nothing to an answer, as a person does it: a server that has models, `scaler init`, `scaler run`, a question."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from scaler.levels import GIB
from scaler.settings import load_settings
from tests.cli.conftest import PATIENT
from tests.cli.test_init import SHAPE
from tests.end_to_end.conftest import MIB, PATIENCE_S
from tests.end_to_end.test_commands import Daemon
from tests.end_to_end.test_endpoint import MESSAGES, client
from tests.llama_server_binary import needs_llama_server, router
from tests.ollama_binary import needs_ollama, ollama_serves
from tests.runtimes import lmstudio_server, ollama_server
from tests.runtimes.lmstudio_server import LmStudioServer
from tests.runtimes.ollama_server import OllamaServer
from tests.runtimes.openai_server import OpenAIServer
from tests.runtimes.vllm_server import VllmServer
from tests.sensors.conftest import FakeNvml, nvml_library

__all__ = ["nvml_library"]

EDITED = """
policy: {dwell_s: 0.3, dwell_max_s: 0.3, recovery_s: 0.2}
monitor: {interval_s: 0.1}
journal: {path: journal.jsonl}
recording: {path: recording}
remembered: {path: remembered.json}
"""
"""What a person adds who does not want to wait for five minutes, and wants all of it in one folder."""
SIZES = {"acme/tiny": (20 * MIB, "1M"), "acme/middle": (60 * MIB, "3M"), "acme/big": (120 * MIB, "6M")}
"""Files and weights that are tens of MiB in memory, and far enough apart for a ladder."""
GPU = {"tiny": 4 * GIB, "big": 12 * GIB}
"""What two vLLM servers take of a GPU of 24 GiB, which is only written down."""


@dataclass(frozen=True)
class Here:
    """What there is before scaler comes.

    ``look`` is how a person tells of it; ``says`` is what each model says, by its name, the smallest first; ``loaded``
    is what is loaded at the moment, as the server or the machine tells.
    """

    runtime: str
    look: Sequence[str]
    says: Mapping[str, str]
    loaded: Callable[[], Collection[object]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own: nothing that whoever runs the tests has configured counts."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("SCALER_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def ollama() -> Iterator[Here]:
    """An Ollama with three models."""
    says = {f"{name}:latest": f" I am {name}" for name in SIZES}
    models = {
        f"{name}:latest": ollama_server.Model(size, says[f"{name}:latest"], parameter_size=count, info=SHAPE)
        for name, (size, count) in SIZES.items()
    }
    with OllamaServer(models) as server:
        yield Here("ollama", ["--url", server.url], says, lambda: server.loaded)


@pytest.fixture
def real_ollama(home: Path, demo_models: dict[str, Path]) -> Iterator[Here]:
    """A real Ollama with two models."""
    says = {f"{name}:latest": f"The {name} model speaks" for name in ("small", "medium")}
    with ollama_serves(home / "ollama", {name: demo_models[name] for name in ("small", "medium")}) as (url, client):
        yield Here("ollama", ["--url", url], says, lambda: client.ps().models)


@pytest.fixture
def lmstudio() -> Iterator[Here]:
    """An LM Studio with three models."""
    says = {name: f" I am {name}" for name in SIZES}
    models = {
        name: lmstudio_server.Model(size, says[name], params_string=count) for name, (size, count) in SIZES.items()
    }
    with LmStudioServer(models) as server:
        yield Here("lmstudio", ["--url", server.url], says, lambda: server.loaded)
        # By this it is asked whether it is an Ollama; it answers as to any path that it does not know.
        assert server.faults == ["GET /api/version is not known"]
        server.faults.clear()


@pytest.fixture
def llama_router(home: Path, demo_models: dict[str, Path]) -> Iterator[Here]:
    """The real llama-server, as docs/llama-server.md has it started, with two models."""
    models = {name: demo_models[name] for name in ("small", "medium")}
    with router(home / "models", models, "--models-max", "2", "--parallel", "2", "--ctx-size", "8192") as at:
        says = {name: f"The {name} model speaks" for name in models}
        yield Here(
            "llama-router",
            ["--url", at.url],
            says,
            lambda: [name for name, status in at.status().items() if status != "unloaded"],
        )


@pytest.fixture
def vllm(nvml_library: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """Two vLLM servers that stand awake on one GPU, which scaler's processes see by the driver's library."""
    nvml = FakeNvml(nvml_library, home / "nvml-state")
    nvml.gpu("Fake GPU", 24 * GIB, 0)
    monkeypatch.setenv("FAKE_NVML_STATE", str(nvml.state))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library.parent), prepend=os.pathsep)
    says = {name: f" I am {name}" for name in GPU}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(VllmServer(name, size, says=says[name], state=nvml.state)) for name, size in GPU.items()
        ]
        look = [word for server in servers for word in ("--url", server.url)]
        yield Here("vllm", look, says, lambda: [server.url for server in servers if not asleep(server.url)])


@pytest.fixture
def embedded(home: Path, demo_models: dict[str, Path]) -> Here:
    """Two GGUF files in a folder, and no server."""
    folder = home / "elsewhere"
    folder.mkdir()
    files = {folder / f"{name}.gguf": f"The {name} model speaks" for name in ("small", "medium")}
    for file in files:
        file.symlink_to(demo_models[file.stem])
    says = {str(file): text for file, text in files.items()}
    return Here("embedded", ["--models", str(folder)], says, lambda: model_processes(home))


@pytest.fixture
def openai() -> Iterator[Here]:
    """A server with OpenAI's API, which has its one model loaded, whatever scaler does."""
    with OpenAIServer(big=" I am big") as server:
        yield Here("openai", ["--url", server.url], {"big": " I am big"}, lambda: ())


def asleep(url: str) -> bool:
    """Whether a vLLM server says that it sleeps."""
    with urllib.request.urlopen(f"{url}/is_sleeping", timeout=10) as response:
        return bool(json.load(response)["is_sleeping"])


def model_processes(home: Path) -> list[psutil.Process]:
    """Processes of scaler's own llama.cpp that were started in this home, whoever is their parent by now."""
    found = []
    for process in psutil.process_iter():
        # It ended, or it is not ours to look at.
        with suppress(psutil.Error):
            if "scaler.runtimes.embedded_server" in process.cmdline() and process.environ().get("HOME") == str(home):
                found.append(process)
    return found


def scaler(*arguments: str) -> str:
    """What a command says, once it has done what it was told to."""
    done = subprocess.run([*PATIENT, *arguments], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@contextmanager
def running(config: Path) -> Iterator[Daemon]:
    """`scaler run`, ended by SIGTERM, as a service manager does it."""
    daemon = Daemon(config)
    try:
        yield daemon
    finally:
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.communicate(timeout=PATIENCE_S)


def settles_at(daemon: Daemon, level: str) -> None:
    """Ask for the status until a level serves and nothing else is under way."""
    until = time.monotonic() + PATIENCE_S
    while True:
        status = json.loads(daemon.ask("status", "--json").stdout)
        if (status["serving"], status["state"], status["settled"]) == (level, level, True):
            return
        assert time.monotonic() < until, f"{level} does not serve: {status}"


@pytest.mark.parametrize(
    "runtime",
    [
        "ollama",
        pytest.param("real_ollama", marks=needs_ollama),
        "lmstudio",
        pytest.param("llama_router", marks=needs_llama_server),
        "vllm",
        "embedded",
        "openai",
    ],
)
def test_from_nothing_to_an_answer_and_back(runtime: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What `scaler init` writes serves as it stands: the ladder is climbed, answers, and leaves nothing loaded."""
    here: Here = request.getfixturevalue(runtime)
    config = tmp_path / "mine" / "scaler.yaml"
    told = scaler("init", "--only", *here.look, "--output", str(config), "--yes")
    assert f"  scaler run --config {config}\n" in told
    ladder = load_settings(config).ladder
    assert [(level.runtime, str(level.model_dump()["model"])) for level in ladder] == [
        (here.runtime, model) for model in here.says
    ]
    assert scaler("config", "check", "--config", str(config)) == "ok\n"
    with config.open("a") as file:
        file.write(EDITED)
    lowest, top = ladder[0].name, ladder[-1].name

    with running(config) as daemon:
        settles_at(daemon, top)
        answer = client(daemon.url).chat.completions.create(model="auto", messages=MESSAGES)
        assert (answer.system_fingerprint, answer.model) == (f"scaler-{top}", top)
        said = list(here.says.values())[-1]
        assert said.strip() in (answer.choices[0].message.content or "")
        assert len(here.loaded()) == (0 if here.runtime == "openai" else 1)

    assert daemon.process.returncode == os.EX_OK
    assert not here.loaded()
    history = map(json.loads, scaler("history", "--config", str(config), "--json").splitlines())
    decisions = [(record["source"], record["dest"]) for record in history if record["event"] == "decision"]
    assert decisions[0] == ("off", lowest)
    assert decisions[-1][1] == top
    kept = {"scaler.yaml", "journal.jsonl", "recording", "remembered.json", "remembered.json.lock"}
    assert {file.name for file in config.parent.iterdir()} == kept
