"""A child process that holds a model, as its parent sees it: how full it is, what it says, how it ends.

Owns the processes, their last words and the private folders of their sockets. Knows no command line, speaks no HTTP.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

import psutil

from scaler.errors import LevelUnavailable
from scaler.runtimes.bounds import Bound
from scaler.runtimes.last_words import LastWords

T = TypeVar("T")
P = TypeVar("P", bound="ModelProcess")

TERM_GRACE_S = 5.0
"""SIGTERM ended the server in at most 70 ms, also with a stream in flight; after this it is killed."""
LAST_WORDS_S = 1.0
"""How long to wait for the rest of what an ended process said: something may have inherited its stderr."""
PROGRESS_EVERY_S = 0.1
DESCRIPTORS = 16
"""How many must be free for a process to be started: three pairs of sockets, the lock, what the loop needs besides."""
PRIVATE, SOCKET = "scaler-model-", "model.sock"
"""How the folders of private sockets begin, and the socket in each."""
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
        bound: Bound,
        folder: str | None = None,
        port: int | None = None,
    ) -> None:
        """``where`` begins every message; ``program`` is what a person would update.

        ``bound`` was told to the process; its group goes with it, as does ``folder``, that of its socket. ``port`` is
        the one that it was told to listen on.
        """
        self.where, self.process, self.words = where, process, LastWords(program)
        self._bound, self._folder, self._port = bound, folder, port
        self._asked_to_end = False
        self._killed_because: str | None = None
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

    def end_at_once(self, because: str) -> None:
        """Kill it, as one that died of itself; ``because`` is what `died` then returns."""
        if self.process.returncode is None:
            self._killed_because = because
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def failure(self) -> LevelUnavailable:
        """Wait until it ends; return what to raise when it should have served."""
        return LevelUnavailable(f"{self.where}: {await self._cause()}")

    async def end(self) -> None:
        """SIGTERM, then SIGKILL; returns when the process is gone with its folder and group. Safe to call twice."""
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
            await self._bound.lift()
        finally:
            self._listener.cancel()
            if self._folder is not None:
                leave(self._folder)

    async def _cause(self) -> str:
        await self.process.wait()
        if self._killed_because is not None:
            return self._killed_because
        if self._bound.cgroup is not None and (why := self._bound.cgroup.why_killed()) is not None:
            return why
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


def check_descriptors() -> None:
    """Raise OSError where too few descriptors are left to start a process.

    uvloop, where it runs out of them half way, says no cause and never closes those that it has opened.
    """
    opened: list[int] = []
    try:
        while len(opened) < DESCRIPTORS:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for one in opened:
            os.close(one)


def unstartable(name: str, error: OSError) -> LevelUnavailable:
    """What to raise when the system starts no process for the level called ``name``: for want of descriptors, say."""
    return LevelUnavailable(
        f"{name}: its process cannot be started ({error.strerror or error}); there may be too many open files or "
        "processes (see `ulimit -n -u`), or no space for temporary files"
    )


def held(pid: int, weights_bytes: int) -> float:
    """How much of ``weights_bytes`` a process that loads them holds, 0..1; 0 for one that is gone.

    Never 1: that is for whoever loads to tell, when the model can answer.
    """
    try:
        return min(0.99, float(psutil.Process(pid).memory_info().rss) / max(1, weights_bytes))
    # The latter for want of descriptors, which is no reason for a load to fail.
    except (psutil.Error, OSError):
        return 0.0


def private_socket(name: str, advice: str) -> tuple[str, str]:
    """A folder that only we may enter, and the name of a socket in it.

    On a loopback port, everybody on this machine could use the model. Raises LevelUnavailable with ``advice`` for the
    level called ``name`` where the folder lies too deep.
    """
    while (lock := _locked_at_once(folder := tempfile.mkdtemp(prefix=PRIVATE))) is None:
        # A scaler that starts just now took it for one that was left behind.
        pass
    _held[folder] = lock
    socket = f"{folder}/{SOCKET}"
    if (length := len(os.fsencode(socket))) > SOCKET_NAME_BYTES:
        leave(folder)
        raise LevelUnavailable(
            f"{name}: {socket}: the socket's name has {length} bytes, at most {SOCKET_NAME_BYTES} are possible; "
            f"{advice}"
        )
    return folder, socket


_held: dict[str, int] = {}
"""Our private folders, each with the lock that tells others that somebody lives here."""


_PROGRAM = os.getpid()


@atexit.register
def _leave_all() -> None:
    """A program that ends without a `shutdown` takes its models with it, and should leave no folder either."""
    # In a fork of it, they are not ours.
    if os.getpid() == _PROGRAM:
        for folder in tuple(_held):
            leave(folder)


def leave(folder: str) -> None:
    """Remove a private folder of ours. Safe to call twice."""
    _remove(Path(folder))
    if (lock := _held.pop(folder, None)) is not None:
        os.close(lock)


def remove_abandoned() -> None:
    """Remove the private folders that a scaler left behind which was killed.

    The kernel let go of its lock; of those whose lock is held, or that are somebody else's, none is touched.
    """
    if sys.platform == "win32":
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PRIVATE}*"):
        # Others may remove it meanwhile, or have made something else of that name.
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.geteuid():
                lock = _lock(str(folder))
                try:
                    _remove(folder)
                finally:
                    os.close(lock)


def _locked_at_once(folder: str) -> int | None:
    """Our lock on a folder that was just made; None where somebody has removed it meanwhile, or is about to."""
    try:
        lock = _lock(folder)
    except (BlockingIOError, FileNotFoundError):
        return None
    except OSError:
        os.rmdir(folder)
        raise
    if os.path.isdir(folder):
        return lock
    os.close(lock)
    return None


def _lock(folder: str) -> int:
    """A folder that stays open, and locked for as long as it is. Raises BlockingIOError while another has it."""
    import fcntl  # here, because Windows has no such thing

    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _remove(folder: Path) -> None:
    # Only what we make: should there be anything else in it, it stays.
    with contextlib.suppress(OSError):
        (folder / SOCKET).unlink(missing_ok=True)
        folder.rmdir()
