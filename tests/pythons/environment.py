"""An empty environment of one Python, with a home of its own: what a newcomer has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DISTRIBUTION = "capability-scaler"
WINDOWS = sys.platform == "win32"


class Failed(Exception):
    """A command did not do what it is for: says which, and its last words."""


class Environment:
    """A virtual environment in ``folder``, made by ``python``, and an empty home beside it."""

    def __init__(self, python: str, folder: Path) -> None:
        self.folder, self.home = folder / "environment", folder / "home"
        self.home.mkdir(parents=True)
        said(python, "-m", "venv", str(self.folder))
        self.programs = self.folder / ("Scripts" if WINDOWS else "bin")

    def pip(self, *arguments: str) -> str:
        """Have its own pip do that, with the index that is set up here. Raises Failed."""
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off", "PIP_NO_COLOR": "1"}
        return said(str(self.programs / "python"), "-m", "pip", *arguments, env={**os.environ, **quiet})

    def run(self, program: str, *arguments: str, code: int = 0) -> str:
        """What one of its programs says, called by its name as a person does. Raises Failed for another exit code."""
        return said(str(self.programs / program), *arguments, env=self.places, code=code)

    @property
    def places(self) -> dict[str, str]:
        """What is in the environment variables of somebody who has just logged in."""
        kept = {name: os.environ[name] for name in ("SYSTEMROOT", "TERM", "LANG") if name in os.environ}
        home = {"HOME": str(self.home), "USERPROFILE": str(self.home)}
        return {**kept, **home, "PATH": os.pathsep.join([str(self.programs), os.defpath])}

    @property
    def mib(self) -> int:
        """What it takes on the disk, in MiB."""
        sizes = (path.lstat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())
        return round(sum(sizes) / 1024**2)


def said(*command: str, env: dict[str, str] | None = None, code: int = 0, folder: Path | None = None) -> str:
    """What a command says on both its outputs. Raises Failed when it ends with another exit code or a traceback."""
    done = subprocess.run(
        command,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=900,
        check=False,
    )
    if done.returncode != code or "Traceback" in done.stdout:
        errors = [line for line in done.stdout.splitlines() if "rror" in line] or done.stdout.splitlines() or [""]
        raise Failed(f"{' '.join([Path(command[0]).name, *command[1:]])}: exit code {done.returncode}: {errors[-1]}")
    return done.stdout
