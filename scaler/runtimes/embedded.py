"""The embedded runtime: llama.cpp in a child process a level, spoken to over its own OpenAI-compatible HTTP.

Owns the processes, their sockets and their last words. Unloading is ending a process, so the memory really
comes back, and a crash in native code never reaches the host. Knows nothing of thresholds or ladders.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler.errors import LevelUnavailable, MissingExtra, RequestRejected
from scaler.levels import GIB, RAM, gpu_resource
from scaler.runtimes.gguf_size import serving_bytes
from scaler.settings import LevelSettings

if TYPE_CHECKING:
    import aiohttp

LAST_LINES = 40
"""How much of a child's stderr is kept for the error message."""
TERM_GRACE_S = 5.0
"""SIGTERM ended the server in at most 70 ms, also with a stream in flight; after this it is killed."""
PROGRESS_EVERY_S = 0.1
EVENT_LIMIT_BYTES = 16 * 1024**2
"""The longest server-sent event that is read: a tool call with a long argument is one event."""


class EmbeddedRuntime:
    """Loads GGUF files with xllamacpp."""

    def __init__(self) -> None:
        self._children: set[_Child] = set()

    def footprint(self, settings: LevelSettings) -> Mapping[str, int]:
        """As declared, or estimated from the file; raises LevelUnavailable, MissingExtra."""
        if settings.ram_gib is not None:
            ram = int(settings.ram_gib * GIB)
        else:
            ram = serving_bytes(settings.name, settings.model, settings.context_tokens, settings.parallel)
        vram = int(settings.vram_gib * GIB)
        return {RAM: ram, gpu_resource(settings.gpu): vram} if vram else {RAM: ram}

    def pids(self) -> Collection[int]:
        """The children that are loaded or loading."""
        return tuple(child.process.pid for child in tuple(self._children))

    async def load(self, settings: LevelSettings, progress: Callable[[float], None]) -> EmbeddedModel:
        """Start a child, wait until it serves. Raises LevelUnavailable, MissingExtra."""
        for module in ("xllamacpp", "aiohttp"):
            if find_spec(module) is None:
                raise MissingExtra(
                    f"{module} is not installed; install it with: pip install 'capability-scaler[llama]'"
                )
        if not settings.model.is_file():
            raise LevelUnavailable(f"{settings.name}: {settings.model}: no such file; correct the level's model")
        expected_bytes = self.footprint(settings)[RAM]
        progress(0.0)
        child = await _Child.start(settings)
        self._children.add(child)
        try:
            async with asyncio.timeout(settings.load_timeout_s):
                address = await child.listening(expected_bytes, progress)
        except TimeoutError:
            await self._end(child)
            raise LevelUnavailable(
                f"{settings.name}: {settings.model}: not loaded within {settings.load_timeout_s:g} s; "
                "raise load_timeout_s or choose a smaller model"
            ) from None
        except BaseException:
            await self._end(child)
            raise
        progress(1.0)
        return EmbeddedModel(settings, child, address, self._end)

    async def _end(self, child: _Child) -> None:
        await asyncio.shield(child.end())
        self._children.discard(child)


class EmbeddedModel:
    """A level that is loaded in a child process."""

    def __init__(self, settings: LevelSettings, child: _Child, address: str, end: Callable[[_Child], Any]) -> None:
        import aiohttp

        self._settings, self._child, self._end = settings, child, end
        # One connection a request: the server closes those it kept, and a request sent meanwhile would be lost.
        if address.startswith("unix://"):
            socket = address.removeprefix("unix://")
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(socket, limit=0, force_close=True)
            self._base = "http://localhost"
        else:
            connector, self._base = aiohttp.TCPConnector(limit=0, force_close=True), address
        # No limit on the whole of an answer: how long one may take is for its reader to say.
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            read_bufsize=EVENT_LIMIT_BYTES,
        )

    @property
    def name(self) -> str:
        """The level's name."""
        return self._settings.name

    async def chat(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Stream the answer's chunks; raises LevelUnavailable, RequestRejected."""
        import aiohttp

        body = {**request, "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with self._session.post(f"{self._base}/v1/chat/completions", json=body) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                async for line in response.content:
                    if not line.startswith(b"data: "):
                        continue
                    data = line[len(b"data: ") :].strip()
                    if data == b"[DONE]":
                        return
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise LevelUnavailable(f"{self.name}: {chunk['error'].get('message', chunk['error'])}")
                    yield chunk
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise LevelUnavailable(f"{self.name}: the model ended in the middle of the answer ({error})") from error
        raise LevelUnavailable(f"{self.name}: the model ended in the middle of the answer")

    async def _refusal(self, response: aiohttp.ClientResponse) -> RequestRejected | LevelUnavailable:
        try:
            body = await response.json(content_type=None)
            message = str(body["error"]["message"])
        except (ValueError, KeyError, TypeError):
            body, message = None, f"HTTP {response.status}"
        if 400 <= response.status < 500:
            return RequestRejected(message, response.status, body)
        return LevelUnavailable(f"{self.name}: the model refused: {message}")

    async def count_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of the messages as the model's own template and vocabulary have them."""
        prompt = (await self._post("/apply-template", {"messages": list(messages)}))["prompt"]
        tokens = await self._post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
        return len(tokens["tokens"])

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        import aiohttp

        try:
            async with self._session.post(f"{self._base}{path}", json=body) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                return await response.json()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise LevelUnavailable(f"{self.name}: the model does not answer ({error})") from error

    async def health(self) -> bool:
        """Whether the server says that it can take a request."""
        import aiohttp

        try:
            async with self._session.get(f"{self._base}/health") as response:
                return response.status == 200
        except (aiohttp.ClientError, ConnectionError):
            return False

    async def died(self) -> str:
        """Wait until the child ends; return why, in its own last words."""
        await self._child.process.wait()
        return f"{self.name}: {self._settings.model}: {self._child.cause()}"

    async def unload(self) -> None:
        """End the child; its memory is back when this returns."""
        await self._session.close()
        await self._end(self._child)


class _Child:
    """One child process with its socket folder and its last words."""

    def __init__(self, settings: LevelSettings, process: asyncio.subprocess.Process, folder: str | None) -> None:
        self.settings, self.process, self._folder = settings, process, folder
        self._words: deque[str] = deque(maxlen=LAST_LINES)
        self._listener = asyncio.create_task(self._listen(), name=f"stderr of {settings.name}")

    @classmethod
    async def start(cls, settings: LevelSettings) -> _Child:
        """Spawn it and tell it what to load."""
        folder = None
        host, port = "127.0.0.1", settings.port or 0
        if settings.port is None and sys.platform != "win32":
            # A folder that only we may enter: on a loopback port, everybody on this machine could use the model.
            folder = tempfile.mkdtemp(prefix="scaler-")
            host = f"{folder}/model.sock"
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "scaler.runtimes.embedded_server",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        child = cls(settings, process, folder)
        wanted = {
            "parent": os.getpid(),
            "name": settings.name,
            "model": str(settings.model),
            "host": host,
            "port": port,
            "context_tokens": settings.context_tokens,
            "parallel": settings.parallel,
            "threads": settings.threads or max(1, (os.cpu_count() or 2) // 2),
            "gpu_layers": settings.gpu_layers,
            "gpu": settings.gpu,
            "mmap": settings.mmap,
            "check_tensors": settings.check_tensors,
        }
        assert process.stdin is not None  # it is a pipe
        process.stdin.write(json.dumps(wanted).encode() + b"\n")
        return child

    async def _listen(self) -> None:
        assert self.process.stderr is not None  # it is a pipe
        while line := await self.process.stderr.readline():
            self._words.append(line.decode(errors="replace").rstrip())

    async def listening(self, expected_bytes: int, progress: Callable[[float], None]) -> str:
        """Wait for the address; raises LevelUnavailable with the cause when the child ends instead."""
        assert self.process.stdout is not None  # it is a pipe
        answer = asyncio.ensure_future(self.process.stdout.readline())
        try:
            while not (await asyncio.wait([answer], timeout=PROGRESS_EVERY_S))[0]:
                progress(min(0.99, _resident_bytes(self.process.pid) / expected_bytes))
            line = answer.result()
        finally:
            answer.cancel()
        if not line:
            await self.process.wait()
            await asyncio.wait([self._listener], timeout=1.0)
            raise LevelUnavailable(f"{self.settings.name}: {self.settings.model}: {self.cause()}")
        return str(json.loads(line)["listening"])

    def cause(self) -> str:
        """Why it ended, in words that help."""
        for mark, advice in ADVICE:
            for words in reversed(self._words):
                if mark in words:
                    return advice.format(words=words.split(": ", 1)[-1].strip(), port=self.settings.port)
        code = self.process.returncode
        if code is not None and code < 0:
            what = "it was killed, most likely for want of memory" if code == -9 else f"it ended by signal {-code}"
            return f"{what}; nothing of its memory is held any more"
        errors = [words for words in self._words if "error" in words.lower() or "fail" in words.lower()]
        last = (errors or list(self._words) or ["it said nothing"])[-1]
        return f"it ended with status {code}: {last}"

    async def end(self) -> None:
        """SIGTERM, then SIGKILL; returns when the process is gone and its folder removed."""
        if self.process.returncode is None:
            # It may end between the look and the signal, which is what was wanted.
            with suppress(ProcessLookupError):
                self.process.terminate()
            try:
                async with asyncio.timeout(TERM_GRACE_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        await asyncio.wait([self._listener], timeout=1.0)
        self._listener.cancel()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


ADVICE = (
    ("data is not within the file bounds", "tensor data ends early (file truncated?); download it again"),
    ("found nan value", "the weights are corrupt ({words}); download it again"),
    ("invalid magic characters", "not a GGUF file ({words}); download it again"),
    ("tensor read error", "tensor data cannot be read ({words}); download it again"),
    ("couldn't bind", "port {port} is in use; choose another or leave it out"),
    ("unable to allocate", "not enough memory ({words}); choose a smaller model or a shorter context"),
    ("failed to allocate", "not enough memory ({words}); choose a smaller model or a shorter context"),
    ("failed to read key-value pairs", "the file's header is cut off or corrupt ({words}); download it again"),
    ("failed to load model", "llama.cpp cannot load it ({words}); is it a whole GGUF file?"),
)
"""What llama.cpp says, and what that means for a person; the first that was said counts."""


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
