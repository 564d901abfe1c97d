"""The `ollama` command itself talks to scaler as to an Ollama: skipped where there is none."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.end_to_end.conftest import PATIENCE_S
from tests.end_to_end.test_ladder import settles_at
from tests.end_to_end.test_ollama import SENTENCE
from tests.ollama_binary import NAMED, needs_ollama

pytestmark = needs_ollama
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What makes a cursor turn on a terminal, and is written all the same where there is none."""


def test_people_list_look_talk_and_stop(serving: Callable[..., Any], tmp_path: Path) -> None:
    """With $OLLAMA_HOST alone, whoever has learnt Ollama's command has learnt scaler's."""
    with serving(levels=("small", "medium")) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")

        def ollama(*arguments: str, status: int = 0) -> str:
            assert NAMED is not None
            done = subprocess.run(
                [NAMED, *arguments],
                env=os.environ | {"OLLAMA_HOST": url, "HOME": str(tmp_path)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            told = CONTROLS.sub("", done.stdout + done.stderr)
            assert done.returncode == status, told
            return told

        assert [line.split()[0] for line in ollama("list").splitlines()[1:]] == [
            "auto:latest",
            "small:latest",
            "medium:latest",
        ]
        (held,) = ollama("ps").splitlines()[1:]
        assert held.split()[0] == "medium:latest"
        assert held.split()[-1] == "Forever"
        assert re.search(r"context length +8192", ollama("show", "small"))
        assert "The medium model speaks" in ollama("run", "auto", "Who are you?")
        measured = ollama("run", "auto", "--verbose", "Who are you?")
        assert re.search(r"eval count: +13 token", measured)
        ollama("stop", "medium")
        assert "scaler serves the ladder of its configuration" in ollama("pull", "llama3.2", status=1)
        assert "scaler serves the ladder of its configuration" in ollama("rm", "small", status=1)
        settles_at(manager, watch, "medium")
        assert SENTENCE.split(" speaks")[1] in ollama("run", "auto", "Who are you?")
