"""What docs/conversations.md shows is what there is."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from scaler.conversations.sqlite import WAIT_S, SqliteConversations
from scaler.settings import load_settings

TEXT = (Path(__file__).parents[2] / "docs" / "conversations.md").read_text("utf-8")


def block(language: str) -> str:
    """The code block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_configuration_can_be_used_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person will paste it."""
    monkeypatch.setenv("HOME", "/home/ada")
    path = tmp_path / "scaler.yaml"
    path.write_text(block("yaml"), "utf-8")
    conversations = load_settings(path).conversations
    assert conversations.path == Path("/home/ada/.local/state/scaler/conversations.sqlite")
    assert conversations.keep == 1000


def test_the_program_runs_as_it_is_printed(tmp_path: Path, demo_models: dict[str, Path]) -> None:
    """With the demo ladder: it says who answered."""
    made = tmp_path / "scaler" / "demo-models"
    made.mkdir(parents=True)
    for file in demo_models.values():
        (made / file.name).symlink_to(file)
    places = {f"XDG_{name}_HOME": str(tmp_path) for name in ("CONFIG", "STATE", "CACHE")}
    env = {name: value for name, value in os.environ.items() if name != "SCALER_CONFIG"} | places
    program = [sys.executable, "-c", block("python")]
    out = subprocess.run(program, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True).stdout
    assert "user () My name is Ada." in out
    assert "assistant ('small',) " in out


def test_the_tables_and_the_figures_are_those_that_it_names(path: Path) -> None:
    """Who looks into the file with another program goes by them."""
    assert f"for over {WAIT_S:g} s" in TEXT
    SqliteConversations(path, 10).close()
    with closing(sqlite3.connect(path)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == set(re.findall(r"tables `(\w+)` and `(\w+)`", TEXT)[0])
