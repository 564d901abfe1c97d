"""`make help`: every target for people, with what it is for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_help_lists_every_target_with_what_it_is_for(tmp_path: Path) -> None:
    """Aligned, and from wherever it is called; nothing is installed for it."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not list(tmp_path.iterdir())
    told = [re.fullmatch(r"make ([a-z-]+) +(?=\S)(.*)", line) for line in done.stdout.splitlines()]
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert phony is not None
    assert {one and one[1] for one in told} == set(phony[1].split())
    assert len({one.start(2) for one in told if one}) == 1
