"""The demo models' files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from scaler.demo import models
from scaler.demo.models import make_demo_models
from scaler.errors import ScalerError


def test_the_three_sizes_are_as_promised(demo_models: dict[str, Path]) -> None:
    """About 20, 150 and 600 MB."""
    sizes = {name: path.stat().st_size / 1e6 for name, path in demo_models.items()}
    assert 15 < sizes["small"] < 25
    assert 120 < sizes["medium"] < 180
    assert 550 < sizes["large"] < 700


def test_what_is_there_is_not_written_again(demo_models: dict[str, Path]) -> None:
    """The second start is quick."""
    before = {name: path.stat().st_mtime_ns for name, path in demo_models.items()}
    make_demo_models(demo_models["small"].parent, lambda *_: None)
    assert before == {name: path.stat().st_mtime_ns for name, path in demo_models.items()}


def test_a_file_that_was_cut_off_is_written_again(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """A half-copied cache heals itself."""
    for name, path in demo_models.items():
        (tmp_path / path.name).hardlink_to(path)
        shutil.copy(path.with_suffix(".version"), tmp_path / f"{name}.version")
    whole = demo_models["small"].read_bytes()
    (tmp_path / "small.gguf").unlink()
    (tmp_path / "small.gguf").write_bytes(whole[:1000])
    make_demo_models(tmp_path, lambda *_: None)
    assert (tmp_path / "small.gguf").read_bytes() == whole


def test_an_interrupted_write_leaves_nothing_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a file."""

    def interrupt(path: Path, shape: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_write_gguf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_demo_models(tmp_path, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """How much the three need together, and where: there is room for the small one alone."""
    usage = type(shutil.disk_usage(tmp_path))(10**9, 9 * 10**8, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ScalerError, match=r"100 MB are free, small, medium, large need 8\d\d MB"):
        make_demo_models(tmp_path, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_progress_names_each_model(demo_models: dict[str, Path]) -> None:
    """For a progress line."""
    told: list[tuple[str, float]] = []
    make_demo_models(demo_models["small"].parent, lambda name, ratio: told.append((name, ratio)))
    assert told == [(name, ratio) for name in ("small", "medium", "large") for ratio in (0.0, 1.0)]
