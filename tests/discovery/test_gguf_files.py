"""Which of the GGUF files that lie about could be levels, and that looking for them ends."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import gguf
import pytest

from scaler import paths
from scaler.discovery import gguf_files
from scaler.discovery.found import CONTEXT_TOKENS, PARALLEL, Model, Source
from scaler.discovery.gguf_files import Folder, examined, look, usual
from scaler.runtimes.gguf_size import serving_bytes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The person's home: nothing of whoever runs the tests is looked at; all in it is, however busy the machine."""
    monkeypatch.setattr(gguf_files, "LOOK_S", 60.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def file(
    path: Path, architecture: str = "llama", *, tokens: int = 8, window: int | None = 8192, pooling: int = 0
) -> Path:
    """A GGUF file of a small model's shape, without its weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(256)
    writer.add_block_count(4)
    writer.add_head_count(4)
    writer.add_size_label("8M")
    writer.add_file_type(7)
    if window is not None:
        writer.add_context_length(window)
    if pooling:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    if tokens:
        writer.add_token_list([f"token{number}" for number in range(tokens)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def names(sources: list[Source]) -> list[str]:
    """The models that were found."""
    return [model.name for source in sources for model in source.models]


def reasons(sources: list[Source]) -> dict[str, str]:
    """Why the others are none, by the name of the file."""
    return {one.name.rpartition("/")[2]: one.why for source in sources for one in source.left_out}


def test_a_file_is_told_by_what_its_header_says(home: Path) -> None:
    """As the embedded runtime will find it: a path under the home, what it takes, its window."""
    path = file(home / "models/tiny.gguf", window=2048)
    (source,) = look([Folder(home / "models")])
    assert (source.what, source.where) == ("GGUF files", "~/models")
    (model,) = source.models
    assert (model.runtime, model.name, model.about) == ("embedded", "~/models/tiny.gguf", "8M Q8_0")
    assert (model.context_tokens, model.url) == (2048, None)
    assert model.serving_bytes == serving_bytes("tiny", path, 2048, PARALLEL)


def test_a_file_that_says_nothing_of_its_window_gets_the_usual_one(home: Path) -> None:
    """And one whose window is too short for a level is left out."""
    model = examined(file(home / "a.gguf", window=None))
    assert isinstance(model, Model)
    assert model.context_tokens == CONTEXT_TOKENS
    file(home / "b.gguf", window=128)
    assert "128 tokens" in reasons(look([Folder(home)]))["b.gguf"]


def test_what_answers_nobody_is_left_out_with_the_reason(home: Path) -> None:
    """Embedding models, rerankers, projectors, what has no words, and what is no such file."""
    folder = home / "models"
    file(folder / "good.gguf")
    file(folder / "pooled.gguf", pooling=1)
    file(folder / "ranks.gguf", pooling=4)
    file(folder / "nomic-embed-text-v1.5.Q8_0.gguf", "nomic-bert")
    file(folder / "mmproj-model-f16.gguf", "clip", tokens=0)
    file(folder / "flux.gguf", "flux", tokens=0)
    (folder / "page.gguf").write_text("<html>")
    (folder / "empty.gguf").touch()
    shutil.copy(folder / "good.gguf", folder / "cut.gguf")
    os.truncate(folder / "cut.gguf", 100)
    (folder / "dangling.gguf").symlink_to("nowhere")
    (folder / "folder.gguf").mkdir()
    os.mkfifo(folder / "pipe.gguf")
    sources = look([Folder(folder)])
    assert names(sources) == ["~/models/good.gguf"]
    told = reasons(sources)
    assert "embedding" in told["pooled.gguf"]
    assert "embedding" in told["nomic-embed-text-v1.5.Q8_0.gguf"]
    assert "reranker" in told["ranks.gguf"]
    assert "projector" in told["mmproj-model-f16.gguf"]
    assert "no vocabulary" in told["flux.gguf"]
    assert all("not a whole GGUF file" in told[name] for name in ("page.gguf", "empty.gguf", "cut.gguf"))
    assert len(told) == 8


def test_what_may_not_be_looked_at_is_left_out_in_the_systems_words(home: Path) -> None:
    """A link into a folder that is locked, or to itself, ended `scaler init` in a traceback; so did a name too long."""
    folder = home / "models"
    file(folder / "good.gguf")
    (folder / "loop.gguf").symlink_to("loop.gguf")
    (folder / "far.gguf").symlink_to("x" * 300)
    sources = look([Folder(folder)])
    assert names(sources) == ["~/models/good.gguf"]
    assert reasons(sources) == {"loop.gguf": "too many levels of symbolic links", "far.gguf": "file name too long"}
    odd = [home / ("x" * 300), folder / "loop.gguf", folder / "good.gguf" / "below"]
    assert [source.note for source in look([Folder(path, named=True) for path in odd])] == [
        "file name too long",
        "too many levels of symbolic links",
        "not a directory",
    ]
    assert look([Folder(path) for path in odd]) == []


def test_a_model_in_several_parts_counts_once_and_whole(home: Path) -> None:
    """By its first part; without the others it is no model."""
    whole = home / "whole/big-00001-of-00002.gguf"
    file(whole)
    (home / "whole/big-00002-of-00002.gguf").write_bytes(b"x" * 50_000)
    file(home / "part/big-00001-of-00003.gguf")
    sources = look([Folder(home / "whole"), Folder(home / "part")])
    assert names(sources) == ["~/whole/big-00001-of-00002.gguf"]
    (model,) = sources[0].models
    assert model.serving_bytes == serving_bytes("big", whole, CONTEXT_TOKENS, PARALLEL)
    assert "00002-of-00003.gguf: no such file" in reasons(sources)["big-00001-of-00003.gguf"]


def test_a_cache_that_keeps_a_file_under_several_names_has_one_model(home: Path) -> None:
    """As Hugging Face's does, with a link for each version."""
    hub = home / ".cache/huggingface/hub/models--org--name"
    blob = file(hub / "blobs/blob")
    for version in ("abc", "def"):
        link = hub / "snapshots" / version / "model-q4.gguf"
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
    assert names(look(usual({}))) == ["~/.cache/huggingface/hub/models--org--name/snapshots/abc/model-q4.gguf"]


def test_the_usual_folders_are_those_that_the_environment_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the folder that one is in, but not far below it."""
    monkeypatch.chdir(home)
    file(home / "here.gguf")
    file(home / "below/here.gguf")
    file(home / "below/and/deeper.gguf")
    file(home / ".hidden/not.gguf")
    file(home / "models/a/b/c/mine.gguf")
    file(home / "llama/fetched.gguf")
    file(home / "hub/fetched.gguf")
    environment = {"LLAMA_CACHE": str(home / "llama"), "HF_HUB_CACHE": str(home / "hub")}
    assert names(look(usual(environment))) == [
        "~/llama/fetched.gguf",
        "~/hub/fetched.gguf",
        "~/models/a/b/c/mine.gguf",
        "~/here.gguf",
        "~/below/here.gguf",
    ]


def test_the_demo_models_are_no_models_of_ones_own(home: Path) -> None:
    """They apply without a configuration, and can say one sentence each."""
    file(paths.demo_models() / "small.gguf")
    assert look([Folder(home)]) == []
    assert look([Folder(paths.demo_models())]) == []


def test_looking_ends_after_so_many_files_and_so_much_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says that it did not look at all of them."""
    monkeypatch.setattr(gguf_files, "MOST_FILES", 3)
    for number in range(5):
        file(home / f"models/{number}.gguf")
    (source,) = look([Folder(home / "models"), Folder(home / "elsewhere")])
    assert len(source.models) == 3
    assert "not all of it" in source.note
    clock = itertools.count(0.0, gguf_files.LOOK_S / 2).__next__
    (source,) = look([Folder(home / "models")], clock)
    assert len(source.models) < 3
    assert "not all of it" in source.note


def test_names_that_cannot_be_written_down_are_told_safely(home: Path) -> None:
    """Whatever bytes they are of."""
    for name in (b"new\nline.gguf", b"\xff\xfe.gguf", b"\x1b[31m.gguf"):
        file(home / "plain.gguf").rename(Path(os.fsdecode(os.fsencode(home) + b"/" + name)))
    (source,) = look([Folder(home)])
    assert source.models == ()
    assert len(source.left_out) == 3
    assert all(one.name.isprintable() and "cannot be printed" in one.why for one in source.left_out)


def test_a_folder_that_a_person_named_is_told_of_also_where_nothing_is(home: Path) -> None:
    """Who mistyped it sees so; the usual folders that nobody has are no news."""
    (home / "empty").mkdir()
    model = file(home / "models" / "a.gguf")
    asked = [home / "empty", home / "modles", model, model.parent, home]
    told = [(source.what, source.where, source.note) for source in look([Folder(path, named=True) for path in asked])]
    assert told == [
        ("no GGUF file", "~/empty", ""),
        ("no GGUF file", "~/modles", "there is no such folder"),
        ("no GGUF file", "~/models/a.gguf", "it is a file; name the folder that it is in"),
        # All that the last one has was found in this one.
        ("GGUF files", "~/models", ""),
    ]
    assert look([Folder(path) for path in asked[:3]]) == []
