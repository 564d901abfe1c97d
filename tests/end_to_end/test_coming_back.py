"""Coming back after kill -9, and under a supervisor that does what systemd does with the shipped unit."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaler.events import DecisionMade
from scaler.journal import read
from scaler.levels import OFF
from scaler.supervision import Supervisor
from tests.end_to_end.conftest import PATIENCE_S, Machine
from tests.end_to_end.test_commands import SCALER, Daemon
from tests.processes import gone

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets")


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the daemon's private folders are; with a short name, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def killed(daemon: Daemon) -> None:
    """Kill it with no warning; nothing that it had started lives on."""
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    assert children
    daemon.process.kill()
    daemon.process.communicate(timeout=PATIENCE_S)
    assert gone(children)


def takes(daemon: Daemon) -> int:
    """What large takes of RAM, as far as the daemon knows."""
    return int(json.loads(daemon.ask("status", "--json").stdout)["footprints"]["large"]["ram"])


def remembered(config: Path) -> Any:
    """What is kept for the next one."""
    return json.loads((config.parent / "remembered.json").read_text())


def decisions(config: Path, daemon: Daemon) -> list[tuple[str, float]]:
    """Where each of them led, and when it was made by the daemon's clock."""
    of_it = [one for one in read(config.parent / "journal.jsonl") if one["pid"] == daemon.process.pid]
    return [(one["dest"], one["at_s"]) for one in of_it if one["event"] == "decision"]


def ended(daemon: Daemon) -> None:
    """As a person ends it."""
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.communicate(timeout=PATIENCE_S)


def test_after_a_kill_it_serves_again_and_nothing_of_the_one_before_is_left(
    configure: Callable[..., Path], sockets: Path
) -> None:
    """No process, no folder; what it learned is known, and the dwell is not cut short."""
    dwell_s, declared = 4.0, int(0.8 * 1024**3)
    config = configure(policy={"dwell_s": dwell_s, "dwell_max_s": 16.0})
    daemon = Daemon(config)
    daemon.wait_for("large serves now")
    while (learned := takes(daemon)) == declared:
        pass
    # Something that happens, with which all that was learned by then is written down: soon, as far as the disk lets it.
    assert daemon.ask("pin", "--release").returncode == 0
    while remembered(config)["levels"]["large"]["footprint"].get("ram", 0) < 0.98 * learned:
        pass
    killed(daemon)
    left = list(sockets.iterdir())
    assert left
    daemon = Daemon(config)
    try:
        daemon.wait_for("remembers ")
        assert "off → small" in daemon.wait_for("off → ")
        daemon.wait_for("small serves now")
        assert "small" in daemon.ask("chat", "Who are you?").stdout
        assert not {str(folder) for folder in left} & {str(folder) for folder in sockets.iterdir()}
        assert takes(daemon) == pytest.approx(learned, rel=0.02)
        assert takes(daemon) != declared
        daemon.wait_for("large serves now")
        (_, began_s), (_, climbed_s), *_ = decided = decisions(config, daemon)
        assert climbed_s - began_s >= dwell_s
        # It was killed right after a climb, which counts as a wasted one: twice the dwell for that level.
        assert next(at_s for dest, at_s in decided if dest == "large") - began_s >= 2 * dwell_s
    finally:
        ended(daemon)
    assert list(sockets.iterdir()) == []


def test_a_pin_outlives_a_kill_and_is_said_at_the_start(configure: Callable[..., Path]) -> None:
    """Until a person takes it back."""
    config = configure()
    daemon = Daemon(config)
    daemon.wait_for("large serves now")
    daemon.ask("pin", "medium")
    daemon.wait_for("medium serves now")
    # Killed while it was still known as one that is being loaded, it would be left alone for a while.
    while remembered(config)["loading"] is not None:
        pass
    killed(daemon)
    daemon = Daemon(config)
    try:
        assert "pinned to medium" in daemon.wait_for("remembers ")
        # At once, not after the dwell.
        assert "a person pinned medium" in daemon.wait_for("small → medium")
        daemon.wait_for("medium serves now")
        assert json.loads(daemon.ask("status", "--json").stdout)["pinned"] == "medium"
        assert daemon.ask("pin", "--release").returncode == 0
        daemon.wait_for("large serves now")
    finally:
        ended(daemon)


@pytest.mark.parametrize("moment", ["at once", "loading", "serving"])
def test_it_comes_back_from_a_kill_at_any_moment(configure: Callable[..., Path], moment: str, sockets: Path) -> None:
    """Also three times in a row."""
    config = configure()
    for _ in range(3):
        daemon = Daemon(config)
        if moment != "at once":
            daemon.wait_for("off → small" if moment == "loading" else "small serves now")
        daemon.process.kill()
        daemon.process.communicate(timeout=PATIENCE_S)
    daemon = Daemon(config)
    daemon.wait_for("small serves now")
    ended(daemon)
    assert list(sockets.iterdir()) == []


# ------------------------------------------------------------------------------------------- under a supervisor


class Listener:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.heard: list[str] = []

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def next(self, within_s: float) -> str | None:
        """The next datagram; None when none comes within so many seconds."""
        self._socket.settimeout(max(within_s, 1e-3))
        try:
            self.heard.append(self._socket.recv(4096).decode())
        except TimeoutError:
            return None
        return self.heard[-1]

    def until(self, words: str) -> None:
        """Wait for a datagram with these words."""
        deadline = time.monotonic() + PATIENCE_S
        while (told := self.next(deadline - time.monotonic())) is not None:
            if words in told:
                return
        raise AssertionError(f"never told {words!r}: {self.heard}")

    def silent(self, for_s: float) -> bool:
        """Whether so many seconds pass without a pulse; what was sent before is passed over."""
        deadline = time.monotonic() + 4 * for_s
        since = time.monotonic()
        while time.monotonic() < deadline:
            told = self.next(since + for_s - time.monotonic())
            if told is None:
                return True
            if told == "WATCHDOG=1":
                since = time.monotonic()
        return False


@pytest.fixture(params=["a file", "abstract"])
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    """systemd uses either kind of address."""
    if request.param == "abstract" and not Path("/proc/net/unix").exists():
        pytest.skip("only Linux has abstract addresses")
    with tempfile.TemporaryDirectory(prefix="n") as folder:
        one = Listener(f"{folder}/notify" if request.param == "a file" else f"@{folder}")
        yield one
        one.close()


def unit(*arguments: str) -> Mapping[str, Mapping[str, str]]:
    """The sections of the unit that `scaler service` prints."""
    text = subprocess.run([*SCALER, "service", *arguments], capture_output=True, text=True, check=True).stdout
    read = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    read.optionxform = str  # type: ignore[assignment,method-assign]  # as the standard library has it set
    read.read_string(text)
    return read


@contextmanager
def started(service: Mapping[str, str], listener: Listener, watchdog_s: float) -> Iterator[subprocess.Popen[str]]:
    """What the unit starts, as systemd would start it."""
    assert service["Type"] == "notify"
    environment = {**os.environ, "NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"}
    command = shlex.split(service["ExecStart"])
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def address(process: subprocess.Popen[str]) -> str:
    """Where it said that it answers."""
    assert process.stdout is not None
    return next(line.split()[1] for line in process.stdout if line.startswith("endpoint")).removesuffix("/v1")


def serving(url: str) -> str:
    """The level that serves, as the daemon tells."""
    with urllib.request.urlopen(f"{url}/status", timeout=PATIENCE_S) as answer:
        return str(json.load(answer)["serving"])


def test_the_units_command_is_ready_lives_hangs_is_ended_and_begins_anew(
    configure: Callable[..., Path], listener: Listener
) -> None:
    """A small supervisor does what the unit asks of systemd; a process that stands still is found by its silence."""
    watchdog_s = 3.0
    service = unit("--config", str(configure(server={"port": 0})))["Service"]
    assert (service["Restart"], service["KillMode"], service["OOMPolicy"]) == ("on-failure", "mixed", "continue")
    assert float(service["WatchdogSec"]) > watchdog_s
    with started(service, listener, watchdog_s) as process:
        listener.until("READY=1")
        url = address(process)
        listener.until("STATUS=large serves")
        listener.until("WATCHDOG=1")
        listener.until("WATCHDOG=1")
        process.send_signal(signal.SIGSTOP)
        assert listener.silent(watchdog_s)
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == -signal.SIGKILL
    with started(service, listener, watchdog_s) as process:
        listener.until("READY=1")
        url = address(process)
        listener.until("STATUS=small serves")
        assert serving(url) in ("small", "medium", "large")
        listener.until("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        listener.until("STOPPING=1")
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    assert listener.silent(0.2)


def test_a_configuration_that_cannot_be_used_is_not_tried_again(tmp_path: Path, listener: Listener) -> None:
    """It never says that it is ready, and ends as the unit says is final."""
    config = tmp_path / "bad %h.yaml"
    config.write_text("ladder: 3\n")
    service = unit("--config", str(config))["Service"]
    assert f'"{config}"'.replace("%", "%%") in service["ExecStart"]
    plain = {**service, "ExecStart": service["ExecStart"].replace("%%", "%")}
    with started(plain, listener, 4.0) as process:
        assert process.wait(PATIENCE_S) == int(service["RestartPreventExitStatus"])
    assert listener.next(0.1) is None


@pytest.mark.parametrize("what", ["the effects' loop", "the decision", "a subscriber"])
def test_a_daemon_that_runs_and_hangs_has_no_pulse(
    running: Callable[..., Any], machine: Machine, listener: Listener, what: str
) -> None:
    """A thread that turns is not enough: readings must be decided on, and answers must be able to go on."""
    go_on = threading.Event()
    held = threading.Event()
    with running() as (manager, watch):
        watch.readings(1)
        supervisor = Supervisor({"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "1000000"})
        supervisor.ready(manager)
        listener.until("READY=1\nSTATUS=nothing is loaded")
        listener.until("WATCHDOG=1")

        def hang(*_: object) -> None:
            held.set()
            go_on.wait(PATIENCE_S)

        def hold() -> None:
            with manager.scaler._lock:
                hang()

        holder = threading.Thread(target=hold)
        leave: Callable[[], None] = lambda: None  # noqa: E731  # replaced below by what ends it
        if what == "the effects' loop":
            manager.effects.loop.call_soon_threadsafe(hang)
        elif what == "the decision":
            holder.start()
        else:
            leave = manager.scaler.subscribe(hang)
        assert held.wait(PATIENCE_S)
        try:
            assert listener.silent(2.0)
        finally:
            go_on.set()
        listener.until("WATCHDOG=1")
        if holder.ident is not None:
            holder.join(PATIENCE_S)
        leave()
        supervisor.stopping()
        listener.until("STOPPING=1")
        assert not any(thread.name == "scaler-watchdog" for thread in threading.enumerate())


def test_where_nobody_asked_nothing_is_told(running: Callable[..., Any], listener: Listener) -> None:
    """Started from a terminal, or for another process: systemd names the one that it means."""
    with running() as (manager, _):
        for environment in (
            {},
            {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"},
            {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "soon"},
        ):
            supervisor = Supervisor(environment)
            supervisor.ready(manager)
            assert not any(thread.name == "scaler-watchdog" for thread in threading.enumerate())
            supervisor.stopping()
    while listener.next(0.1) is not None:
        pass
    assert {words.split("\n")[0] for words in listener.heard} == {"READY=1", "STOPPING=1"}
    assert len(listener.heard) == 4


def test_a_supervisor_that_has_gone_is_logged_and_no_fault(
    running: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Serving goes on."""
    with running() as (manager, _):
        supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone")})
        supervisor.ready(manager)
        supervisor.stopping()
    assert "cannot be told" in caplog.text


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Every key of it, and the command is there."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = subprocess.run([*SCALER, "service"], capture_output=True, text=True, check=True).stdout
    file = tmp_path / "scaler.service"
    file.write_text(text)
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        [analyze, "verify", "--user", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )
    # It ends well whatever it says of a key that it does not know.
    assert (done.returncode, done.stderr) == (0, "")


def test_an_embedding_program_remembers_nothing_unless_it_says_so(
    running: Callable[..., Any], machine: Machine, tmp_path: Path
) -> None:
    """Two of them on one machine are no business of each other, or of the daemon's."""
    with running() as (manager, watch):
        manager.scaler.want(True)
        watch.until(lambda: any(isinstance(event, DecisionMade) for event in watch.events), "a decision")
        assert manager.scaler.status().state != OFF
        assert manager.remembered is None
    assert not (tmp_path / "remembered.json").exists()
