"""What a GGUF file says of the model in it. Knows nothing of who asks, nor of what the model takes when it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from scaler.descriptions import Description
from scaler.errors import LevelUnavailable
from scaler.level_settings import EmbeddedLevel, LlamaServerLevel
from scaler.runtimes.gguf_size import Length, count_weights, parts, read_metadata, weights_bytes

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0",
}  # fmt: skip
"""What ``general.file_type`` means. Source: llama_ftype of llama.cpp."""
TEMPLATE = "tokenizer.chat_template"


def describe(settings: EmbeddedLevel | LlamaServerLevel) -> Description:
    """What is known of a level's model. A file that is missing or broken is not known; loading it says what is wrong.

    Reads headers: for a large vocabulary it takes a tenth of a second the first time.
    """
    return describe_file(settings.name, settings.model, settings.context_tokens)


def describe_file(level: str, file: Path, context_tokens: int) -> Description:
    """The same for the file of the level called ``level``."""
    known = Description(file, context_tokens)
    try:
        size, stat = weights_bytes(level, file), file.stat()
    except (LevelUnavailable, OSError):
        return known
    known = replace(known, size_bytes=size, modified_s=stat.st_mtime)
    try:
        metadata, weights = _headers(file, size, stat.st_mtime_ns)
    except (ValueError, OSError):
        return known
    return replace(
        known,
        format="gguf",
        family=_text(metadata, "general.architecture"),
        weights=weights,
        quantization=FILE_TYPES.get(metadata.get("general.file_type", -1)),
        chat_template=_text(metadata, TEMPLATE),
        metadata={key: value for key, value in metadata.items() if key != TEMPLATE and not _vocabulary(key, value)},
    )


@lru_cache(maxsize=64)
def _headers(path: Path, _size: int, _modified_ns: int) -> tuple[Mapping[str, Any], int]:
    """The metadata and the number of weights; read anew when the file has another size or time."""
    return read_metadata(path), sum(map(count_weights, parts(path)))


def _vocabulary(key: str, value: Any) -> bool:
    return isinstance(value, Length) or (isinstance(value, list) and key.startswith("tokenizer."))


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None
