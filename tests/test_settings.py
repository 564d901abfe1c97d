"""A person's configuration: what it may say, and what they are told when it says something else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaler import paths
from scaler.assembly import usable
from scaler.documents import MAX_BYTES
from scaler.errors import ConfigError
from scaler.policy import Policy
from scaler.settings import Settings, TlsSettings, load_settings, settings_schema
from scaler.tiers import HardwareTierDetector, Tier

Write = Callable[[str | bytes], Path]

OLLAMA = "ladder:\n  - {{name: a, runtime: ollama, model: m, {0}}}\n  - {{name: b, runtime: ollama, model: m}}\n"
LADDER = """\
ladder:
  - name: a
    model: a.gguf
    ram_gib: 1
  - name: b
    model: b.gguf
    ram_gib: 2
"""


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of whoever runs the tests is read."""
    monkeypatch.delenv("SCALER_CONFIG", raising=False)
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration and returns its path."""

    def put(content: str | bytes) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def tier(name: str = "mid_range") -> Tier:
    """A shipped tier."""
    return HardwareTierDetector(Path("/nonexistent")).tier(name)


def use(path: Path) -> Policy:
    """Everything that can find a fault in a configuration, as `scaler config check`, `run` and `reload` go about it."""
    parts = usable(path)
    parts.settings.decided(parts.tier.tier)
    return parts.policy


@pytest.fixture
def models(tmp_path: Path) -> None:
    """The files of the levels that the tests write down."""
    for name in ("a", "b", "c", "e", "x", "small", "medium", "large"):
        (tmp_path / name).touch()
        (tmp_path / f"{name}.gguf").touch()


# ------------------------------------------------------------------------------------------------ what is wrong

WRONG = [
    # text, line, key, words of the message
    ("polcy: {}\n", 1, "polcy", "unknown key; expected 'policy'"),
    ("tier: auto\nqueue:\n  limt: 3\n", 3, "queue.limt", "expected 'limit'"),
    ("qqq: 1\n", 1, "qqq", "expected one of tier, ladder, embeddings, server"),
    ("embeddings: {name: large, model: a.gguf}\n", 1, "embeddings.name", "is a level of the ladder"),
    ("embeddings: {model: 'demo:huge'}\n", 1, "embeddings.model", "no demo model 'huge'; expected one of small"),
    ("embeddings: {}\n", 1, "embeddings.model", "is missing; expected a path"),
    ("embeddings: {modle: a.gguf, model: a.gguf}\n", 1, "embeddings.modle", "expected 'model'"),
    ("embeddings: {model: a.gguf, keep_s: soon}\n", 1, "embeddings.keep_s", "expected a number from 0"),
    ("<<: {tier: auto}\n", 1, "<<", "unknown key"),
    ("'': 1\n", 1, "''", "unknown key"),
    ('"\\e[31m": 1\n', 1, "'\\x1b[31m'", "unknown key"),
    ("policy:\n  bnad: 0.1\n", 2, "policy.bnad", "expected 'band'"),
    ("policy:\n  band: 1.5\n", 2, "policy.band", "1.5 cannot be used; expected a number above 0 and below 1"),
    ("policy: {scale_at: 0}\n", 1, "policy.scale_at", "expected a number above 0 and below 1"),
    ("policy: {critical_at: 1}\n", 1, "policy.critical_at", "expected a number above 0 and below 1"),
    ("policy: {scale_at: -0.8}\n", 1, "policy.scale_at", "expected a number above 0"),
    ("policy: {scale_at: 80}\n", 1, "policy.scale_at", "expected a number above 0 and below 1"),
    ("policy: {scale_at: 80%}\n", 1, "policy.scale_at", "'80%' cannot be used; expected a number"),
    ("policy: {band: .nan}\n", 1, "policy.band", "nan cannot be used"),
    ("policy: {dwell_s: .inf}\n", 1, "policy.dwell_s", "inf cannot be used"),
    ("policy: {dwell_s: -1}\n", 1, "policy.dwell_s", "-1 cannot be used"),
    ("policy: {dwell_s: 5 min}\n", 1, "policy.dwell_s", "expected a number"),
    ("policy: {drain_tokens: 1.5}\n", 1, "policy.drain_tokens", "expected a whole number"),
    ("policy: {drain_tokens: true}\n", 1, "policy.drain_tokens", "true cannot be used; expected a whole number"),
    ("policy: {max_level: 3}\n", 1, "policy.max_level", "expected text or null"),
    ("policy: []\n", 1, "policy", "an empty list cannot be used; expected a mapping"),
    ("policy:\n", 1, "policy", "nothing (null) cannot be used; expected a mapping"),
    ("policy:\n  scale_at: 0.5\n  band: 0.6\n", 3, "policy.band", "band 0.6 must be below scale_at 0.5"),
    ("policy:\n  dwell_s: 60\n  band: 0.8\n", 3, "policy.band", "band 0.8 must be below scale_at 0.8"),
    ("policy:\n  critical_at: 0.8\n", 2, "policy.critical_at", "critical_at 0.8 must be above scale_at 0.8"),
    ("policy:\n  scale_at: 0.97\n", 2, "policy.scale_at", "critical_at 0.95 must be above scale_at 0.97"),
    ("policy: {dwell_s: 3600}\n", 1, "policy.dwell_s", "must not be below dwell_s 3600"),
    ("policy: {max_level: huge}\n", 1, "policy.max_level", "'huge' is no level of the ladder; expected one of small"),
    ("policy: {battery_max_level: off}\n", 1, "policy.battery_max_level", "'off' is no level of the ladder"),
    ("policy: {throttled_max_level: huge}\n", 1, "policy.throttled_max_level", "'huge' is no level of the ladder"),
    ("tier: hihg_end\n", 1, "tier", "there is no tier 'hihg_end'; expected 'high_end'"),
    ("tier: x\n", 1, "tier", "expected one of auto, low_end, mid_range, high_end"),
    ("tier: 3\n", 1, "tier", "3 cannot be used; expected some text"),
    ("tier: ''\n", 1, "tier", "'' cannot be used; expected some text"),
    ("ladder: []\n", 1, "ladder", "an empty list cannot be used; expected a list of at least one"),
    (
        "ladder: {}\n",
        1,
        "ladder",
        "an empty mapping cannot be used; expected a list, each entry of which begins with `- `",
    ),
    (
        "ladder: {name: a}\n",
        1,
        "ladder",
        "a mapping cannot be used; expected a list, each entry of which begins with `- `",
    ),
    ("\nladder:\n", 2, "ladder", "nothing (null) cannot be used; expected a list"),
    ("ladder: [1]\n", 1, "ladder[0]", "1 cannot be used; expected a mapping"),
    ("ladder:\n  - name: a\n", 2, "ladder[0].model", "is missing; expected a path"),
    ("ladder:\n  - model: a\n", 2, "ladder[0].name", "is missing; expected text"),
    (LADDER + "  - name: a\n    model: c\n", 8, "ladder[2].name", "'a' is ladder[0] already"),
    ("ladder:\n  - name: off\n    model: a\n", 2, "ladder[0].name", "'off' cannot be a level's name"),
    ("ladder:\n  - name: ''\n    model: a\n", 2, "ladder[0].name", "'' cannot be a level's name"),
    ('ladder:\n  - name: "a\\nb"\n    model: a\n', 2, "ladder[0].name", "cannot be a level's name"),
    ("ladder:\n  - name: 7\n    model: a\n", 2, "ladder[0].name", "7 cannot be used; expected text"),
    (LADDER.replace("ram_gib: 2", "ram_gib: 0.5"), 7, "ladder[1].ram_gib", "'b' takes 0.50 GiB of RAM and 'a' before"),
    (LADDER.replace("ram_gib: 2", "ram_gib: 1"), 7, "ladder[1].ram_gib", "from the smallest to the largest"),
    (LADDER.replace("ram_gib: 1", "ram_gib: 2\n    vram_gib: 1"), 6, "ladder[1].vram_gib", "0.00 GiB of gpu0"),
    (LADDER.replace("ram_gib: 2", "ram_gib: 1e305"), 7, "ladder[1].ram_gib", "a number above 0 and up to 1,000,000 or"),
    (LADDER + "    vram_gib: 1e305\n", 8, "ladder[1].vram_gib", "expected a number from 0 and up to 1,000,000"),
    (LADDER + "    load_s: 1e305\n", 8, "ladder[1].load_s", "expected a number above 0 and up to 1,000,000"),
    (LADDER + f"    context_tokens: {10**99}\n", 8, "ladder[1].context_tokens", "from 256 and up to 100,000,000"),
    ("embeddings: {model: a.gguf, ram_gib: 1e305}\n", 1, "embeddings.ram_gib", "above 0 and up to 1,000,000 or null"),
    (LADDER.replace("ram_gib: 1", "ram_gib: 0"), 4, "ladder[0].ram_gib", "0 cannot be used; expected a number above 0"),
    (LADDER + "    runtime: magic\n", 8, "ladder[1].runtime", "expected one of embedded, ollama"),
    (LADDER + "    runtime:\n", 8, "ladder[1].runtime", "nothing (null) cannot be used; expected one of embedded, "),
    (OLLAMA.format("mmap: true"), 2, "ladder[0].mmap", "unknown key; expected one of name, "),
    (
        "ladder:\n  - {name: a, runtime: vllm, model: x, vram_gib: 1, sleep: 3}\n",
        2,
        "ladder[0].sleep",
        "3 cannot be used; expected one of 1, 2",
    ),
    (OLLAMA.format("num_gpu: -1"), 2, "ladder[0].num_gpu", "-1 cannot be used; expected a whole number from 0"),
    (
        OLLAMA.format("gpu: x"),
        2,
        "ladder[0].gpu",
        "'x' cannot be used; expected a whole number from 0 and up to 1,023 or",
    ),
    (OLLAMA.format("gpu: [0, x]"), 2, "ladder[0].gpu[1]", "'x' cannot be used; expected a whole number from 0"),
    (
        OLLAMA.format("gpu: []"),
        2,
        "ladder[0].gpu",
        "an empty list cannot be used; expected a whole number from 0 and up",
    ),
    (OLLAMA.format("url: 'http://10.0.0.1'"), 2, "ladder[0].url", "is not this machine, whose memory is watched"),
    (
        OLLAMA.format("url: 'http://me:sesame@127.0.0.1'"),
        2,
        "ladder[0].url",
        "holds a name, a password, or what follows",
    ),
    (
        OLLAMA.format("url: 'http://127.0.0.1?key=sesame'"),
        2,
        "ladder[0].url",
        "expected the address alone, and for a key",
    ),
    (OLLAMA.format("standby: true"), 2, "ladder[0].standby", "'b' is the same model, which Ollama holds once only"),
    (LADDER + "    gpu_layer: 1\n", 8, "ladder[1].gpu_layer", "expected 'gpu_layers'"),
    (LADDER + "    mmap: yes\n", 8, "ladder[1].mmap", "'yes' cannot be used; expected true or false"),
    (LADDER + "    parallel: 0\n", 8, "ladder[1].parallel", "expected a whole number from 1 and up to 64"),
    (LADDER + "    quality: 2\n", 8, "ladder[1].quality", "expected a number from 0 and up to 1"),
    (LADDER + "    load_s: .inf\n", 8, "ladder[1].load_s", "inf cannot be used"),
    ("ladder:\n  - name: a\n    model: demo:huge\n", 3, "ladder[0].model", "expected one of small, medium, large"),
    ("ladder:\n  - name: a\n    model: ~nosuchuser/a\n", 3, "ladder[0].model", "names no user's home"),
    ("journal: {path: ~nosuchuser/a}\n", 1, "journal.path", "names no user's home"),
    ("journal: {path: 3}\n", 1, "journal.path", "expected a path"),
    ("conversations: {path: ~nosuchuser/a}\n", 1, "conversations.path", "names no user's home"),
    ("conversations: {path: 3}\n", 1, "conversations.path", "expected a path or null"),
    ("conversations: {keep: 0}\n", 1, "conversations.keep", "expected a whole number from 1"),
    ("recording: {path: ~nosuchuser/a}\n", 1, "recording.path", "names no user's home"),
    ("remembered: {path: ~nosuchuser/a}\n", 1, "remembered.path", "names no user's home"),
    ("recording: {max_days: 0}\n", 1, "recording.max_days", "expected a number above 0"),
    ("journal: {files: 0}\n", 1, "journal.files", "expected a whole number from 1"),
    ("processes: {nice: -1}\n", 1, "processes.nice", "-1 cannot be used; expected a whole number from 0 and up to 19"),
    ("processes: {oom_score_adj: -5}\n", 1, "processes.oom_score_adj", "a whole number from 0 and up to 1,000"),
    ("processes: {memory_limit_share: 0.9}\n", 1, "processes.memory_limit_share", "expected a number from 1 and up to"),
    ("notices: {webhook: ftp://x/y}\n", 1, "notices.webhook", "what is there cannot be used; expected an http or"),
    ("notices:\n  webhook: localhost:80\n", 2, "notices.webhook", "expected an http or https URL or null"),
    ("notices: {webhook: 'http://'}\n", 1, "notices.webhook", "expected an http or https URL"),
    ("notices: {webhook: ''}\n", 1, "notices.webhook", "expected an http or https URL"),
    ("notices: {webhook: true}\n", 1, "notices.webhook", "true cannot be used; expected an http or https URL or null"),
    ("notices: {desktop: 1}\n", 1, "notices.desktop", "1 cannot be used; expected true or false"),
    ("server: {port: '8484'}\n", 1, "server.port", "'8484' cannot be used; expected a whole number"),
    ("server: {port: 70000}\n", 1, "server.port", "from 0 and up to 65,535"),
    ("server: {port: 1_000}\n", 1, "server.port", "'1_000' cannot be used"),
    ("server: {port: 8484.0}\n", 1, "server.port", "expected a whole number"),
    ("server: 5\n", 1, "server", "5 cannot be used; expected a mapping"),
    ("server: {allow_origins: [example]}\n", 1, "server.allow_origins[0]", "'example' is no origin"),
    ("server: {token_file: ~nosuchuser/t}\n", 1, "server.token_file", "names no user's home"),
    ("server: {tls: {certificate: ~nosuchuser/c, key: k}}\n", 1, "server.tls.certificate", "names no user's home"),
    ("queue: {limit: " + "9" * 5000 + "}\n", 1, "queue.limit", "is not a number that can be used"),
    ("queue: {limit: 0x" + "f" * 5000 + "}\n", 1, "queue.limit", "is not a number that can be used"),
    ("queue: {wait_s: 1e400}\n", 1, "queue.wait_s", "inf cannot be used"),
    ("monitor: {interval_s: 0}\n", 1, "monitor.interval_s", "expected a number from 0.01"),
    ("monitor: {interval_s: 10}\n", 1, "monitor.interval_s", "expected less than policy.stale_after_s, 10"),
    ("tier: auto\nserver: {}\ntier: auto\n", 3, "tier", "stands here and on line 1"),
    ("server:\n  port: 1\n  host: x\n  port: 1\n", 4, "server.port", "stands here and on line 2"),
    ("? [a]\n: 1\n", 1, "?", "the key is not a word"),
    ("tier: !!python/object/apply:os.system [ls]\n", 1, "tier", "is not understood; expected a plain value"),
    ("tier: !!python/name:os.system\n", 1, "tier", "is not understood"),
    ("server: !mine {}\n", 1, "server", "the tag '!mine' is not understood"),
    ("tier: !!binary aGk=\n", 1, "tier", "is not understood"),
    ("queue: {limit: !!int x}\n", 1, "queue.limit", "is not a number"),
    ('tier: "a\\0b"\n', 1, "tier", "expected printable text"),
    ('tier: "\\ud800"\n', 1, "tier", "expected printable text"),
    ('tier: auto\n"\\0": 1\n', 2, "'\\x00'", "holds a character that is none; expected printable text"),
    ('"\\ud800": 1\n', 1, "'\\ud800'", "expected printable text"),
    ('server: {"a\\0b": 1}\n', 1, "server.'a\\x00b'", "expected printable text"),
    ("server: &a {host: *a}\n", 1, "server", "stands for itself by an alias"),
]


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("text", "line", "key", "words"), WRONG, ids=[f"{key}: {words}" for _, _, key, words in WRONG])
def test_a_fault_is_told_with_file_line_and_key(write: Write, text: str, line: int, key: str, words: str) -> None:
    """A person finds the place without searching, and learns what to write instead."""
    path = write(text)
    with pytest.raises(ConfigError) as raised:
        use(path)
    message = str(raised.value)
    assert message.startswith(f"{path}:{line}: {key}: ")
    assert words in message
    assert "; expected " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ":1: there is nothing in it; expected a mapping"),
        (b"# later\n", ":1: there is nothing in it; expected a mapping"),
        (b"- tier: auto\n", ":1: its top level is a list; expected a mapping"),
        (b"auto\n", ":1: its top level is 'auto'; expected a mapping"),
        (b"--- {}\n--- {}\n", ":2:1: a second document begins here"),
        (b"tier: *nothing\n", ":1:7: nothing above is marked '&nothing'"),
        (b"tier: |x\n  y\n", ":1:8: while scanning a block scalar"),
        (b"tier: auto\nx: \xe9\n", ":2: is not UTF-8"),
        (b"tier: auto\nx: a\0b\n", ":2: special characters are not allowed"),
        (b'tier: "\\UFFFFFFFF"\n', ":1: "),
        (b"%YAML 1." + b"9" * 5000 + b"\n---\na: b\n", ":1: "),
        (b"[" * 5000, ":1:18: nested deeper than 16 levels"),
        (b"{a: " * 5000, ":1:66: nested deeper than 16 levels"),
        (b"tier: " + b"x" * MAX_BYTES, ": is larger than 64 KiB"),
    ],
)
def test_what_is_no_yaml_mapping_is_told_with_its_place(write: Write, content: bytes, words: str) -> None:
    """Also a file that was meant to bring the reader down ends in one sentence."""
    path = write(content)
    with pytest.raises(ConfigError) as raised:
        load_settings(path)
    assert str(raised.value).startswith(f"{path}{words}")
    assert "expected" in str(raised.value)


def test_aliases_cannot_expand_without_bound(write: Write) -> None:
    """A few lines can stand for billions of values; they are refused before they are built."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match=r":\d+: a\d: expands to more than 10000 values"):
        load_settings(write("\n".join(lines)))


@pytest.mark.parametrize("place", ["nosuch.yaml", ".", "mine.yaml/x", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(write: Write, place: str) -> None:
    """The cause is the operating system's own word."""
    path = write("tier: auto\n").parent / place
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: cannot be read \(.+\); expected a YAML file$"):
        load_settings(path)


def test_every_fault_is_told_at_once_in_the_order_of_the_lines(write: Write) -> None:
    """Nobody has to run it once a fault."""
    path = write("policy: {band: 2}\nfoo: 1\nladder: []\nserver:\n  port: x\n")
    with pytest.raises(ConfigError) as raised:
        load_settings(path)
    places = [line.split(": ")[:2] for line in str(raised.value).splitlines()]
    assert places == [
        [f"{path}:1", "policy.band"],
        [f"{path}:2", "foo"],
        [f"{path}:3", "ladder"],
        [f"{path}:5", "server.port"],
    ]


MISTAKES = """\
polcy: {}
tier: mid_range
tier: low_end
server: {port: 8o84, allow_origins: [nowhere]}
policy: {scale_at: 80, max_level: hugee}
queue:
  limit: 0
  wait: 3
ladder:
  - name: a
    model: a.gguf
    ram_gib: 3
  - name: a
    model: demo:hugee
    ram_gib: 1
  - name: c
    qualty: 1
    model: ~nosuchuser/c.gguf
journal: {path: ~nosuchuser/j}
"""
TOLD = [
    (1, "polcy"), (3, "tier"), (4, "server.allow_origins[0]"), (4, "server.port"), (5, "policy.max_level"),
    (5, "policy.scale_at"), (7, "queue.limit"), (8, "queue.wait"), (13, "ladder[1].name"), (14, "ladder[1].model"),
    (15, "ladder[1].ram_gib"), (17, "ladder[2].qualty"), (18, "ladder[2].model"), (19, "journal.path"),
]  # fmt: skip


def test_mistakes_of_all_kinds_are_told_in_one_go(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys, types, ranges, doubled keys, paths, names and the order of the ladder: each once, by line."""
    monkeypatch.setattr("scaler.documents.MAX_FAULTS", 100)
    path = write(MISTAKES)
    with pytest.raises(ConfigError) as raised:
        load_settings(path)
    told = [line.removeprefix(f"{path}:").split(": ")[:2] for line in str(raised.value).splitlines()]
    assert told == [[str(line), key] for line, key in TOLD]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # A level whose name cannot be read may be the one that is meant.
        ("ladder:\n  - {name: 3, model: a}\npolicy: {max_level: b}\n", [(2, "ladder[0].name")]),
        # One of another runtime has other keys, and its model may be no file.
        ("ladder:\n  - {name: a, runtime: magic, model: ~nosuchuser/x, url: 3}\n", [(2, "ladder[0].runtime")]),
        # What is misspelt may be what a level takes.
        (
            "ladder:\n  - {name: a, model: a, ram_gib: 1, vram_gib: 2}\n"
            "  - {name: b, model: b, ram_gib: 1, vram_gb: 3}\n",
            [(3, "ladder[1].vram_gb")],
        ),
        # Two servers are one only if the misspelt one would be the default.
        (
            "ladder:\n  - {name: a, runtime: vllm, model: m, vram_gib: 1}\n"
            "  - {name: b, runtime: vllm, model: m, vram_gib: 2, ulr: 'http://127.0.0.1:8001'}\n",
            [(3, "ladder[1].ulr")],
        ),
        ("monitor: {interval_s: x}\npolicy: {stale_after_s: 0.5}\n", [(1, "monitor.interval_s")]),
        ("policy: {scale_at: 97, critical_at: 0.5}\n", [(1, "policy.scale_at")]),
        ("server: {port: !mine 1}\n", [(1, "server.port")]),
        ("embeddings: {nme: e}\n", [(1, "embeddings.model"), (1, "embeddings.nme")]),
    ],
)
def test_what_only_follows_from_a_mistake_is_not_told(write: Write, text: str, told: list[tuple[int, str]]) -> None:
    """It would be gone with the first one, or not be true at all."""
    path = write(text)
    with pytest.raises(ConfigError) as raised:
        usable(path)
    # There are none, and that follows from nothing else.
    lines = [line for line in str(raised.value).splitlines() if "no such file" not in line]
    assert [line.removeprefix(f"{path}:").split(": ")[:2] for line in lines] == [[str(at), key] for at, key in told]


def test_what_only_the_tier_or_the_machine_shows_is_told_with_the_rest(write: Write) -> None:
    """A model that is not there, figures that a tier makes wrong, a tier that there is not: one run of the check."""
    ladder = "ladder:\n  - {name: a, model: a.gguf}\nqueue: {limit: 0}\n"
    path = write(f"tier: mid_range\n{ladder}policy: {{critical_at: 0.7}}\n")
    absent = f"{path}:3: ladder[0].model: a: {path.parent / 'a.gguf'}: no such file; correct the level's model"
    with pytest.raises(ConfigError) as raised:
        usable(path)
    first, second, third = str(raised.value).splitlines()
    assert (first, second.split(": ")[:2]) == (absent, [f"{path}:4", "queue.limit"])
    assert third.startswith(f"{path}:5: policy.critical_at: critical_at 0.7 must be above scale_at 0.8")
    path = write(f"tier: hihg_end\n{ladder}")
    with pytest.raises(ConfigError) as raised:
        usable(path)
    tier_told, *others = str(raised.value).splitlines()
    assert tier_told.startswith(f"{path}:1: tier: there is no tier 'hihg_end'; expected 'high_end'")
    assert len(others) == 2


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("x" * 300, "file name too long"),
        ("loop.gguf", "too many levels of symbolic links"),
        ("mine.yaml/a.gguf", "not a directory"),
        ("folder.gguf", "no such file"),
    ],
)
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ladder:\n- {{name: a, model: {0}, ram_gib: 1}}\n", "ladder[0].model"),
        ("ladder:\n- {{name: a, runtime: llama-server, model: mine.yaml, binary: {0}}}", "ladder[0].binary"),
        ("\nembeddings: {{name: a, model: {0}, ram_gib: 1}}\n", "embeddings.model"),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_told_in_the_systems_words(
    write: Write, tmp_path: Path, text: str, key: str, file: str, why: str
) -> None:
    """With the line, as one at which nothing is. A locked folder ended `scaler run` in a traceback."""
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "folder.gguf").mkdir()
    path = write(text.format(file))
    with pytest.raises(ConfigError) as raised:
        use(path)
    told = f"{path}:2: {key}: a: {tmp_path / file}: {why}; correct the level's {key.rpartition('.')[2]}"
    assert str(raised.value) == told


def test_the_order_of_levels_that_are_estimated_is_told_with_the_line(
    write: Write, demo_models: dict[str, Path]
) -> None:
    """In GiB, as people have them; so is a file that is no model."""
    path = write(
        f"ladder:\n  - name: a\n    model: {demo_models['large']}\n    ram_gib: 0.9\n"
        f"  - name: b\n    model: {demo_models['small']}\n"
    )
    with pytest.raises(ConfigError) as raised:
        usable(path)
    told = r": 'b' takes 0\.\d\d GiB of RAM and 'a' before it 0\.90 GiB; expected the levels from the smallest to the"
    assert re.match(re.escape(f"{path}:5: ladder[1]") + told, str(raised.value))
    path = write("ladder:\n  - name: a\n    model: mine.yaml\n  - name: b\n    model: mine.yaml\n")
    with pytest.raises(ConfigError) as raised:
        usable(path)
    first, second = str(raised.value).splitlines()
    assert first.startswith(f"{path}:3: ladder[0].model: a: {path}: not a whole GGUF file")
    assert second.startswith(f"{path}:5: ladder[1].model: b: {path}: not a whole GGUF file")


def test_more_faults_than_can_be_read_are_counted(write: Write) -> None:
    """A file of another kind does not flood the terminal."""
    path = write("".join(f"key{number}: 1\n" for number in range(30)))
    with pytest.raises(ConfigError) as raised:
        load_settings(path)
    assert len(str(raised.value).splitlines()) == 11
    assert str(raised.value).endswith(f"{path}: and 20 more")


# ----------------------------------------------------------------------------------- any single fault, anywhere

VALID: dict[str, Any] = {
    "tier": "mid_range",
    "ladder": [
        {
            "name": name, "runtime": "embedded", "model": f"{name}.gguf", "quality": 0.5, "ram_gib": size,
            "vram_gib": size, "gpu": 0, "load_s": 5.0, "load_timeout_s": 60.0, "context_tokens": 2048, "parallel": 2,
            "threads": 2, "gpu_layers": 0, "mmap": False, "check_tensors": True, "port": 9000 + size,
        }
        for size, name in enumerate(("small", "medium", "large"), start=1)
    ],
    "embeddings": {
        "name": "embeddings", "runtime": "embedded", "model": "e.gguf", "ram_gib": 1, "context_tokens": 512,
        "threads": 2, "pooling": "mean", "load_timeout_s": 60.0, "keep_s": 300.0,
    },
    "server": {"host": "127.0.0.1", "port": 8484},
    "queue": {"limit": 32, "wait_s": 30.0},
    "monitor": {"interval_s": 1.0},
    "journal": {"path": "journal.jsonl", "max_mib": 5.0, "files": 5},
    "conversations": {"path": "conversations.sqlite", "keep": 1000},
    "recording": {"enabled": True, "path": "recording", "max_days": 31.0, "max_mib": 64.0},
    "remembered": {"enabled": True, "path": "remembered.json"},
    "processes": {"nice": 5, "oom_score_adj": 800, "memory_limit_share": 1.5},
    "notices": {"upgrades": True, "desktop": False, "webhook": "http://127.0.0.1:9/hook"},
    "policy": {**asdict(Policy()), "max_level": "large"},
}  # fmt: skip

Spot = tuple[str | int, ...]


def spots(value: Any, at: Spot = ()) -> Iterator[Spot]:
    """Every key of a configuration, sections and values alike."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        if isinstance(value, dict):
            yield (*at, key)
        yield from spots(inner, (*at, key))


def written(value: Any, fault: Spot, corrupt: Callable[[str, Any], list[str]], at: Spot = ()) -> list[tuple[Spot, str]]:
    """The configuration as lines, each with its spot; the entry at ``fault`` is written by ``corrupt``."""
    lines: list[tuple[Spot, str]] = []
    for key, inner in value.items():
        here = (*at, key)
        indent = "  " * (len(at) + sum(isinstance(part, int) for part in at))
        if here == fault:
            lines += [(here, indent + line) for line in corrupt(key, inner)]
        elif isinstance(inner, dict):
            lines += [(here, f"{indent}{key}:"), *written(inner, fault, corrupt, here)]
        elif isinstance(inner, list):
            lines.append((here, f"{indent}{key}:"))
            for position, item in enumerate(inner):
                block = written(item, fault, corrupt, (*here, position))
                column = len(indent) + 4
                first = next(i for i, (_, text) in enumerate(block) if text[:column].isspace())
                spot, text = block[first]
                block[first] = spot, f"{text[: column - 2]}- {text[column:]}"
                lines += block
        else:
            lines.append((here, f"{indent}{key}: {yaml.safe_dump(inner, default_flow_style=True).splitlines()[0]}"))
    return lines


def misspelt(key: str, value: Any) -> list[str]:
    return [f"{key}x: {yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]}"]


def another_type(key: str, value: Any) -> list[str]:
    return [f"{key}: {{nested: 1}}" if not isinstance(value, dict) else f"{key}: 7"]


def list_instead(key: str, value: Any) -> list[str]:
    return [f"{key}: [{{}}]"]


def broken_tag(key: str, value: Any) -> list[str]:
    return [f"{key}: !!python/object:os.system x"]


def twice(key: str, value: Any) -> list[str]:
    return [f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]}"] * 2


def not_a_number(key: str, value: Any) -> list[str]:
    return [f"{key}: " + (".nan" if isinstance(value, int | float) else "7")]


@pytest.mark.usefixtures("models")
def test_the_configuration_under_corruption_is_valid(write: Write) -> None:
    """Otherwise the next test would prove nothing."""
    text = "\n".join(line for _, line in written(VALID, ("nowhere",), misspelt))
    assert yaml.safe_load(text) == VALID
    assert use(write(text)).max_level == "large"


@settings(deadline=None)  # a shared machine may be slow
@given(
    spot=st.sampled_from(list(spots(VALID))),
    corrupt=st.sampled_from([misspelt, another_type, list_instead, broken_tag, twice, not_a_number]),
)
def test_any_corrupted_key_is_told_at_its_line(
    tmp_path_factory: pytest.TempPathFactory, spot: Spot, corrupt: Callable[[str, Any], list[str]]
) -> None:
    """Whatever single key of a configuration is damaged, the message names that line and that key."""
    lines = written(VALID, spot, corrupt)
    path = tmp_path_factory.getbasetemp() / "corrupted.yaml"
    path.write_text("\n".join(line for _, line in lines))
    with pytest.raises(ConfigError) as raised:
        use(path)
    at = [number for number, (here, _) in enumerate(lines, start=1) if here == spot][-1]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in spot).removeprefix(".")
    key += "x" if corrupt is misspelt else ""
    assert any(line.startswith(f"{path}:{at}: {key}") for line in str(raised.value).splitlines()), str(raised.value)


PIECES = (
    *("tier", "ladder", "policy", "band", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "!!int ", "'"),
    *(
        '"',
        "\\",
        "#",
        "|",
        ">",
        "%YAML 1.1\n",
        "---\n",
        "0x",
        "1e5",
        ".nan",
        "~",
        "?",
        "\t",
        "\x00",
        "\ufeff",
        "\u2028",
    ),
)


def refusal(path: Path, content: bytes) -> str:
    """The message about what cannot be used; empty when it can."""
    path.write_bytes(content)
    try:
        use(path)
    except ConfigError as error:
        return str(error)
    return ""


def check_told(path: Path, content: bytes) -> None:
    """Whatever is in the file, it can be used, or a message that can be printed says in which file it cannot."""
    message = refusal(path, content)
    assert not message or message.startswith(f"{path}:")
    message.encode()


@settings(deadline=None)  # a shared machine may be slow
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join))
@example("a: &a [*a]")
@example('"\\ud800": 1')
@example('"\\0": 1')
@example("ladder: [{name: a, model: 'demo:small', ram_gib: 1e305}]")
@example(f"ladder: [{{name: a, model: {'x' * 300}}}]")
@example("ladder: [{name: a, model: 'demo:small', runtime: }]")
def test_no_text_raises_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """A configuration is edited by hand, and torn by crashes: whatever is in it, the answer is a message."""
    check_told(tmp_path_factory.getbasetemp() / "text.yaml", text.encode("utf-8", "surrogatepass"))


@settings(deadline=None)  # a shared machine may be slow
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """The same for what is no text at all."""
    check_told(tmp_path_factory.getbasetemp() / "bytes.yaml", content)


def _any_value(keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
    )


KEYS = st.sampled_from(sorted({key for spot in spots(VALID) for key in spot if isinstance(key, str)}))


@settings(deadline=None)  # a shared machine may be slow
@given(st.dictionaries(st.sampled_from(sorted(VALID)), _any_value(KEYS | st.text(max_size=3)), min_size=1))
def test_no_values_raise_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    """Known keys with values that nobody thought of: either they can be used, or a message says why not."""
    check_told(tmp_path_factory.getbasetemp() / "any.yaml", yaml.safe_dump(data).encode())


# ----------------------------------------------------------------------------------------------- what is right


def test_without_a_file_the_shipped_ladder_applies(tmp_path: Path) -> None:
    """A newcomer has a ladder before they wrote a line."""
    settings = load_settings()
    assert Path(settings.file) == paths.shipped_config() / "scaler.yaml"
    assert [level.name for level in settings.ladder] == ["small", "medium", "large"]
    assert [level.model for level in settings.ladder] == [
        tmp_path / "XDG_CACHE_HOME" / "scaler" / "demo-models" / f"{name}.gguf" for name in ("small", "medium", "large")
    ]
    assert settings.journal.path == tmp_path / "XDG_STATE_HOME" / "scaler" / "journal.jsonl"


def test_the_explicit_file_goes_before_the_environments_and_that_before_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearer the wish, the more it counts."""
    files = [tmp_path / "asked.yaml", tmp_path / "named.yaml", paths.config_file()]
    files[2].parent.mkdir(parents=True)
    for number, file in enumerate(files):
        file.write_text(f"server: {{port: {number}}}\n")
    assert load_settings().server.port == 2
    monkeypatch.setenv("SCALER_CONFIG", str(files[1]))
    assert load_settings().server.port == 1
    assert load_settings(files[0]).server.port == 0
    assert load_settings(shipped=True).server.port == 8484


def test_ones_own_file_that_leads_nowhere_is_not_passed_over() -> None:
    """A link to a disk that is not mounted must not turn into the demo ladder without a word."""
    paths.config_file().parent.mkdir(parents=True)
    paths.config_file().symlink_to("/nonexistent/scaler.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings()


def test_paths_are_relative_to_the_file_and_know_home(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file means the same models wherever scaler is started."""
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir(tmp_path)
    write(
        "ladder:\n  - {name: a, model: models/a.gguf}\n  - {name: b, model: ~/b.gguf}\n  - {name: c, model: /c.gguf}\n"
        "journal: {path: j.jsonl}\nserver: {token_file: ~/token, tls: {certificate: cert.pem, key: ~/key.pem}}\n"
    )
    settings = load_settings(Path("mine.yaml"))
    models = [level.model for level in settings.ladder]
    assert models == [tmp_path / "models/a.gguf", Path("/home/ada/b.gguf"), Path("/c.gguf")]
    assert settings.journal.path == tmp_path / "j.jsonl"
    server = settings.server
    assert server.token_file == Path("/home/ada/token")
    assert server.tls == TlsSettings(certificate=tmp_path / "cert.pem", key=Path("/home/ada/key.pem"))


def test_a_file_without_a_ladder_keeps_the_demo_ladder(write: Write) -> None:
    """What is left out is as shipped."""
    settings = load_settings(write("server: {port: 1}\n"))
    assert settings.ladder == load_settings(shipped=True).ladder
    assert settings.server.port == 1


def test_levels_of_undeclared_size_are_ordered_when_they_are_sized(write: Write) -> None:
    """Only what is declared can be compared without opening a model."""
    text = (
        "ladder:\n  - {name: a, model: a, ram_gib: 3}\n  - {name: b, model: b}\n  - {name: c, model: c, ram_gib: 4}\n"
    )
    assert len(load_settings(write(text)).ladder) == 3
    with pytest.raises(ConfigError, match=r":4: ladder\[2\].ram_gib: 'c' takes 2.00 GiB of RAM and 'a' before"):
        load_settings(write(text.replace("ram_gib: 4", "ram_gib: 2")))


def test_settings_written_anew_mean_the_same(write: Write) -> None:
    """Programs take the ladder, change it and write it down again."""
    ladder = load_settings(shipped=True).ladder
    dumped = [level.model_dump(mode="json", exclude_defaults=True) for level in ladder]
    assert load_settings(write(yaml.safe_dump({"ladder": dumped}))).ladder == ladder


def test_words_that_older_yaml_turns_into_something_else_stay_words(write: Write) -> None:
    """In YAML 1.1 ``no`` is false and ``1:30`` is 90."""
    settings = load_settings(write("ladder:\n  - {name: no, model: 1:30}\n  - {name: on, model: 2024-01-01}\n"))
    assert [level.name for level in settings.ladder] == ["no", "on"]
    assert [Path(level.model).name for level in settings.ladder] == ["1:30", "2024-01-01"]


def test_aliases_within_bounds_work(write: Write) -> None:
    """Levels often share their figures."""
    text = "ladder:\n  - {name: a, model: &m m.gguf}\n  - {name: b, model: *m, context_tokens: 8192}\n"
    assert len({level.model for level in load_settings(write(text)).ladder}) == 1


def test_overrides_change_the_tiers_policy_and_nothing_else(write: Write) -> None:
    """The person's file goes on top, key by key."""
    settings = load_settings(write("policy: {band: 0.1, critical_at: 0.9}\n"))
    low = tier("low_end")
    assert asdict(settings.policy_on(low)) == {**asdict(low.policy), "band": 0.1, "critical_at": 0.9}


def test_figures_are_judged_together_only_where_they_meet(write: Write, tmp_path: Path) -> None:
    """An override may be wrong on the defaults and right on the tier that it is for."""
    (tmp_path / "careful.yaml").write_text("name: careful\nrank: 1\nrequires: []\npolicy: {scale_at: 0.6}\n")
    careful = HardwareTierDetector(tmp_path).tier("careful")
    settings = load_settings(write("policy: {critical_at: 0.7}\n"))
    assert settings.policy_on(careful).critical_at == 0.7
    with pytest.raises(ConfigError, match=r":1: policy.critical_at: "):
        settings.policy_on(tier())


def test_a_level_limit_of_a_tier_is_told_with_the_tiers_file(write: Write, tmp_path: Path) -> None:
    """The fault is where the value was written, which may be another file."""
    own = tmp_path / "low.yaml"
    own.write_text("name: low_end\npolicy: {max_level: tiny}\n")
    low = HardwareTierDetector(tmp_path).tier("low_end")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(own))}:2: policy.max_level: 'tiny' is no level"):
        load_settings(write(LADDER)).policy_on(low)
    assert load_settings(write(LADDER + "policy: {max_level: null}\n")).policy_on(low).max_level is None


def test_each_value_names_the_file_that_decided_it(write: Write, tmp_path: Path) -> None:
    """`scaler config show` answers why a figure is what it is."""
    folder = tmp_path / "tiers"
    folder.mkdir()
    own = folder / "mine.yaml"
    own.write_text("name: mid_range\npolicy: {dwell_s: 200, band: 0.07}\n")
    path = write(LADDER + "policy: {band: 0.1}\nserver: {port: 1}\n")
    settings = load_settings(path)
    decided = settings.decided(HardwareTierDetector(folder).tier("mid_range"))
    shipped = str(paths.shipped_config() / "tiers" / "mid_range.yaml")
    assert (decided["policy.band"].value, decided["policy.band"].source) == (0.1, str(path))
    assert (decided["policy.dwell_s"].value, decided["policy.dwell_s"].source) == (200, str(own))
    assert (decided["policy.scale_at"].value, decided["policy.scale_at"].source) == (0.8, shipped)
    assert decided["policy.debounce_s"].source == "default"
    assert (decided["server.port"].value, decided["server.port"].source) == (1, str(path))
    assert decided["server.host"].source == "default"
    assert decided["ladder[1].ram_gib"].source == str(path)
    assert decided["ladder[1].parallel"].source == "default"
    assert {key.removeprefix("policy.") for key in decided if key.startswith("policy.")} == asdict(Policy()).keys()


def test_the_demo_ladders_values_name_the_shipped_file(write: Write) -> None:
    """Also when the rest is the person's own."""
    decided = load_settings(write("server: {port: 1}\n")).decided(tier())
    assert decided["ladder[0].model"].source == str(paths.shipped_config() / "scaler.yaml")


def described(schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Each property of a schema that has no description."""
    for name, node in schema.get("properties", {}).items():
        if not node.get("description"):
            yield f"{at}.{name}"
        yield from described(node, f"{at}.{name}")
    for name, node in schema.get("$defs", {}).items():
        yield from described(node, name)


def test_the_schema_describes_the_values(write: Write) -> None:
    """An editor shows what a value is for, and marks what is not known."""
    schema = settings_schema()
    assert "ladder" not in schema.get("required", [])
    assert schema["properties"].keys() == VALID.keys()
    assert schema["properties"]["policy"]["properties"].keys() == asdict(Policy()).keys()
    assert schema["additionalProperties"] is False
    # described where they are defined
    names = "server queue monitor journal conversations recording remembered processes notices"
    assert set(described(schema)) <= {f".{name}" for name in names.split()}
    assert all(section["description"] for section in schema["$defs"].values())


def test_the_values_that_the_shipped_file_shows_are_the_ones_that_apply(write: Write) -> None:
    """Its comments promise them."""
    text = (paths.shipped_config() / "scaler.yaml").read_text()
    shown, count = re.subn(
        r"^# (?=(server|queue|monitor|journal|conversations|recording|remembered|processes|notices): \{)",
        "",
        text,
        flags=re.MULTILINE,
    )
    assert count == 9
    shown = shown.replace("~/.local/state/scaler", str(paths.state()))
    assert load_settings(write(shown)).model_dump() == load_settings(shipped=True).model_dump()


def test_the_example_override_of_the_shipped_file_can_be_used(write: Write) -> None:
    """A person will try it as it is."""
    text = (paths.shipped_config() / "scaler.yaml").read_text()
    assert "# policy: {" in text
    assert load_settings(write(text.replace("# policy: {", "policy: {"))).policy_on(tier()).scale_at == 0.85


# ------------------------------------------------------------------------------------------------------ places


@pytest.mark.parametrize(
    ("platform", "config", "state", "cache"),
    [
        ("linux", "{home}/.config/scaler", "{home}/.local/state/scaler", "{home}/.cache/scaler"),
        (
            "darwin",
            "{home}/Library/Application Support/scaler",
            "{home}/Library/Application Support/scaler",
            "{home}/Library/Caches/scaler",
        ),
        ("win32", "{home}/roaming/scaler", "{home}/local/scaler", "{home}/local/scaler"),
    ],
)
def test_files_are_where_the_platform_has_them(
    monkeypatch: pytest.MonkeyPatch, platform: str, config: str, state: str, cache: str
) -> None:
    """People look where their other programs' files are."""
    home = "/home/ada"
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, "relative/and/so/ignored")
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("APPDATA", f"{home}/roaming")
    monkeypatch.setenv("LOCALAPPDATA", f"{home}/local")
    monkeypatch.setattr("sys.platform", platform)
    places = [paths.config(), paths.state(), paths.cache()]
    assert places == [Path(place.format(home=home)) for place in (config, state, cache)]


def test_ones_own_file_that_may_not_be_looked_at_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one's own all the same: the shipped one in its place would be somebody else's ladder."""
    folder = tmp_path / "circle"
    folder.symlink_to(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    with pytest.raises(ConfigError, match=r"scaler\.yaml: cannot be read \(Too many levels of symbolic links\)"):
        load_settings()


def test_settings_are_immutable() -> None:
    """Two threads read them."""
    settings: Settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.tier = "low_end"
