"""What a GGUF file will take of memory when it serves, estimated from its metadata.

Reads headers only, with a reader of its own: the one of the package gguf takes 12 s for a vocabulary of 128,000
tokens, this one a tenth of a second. Knows nothing of who loads the file.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scaler.absent import no_file, reason
from scaler.errors import LevelUnavailable

T = TypeVar("T")

OVERHEAD_BYTES = 32 * 1024**2
"""What the process takes besides weights, cache and buffers."""
BATCH_TOKENS = 512
"""How many tokens llama.cpp computes at once by default (n_ubatch)."""
CACHE_BLOCK = 32
"""So many figures of a quantised key-value cache stand in one block; a row of a head must be whole blocks."""
CACHE_BLOCK_BYTES = {"f16": 64, "q8_0": 34, "q4_0": 18}
"""Bytes of a block: one figure after the other, or one scale of 16 bits and 8 or 4 bits a figure.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, block_q8_0 and block_q4_0.
"""
PART = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")
"""How the first file of a model in several parts is called; llama.cpp loads the others by itself."""

LIST_LENGTH = 4096
"""Longer lists are skipped: those of interest have one figure a layer."""
STRING_BYTES = 16 * 1024**2
"""No key or chat template is nearly as long."""
MAX_DIMENSIONS = 4
"""Of a tensor. Source: GGML_MAX_DIMS."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


def weights_bytes(name: str, path: Path) -> int:
    """The size of the file, or of all its parts; raises LevelUnavailable when one is missing."""
    for part in parts(path):
        if why := no_file(part):
            raise LevelUnavailable(f"{name}: {part}: {why}; correct the level's model")
    return sum(part.stat().st_size for part in parts(path))


def parts(path: Path) -> list[Path]:
    """The files of a model: the one named, or all of those that belong to it."""
    match = PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[2])
    return [path.with_name(f"{match[1]}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how much memory serving takes besides the weights: rows of figures, by the file's metadata."""

    cached: int
    """How many figures the key-value cache holds for one token."""
    head: int
    """How many of them are one key or value of one head; the largest number that divides both."""
    columns: int
    """How many floats the buffers hold for one token of a batch."""

    def cache_bytes(self, tokens: int, kv_cache: str) -> int:
        """Bytes of a key-value cache for so many tokens; ``kv_cache`` as a level's settings have it."""
        return self.cached * tokens * CACHE_BLOCK_BYTES[kv_cache] // CACHE_BLOCK


def serving_bytes(
    name: str,
    path: Path,
    context_tokens: int,
    parallel: int,
    kv_cache: str = "f16",
    batch_tokens: int = BATCH_TOKENS,
) -> int:
    """Bytes of RAM for weights, the key-value cache of every slot, buffers and the process itself.

    ``batch_tokens``: how many are computed at once.
    Beside what models of 20, 143 and 625 MB held privately after prompts of 600 tokens in every slot, with 4,096 to
    32,768 tokens of cache, it was 14 to 21 MiB too high and never too low, however the cache holds its figures. It is
    much too high for a model that keeps less than the whole context in some layers.
    Raises LevelUnavailable when the file is missing or is no GGUF.
    Source: the cache holds a key and a value for each layer, token and key-value head; the buffers hold a batch of
    floats: about eight rows as wide as the embedding, one of the feed-forward layer, one of the logits.
    """
    weights, shape = weights_bytes(name, path), shape_of(name, path)
    cache = shape.cache_bytes(context_tokens * parallel, kv_cache)
    return weights + cache + 4 * batch_tokens * shape.columns + OVERHEAD_BYTES


def shape_of(name: str, path: Path) -> Shape:
    """The shape that a model's metadata tells; raises LevelUnavailable when the file cannot be read or is no GGUF."""
    try:
        return shape_in(read_metadata(path))
    except OSError as error:
        raise LevelUnavailable(f"{name}: {path}: {reason(error)}; correct the level's model") from error
    except ValueError as error:
        raise LevelUnavailable(f"{name}: {path}: not a whole GGUF file ({error}); download it again") from error


def pools(path: Path) -> bool:
    """Whether the file says how the vectors of tokens become that of a text. Raises ValueError, OSError."""
    metadata = read_metadata(path)
    # 0 says that they do not; a model that was made to talk says nothing.
    return bool(metadata.get(f"{metadata.get('general.architecture')}.pooling_type"))


def shape_in(metadata: Mapping[str, Any]) -> Shape:
    """The shape that a model's metadata tells; raises ValueError for metadata that no model has."""
    architecture = metadata.get("general.architecture")

    def number(key: str) -> int:
        # Ollama names the lists of a model without showing them.
        value = metadata.get(key) or 0
        # Some models have a list of one figure a layer; taking the largest for all errs on the safe side.
        figures = value if isinstance(value, list) else [value]
        if not all(isinstance(figure, int) and figure >= 0 for figure in figures):
            raise ValueError(f"{key} is no count")
        return max(figures, default=0)

    width, heads = number(f"{architecture}.embedding_length"), number(f"{architecture}.attention.head_count")
    key_value_heads = number(f"{architecture}.attention.head_count_kv") or heads
    head_width = width // heads if heads else 0
    key = number(f"{architecture}.attention.key_length") or head_width
    value = number(f"{architecture}.attention.value_length") or head_width
    cached = number(f"{architecture}.block_count") * key_value_heads * (key + value)
    columns = 8 * width + number(f"{architecture}.feed_forward_length") + number("tokenizer.ggml.tokens")
    return Shape(cached, math.gcd(key, value), columns)


def read_metadata(path: Path) -> Mapping[str, Any]:
    """The key-value pairs of a GGUF file; in place of a long list, such as the vocabulary, its `Length`.

    Raises ValueError saying what is wrong, OSError.
    """
    return _read(path, _Header.pairs)


def count_weights(path: Path) -> int:
    """How many weights the tensors of a GGUF file have. Raises ValueError saying what is wrong, OSError."""
    return _read(path, _Header.weights)


def _read(path: Path, what: Callable[[_Header], T]) -> T:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return what(_Header(data))
            except struct.error as error:
                raise ValueError("it ends within its header") from error


class Length(int):
    """The length of a list that was not read."""


class _Header:
    """A place in the header that moves on with what is read; raises struct.error at the end of the file.

    In a corrupt file any figure may be anything, so that none decides how much is read before it was looked at.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}; expected 2 or 3")
        self._tensors = self._number("Q")

    def weights(self) -> int:
        self.pairs()
        return sum(self._tensor() for _ in range(self._tensors))

    def _tensor(self) -> int:
        self._string()
        dimensions = self._number("I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"it has a tensor of {dimensions} dimensions")
        weights: int = math.prod(self._number("Q") for _ in range(dimensions))
        # Its type, and where it lies.
        self._skip(4 + 8)
        return weights

    def pairs(self) -> dict[str, Any]:
        return {self._string(): self._value(self._number("I")) for _ in range(self._number("Q"))}

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        size = self._number("Q")
        if size > STRING_BYTES:
            raise ValueError(f"it has a string of {size} bytes")
        value = self._data[self._at : self._at + size]
        self._at += size
        return value.decode(errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._list(self._number("I"), self._number("Q"))
        return self._number(_code(kind))

    def _list(self, kind: int, count: int) -> Any:
        if kind == _STRING:
            self._skip_strings(count)
            return Length(count)
        code = _code(kind)
        if count <= LIST_LENGTH:
            return [self._number(code) for _ in range(count)]
        self._skip(count * struct.calcsize(f"<{code}"))
        return Length(count)

    def _skip(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise struct.error("beyond the end")
        self._at += size

    def _skip_strings(self, count: int) -> None:
        # Hundreds of thousands of them: only their lengths are looked at.
        length_at, data, at, end = struct.Struct("<Q").unpack_from, self._data, self._at, len(self._data)
        for _ in range(count):
            at += 8 + length_at(data, at)[0]
            if at > end:
                raise struct.error("beyond the end")
        self._at = at


def _code(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"it has a value of unknown type {kind}")
    return _NUMBERS[kind]
