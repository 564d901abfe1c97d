"""What a model that LM Studio loads will take of RAM, where no more is known of it than its size. Pure.

Source: https://arxiv.org/abs/2001.08361, section 2.1, for how many weights a layer has.
"""

from __future__ import annotations

import math
import re

from scaler.runtimes.gguf_size import BATCH_TOKENS, OVERHEAD_BYTES

ASPECT = 128
"""About so many times as wide as it has layers is a model; those of 7 and 13 billion weights exactly that."""
DEEPER = 1.5
"""Models that are deeper and narrower cache more for the same weights. So much more none does that is known:
MiniCPM 2B caches 1.25 times what the aspect says, Qwen1.5 4B 1.1 times."""
WORDS = 262_144
"""The largest vocabulary, Gemma's. For each token of a batch there is a float for each word."""
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def serving_bytes(size_bytes: int, weights: float, tokens: int) -> int:
    """At most what the weights, a cache of so many tokens, the buffers and the process take together."""
    return size_bytes + tokens * cached_bytes(weights) + 4 * BATCH_TOKENS * WORDS + OVERHEAD_BYTES


def cached_bytes(weights: float) -> int:
    """At most what the key-value cache of a model with so many weights holds for one token.

    A layer of the width d has 12 d² weights and caches a key and a value of d figures of 16 bits each, where no heads
    share theirs. Where they do, as in most models since 2024, it is a quarter of that or less.
    """
    layers = math.cbrt(weights / (12 * ASPECT**2))
    return round(DEEPER * layers * 4 * ASPECT * layers)


def weights_named(named: str) -> float | None:
    """How many weights a text such as ``7B``, ``26B-A4B`` or ``8x7B`` means; None where it means none."""
    match = re.match(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([KMBT])\b", named, re.IGNORECASE)
    if match is None:
        return None
    return int(match[1] or 1) * float(match[2]) * UNITS[match[3].upper()]
