"""What a GGUF file will take of memory when it serves, estimated from its metadata.

Reads the header only. Knows nothing of who loads it.
"""

from __future__ import annotations

from pathlib import Path

from scaler.errors import LevelUnavailable, MissingExtra

OVERHEAD_BYTES = 32 * 1024**2
"""What the process takes besides: with this, models of 20, 143 and 625 MB with two slots of 2048 tokens, which
took 89, 290 and 912 MiB after a prompt of 1,500 tokens, are estimated 10 to 35 MiB too high, never too low."""
BATCH_TOKENS = 512
"""How many tokens llama.cpp computes at once by default (n_ubatch)."""


def serving_bytes(name: str, path: Path, context_tokens: int, parallel: int) -> int:
    """Bytes of RAM for weights, the key-value cache of every slot, buffers and the process itself.

    Raises LevelUnavailable when the file is missing or is no GGUF, MissingExtra without the reader.
    Source: the cache holds a key and a value of 16 bits for each layer, token and key-value head; the buffers hold
    a batch of floats: about eight rows as wide as the embedding, one of the feed-forward layer, one of the logits.
    """
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{name}: {path}: to size it, ram_gib must be given or the extra 'llama' installed: "
            "pip install 'capability-scaler[llama]'"
        ) from error
    try:
        size = path.stat().st_size
        reader = GGUFReader(path)
    except OSError as error:
        raise LevelUnavailable(f"{name}: {path}: {error.strerror or error}; correct the level's model") from error
    except (ValueError, KeyError, IndexError) as error:
        raise LevelUnavailable(f"{name}: {path}: not a whole GGUF file ({error}); download it again") from error

    def number(key: str) -> int:
        field = reader.get_field(f"{architecture}.{key}")
        value = 0 if field is None else field.contents()
        return max(value) if isinstance(value, list) else int(value)

    field = reader.get_field("general.architecture")
    architecture = "" if field is None else str(field.contents())
    width, layers, heads = number("embedding_length"), number("block_count"), number("attention.head_count")
    key_heads = number("attention.head_count_kv") or heads
    head_width = number("attention.key_length") or (width // heads if heads else 0)
    cache = 2 * 2 * layers * key_heads * head_width * context_tokens * parallel
    vocabulary = reader.get_field("tokenizer.ggml.tokens")
    tokens = 0 if vocabulary is None else len(vocabulary.data)
    buffers = 4 * BATCH_TOKENS * (8 * width + number("feed_forward_length") + tokens)
    return size + cache + buffers + OVERHEAD_BYTES
