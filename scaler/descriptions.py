"""What is known of a level's model without loading it: data only. Runtimes find it out, the HTTP face tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVERYTHING = ("completion", "tools", "vision", "thinking")
"""What a model can do of which nothing is known: its server refuses by itself what it cannot."""


@dataclass(frozen=True, slots=True)
class Description:
    """A model, as its file describes it; None where the file does not say, or cannot be read."""

    file: Path | str
    """Where it is: a file, or what the runtime calls it."""
    context_tokens: int
    """The context window of one request, as configured."""
    size_bytes: int | None = None
    """Of the file, or of all its parts."""
    modified_s: float | None = None
    """When the file was last written, in seconds since the epoch."""
    format: str | None = None
    family: str | None = None
    """The architecture."""
    weights: int | None = None
    """How many there are."""
    quantization: str | None = None
    """As llama.cpp calls it, such as ``Q4_K_M``."""
    chat_template: str | None = None
    capabilities: tuple[str, ...] | None = None
    """What it can do, in Ollama's words: completion, tools, vision, thinking. None where only its template tells."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says of itself, without its long lists."""
