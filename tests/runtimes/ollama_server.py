"""A fake of Ollama's HTTP API, for the tests of what talks to it. It answers as a real one was recorded to answer
(`ollama_exchanges`), and is stricter in one thing: what Ollama does not know, or ignores, is kept as a fault. Each
loaded model is a real child process, called as Ollama calls its own, that really holds the model's memory.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

COUNTED = "".join(f" {number}" for number in range(1, 1000))
"""What every model says to "Count."."""

FOR_EVER = timedelta(microseconds=(2**63 - 1) // 1000)
"""What Ollama takes a negative `keep_alive` for: the longest duration that Go knows, some 292 years."""

# The memory is freed before standard output closes, so its end tells that the memory is free. The end of standard
# input tells the runner that its server is gone, however that ended.
_RUNNER = """\
import sys
size = int(sys.argv[sys.argv.index("--size") + 1])
held = bytearray(size)
held[::4096] = bytes([1]) * len(range(0, size, 4096))
print("held", flush=True)
sys.stdin.buffer.read()
"""

_Check = Callable[[Any], bool]


def _integer(value: Any) -> bool:
    # Go's client sends 5 and Python's may send 5.0; Ollama takes both.
    return not isinstance(value, bool) and isinstance(value, int | float) and value == int(value)


def _number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _picture(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(base64.b64decode(value, validate=True))
    except ValueError:
        return False


def _listed(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(check(each) for each in value)


_OPTIONS: Mapping[str, _Check] = {
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed"), _integer),
    **dict.fromkeys(("num_predict", "top_k", "repeat_last_n", "mirostat"), _integer),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "tfs_z", "mirostat_tau", "mirostat_eta"), _number),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), _number),
    **dict.fromkeys(("use_mmap", "numa", "penalize_newline"), _flag),
    "stop": _listed(_text),
}
_OPTION_KINDS: Mapping[_Check, str] = {_integer: "integer", _number: "float32", _flag: "boolean"}
"""What Ollama calls the types of options."""

# Another value of one of these needs another runner.
_RUNNER_OPTIONS: Mapping[str, Any] = {
    "num_ctx": 4096,
    "num_batch": 512,
    "num_gpu": -1,
    "main_gpu": 0,
    "use_mmap": None,
    "num_thread": 0,
}

_SPOKEN: Mapping[str, _Check] = {
    "model": _text,
    "format": lambda _: True,
    "think": lambda value: isinstance(value, bool) or value in ("high", "medium", "low", "max"),
    "options": _mapping,
    "stream": _flag,
    "keep_alive": lambda value: _number(value) or isinstance(value, str),
    **dict.fromkeys(("logprobs", "truncate", "shift"), _flag),
    "top_logprobs": lambda value: _integer(value) and 0 <= value <= 20,
}
_GENERATE: Mapping[str, _Check] = {
    **_SPOKEN,
    **dict.fromkeys(("prompt", "suffix", "system", "template"), _text),
    "images": _listed(_picture),
    "raw": _flag,
    "context": _listed(_integer),
}
_CHAT: Mapping[str, _Check] = {**_SPOKEN, "messages": _listed(_mapping), "tools": _listed(_mapping)}
_SHOW: Mapping[str, _Check] = {"model": _text, "name": _text, "verbose": _flag}
_ROLES = ("system", "user", "assistant", "tool")
_MESSAGE: Mapping[str, _Check] = {
    **dict.fromkeys(("role", "content", "thinking", "tool_name", "tool_call_id"), _text),
    "images": _listed(_picture),
    "tool_calls": _listed(_mapping),
}
_TOOL_CALL: Mapping[str, _Check] = {"id": _text, "type": lambda value: value == "function", "function": _mapping}
# Unlike OpenAI's, the arguments are an object and no text.
_CALLED: Mapping[str, _Check] = {"index": _integer, "name": _text, "description": _text, "arguments": _mapping}
_TOOL: Mapping[str, _Check] = {"type": lambda value: value == "function", "function": _mapping}
_TOOL_FUNCTION: Mapping[str, _Check] = {"name": _text, "description": _text, "parameters": _mapping}

METHODS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("/", "/api/version", "/api/tags"), ("GET", "HEAD")),
    **dict.fromkeys(("/api/ps", "/v1/models"), ("GET",)),
    **dict.fromkeys(("/api/show", "/api/generate", "/api/chat"), ("POST",)),
}
"""What is asked at each path. Of OpenAI's API there is only as much as is asked to see who listens."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)"


def seconds(keep_alive: float | str) -> float:
    """The duration that a `keep_alive` means, negative for ever; `ValueError` where Go would not parse it."""
    if not isinstance(keep_alive, str):
        return float(keep_alive)
    sign, digits = (-1.0, keep_alive[1:]) if keep_alive.startswith("-") else (1.0, keep_alive.removeprefix("+"))
    if digits == "0":
        return 0.0
    if not re.fullmatch(f"({_PART})+", digits):
        raise ValueError(f'time: invalid duration "{keep_alive}"')
    return sign * sum(float(count) * _UNITS[unit] for count, unit in re.findall(_PART, digits))


@dataclass(frozen=True)
class Model:
    """A model that the server has: the memory its runner holds, what it says, and how it is described."""

    size_bytes: int
    says: str = " one two three"
    file_bytes: int | None = None
    """The size that `/api/tags` tells; that of the memory where it is not given."""
    vram_bytes: int = 0
    """The size on the GPU that `/api/ps` tells, unless `num_gpu` is 0; nothing is really held there."""
    context_length: int = 8192
    family: str = "llama"
    parameter_size: str = "1.2B"
    parameter_count: int = 1_235_814_432
    quantization_level: str = "Q4_K_M"
    capabilities: tuple[str, ...] = ("completion", "tools")
    template: str = "{{ .Prompt }}"
    parameters: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What `model_info` of `/api/show` has besides the common keys."""

    @property
    def details(self) -> dict[str, Any]:
        """The `details` of every answer that describes the model."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization_level,
        }


@dataclass(eq=False)
class Loaded:
    """A model that is loaded now, and the process that holds its memory."""

    name: str
    process: "subprocess.Popen[bytes]"
    runner_options: dict[str, Any]
    context_length: int
    keep_alive: float = 300.0
    expires_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    uses: int = 0
    """How many requests it has served or serves."""
    running: int = 0
    """How many requests it serves now."""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """The runner's process id."""
        return self.process.pid

    @property
    def num_ctx(self) -> int:
        """The context that the request which loaded it asked for, or the default one."""
        return int(self.runner_options["num_ctx"])

    @property
    def num_gpu(self) -> int:
        """The layers on the GPU that the request which loaded it asked for; -1 leaves it to Ollama."""
        return int(self.runner_options["num_gpu"])

    @property
    def alive(self) -> bool:
        """Whether the runner still lives."""
        return not self.ended.is_set() and self.process.poll() is None


class _Refused(Exception):
    """An answer with an error; ``plain`` is one without JSON."""

    def __init__(self, status: int, error: str, *, plain: bool = False) -> None:
        super().__init__(error)
        self.status, self.plain = status, plain


def _refused_inside(status: int, message: str, kind: str, **more: Any) -> _Refused:
    """What llama-server refuses: Ollama passes its JSON on, as a text."""
    said = {"error": {"code": status, "message": message, "type": kind, **more}}
    return _Refused(status, json.dumps(said, separators=(",", ":")))


class _Broken(Exception):
    """The runner died while it spoke."""


KILLED = "llama-server process has terminated: signal: killed"
"""What is told to who waits for an answer, or for a model, whose process is killed."""
KILLED_IN_A_STREAM = "an error was encountered while running the model: unexpected EOF"


async def _dribble(request: web.Request) -> web.StreamResponse:
    """For as long as somebody reads it."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


def _full_name(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _rest_after(text: str, said: str) -> str:
    """What of the text is left to say for one who said this already; all of it where that was something else."""
    for whole in (text, text.lstrip()):
        if whole.startswith(said):
            return whole[len(said) :]
    return text


def _rest_of_raw(text: str, prompt: str) -> str:
    """What of the text is left to say after a prompt that ends, behind whatever template, with the beginning of it."""
    best = 0, text
    for whole in (text, text.lstrip()):
        for length in range(min(len(whole), len(prompt)), 0, -1):
            if prompt.endswith(whole[:length]):
                best = max(best, (length, whole[length:]))
                break
    return best[1]


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


class OllamaServer:
    """Ollama on a port of its own, in a thread of its own, from `with` to the end of the block, which fails where a
    client asked for something that Ollama does not know, or would have passed over in silence.
    """

    def __init__(self, models: Mapping[str, Model], version: str = "0.13.0") -> None:
        self.models = {_full_name(name): model for name, model in models.items()}
        self.version = version
        self.url = ""
        self.faults: list[str] = []
        """What clients asked for that Ollama does not know."""
        self.requests: list[tuple[str, Any]] = []
        """The path and the body of every request, in order."""
        self.loaded: dict[str, Loaded] = {}
        self.program = "/usr/local/lib/ollama/llama-server"
        """What runners are called, as since 0.30; `ollama` before."""
        self.token_s = 0.0
        """How long each token takes."""
        self.refuse_unload = False
        """Answers that it unloads, and does not."""
        self.load_other: str | None = None
        """Loads this model in place of the one that a request asks for."""
        self.reply: bytes | None = None
        """Answers every request with just this."""
        self.reply_type, self.reply_status = "application/json", 200
        self.dribbles = False
        """Begins every answer and never ends it, though something of it comes again and again."""
        self.elsewhere: str | None = None
        """Where it sends everybody."""
        self.delay_s = 0.0
        """How late every answer comes."""
        self.token: str | None = None
        """What every request must have as its bearer token, as a proxy in front of Ollama may ask for one."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._runners: set[Loaded] = set()
        self._modified_at = _now()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="ollama-")
        Path(self._folder.name, "runner").write_text(_RUNNER, encoding="utf-8")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ollama", daemon=True)
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._folder.cleanup()
        # An error of the test's own tells more than what it led to here.
        if kind is None and self.faults:
            raise AssertionError("Ollama does not know what it was asked:\n" + "\n".join(self.faults))

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/{path:.*}", self._answer)
        # Without cancellation a client that hangs up would not end its generation.
        self._web = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._web.setup()
        await web.TCPSite(self._web, "127.0.0.1", 0).start()
        host, port = self._web.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _stop(self) -> None:
        await self._web.cleanup()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for loaded in list(self._runners):
            await self._end(loaded)

    # What is asked

    def _fault(self, error: str, status: int = 400, says: str | None = None) -> _Refused:
        """Keep what was wrong; returns what to raise. ``says`` is how Ollama puts it, where programs may read that."""
        self.faults.append(error)
        return _Refused(status, error if says is None else says)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
                raise _Refused(401, "Unauthorized")
            if self.elsewhere is not None:
                raise web.HTTPMovedPermanently(f"{self.elsewhere}{request.path}")
            if self.dribbles:
                return await _dribble(request)
            if self.reply is not None:
                return web.Response(body=self.reply, content_type=self.reply_type, status=self.reply_status)
            return await self._route(request)
        except _Refused as refused:
            if refused.plain:
                return web.Response(text=str(refused), status=refused.status)
            return web.json_response({"error": str(refused)}, status=refused.status)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        what = f"{request.method} {request.path}"
        if request.path not in METHODS:
            self.faults.append(f"{what} is not known")
            raise _Refused(404, "404 page not found", plain=True)
        if request.method not in METHODS[request.path]:
            self.faults.append(f"{what} is not known")
            raise _Refused(405, "405 method not allowed", plain=True)
        if request.query_string:
            self.faults.append(f"{what}: no query is known: {request.query_string}")
        body = await self._body(request, what) if request.method == "POST" else None
        self.requests.append((request.path, body))
        match request.path:
            case "/":
                return web.Response(text="Ollama is running")
            case "/api/version":
                return web.json_response({"version": self.version})
            case "/api/tags":
                return web.json_response({"models": [self._tag(name) for name in self.models]})
            case "/v1/models":
                models = [self._listed_for_openai(name) for name in self.models]
                return web.json_response({"object": "list", "data": models})
            case "/api/ps":
                return web.json_response({"models": list(self._running())})
            case "/api/show":
                return web.json_response(self._shown(what, self._known(what, body, _SHOW)))
            case "/api/generate":
                return await self._speak(request, self._options(what, self._known(what, body, _GENERATE)))
            case _:
                return await self._speak(
                    request, self._messages(what, self._options(what, self._known(what, body, _CHAT)))
                )

    async def _body(self, request: web.Request, what: str) -> Any:
        content = await request.read()
        if not content:
            raise self._fault(f"{what}: no body", says="missing request body")
        try:
            return json.loads(content)
        except ValueError as error:
            raise self._fault(f"{what}: no JSON: {error}") from None

    def _known(self, what: str, value: Any, fields: Mapping[str, _Check]) -> dict[str, Any]:
        """The object without its nulls, which mean the same as nothing, and without what is not known."""
        if not isinstance(value, dict):
            raise self._fault(f"{what}: no object: {value!r}")
        self.faults += [f"{what}: {key} is not known" for key in value if key not in fields]
        given = {key: each for key, each in value.items() if each is not None and key in fields}
        for key, each in given.items():
            if not fields[key](each):
                says = "top_logprobs must be between 0 and 20" if key == "top_logprobs" and _integer(each) else None
                raise self._fault(f"{what}: {key} cannot be {each!r}", says=says)
        if "keep_alive" in given:
            try:
                given["keep_alive"] = seconds(given["keep_alive"])
            except ValueError as error:
                raise self._fault(f"{what}: {error}") from None
        return given

    def _options(self, what: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What is asked, once its options are known too, and its model. Wrong options are told late, and with 500."""
        self._name(what, asked)
        options: dict[str, Any] = {}
        for key, each in asked.get("options", {}).items():
            if key not in _OPTIONS:
                self.faults.append(f"{what} options: {key} is not known")
            elif each is not None:
                check = _OPTIONS[key]
                if not check(each):
                    of = "of an array of strings" if isinstance(each, list) else "of type array"
                    kind = f"of type {_OPTION_KINDS[check]}" if check in _OPTION_KINDS else of
                    says = f'option "{key}" must be {kind}'
                    raise self._fault(f"{what} options: {key} cannot be {each!r}", 500, says)
                options[key] = each
        form = asked.get("format", "")
        if form not in ("", "json") and not isinstance(form, dict):
            written = json.dumps(json.dumps(form))
            says = f'invalid format: {written}; expected "json" or a valid JSON Schema object'
            raise self._fault(f"{what}: format cannot be {form!r}", 500, says)
        return {**asked, "options": options}

    def _messages(self, what: str, asked: dict[str, Any]) -> dict[str, Any]:
        messages = [self._known(f"{what} messages", message, _MESSAGE) for message in asked.get("messages", ())]
        for message in messages:
            if message.setdefault("role", "") not in _ROLES:
                self.faults.append(f"{what} messages: {message['role']!r} is no role")
            for call in message.get("tool_calls", ()):
                known = self._known(f"{what} tool_calls", call, _TOOL_CALL)
                self._known(f"{what} tool_calls function", known.get("function"), _CALLED)
        for tool in asked.get("tools", ()):
            known = self._known(f"{what} tools", tool, _TOOL)
            self._known(f"{what} tools function", known.get("function"), _TOOL_FUNCTION)
        return {**asked, "messages": messages}

    def _name(self, what: str, asked: Mapping[str, Any]) -> str:
        """Its full name. A model that is not there is no fault."""
        given = asked.get("model") or asked.get("name", "")
        if not given:
            if what.endswith("/api/generate"):
                raise self._fault(f"{what}: model is required", 404, "model '' not found")
            raise self._fault(f"{what}: model is required", says="model is required")
        if not re.fullmatch(r"[\w.:/-]+", given):
            raise self._fault(f"{what}: no name of a model: {given!r}", says="invalid model name")
        name = _full_name(given)
        # Ollama does not look at the case of letters.
        found = next((one for one in self.models if one.lower() == name.lower()), None)
        if found is None:
            raise _Refused(404, f"model '{name if what.endswith('/api/show') else given}' not found")
        return found

    # What it describes

    def _tag(self, name: str) -> dict[str, Any]:
        model = self.models[name]
        return {
            "name": name,
            "model": name,
            "modified_at": self._modified_at,
            "size": model.size_bytes if model.file_bytes is None else model.file_bytes,
            "digest": _digest(name),
            "details": {
                **model.details,
                "context_length": model.context_length,
                "embedding_length": model.info.get(f"{model.family}.embedding_length", 2048),
            },
            "capabilities": list(model.capabilities),
        }

    def _listed_for_openai(self, name: str) -> dict[str, Any]:
        modified_s = int(datetime.fromisoformat(self._modified_at).timestamp())
        return {"id": name, "object": "model", "created": modified_s, "owned_by": "library"}

    def _shown(self, what: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        name = self._name(what, asked)
        model = self.models[name]
        return {
            "modelfile": f"FROM {name}\nTEMPLATE {model.template}\n",
            **({"parameters": model.parameters} if model.parameters else {}),
            "template": model.template,
            "details": model.details,
            "model_info": {
                "general.architecture": model.family,
                "general.parameter_count": model.parameter_count,
                f"{model.family}.context_length": model.context_length,
                # Lists are named, and shown to who asks for more only.
                "tokenizer.ggml.scores": None,
                "tokenizer.ggml.token_type": None,
                "tokenizer.ggml.tokens": None,
                **model.info,
            },
            "tensors": [{"name": "output_norm.weight", "type": "F32", "shape": [256]}],
            "capabilities": list(model.capabilities),
            "modified_at": self._modified_at,
        }

    def _running(self) -> Iterator[dict[str, Any]]:
        # Also of one that is dead: Ollama sees that when it is asked for it again.
        for name, loaded in self.loaded.items():
            model = self.models[name]
            yield {
                "name": name,
                "model": name,
                "size": model.size_bytes,
                "digest": _digest(name),
                "details": model.details,
                "expires_at": loaded.expires_at.isoformat().replace("+00:00", "Z"),
                "size_vram": model.vram_bytes if loaded.num_gpu else 0,
                "context_length": loaded.context_length,
            }

    # What it loads and unloads

    async def _acquire(self, name: str, asked: Mapping[str, Any]) -> Loaded:
        """The model, loaded as asked, and not unloaded before it is released."""
        wanted = {**_RUNNER_OPTIONS, **{k: v for k, v in asked.get("options", {}).items() if k in _RUNNER_OPTIONS}}
        async with self._lock(name):
            loaded = self.loaded.get(name)
            if loaded is not None and not loaded.alive:
                self._forget(loaded)
                loaded = None
            if loaded is not None and self._differs(loaded.runner_options, wanted):
                await loaded.idle.wait()
                await self._end(loaded)
                loaded = None
            if loaded is None:
                loaded = await self._load(name, wanted)
            loaded.uses += 1
            loaded.running += 1
            loaded.idle.clear()
            if loaded.timer is not None:
                loaded.timer.cancel()
            self._keep(loaded, asked.get("keep_alive", 300.0))
            return loaded

    @staticmethod
    def _differs(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        # A request that leaves the layers to Ollama is content with any.
        return any(now[key] != wanted[key] for key in wanted if key != "num_gpu" or wanted[key] >= 0)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _keep(self, loaded: Loaded, keep_alive: float) -> None:
        if keep_alive == 0 and self.refuse_unload:
            return
        loaded.keep_alive = keep_alive
        loaded.expires_at = datetime.now(UTC) + (FOR_EVER if keep_alive < 0 else timedelta(seconds=keep_alive))

    async def _load(self, name: str, options: dict[str, Any]) -> Loaded:
        model = self.models[name]
        # Its first argument is not where Python lies, so Python must be told where its library is.
        environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
        environment.pop("PYTHONPATH", None)
        process = subprocess.Popen(  # noqa: ASYNC220 - a pipe that closes tells more exactly than asyncio when it ends
            [
                self.program,
                "runner",
                "--model",
                f"/models/blobs/sha256-{_digest(name)}",
                "--size",
                str(model.size_bytes),
            ],
            executable=sys.executable,
            cwd=self._folder.name,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        loaded = Loaded(name, process, options, min(int(options["num_ctx"]), model.context_length))
        loaded.idle.set()
        self._runners.add(loaded)
        assert process.stdout is not None
        self._loop.add_reader(process.stdout.fileno(), self._hear, loaded)
        try:
            await loaded.held.wait()
        except BaseException:
            # The client hung up, and Ollama gives up what it loads for it.
            process.kill()
            raise
        if loaded.ended.is_set():
            raise _Refused(500, KILLED)
        self.loaded[name] = loaded
        return loaded

    def _hear(self, loaded: Loaded) -> None:
        """What a runner tells: that it holds the memory, or, by the end of its output, that it is gone."""
        process = loaded.process
        assert process.stdout is not None
        assert process.stdin is not None
        if os.read(process.stdout.fileno(), 4096):
            loaded.held.set()
            return
        self._loop.remove_reader(process.stdout.fileno())
        process.wait()  # it is about to be over
        process.stdout.close()
        with contextlib.suppress(OSError):
            process.stdin.close()
        self._runners.discard(loaded)
        loaded.ended.set()
        loaded.held.set()

    def _forget(self, loaded: Loaded) -> None:
        if loaded.timer is not None:
            loaded.timer.cancel()
        if self.loaded.get(loaded.name) is loaded:
            del self.loaded[loaded.name]

    async def _end(self, loaded: Loaded) -> None:
        loaded.process.kill()
        await loaded.ended.wait()
        self._forget(loaded)

    def _release(self, loaded: Loaded) -> None:
        loaded.running -= 1
        if loaded.running:
            return
        loaded.idle.set()
        self._keep(loaded, loaded.keep_alive)
        self._expire_later(loaded)

    def _expire_later(self, loaded: Loaded) -> None:
        if loaded.timer is not None:
            loaded.timer.cancel()
        if loaded.keep_alive >= 0:
            loaded.timer = self._loop.call_later(loaded.keep_alive, self._expire_soon, loaded)

    def _expire_soon(self, loaded: Loaded) -> None:
        task = self._loop.create_task(self._expire(loaded, loaded.uses))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _expire(self, loaded: Loaded, uses: int) -> None:
        async with self._lock(loaded.name):
            # A request that came in between uses it again.
            if loaded.uses == uses and not loaded.running:
                await self._end(loaded)

    def _unload(self, name: str) -> None:
        """As Ollama's, told at once, and done once what it serves has ended."""
        loaded = self.loaded.get(name)
        if loaded is not None and not self.refuse_unload:
            self._keep(loaded, 0.0)
            if not loaded.running:
                self._expire_later(loaded)

    # What it says

    async def _speak(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        chat = "messages" in asked
        name = self._name(request.path, asked)
        if not asked["messages"] if chat else not asked.get("prompt"):
            unload = asked.get("keep_alive") == 0
            if unload:
                self._unload(name)
            else:
                self._release(await self._acquire(self._in_place_of(name), asked))
            return web.json_response(self._line(asked, "", done=True, done_reason="unload" if unload else "load"))
        self._check_capabilities(asked, name)
        started = time.perf_counter_ns()
        loaded = await self._acquire(self._in_place_of(name), asked)
        try:
            self._check_length(asked, loaded.context_length)
            tokens, reason = self._answer_of(loaded.name, asked)
            loaded_at = time.perf_counter_ns()
            if asked.get("stream", True):
                return await self._stream(request, loaded, asked, tokens, reason, (started, loaded_at))
            try:
                for _ in tokens:
                    await self._token(loaded)
            except _Broken:
                raise _Refused(500, KILLED) from None
            statistics = self._statistics(asked, tokens, reason, (started, loaded_at))
            return web.json_response(self._line(asked, *tokens, **statistics))
        finally:
            self._release(loaded)

    def _in_place_of(self, name: str) -> str:
        return name if self.load_other is None else _full_name(self.load_other)

    def _check_capabilities(self, asked: Mapping[str, Any], name: str) -> None:
        able, full_name = self.models[name].capabilities, f"registry.ollama.ai/library/{name}"
        if asked.get("raw") and any(asked.get(key) for key in ("template", "system", "context")):
            raise _Refused(400, "raw mode does not support template, system, or context")
        if asked.get("think") and "thinking" not in able:
            raise _Refused(400, f'"{asked["model"]}" does not support thinking')
        for capability, wanted in {"tools": asked.get("tools"), "insert": asked.get("suffix")}.items():
            if wanted and capability not in able:
                raise _Refused(400, f"{full_name} does not support {capability}")
        if "vision" in able:
            return
        if asked.get("images"):
            message = "Multimodal data provided, but model does not support multimodal requests."
            raise _refused_inside(400, message, "invalid_request_error")
        if any(message.get("images") for message in asked.get("messages", ())):
            message = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
            raise _refused_inside(500, message, "server_error")

    def _check_length(self, asked: Mapping[str, Any], most: int) -> None:
        """Ollama leaves out earlier messages, and cuts a prompt, unless it may not; the last message it never cuts."""
        truncate = asked.get("truncate", True)
        prompts = [message.get("content", "") for message in asked.get("messages", ())]
        prompts = prompts[-1:] if truncate else prompts or [asked["prompt"]]
        count = sum(len(_tokens(prompt)) for prompt in prompts)
        if count > most:
            message = f"request ({count} tokens) exceeds the available context size ({most} tokens), try increasing it"
            kind = "exceed_context_size_error"
            raise _refused_inside(400, message, kind, n_prompt_tokens=count, n_ctx=most)

    def _answer_of(self, name: str, asked: Mapping[str, Any]) -> tuple[list[str], str]:
        """The tokens that the model answers with, and why it ends."""
        says = self.models[name].says
        if "messages" in asked:
            messages = asked["messages"]
            users = [message.get("content", "") for message in messages if message["role"] == "user"]
            text = COUNTED if users and users[-1].strip() == "Count." else says
            if messages[-1]["role"] == "assistant":
                text = _rest_after(text, messages[-1].get("content", ""))
        elif asked.get("raw"):
            _, count, after = asked["prompt"].rpartition("Count.")
            text = _rest_of_raw(COUNTED, after) if count else _rest_of_raw(says, asked["prompt"])
        else:
            text = COUNTED if asked["prompt"].strip() == "Count." else says
        options = asked.get("options", {})
        for stop in options.get("stop", ()):
            text = text.partition(stop)[0] if stop else text
        tokens = _tokens(text)
        limit = int(options.get("num_predict", -1))
        # Ollama takes 0 for no limit too.
        return (tokens[:limit], "length") if 0 < limit < len(tokens) else (tokens, "stop")

    async def _token(self, loaded: Loaded) -> None:
        if self.token_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(loaded.ended.wait(), self.token_s)
        else:
            await asyncio.sleep(0)
        if not loaded.alive:
            raise _Broken

    async def _stream(
        self,
        request: web.Request,
        loaded: Loaded,
        asked: Mapping[str, Any],
        tokens: list[str],
        reason: str,
        times: tuple[int, int],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            for token in tokens:
                await self._token(loaded)
                await response.write(self._encoded(self._line(asked, token)))
            await response.write(self._encoded(self._line(asked, **self._statistics(asked, tokens, reason, times))))
        except _Broken:
            await response.write(self._encoded({"error": KILLED_IN_A_STREAM}))
        return response

    @staticmethod
    def _encoded(line: Mapping[str, Any]) -> bytes:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    @staticmethod
    def _line(asked: Mapping[str, Any], *tokens: str, done: bool = False, **more: Any) -> dict[str, Any]:
        text = "".join(tokens)
        said = {"message": {"role": "assistant", "content": text}} if "messages" in asked else {"response": text}
        line = {"model": asked["model"], "created_at": _now(), **said, "done": done, **more}
        if asked.get("logprobs") and text:
            line["logprobs"] = [OllamaServer._told(token, int(asked.get("top_logprobs", 0))) for token in tokens]
        return line

    @staticmethod
    def _told(token: str, alternatives: int) -> dict[str, Any]:
        # What it says is certain.
        others = [OllamaServer._logprob(f" other{number}", -100.0) for number in range(1, alternatives)]
        likely = {"top_logprobs": [OllamaServer._logprob(token), *others]} if alternatives else {}
        return {**OllamaServer._logprob(token), **likely}

    @staticmethod
    def _logprob(token: str, logprob: float = 0.0) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    @staticmethod
    def _statistics(asked: Mapping[str, Any], tokens: list[str], reason: str, times: tuple[int, int]) -> dict[str, Any]:
        started, loaded_at = times
        now = time.perf_counter_ns()
        prompts = [message.get("content", "") for message in asked.get("messages", ())] or [asked.get("prompt", "")]
        # Only a prompt that Ollama itself put into the template can be gone on with by a context.
        remembered = {} if "messages" in asked or asked.get("raw") else {"context": [1, 2, 3]}
        return {
            "done": True,
            "done_reason": reason,
            **remembered,
            "total_duration": now - started,
            "load_duration": max(1, loaded_at - started),
            "prompt_eval_count": max(1, sum(len(_tokens(prompt)) for prompt in prompts)),
            "prompt_eval_duration": 1000,
            "eval_count": len(tokens),
            "eval_duration": max(1, now - loaded_at),
        }
