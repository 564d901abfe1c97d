"""What a model's file says of it."""

from __future__ import annotations

from pathlib import Path

import gguf

from scaler.descriptions import Description
from scaler.level_settings import EmbeddedLevel
from scaler.runtimes.gguf_description import FILE_TYPES, describe


def test_a_model_is_described_as_the_reader_of_gguf_finds_it(demo_models: dict[str, Path]) -> None:
    """The number of weights, and what the file says, without its vocabulary."""
    path = demo_models["small"]
    told = describe(EmbeddedLevel(name="small", model=path, context_tokens=2048))
    assert told.weights == sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors)
    assert (told.format, told.family, told.context_tokens) == ("gguf", "llama", 2048)
    assert told.size_bytes == path.stat().st_size
    assert "im_start" in (told.chat_template or "")
    assert not [key for key, value in told.metadata.items() if isinstance(value, list)]


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    """A list of models must not fail for one of them."""
    path = tmp_path / "x.gguf"
    level = EmbeddedLevel(name="x", model=path, context_tokens=2048)
    assert describe(level) == Description(path, 2048)
    path.write_bytes(b"GGUF")
    assert (describe(level).size_bytes, describe(level).format) == (4, None)


def test_the_file_types_are_those_of_gguf() -> None:
    """People choose a model by them."""
    theirs = {int(one): one.name.removeprefix("MOSTLY_").removeprefix("ALL_") for one in gguf.LlamaFileType}
    assert {key: theirs[key] for key in FILE_TYPES if key in theirs} == {
        k: v for k, v in FILE_TYPES.items() if k in theirs
    }
