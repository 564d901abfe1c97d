"""The real command, run as a person runs it, with places of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

SCALER = (sys.executable, "-m", "scaler")
PATIENT = (
    sys.executable,
    "-c",
    "import sys; from scaler.discovery import asking; asking.NEAR_S = 30.0; from scaler.cli import main; "
    "sys.exit(main())",
)
"""The same, for commands that ask this machine's servers what they are: a busy machine is no reason to take a server
for a bad one.
"""
LIMIT_S = 120.0
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing of whoever runs the tests is read or written."""
    folders = {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("CONFIG", "STATE", "CACHE")}
    kept = {name: value for name, value in os.environ.items() if name not in ("SCALER_CONFIG", "PYTHONUNBUFFERED")}
    return {**kept, **folders, "TZ": "UTC"}


@pytest.fixture
def scaler(places: dict[str, str]) -> Run:
    """Runs ``scaler`` with these arguments; what it says is text."""

    def run(*arguments: str, env: Mapping[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*(PATIENT if arguments[:1] in (("init",), ("doctor",)) else SCALER), *arguments],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            env={**places, **(env or {})},
            timeout=LIMIT_S,
        )

    return run


@pytest.fixture
def own_config(places: dict[str, str]) -> Callable[[str], Path]:
    """Writes the person's own scaler.yaml."""

    def write(text: str) -> Path:
        path = Path(places["XDG_CONFIG_HOME"]) / "scaler" / "scaler.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def own_tier(places: dict[str, str]) -> Callable[[str, str], Path]:
    """Writes a tier file of the person's own."""

    def write(name: str, text: str) -> Path:
        path = Path(places["XDG_CONFIG_HOME"]) / "scaler" / "tiers" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write
