"""A child process that holds a model, as its parent sees it: how full it is, what it says, how it ends.

Owns the processes, their last words and the private folders of their sockets. Knows no command line, speaks no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import psutil

from scaler.errors import LevelUnavailable
from scaler.runtimes.last_words import LastWords

T = TypeVar("T")
P = TypeVar("P", bound="ModelProcess")

TERM_GRACE_S = 5.0
"""SIGTERM ended the server in at most 70 ms, also with a stream in flight; after this it is killed."""
LAST_WORDS_S = 1.0
"""How long to wait for the rest of what an ended process said: something may have inherited its stderr."""
PROGRESS_EVERY_S = 0.1
SOCKET_NAME_BYTES = 103
"""The longest name of a unix socket that every system takes. Source: unix(4) of BSD and macOS, 104 with the NUL."""


class ModelProcess:
    """A child process that loads one model and serves it."""

    def __init__(
        self,
        where: str,
        process: asyncio.subprocess.Process,
        *,
        program: str,
        folder: str | None = None,
        port: int | None = None,
    ) -> None:
        """``where`` begins every message; ``program`` is what a person would update.

        ``folder`` is that of its socket, and goes with it; ``port`` the one it was told to listen on.
        """
        self.where, self.process, self.words = where, process, LastWords(program)
        self._folder, self._port = folder, port
        self._asked_to_end = False
        self._listener = asyncio.create_task(self._listen(), name=f"stderr of {where}")

    @property
    def pid(self) -> int | None:
        """The process, while it runs; its number may belong to another one afterwards."""
        return self.process.pid if self.process.returncode is None else None

    async def until(self, ready: Awaitable[T], weights_bytes: int, progress: Callable[[float], None]) -> T:
        """Wait for ``ready``. Raises LevelUnavailable with the cause when the process ends instead.

        ``progress`` is told how much of ``weights_bytes`` the process holds, 0..1.
        """
        answer, ended = asyncio.ensure_future(ready), asyncio.ensure_future(self.process.wait())
        told = 0.0
        try:
            while not (
                await asyncio.wait([answer, ended], timeout=PROGRESS_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            )[0]:
                told = max(told, held(self.process.pid, weights_bytes))
                progress(told)
            if not answer.done():
                raise await self.failure()
            return answer.result()
        finally:
            answer.cancel()
            ended.cancel()

    async def died(self) -> str:
        """Wait until it ends without having been asked to; return why. Never returns for one that was asked."""
        await self.process.wait()
        if self._asked_to_end:
            await asyncio.get_running_loop().create_future()
        return await self._cause()

    async def failure(self) -> LevelUnavailable:
        """Wait until it ends; return what to raise when it should have served."""
        return LevelUnavailable(f"{self.where}: {await self._cause()}")

    async def end(self) -> None:
        """SIGTERM, then SIGKILL; returns when the process is gone and its folder removed. Safe to call twice."""
        self._asked_to_end = True
        try:
            if self.process.returncode is None:
                # It may end between the look and the signal, which is what is wanted.
                with contextlib.suppress(ProcessLookupError):
                    self.process.terminate()
                try:
                    async with asyncio.timeout(TERM_GRACE_S):
                        await self.process.wait()
                except TimeoutError:
                    with contextlib.suppress(ProcessLookupError):
                        self.process.kill()
                    await self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()
            await asyncio.wait([self._listener], timeout=LAST_WORDS_S)
        finally:
            self._listener.cancel()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    async def _cause(self) -> str:
        await self.process.wait()
        await asyncio.wait([self._listener], timeout=LAST_WORDS_S)
        return self.words.cause(self.process.returncode, self._port)

    async def _listen(self) -> None:
        assert self.process.stderr is not None  # it is a pipe
        # Pieces instead of lines: readline gives up on a long line, and nobody would empty the pipe from then on.
        while piece := await self.process.stderr.read(65536):
            self.words.feed(piece)


class Children(Generic[P]):
    """The child processes of one runtime."""

    def __init__(self) -> None:
        self._running: set[P] = set()

    def pids(self) -> tuple[int, ...]:
        """Those that are loaded or loading; from any thread."""
        return tuple(pid for child in tuple(self._running) if (pid := child.pid) is not None)

    async def bring_up(self, child: P, serving: Awaitable[T], timeout_s: float) -> T:
        """What ``serving`` returns once the child serves. Raises LevelUnavailable; then, or cancelled, it is ended."""
        self._running.add(child)
        try:
            async with asyncio.timeout(timeout_s):
                return await serving
        except TimeoutError:
            await self.end(child)
            raise LevelUnavailable(
                f"{child.where}: not loaded within {timeout_s:g} s; raise load_timeout_s or choose a smaller model"
            ) from None
        except BaseException:
            await self.end(child)
            raise

    async def end(self, child: P) -> None:
        """End it; returns when it is gone. Safe to call twice."""

        async def end() -> None:
            try:
                await child.end()
            finally:
                self._running.discard(child)

        # Whoever gives up waiting does not stop what was begun.
        await asyncio.shield(end())


def held(pid: int, weights_bytes: int) -> float:
    """How much of ``weights_bytes`` a process that loads them holds, 0..1; 0 for one that is gone.

    Never 1: that is for whoever loads to tell, when the model can answer.
    """
    try:
        return min(0.99, float(psutil.Process(pid).memory_info().rss) / max(1, weights_bytes))
    except psutil.Error:
        return 0.0


def private_socket(name: str, advice: str) -> tuple[str, str]:
    """A folder that only we may enter, and the name of a socket in it.

    On a loopback port, everybody on this machine could use the model. Raises LevelUnavailable with ``advice`` for the
    level called ``name`` where the folder lies too deep.
    """
    folder = tempfile.mkdtemp(prefix="scaler-")
    socket = f"{folder}/model.sock"
    if (length := len(os.fsencode(socket))) > SOCKET_NAME_BYTES:
        shutil.rmtree(folder)
        raise LevelUnavailable(
            f"{name}: {socket}: the socket's name has {length} bytes, at most {SOCKET_NAME_BYTES} are possible; "
            f"{advice}"
        )
    return folder, socket
