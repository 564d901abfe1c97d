"""`scaler doctor`: everything that is wrong at once, in words, within a time, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from scaler import __version__
from scaler.cli.doctor import _all
from scaler.cli.examination import Finding, ok
from scaler.cli.examination.installation import FOR
from scaler.tiers import HardwareTierDetector
from tests.cli.conftest import LIMIT_S, SCALER, Run
from tests.discovery.servers import answering, listing
from tests.sensors.conftest import GIB, FakeNvml, compile_nvml

NOBODY = 47_123
"""A user that no machine has: it may write nothing."""


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def told(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What `--json` found that is no ``ok``, by what it is about; the report goes with the exit code."""
    assert done.stderr == ""
    report = json.loads(done.stdout)
    findings = [finding for section in report["found"].values() for finding in section]
    assert all(finding["says"] for finding in findings)
    problems = [finding for finding in findings if finding["verdict"] == "problem"]
    assert (done.returncode, report["ok"]) == ((1, False) if problems else (0, True))
    assert "Traceback" not in done.stdout
    return {finding["about"]: finding for finding in findings if finding["verdict"] != "ok"}


@pytest.fixture
def healthy(own_config: Callable[..., Path], demo_models: Mapping[str, Path]) -> Callable[..., Path]:
    """Writes a configuration with nothing wrong in it, but for what the test adds."""

    def write(**more: Any) -> Path:
        ladder = [{"name": name, "model": str(demo_models[name])} for name in ("small", "medium")]
        return own_config(json.dumps({"ladder": ladder, "server": {"port": free_port()}, **more}))

    return write


@pytest.fixture
def hanging_nvml(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a machine whose NVIDIA driver hangs for longer than any test."""
    library = compile_nvml(tmp_path, 1)
    if library is None:
        pytest.skip("no C compiler to build the fake NVML library with, or not Linux")
    library.rename(tmp_path / "libnvidia-ml.so.1")
    fake = FakeNvml(tmp_path / "libnvidia-ml.so.1", tmp_path / "nvml-state")
    fake.gpu("RTX", 8 * GIB, GIB)
    fake.hang("count", 600_000)
    return {"LD_LIBRARY_PATH": str(tmp_path), "FAKE_NVML_STATE": str(fake.state)}


def test_where_nothing_is_wrong_it_says_so_and_changes_nothing(
    scaler: Run, healthy: Callable[..., Path], tmp_path: Path
) -> None:
    """A page of sentences, each behind its verdict in a word; exit code 0."""
    config = healthy()
    done = scaler("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    # Where the file's name is long, it stands in a line of its own.
    assert f" ok file: {config} " in " ".join(done.stdout.split())
    assert "  ok       ladder: small → medium, as `scaler config check` has it" in done.stdout
    assert "; ".join(HardwareTierDetector().detect().reasons) in " ".join(done.stdout.split())
    assert "  note     daemon: none runs\n           do: scaler run" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("0 problems, ")
    assert set(told(scaler("doctor", "--json"))) <= {"daemon", "pressure", "GPUs", "oom_score_adj"}
    assert not (tmp_path / "state").exists()


def test_it_finds_everything_that_is_wrong_at_once(
    scaler: Run, own_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """Files, servers, models, a key, a GPU, a token, folders, a stranger on the port: each with what to do."""
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF and then nothing")
    (tmp_path / "file").write_text("")
    names = {"version": "0.13.0"}, {"models": [{"name": "llama3.2:3b", "size": 2 * GIB}]}
    ollama = {"/api/version": names[0], "/api/tags": names[1], "/v1/models": listing("llama3.2:3b", owner="library")}
    with answering(ollama) as there, answering({}) as stranger:
        ladder = [
            {"name": "locked", "runtime": "openai", "url": there.url, "model": "m", "key_env": "NO_SUCH_KEY"},
            {"name": "absent", "model": str(tmp_path / "absent.gguf")},
            {"name": "damaged", "model": str(damaged), "ram_gib": 1},
            {"name": "wanting", "runtime": "ollama", "url": there.url, "model": "qwen3:8b", "ram_gib": 9},
            {
                "name": "asleep",
                "runtime": "vllm",
                "url": f"http://127.0.0.1:{free_port()}",
                "model": "q",
                "ram_gib": 9,
                "vram_gib": 3,
            },
        ]
        server = {"host": "0.0.0.0", "port": int(stranger.url.rpartition(":")[2])}
        journal = {"path": str(tmp_path / "file" / "journal.jsonl")}
        own_config(json.dumps({"ladder": ladder, "server": server, "journal": journal}))
        found = told(scaler("doctor", "--json"))
    said = {about: finding["says"] for about, finding in found.items() if finding["verdict"] == "problem"}
    assert "no such file" in said["level absent"]
    assert "not a whole GGUF file" in said["level damaged"]
    assert "of gpu0, of which nothing is told here" in said["level asleep"]
    assert "has no model 'qwen3:8b'; it has llama3.2:3b" in said["level wanting"]
    assert "ollama pull qwen3:8b" in found["level wanting"]["do"]
    assert "NO_SUCH_KEY is not set" in said["level locked"]
    assert "no token that would keep them out" in said["token"]
    assert "is a file, where" in said["journal"]
    assert "which is no scaler (it answers 404)" in said["port"]
    assert all(found[about]["do"] for about in said)


def test_a_server_that_is_off_is_told(scaler: Run, own_config: Callable[[str], Path]) -> None:
    """With the address that was asked."""
    url = f"http://127.0.0.1:{free_port()}"
    own_config(json.dumps({"ladder": [{"name": "a", "runtime": "openai", "url": url, "model": "m"}]}))
    off = told(scaler("doctor", "--json"))["level a"]
    assert off["says"].startswith(f"openai at {url}: nothing answers there")
    assert off["do"] == "start it, or correct the level's url: docs/openai.md"


def test_a_configuration_at_fault_is_told_and_all_else_is_looked_at(
    scaler: Run, own_config: Callable[[str], Path]
) -> None:
    """Every fault with file, line and key, as `scaler config check` has it; the rest by what ships."""
    path = own_config("tier: low_end\nserverr: {port: 1}\nqueue: {limit: 0}\n")
    done = scaler("doctor")
    assert done.returncode == 1
    lines = " ".join(done.stdout.split())
    assert f"{path}:2: serverr: unknown key" in lines
    assert f"{path}:3: queue.limit: 0 cannot be used" in lines
    assert "judged by the configuration that ships" in lines
    assert "memory:" in lines
    assert "journal:" in lines
    own_config("tier: enormous\n")
    assert "there is no tier 'enormous'" in told(scaler("doctor", "--json"))["tier"]["says"]


def test_a_daemon_is_recognised_by_its_version_and_its_configuration(
    places: dict[str, str], scaler: Run, own_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """And one that runs with another configuration, or another ladder than the file has by now."""
    with answering({"/v1/models": listing("m", "n")}) as there:
        port = free_port()

        def write(*levels: str) -> Path:
            ladder = [{"name": name, "runtime": "openai", "url": there.url, "model": name} for name in levels]
            return own_config(json.dumps({"ladder": ladder, "server": {"port": port}}))

        path = write("m")
        daemon = subprocess.Popen([*SCALER, "run"], env=places, stdout=subprocess.PIPE, text=True)
        assert daemon.stdout is not None
        try:
            assert any("Ctrl-C" in line for line in daemon.stdout)
            done = scaler("doctor")
            assert f"ok       daemon: scaler {__version__} answers at http://127.0.0.1:{port}" in done.stdout
            assert f"the daemon runs with {path}" in " ".join(done.stdout.split())
            write("m", "n")
            assert told(scaler("doctor", "--json"))["configuration"]["do"] == "scaler reload"
            other = tmp_path / "other.yaml"
            other.write_text(path.read_text())
            elsewhere = told(scaler("doctor", "--config", str(other), "--json"))["configuration"]
            assert f"the daemon runs with {path}, and this command reads {other}" in elsewhere["says"]
        finally:
            daemon.terminate()
            daemon.communicate(timeout=LIMIT_S)


def test_a_driver_that_hangs_is_given_up(
    scaler: Run, healthy: Callable[..., Path], hanging_nvml: Mapping[str, str]
) -> None:
    """And said to hang; whatever else there is, is told."""
    healthy()
    found = told(scaler("doctor", "--json", env=hanging_nvml))
    assert found["GPUs"]["verdict"] == "problem"
    assert "no answer within 2 s" in found["GPUs"]["says"]


def test_looking_for_models_gives_a_driver_up_that_hangs(scaler: Run, hanging_nvml: Mapping[str, str]) -> None:
    """`scaler init` asks it what a vLLM server holds; the process must end, too."""
    vllm = {
        "/v1/models": listing("q", owner="vllm"),
        "/version": {"version": "0.12.0"},
        "/is_sleeping": {"is_sleeping": False},
    }
    with answering(vllm) as there:
        done = scaler("init", "--only", "--url", there.url, "--json", env=hanging_nvml)
    (source,) = json.loads(done.stdout)["found"]
    assert source["where"] == there.url


def test_what_hangs_or_fails_is_a_finding_and_takes_no_other_with_it() -> None:
    """Whatever it is: nobody who looks for a fault is helped by one more."""
    free = threading.Event()
    found: dict[str, list[Finding]] = {"hangs": [], "fails": [], "works": []}
    looks = {"hangs": free.wait, "fails": lambda: 1 // 0, "works": lambda: found["works"].append(ok("it", "works"))}
    began = time.monotonic()
    try:
        _all(looks, found, began)
        assert found["hangs"][0].says.startswith("not all of it was seen within")
    finally:
        free.set()
    _all({name: looks[name] for name in ("fails", "works")}, found, began + 60)
    assert "ZeroDivisionError" in found["fails"][-1].says
    assert found["works"][-1] == ok("it", "works")


def test_every_extra_for_people_is_looked_at() -> None:
    """A new one is told of, too."""
    project = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert FOR.keys() == project["optional-dependencies"].keys() - {"dev"}


def test_libraries_that_are_not_installed_are_told(places: dict[str, str], healthy: Callable[..., Path]) -> None:
    """With the command that installs them, once an extra; nothing is imported that is not there."""
    healthy(notices={"desktop": True})
    lacking = ("aiohttp", "orjson", "xllamacpp", "gguf", "desktop_notifier")
    code = f"import sys\nfor name in {lacking!r}: sys.modules[name] = None\n"
    code += "from scaler.cli import main\nsys.exit(main(['doctor', '--json']))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env=places, capture_output=True, encoding="utf-8", timeout=LIMIT_S
    )
    found = told(done)
    for about, extra in (("extra server", "server"), ("extra desktop", "desktop"), ("runtime embedded", "llama")):
        assert re.search(rf"pip install .*\[{extra}\]'$", found[about]["do"])


def test_a_llama_that_is_installed_and_does_not_load_is_told(
    scaler: Run, healthy: Callable[..., Path], tmp_path: Path
) -> None:
    """As on a slim system, which lacks a library of its own: with what brings that."""
    healthy()
    missing = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "xllamacpp.py").write_text(f"raise ImportError({missing!r})")
    found = told(scaler("doctor", "--json", env={"PYTHONPATH": str(tmp_path)}))["runtime embedded"]
    assert found["verdict"] == "problem"
    assert found["says"].startswith(
        "llama.cpp is installed and does not load: xllamacpp takes the library libgomp.so.1"
    )
    assert found["do"] == "install it: apt-get install libgomp1, or dnf install libgomp"


@pytest.fixture
def nobody() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs ``scaler`` as somebody who owns nothing, where whoever runs the tests may; with a home that is read only."""
    setpriv = shutil.which("setpriv")
    if sys.platform != "linux" or os.geteuid() != 0 or setpriv is None:
        pytest.skip("takes root and setpriv, to be somebody else")
    somebody = [setpriv, f"--reuid={NOBODY}", "--clear-groups"]
    home = Path(tempfile.mkdtemp(prefix="scaler-test-"))
    home.chmod(0o755)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        places = {name: value.format(home=home) for name, value in environment.items()}
        command = [*somebody, *SCALER, *arguments]
        return subprocess.run(
            command, env={**kept, **places}, cwd="/", capture_output=True, encoding="utf-8", timeout=LIMIT_S
        )

    try:
        if run("--version", HOME="/").returncode:
            pytest.skip("others may not start this Python, or read this checkout")
        yield run
    finally:
        shutil.rmtree(home)


def test_folders_that_cannot_be_written_are_told(nobody: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The journal's, the recording's and that of what is remembered."""
    found = told(nobody("doctor", "--json", HOME="{home}"))
    for about in ("journal", "recording", "remembered"):
        assert "may not be written by you" in found[about]["says"]
        assert found[about]["do"].endswith(".path")


def test_a_user_without_a_home_is_told_so(nobody: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Here and by every other command, in a sentence."""
    assert "set the environment variable HOME" in told(nobody("doctor", "--json"))["file"]["says"]
    done = nobody("status")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "set the environment variable HOME" in done.stderr


def test_a_home_that_is_a_file_is_no_traceback(scaler: Run, tmp_path: Path) -> None:
    """Nor is a configuration that is a folder."""
    home = tmp_path / "home"
    home.write_text("")
    places = {f"XDG_{name}_HOME": "" for name in ("CONFIG", "STATE", "CACHE")}
    assert "is a file, where" in told(scaler("doctor", "--json", env={"HOME": str(home), **places}))["journal"]["says"]
    assert "cannot be read" in told(scaler("doctor", "--json", "--config", str(tmp_path)))["file"]["says"]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_a_unit_of_a_scaler_that_is_gone_is_told(
    scaler: Run, places: dict[str, str], healthy: Callable[..., Path], tmp_path: Path
) -> None:
    """With the command that writes it anew; a unit that is as it should be is ok."""
    healthy()
    # No systemd of a person's is there for every test, so one that does not answer.
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text("#!/bin/sh\nexit 1\n")
    systemctl.chmod(0o755)
    path = {"PATH": f"{systemctl.parent}:{places['PATH']}"}
    file = Path(places["XDG_CONFIG_HOME"]) / "systemd" / "user" / "scaler.service"
    file.parent.mkdir(parents=True)
    file.write_text("[Service]\nExecStart=/nowhere/scaler run\n")
    unit = told(scaler("doctor", "--json", env=path))["unit"]
    assert unit["says"] == f"{file} starts /nowhere/scaler, which is no program that is here"
    assert unit["do"].startswith("scaler service > ")
    file.write_text(scaler("service").stdout)
    found = told(scaler("doctor", "--json", env=path))
    assert "unit" not in found
    assert found["systemd"]["verdict"] == "note"
