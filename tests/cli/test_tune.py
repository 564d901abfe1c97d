"""`scaler tune`: what it proposes is a file that works, and it says when there is nothing to say."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scaler.cli.tune import Part
from scaler.levels import GIB
from scaler.tiers import HardwareTierDetector
from tests.cli.conftest import SCALER, Run

LADDER = """\
tier: mid_range
ladder:
  - {name: small, model: absent.gguf, quality: 0.5, ram_gib: 2, load_s: 2}
  - {name: large, model: absent.gguf, quality: 1.0, ram_gib: 8, load_s: 6}
"""


@pytest.fixture
def config(own_config: Callable[[str], Path]) -> Path:
    """Two levels whose files need not be there."""
    return own_config(LADDER)


def trace(path: Path, hours: float, calm: bool = False) -> Path:
    """Others leave a little less room than the shipped band asks for, and take more every two hours, unless calm."""
    shares = {
        at: 0.6 if at % 7200 < 600 else 0.277 if at % 7200 < 5400 else 0.24 for at in range(0, int(hours * 3600), 10)
    }
    path.write_text("t,mem\n" + "".join(f"{at},{0.2 if calm else share}\n" for at, share in shares.items()))
    return path


@pytest.mark.timeout(300)
def test_what_it_proposes_can_be_used_as_a_tier_file(scaler: Run, config: Path, tmp_path: Path) -> None:
    """Only the keys that pay, judged on what the search did not see, and never over a file that is there."""
    path, output = trace(tmp_path / "days.csv", 26), tmp_path / "mid_range.yaml"
    options = ("tune", str(path), "--total-gib", "16", "--jobs", "2")
    done = scaler(*options, "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "searched 17.0 h" in done.stdout
    assert "judged on the 9.0 h after it, which the search did not see" in done.stdout
    assert "recommended: the gain is more than luck" in done.stdout
    shipped, own = HardwareTierDetector(tmp_path / "none"), HardwareTierDetector(tmp_path)
    before, after = shipped.tier("mid_range").policy, own.tier("mid_range").policy
    assert after.band < before.band
    assert (after.scale_at, after.dwell_s) == (before.scale_at, before.dwell_s)
    again = scaler(*options, "--output", str(output))
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize("hours", [0.5, 23])
def test_too_little_is_refused_with_what_is_needed(scaler: Run, config: Path, tmp_path: Path, hours: float) -> None:
    """Half a day says nothing about a week."""
    done = scaler("tune", str(trace(tmp_path / "a.csv", hours)))
    assert done.returncode == 1
    assert "too little is recorded to recommend anything" in done.stdout
    assert "expected 24.0 h or more" in done.stdout
    told = json.loads(scaler("tune", str(tmp_path / "a.csv"), "--json").stdout)
    assert told["recommended"] is False


def test_too_calm_is_refused(scaler: Run, config: Path, tmp_path: Path) -> None:
    """Where nothing was decided nothing can be decided better."""
    done = scaler("tune", str(trace(tmp_path / "a.csv", 26, calm=True)), "--total-gib", "16")
    assert done.returncode == 1
    assert "too little happened to recommend anything" in done.stdout
    assert "expected 8 or more" in done.stdout


def test_readings_too_far_apart_are_refused(scaler: Run, config: Path, tmp_path: Path) -> None:
    """A decision needs readings that are not stale."""
    path = tmp_path / "coarse.csv"
    path.write_text("t,mem\n" + "".join(f"{at},0.3\n" for at in range(0, 100_000, 60)))
    done = scaler("tune", str(path))
    assert done.returncode == 3
    assert "lie more than 10 s apart" in done.stderr


def test_a_place_that_cannot_be_written_to_is_told_before_the_search(scaler: Run, config: Path, tmp_path: Path) -> None:
    """Which takes minutes."""
    done = scaler("tune", str(tmp_path / "absent.csv"), "--output", str(tmp_path / "absent" / "tier.yaml"))
    assert done.returncode == 2
    assert done.stderr == (
        f"scaler: --output: {tmp_path}/absent is no folder that can be written to; make it, or name another\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such terminal on Windows")
def test_ctrl_c_ends_it_with_all_its_processes(config: Path, places: dict[str, str], tmp_path: Path) -> None:
    """On a terminal it reaches each of them, and none has anything to say of it."""
    path = trace(tmp_path / "days.csv", 26)
    pid, terminal = os.forkpty()
    if pid == 0:
        # A shell has what it starts in the background ignore it, and so would we.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execve(SCALER[0], [*SCALER, "tune", str(path), "--total-gib", "16", "--jobs", "2"], places)
    said = b""
    while b"searching" not in said:
        said += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    try:
        # A terminal ends with the last process that has it open.
        while piece := os.read(terminal, 4096):
            said += piece
    except OSError:
        pass  # what Linux has for the end
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert b"Traceback" not in said, said.decode()


@pytest.mark.parametrize("jobs", ["0", "1000"])
def test_processes_that_cannot_be_are_refused(scaler: Run, config: Path, tmp_path: Path, jobs: str) -> None:
    """Before anything is read."""
    done = scaler("tune", str(tmp_path / "absent.csv"), "--jobs", jobs)
    assert done.returncode == 2
    assert "expected a whole number from 1 to 256" in done.stderr


def test_the_search_is_never_shown_what_is_held_back(tmp_path: Path) -> None:
    """The two parts have no reading in common."""
    path = trace(tmp_path / "a.csv", 1)
    searched, held_back = (Part(path, None, GIB, begin, end) for begin, end in ((0.0, 2400.0), (2400.0, 3600.0)))
    first, second = ([reading.at_s for reading in part.readings()] for part in (searched, held_back))
    assert max(first) < 2400 <= min(second)
    assert len(first) + len(second) == 360
