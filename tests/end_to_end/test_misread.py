"""A configuration with a mistake beside a daemon that runs: its commands go on working, and say so."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from scaler import paths
from scaler.cli import EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE, main
from tests.end_to_end.test_commands import Daemon

Ship = Callable[[int], None]


@pytest.fixture
def config(configure: Callable[..., Path]) -> Path:
    """A good one, of one small level."""
    return configure(levels=("small",), queue={"limit": 7})


@pytest.fixture
def daemon(config: Path) -> Iterator[Daemon]:
    """A real one, which runs with it."""
    one = Daemon(config)
    one.wait_for("small serves now")
    yield one
    one.process.send_signal(signal.SIGTERM)
    one.process.communicate(timeout=60)


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ship:
    """Ships another address: what the real one has may be in use here."""
    shipped = (paths.shipped_config() / "scaler.yaml").read_text()

    def put(port: int) -> None:
        folder = tmp_path / "shipped"
        folder.mkdir()
        (folder / "scaler.yaml").write_text(f"{shipped}\nserver: {{port: {port}}}\n")
        monkeypatch.setattr(paths, "shipped_config", lambda: folder)

    return put


def port_of(daemon: Daemon) -> int:
    """Where it listens."""
    return urlsplit(daemon.url).port or 0


def misspell(config: Path, port: int) -> int:
    """A typo in a section of its own, and the address as it is; returns the line of the typo."""
    written = yaml.safe_load(config.read_text())
    written["queue"] = {"limt": 7, "wait_s": 30}
    config.write_text(yaml.safe_dump(written | {"server": {"port": port}}))
    return next(number for number, line in enumerate(config.read_text().splitlines(), 1) if "limt" in line)


def test_a_typo_elsewhere_keeps_no_command_from_its_daemon(
    daemon: Daemon, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found where the rest of the file has it; one warning, and nothing of it on the standard output."""
    line = misspell(config, port_of(daemon))
    warning = (
        f"scaler: warning: {config}:{line}: queue.limt: unknown key; expected 'limit', the nearest that is known\n"
        f"scaler: asking {daemon.url}, as the rest of the file says\n"
    )
    for command in (["status"], ["explain"], ["check"], ["advise"], ["pin", "small"], ["pin", "--release"]):
        assert main([*command, "--json", "--config", str(config)]) == EXIT_OK
        told = capsys.readouterr()
        assert told.err == warning
        assert json.loads(told.out)
    assert main(["status", "--url", daemon.url, "--config", str(config)]) == EXIT_OK
    assert capsys.readouterr().err == ""


def test_a_refused_reload_says_that_nothing_was_changed(
    daemon: Daemon, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mistake is told once, and the daemon goes on."""
    line = misspell(config, port_of(daemon))
    assert main(["reload", "--config", str(config)]) == EXIT_USAGE
    told = capsys.readouterr()
    assert (told.out, told.err.splitlines()) == (
        "",
        [
            f"scaler: {config}:{line}: queue.limt: unknown key; expected 'limit', the nearest that is known",
            "nothing was changed: the daemon goes on with the configuration that it has",
        ],
    )
    assert main(["check", "--url", daemon.url]) == EXIT_OK


@pytest.mark.parametrize("mistake", ["server:\n\tport: 1\n", "server: {prt: 1}\n", "server: {port: x, tls: {}}\n"])
def test_an_address_that_cannot_be_read_is_taken_from_the_shipped_settings(
    daemon: Daemon, config: Path, mistake: str, ship: Ship, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is said, for it may be another daemon's."""
    config.write_text(mistake)
    ship(port_of(daemon))
    assert main(["check", "--config", str(config)]) == EXIT_OK
    told = capsys.readouterr()
    assert "small serves" in told.out
    first, second = told.err.splitlines()
    assert first.startswith(f"scaler: warning: {config}:")
    assert second == f"scaler: asking {daemon.url}, the address of the shipped settings; --url gives another"


def test_if_nothing_answers_the_mistake_is_the_likely_cause(
    config: Path, ship: Ship, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a reload, too, which warns of nothing before."""
    config.write_text("server:\n\tport: 1\n")
    mistake = f"{config}:2:1: a tab is used for indentation; expected spaces"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens to nobody
        ship(taken.getsockname()[1])
        for command in ("status", "reload"):
            assert main([command, "--config", str(config)]) == EXIT_UNREACHABLE
            error = capsys.readouterr().err.splitlines()[-1]
            assert error.startswith("scaler: no daemon answers at ")
            assert error.endswith(
                "; the likely cause is a mistake in the configuration; correct it, or give the daemon's address with "
                f"--url: {mistake}"
            )


def test_a_file_that_says_no_address_is_not_said_to_say_one(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether or not somebody answers there."""
    config.write_text("queue: {limt: 7}\n")
    main(["status", "--config", str(config)])
    warned = capsys.readouterr().err.splitlines()[1]
    assert warned == "scaler: asking http://127.0.0.1:8484, the usual address"
