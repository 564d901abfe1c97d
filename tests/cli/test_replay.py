"""`scaler replay` on real files: the figures, the picture, and what it says of recordings that cannot be used."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from scaler.levels import GIB
from scaler.readings import Memory, Reading
from scaler.recordings import Recorder
from tests.cli.conftest import Run

LADDER = """\
tier: mid_range
ladder:
  - {name: small, model: absent.gguf, quality: 0.6, ram_gib: 2, load_s: 4}
  - {name: large, model: absent.gguf, quality: 1.0, ram_gib: 7, load_s: 10}
"""
WALL = 1.76e9


@pytest.fixture
def config(own_config: Callable[[str], Path]) -> Path:
    """Two levels whose model files are not here: a replay loads nothing."""
    return own_config(LADDER)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """An hour: calm, then others take much for ten minutes, then the machine sleeps, then calm again."""
    folder = tmp_path / "recording"
    recorder = Recorder(folder, wall_clock=lambda: WALL)
    for at_s in range(3600):
        used = 10 if 1200 <= at_s < 1800 else 4
        asleep = 5000 if at_s >= 2400 else 0
        memory = Memory(16 * GIB, (16 - used - 1) * GIB)
        recorder.take(Reading(float(at_s + asleep), WALL + at_s + asleep, memory, GIB))
    recorder.close()
    return folder


def test_it_tells_what_would_have_happened(scaler: Run, config: Path, recording: Path) -> None:
    """Time at each level, switches, and how near the best that is, in words and as data."""
    done = scaler("replay", str(recording))
    assert done.returncode == 0, done.stderr
    assert "played    60.0 min, without one gap" in done.stdout
    assert "2025-10-09 08:53 to 2025-10-09 11:16, on 16.0 GiB, with tier mid_range" in done.stdout
    assert re.search(r"large +█+ +\d+\.\d % ", done.stdout.replace("%", " %"))
    assert "of what could have been gained by knowing the future" in done.stdout
    assert done.stderr == ""
    told = json.loads(scaler("replay", str(recording), "--json").stdout)
    assert told["seconds"] == sum(told["seconds_at"].values()) == pytest.approx(3598)
    assert (told["gaps"], told["kills"], told["switches"]) == (1, 0, 3)
    assert told["smallest_score"] < told["score"] <= told["best_score"]
    assert 0 < told["captured"] <= 1
    assert told["notes"] == []


def test_the_configured_folder_is_what_it_plays_when_none_is_named(
    scaler: Run, own_config: Callable[[str], Path], recording: Path
) -> None:
    """What the daemon recorded."""
    own_config(f"{LADDER}recording: {{path: {recording}}}\n")
    assert json.loads(scaler("replay", "--json").stdout)["source"] == str(recording)
    old = scaler("replay", "--last", "1h")
    assert old.returncode == 3
    assert "nothing was recorded in that time" in old.stderr


def test_another_configuration_is_tried_on_the_same_hour(
    scaler: Run, config: Path, recording: Path, tmp_path: Path
) -> None:
    """What if: the reason to replay at all."""
    other = tmp_path / "other.yaml"
    other.write_text(LADDER + "policy: {dwell_s: 600, dwell_max_s: 1800}\n")
    patient = json.loads(scaler("replay", str(recording), "--config", str(other), "--json").stdout)
    shipped = json.loads(scaler("replay", str(recording), "--json").stdout)
    assert patient["policy"]["dwell_s"] == 600
    assert patient["seconds_at"]["large"] < shipped["seconds_at"]["large"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_one(scaler: Run, config: Path, recording: Path, tmp_path: Path, suffix: str) -> None:
    """With the words in it that explain it."""
    path = tmp_path / f"week.{suffix}"
    done = scaler("replay", str(recording), "--picture", str(path))
    assert done.returncode == 0, done.stderr
    assert f"drawn into {path}" in done.stdout
    if suffix == "png":
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")
    refused = scaler("replay", str(recording), "--picture", str(tmp_path / "week.pdf"))
    assert refused.returncode == 2
    assert "expected a name that ends in .png or .svg" in refused.stderr


def test_a_picture_that_cannot_be_written_costs_no_figures(
    scaler: Run, config: Path, recording: Path, tmp_path: Path
) -> None:
    """They were played for, which takes minutes for a long recording."""
    path = tmp_path / "absent" / "week.svg"
    done = scaler("replay", str(recording), "--picture", str(path))
    assert done.returncode == 3
    assert done.stderr == f"scaler: {path}: the picture cannot be written: No such file or directory\n"
    assert "score     " in done.stdout
    assert "drawn into" not in done.stdout
    assert json.loads(scaler("replay", str(recording), "--picture", str(path), "--json").stdout)["switches"] == 3


def test_a_public_trace_can_be_played(scaler: Run, config: Path, tmp_path: Path) -> None:
    """Two columns, and the size of the machine by option."""
    trace = tmp_path / "trace.csv"
    trace.write_text("t,mem\n" + "".join(f"{at},{0.25}\n" for at in range(0, 1200, 2)))
    told = json.loads(scaler("replay", str(trace), "--total-gib", "16", "--json").stdout)
    assert told["total_bytes"] == 16 * GIB
    assert told["from"] is None
    assert told["switches"] == 1
    small = json.loads(scaler("replay", str(trace), "--total-gib", "8", "--json").stdout)
    assert small["switches"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t,mem\n2,0.5\n1,0.5\n", "a.csv:3: time 1 is not after 2; expected ascending times"),
        ("t,mem\n", "nothing was recorded in that time"),
        ("time,used\n1,2\n", "a.csv:1: 'time,used' is no recording"),
        ("t,mem\n1,0.5\n2,?\n", "a.csv:3: '2,?' cannot be read"),
    ],
)
def test_a_bad_recording_is_one_message(scaler: Run, config: Path, tmp_path: Path, text: str, expected: str) -> None:
    """With the file, the line and what was expected."""
    path = tmp_path / "a.csv"
    path.write_text(text)
    done = scaler("replay", str(path))
    assert done.returncode == 3
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_ladder_that_needs_what_was_not_recorded_is_said(
    scaler: Run, own_config: Callable[[str], Path], recording: Path
) -> None:
    """A GPU that the recorded machine did not have."""
    own_config(LADDER.replace("ram_gib: 7", "ram_gib: 7, vram_gib: 2, gpu_layers: 9"))
    done = scaler("replay", str(recording))
    assert done.returncode == 3
    assert "none of its 3600 readings has gpu0, which the ladder takes" in done.stderr
