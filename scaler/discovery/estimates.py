"""What a model will take when it serves, where its server tells no more than its size. Pure: figures in and out."""

from __future__ import annotations

from scaler.runtimes.gguf_size import OVERHEAD_BYTES
from scaler.runtimes.lmstudio_size import cached_bytes

SHARED = 4
"""So many heads share a key and a value in most models since 2024; no list of models says how many."""


def serving_bytes(size_bytes: int, weights: float | None, tokens: int) -> int:
    """The weights, a cache of so many tokens and the process; half of the weights for a cache of unknown size.

    Of what the caches of Llama 3.2 3B and 3.1 8B, Qwen3 4B to 14B and Phi 4 hold it is 1.0 to 2.1 times as much, of
    Qwen2.5 7B 3.8 times, of Gemma 2 9B and Gemma 3 12B three quarters, and of models of 2023 in which no heads share
    anything, such as Llama 2 7B, 0.4 times.
    """
    cached = size_bytes // 2 if weights is None else tokens * cached_bytes(weights) // SHARED
    return size_bytes + cached + OVERHEAD_BYTES
