"""The demo ladder: three real GGUF files with random weights that each say one sentence of their own.

Nothing is downloaded. The architecture is llama's; only the weights are arranged: every token raises the
one that follows it in the model's sentence, so that whoever reads an answer knows which level gave it. Asked to count,
every one counts to a thousand: what is lost or said twice when a level takes over from another is seen at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler import extras
from scaler.errors import ScalerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTENT_VERSION = 2
"""Raised whenever the files' content changes, so that old ones are written anew."""
CONTEXT_TOKENS = 8192
COUNT = "<|count|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if messages and messages[-1]['content'] is string and 'ount' in messages[-1]['content'] %}{{ '<|count|>' }}"
    "{% endif %}{% endif %}"
)
WORDS = ("The", "small", "medium", "large", "model", "speaks", ":", "I", "am", "made", "of", "random", "weights", ".")
COUNTS_TO = 999
NUMBERS = tuple(str(number) for number in range(1, COUNTS_TO + 1))
UNKNOWN, BEGIN, END = 0, 1, 2
FREE_BYTES = 64 * 1024**2
"""What must be left on the disk after the files were written."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model: embedding width, layers, feed-forward width, attention heads."""

    name: str
    width: int
    layers: int
    forward: int
    heads: int


SHAPES = (
    Shape("small", 256, 12, 768, 4),
    Shape("medium", 768, 10, 2048, 12),
    Shape("large", 1536, 11, 4096, 24),
)
NAMES = tuple(shape.name for shape in SHAPES)
OTHER_FOLDER = "have XDG_CACHE_HOME name another folder, or `scaler demo-models --folder`"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A finished file and what it says."""

    name: str
    path: Path
    sentence: str


def make_demo_models(
    folder: Path, progress: Callable[[str, float], None], names: Collection[str] = NAMES
) -> list[DemoModel]:
    """Write the files of ``names`` that are not there yet; ``progress`` is told each name with 0..1.

    Each appears under its name only when it is whole. Raises MissingExtra, and ScalerError when the folder
    cannot be written or the disk is too full.
    """
    with extras.importing("llama"):
        import gguf  # noqa: F401  # only to say early, and clearly, that it is missing
    models = []
    shapes = [shape for shape in SHAPES if shape.name in names]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = [shape for shape in shapes if not _is_current(folder / f"{shape.name}.gguf")]
        _check_room(folder, missing)
        for shape in shapes:
            path = folder / f"{shape.name}.gguf"
            progress(shape.name, 0.0)
            if shape in missing:
                _write(path, shape)
            progress(shape.name, 1.0)
            models.append(DemoModel(shape.name, path, " ".join(_sentence(shape.name))))
    except OSError as error:
        raise ScalerError(f"{folder}: {error.strerror or error}; {OTHER_FOLDER}") from error
    return models


def absent_demo_models(folder: Path) -> list[str]:
    """The names of those that are not there yet, or not as this version makes them."""
    return [name for name in NAMES if not _is_current(folder / f"{name}.gguf")]


def _is_current(path: Path) -> bool:
    mark = path.with_suffix(".version")
    try:
        return path.is_file() and mark.read_text() == f"{CONTENT_VERSION} {path.stat().st_size}"
    except OSError:
        # Where it cannot even be looked at, writing it says why.
        return False


def _check_room(folder: Path, shapes: Sequence[Shape]) -> None:
    if not shapes:
        return
    need = sum(_bytes(shape) for shape in shapes) + FREE_BYTES
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ScalerError(
            f"{folder}: {free / 1e6:.0f} MB are free, {', '.join(shape.name for shape in shapes)} need "
            f"{need / 1e6:.0f} MB; make room, or {OTHER_FOLDER}"
        )


def _write(path: Path, shape: Shape) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_gguf(part, shape)
        size = part.stat().st_size
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    path.with_suffix(".version").write_text(f"{CONTENT_VERSION} {size}")


def _bytes(shape: Shape) -> int:
    block = 4 * shape.width**2 + 3 * shape.width * shape.forward
    return 2 * (shape.layers * block + 2 * len(_vocabulary()[0]) * shape.width) + 1_000_000


def _sentence(name: str) -> list[str]:
    return ["The", name, "model", "speaks", ":", "I", "am", "made", "of", "random", "weights", "."]


def _vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary: controls, the 256 bytes, words, ASCII."""
    import gguf

    kind = gguf.TokenType
    tokens = [
        ("<unk>", 0.0, kind.UNKNOWN),
        ("<s>", 0.0, kind.CONTROL),
        ("<|im_end|>", 0.0, kind.CONTROL),
        ("<|im_start|>", 0.0, kind.CONTROL),
        (COUNT, 0.0, kind.CONTROL),
    ]
    tokens += [(f"<0x{byte:02X}>", 0.0, kind.BYTE) for byte in range(256)]
    # A word is found in a text by joining its letters one by one, so every beginning of it is a token as well.
    pieces = dict.fromkeys(word[:end] for word in (*WORDS, *NUMBERS) for end in range(1, len(word) + 1))
    tokens += [("\u2581" + piece, -float(rank), kind.NORMAL) for rank, piece in enumerate(pieces)]
    tokens += [(chr(code), -1e4 - code, kind.NORMAL) for code in range(33, 127)]
    tokens.append(("\u2581", -1e4, kind.NORMAL))
    names, scores, kinds = zip(*tokens, strict=True)
    return list(names), list(scores), [int(one) for one in kinds]


def _write_gguf(path: Path, shape: Shape) -> None:
    import gguf

    names, scores, kinds = _vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"scaler demo {shape.name}")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHATML)
    for name, tensor in _tensors(shape, names):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(shape: Shape, vocabulary: Sequence[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The weights, so arranged that the answer is the sentence, or the count, at any temperature that people use.

    Dimension 0 of the residual stream is 1 for every token and nothing writes to it, so that column 0 of the output
    matrix is a bias. The blocks add next to nothing. The output row of a token is raised along the embedding of
    the token that comes before it in the sentence or the count.
    """
    import numpy as np

    rng = np.random.default_rng(sum(map(ord, shape.name)))
    width, size = shape.width, len(vocabulary)

    def random(*dimensions: int, scale: float) -> NDArray[np.float32]:
        return rng.standard_normal(dimensions, dtype=np.float32) * np.float32(scale)

    embedding = random(size, width, scale=1.0)
    embedding[:, 0] = 1.0
    directions = embedding[:, 1:] / np.linalg.norm(embedding[:, 1:], axis=1, keepdims=True)
    output = random(size, width, scale=0.01)
    output[:, 0] = -5.0
    sentence = [vocabulary.index("\u2581" + word) for word in _sentence(shape.name)]
    # The template ends with a line feed, which is a byte token, so that is what the sentence follows.
    said = [vocabulary.index("<0x0A>"), *sentence, END]
    # The count ends like the sentence: its full stop leads to the end already.
    counted = [vocabulary.index(COUNT), *(vocabulary.index("\u2581" + number) for number in NUMBERS), sentence[-1]]
    for chain in (said, counted):
        for before, token in pairwise(chain):
            output[token, 1:] += 40.0 * directions[before]
    # Whatever level's name it was that went before, so that one can end another's sentence.
    for other in SHAPES:
        if other != shape:
            output[vocabulary.index("\u2581model"), 1:] += 40.0 * directions[vocabulary.index("\u2581" + other.name)]
    # After any other token, too, the first word is the likeliest.
    output[sentence[0], 0] = 5.0
    # The end is followed by the beginning: an answer that may not end says the sentence again and again.
    output[sentence[0], 1:] += 40.0 * directions[END]

    yield "token_embd.weight", embedding.astype(np.float16)
    block = {
        "attn_q": random(width, width, scale=width**-0.5),
        "attn_k": random(width, width, scale=width**-0.5),
        "attn_v": random(width, width, scale=width**-0.5),
        "attn_output": random(width, width, scale=0.02 * width**-0.5),
        "ffn_gate": random(shape.forward, width, scale=width**-0.5),
        "ffn_up": random(shape.forward, width, scale=width**-0.5),
        "ffn_down": random(width, shape.forward, scale=0.02 * shape.forward**-0.5),
    }
    block["attn_output"][0] = 0.0
    block["ffn_down"][0] = 0.0
    # All blocks share one set of random numbers: making them is what takes the time, and nobody reads them.
    halves = {name: tensor.astype(np.float16) for name, tensor in block.items()}
    ones = np.ones(width, dtype=np.float32)
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight", ones
        yield f"blk.{layer}.ffn_norm.weight", ones
        for name, tensor in halves.items():
            yield f"blk.{layer}.{name}.weight", tensor
    yield "output_norm.weight", ones
    yield "output.weight", output.astype(np.float16)
