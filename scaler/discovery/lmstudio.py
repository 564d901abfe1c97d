"""LM Studio, by what it lists. Nothing is loaded for it.

Source: https://lmstudio.ai/docs/developer/rest
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from scaler.discovery.asking import Asking, each
from scaler.discovery.estimates import serving_bytes
from scaler.discovery.found import (
    CONTEXT_TOKENS,
    LEAST_CONTEXT_TOKENS,
    PARALLEL,
    LeftOut,
    Model,
    Source,
    fault_of,
    printable,
)
from scaler.discovery.kinds import EMBEDS, answers_nobody
from scaler.discovery.openai import Listed as Plain
from scaler.discovery.openai import routed
from scaler.runtimes.lmstudio_rest import LIST, TOO_OLD, Listed

RUNTIME = "lmstudio"


class _Models(BaseModel):
    models: list[Any]


class _Unexpected(BaseModel):
    error: str


_MODELS, _UNEXPECTED, _LISTED = TypeAdapter(_Models), TypeAdapter(_Unexpected), TypeAdapter(Listed)
_ANSWER: TypeAdapter[_Models | _Unexpected] = TypeAdapter(_Models | _Unexpected)


async def look(asking: Asking, _: Sequence[Plain] | None) -> Source | None:
    """The place as LM Studio; None where it is none."""
    answer = await asking.get(LIST, _ANSWER)
    place = asking.place
    if isinstance(answer, _Unexpected):
        # LM Studio's words for a path that it does not know, with 200 as if it did.
        old = "Unexpected endpoint" in answer.error
        return Source("LM Studio", place.url, note=f"{TOO_OLD}: it cannot be told to load models") if old else None
    entries = [] if answer is None else each(_LISTED, answer.models)
    if answer is None or (answer.models and not entries):
        return None
    if not place.near:
        note = "on another machine, whose memory cannot be watched: scaler can only send requests there"
        names = [Plain(id=entry.key) for entry in entries if entry.type != "embedding"]
        return routed(place, "LM Studio", names, note)
    judged = [_judged(entry, place.root, place.key_env) for entry in entries]
    models = tuple(one for one in judged if isinstance(one, Model))
    return Source("LM Studio", place.url, models, tuple(one for one in judged if isinstance(one, LeftOut)))


def _judged(entry: Listed, url: str, key_env: str | None) -> Model | LeftOut:
    name = printable(entry.key)
    if entry.type == "embedding":
        return LeftOut(name, EMBEDS)
    if why := fault_of(entry.key) or answers_nobody(entry.key):
        return LeftOut(name, why)
    most = entry.max_context_length or CONTEXT_TOKENS
    if most < LEAST_CONTEXT_TOKENS:
        return LeftOut(name, f"its context window has {most} tokens only")
    if not entry.size_bytes:
        return LeftOut(name, "LM Studio does not say how large it is")
    context = min(CONTEXT_TOKENS, most)
    # All requests share one window, which is no longer than the model's.
    window = context * PARALLEL if entry.max_context_length is None else min(context * PARALLEL, most)
    quantization = entry.quantization.name if entry.quantization else None
    about = printable(" ".join(filter(None, (entry.params_string, quantization))), 30)
    serving = serving_bytes(entry.size_bytes, entry.weights, window)
    return Model(RUNTIME, entry.key, serving, url, context, about, key_env=key_env)
