"""`scaler diagram`: text anywhere, pictures where Graphviz is, clear words where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import SCALER, Run

DOCS = Path(__file__).parent.parent.parent / "docs"
GRAPHVIZ = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


def test_it_draws_the_persons_ladder_with_the_figures_of_a_tier(
    scaler: Run, own_config: Callable[[str], Path], own_tier: Callable[[str, str], Path]
) -> None:
    """Theirs, not the shipped ones; a level that has no file and no size yet is drawn without a size."""
    own_config("ladder:\n  - {name: tiny, model: none.gguf}\n  - {name: vast, model: b.gguf, ram_gib: 7}\n")
    own_tier("mine", "name: mine\nrank: 99\nrequires: []\npolicy: {scale_at: 0.61, band: 0.01}\n")
    drawn = scaler("diagram", "--tier", "mine")
    assert drawn.returncode == 0
    assert drawn.stdout.startswith("stateDiagram-v2\n")
    assert 'state "tiny" as level1' in drawn.stdout
    assert 'state "vast<br/>7 GiB" as level2' in drawn.stdout
    assert "usage there ≤ 61 %" in drawn.stdout
    assert "tier mine" in drawn.stdout


def test_without_a_tier_it_takes_this_machines(scaler: Run) -> None:
    """The tier that `scaler tier` tells of."""
    assert f"tier {scaler('tier').stdout.split(':')[0]}\n" in scaler("diagram").stdout


@GRAPHVIZ
def test_pictures_are_drawn_by_graphviz(scaler: Run, places: dict[str, str], tmp_path: Path) -> None:
    """PNG into a file, SVG through a pipe."""
    assert scaler("diagram", "--format", "png", "--output", str(tmp_path / "m.png")).returncode == 0
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    drawn = subprocess.run([*SCALER, "diagram", "--format", "svg"], capture_output=True, env=places, check=True)
    assert b"</svg>" in drawn.stdout
    assert "usage there ≤ 80".encode() in drawn.stdout.replace(b"&#160;", b" ")


def test_a_machine_without_graphviz_is_told_how_to_get_it(scaler: Run) -> None:
    """And what to do without it."""
    failed = scaler("diagram", "--format", "svg", env={"PATH": ""})
    assert failed.returncode == 3
    assert failed.stdout == ""
    assert failed.stderr.count("\n") == 1
    for words in ("apt install graphviz", "brew install graphviz", "--format mermaid"):
        assert words in failed.stderr


def test_a_graphviz_that_fails_is_quoted(scaler: Run, tmp_path: Path) -> None:
    """Its own words, and no half picture."""
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\necho 'no fonts at all' >&2\nexit 5\n")
    program.chmod(0o755)
    failed = scaler("diagram", "--format", "svg", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert failed.returncode == 3
    assert "no fonts at all" in failed.stderr


@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_picture_is_not_poured_into_a_terminal(form: str, places: dict[str, str]) -> None:
    """It would be unreadable, or worse: bytes that the terminal obeys."""
    main, terminal = os.openpty()
    try:
        failed = subprocess.run(
            [*SCALER, "diagram", "--format", form], stdout=terminal, stderr=subprocess.PIPE, text=True, env=places
        )
    finally:
        os.close(terminal)
        os.close(main)
    assert failed.returncode == 2
    assert "--output FILE" in failed.stderr


def test_the_documentations_page_is_the_same_for_everybody(
    scaler: Run, own_config: Callable[[str], Path], own_tier: Callable[[str, str], Path]
) -> None:
    """Whatever the machine, the configuration and the tiers of whoever writes it anew."""
    own_config("tier: low_end\nladder:\n  - {name: tiny, model: none.gguf}\npolicy: {dwell_s: 7}\n")
    own_tier("mid_range", "name: mid_range\npolicy: {band: 0.33}\n")
    assert scaler("diagram", "--format", "markdown").stdout == (DOCS / "diagram.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tier", "mid-range"], "expected 'mid_range'"),
        (["--format", "markdown", "--tier", "low_end"], "expected no --tier"),
        (["--config", "/none.yaml"], "/none.yaml"),
    ],
)
def test_wrong_use_is_one_message(scaler: Run, arguments: list[str], words: str) -> None:
    """With what was expected, and exit code 2."""
    failed = scaler("diagram", *arguments)
    assert failed.returncode == 2
    assert words in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_output_that_cannot_be_written_is_named(scaler: Run, tmp_path: Path) -> None:
    """The file, the cause, and what to do."""
    failed = scaler("diagram", "--output", str(tmp_path / "none" / "m.mmd"))
    assert failed.returncode == 3
    assert str(tmp_path / "none" / "m.mmd") in failed.stderr
    assert "choose another --output" in failed.stderr
