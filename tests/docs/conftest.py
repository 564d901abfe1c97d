"""A newcomer: the demo models are made, nothing is configured. One home for all blocks of a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def newcomer(tmp_path_factory: pytest.TempPathFactory, demo_models: dict[str, Path]) -> dict[str, str]:
    """The environment; scaler itself is in its PATH."""
    home = tmp_path_factory.mktemp("newcomer")
    places = {f"XDG_{name}_HOME": str(home / name.lower()) for name in ("CONFIG", "STATE", "CACHE")}
    made = home / "cache" / "scaler" / "demo-models"
    made.mkdir(parents=True)
    for file in demo_models.values():
        (made / file.name).symlink_to(file)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCALER_")}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return {**kept, **places, "HOME": str(home), "PATH": path}
