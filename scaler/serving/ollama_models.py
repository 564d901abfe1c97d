"""The levels as Ollama describes models: what it lists, shows, and has loaded. Pure: descriptions in, objects out.

What is not known of a model is told as Ollama tells it, and not left out: there are languages in which a list is not
read at all when one entry lacks a field.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from scaler.descriptions import Description
from scaler.serving.ollama_answers import timestamp

TAG = ":latest"
"""What Ollama's programs add to a name that has no tag of its own."""
COMPLETION = "completion"
VISION = "vision"
NEVER = "2300-01-01T00:00:00Z"
"""When a level is unloaded for having been idle. As with Ollama's ``keep_alive: -1`` it is a moment that nobody lives
to see, because programs take one that is missing for one that has passed."""
UNKNOWN = "unknown"
"""Ollama's word for how large a model is, and how it was quantized, where its file does not say."""
NO_TIME = "0001-01-01T00:00:00Z"
"""What Ollama tells as the time of something that has none."""
THOUSAND, MILLION, BILLION = 10**3, 10**6, 10**9


def tagged(name: str) -> str:
    """A name as Ollama's programs expect it in a list."""
    return name if ":" in name else name + TAG


def untagged(name: str) -> str:
    """The name without the tag that stands for none."""
    return name.removesuffix(TAG)


def listed(name: str, model: Description, able: Collection[str], context_tokens: int) -> dict[str, Any]:
    """An entry of ``/api/tags``: ``model`` is what there is to tell, ``able`` and ``context_tokens`` what is sure."""
    embedding = model.metadata.get(f"{model.family}.embedding_length")
    return {
        "name": tagged(name),
        "model": tagged(name),
        "modified_at": _when(model.modified_s),
        "size": model.size_bytes or 0,
        "digest": _digest(model),
        "details": {
            **_details(model),
            "context_length": context_tokens,
            **({} if embedding is None else {"embedding_length": embedding}),
        },
        "capabilities": list(able),
    }


def loaded(name: str, model: Description, ram_bytes: int, gpu_bytes: int) -> dict[str, Any]:
    """An entry of ``/api/ps``."""
    return {
        "name": tagged(name),
        "model": tagged(name),
        "size": ram_bytes + gpu_bytes,
        "digest": _digest(model),
        "details": _details(model),
        "expires_at": NEVER,
        "size_vram": gpu_bytes,
        "context_length": model.context_tokens,
    }


def shown(model: Description, able: Collection[str], context_tokens: int) -> dict[str, Any]:
    """The answer of ``/api/show``: ``model`` is what there is to tell, ``able`` and ``context_tokens`` what is sure."""
    return {
        "modelfile": f"FROM {model.file}\nPARAMETER num_ctx {context_tokens}\n",
        "parameters": f"{'num_ctx':<30} {context_tokens}",
        **({} if model.chat_template is None else {"template": model.chat_template}),
        "details": _details(model),
        "model_info": _info(model),
        "capabilities": list(able),
        "modified_at": _when(model.modified_s),
    }


def capabilities(model: Description) -> tuple[str, ...]:
    """What programs may ask of the model, as its runtime says, or as far as its chat template tells."""
    if model.capabilities is not None:
        return (COMPLETION, *(one for one in model.capabilities if one != COMPLETION))
    template = model.chat_template or ""
    return (
        COMPLETION,
        *(("tools",) if "tools" in template else ()),
        *(("thinking",) if any(word in template for word in ("enable_thinking", "reasoning_effort")) else ()),
    )


def _details(model: Description) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": model.format or "",
        "family": model.family or "",
        "families": None if model.family is None else [model.family],
        "parameter_size": UNKNOWN if model.weights is None else _size(model.weights),
        "quantization_level": model.quantization or UNKNOWN,
    }


def _info(model: Description) -> Mapping[str, Any]:
    # JSON knows no infinite numbers.
    known = {k: v for k, v in model.metadata.items() if not isinstance(v, float) or math.isfinite(v)}
    return known if model.weights is None else {**known, "general.parameter_count": model.weights}


def _digest(model: Description) -> str:
    """What tells one file from another: of its name, size and time, for to read all of it takes minutes."""
    of = f"{model.file}\0{model.size_bytes}\0{model.modified_s}"
    return hashlib.sha256(of.encode(errors="surrogateescape")).hexdigest()


def _size(weights: int) -> str:
    """As Ollama writes it: ``8.0B``, ``494.03M``."""
    if weights >= BILLION:
        return f"{weights / BILLION:.1f}B"
    if weights >= MILLION:
        return f"{weights / MILLION:.2f}M"
    return f"{weights / THOUSAND:.0f}K" if weights >= THOUSAND else str(weights)


def _when(seconds: float | None) -> str:
    return NO_TIME if seconds is None else timestamp(datetime.fromtimestamp(seconds, UTC))
