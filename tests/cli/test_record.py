"""`scaler record`: a real recording of this machine."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from scaler.levels import GIB
from scaler.readings import Memory, Reading
from scaler.recordings import Recorder, Recording
from tests.cli.conftest import LIMIT_S, SCALER, Run


def test_it_records_this_machine_for_as_long_as_it_is_told(scaler: Run, places: dict[str, str]) -> None:
    """Into the configured folder, and says where and for how long it is kept."""
    # By default there would be four; and a busy machine may leave most of these out.
    done = scaler("record", "--for", "3s", "--every", "0.05")
    folder = Path(places["XDG_STATE_HOME"]) / "scaler" / "recording"
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stdout
    assert "kept for 31 days" in done.stdout
    back = list(Recording(folder))
    assert len(back) >= 5
    for reading in back:
        usage = reading.usage("ram")
        assert usage is not None
        assert usage.own_bytes == 0
        assert usage.other_bytes > 0


def test_ctrl_c_ends_it_and_nothing_is_lost(places: dict[str, str], tmp_path: Path) -> None:
    """What was taken so far is written."""
    command = [*SCALER, "record", "--every", "0.05", "--folder", str(tmp_path / "here")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=places)
    assert process.stdout is not None
    assert "recording into" in process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    told = int(said.split(" readings were recorded")[0].splitlines()[-1])
    assert len(list(Recording(tmp_path / "here"))) == told > 0


def test_it_gives_way_to_another_recorder(places: dict[str, str], tmp_path: Path) -> None:
    """A daemon that starts knows its model's part; to this one it would be what others use."""
    command = [*SCALER, "record", "--every", "0.05", "--folder", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=places)
    assert process.stdout is not None
    assert "recording into" in process.stdout.readline()
    daemon = Recorder(tmp_path)
    daemon.take(Reading(1.0, None, Memory(GIB, 0), 0))
    daemon.close()
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert "another recorder, such as a daemon, writes into" in said
    assert "readings were recorded" in said


def test_beside_a_daemon_there_is_nothing_to_record(
    scaler: Run, own_config: Callable[[str], Path], places: dict[str, str]
) -> None:
    """It records itself, with its model's part."""

    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the standard library's name
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"state": "small", "serving": "small", "missing": []}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Status) as daemon:
        threading.Thread(target=daemon.serve_forever, daemon=True).start()
        own_config(f"server: {{port: {daemon.server_port}}}\n")
        done = scaler("record", "--for", "9s")
        daemon.shutdown()
    assert done.returncode == 1
    assert "records into" in done.stdout
    assert not (Path(places["XDG_STATE_HOME"]) / "scaler" / "recording").exists()


def test_a_folder_that_cannot_be_is_refused_at_once(scaler: Run, tmp_path: Path) -> None:
    """Not after two minutes of recording for nothing."""
    (tmp_path / "file").write_text("")
    done = scaler("record", "--folder", str(tmp_path / "file" / "below"), "--for", "1s")
    assert done.returncode == 3
    assert "cannot be made" in done.stderr
    assert "choose another --folder" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [("--for", "soon", "expected such as 90s, 30m, 2h, 7d"), ("--every", "0", "expected 0.01 to 3600 seconds")],
)
def test_a_time_that_cannot_be_is_refused_before_anything_starts(
    scaler: Run, option: str, value: str, expected: str
) -> None:
    """With the option and what was expected."""
    done = scaler("record", option, value)
    assert done.returncode == 2
    assert f"{option}: " in done.stderr
    assert expected in done.stderr
    assert done.stdout == ""
