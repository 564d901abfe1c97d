"""Ollama, by what it lists. Nothing is loaded for it.

Source: https://docs.ollama.com/api
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from scaler.discovery.asking import Asking, each
from scaler.discovery.estimates import serving_bytes
from scaler.discovery.found import CONTEXT_TOKENS, PARALLEL, LeftOut, Model, Source, fault_of, printable
from scaler.discovery.kinds import answers_nobody
from scaler.discovery.openai import Count, Listed, Text, routed
from scaler.runtimes.lmstudio_size import weights_named

RUNTIME = "ollama"
NOT_OLLAMA = {"koboldcpp"}
"""Families by which servers show that they only speak Ollama's language, and load nothing."""


class _Version(BaseModel):
    version: str


class _Details(BaseModel):
    family: Text = ""
    parameter_size: Text = ""
    quantization_level: Text = ""


class _Tag(BaseModel):
    name: str
    size: Count = None
    remote_host: Text = ""
    details: _Details = _Details()


class _Tags(BaseModel):
    models: list[Any]


_VERSION, _TAGS, _TAG = TypeAdapter(_Version), TypeAdapter(_Tags), TypeAdapter(_Tag)


async def look(asking: Asking, _: Sequence[Listed] | None) -> Source | None:
    """The place as Ollama; None where it is none."""
    version = await asking.get("/api/version", _VERSION)
    if version is None or (tags := await asking.get("/api/tags", _TAGS)) is None:
        return None
    entries = each(_TAG, tags.models)
    if any(entry.details.family in NOT_OLLAMA for entry in entries):
        return None
    place, what = asking.place, f"Ollama {printable(version.version, 20)}"
    if not place.near:
        note = "on another machine, whose memory cannot be watched: scaler can only send requests there"
        return routed(place, what, [Listed(id=entry.name) for entry in entries], note)
    judged = [_judged(entry, place.root, place.key_env) for entry in entries]
    models = tuple(one for one in judged if isinstance(one, Model))
    return Source(what, place.url, models, tuple(one for one in judged if isinstance(one, LeftOut)))


def _judged(entry: _Tag, url: str, key_env: str | None) -> Model | LeftOut:
    name, details = printable(entry.name), entry.details
    if why := fault_of(entry.name) or answers_nobody(entry.name, details.family):
        return LeftOut(name, why)
    if entry.remote_host:
        return LeftOut(name, "Ollama has it answered by another machine")
    if entry.size is None:
        return LeftOut(name, "Ollama does not say how large it is")
    serving = serving_bytes(entry.size, weights_named(details.parameter_size), CONTEXT_TOKENS * PARALLEL)
    about = printable(" ".join(filter(None, (details.parameter_size, details.quantization_level))), 30)
    return Model(RUNTIME, entry.name, serving, url, about=about, key_env=key_env)
