"""One child process of the embedded runtime, as its parent sees it: how it is started, and what it is told to load."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import scaler
from scaler.level_settings import EmbeddedLevel
from scaler.runtimes.bounds import Bound
from scaler.runtimes.last_words import LastWords
from scaler.runtimes.model_process import ModelProcess, check_descriptors, leave, private_socket, unstartable

PACKAGE = Path(scaler.__file__).parent
IMPORT_S = 20.0
"""So long llama.cpp may take to be found to load."""


def unloadable() -> str | None:
    """Why llama.cpp does not load here, though it is installed, and what to do; None where it does. Takes a second.

    Tried in a process of its own, as levels have it: where it does not suit the processor, that is the end of it.
    """
    command = [sys.executable, "-c", "import xllamacpp"]
    try:
        done = subprocess.run(
            command, cwd=PACKAGE.parent, stdin=subprocess.DEVNULL, capture_output=True, timeout=IMPORT_S
        )
    except subprocess.TimeoutExpired:
        return f"xllamacpp was not loaded within {IMPORT_S:g} s"
    words = LastWords()
    words.feed(done.stderr)
    return words.cause(done.returncode, None) if done.returncode else None


class EmbeddedProcess(ModelProcess):
    """A child process that loads one level, or the embedding model, and serves it."""

    @classmethod
    async def start(cls, settings: EmbeddedLevel, bound: Bound, pooling: str | None = None) -> EmbeddedProcess:
        """Spawn it and tell it what to load; raises LevelUnavailable. ``pooling`` makes it one that embeds texts.

        The child is tied to the life of the thread that this runs in, not only of the process: that is how
        PR_SET_PDEATHSIG works. Run it in a thread that lives for as long as the level should.
        """
        folder, host = None, "127.0.0.1"
        try:
            check_descriptors()
            if settings.port is None and sys.platform != "win32":
                folder, host = private_socket(settings.name, "set TMPDIR to a shorter path, or give the level a port")
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "scaler.runtimes.embedded_server",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # `-m` looks here first: it finds the scaler that runs now, and nothing that lies in a person's folder.
                cwd=PACKAGE.parent,
                # Ctrl-C is for scaler, which lets running answers end; the terminal would send it to the child, too.
                start_new_session=True,
            )
        except BaseException as error:
            await bound.lift()
            if folder is not None:
                leave(folder)
            if isinstance(error, OSError):
                raise unstartable(settings.name, error) from error
            raise
        where = f"{settings.name}: {settings.model}"
        child = cls(where, process, program="xllamacpp", bound=bound, folder=folder, port=settings.port)
        assert process.stdin is not None  # it is a pipe
        process.stdin.write(json.dumps(_order(settings, bound, host, pooling)).encode() + b"\n")
        return child

    async def listening(self, weights_bytes: int, progress: Callable[[float], None]) -> str:
        """Wait until it serves; return its address. Raises LevelUnavailable with the cause when it ends instead.

        ``progress`` is told how much of ``weights_bytes`` the process holds, 0..1.
        """
        assert self.process.stdout is not None  # it is a pipe
        line = await self.until(self.process.stdout.readline(), weights_bytes, progress)
        if not line:
            raise await self.failure()
        self.words.forget()
        return str(json.loads(line)["listening"])


def _order(settings: EmbeddedLevel, bound: Bound, host: str, pooling: str | None) -> dict[str, object]:
    return {
        "parent": os.getpid(),
        "bounds": bound.told,
        "name": settings.name,
        "model": str(settings.model.absolute()),
        "host": host,
        "port": settings.port or 0,
        "context_tokens": settings.context_tokens,
        "kv_cache": settings.kv_cache,
        "parallel": settings.parallel,
        "threads": settings.threads or max(1, (os.cpu_count() or 2) // 2),
        "gpu_layers": settings.gpu_layers,
        "gpu": settings.gpu,
        "mmap": settings.mmap,
        "check_tensors": settings.check_tensors,
        "pooling": pooling,
    }
