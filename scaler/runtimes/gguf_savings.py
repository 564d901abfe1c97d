"""What other settings of a level whose GGUF file scaler has loaded would save, by the file's shape."""

from __future__ import annotations

from collections.abc import Sequence

from scaler.level_settings import EmbeddedLevel, LlamaServerLevel
from scaler.levels import RAM, Saving
from scaler.runtimes.gguf_size import CACHE_BLOCK, Shape, shape_of

LEAST_CONTEXT_TOKENS = 1024
"""A shorter context than this is not proposed: hardly a conversation fits in it."""


def savings(settings: EmbeddedLevel | LlamaServerLevel) -> Sequence[Saving]:
    """Of RAM, by the cache that the file's shape makes necessary, the mildest first; raises LevelUnavailable."""
    # What is declared by hand stays as declared whatever the settings, and on a GPU it always is.
    if settings.ram_gib is not None or settings.gpu_layers:
        return ()
    shape, slots = shape_of(settings.name, settings.model), settings.parallel
    tokens, kv_cache = settings.context_tokens, settings.kv_cache
    now = shape.cache_bytes(tokens * slots, kv_cache)

    def quantised(name: str) -> Saving:
        return Saving("kv_cache", name, kv_cache, {RAM: now - shape.cache_bytes(tokens * slots, name)})

    def shortened(part: int) -> Saving:
        shorter = tokens // part
        saved = {RAM: now - shape.cache_bytes(shorter * slots, kv_cache)}
        return Saving("context_tokens", str(shorter), str(tokens), saved)

    every = [quantised("q8_0"), shortened(2), quantised("q4_0"), shortened(4)]
    return [saving for saving in every if saving.saved[RAM] > 0 and _of_use(saving, shape)]


def _of_use(saving: Saving, shape: Shape) -> bool:
    """Whether llama.cpp could do with such a setting, and a person too."""
    if saving.setting == "kv_cache":
        return shape.head % CACHE_BLOCK == 0
    return int(saving.value) >= LEAST_CONTEXT_TOKENS
