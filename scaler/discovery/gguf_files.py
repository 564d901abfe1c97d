"""GGUF files in the folders where people's programs keep them, for scaler's own llama.cpp. Only their headers are read.

Bounded in number, depth and time: a folder may be a whole disk.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler import paths
from scaler.absent import NO_SUCH_FILE, no_file, reason
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
from scaler.discovery.kinds import EMBEDS, PROJECTS, RANKS, answers_nobody
from scaler.errors import LevelUnavailable
from scaler.runtimes.gguf_description import FILE_TYPES
from scaler.runtimes.gguf_size import read_metadata, serving_bytes

RUNTIME = "embedded"
FILES, NO_FILE = "GGUF files", "no GGUF file"
DEEP, SHALLOW = 6, 1
"""So many folders below the one that is looked into: a cache of Hugging Face's takes five, the current folder may be a
whole disk."""
MOST_FILES = 200
LOOK_S = 5.0
"""For so long files are looked for and into; a header with a large vocabulary takes a tenth of a second."""
LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
"""How the second and later files of a model in several parts end; the first one stands for all."""
VOCABULARY = "tokenizer.ggml.tokens"
RANK = 4
"""What pooling_type is for rerankers. Source: llama_pooling_type of llama.cpp."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder to look into, and how many folders deep. ``named``: a person named it, and is told where nothing is."""

    path: Path
    depth: int = DEEP
    named: bool = False


def usual(environment: Mapping[str, str]) -> list[Folder]:
    """Where llama.cpp, Hugging Face's tools, LM Studio and people keep models, and the current folder.

    Sources: https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables, and llama.cpp's
    fs_get_cache_directory.
    """
    home = Path.home()
    hub = environment.get("HF_HUB_CACHE") or f"{environment.get('HF_HOME') or home / '.cache/huggingface'}/hub"
    return [
        Folder(Path(environment.get("LLAMA_CACHE") or home / ".cache/llama.cpp")),
        Folder(home / "Library/Caches/llama.cpp"),
        Folder(Path(hub)),
        Folder(home / ".lmstudio/models"),
        Folder(home / "models"),
        Folder(Path(), SHALLOW),
    ]


def look(folders: Sequence[Folder], clock: Callable[[], float] = time.monotonic) -> list[Source]:
    """What GGUF files there are, by folder; of folders without any those that a person named are told.

    ``clock`` is in monotonic seconds.
    """
    until, seen, sources = clock() + LOOK_S, set[str](), []

    def enough() -> bool:
        return clock() >= until or len(seen) >= MOST_FILES

    for folder in folders:
        judged: list[Model | LeftOut] = []
        empty = True
        for path in _files(folder, enough):
            empty = False
            # Caches keep a file once, under several names.
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                judged.append(examined(path))
        note = f"not all of it was looked at: {MOST_FILES} files and {LOOK_S:g} s are the most" if enough() else ""
        models = tuple(one for one in judged if isinstance(one, Model))
        left_out = tuple(one for one in judged if isinstance(one, LeftOut))
        where = printable(at_home(folder.path))
        if judged or (note and not _no_folder(folder.path)):
            sources.append(Source(FILES, where, models, left_out, note))
        elif empty and folder.named:
            sources.append(Source(NO_FILE, where, note=_no_folder(folder.path)))
    return sources


def examined(path: Path, *, tokens: int | None = None, kv_cache: str = "f16") -> Model | LeftOut:
    """The file as a model, or why it is none.

    Its cache is for ``tokens``, 0 for as many as the model was made for; for what a level takes when left out.
    """
    name = at_home(path)
    shown = printable(name)
    if why := no_file(path):
        return LeftOut(shown, why)
    try:
        metadata = read_metadata(path)
    except OSError as error:
        return LeftOut(shown, reason(error))
    except ValueError as error:
        return LeftOut(shown, f"not a whole GGUF file ({printable(str(error))})")
    if unfit := fault_of(name) or _unfit(path, metadata):
        return LeftOut(shown, unfit)
    architecture = metadata["general.architecture"]
    most = metadata.get(f"{architecture}.context_length")
    window = most if isinstance(most, int) and most > 0 else CONTEXT_TOKENS
    context = min(CONTEXT_TOKENS, window)
    if context < LEAST_CONTEXT_TOKENS:
        return LeftOut(shown, f"its context window has {context} tokens only")
    cached = max(context * PARALLEL, 0 if tokens is None else tokens or window)
    try:
        serving = serving_bytes(name, path, cached, 1, kv_cache)
    except LevelUnavailable as error:
        return LeftOut(shown, printable(str(error).removeprefix(f"{name}: "), 200))
    label, kind = metadata.get("general.size_label"), metadata.get("general.file_type")
    words = (label if isinstance(label, str) else "", FILE_TYPES.get(kind, "") if isinstance(kind, int) else "")
    return Model(RUNTIME, name, serving, context_tokens=context, about=printable(" ".join(filter(None, words)), 30))


def at_home(path: Path) -> str:
    """A path as people write it: absolute, with ~ for their home."""
    absolute = path.absolute()
    home = Path.home()
    return (
        f"~/{absolute.relative_to(home).as_posix()}"
        if absolute != home and absolute.is_relative_to(home)
        else str(absolute)
    )


def _files(folder: Folder, enough: Callable[[], bool]) -> Iterator[Path]:
    """The model files in a folder and below until it is enough; of several parts the first, which stands for all."""
    top = str(folder.path)
    for place, folders, names in os.walk(top):
        if enough():
            return
        if Path(place) == paths.demo_models():
            names.clear()
        below = 0 if place == top else os.path.relpath(place, top).count(os.sep) + 1
        # Hidden ones are programs' own.
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if below < folder.depth else []
        for name in sorted(names):
            if enough():
                return
            path = Path(place, name)
            # One that may not be looked at is a file, as far as anybody knows.
            if name.endswith(".gguf") and not LATER_PART.search(name) and no_file(path) != NO_SUCH_FILE:
                yield path


def _no_folder(path: Path) -> str:
    """Why there is nothing to look into; empty for a folder."""
    if not no_file(path):
        return "it is a file; name the folder that it is in"
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        return "there is no such folder"
    except OSError as error:
        return reason(error)
    return ""


def _unfit(path: Path, metadata: Mapping[str, Any]) -> str | None:
    """Why a file is no level, by what it says of itself."""
    architecture = metadata.get("general.architecture")
    if architecture == "clip" or metadata.get("general.type") == "mmproj":
        return PROJECTS
    if not isinstance(architecture, str) or VOCABULARY not in metadata:
        return "no language model: it has no vocabulary"
    if pooling := metadata.get(f"{architecture}.pooling_type"):
        return RANKS if pooling == RANK else EMBEDS
    return answers_nobody(path.name, architecture)
