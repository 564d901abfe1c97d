"""`scaler demo-models`: the files, once; progress for a terminal only."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.cli.conftest import SCALER, Run


def test_it_names_the_files_and_is_quiet_otherwise(scaler: Run, demo_models: dict[str, Path]) -> None:
    """No progress in a log, and nothing is made that is there already."""
    folder = demo_models["small"].parent
    before = {path: path.stat().st_mtime_ns for path in demo_models.values()}
    done = scaler("demo-models", "--folder", str(folder))
    assert done.returncode == 0
    assert done.stderr == ""
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["small", "medium", "large"]
    assert {path: path.stat().st_mtime_ns for path in demo_models.values()} == before
    told = json.loads(scaler("demo-models", "--folder", str(folder), "--json").stdout)
    assert {Path(file["path"]) for file in told} == set(demo_models.values())
    for file in told:
        assert file["bytes"] == Path(file["path"]).stat().st_size
        assert file["name"] in file["sentence"]


def test_a_terminal_sees_the_progress_in_one_line(places: dict[str, str], demo_models: dict[str, Path]) -> None:
    """Written over and over, and gone at the end."""
    main, terminal = os.openpty()
    try:
        subprocess.run(
            [*SCALER, "demo-models", "--folder", str(demo_models["small"].parent)],
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env=places,
            check=True,
        )
        os.close(terminal)
        written = b""
        # What was written comes in pieces, and not at once.
        with suppress(OSError):  # what Linux has for the end
            while piece := os.read(main, 4096):
                written += piece
    finally:
        os.close(main)
    seen = written.decode()
    assert "making large.gguf: 100%" in seen
    assert "\n" not in seen
    assert seen.endswith("\r\x1b[K")


def test_run_makes_those_that_its_ladder_has_and_says_so(
    places: dict[str, str], own_config: Callable[[str], Path], demo_models: dict[str, Path]
) -> None:
    """A newcomer needs no other command first; whoever has a ladder of their own models gets none beside them."""
    made = Path(places["XDG_CACHE_HOME"]) / "scaler" / "demo-models"
    own_config(json.dumps({"ladder": [{"name": "own", "model": str(demo_models["small"])}]}))
    assert "making" not in said_by_run(places)
    assert not made.exists()
    own_config(json.dumps({"ladder": [{"name": "one", "model": "demo:small"}]}))
    first, *_ = said_by_run(places).splitlines()
    assert first == f"making the demo models (small) in {made}, this once"
    assert {file.name for file in made.iterdir()} == {"small.gguf", "small.version"}
    assert "making" not in said_by_run(places)


def said_by_run(environment: dict[str, str]) -> str:
    """What `scaler run` says until it listens."""
    command = [*SCALER, "run", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        said = []
        for line in run.stdout:
            said.append(line)
            if line.startswith("endpoint"):
                break
        run.send_signal(signal.SIGTERM)
        rest, _ = run.communicate(timeout=60)
    assert run.returncode == 0, "".join(said) + rest
    return "".join(said)


def test_without_gguf_it_names_the_extra(scaler: Run, tmp_path: Path) -> None:
    """What to install, and exit code 3."""
    (tmp_path / "gguf.py").write_text("raise ModuleNotFoundError(\"No module named 'gguf'\", name='gguf')\n")
    failed = scaler("demo-models", "--folder", str(tmp_path / "models"), env={"PYTHONPATH": str(tmp_path)})
    assert failed.returncode == 3
    assert "gguf is not installed" in failed.stderr
    assert re.search(r"pip install .*\[llama\]'", failed.stderr)


def test_a_folder_that_cannot_be_made_is_named(scaler: Run, tmp_path: Path) -> None:
    """The folder, the cause, and what to do."""
    (tmp_path / "file").write_text("")
    failed = scaler("demo-models", "--folder", str(tmp_path / "file" / "models"))
    assert failed.returncode == 3
    assert str(tmp_path / "file" / "models") in failed.stderr
    assert "--folder" in failed.stderr
    assert "XDG_CACHE_HOME" in failed.stderr
