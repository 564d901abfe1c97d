"""What is read of a GGUF file without loading it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.errors import LevelUnavailable
from scaler.runtimes.gguf_size import read_metadata, serving_bytes, weights_bytes


def a_file(path: Path, tokens: int, key_value_heads: int | list[int] = 8, head_count: int = 32) -> Path:
    """A GGUF file of a real model's shape, without its weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(4096)
    writer.add_block_count(32)
    writer.add_feed_forward_length(14336)
    writer.add_head_count(head_count)
    writer.add_head_count_kv(key_value_heads)
    writer.add_token_list([f"token{number}" for number in range(tokens)])
    writer.add_token_scores([0.0] * tokens)
    writer.add_token_merges([f"a{number} b{number}" for number in range(2 * tokens)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_the_metadata_is_what_the_reader_of_gguf_finds(demo_models: dict[str, Path]) -> None:
    """Our own reader is quicker, and must not be wrong for that."""
    ours = read_metadata(demo_models["small"])
    reader = gguf.GGUFReader(demo_models["small"])
    keys = {key for key in reader.fields if not key.startswith("GGUF.")}
    assert set(ours) == keys
    for key in keys:
        theirs = reader.fields[key].contents()
        assert ours[key] == (len(theirs) if key == "tokenizer.ggml.tokens" else theirs), key


def test_a_large_vocabulary_does_not_hold_up_the_start(tmp_path: Path) -> None:
    """The package's reader takes a thousand times as long, for every level of the ladder."""
    path = a_file(tmp_path / "wide.gguf", 128_000)
    began = time.process_time()
    assert read_metadata(path)["tokenizer.ggml.tokens"] == 128_000
    assert time.process_time() - began < 1.0


def test_the_cache_grows_with_the_context_and_the_slots(tmp_path: Path) -> None:
    """128 KiB a token is what an 8B model with eight key-value heads is known to take."""
    path = a_file(tmp_path / "8b.gguf", 10)
    one = serving_bytes("8b", path, 1024, 1)
    assert serving_bytes("8b", path, 4096, 2) - one == 7 * 1024 * 128 * 1024


@pytest.mark.parametrize(("kv_cache", "kib"), [("f16", 128), ("q8_0", 68), ("q4_0", 36)])
def test_a_quantised_cache_takes_what_its_blocks_do(tmp_path: Path, kv_cache: str, kib: int) -> None:
    """34 or 18 bytes for 32 figures in place of 64."""
    path = a_file(tmp_path / "8b.gguf", 10)
    one = serving_bytes("8b", path, 1024, 1, kv_cache)
    assert serving_bytes("8b", path, 2048, 1, kv_cache) - one == 1024 * kib * 1024


def test_a_list_of_heads_counts_its_largest(tmp_path: Path) -> None:
    """Some models differ from layer to layer."""
    path = a_file(tmp_path / "mixed.gguf", 10, key_value_heads=[0, 8, 4])
    same = a_file(tmp_path / "same.gguf", 10)
    difference = serving_bytes("mixed", path, 4096, 1) - serving_bytes("same", same, 4096, 1)
    assert difference == path.stat().st_size - same.stat().st_size


def test_all_parts_of_a_model_count(tmp_path: Path) -> None:
    """The first file names the others, and one that is missing is named."""
    for part in (1, 2, 3):
        (tmp_path / f"big-0000{part}-of-00003.gguf").write_bytes(b"x" * part * 100)
    first = tmp_path / "big-00001-of-00003.gguf"
    assert weights_bytes("big", first) == 600
    (tmp_path / "big-00002-of-00003.gguf").unlink()
    with pytest.raises(LevelUnavailable, match=r"big: .*big-00002-of-00003\.gguf: no such file"):
        weights_bytes("big", first)
    (tmp_path / "big-00002-of-00003.gguf").symlink_to("big-00002-of-00003.gguf")
    with pytest.raises(LevelUnavailable, match=r"big: .*big-00002-of-00003\.gguf: too many levels of symbolic links; "):
        weights_bytes("big", first)
    with pytest.raises(LevelUnavailable, match=r"big: .*x: file name too long; correct the level's model"):
        weights_bytes("big", tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin with GGUF"),
        (b"GGUF", "ends within its header"),
        (b"GGUF\x00\x00\x00\x03" + bytes(16), "its version is"),
        (b"GGUF\x03\x00\x00\x00" + bytes(8) + b"\xff" * 16, "a string of"),
    ],
)
def test_a_file_that_is_none_is_a_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    """The level, the file and what is wrong with it."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(LevelUnavailable, match=f"small: {path}: not a whole GGUF file .*{words}.*download it again"):
        serving_bytes("small", path, 2048, 1)


@settings(max_examples=300)
@given(
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=12), length=st.integers(0, 20000)
)
def test_a_corrupt_header_is_told_and_nothing_worse(
    demo_models: dict[str, Path], changes: list[tuple[int, int]], length: int
) -> None:
    """Any byte may be anything: the answer is a size or the one error, at once and in little memory."""
    with demo_models["small"].open("rb") as file:
        content = bytearray(file.read(length))
    for place, byte in changes:
        if place < len(content):
            content[place] = byte
    with tempfile.NamedTemporaryFile(suffix=".gguf") as damaged:
        damaged.write(content)
        damaged.flush()
        try:
            told: int | str = serving_bytes("small", Path(damaged.name), 2048, 1)
        except LevelUnavailable as error:
            told = str(error)
    assert told.endswith("download it again") if isinstance(told, str) else told >= length
