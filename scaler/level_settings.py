"""One level of the ladder as the person writes it, for each runtime: what it takes, how it is loaded.

Data only. A new runtime has its class here, whose ``runtime`` names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, HttpUrl, Tag

from scaler.documents import Section


class LevelSettings(Section):
    """What a level has whatever loads it."""

    name: str
    """What people and programs call this level."""
    quality: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How good its answers are, in the person's own judgement, 0..1."""
    ram_gib: Annotated[float, Field(gt=0)] | None = None
    """What it takes of RAM when serving, in GiB; estimated when left out, where the runtime can."""
    vram_gib: Annotated[float, Field(ge=0)] = 0.0
    """What it takes of GPU memory when serving, in GiB."""
    gpu: Annotated[int, Field(ge=0)] = 0
    """Which GPU that is."""
    load_s: Annotated[float, Field(gt=0)] = 5.0
    """How long loading is expected to take, in seconds; learned once it was loaded."""
    load_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """After how many seconds a load counts as failed."""
    standby: bool = False
    """Keep it loaded beside the larger levels: stepping down to it costs no loading then, and they take more memory."""
    context_tokens: Annotated[int, Field(ge=256)] = 4096
    """The context window of one request, in tokens."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 2
    """How many requests are answered at the same time; each has its own context window."""


class EmbeddedLevel(LevelSettings):
    """A GGUF file that scaler loads with its own llama.cpp, in a process of its own."""

    runtime: Literal["embedded"] = "embedded"
    """What loads it."""
    model: Path
    """The GGUF file; ~ is the home directory, a relative path is relative to the configuration file."""
    kv_cache: Literal["f16", "q8_0", "q4_0"] = "f16"
    """How the key-value cache holds its figures: q8_0 takes about half of the memory of f16, q4_0 about a quarter."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Processor threads for generation; half of the cores when left out, at least one."""
    gpu_layers: Annotated[int, Field(ge=0)] = 0
    """How many layers go onto the GPU."""
    mmap: bool = False
    """Map the file instead of reading it. Mapped pages do not show as used, so scaler cannot see them."""
    check_tensors: bool = True
    """Check the weights while loading: a corrupted file otherwise loads and answers garbage."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Loopback port of the model's server; a private unix socket when left out."""


class OllamaLevel(LevelSettings):
    """A model that Ollama loads and unloads as scaler tells it."""

    runtime: Literal["ollama"]
    """What loads it."""
    url: HttpUrl = HttpUrl("http://127.0.0.1:11434")
    """Where Ollama listens."""
    model: Annotated[str, Field(min_length=1)]
    """What Ollama calls the model, such as llama3.2:3b."""
    num_gpu: Annotated[int, Field(ge=0)] | None = None
    """How many layers go onto the GPU; as Ollama decides when left out."""

    @property
    def listed(self) -> str:
        """The model as Ollama lists it, in small letters, for Ollama does not tell them from capitals."""
        return listed(self.model)


def listed(model: str) -> str:
    """A model's name, however it was written, as Ollama lists it, in small letters."""
    short = model.casefold().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


AnyLevel = EmbeddedLevel | OllamaLevel
"""A level of any runtime."""


def _runtime_of(level: Any) -> Any:
    return level.get("runtime", "embedded") if isinstance(level, dict) else getattr(level, "runtime", None)


LevelOfRuntime = Annotated[
    Annotated[EmbeddedLevel, Tag("embedded")] | Annotated[OllamaLevel, Tag("ollama")],
    Discriminator(_runtime_of),
]
"""What a level in the YAML is read as: ``runtime`` says which."""
