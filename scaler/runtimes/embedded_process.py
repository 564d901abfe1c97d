"""One child process of the embedded runtime, as its parent sees it: how it starts, what it says, how it ends.

Owns the process, the private folder of its socket and its last words. Speaks no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

import scaler
from scaler.errors import LevelUnavailable
from scaler.level_settings import EmbeddedLevel
from scaler.runtimes.last_words import LastWords

TERM_GRACE_S = 5.0
"""SIGTERM ended the server in at most 70 ms, also with a stream in flight; after this it is killed."""
LAST_WORDS_S = 1.0
"""How long to wait for the rest of what an ended process said: something may have inherited its stderr."""
PROGRESS_EVERY_S = 0.1
SOCKET_NAME_BYTES = 103
"""The longest name of a unix socket that every system takes. Source: unix(4) of BSD and macOS, 104 with the NUL."""
PACKAGE = Path(scaler.__file__).parent


class EmbeddedProcess:
    """A child process that loads one level, or the embedding model, and serves it."""

    def __init__(self, settings: EmbeddedLevel, process: asyncio.subprocess.Process, folder: str | None) -> None:
        self._settings, self._process, self._folder = settings, process, folder
        self._words = LastWords()
        self._asked_to_end = False
        self._listener = asyncio.create_task(self._listen(), name=f"stderr of {settings.name}")

    @classmethod
    async def start(cls, settings: EmbeddedLevel, pooling: str | None = None) -> EmbeddedProcess:
        """Spawn it and tell it what to load; raises LevelUnavailable. ``pooling`` makes it one that embeds texts.

        The child is tied to the life of the thread that this runs in, not only of the process: that is how
        PR_SET_PDEATHSIG works. Run it in a thread that lives for as long as the level should.
        """
        folder, host = None, "127.0.0.1"
        if settings.port is None and sys.platform != "win32":
            # A folder that only we may enter: on a loopback port, everybody on this machine could use the model.
            folder, host = _socket_folder(settings)
        try:
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
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        child = cls(settings, process, folder)
        assert process.stdin is not None  # it is a pipe
        process.stdin.write(json.dumps(_order(settings, host, pooling)).encode() + b"\n")
        return child

    @property
    def pid(self) -> int | None:
        """The process, while it runs; its number may belong to another one afterwards."""
        return self._process.pid if self._process.returncode is None else None

    async def listening(self, weights_bytes: int, progress: Callable[[float], None]) -> str:
        """Wait until it serves; return its address. Raises LevelUnavailable with the cause when it ends instead.

        ``progress`` is told how much of ``weights_bytes`` the process holds, 0..1.
        """
        assert self._process.stdout is not None  # it is a pipe
        answer = asyncio.ensure_future(self._process.stdout.readline())
        told = 0.0
        try:
            while not (await asyncio.wait([answer], timeout=PROGRESS_EVERY_S))[0]:
                with contextlib.suppress(psutil.Error):
                    held = psutil.Process(self._process.pid).memory_info().rss
                    # Not 1: that is for the caller to tell, when it can answer.
                    told = max(told, min(0.99, held / max(1, weights_bytes)))
                progress(told)
            line = answer.result()
        finally:
            answer.cancel()
        if not line:
            raise LevelUnavailable(f"{self._settings.name}: {self._settings.model}: {await self._cause()}")
        self._words.forget()
        return str(json.loads(line)["listening"])

    async def died(self) -> str:
        """Wait until it ends without having been asked to; return why. Never returns for one that was asked."""
        await self._process.wait()
        if self._asked_to_end:
            await asyncio.get_running_loop().create_future()
        return await self._cause()

    async def end(self) -> None:
        """SIGTERM, then SIGKILL; returns when the process is gone and its folder removed. Safe to call twice."""
        self._asked_to_end = True
        try:
            if self._process.returncode is None:
                # It may end between the look and the signal, which is what is wanted.
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                try:
                    async with asyncio.timeout(TERM_GRACE_S):
                        await self._process.wait()
                except TimeoutError:
                    with contextlib.suppress(ProcessLookupError):
                        self._process.kill()
                    await self._process.wait()
            await asyncio.wait([self._listener], timeout=LAST_WORDS_S)
        finally:
            self._listener.cancel()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    async def _cause(self) -> str:
        await self._process.wait()
        await asyncio.wait([self._listener], timeout=LAST_WORDS_S)
        return self._words.cause(self._process.returncode, self._settings.port)

    async def _listen(self) -> None:
        assert self._process.stderr is not None  # it is a pipe
        # Pieces instead of lines: readline gives up on a long line, and nobody would empty the pipe from then on.
        while piece := await self._process.stderr.read(65536):
            self._words.feed(piece)


def _socket_folder(settings: EmbeddedLevel) -> tuple[str, str]:
    folder = tempfile.mkdtemp(prefix="scaler-")
    host = f"{folder}/model.sock"
    if (length := len(os.fsencode(host))) > SOCKET_NAME_BYTES:
        shutil.rmtree(folder)
        raise LevelUnavailable(
            f"{settings.name}: {host}: the socket's name has {length} bytes, at most {SOCKET_NAME_BYTES} are possible; "
            "set TMPDIR to a shorter path, or give the level a port"
        )
    return folder, host


def _order(settings: EmbeddedLevel, host: str, pooling: str | None) -> dict[str, object]:
    return {
        "parent": os.getpid(),
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
