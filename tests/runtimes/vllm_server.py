"""A fake of one vLLM server, for the tests of what steers it: a process that listens, and its child, the engine, whose
GPU memory stands in the file that the fake NVML library reads. It takes what vLLM takes, answers as vLLM answers, and
keeps what vLLM does not know as a fault.

Sources: the exchanges beside it, recorded with vLLM 0.32 on a CPU; of what only a GPU has, its code, and
https://docs.vllm.ai/en/latest/features/sleep_mode/.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaler.runtimes.listeners import runs
from tests.runtimes.ollama_server import COUNTED

WEIGHTS_SHARE = 0.5
"""How much of what comes back by waking up are the weights; the rest is the KV cache."""
DEAD_S = 2.0
"""How long a server goes on whose engine died, unless it is asked for what the engine would answer; vLLM's some 4 s."""
NONSENSE = "!" * 12
"""What a model says whose weights were not read again."""
TAGS = frozenset({"weights", "kv_cache"})
TEXT_TYPE = "text/plain; version=1.0.0; charset=utf-8"

# Its standard input ends with the test, not with the server: vLLM's engine too lives on when its server is killed.
_ENGINE = "import sys; sys.stdin.buffer.read()"

Pause = Literal["", "new", "all"]
"""Whether new requests have to wait, or also those that run."""


@dataclass(frozen=True)
class Settings:
    """What the server is started with."""

    model: str
    size_bytes: int
    """What it holds of each of its GPUs when awake."""
    asleep_bytes: int
    """What it holds when asleep."""
    says: str
    max_model_len: int
    max_num_seqs: int
    dev_mode: bool
    api_key: str | None
    version: str
    port: int
    gpus: Sequence[int]
    state: str | None
    """The file of the fake NVML library; None for a server without a GPU."""
    folder: str
    """Where the test and the server leave each other word."""
    life: int
    """The descriptor whose end has the engine end."""
    trace: int
    """The descriptor whose end tells the test that the engine ended."""


@dataclass(frozen=True)
class Knobs:
    """What the test may change while the server runs."""

    token_s: float = 0.0
    """How long each token takes."""
    running: int | None = None
    """The requests that run, in `/metrics`; how many there are where it is None. So the next two."""
    waiting: int | None = None
    kv_cache_usage: float | None = None
    """From 0 to 1."""
    sleep_s: float = 0.0
    """How long it takes to fall asleep."""
    wake_s: float = 0.0
    """How long it takes to wake up."""
    sleep_fails: bool = False
    """Answers `/sleep` with 500. As in vLLM it takes up no requests all the same, and says that it sleeps."""
    stays_awake: bool = False
    """Answers `/sleep` with 200, and does not."""
    reply: str | None = None
    """Answers every request with just this."""
    reply_type: str = "text/html"


def hold(state: Path, gpus: Iterable[int], pid: int, size_bytes: int) -> None:
    """Have a process hold so much of each GPU in the file of the fake NVML library, in place of what it held.

    Raises MemoryError where a GPU has not so much left; nothing is held anew then.
    """
    with state.with_name(f"{state.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = state.read_text().splitlines()
        cards = [place for place, line in enumerate(lines) if line.startswith("gpu ")]
        for gpu in gpus:
            own = f"process {gpu} compute {pid} "
            held = sum(int(line.split()[4]) for line in lines if line.startswith(own))
            kind, name, total, used, rest = lines[cards[gpu]].split(maxsplit=4)
            now = int(used) + size_bytes - held
            if size_bytes and now > int(total):
                raise MemoryError(f"GPU {gpu}: {now} bytes of {total}")
            lines[cards[gpu]] = f"{kind} {name} {total} {now} {rest}"
            lines = [line for line in lines if not line.startswith(own)]
            lines += [f"{own}{size_bytes} -1"] if size_bytes else []
        new = state.with_name(f"{state.name}.{pid}")
        new.write_text("\n".join(lines) + "\n")
        # The library knows a change by inode and time, and inodes come again.
        changed = max(time.time_ns(), state.stat().st_mtime_ns + 1)
        os.utime(new, ns=(changed, changed))
        new.replace(state)


class VllmServer:
    """vLLM on a port of its own, from `with` to the end of the block, which fails where a client asked for something
    that vLLM does not know.
    """

    def __init__(
        self,
        model: str = "tiny",
        size_bytes: int = 2**30,
        *,
        state: Path | None = None,
        gpus: Sequence[int] = (0,),
        asleep_bytes: int = 2**26,
        says: str = " one two three",
        max_model_len: int = 4096,
        max_num_seqs: int = 8,
        dev_mode: bool = True,
        api_key: str | None = None,
        version: str = "0.32.0",
        port: int = 0,
    ) -> None:
        self._settings = Settings(
            model=model,
            size_bytes=size_bytes,
            asleep_bytes=asleep_bytes,
            says=says,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            dev_mode=dev_mode,
            api_key=api_key,
            version=version,
            port=port,
            gpus=tuple(gpus),
            state=None if state is None else str(state),
            folder="",
            life=-1,
            trace=-1,
        )
        self._knobs = Knobs()
        self.url = ""
        self.pid = 0
        """The process that listens."""
        self.engine_pid = 0
        """The process that holds the memory."""

    def set(self, **changes: Any) -> None:
        """Change some of the `Knobs`; what the server is asked from then on, and tokens still to come, go by them."""
        self._knobs = replace(self._knobs, **changes)
        new = Path(self._folder.name, "knobs.new")
        new.write_text(json.dumps(asdict(self._knobs)))
        new.replace(new.with_name("knobs"))

    @property
    def faults(self) -> list[str]:
        """What clients asked for that vLLM does not know."""
        return list(self._told("faults"))

    def take_faults(self) -> list[str]:
        """The faults, which are forgotten then: for a test that asks for them on purpose."""
        faults = self.faults
        Path(self._folder.name, "faults").write_text("")
        return faults

    @property
    def requests(self) -> list[tuple[str, Any]]:
        """The path with its query and the body of every request, in order; None for no body."""
        return [(path, body) for path, body in self._told("requests")]

    def _told(self, name: str) -> Iterable[Any]:
        # The last line may not be whole yet.
        return map(json.loads, Path(self._folder.name, name).read_text().split("\n")[:-1])

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-")
        for name in ("faults", "requests"):
            Path(self._folder.name, name).touch()
        self.set()
        life, self._life = os.pipe()
        self._trace, trace = os.pipe()
        settings = replace(self._settings, folder=self._folder.name, life=life, trace=trace)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(asdict(settings))],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            pass_fds=(life, trace),
        )
        os.close(life)
        os.close(trace)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        if not told:
            self._end()
            self._clear()
            raise RuntimeError("the server ended before it listened")
        port, self.engine_pid = json.loads(told)
        self.url = f"http://127.0.0.1:{port}"
        self._watcher = threading.Thread(target=self._watch, name="vLLM's memory", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faults = self.faults
        self._end()
        self._watcher.join()
        self._clear()
        # An error of the test's own tells more than what it led to here.
        if kind is None and faults:
            raise AssertionError("vLLM does not know what it was asked:\n" + "\n".join(faults))

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._life)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _clear(self) -> None:
        os.close(self._trace)
        self._folder.cleanup()

    def _watch(self) -> None:
        """As the driver does, take the memory of an engine back that ended, however it ended."""
        os.read(self._trace, 1)
        while runs(self.engine_pid):
            time.sleep(0.001)
        if self._settings.state is not None:
            hold(Path(self._settings.state), self._settings.gpus, self.engine_pid, 0)


# The process that listens


class _Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    @property
    def body(self) -> dict[str, Any]:
        """How vLLM writes it."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}}


class _Dead(_Refused):
    """The engine died."""

    def __init__(self) -> None:
        what = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        super().__init__(500, what, "InternalServerError")


@dataclass(eq=False)
class _Sequence:
    """A request as the engine has it."""

    prompt_tokens: int
    tokens: Sequence[str]
    reason: str
    stop_reason: str | None = None
    said: int = 0
    aborted: bool = False

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None for one that has not. One that was ended before its first token is given no reason."""
        if self.aborted:
            return "abort" if self.said else None
        return self.reason if self.said == len(self.tokens) else None


class _Engine:
    """The child process, and what it would do: holding the memory, sleeping, and having requests wait and run."""

    def __init__(self, settings: Settings, knobs: Callable[[], Knobs]) -> None:
        self._settings, self._knobs = settings, knobs
        self.asleep: set[str] = set()
        """What of its memory is not there."""
        self.level: int | None = None
        """How deep it sleeps by its own account; None when awake."""
        self.nonsense = False
        """Whether the weights are there, but not the model's."""
        self.dead = False
        self.figures = 0, 0, 0.0
        """What runs, what waits, and the KV cache's usage, at the last step."""
        self._discarded = False
        self._pause: Pause = ""
        self._running: list[_Sequence] = []
        self._waiting: list[_Sequence] = []
        # It does one thing at a time, so that nothing else is answered while it falls asleep or wakes up.
        self._busy = asyncio.Lock()
        self._changed = asyncio.Event()

    async def start(self) -> asyncio.subprocess.Process:
        """Start the child, and have it hold its memory."""
        # Its first argument is not where Python lies, so Python must be told where its library is.
        environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
        environment.pop("PYTHONPATH", None)
        self.process = await asyncio.create_subprocess_exec(
            "VLLM::EngineCore",
            "-c",
            _ENGINE,
            executable=sys.executable,
            env=environment,
            stdin=self._settings.life,
            stdout=self._settings.trace,
        )
        os.close(self._settings.life)
        os.close(self._settings.trace)
        self._hold(set())
        return self.process

    def die(self) -> None:
        """Have everything end that runs or waits."""
        self.dead = True
        self._tell()

    def _hold(self, asleep: set[str]) -> None:
        if self._settings.state is None or self.process.returncode is not None:
            return
        back = self._settings.size_bytes - self._settings.asleep_bytes
        weights = int(back * WEIGHTS_SHARE)
        parts = {"weights": weights, "kv_cache": back - weights}
        size = self._settings.asleep_bytes + sum(parts[tag] for tag in TAGS - asleep)
        hold(Path(self._settings.state), self._settings.gpus, self.process.pid, size)

    # Sleep

    @contextlib.asynccontextmanager
    async def _asked(self) -> AsyncIterator[None]:
        if self.dead:
            raise _Dead
        async with self._busy:
            yield

    async def is_sleeping(self) -> bool:
        """Whether it sleeps, or takes up no requests."""
        async with self._asked():
            return bool(self._pause or self.asleep)

    async def sleep(self, level: int, mode: str) -> None:
        """Fall asleep, with what runs ended (``abort``), run to its end (``wait``) or kept as it is (``keep``)."""
        if self.dead:
            raise _Dead
        if self._knobs().stays_awake:
            return
        self._pause = "all" if mode == "keep" else "new"
        if mode == "abort":
            self._abort()
        self._tell()
        if mode == "wait":
            await self._until(lambda: not self._running)
        async with self._asked():
            # One that sleeps already sleeps no deeper, whatever it says of itself then.
            if level and "weights" not in self.asleep:
                await self._takes(lambda knobs: knobs.sleep_s)
                if self._knobs().sleep_fails:
                    raise _failed("sleep", "Memory usage increased after sleeping.")
                self._hold(set(TAGS))
                self.asleep = set(TAGS)
                self._discarded = level == 2
            self.level = level

    async def wake_up(self, tags: Sequence[str] | None) -> bool:
        """Have all its memory back, or what the tags name; whether it is wholly awake then."""
        async with self._asked():
            named = None if tags is None else [tag for tag in tags if tag != "scheduling"]
            back = set(self.asleep if named is None else named)
            # With a tag among them that does not sleep, nothing is woken.
            if back and back <= self.asleep:
                await self._takes(lambda knobs: knobs.wake_s)
                try:
                    self._hold(self.asleep - back)
                except MemoryError:
                    raise _failed("wake_up", "CUDA Error: out of memory") from None
                self.nonsense = self.nonsense or ("weights" in back and self._discarded)
                self._discarded = self._discarded and "weights" not in back
                self.asleep -= back
            if not self.asleep:
                self._pause, self.level = "", None
                self._tell()
            return not self.asleep

    async def _takes(self, seconds: Callable[[Knobs], float]) -> None:
        """Have so much time pass; the test may make it less or more meanwhile."""
        began = time.monotonic()
        while time.monotonic() < began + seconds(self._knobs()):
            await asyncio.sleep(0.01)

    async def reload_weights(self) -> bool:
        """Read the weights again; False where there is no memory to read them into."""
        async with self._asked():
            if "weights" in self.asleep:
                return False
            self.nonsense = False
            return True

    async def reset_prefix_cache(self) -> bool:
        """Whether it could be, which while something runs it cannot."""
        async with self._asked():
            return not self._running

    # Requests

    def _abort(self) -> None:
        for sequence in (*self._running, *self._waiting):
            sequence.aborted = True
        self._running.clear()
        self._waiting.clear()
        self._step()

    def end_waiting(self) -> None:
        """End what waits, if it sleeps."""
        if self._pause:
            self._abort()
            self._tell()

    def queue(self, sequence: _Sequence) -> None:
        """Have a request wait for its turn."""
        if self.dead:
            raise _Dead
        self._waiting.append(sequence)

    async def next_token(self, sequence: _Sequence) -> str | None:
        """The next token, when it is time for it; None when there is none. Raises `_Dead`."""
        if sequence in self._waiting:
            await self._until(lambda: sequence.aborted or self._may_start(sequence))
            if not sequence.aborted:
                self._waiting.remove(sequence)
                self._running.append(sequence)
                if self.nonsense:
                    sequence.tokens = [NONSENSE, ""][: len(sequence.tokens)]
                self._step()
        if sequence.aborted or sequence.said == len(sequence.tokens):
            return None
        await self._until(lambda: sequence.aborted or self._pause != "all")
        if self._knobs().token_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._knobs().token_s):
                    await self._until(lambda: sequence.aborted)
            await self._until(lambda: sequence.aborted or self._pause != "all")
        else:
            await asyncio.sleep(0)
        if sequence.aborted:
            return None
        token = sequence.tokens[sequence.said]
        sequence.said += 1
        self._step()
        return token

    def leave(self, sequence: _Sequence) -> None:
        """A request has ended, or its client has gone."""
        for held in (self._waiting, self._running):
            if sequence in held:
                held.remove(sequence)
                self._step()
        self._tell()

    def _may_start(self, sequence: _Sequence) -> bool:
        free = len(self._running) < self._settings.max_num_seqs
        return free and not self._pause and self._waiting[0] is sequence

    def _step(self) -> None:
        """What `/metrics` tells is as of the last step: of what comes in its sleep it tells nothing."""
        tokens = sum(sequence.prompt_tokens + sequence.said for sequence in self._running)
        usage = tokens / (self._settings.max_model_len * self._settings.max_num_seqs)
        self.figures = len(self._running), len(self._waiting), usage
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.dead:
                raise _Dead
            await self._changed.wait()
        if self.dead:
            raise _Dead


def _failed(method: str, why: str) -> _Refused:
    return _Refused(500, f"Call to {method} method failed: {why}", "InternalServerError")


# What is asked


class _Asked(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str | None = None


T = TypeVar("T", bound=_Asked)


class _StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class _Spoken(_Asked):
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    logprobs: bool | int | None = None


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Template(BaseModel):
    messages: list[_Message]
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class _Chat(_Template, _Spoken):
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class _Completion(_Spoken):
    prompt: str | list[str] | None = None
    echo: bool | None = False
    suffix: str | None = None


class _TokenizePrompt(_Asked):
    prompt: str
    return_token_strs: bool | None = False


class _TokenizeChat(_Template, _Asked):
    return_token_strs: bool | None = False


class _Detokenize(_Asked):
    tokens: list[int]


class _Sleep(BaseModel):
    level: int = Field(1, ge=0, le=2)
    mode: Literal["abort", "wait", "keep"] = "abort"


# What it takes besides, as its /openapi.json lists it.
_SPOKEN = {
    *("add_special_tokens", "allowed_token_ids", "bad_words", "cache_salt", "frequency_penalty", "ignore_eos"),
    *("include_stop_str_in_output", "length_penalty", "logit_bias", "min_p", "min_tokens", "presence_penalty"),
    *("priority", "repetition_penalty", "request_id", "response_format", "seed", "session_id", "skip_special_tokens"),
    *("spaces_between_special_tokens", "stop_token_ids", "stream_interval", "structured_outputs", "top_k"),
    *("thinking_token_budget", "truncate_prompt_tokens", "truncation_side", "user", "vllm_xargs"),
}
_TEMPLATED = {"add_special_tokens", "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "tools"}
_KNOWN: Mapping[type[_Asked], set[str]] = {
    _Chat: {*_SPOKEN, *_TEMPLATED, "documents", "include_reasoning", "parallel_tool_calls", "reasoning_effort"},
    _Completion: _SPOKEN,
    _TokenizePrompt: {"add_special_tokens"},
    _TokenizeChat: _TEMPLATED,
    _Detokenize: set(),
}
_PATHS = {
    **dict.fromkeys(("/health", "/version", "/metrics", "/v1/models"), "GET"),
    **dict.fromkeys(("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"), "POST"),
}
_DEV_PATHS = {
    "/is_sleeping": "GET",
    **dict.fromkeys(("/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache"), "POST"),
}
_QUERIES: Mapping[str, set[str]] = {
    "/sleep": {"level", "mode"},
    "/wake_up": {"tags"},
    "/reset_prefix_cache": {"reset_running_requests", "reset_external"},
}


def _invalid(where: str, error: ValidationError) -> _Refused:
    """As vLLM tells what pydantic found."""
    lines, places = [], []
    for one in error.errors(include_url=False):
        # Which branches of a union were tried, it leaves out.
        place = ".".join(
            [where, *(str(part) for part in one["loc"] if part not in ("str", "bool", "int", "list[str]"))]
        )
        given = one["input"]
        if isinstance(given, dict | list):
            given = f"<{type(given).__name__} of {len(given)} items>"
        lines.append(str({**one, "loc": place, "input": given}))
        places.append(place)
    count = f"{len(lines)} validation error{'s' if len(lines) > 1 else ''}:"
    return _Refused(400, "\n  ".join([count, *lines]), "Bad Request", places[0])


def _text(content: str | list[dict[str, Any]] | None, model: str) -> str:
    if not isinstance(content, list):
        return content or ""
    if any(part.get("type") != "text" for part in content):
        raise _Refused(400, f"{model} is not a multimodal model")
    return "".join(part["text"] for part in content)


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _rest(text: str, said: str) -> str:
    """What of the text is left to say after something that ends with the beginning of it."""
    for length in range(len(text), 0, -1):
        # Some programs strip what was said.
        if said.endswith(text[:length]) or said == text[:length].lstrip():
            return text[length:]
    return text


class _Api:
    """What is asked over HTTP, and what is answered."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = {**_PATHS, **(_DEV_PATHS if settings.dev_mode else {})}
        self._vocabulary: list[str] = []
        self._places: dict[str, int] = {}
        self._fingerprint = f"vllm-{settings.version}-{uuid.uuid4().hex[:8]}"
        # Before 0.32 sleeping and waking were answered without a body.
        self._bare = tuple(map(int, settings.version.split(".")[:2])) < (0, 32)
        self.engine = _Engine(settings, self._knobs)
        self.over = asyncio.Event()
        """Set when the server is to end."""

    def _knobs(self) -> Knobs:
        return Knobs(**json.loads(Path(self._settings.folder, "knobs").read_text()))

    def _note(self, name: str, what: Any) -> None:
        with Path(self._settings.folder, name).open("a") as file:
            file.write(json.dumps(what) + "\n")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Whatever is asked."""
        content = (await request.read()).decode()
        try:
            body = json.loads(content) if content else None
        except json.JSONDecodeError:
            body = content
        self._note("requests", (request.path_qs, body))
        knobs = self._knobs()
        if knobs.reply is not None:
            return web.Response(text=knobs.reply, content_type=knobs.reply_type)
        try:
            return await self._route(request, content)
        except _Refused as refused:
            if isinstance(refused, _Dead):
                self.over.set()
            return _json(refused.body, status=refused.status)

    async def _route(self, request: web.Request, content: str) -> web.StreamResponse:
        path, key = request.path, self._settings.api_key
        if key is not None and path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {key}":
            return _json({"error": "Unauthorized"}, status=401)
        if path not in self._paths:
            # A client may ask for what is there in dev mode only, to learn whether it is.
            if path not in _DEV_PATHS:
                self._note("faults", f"{request.method} {path} is not known")
            return _json({"detail": "Not Found"}, status=404)
        if request.method != self._paths[path]:
            self._note("faults", f"{request.method} {path}: it takes {self._paths[path]}")
            headers = {"Allow": self._paths[path]}
            return _json({"detail": "Method Not Allowed"}, status=405, headers=headers)
        for foreign in sorted(set(request.query) - _QUERIES.get(path, set())):
            self._note("faults", f"{path}: the query {foreign} is not known")
        match path:
            case "/health":
                return web.Response(status=503 if self.engine.dead else 200)
            case "/version":
                return _json({"version": self._settings.version})
            case "/metrics":
                return web.Response(body=self._metrics().encode(), headers={"Content-Type": TEXT_TYPE})
            case "/v1/models":
                return _json({"object": "list", "data": [self._model()]})
            case "/v1/chat/completions":
                return await self._chat(request, self._read(request, content, _Chat))
            case "/v1/completions":
                return await self._complete(request, self._read(request, content, _Completion))
            case "/tokenize":
                return _json(self._tokenized(request, content))
            case "/detokenize":
                asked = self._read(request, content, _Detokenize)
                self._check_model(asked)
                return _json({"prompt": "".join(map(self._word, asked.tokens))})
            case _:
                return await self._steer(request, content)

    async def _steer(self, request: web.Request, content: str) -> web.Response:
        match request.path:
            case "/is_sleeping":
                return _json({"is_sleeping": await self.engine.is_sleeping()})
            case "/sleep":
                try:
                    asked = _Sleep.model_validate(dict(request.query))
                except ValidationError as error:
                    invalid = _invalid("query", error)
                    self._note("faults", f"/sleep: {invalid}")
                    raise invalid from error
                await self.engine.sleep(asked.level, asked.mode)
                return self._done({"status": "sleeping", "level": asked.level})
            case "/wake_up":
                tags = request.query.getall("tags", None)
                for foreign in sorted(set(tags or ()) - TAGS - {"scheduling"}):
                    self._note("faults", f"/wake_up: the tag {foreign} is not known")
                awake = await self.engine.wake_up(tags)
                return self._done({"status": "awake" if awake else "sleeping", "tags": tags})
            case "/reset_prefix_cache":
                return _json({"success": await self.engine.reset_prefix_cache()})
            case _:
                return _json({"results": [await self._call(content)]})

    def _done(self, told: Mapping[str, Any]) -> web.Response:
        return web.Response() if self._bare else _json(told)

    async def _call(self, content: str) -> None:
        """`/collective_rpc`, of whose methods only one is known here."""
        try:
            asked = json.loads(content)
        except json.JSONDecodeError as error:
            self._note("faults", "/collective_rpc: no JSON")
            raise _Refused(400, f"JSON decode error: {error}", "Bad Request") from error
        if not isinstance(asked, dict):
            self._note("faults", "/collective_rpc: no object")
            raise _Refused(400, "Request body must be a JSON object", "Bad Request")
        for foreign in sorted(set(asked) - {"method", "args", "kwargs", "timeout"}):
            self._note("faults", f"/collective_rpc: the field {foreign} is not known")
        if (method := asked.get("method")) is None:
            self._note("faults", "/collective_rpc: no method")
            raise _Refused(400, "Missing 'method' in request body", "Bad Request")
        if method != "reload_weights":
            self._note("faults", f"/collective_rpc: the method {method} is not known")
            why = f"Worker failed with error ''CPUWorker' object has no attribute '{method}'', please check the stack "
            raise _failed("collective_rpc", f"{why}trace above for the root cause")
        if not await self.engine.reload_weights():
            self._note("faults", "/collective_rpc: reload_weights before the memory of the weights was woken")
            raise _failed("collective_rpc", "CUDA error: an illegal memory access was encountered")

    def _read(self, request: web.Request, content: str, schema: type[T]) -> T:
        what = request.path
        if request.content_type != "application/json":
            self._note("faults", f"{what}: the content type is {request.content_type}")
            why = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise _Refused(400, why, "Bad Request")
        try:
            asked = json.loads(content)
        except json.JSONDecodeError as error:
            self._note("faults", f"{what}: no JSON")
            place = f"body.{error.pos}"
            told = {"type": "json_invalid", "loc": place, "msg": "JSON decode error", "input": "<dict of 0 items>"}
            why = f"1 validation error:\n  {told | {'ctx': {'error': error.msg}}}"
            raise _Refused(400, why, "Bad Request", place) from error
        try:
            known = schema.model_validate(asked)
        except ValidationError as error:
            invalid = _invalid("body", error)
            self._note("faults", f"{what}: {invalid}")
            raise invalid from error
        for foreign in sorted(set(known.model_extra or ()) - _KNOWN[schema]):
            # vLLM passes over it, and only its log tells.
            self._note("faults", f"{what}: the field {foreign} is not known")
        return known

    def _check_model(self, asked: _Asked) -> None:
        if asked.model and asked.model != self._settings.model:
            why = f"The model `{asked.model}` does not exist. Valid aliases: {self._settings.model}."
            raise _Refused(404, why, "NotFoundError", "model")

    # What it tells

    def _model(self) -> dict[str, Any]:
        now = int(time.time())
        allowed = ("sampling", "logprobs", "view")
        kinds = ("create_engine", "sampling", "logprobs", "search_indices", "view", "fine_tuning")
        return {
            "id": self._settings.model,
            "object": "model",
            "created": now,
            "owned_by": "vllm",
            "root": self._settings.model,
            "parent": None,
            "max_model_len": self._settings.max_model_len,
            "permission": [
                {
                    "id": f"modelperm-{uuid.uuid4().hex[:16]}",
                    "object": "model_permission",
                    "created": now,
                    **{f"allow_{kind}": kind in allowed for kind in kinds},
                    "organization": "*",
                    "group": None,
                    "is_blocking": False,
                }
            ],
        }

    def _metrics(self) -> str:
        running, waiting, usage = self.engine.figures
        knobs, level = self._knobs(), self.engine.level
        running = running if knobs.running is None else knobs.running
        waiting = waiting if knobs.waiting is None else knobs.waiting
        usage = usage if knobs.kv_cache_usage is None else knobs.kv_cache_usage
        gauges: Sequence[tuple[str, Mapping[str, float]]] = (
            ("num_requests_running", {"": running}),
            ("num_requests_waiting", {"": waiting}),
            ("num_requests_waiting_by_reason", {',reason="capacity"': waiting, ',reason="deferred"': 0}),
            (
                "engine_sleep_state",
                {
                    ',sleep_state="awake"': level is None,
                    ',sleep_state="weights_offloaded"': level == 1,
                    ',sleep_state="discard_all"': level == 2,
                },
            ),
            ("kv_cache_usage_perc", {"": usage}),
        )
        labels = f'engine="0",model_name="{self._settings.model}"'
        lines = []
        for name, values in gauges:
            lines.append(f"# TYPE vllm:{name} gauge")
            lines += [f"vllm:{name}{{{labels}{more}}} {float(value)}" for more, value in values.items()]
        lines += ["# TYPE vllm:num_preemptions_total counter", f"vllm:num_preemptions_total{{{labels}}} 0.0"]
        return "\n".join(lines) + "\n"

    # Tokens

    def _prompt_of(self, asked: _Template) -> list[str]:
        """The prompt that a chat comes to."""
        if not asked.messages:
            raise _Refused(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")
        if asked.continue_final_message and asked.add_generation_prompt:
            raise _Refused(
                400,
                "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when "
                "you want the model to continue the final message, and add_generation_prompt when you want to add a "
                "header that will prompt it to start a new assistant message instead.",
            )
        prompt = ["<s>"]
        for message in asked.messages:
            prompt += [f"<|{message.role}|>", *_words(_text(message.content, self._settings.model)), "</s>"]
        if asked.continue_final_message:
            prompt.pop()
        return [*prompt, "<|assistant|>"] if asked.add_generation_prompt else prompt

    def _tokenized(self, request: web.Request, content: str) -> dict[str, Any]:
        asked: _TokenizeChat | _TokenizePrompt
        # Which of the two it is, is told by the field.
        if '"messages"' in content:
            asked = self._read(request, content, _TokenizeChat)
            self._check_model(asked)
            tokens = self._prompt_of(asked)
        else:
            asked = self._read(request, content, _TokenizePrompt)
            self._check_model(asked)
            tokens = _words(asked.prompt)
        for token in tokens:
            if token not in self._places:
                self._places[token] = len(self._vocabulary)
                self._vocabulary.append(token)
        return {
            "count": len(tokens),
            "max_model_len": self._settings.max_model_len,
            "tokens": [self._places[token] for token in tokens],
            "token_strs": tokens if asked.return_token_strs else None,
        }

    def _word(self, token: int) -> str:
        if not 0 <= token < len(self._vocabulary):
            self._note("faults", f"/detokenize: no token {token} was ever told")
            raise _Refused(400, f"Token id {token} is out of vocabulary")
        return self._vocabulary[token]

    def _sequence(self, asked: _Spoken, limit: int | None, prompt: Sequence[str], text: str) -> _Sequence:
        longest = self._settings.max_model_len
        if asked.temperature is not None and asked.temperature < 0:
            raise _wrong("temperature", f"must be non-negative, got {asked.temperature}.", asked.temperature)
        if asked.top_p is not None and not 0 < asked.top_p <= 1:
            raise _wrong("top_p", f"must be in (0, 1], got {asked.top_p}.", asked.top_p)
        if limit is not None and limit > longest:
            why = f"max_tokens={limit} cannot be greater than max_model_len={longest}. Please request fewer output "
            raise _Refused(400, f"{why}tokens. (parameter=max_tokens, value={limit})", param="max_tokens")
        if len(prompt) > longest:
            why = (
                f"This model's maximum context length is {longest} tokens. However, your prompt contains at least "
                f"{longest + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce "
                f"the length of the input prompt. (parameter=input_tokens, value={longest + 1})"
            )
            raise _Refused(400, why, param="input_tokens")
        room = longest - len(prompt)
        limit = room if limit is None else min(limit, room)
        if limit < 1:
            raise _wrong("max_tokens", f"must be at least 1, got {limit}.", limit)
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or ()
        reached = min((stop for stop in stops if stop in text), key=text.index, default=None)
        if reached is not None:
            text = text.partition(reached)[0]
        # The token that ends it is counted, and nothing is said by it.
        tokens = [*_words(text), ""]
        if limit < len(tokens):
            return _Sequence(len(prompt), tokens[:limit], "length")
        return _Sequence(len(prompt), tokens, "stop", reached)

    # What it says

    async def _chat(self, request: web.Request, asked: _Chat) -> web.StreamResponse:
        self._check_spoken(request, asked)
        if asked.tools and asked.tool_choice in (None, "auto"):
            raise _Refused(
                400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            )
        prompt = self._prompt_of(asked)
        last = asked.messages[-1]
        users = [message for message in asked.messages if message.role == "user"]
        counts = bool(users) and _text(users[-1].content, self._settings.model).strip() == "Count."
        text = COUNTED if counts else self._settings.says
        if asked.continue_final_message and last.role == "assistant":
            text = _rest(text, _text(last.content, self._settings.model))
        limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        sequence = self._sequence(asked, limit, prompt, text)
        role = last.role if asked.continue_final_message else "assistant"
        return await self._speak(request, asked, sequence, _ChatForm(role))

    async def _complete(self, request: web.Request, asked: _Completion) -> web.StreamResponse:
        self._check_spoken(request, asked)
        if not asked.prompt:
            why = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            raise _Refused(400, why, param="prompt")
        if not isinstance(asked.prompt, str) or asked.echo or asked.suffix:
            raise self._not_had(request, "several prompts, echo or suffix")
        text = _rest(COUNTED if "Count." in asked.prompt else self._settings.says, asked.prompt)
        sequence = self._sequence(asked, asked.max_tokens, _words(asked.prompt), text)
        return await self._speak(request, asked, sequence, _CompletionForm())

    def _check_spoken(self, request: web.Request, asked: _Spoken) -> None:
        if asked.stream_options is not None and not asked.stream:
            why = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
            raise _Refused(400, why, param="stream_options")
        self._check_model(asked)
        if asked.n not in (None, 1) or asked.logprobs not in (None, False):
            raise self._not_had(request, "n or logprobs")

    def _not_had(self, request: web.Request, what: str) -> _Refused:
        """vLLM has it, and this stand-in has not: a test that needs it must fail."""
        self._note("faults", f"{request.path}: {what} this stand-in has not")
        return _Refused(501, f"{what} this stand-in has not")

    async def _speak(
        self, request: web.Request, asked: _Spoken, sequence: _Sequence, form: _Form
    ) -> web.StreamResponse:
        head = {
            "id": f"{form.prefix}-{uuid.uuid4().hex[:16]}",
            "object": form.kind,
            "created": int(time.time()),
            "model": self._settings.model,
        }
        self.engine.queue(sequence)
        try:
            if asked.stream:
                options = asked.stream_options or _StreamOptions()
                return await self._stream(request, _Stream(head, form, sequence, options, self._fingerprint))
            said = ""
            while (token := await self.engine.next_token(sequence)) is not None:
                said += token
            reasons = {"finish_reason": sequence.finish_reason or "abort", "stop_reason": sequence.stop_reason}
            usage = {
                **_usage(sequence, sequence.said),
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            }
            whole = {**head, **form.whole(said, reasons), "service_tier": None}
            whole |= {"system_fingerprint": self._fingerprint, "usage": usage, **form.whole_end()}
            return _json(whole)
        finally:
            self.engine.leave(sequence)

    async def _stream(self, request: web.Request, stream: _Stream) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        sequence = stream.sequence
        try:
            begun = False
            while (token := await self.engine.next_token(sequence)) is not None or not begun:
                if not begun:
                    await self._send(response, *stream.begin())
                    begun = True
                if token is not None:
                    await self._send(response, stream.chunk(token))
            if sequence.finish_reason == "abort":
                await self._send(response, stream.chunk(""))
            await self._send(response, *stream.end())
        except _Dead as dead:
            await self._send(response, dead.body)
        await response.write(b"data: [DONE]\n\n")
        return response

    @staticmethod
    async def _send(response: web.StreamResponse, *chunks: Mapping[str, Any]) -> None:
        for chunk in chunks:
            text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
            await response.write(f"data: {text}\n\n".encode())


def _json(told: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    headers = {"Content-Type": "application/json", **(headers or {})}
    return web.Response(body=text.encode(), status=status, headers=headers)


def _wrong(field: str, what: str, value: object) -> _Refused:
    return _Refused(400, f"{field} {what} (parameter={field}, value={value})", param=field)


def _usage(sequence: _Sequence, said: int) -> dict[str, Any]:
    prompt = sequence.prompt_tokens
    return {"prompt_tokens": prompt, "total_tokens": prompt + said, "completion_tokens": said}


class _ChatForm:
    """How a chat's answer is written."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, role: str) -> None:
        self._role = role

    def begin(self) -> list[dict[str, Any]]:
        """What comes before the first token."""
        delta = {"role": self._role, "content": ""}
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]

    def choice(self, text: str, reason: str | None, stop_reason: str | None) -> dict[str, Any]:
        """One token of a stream."""
        why = {} if reason is None else {"stop_reason": stop_reason}
        delta = {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **why, "token_ids": None}

    def whole(self, text: str, reasons: Mapping[str, Any]) -> dict[str, Any]:
        """All of it at once."""
        none = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
        choice = {"index": 0, "message": {"role": self._role, "content": text, **none}, "logprobs": None, **reasons}
        return {"choices": [{**choice, "token_ids": None, "routed_experts": None}]}

    def whole_end(self) -> dict[str, Any]:
        """What comes last."""
        empty = ("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params")
        return dict.fromkeys((*empty, "metrics"))


class _CompletionForm:
    """How what follows a prompt is written."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def begin(self) -> list[dict[str, Any]]:
        """Nothing comes before the first token."""
        return []

    def choice(self, text: str, reason: str | None, stop_reason: str | None) -> dict[str, Any]:
        """One token of a stream."""
        why = {"finish_reason": reason, "stop_reason": stop_reason if reason else None}
        return {"index": 0, "text": text, "logprobs": None, **why, "prompt_token_ids": None, "token_ids": None}

    def whole(self, text: str, reasons: Mapping[str, Any]) -> dict[str, Any]:
        """All of it at once."""
        empty = dict.fromkeys(("token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"))
        return {"choices": [{"index": 0, "text": text, "logprobs": None, **reasons, **empty}]}

    def whole_end(self) -> dict[str, Any]:
        """What comes last."""
        return dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))


_Form = _ChatForm | _CompletionForm


class _Stream:
    """The chunks of one answer."""

    def __init__(
        self,
        head: Mapping[str, Any],
        form: _Form,
        sequence: _Sequence,
        options: _StreamOptions,
        fingerprint: str,
    ) -> None:
        self._head, self._form, self._options = {**head, "object": form.chunk_kind}, form, options
        self._fingerprint = {"system_fingerprint": fingerprint}
        self.sequence = sequence

    def begin(self) -> list[dict[str, Any]]:
        """What comes before the first token."""
        last = {"prompt_token_ids": None, "prompt_text": None}
        return [{**self._head, "choices": [choice], **self._counted(0), **last} for choice in self._form.begin()]

    def chunk(self, token: str) -> dict[str, Any]:
        """One token; with the last one, why it was the last."""
        reason = self.sequence.finish_reason
        choice = self._form.choice(token, reason, self.sequence.stop_reason)
        last = self._fingerprint if reason is not None and not self._options.include_usage else {}
        return {**self._head, "choices": [choice], **self._counted(self.sequence.said), **last}

    def end(self) -> list[dict[str, Any]]:
        """What was used, if that was asked for."""
        if not self._options.include_usage:
            return []
        usage = _usage(self.sequence, self.sequence.said)
        return [{**self._head, "choices": [], "usage": usage, **self._fingerprint}]

    def _counted(self, said: int) -> dict[str, Any]:
        if not self._options.continuous_usage_stats:
            return {}
        return {"usage": {**_usage(self.sequence, said), "completion_tokens_details": None}}


async def _serve(settings: Settings) -> None:
    api = _Api(settings)
    engine = await api.engine.start()
    app = web.Application(client_max_size=2**28)
    app.router.add_route("*", "/{path:.*}", api.answer)
    app.on_response_prepare.append(_sign)
    # Without cancellation a client that hangs up would not end its generation.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", settings.port)
    await site.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, api.over.set)
    print(json.dumps((runner.addresses[0][1], engine.pid)), flush=True)

    async def watch() -> None:
        await engine.wait()
        api.engine.die()
        await asyncio.sleep(DEAD_S)
        api.over.set()

    watching = asyncio.create_task(watch())
    await api.over.wait()
    await site.stop()
    api.engine.end_waiting()
    with contextlib.suppress(ProcessLookupError):
        engine.kill()
    await engine.wait()
    api.engine.die()
    await runner.cleanup()
    watching.cancel()


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "uvicorn"


if __name__ == "__main__":
    asyncio.run(_serve(Settings(**json.loads(sys.argv[1]))))
