"""The configuration that a proposal becomes: it loads, it says what was proposed, and it says it to a person."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scaler.discovery.found import LONGEST_NAME, Model, fault_of
from scaler.ladder_yaml import WHOSE, configuration, scalar
from scaler.level_settings import EmbeddedLevel, ServedLevel
from scaler.levels import GIB, RAM
from scaler.policy import Policy
from scaler.proposal import RUNTIMES, Proposal, propose
from scaler.readings import Usage
from scaler.settings import Settings, load_settings

DOCS = Path(__file__).parent.parent.parent / "docs"
MACHINE = {RAM: Usage(32 * GIB, 0, 3 * GIB)}
WITH_GPUS = {**MACHINE, "gpu0": Usage(8 * GIB, 0, GIB), "gpu1": Usage(24 * GIB, 0, GIB)}
WIDEST = 120
SCHEMA = "file:///opt/scaler/config/scaler.schema.json"


def written(proposal: Proposal) -> str:
    """Its configuration."""
    return configuration(proposal, "mid_range", ("16 GiB of RAM, 4 cores, no GPU memory",), "1.2.3", SCHEMA)


def loaded(text: str) -> Settings:
    """What scaler takes it for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scaler.yaml")
        path.write_text(text, "utf-8")
        return load_settings(path)


def says_the_same(settings: Settings, proposal: Proposal) -> None:
    """Nothing of a proposal is lost or taken for something else."""
    assert settings.tier == "auto"
    assert len(settings.ladder) == len(proposal.levels)
    for level, rung in zip(settings.ladder, proposal.levels, strict=True):
        model = rung.model
        assert (level.name, level.runtime, level.quality) == (rung.name, model.runtime, rung.quality)
        assert level.context_tokens == model.context_tokens
        if isinstance(level, EmbeddedLevel):
            assert str(level.model) == str(Path(model.name).expanduser())
        else:
            assert isinstance(level, ServedLevel)
            assert (level.model, level.key_env) == (model.name, model.key_env)
            assert model.url is not None
            assert level.address == model.url
        declared = {resource: size for resource, size in rung.footprint.items() if resource != RAM}
        if model.runtime == "lmstudio" and not declared:
            declared = dict(rung.footprint)
        # What the runtime estimates by itself is left to it.
        assert level.declared == pytest.approx(declared, abs=GIB / 200)


NAMES = st.text(min_size=1, max_size=LONGEST_NAME).filter(lambda name: fault_of(name) is None)
WINDOWS = st.integers(256, 10**6)
NEAR = st.sampled_from(
    ("http://127.0.0.1:11434", "http://localhost:1234", "http://[::1]:8080", "http://127.0.0.1:8000")
)
KEYS = st.one_of(st.none(), st.sampled_from(("MY_KEY", "on", "_1")))
SIZES = st.integers(1, 40 * GIB)
SERVED = st.builds(
    Model,
    runtime=st.sampled_from(("ollama", "lmstudio", "llama-router")),
    name=NAMES,
    serving_bytes=SIZES,
    url=NEAR,
    context_tokens=WINDOWS,
    about=st.sampled_from(("", "3.2B Q4_K_M", "#: '\"")),
    key_env=KEYS,
)
FILES = st.builds(
    Model,
    runtime=st.just("embedded"),
    name=NAMES.map(lambda name: f"~/models/{name}.gguf"),
    serving_bytes=SIZES,
    context_tokens=WINDOWS,
)
ROUTED = st.builds(
    Model,
    runtime=st.just("openai"),
    name=NAMES,
    url=st.sampled_from(("http://box:8000", "https://box/api/v1", "http://127.0.0.1:1337")),
    context_tokens=WINDOWS,
    key_env=KEYS,
)
SLEEPING = st.builds(
    Model,
    runtime=st.just("vllm"),
    name=NAMES,
    serving_bytes=SIZES,
    url=st.integers(8000, 8009).map(lambda port: f"http://127.0.0.1:{port}"),
    context_tokens=WINDOWS,
    gpus=st.sampled_from(((0,), (1,), (0, 1))),
    key_env=KEYS,
)


def distinct(found: Sequence[Model]) -> list[Model]:
    """A vLLM server has one model."""
    return list({one.url if one.runtime == "vllm" else (one.name, one.url): one for one in found}.values())


@given(
    st.lists(st.one_of(SERVED, FILES, ROUTED, SLEEPING), max_size=12).map(distinct),
    st.sampled_from((MACHINE, WITH_GPUS)),
    st.one_of(st.none(), st.sampled_from(RUNTIMES)),
)
def test_whatever_is_proposed_loads_and_means_what_was_proposed(
    found: Sequence[Model], usage: Mapping[str, Usage], runtime: str | None
) -> None:
    """Whatever models are called, wherever they are."""
    proposal = propose(found, usage, Policy(), runtime=runtime)
    if proposal.levels:
        says_the_same(loaded(written(proposal)), proposal)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("usage", [MACHINE, WITH_GPUS], ids=["ram", "gpus"])
def test_every_runtime_and_length_loads_and_can_be_read(runtime: str, count: int, usage: Mapping[str, Usage]) -> None:
    """The lines are no wider than a person reads, and each page of the documentation that is named is there."""
    sizes = [2 * GIB, 5 * GIB, 12 * GIB][:count]
    found = [
        Model(
            runtime,
            "~/models/a.gguf" if runtime == "embedded" else f"model-{number}",
            None if runtime == "openai" else size,
            None if runtime == "embedded" else f"http://127.0.0.1:{9000 + number}",
            about="3.2B Q4_K_M",
            gpus=(1,) if runtime == "vllm" else (),
        )
        for number, size in enumerate(sizes)
    ]
    if runtime == "embedded":
        found = [Model(runtime, f"~/models/{number}.gguf", size) for number, size in enumerate(sizes)]
    proposal = propose(found, usage, Policy())
    if runtime == "vllm" and "gpu1" not in usage:
        assert not proposal.levels
        return
    assert len(proposal.levels) == (1 if runtime == "openai" else count)
    text = written(proposal)
    assert text == written(propose(found, usage, Policy()))
    assert max(map(len, text.splitlines())) <= WIDEST
    says_the_same(loaded(text), proposal)
    assert all((DOCS.parent / page).is_file() for page in (WHOSE[runtime].rpartition(": ")[2], "docs/init.md"))


def test_the_usual_address_of_a_server_is_left_out() -> None:
    """It would only be in the way of reading."""
    found = [Model("ollama", "a", GIB, "http://127.0.0.1:11434")]
    text = written(propose(found, MACHINE, Policy()))
    assert "url:" not in text
    says_the_same(loaded(text), propose(found, MACHINE, Policy()))


def test_no_key_is_in_it_but_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may be shown to anybody."""
    monkeypatch.setenv("MY_KEY", "sk-secret")
    text = written(propose([Model("openai", "a", url="http://box", key_env="MY_KEY")], MACHINE, Policy()))
    assert "key_env: MY_KEY" in text
    assert "secret" not in text


@given(st.text(max_size=40).filter(lambda text: not text or text.isprintable()))
def test_a_text_is_written_as_yaml_of_any_version_reads_it(text: str) -> None:
    """PyYAML reads version 1.1, in which no and on are no texts."""
    assert yaml.safe_load(f"a: {scalar(text)}  # b") == {"a": text}


@pytest.mark.parametrize("text", ["llama3.2:3b", "qwen/qwen3-4b-2507", "~/models/a.gguf", "http://127.0.0.1:1"])
def test_ordinary_names_need_no_quotes(text: str) -> None:
    """They are to be read by people."""
    assert scalar(text) == text
