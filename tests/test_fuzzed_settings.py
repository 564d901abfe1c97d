"""The configuration's loader under files that nobody meant: it is a configuration or a message, and it ends.

`make fuzz` tries many more. The figures stand at the end of the tests' output.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from scaler import paths
from scaler.assembly import usable
from scaler.errors import ConfigError

MANY = int(os.environ.get("FUZZ", "12")) * 40
LIMIT_S = 5.0
"""A file that takes longer hangs the loader: most take some milliseconds."""
SHIPPED = re.sub(r"^# (?=[a-z]+: )", "", (paths.shipped_config() / "scaler.yaml").read_text(), flags=re.MULTILINE)
"""The shipped file with all that it shows switched on: every section is there to be broken."""
LINES = SHIPPED.split("\n")
ODD = (
    "\0", "\ufeff", "\x85", "\t", "%YAML 9.9\n", "---\n", "...\n", "&a ", "*a", "!!python/object/apply:os.system [id]",
    "!!binary x", "<<: *a", "? ", "| \n", ">-", "{", "}", "[", "]", "[" * 40, "{a: " * 40, "'", '"', "\\ud800",
    '"\\ud800"', '"\\x1b[31m"', "9" * 5000, "1e999", "-.inf", ".nan", "0x" + "f" * 200, "0o17", "1_000", "2026-11-25",
    "12:30:45", "null", "~", "off", "yes", ": ", "- ", "#", "\r", "\u2028", "\u202e", "a: &x [*x]", "~nosuchuser/x",
    "http://me:pass@h", "http://[", "-0", "1" + "0" * 300, "tier: auto\ntier: auto", "\udcff", '"\\0"', "1e305",
    "x" * 300,
)  # fmt: skip
"""Pieces that YAML, Python or pydantic has stumbled over somewhere."""
BOMBS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "a: " + "[" * 20_000,
    "a: " + "{a: " * 10_000,
    "- " * 30_000,
    "? " * 30_000,
    "a: " + "!" * 60_000,
    "&a " * 20_000,
    "a: '" + "x\n\n" * 20_000,
    "a: " + "1" * 60_000,
    'a: "' + "\\x41" * 15_000 + '"',
    "".join(f"k{number}: 1\n" for number in range(7000)),
    "x" * 65_536,
    "policy: {" + "scale_at: 0.5," * 4000 + "}",
)  # fmt: skip
"""Short files, or ones just below the limit, that stand for much."""
STUMBLED = {
    "a NUL in a key": '"\\0": 1',
    "half a character in a key": '"\\ud800": 1',
    "a figure that overflows": "ladder: [{name: a, model: 'demo:small', ram_gib: 1e305}]",
    "one of a GPU": "ladder: [{name: a, model: 'demo:small', ram_gib: 1, vram_gib: 1e305}]",
    "one of the embeddings": "embeddings: {model: 'demo:small', ram_gib: 1e305}",
    "a name that is too long": f"ladder: [{{name: a, model: {'x' * 300}}}]",
    "a runtime with nothing behind it": "ladder: [{name: a, model: 'demo:small', runtime: }]",
}
"""What is to be refused, and once ended in a traceback or in a message that said nothing."""


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The shipped file with a few lines gone, doubled, swapped or spoilt."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 6)):
            case 0:
                lines[at] = ""
            case 1:
                lines.insert(at, lines[at])
            case 2:
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = draw(st.sampled_from(("", " ", "  ", "      "))) + lines[at].lstrip()
            case 4:
                lines[at] = f"{lines[at].partition(':')[0]}: {draw(st.sampled_from(ODD))}"
            case 5:
                cut = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:cut] + draw(st.sampled_from(ODD)) + lines[at][cut:]
            case _:
                before, value, after = re.split(r"([0-9.]+|true|false|null|auto|$)", lines[at], maxsplit=1)
                lines[at] = f"{before}{draw(SCALARS)}{after}" if value else lines[at]
    return "\n".join(lines).encode("utf-8", "surrogateescape")


SCALARS = st.sampled_from(ODD) | st.integers().map(str) | st.floats().map(repr) | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda of: f"[{', '.join(of)}]")
        | st.dictionaries(st.text("abcdefgh_: ", max_size=6), inner, max_size=4).map(
            lambda of: "{" + ", ".join(f"{key}: {value}" for key, value in of.items()) + "}"
        )
    ),
    max_leaves=10,
)
TOP = st.sampled_from(re.findall(r"^([a-z]+):", SHIPPED, flags=re.MULTILINE))
SECTIONS = st.lists(st.tuples(TOP, VALUES), max_size=4).map(
    lambda of: "".join(f"{key}: {value}\n" for key, value in of).encode("utf-8", "surrogatepass")
)
KINDS = {
    "lines of the shipped file changed": mutated(),
    "keys with odd values": SECTIONS,
    "plain noise": st.binary(max_size=400) | st.text(max_size=400).map(lambda text: text.encode("utf-8", "replace")),
}


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_models: dict[str, Path]) -> None:
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    # The one model that the shipped file names and that nobody makes.
    monkeypatch.setenv("HOME", str(tmp_path))
    vectors = tmp_path / "models" / "nomic-embed-text-v1.5.Q8_0.gguf"
    vectors.parent.mkdir()
    vectors.symlink_to(demo_models["small"])


def outcome(path: Path, content: bytes) -> str:
    """What becomes of a file on the way of `scaler config check`, `run` and `reload`; whatever else is raised is the
    fault that is looked for.
    """
    path.write_bytes(content)
    began = time.monotonic()
    try:
        parts = usable(path)
        parts.settings.decided(parts.tier.tier)
    except ConfigError as error:
        said = str(error)
        # Each line says where: the file, then the line or what is wrong with the whole of it.
        assert all(line.startswith(f"{path}:") for line in said.split("\n")), said
        assert all(character.isprintable() or character == "\n" for character in said), said
        assert len(said) < 20_000, len(said)
        return "refused"
    finally:
        assert time.monotonic() - began < LIMIT_S
    return "taken"


def test_the_file_that_is_broken_here_is_whole(tmp_path: Path) -> None:
    """Else every one would be refused for the same reason."""
    assert outcome(tmp_path / "scaler.yaml", SHIPPED.encode()) == "taken"


@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_taken_or_refused_with_its_place(
    tmp_path: Path, kind: str, figures: Callable[[str], None]
) -> None:
    """Never another exception, never a hang."""
    told: Counter[str] = Counter()
    path = tmp_path / "scaler.yaml"
    began = time.monotonic()

    @seed(20261125)
    @settings(max_examples=MANY, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(KINDS[kind])
    def each(content: bytes) -> None:
        told[outcome(path, content)] += 1

    each()
    figures(
        f"configuration, {kind}: {told.total()} files in {time.monotonic() - began:.0f} s "
        f"({told['taken']} taken, {told['refused']} refused with their place); no other exception"
    )
    assert told["refused"]


@pytest.mark.parametrize("what", STUMBLED)
def test_what_the_loader_has_stumbled_over_is_refused(tmp_path: Path, what: str) -> None:
    """Each of them by itself, since chance may not find it again."""
    assert outcome(tmp_path / "scaler.yaml", STUMBLED[what].encode()) == "refused"


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_a_bomb_is_refused_at_once(tmp_path: Path, number: int) -> None:
    """Aliases that stand for billions of values, nesting without end, numbers without end."""
    assert outcome(tmp_path / "scaler.yaml", BOMBS[number].encode()) == "refused"
