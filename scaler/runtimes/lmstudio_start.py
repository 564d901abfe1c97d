"""Starts LM Studio's server with its command ``lms``, where a level asks for that.

Source: https://lmstudio.ai/docs/cli/serve/server-start
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from pathlib import Path

from scaler.errors import LevelUnavailable
from scaler.runtimes.model_server import SHOWN
from scaler.runtimes.steering import Steering

START_S = 60.0
"""Within this the command is done; it may have to start LM Studio itself."""
BESIDE = Path(".lmstudio", "bin")
"""Where in the home directory the command is, if it was not put on the path."""


async def start_server(steering: Steering) -> None:
    """Return when ``lms server start`` is done. Raises LevelUnavailable."""
    lms = shutil.which("lms") or shutil.which("lms", path=Path.home() / BESIDE)
    if lms is None:
        raise LevelUnavailable(
            f"{steering.where}: nothing answers there, and its command lms is not there to start it; install LM Studio "
            "from https://lmstudio.ai and open it once"
        )
    command = [lms, "server", "start", "--port", str(steering.settings.url.port)]
    failure = await asyncio.to_thread(_failure_of, command)
    if failure is not None:
        raise LevelUnavailable(f"{steering.where}: `{' '.join(command)}` {failure}")


def _failure_of(command: list[str]) -> str | None:
    # A file, no pipe: what the command starts keeps it open, and nobody would see its end.
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, timeout=START_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"was not done after {START_S:g} s; start LM Studio by hand"
        except OSError as error:
            return f"cannot be run: {error.strerror or error}"
        if done.returncode == 0:
            return None
        said.seek(0)
        told = " ".join(said.read().decode(errors="replace").split())
        return f"failed ({done.returncode}): {told[-SHOWN:] or 'nothing more'}"
