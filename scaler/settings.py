"""The schema of the YAML, its loading, and messages that name file, line, key and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A mapping in the YAML: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LevelSettings(Section):
    """One level of the ladder, as the person writes it."""

    name: str
    """What people and programs call this level."""
    runtime: Literal["embedded"] = "embedded"
    """What loads it."""
    model: Path
    """The GGUF file; ~ is the home directory, a relative path is relative to the configuration file."""
    quality: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How good its answers are, in the person's own judgement, 0..1."""
    ram_gib: Annotated[float, Field(gt=0)] | None = None
    """What it takes of RAM when serving, in GiB; estimated from the file when left out."""
    vram_gib: Annotated[float, Field(ge=0)] = 0.0
    """What it takes of GPU memory when serving, in GiB."""
    gpu: Annotated[int, Field(ge=0)] = 0
    """Which GPU that is."""
    load_s: Annotated[float, Field(gt=0)] = 5.0
    """How long loading is expected to take, in seconds; learned once it was loaded."""
    load_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """After how many seconds a load counts as failed."""
    context_tokens: Annotated[int, Field(ge=256)] = 4096
    """The context window of one request, in tokens."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 2
    """How many requests are answered at the same time; each has its own context window."""
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
