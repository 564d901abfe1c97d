"""llama.cpp's llama-server, by what it says of itself: with one model, or as a router of several. Nothing is loaded.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, TypeAdapter

from scaler.discovery import gguf_files
from scaler.discovery.asking import Asking, each
from scaler.discovery.found import (
    CONTEXT_TOKENS,
    LEAST_CONTEXT_TOKENS,
    LeftOut,
    Model,
    Source,
    fault_of,
    printable,
)
from scaler.discovery.kinds import answers_nobody
from scaler.discovery.openai import Count, Text, routed
from scaler.discovery.openai import Listed as Plain
from scaler.discovery.places import Place
from scaler.runtimes.gguf_size import CACHE_BLOCK_BYTES as CACHES
from scaler.runtimes.listeners import listener
from scaler.runtimes.llama_router_control import Listed, Status

ROUTER = "llama-router"
ONE_MODEL = (
    "it keeps its one model loaded, so that scaler can only send requests there; as a router (llama-server "
    "--models-dir FOLDER) it would load and unload as it is told"
)

WINDOW = "--ctx-size"
DIGITS = 9
"""No window and no number of slots has more; Python refuses to read thousands of them."""
WHOLE_WINDOW = (
    "started without --ctx-size it loads each model with all of the window that the model was made for; started with "
    "--ctx-size 8192 they take much less"
)


class _Defaults(BaseModel):
    n_ctx: Count = None


class _Props(BaseModel):
    default_generation_settings: _Defaults
    model_path: str
    role: Text = ""


class _Models(BaseModel):
    data: list[Any]


_PROPS, _MODELS, _LISTED = TypeAdapter(_Props), TypeAdapter(_Models), TypeAdapter(Listed)


async def look(asking: Asking, models: Sequence[Plain] | None) -> Source | None:
    """The place as a llama-server; None where it is none."""
    props = await asking.get("/props", _PROPS)
    if props is None or models is None:
        return None
    place = asking.place
    if props.role != "router":
        window = props.default_generation_settings.n_ctx
        listed = [model.model_copy(update={"max_model_len": window}) for model in models]
        return routed(place, "llama-server", listed, ONE_MODEL if place.near else "")
    if not place.near:
        note = "on another machine, whose memory cannot be watched: scaler can only send requests there"
        return routed(place, "llama-server (router)", models, note)
    answer = await asking.get("/models", _MODELS)
    entries = [] if answer is None else each(_LISTED, answer.data)
    folder = await asyncio.to_thread(_folder, place.port)
    judged = [await asyncio.to_thread(_judged, entry, place, folder) for entry in entries]
    usable = tuple(one for one in judged if isinstance(one, Model))
    left_out = tuple(one for one in judged if isinstance(one, LeftOut))
    unbounded = any(entry.status.argument(WINDOW) is None for entry in entries)
    return Source("llama-server (router)", place.url, usable, left_out, WHOLE_WINDOW if unbounded else "")


def _judged(entry: Listed, place: Place, folder: Path) -> Model | LeftOut:
    """``folder`` is the one that the router was started in."""
    name, status = printable(entry.id), entry.status
    if why := fault_of(entry.id) or answers_nobody(entry.id):
        return LeftOut(name, why)
    file = status.argument("--model")
    if file is None:
        return LeftOut(name, "the router does not say where its file is, so that its size is not known")
    told, slots, kv_cache = _count(status, WINDOW), _count(status, "--parallel"), status.argument("--cache-type-k")
    model = gguf_files.examined(folder / file, tokens=told, kv_cache=kv_cache if kv_cache in CACHES else "f16")
    if isinstance(model, LeftOut):
        return LeftOut(name, model.why)
    # Each slot has its part of a window that was divided on purpose, else all share the whole.
    window = told // slots if told and slots else CONTEXT_TOKENS
    if window < LEAST_CONTEXT_TOKENS:
        return LeftOut(name, f"the router gives a request {window} tokens only")
    context = min(model.context_tokens, window)
    return replace(model, runtime=ROUTER, name=entry.id, url=place.root, key_env=place.key_env, context_tokens=context)


def _count(status: Status, argument: str) -> int:
    """The number behind an argument; 0 for none."""
    value = status.argument(argument) or ""
    return int(value) if value.isdecimal() and len(value) <= DIGITS else 0


def _folder(port: int) -> Path:
    """The folder that whoever listens was started in; this one where that cannot be told."""
    pid = listener(port)
    try:
        return Path(psutil.Process(pid).cwd()) if pid is not None else Path()
    except psutil.Error:
        return Path()
