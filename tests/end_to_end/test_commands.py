"""The daemon and its commands, as a person runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaler.demo.hog import Hog
from scaler.journal import DAEMON
from scaler.manager import ModelManager
from scaler.recordings import Recording
from scaler.tiers import HardwareTierDetector
from tests.processes import gone

SCALER = [sys.executable, "-m", "scaler"]


class Daemon:
    """`scaler run` on a free port, with its address."""

    def __init__(self, config: Path, before: Sequence[str] = (), stderr: int | None = None) -> None:
        """``before``: the words of a command that starts it. ``stderr`` as `subprocess` has it."""
        self.process = subprocess.Popen(
            [*before, *SCALER, "run", "--config", str(config), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        self.said: list[str] = []
        self.url = self.wait_for("endpoint").split()[1].removesuffix("/v1")

    def wait_for(self, words: str) -> str:
        """The next line of its output that has ``words`` in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if words in line:
                return line
        raise AssertionError(f"never said {words!r}: {''.join(self.said)}")

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command against it."""
        return subprocess.run(
            [*SCALER, command[0], "--url", self.url, *command[1:]], capture_output=True, text=True, timeout=120
        )


@pytest.fixture
def daemon(configure: Callable[..., Path]) -> Iterator[Daemon]:
    """A running daemon on the real machine, with little room needed: the demo ladder."""
    one = Daemon(configure(monitor={"interval_s": 0.1}))
    yield one
    one.process.send_signal(signal.SIGTERM)
    one.process.communicate(timeout=60)


def test_a_person_starts_it_talks_to_it_and_understands_it(daemon: Daemon, tmp_path: Path) -> None:
    """From `scaler run` to an answer and an explanation."""
    daemon.wait_for("large serves now")
    (tier,) = [line for line in daemon.said if line.startswith("tier ")]
    assert tier.removesuffix("\n").endswith("; ".join(HardwareTierDetector().chosen("mid_range").reasons))
    assert "large" in daemon.ask("chat", "Who", "are", "you?").stdout
    status = daemon.ask("status")
    assert status.returncode == 0
    assert "level     large" in status.stdout
    assert json.loads(daemon.ask("status", "--json").stdout)["serving"] == "large"
    explained = daemon.ask("explain").stdout
    assert explained.startswith("large is the level now")
    assert "%" in explained
    check = daemon.ask("check")
    assert check.returncode == 0
    assert "answered now" in check.stdout
    assert json.loads(daemon.ask("pin", "small", "--json").stdout) == {"pinned": "small"}
    daemon.wait_for("small serves now")
    assert "small" in daemon.ask("chat", "Who are you?").stdout
    assert daemon.ask("pin", "--release").returncode == 0
    history = subprocess.run(
        [*SCALER, "history", "--path", str(tmp_path / "journal.jsonl")], capture_output=True, text=True, check=True
    ).stdout
    assert "small" in history
    assert "large" in history


def test_a_program_that_embeds_it_beside_the_daemon_is_told_apart(daemon: Daemon, tmp_path: Path) -> None:
    """On one journal: `scaler history` names it, and the daemon's page has the daemon's only."""
    daemon.wait_for("small serves now")
    with ModelManager(tmp_path / "scaler.yaml") as manager:
        manager.generate_response_sync("Who are you?")
        name = f"{manager.writer.program}[{manager.writer.pid}]: "
    history = subprocess.run(
        [*SCALER, "history", "--path", str(tmp_path / "journal.jsonl")], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    began = [line[21:].partition("off → small: ")[0] for line in history if "off → small: " in line]
    assert began == ["", name]
    with urllib.request.urlopen(f"{daemon.url}/history", timeout=60) as response:
        events = json.load(response)["events"]
    assert {(event["program"], event["pid"]) for event in events} == {(DAEMON, daemon.process.pid)}
    assert [event["what"] for event in events].count("off → small") == 1


def test_a_second_one_says_only_that_one_runs_already(daemon: Daemon, configure: Callable[..., Path]) -> None:
    """The cause and what to do; nothing of what it would mean for what is remembered, and the first goes on."""
    config = configure()
    command = [*SCALER, "run", "--config", str(config), "--port", daemon.url.rpartition(":")[2]]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (second.returncode, second.stdout) == (3, "")
    (line,) = second.stderr.splitlines()
    assert line.startswith(f"scaler: a scaler runs at {daemon.url} already: `")
    assert f"status --url {daemon.url}` tells how it stands" in line
    assert "--port" in line
    assert daemon.ask("status").returncode == 0


def test_the_daemon_keeps_what_it_saw(configure: Callable[..., Path], tmp_path: Path) -> None:
    """With its own model's part, so that it can be replayed."""
    daemon = Daemon(configure())
    daemon.wait_for("large serves now")
    daemon.process.send_signal(signal.SIGTERM)
    said, _ = daemon.process.communicate(timeout=60)
    assert any(line.split() == ["recording", str(tmp_path / "recording")] for line in daemon.said), said
    own = [reading.own_bytes or 0 for reading in Recording(tmp_path / "recording")]
    assert own[0] < 50 * 1024**2
    assert max(own) > 300 * 1024**2


def test_it_leaves_no_process_when_it_is_told_to_end_and_when_it_is_killed(configure: Callable[..., Path]) -> None:
    """Model processes die with their parent, also when nobody asked it first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        daemon = Daemon(configure())
        daemon.wait_for("small serves now")
        children = psutil.Process(daemon.process.pid).children(recursive=True)
        assert children
        os.kill(daemon.process.pid, number)
        daemon.process.communicate(timeout=60)
        assert gone(children)


def test_it_goes_on_when_nobody_takes_what_it_says(configure: Callable[..., Path], tmp_path: Path) -> None:
    """As where the disk that it was said to is full: told once, and all the rest is done as ever."""
    daemon = Daemon(configure(levels=("small", "medium")), stderr=subprocess.PIPE)
    assert daemon.process.stdout is not None
    assert daemon.process.stderr is not None
    daemon.wait_for("medium serves now")
    daemon.process.stdout.close()
    assert daemon.ask("pin", "small").returncode == 0
    warning = daemon.process.stderr.readline()
    assert "the standard output does not take what is said (Broken pipe); `scaler history` has what" in warning
    configure(levels=("small",), recording={"path": str(tmp_path / "another")})
    assert daemon.ask("reload", "--config", str(tmp_path / "scaler.yaml")).returncode == 0
    status = json.loads(daemon.ask("status", "--json").stdout)
    assert (status["pinned"], list(status["projected"])) == ("small", ["small"])
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    daemon.process.send_signal(signal.SIGTERM)
    with daemon.process.stderr as rest:
        assert rest.read() == ""
    assert daemon.process.wait(60) == 0
    assert gone(children)
    assert list(Recording(tmp_path / "another"))


def test_commands_say_it_when_no_daemon_answers() -> None:
    """One message, an exit code of its own, and what to do."""
    for command in (["status"], ["explain"], ["advise"], ["check"], ["chat", "hello"], ["pin", "small"]):
        done = subprocess.run(
            [*SCALER, command[0], "--url", "http://127.0.0.1:9", *command[1:]], capture_output=True, text=True
        )
        assert done.returncode == 4
        assert "start one with `scaler run`" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_bad_configuration_starts_nothing(tmp_path: Path) -> None:
    """One message with file and line."""
    config = tmp_path / "scaler.yaml"
    config.write_text("ladder:\n  - name: a\n    model: a.gguf\n    qualty: 1\n")
    done = subprocess.run([*SCALER, "run", "--config", str(config)], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{config}:4" in done.stderr
    assert "quality" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(300)  # some virtual machines take a minute to give freed memory back, and only then it climbs
def test_real_memory_pressure_from_another_process_is_answered_by_a_step_down(
    configure: Callable[..., Path], demo_models: Any
) -> None:
    """No mock anywhere: real readings of this machine, a real hog, a real ladder. The hog takes 1.5 GiB at most."""
    mib = 1024**2
    memory = psutil.virtual_memory()
    if memory.available < 4 * 1024 * mib:
        pytest.skip(f"only {memory.available / mib:.0f} MiB are available; this test would strain the machine")
    used = memory.total - memory.available
    scale_at = (used + 820 * mib + 350 * mib) / memory.total
    daemon = Daemon(
        configure(
            monitor={"interval_s": 0.1},
            policy={
                "scale_at": scale_at,
                "band": 50 * mib / memory.total,
                "critical_at": scale_at + 900 * mib / memory.total,
                "exhausted_at": 1.0,
            },
        )
    )
    try:
        daemon.wait_for("large serves now")
        # What other programs gave back or took since the start counts as well.
        room = (scale_at - json.loads(daemon.ask("status", "--json").stdout)["projected"]["large"]) * memory.total
        pressure = int(room) + 350 * mib
        assert 0 < pressure <= 1536 * mib, "another program on this machine took or gave back too much meanwhile"
        with Hog(pressure) as hog:
            hog.hold(pressure)
            # Which smaller level it is depends on what else this machine does meanwhile.
            line = daemon.wait_for("large → ")
            assert "the limit is" in line
            smaller = line.split("→ ")[1].split(":")[0]
            assert smaller in ("medium", "small")
            daemon.wait_for(f"{smaller} serves now")
            assert "large" not in daemon.ask("chat", "Who are you?").stdout
        daemon.wait_for("large serves now")
    finally:
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.communicate(timeout=60)
