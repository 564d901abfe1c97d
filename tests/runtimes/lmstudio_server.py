"""A fake of LM Studio's documented server, for the tests of what talks to it: the part of its API that lists, loads,
unloads and speaks. It is as strict as the documentation, so that a path, field or value that LM Studio does not know is
kept as a fault, and each loaded instance is a real child process, called as LM Studio calls its own, that really holds
the model's memory.

Sources: https://lmstudio.ai/docs/developer/rest and /openai-compat; where they are silent, what the server was seen to
do: https://github.com/lmstudio-ai/lmstudio-bug-tracker issues 168 and 1582 (a second instance), 618 and 1323 (unknown
paths), 619 (unknown models), 671 (eviction), 1972, 2105 and 2340 (processes), https://github.com/lmstudio-ai/lms issue
502 (processes of the daemon), https://github.com/jmgirard/rlmstudio (recorded answers of 0.4.25).
"""

import asyncio
import contextlib
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
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil
from aiohttp import web

from tests.runtimes.ollama_server import COUNTED

DEFAULT_CONTEXT = 4096
"""The window of what is loaded without one, as in the documentation's examples."""

JIT_TTL_S = 3600.0
"""How long a model stays that a request had loaded, without another request.

Source: https://lmstudio.ai/docs/developer/core/ttl-and-auto-evict"""

Workers = Literal["llama-server", "llmworker", "llama-server below llmworker"]
"""What holds a model in GGUF: since 0.4.19 llama.cpp's own server, before that a Node process, as for MLX still.
Whether the one is a child of the other is told nowhere.

Source: https://lmstudio.ai/changelog/lmstudio-v0.4.19"""

_NODE = ".lmstudio/.internal/utils/node"
_LLMWORKER = ".lmstudio/llmster/0.0.19-2/.bundle/lib/llmworker.js"
_SURVEYOR = ".lmstudio/llmster/0.0.19-2/.bundle/lib/systemresourcesworker.js"
_LLAMA_SERVER = ".lmstudio/extensions/backends/llama.cpp-linux-x86_64-avx2-2.37.0/llama-server"

# The memory is freed before standard output closes, so its end tells that the memory is free. The end of standard
# input tells a worker to go, or that its parent is gone, however that ended. What it is to hold stands in no argument:
# LM Studio tells its Node processes by messages.
_WORKER = """\
import json, os, subprocess, sys, threading
command = json.loads(os.environ.pop("FAKE_ENGINE", "null"))
if command:
    engine = subprocess.Popen(command, stdin=subprocess.PIPE)
    def follow():
        sys.stdin.buffer.read()
        engine.kill()
    threading.Thread(target=follow, daemon=True).start()
    engine.wait()
    os._exit(0)
else:
    size = int(os.environ["FAKE_BYTES"])
    held = bytearray(size)
    held[::4096] = bytes([1]) * len(range(0, size, 4096))
    sys.stdout.write(f"{os.getpid()}\\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
"""
_IDLE = "import sys; sys.stdin.buffer.read()"

_Check = Callable[[Any], bool]


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(value: Any) -> bool:
    return _integer(value) and value > 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _listed(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(check(each) for each in value)


_LOAD: Mapping[str, _Check] = {
    "model": _text,
    **dict.fromkeys(("context_length", "eval_batch_size", "num_experts"), _positive),
    **dict.fromkeys(("flash_attention", "offload_kv_cache_to_gpu", "echo_load_config"), _flag),
}
_UNLOAD: Mapping[str, _Check] = {"instance_id": _text}
_SPOKEN: Mapping[str, _Check] = {
    **dict.fromkeys(("model", "draft_model"), _text),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty", "repeat_penalty"), _number),
    **dict.fromkeys(("top_k", "seed"), _integer),
    # -1 stands for no limit.
    "max_tokens": lambda value: _positive(value) or value == -1,
    "stop": lambda value: _text(value) or _listed(_text)(value),
    **dict.fromkeys(("logit_bias", "stream_options"), _mapping),
    "stream": _flag,
    "ttl": lambda value: _number(value) and value > 0,
}
_CHAT: Mapping[str, _Check] = {
    **_SPOKEN,
    **dict.fromkeys(("messages", "tools"), _listed(_mapping)),
    # Unlike OpenAI's, never the name of a function.
    "tool_choice": lambda value: value in ("none", "auto", "required"),
    "response_format": _mapping,
}
_COMPLETION: Mapping[str, _Check] = {**_SPOKEN, "prompt": _text}
_STREAM_OPTIONS: Mapping[str, _Check] = {"include_usage": _flag}
_MESSAGE: Mapping[str, Mapping[str, _Check]] = {
    "system": {"role": _text, "content": lambda value: _text(value) or _listed(_mapping)(value)},
    "user": {"role": _text, "content": lambda value: _text(value) or _listed(_mapping)(value)},
    "assistant": {
        "role": _text,
        "content": lambda value: value is None or _text(value) or _listed(_mapping)(value),
        "tool_calls": _listed(_mapping),
    },
    "tool": {"role": _text, "content": _text, "tool_call_id": _text},
}
_PART: Mapping[str, Mapping[str, _Check]] = {
    "text": {"type": _text, "text": _text},
    "image_url": {"type": _text, "image_url": _mapping},
}
_IMAGE: Mapping[str, _Check] = {"url": _text}
_TOOL_CALL: Mapping[str, _Check] = {"id": _text, "type": lambda value: value == "function", "function": _mapping}
_CALLED: Mapping[str, _Check] = {"name": _text, "arguments": _text}
_TOOL: Mapping[str, _Check] = {"type": lambda value: value == "function", "function": _mapping}
_TOOL_FUNCTION: Mapping[str, _Check] = {"name": _text, "description": _text, "parameters": _mapping}
_FORMAT: Mapping[str, _Check] = {"type": lambda value: value in ("json_schema", "text"), "json_schema": _mapping}
_SCHEMA: Mapping[str, _Check] = {
    "name": _text,
    "strict": lambda value: _flag(value) or value in ("true", "false"),
    "schema": _mapping,
}


@dataclass(frozen=True)
class Model:
    """A model that is downloaded: the memory that each instance of it holds, what it says, how it is described."""

    size_bytes: int
    says: str = " one two three"
    file_bytes: int | None = None
    """The size that the list tells; that of the memory where it is not given."""
    type: Literal["llm", "embedding"] = "llm"
    max_context_length: int = 8192
    format: Literal["gguf", "mlx"] = "gguf"
    architecture: str = "llama"
    quantization: str = "Q4_K_M"
    bits_per_weight: float = 4
    params_string: str | None = "1B"
    vision: bool = False
    trained_for_tool_use: bool = True


@dataclass(eq=False)
class Instance:
    """A model that is loaded now, and the process that holds its memory."""

    id: str
    key: str
    config: dict[str, Any]
    """As the list tells it."""
    process: "subprocess.Popen[bytes]"
    ttl_s: float | None
    """How long it stays without a request; None for ever, as what was loaded on purpose does."""
    pid: int = 0
    """The process that holds the memory; `process` itself, or a child of it."""
    running: int = 0
    """How many requests it serves now."""
    leaving: bool = False
    """Whether it was told to go."""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    @property
    def context_length(self) -> int:
        """The window that it has."""
        return int(self.config["context_length"])


class _Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body


class _Broken(Exception):
    """The instance ended while it spoke."""


def _native(kind: str, message: str, **more: str) -> dict[str, Any]:
    """How the REST API words an error."""
    return {"error": {"type": kind, "message": message, **more}}


def _compatible(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """How the OpenAI-compatible API words an error of the request."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


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


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class LmStudioServer:
    """LM Studio's server on a port of its own, in a thread of its own, from `with` to the end of the block, which
    fails where a client asked for something that LM Studio does not know.

    The test's process is what listens, and so the parent of the workers.
    """

    def __init__(self, models: Mapping[str, Model], port: int = 0) -> None:
        """``port``: where it listens; at any free one when left out."""
        self.models = dict(models)
        self._port = port
        self.url = ""
        self.faults: list[str] = []
        """What clients asked for that LM Studio's documentation does not know."""
        self.requests: list[tuple[str, Any]] = []
        """The path and the body of every request that had a right to be answered, in order."""
        self.loaded: dict[str, Instance] = {}
        """What is loaded, by the instances' ids."""
        self.workers: Workers = "llama-server"
        self.token_s = 0.0
        """How long each token takes."""
        self.load_s = 0.0
        """How long a load takes beside getting the memory."""
        self.keeps_loading = False
        """Whether a load that has begun goes on until this is over."""
        self.jit = True
        """Whether a request to a model that is not loaded loads it, as by default. It then goes after an hour without
        another request, and before another is loaded so."""
        self.token: str | None = None
        """What every request must have as its bearer token; without one, any token will do and none."""
        self.old_version = False
        """Knows nothing of the REST API v1, as before 0.4.0."""
        self.unknown_status = 200
        """What an unknown path is answered with; 200 as up to 0.4.25, though some tell of 404."""
        self.refuses_unload: int | None = None
        """Does not unload and answers this: 200 as if it had, or 500."""
        self.loads_instead: str | None = None
        """Loads this model in place of the one that a request asks for."""
        self.answers_html = False
        """Answers every request with a page, as something else at that address would."""
        self.answers_half_json = False
        """Answers every request with the beginning of an answer."""
        self.half_answers = 0
        """How often it has done that."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._working: set[Instance] = set()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="lmstudio-")
        self._home = Path(self._folder.name)
        for program in (_NODE, _LLAMA_SERVER):
            (self._home / program).parent.mkdir(parents=True)
            (self._home / program).symlink_to(sys.executable)
        (self._home / _LLMWORKER).parent.mkdir(parents=True)
        for script, does in ((_LLMWORKER, _WORKER), ("serve", _WORKER), (_SURVEYOR, _IDLE)):
            (self._home / script).write_text(does, encoding="utf-8")
        # It is always there and holds no model.
        self._surveyor = self._spawn([_NODE, str(self._home / _SURVEYOR)])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lmstudio", daemon=True)
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
            self._surveyor.communicate()
            self._folder.cleanup()
        # An error of the test's own tells more than what it led to here.
        if kind is None and self.faults:
            raise AssertionError("LM Studio does not know what it was asked:\n" + "\n".join(self.faults))

    def kill(self, instance: str) -> None:
        """End the process that holds an instance, as the kernel does when memory runs out."""
        os.kill(self.loaded[instance].pid, signal.SIGKILL)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/{path:.*}", self._answer)
        # Without cancellation a client that hangs up would not end its generation.
        self._web = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._web.setup()
        await web.TCPSite(self._web, "127.0.0.1", self._port).start()
        host, port = self._web.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _stop(self) -> None:
        await self._web.cleanup()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for instance in list(self._working):
            await self._end(instance)

    # What is asked

    def _fault(self, what: str, message: str, **more: str) -> _Refused:
        """Keep what was wrong; returns what to raise."""
        self.faults.append(f"{what}: {message}")
        # The REST API calls what is wrong with a request otherwise than the compatible one does.
        if what.partition(" ")[2].startswith("/api/"):
            return _Refused(400, _native("invalid_request", message, **more))
        return _Refused(400, _compatible(message, **more))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.answers_html:
            return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")
        if self.answers_half_json:
            self.half_answers += 1
            return web.Response(text='{"models": [', content_type="application/json")
        try:
            self._authenticate(request)
            return await self._route(request)
        except _Refused as refused:
            return web.json_response(refused.body, status=refused.status)

    def _authenticate(self, request: web.Request) -> None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if self.token is None or (scheme == "Bearer" and given == self.token):
            return
        message = (
            # As much of it as the server tells.
            f"Malformed LM Studio API token provided: {given[:10]}{'*' * 14}"
            if scheme == "Bearer"
            else "An LM Studio API token is required to make requests to this server"
        )
        raise _Refused(401, _native("invalid_request", message, code="invalid_api_key"))

    async def _route(self, request: web.Request) -> web.StreamResponse:
        what = f"{request.method} {request.path}"
        if request.query_string:
            raise self._fault(what, f"no query is known: {request.query_string}")
        body = await self._body(request, what) if request.method == "POST" else None
        self.requests.append((request.path, body))
        if self.old_version and request.path.startswith("/api/v1/"):
            raise self._unexpected(what)
        match what:
            case "GET /api/v1/models":
                return web.json_response({"models": [self._described(key) for key in self.models]})
            case "POST /api/v1/models/load":
                return await self._load_asked(what, self._known(what, body, _LOAD, "model"))
            case "POST /api/v1/models/unload":
                return await self._unload_asked(self._known(what, body, _UNLOAD, "instance_id"))
            case "GET /api/v0/models":
                return web.json_response({"object": "list", "data": [self._described_v0(key) for key in self.models]})
            case "GET /v1/models":
                entries = [{"id": each, "object": "model", "owned_by": "organization_owner"} for each in self._names()]
                return web.json_response({"data": entries, "object": "list"})
            case "POST /v1/chat/completions":
                asked = self._spoken(what, self._known(what, body, _CHAT, "model", "messages"))
                self._check_chat(what, asked)
                return await self._speak(request, asked)
            case "POST /v1/completions":
                return await self._speak(
                    request, self._spoken(what, self._known(what, body, _COMPLETION, "model", "prompt"))
                )
            case _:
                self.faults.append(f"{what} is not known")
                raise self._unexpected(what)

    def _unexpected(self, what: str) -> _Refused:
        return _Refused(self.unknown_status, {"error": f"Unexpected endpoint or method. ({what})"})

    async def _body(self, request: web.Request, what: str) -> Any:
        if request.content_type != "application/json":
            raise self._fault(what, f"no JSON by its type: {request.content_type}", code="invalid_json")
        try:
            return json.loads(await request.read())
        except ValueError as error:
            raise self._fault(what, f"no JSON: {error}", code="invalid_json") from None

    def _known(self, what: str, value: Any, fields: Mapping[str, _Check], *required: str) -> dict[str, Any]:
        """The object, once all of it is known."""
        if not isinstance(value, dict):
            raise self._fault(what, f"no object: {value!r}", code="invalid_type")
        for key, each in value.items():
            if key not in fields:
                raise self._fault(what, f"Unrecognized key(s) in object: '{key}'", code="unrecognized_keys")
            if not fields[key](each):
                raise self._fault(what, f"{key} cannot be {each!r}", code="invalid_value", param=key)
        for key in required:
            if key not in value:
                raise self._fault(what, f'"{key}" is required', code="missing_required_parameter", param=key)
        return value

    def _spoken(self, what: str, asked: dict[str, Any]) -> dict[str, Any]:
        if "stream_options" in asked:
            self._known(f"{what} stream_options", asked["stream_options"], _STREAM_OPTIONS)
            if not asked.get("stream"):
                raise self._fault(what, "stream_options without stream", param="stream_options")
        return asked

    def _check_chat(self, what: str, asked: Mapping[str, Any]) -> None:
        if not asked["messages"]:
            raise self._fault(what, "no messages", param="messages")
        for message in asked["messages"]:
            fields = _MESSAGE.get(str(message.get("role")))
            if fields is None:
                raise self._fault(what, f"no message has the role {message.get('role')!r}", param="messages")
            required = () if message.get("tool_calls") else ("content",)
            self._known(f"{what} messages", message, fields, *required)
            for part in message["content"] if isinstance(message.get("content"), list) else ():
                kind = _PART.get(str(part.get("type")))
                if kind is None:
                    raise self._fault(what, f"no part has the type {part.get('type')!r}", param="messages")
                self._known(f"{what} parts", part, kind, part["type"])
                if part["type"] == "image_url":
                    self._known(f"{what} image_url", part["image_url"], _IMAGE, "url")
            for call in message.get("tool_calls", ()):
                known = self._known(f"{what} tool_calls", call, _TOOL_CALL, "id", "type", "function")
                self._known(f"{what} tool_calls function", known["function"], _CALLED, "name")
        for tool in asked.get("tools", ()):
            known = self._known(f"{what} tools", tool, _TOOL, "type", "function")
            self._known(f"{what} tools function", known["function"], _TOOL_FUNCTION, "name")
        if "response_format" in asked:
            known = self._known(f"{what} response_format", asked["response_format"], _FORMAT, "type")
            if known["type"] == "json_schema":
                self._known(f"{what} json_schema", known.get("json_schema"), _SCHEMA, "schema")

    # What it describes

    def _described(self, key: str) -> dict[str, Any]:
        model = self.models[key]
        llm = model.type == "llm"
        return {
            "type": model.type,
            "publisher": key.rpartition("/")[0] or "lmstudio-community",
            "key": key,
            "display_name": key.rpartition("/")[2],
            **({"architecture": model.architecture} if llm else {}),
            "quantization": {"name": model.quantization, "bits_per_weight": model.bits_per_weight},
            "size_bytes": model.size_bytes if model.file_bytes is None else model.file_bytes,
            "params_string": model.params_string,
            "loaded_instances": [
                {
                    "id": instance.id,
                    "config": instance.config,
                    **({} if instance.ttl_s is None else {"remaining_ttl_seconds": instance.ttl_s}),
                }
                for instance in self._instances(key)
            ],
            "max_context_length": model.max_context_length,
            "format": model.format,
            **(
                {
                    "capabilities": {"vision": model.vision, "trained_for_tool_use": model.trained_for_tool_use},
                    "description": None,
                }
                if llm
                else {}
            ),
        }

    def _described_v0(self, key: str) -> dict[str, Any]:
        model = self.models[key]
        instances = list(self._instances(key))
        return {
            "id": key,
            "object": "model",
            "type": "embeddings" if model.type == "embedding" else "vlm" if model.vision else "llm",
            "publisher": key.rpartition("/")[0] or "lmstudio-community",
            "arch": model.architecture,
            "compatibility_type": model.format,
            "quantization": model.quantization,
            "state": "loaded" if instances else "not-loaded",
            "max_context_length": model.max_context_length,
            **({"loaded_context_length": instances[0].context_length} if instances else {}),
        }

    def _names(self) -> list[str]:
        """What a request may call a model."""
        return list(dict.fromkeys([*(self.models if self.jit else ()), *self.loaded]))

    def _instances(self, key: str) -> Iterator[Instance]:
        return (instance for instance in list(self.loaded.values()) if instance.key == key)

    # What it loads and unloads

    async def _load_asked(self, what: str, asked: Mapping[str, Any]) -> web.Response:
        key = asked["model"]
        if key not in self.models:
            raise _Refused(404, _native("model_not_found", f"Model {key} not found in downloaded models"))
        if asked.get("context_length", 1) > self.models[key].max_context_length:
            # What the real one does about it is not told.
            raise self._fault(
                what, f"context_length is more than {key} has", code="invalid_value", param="context_length"
            )
        started = time.perf_counter()
        instance = await self._load(self.loads_instead or key, asked, None)
        answer = {
            "type": self.models[instance.key].type,
            "instance_id": instance.id,
            "load_time_seconds": round(time.perf_counter() - started, 3),
            "status": "loaded",
        }
        if asked.get("echo_load_config"):
            answer["load_config"] = instance.config
        return web.json_response(answer)

    async def _unload_asked(self, asked: Mapping[str, Any]) -> web.Response:
        name = asked["instance_id"]
        instance = self.loaded.get(name)
        if instance is None:
            message = f"Model with instance identifier '{name}' is not loaded."
            raise _Refused(404, _native("model_not_found", message))
        if self.refuses_unload not in (None, 200):
            raise _Refused(self.refuses_unload or 500, _native("internal_error", f"Failed to unload {name}"))
        if self.refuses_unload is None:
            await self._end(instance)
        return web.json_response({"instance_id": name})

    async def _load(self, key: str, asked: Mapping[str, Any], ttl_s: float | None) -> Instance:
        """Another instance of the model. The load goes on where the client hangs up: nothing tells of it otherwise."""
        task = self._loop.create_task(self._start_instance(key, asked, ttl_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _start_instance(self, key: str, asked: Mapping[str, Any], ttl_s: float | None) -> Instance:
        taken = {instance.id for instance in self._working}
        number = 1
        while (name := key if number == 1 else f"{key}:{number}") in taken:
            number += 1
        config = self._config(self.models[key], asked)
        instance = Instance(name, key, config, self._worker(key, config), ttl_s)
        self._working.add(instance)
        assert instance.process.stdout is not None
        self._loop.add_reader(instance.process.stdout.fileno(), self._hear, instance)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(instance.ended.wait(), self.load_s)
        while self.keeps_loading and not instance.ended.is_set():
            await asyncio.sleep(0.01)
        await instance.held.wait()
        if instance.ended.is_set():
            raise _Refused(500, _native("internal_error", f"Failed to load model {key}"))
        self.loaded[instance.id] = instance
        self._expire_later(instance)
        return instance

    @staticmethod
    def _config(model: Model, asked: Mapping[str, Any]) -> dict[str, Any]:
        context = min(asked.get("context_length", DEFAULT_CONTEXT), model.max_context_length)
        if model.type == "embedding":
            return {"context_length": context}
        if model.format == "mlx":
            # 0.4.25 loads these with all that they have, whatever is asked.
            return {"context_length": model.max_context_length, "parallel": 4}
        return {
            "context_length": context,
            "eval_batch_size": asked.get("eval_batch_size", 512),
            "parallel": 4,
            "flash_attention": asked.get("flash_attention", True),
            "offload_kv_cache_to_gpu": asked.get("offload_kv_cache_to_gpu", True),
        }

    def _worker(self, key: str, config: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
        """A process that holds a model, or the one above it."""
        model = self.models[key]
        file = self._home / f".lmstudio/models/{key}/{key.rpartition('/')[2]}.{model.format}"
        server = [_LLAMA_SERVER, "serve", "--model", str(file), "--ctx-size", str(config["context_length"])]
        node = [_NODE, str(self._home / _LLMWORKER)]
        if model.format == "mlx" or self.workers == "llmworker":
            return self._spawn(node, FAKE_BYTES=str(model.size_bytes))
        if self.workers == "llama-server":
            return self._spawn(server, FAKE_BYTES=str(model.size_bytes))
        engine = json.dumps([str(self._home / server[0]), *server[1:]])
        return self._spawn(node, FAKE_BYTES=str(model.size_bytes), FAKE_ENGINE=engine)

    def _spawn(self, command: list[str], **environment: str) -> "subprocess.Popen[bytes]":
        # The program lies where Python does not, so Python must be told where its library is.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.Popen(
            [str(self._home / command[0]), *command[1:]],
            cwd=self._home,
            env={**inherited, "PYTHONHOME": sys.base_prefix, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _hear(self, instance: Instance) -> None:
        """What a worker tells: who holds the memory, or, by the end of its output, that all of it is gone."""
        process = instance.process
        assert process.stdout is not None
        assert process.stdin is not None
        if told := os.read(process.stdout.fileno(), 4096):
            instance.pid = int(told)
            instance.held.set()
            return
        self._loop.remove_reader(process.stdout.fileno())
        process.wait()  # it is about to be over
        process.stdout.close()
        process.stdin.close()
        self._working.discard(instance)
        if instance.timer is not None:
            instance.timer.cancel()
        if self.loaded.get(instance.id) is instance:
            del self.loaded[instance.id]
        instance.ended.set()
        instance.held.set()

    async def _end(self, instance: Instance) -> None:
        self._dismiss(instance)
        await instance.ended.wait()

    @staticmethod
    def _dismiss(instance: Instance) -> None:
        instance.leaving = True
        assert instance.process.stdin is not None
        instance.process.stdin.close()

    def _expire_later(self, instance: Instance) -> None:
        if instance.ttl_s is not None and not instance.running and not instance.ended.is_set():
            instance.timer = self._loop.call_later(instance.ttl_s, self._dismiss, instance)

    # What it says

    async def _find(self, asked: Mapping[str, Any]) -> Instance:
        """The instance that a request means, loaded for it where it may be."""
        name = asked["model"]
        if name in self.loaded:
            return self.loaded[name]
        keys = [key for key, model in self.models.items() if model.type == "llm"]
        # A key may be written as one likes, an id may not.
        key = next((key for key in keys if key.casefold() == name.casefold()), None)
        if key is not None:
            async with self._locks.setdefault(key, asyncio.Lock()):
                instance = next(self._instances(key), None)
                if instance is None and self.jit:
                    instance = await self._load_for_request(key, asked)
                if instance is not None:
                    return instance
        speaking = [instance for instance in self.loaded.values() if instance.key in keys]
        if len(speaking) == 1 and (key is not None or name not in self.models):
            # The only one that is loaded answers to any name that is no other kind's.
            return speaking[0]
        if not speaking and not self.jit:
            message = "No models loaded. Please load a model in the developer page or use the 'lms load' command."
            raise _Refused(400, {"error": {"message": message}})
        message = (
            f'Invalid model identifier "{name}". Please specify a valid downloaded model (e.g., {", ".join(keys)}).'
        )
        raise _Refused(400, _compatible(message, "model_not_found", "model"))

    async def _load_for_request(self, key: str, asked: Mapping[str, Any]) -> Instance:
        # What was loaded on purpose stays.
        for other in [instance for instance in self.loaded.values() if instance.ttl_s is not None]:
            await self._end(other)
        try:
            return await self._load(self.loads_instead or key, {}, asked.get("ttl", JIT_TTL_S))
        except _Refused:
            message = f'Failed to load model "{key}". Error: Failed to load model.'
            raise _Refused(400, {"error": {"message": message}}) from None

    async def _speak(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        instance = await self._find(asked)
        self._check_vision(instance, asked)
        instance.running += 1
        if instance.timer is not None:
            instance.timer.cancel()
        try:
            tokens, reason = self._answer_of(instance, asked)
            if asked.get("stream"):
                return await self._stream(request, instance, asked, tokens, reason)
            try:
                for _ in tokens:
                    await self._token(instance)
            except _Broken as broken:
                # Not a word of whose fault it is: 400, and no object.
                raise _Refused(400, {"error": str(broken)}) from None
            return web.json_response(self._whole(instance, asked, tokens, reason))
        finally:
            instance.running -= 1
            self._expire_later(instance)

    def _check_vision(self, instance: Instance, asked: Mapping[str, Any]) -> None:
        parts = (message.get("content") for message in asked.get("messages", ()))
        images = any(part["type"] == "image_url" for content in parts if isinstance(content, list) for part in content)
        if images and not self.models[instance.key].vision:
            raise _Refused(400, {"error": "Model does not support images. Please use a model that does."})

    def _answer_of(self, instance: Instance, asked: Mapping[str, Any]) -> tuple[list[str], str]:
        """The tokens that the model answers with, and why it ends."""
        says = self.models[instance.key].says
        if "messages" in asked:
            messages = asked["messages"]
            users = [_content(message) for message in messages if message["role"] == "user"]
            text = COUNTED if users and users[-1].strip() == "Count." else says
            if messages[-1]["role"] == "assistant":
                text = _rest_after(text, _content(messages[-1]))
        else:
            _, count, after = asked["prompt"].rpartition("Count.")
            text = _rest_of_raw(COUNTED, after) if count else _rest_of_raw(says, asked["prompt"])
        stops = asked.get("stop", ())
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.partition(stop)[0] if stop else text
        tokens = _tokens(text)
        limit = asked.get("max_tokens", -1)
        return (tokens[:limit], "length") if 0 < limit < len(tokens) else (tokens, "stop")

    async def _token(self, instance: Instance) -> None:
        if self.token_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(instance.ended.wait(), self.token_s)
        else:
            await asyncio.sleep(0)
        if instance.leaving:
            raise _Broken("Model unloaded.")
        if instance.process.poll() is not None or instance.ended.is_set():
            raise _Broken("The model has crashed without additional information. (Exit code: null)")

    async def _stream(
        self,
        request: web.Request,
        instance: Instance,
        asked: Mapping[str, Any],
        tokens: list[str],
        reason: str,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        head = self._head(instance, "messages" in asked, chunk=True)
        try:
            for token in tokens:
                await self._token(instance)
                await self._send(response, {**head, "choices": [self._chunk(asked, token, None)]})
            await self._send(response, {**head, "choices": [self._chunk(asked, "", reason)]})
            if asked.get("stream_options", {}).get("include_usage"):
                await self._send(response, {**head, "choices": [], "usage": self._usage(asked, tokens)})
            await response.write(b"data: [DONE]\n\n")
        except _Broken as broken:
            await response.write(b"event: error\n")
            await self._send(response, {"error": {"message": str(broken)}})
        return response

    @staticmethod
    async def _send(response: web.StreamResponse, event: Mapping[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")

    @staticmethod
    def _head(instance: Instance, chat: bool, *, chunk: bool) -> dict[str, Any]:
        kind = "chat.completion" + (".chunk" if chunk else "") if chat else "text_completion"
        return {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex[:21],
            "object": kind,
            "created": int(time.time()),
            # Who answers, not who was asked.
            "model": instance.id,
            "system_fingerprint": instance.id,
        }

    @staticmethod
    def _chunk(asked: Mapping[str, Any], token: str, reason: str | None) -> dict[str, Any]:
        ends = {"logprobs": None, "finish_reason": reason}
        if "messages" not in asked:
            return {"index": 0, "text": token, **ends}
        return {"index": 0, "delta": {"role": "assistant", "content": token} if reason is None else {}, **ends}

    def _whole(self, instance: Instance, asked: Mapping[str, Any], tokens: list[str], reason: str) -> dict[str, Any]:
        chat, text = "messages" in asked, "".join(tokens)
        said: dict[str, Any] = {"text": text}
        if chat:
            said = {"message": {"role": "assistant", "content": text, "reasoning_content": "", "tool_calls": []}}
        return {
            **self._head(instance, chat, chunk=False),
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}],
            "usage": self._usage(asked, tokens),
            "stats": {},
        }

    @staticmethod
    def _usage(asked: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
        prompts = [_content(message) for message in asked["messages"]] if "messages" in asked else [asked["prompt"]]
        count = max(1, sum(len(_tokens(prompt)) for prompt in prompts))
        return {
            "prompt_tokens": count,
            "completion_tokens": len(tokens),
            "total_tokens": count + len(tokens),
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


def processes() -> dict[psutil.Process, list[str]]:
    """All that fakes of this program run, with their command lines; what ends meanwhile is not among them."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process] = process.cmdline()
    return {process: words for process, words in found.items() if "/.lmstudio/" in "".join(words[:1])}
