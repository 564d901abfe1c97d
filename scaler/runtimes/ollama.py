"""Ollama, steered where it stands: it loads and unloads the levels' models, and answers in its own dialect.

Owns what is asked of Ollama; how its answers read is `ollama_dialect`, which processes its models are `ollama_runners`.
Knows nothing of thresholds or ladders.

Source: https://docs.ollama.com/api
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scaler import extras
from scaler.descriptions import EVERYTHING, Description
from scaler.errors import LevelUnavailable, MissingExtra
from scaler.level_settings import OllamaLevel, listed
from scaler.levels import RAM, Saving, gpu_resource
from scaler.runtimes import ollama_dialect
from scaler.runtimes.event_stream import LineStream
from scaler.runtimes.gguf_size import OVERHEAD_BYTES, shape_in
from scaler.runtimes.listeners import below, gone, gone_within, listener, parent, runs
from scaler.runtimes.model_server import GONE_S, WANT_KEY, ModelServer, in_words, sent_elsewhere, why_broken
from scaler.runtimes.ollama_runners import runners
from scaler.runtimes.openai_chunks import EVENT_LIMIT_BYTES
from scaler.runtimes.steering import at_once, authorization, wants_key
from scaler.runtimes.token_estimate import estimated_tokens

if TYPE_CHECKING:
    import ollama

ASK_S = 10.0
"""Within this Ollama says what it has and what is loaded; a load has its own time."""
DESCRIBE_S = 0.5
"""A model that Ollama does not describe within this is told by its name."""
LOOK_EVERY_S = 0.2
"""How often Ollama is asked whether a model is gone."""
UNLOAD_S = 30.0
"""Within this a model that was told to go is gone, or it will not go."""
ABORT_S = 5.0
"""Within this the process of a load that was given up has ended; what has not is somebody else's."""
FOR_EVER_YEAR = 2200
"""A model that is held for ever is so until some 292 years from now, the longest time that Go knows."""
OF_THE_MODEL = "model "
"""How Ollama begins to say that it has not got a model; whatever else is not found is no path of Ollama's."""
GONE = "Ollama unloaded it or its process ended"
CALLS = 4
"""How many questions beside answers are asked at a time."""


class OllamaRuntime:
    """Has Ollama load and unload. One for all levels, whatever addresses they name."""

    def __init__(self) -> None:
        self._loaded: set[OllamaModel] = set()
        self._loading: dict[object, frozenset[int]] = {}
        self._shown: dict[tuple[str, str], Description] = {}

    def require(self) -> None:
        """Raises MissingExtra when Ollama's client or the HTTP client is not installed."""
        extras.require("ollama", "ollama", "aiohttp", "orjson")

    def footprint(self, settings: OllamaLevel) -> Mapping[str, int]:
        """As declared, as Ollama says where it holds the model so, or estimated from what it says of it.

        With ``vram_gib`` the model is on a GPU, and what it takes of RAM is a process without weights unless declared.
        Raises LevelUnavailable, MissingExtra.
        """
        if not settings.declared and (held := at_once(self._held(settings))):
            return held
        return settings.footprint(lambda: OVERHEAD_BYTES if settings.vram_gib else self._estimate(settings))

    async def _held(self, settings: OllamaLevel) -> Mapping[str, int]:
        """What Ollama says that it takes, where it holds the model with the level's window; else nothing."""
        self.require()
        async with _asking(settings, ASK_S) as client:
            models = (await client.ps()).models
        gpu = settings.gpu if isinstance(settings.gpu, int) else settings.gpu[0]
        for one in models:
            if (
                listed(one.model or "") == settings.listed
                and one.context_length == settings.context_tokens
                and one.size
            ):
                vram = min(one.size_vram or 0, one.size)
                ram = one.size - vram + OVERHEAD_BYTES
                return {RAM: ram, gpu_resource(gpu): vram} if vram else {RAM: ram}
        return {}

    def _estimate(self, settings: OllamaLevel) -> int:
        shown, sizes = at_once(self._show(settings, ASK_S))
        try:
            cached = shape_in(shown.modelinfo or {}).cache_bytes(settings.context_tokens * settings.parallel, "f16")
        except ValueError as error:
            raise LevelUnavailable(f"{_where(settings)}: {error}; set the level's ram_gib") from error
        if not sizes or not cached:
            raise LevelUnavailable(f"{_where(settings)}: Ollama does not say how large it is; set the level's ram_gib")
        return (sizes[0] or 0) + cached + OVERHEAD_BYTES

    async def _show(self, settings: OllamaLevel, within_s: float) -> tuple[ollama.ShowResponse, list[int | None]]:
        """What Ollama shows of the model, and how large its file is: one size if it lists it, else none."""
        self.require()
        async with _asking(settings, within_s) as client:
            shown = await client.show(settings.model)
            models = (await client.list()).models
        return shown, [one.size for one in models if listed(one.model or "") == settings.listed]

    def describe(self, settings: OllamaLevel) -> Description:
        """As Ollama shows it, once it has; its name as long as it does not answer."""
        key = settings.address, settings.listed
        if key not in self._shown:
            try:
                self._shown[key] = self._ask_for(settings)
            except (LevelUnavailable, MissingExtra):
                return Description(settings.model, settings.context_tokens, capabilities=EVERYTHING)
        return replace(self._shown[key], context_tokens=settings.context_tokens)

    def _ask_for(self, settings: OllamaLevel) -> Description:
        shown, sizes = at_once(self._show(settings, DESCRIBE_S))
        details, info = shown.details, shown.modelinfo or {}
        weights = info.get("general.parameter_count")
        return Description(
            settings.model,
            settings.context_tokens,
            size_bytes=next(iter(sizes), None),
            format=details.format if details else None,
            family=details.family if details else None,
            weights=weights if isinstance(weights, int) else None,
            quantization=details.quantization_level if details else None,
            chat_template=shown.template,
            capabilities=tuple(shown.capabilities or ()) or None,
            metadata={key: value for key, value in info.items() if isinstance(value, str | int | float)},
        )

    def savings(self, settings: OllamaLevel) -> Sequence[Saving]:
        """None: what a level takes at other settings only Ollama knows."""
        return ()

    def apart(self, one: OllamaLevel, other: OllamaLevel) -> bool:
        """Ollama holds a model once: asked for it with other options, it loads it anew in its place."""
        return (one.url.port, one.listed) != (other.url.port, other.listed)

    def pids(self) -> Collection[int]:
        """The processes of what is loaded, and those that came since a load began."""
        # Of a load first: what ends in between is loaded then, and in the other.
        loading = tuple(self._loading.values())
        own = {model.pid for model in tuple(self._loaded)}
        for before in loading:
            own |= runners() - before
        return tuple(own)

    async def release(self, settings: OllamaLevel) -> None:
        """Have the level's model unloaded if it is held for ever: so does a scaler that was killed leave it.

        Raises LevelUnavailable when it stays, or Ollama does not say; one that is off holds nothing.
        """
        async with _asking(settings, ASK_S) as client:
            try:
                models = (await client.ps()).models
            except ConnectionError:
                return
        for one in models:
            for_ever = one.expires_at is not None and one.expires_at.year > FOR_EVER_YEAR
            if listed(one.model or "") == settings.listed and for_ever:
                await _send_away(settings)

    async def close(self) -> None:
        """Nothing goes on in the background."""

    async def load(self, settings: OllamaLevel, progress: Callable[[float], None]) -> OllamaModel:
        """Have Ollama load it, with the level's context window. Raises LevelUnavailable, MissingExtra."""
        self.require()
        progress(0.0)
        asked, ticket, before = False, object(), frozenset[int]()
        try:
            async with _asking(settings, settings.load_timeout_s) as client:
                thinks = "thinking" in ((await client.show(settings.model)).capabilities or ())
                # One that somebody else had loaded has other options, and its process could not be told from others'.
                if await _holds(client, settings):
                    await client.generate(settings.model, keep_alive=0)
                    await _gone(client, settings)
                self._loading[ticket] = before = runners()
                asked = True
                await client.generate(settings.model, keep_alive=ollama_dialect.FOREVER, options=_options(settings))
                if not await _holds(client, settings):
                    now = ", ".join(one.model or "?" for one in (await client.ps()).models) or "nothing"
                    raise LevelUnavailable(
                        f"{_where(settings)}: asked to load it, Ollama has loaded {now}; look at `ollama ps`"
                    )
                # In a thread: it looks at every process of the machine.
                known = frozenset(model.pid for model in self._loaded)
                pid = await asyncio.to_thread(_new_runner, settings, before | known)
                model = OllamaModel(settings, pid, thinks, self)
                self._loaded.add(model)
        except BaseException:
            # Cancelled, or not what was asked for: nothing may stay behind that nobody knows of.
            if asked:
                await asyncio.shield(self._clear(settings, before))
            raise
        finally:
            self._loading.pop(ticket, None)
        progress(1.0)
        return model

    async def _clear(self, settings: OllamaLevel, before: frozenset[int]) -> None:
        """Have unloaded what came of a load, which counts as ours until it has ended."""
        await _let_go(settings)
        # Ollama lists no model that it still loads, and ends its process a moment after the client has hung up.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_S):
                for pid in runners() - before - {model.pid for model in self._loaded}:
                    await gone(pid)

    def forget(self, model: OllamaModel) -> None:
        """It is not ours any more."""
        self._loaded.discard(model)

    def has(self, settings: OllamaLevel, *, besides: OllamaModel) -> bool:
        """Whether Ollama's one copy of the level's model is one of ours, other than the one given."""
        return any(model is not besides and not self.apart(settings, model.settings) for model in self._loaded)


class OllamaModel:
    """A level that Ollama has loaded."""

    def __init__(self, settings: OllamaLevel, pid: int, thinks: bool, runtime: OllamaRuntime) -> None:
        """``thinks``: whether the model can be told to think; Ollama refuses to tell one that cannot."""
        self.settings, self._thinks, self._runtime = settings, thinks, runtime
        self.pid = pid
        """The process that holds it."""
        # With the Ollama that has it, where that can be told: one that crashes leaves the process behind.
        self._processes = (pid,) if (holder := parent(pid)) is None else (pid, holder)
        self._asked_to_go = False
        self._server = ModelServer(
            _where(settings),
            settings.address,
            answers=settings.parallel,
            calls=CALLS,
            why_gone=self._why_gone,
            headers=authorization(settings),
            passes_on=True,
        )

    @property
    def name(self) -> str:
        """The level's name."""
        return self.settings.name

    def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream the answer's chunks; raises LevelUnavailable, RequestRejected."""
        body = ollama_dialect.chat(request, self.settings.model, _options(self.settings))
        if not self._thinks:
            body.pop("think", None)
        return self._server.stream("/api/chat", body, _LineReader(self.name, plain=False))

    def complete(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream what follows the prompt; raises LevelUnavailable, RequestRejected."""
        body = ollama_dialect.completion(request, self.settings.model, _options(self.settings))
        return self._server.stream("/api/generate", body, _LineReader(self.name, plain=True))

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Estimated from the length of the text: Ollama has no way to ask."""
        return estimated_tokens(request)

    async def health(self) -> bool:
        """Whether Ollama answers, and the model is in its place."""
        return self._held() and await self._server.well("/api/version")

    async def died(self) -> str:
        """Wait until the model is gone unasked; return what can be told of it."""
        await gone(*self._processes)
        if self._asked_to_go:
            await asyncio.get_running_loop().create_future()
        return f"{_where(self.settings)}: {self._end()}; Ollama's log says more"

    async def unload(self) -> None:
        """Have Ollama unload it; its memory is back when this returns. Raises LevelUnavailable when it will not."""
        self._asked_to_go = True
        await self._server.close()
        if not self._held():
            self._runtime.forget(self)
            if not self._runtime.has(self.settings, besides=self):
                # A request that was on its way when it went has had Ollama load it again, to stay.
                await _let_go(self.settings)
            if runs(self.pid):
                raise LevelUnavailable(f"{_where(self.settings)}: {self._end()} (process {self.pid}); end that")
            return
        try:
            async with _asking(self.settings, ASK_S) as client:
                await client.generate(self.settings.model, keep_alive=0)
            if not await gone_within(UNLOAD_S, self.pid):
                raise _stays(self.settings)
            if not self._runtime.has(self.settings, besides=self):
                async with _asking(self.settings, ASK_S + UNLOAD_S) as client:
                    await _gone(client, self.settings)
        except LevelUnavailable:
            # What Ollama holds now is no level's any more, and counts as the others'.
            self._runtime.forget(self)
            raise
        self._runtime.forget(self)

    async def _why_gone(self) -> str | None:
        return self._end() if await gone_within(GONE_S, *self._processes) else None

    def _held(self) -> bool:
        """Whether it is loaded still: its process runs, and the Ollama that has it."""
        return all(map(runs, self._processes))

    def _end(self) -> str:
        """Why it is not held any more."""
        return "Ollama ended and left its process behind" if runs(self.pid) else GONE


class _LineReader:
    """Reads Ollama's form: an object a line."""

    def __init__(self, level: str, *, plain: bool) -> None:
        import orjson

        self._loads, self._lines = orjson.loads, LineStream(EVENT_LIMIT_BYTES)
        self._said = ollama_dialect.Lines(level, plain=plain, created_s=int(time.time()), identity=uuid.uuid4().hex)
        self.ended = False

    @property
    def whole(self) -> bool:
        """Whether it has ended: Ollama always says so."""
        return self.ended

    def feed(self, block: bytes) -> Iterator[dict[str, Any]]:
        for line in filter(None, map(bytes.strip, self._lines.feed(block))):
            said = self._loads(line)
            if not isinstance(said, dict):
                raise ValueError(f"it sends a line that is no object: {said!r:.60}")
            if "error" in said:
                yield {"error": {"message": str(said["error"])}}
                return
            yield from self._said.feed(said)
            if said.get("done"):
                self.ended = True
                return


def _new_runner(settings: OllamaLevel, before: frozenset[int]) -> int:
    """The process that has come for the level. Raises LevelUnavailable where none is surely its."""
    new = runners() - before
    if len(new) > 1 and (server := listener(settings.url.port or 0, settings.url.host)) is not None:
        # Another Ollama on this machine may have loaded something, too.
        new &= below(server)
    if len(new) != 1:
        raise LevelUnavailable(
            f"{_where(settings)}: loaded, but of {len(new)} new processes of Ollama's none is surely its, so "
            "its memory cannot be told; run Ollama on this machine, outside of containers, and load nothing else "
            "meanwhile; or this version of Ollama names its processes differently"
        )
    return next(iter(new))


def _where(settings: OllamaLevel) -> str:
    return f"{settings.name}: {settings.model} of Ollama at {settings.address}"


def _options(settings: OllamaLevel) -> dict[str, Any]:
    """What a model is loaded with; a request with other options would have Ollama load it anew."""
    layers = {} if settings.num_gpu is None else {"num_gpu": settings.num_gpu}
    # Pages of a mapped file do not show as used, so that scaler could not see them.
    return {"num_ctx": settings.context_tokens, "use_mmap": False, **layers}


@contextlib.asynccontextmanager
async def _asking(settings: OllamaLevel, within_s: float) -> AsyncIterator[ollama.AsyncClient]:
    """Ollama's client, for so many seconds in all. Whatever goes wrong with it is LevelUnavailable."""
    import ollama

    with _Explained(settings):
        # Of no use is a proxy that the environment names: Ollama is on this machine.
        async with (
            # The client's own limit is for each piece of an answer.
            asyncio.timeout(within_s),
            ollama.AsyncClient(
                host=settings.address,
                timeout=within_s,
                trust_env=False,
                follow_redirects=False,
                headers=authorization(settings),
            ) as client,
        ):
            yield client


async def _holds(client: ollama.AsyncClient, settings: OllamaLevel) -> bool:
    return any(listed(one.model or "") == settings.listed for one in (await client.ps()).models)


async def _gone(client: ollama.AsyncClient, settings: OllamaLevel) -> None:
    """Wait until Ollama does not list it any more. Raises LevelUnavailable when it stays."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(UNLOAD_S):
            while True:
                if not await _holds(client, settings):
                    return
                await asyncio.sleep(LOOK_EVERY_S)
    raise _stays(settings)


def _stays(settings: OllamaLevel) -> LevelUnavailable:
    return LevelUnavailable(
        f"{_where(settings)}: told to unload it, Ollama still holds it after {UNLOAD_S:g} s; "
        f"try `ollama stop {settings.model}`"
    )


async def _let_go(settings: OllamaLevel) -> None:
    """Have it unloaded as far as that can be: why it is not wanted is told already, which says more than a failure."""
    with contextlib.suppress(LevelUnavailable):
        await _send_away(settings)


async def _send_away(settings: OllamaLevel) -> None:
    """Have it unloaded, and wait until it is. Raises LevelUnavailable."""
    # An Ollama that hangs is waited for no longer than one that is asked anything else.
    async with _asking(settings, ASK_S) as client:
        await client.generate(settings.model, keep_alive=0)
    async with _asking(settings, ASK_S + UNLOAD_S) as client:
        await _gone(client, settings)


class _Explained(contextlib.AbstractContextManager[None]):
    """Makes LevelUnavailable of what Ollama's client raises, with what to do about it."""

    def __init__(self, settings: OllamaLevel) -> None:
        self.settings = settings

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        import httpx
        import ollama
        import pydantic

        where = _where(self.settings)
        if isinstance(error, ollama.ResponseError):
            raise LevelUnavailable(f"{where}: {_refused(self.settings, error)}") from error
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            raise LevelUnavailable(
                f"{where}: no answer in time; look at Ollama's log, or raise load_timeout_s"
            ) from error
        if isinstance(error, httpx.HTTPError | ConnectionError):
            why = in_words(str(error)) or type(error).__name__
            raise LevelUnavailable(f"{where}: Ollama does not answer ({why}); start it with `ollama serve`") from error
        if isinstance(error, pydantic.ValidationError | ValueError | TypeError | AttributeError | RecursionError):
            raise LevelUnavailable(f"{where}: {_foreign(why_broken(error))}") from error


def _refused(settings: OllamaLevel, error: ollama.ResponseError) -> str:
    """What an error that was answered means, and what to do about it."""
    status, words = error.status_code, in_words(str(error.error))
    if status in WANT_KEY:
        return f"Ollama answered {status}: {wants_key(settings)}"
    if status == 404:
        if words.startswith(OF_THE_MODEL):
            return f"Ollama has no such model; pull it with `ollama pull {settings.model}`"
        return _foreign(f"404: {words}")
    if status < 400:
        return f"it answered {status}: {sent_elsewhere(None)}"
    return f"Ollama answered {status}: {words}"


def _foreign(detail: str) -> str:
    return f"what answers there does not speak Ollama's API ({detail}); correct the level's url"
