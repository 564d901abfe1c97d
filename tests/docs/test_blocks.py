"""Every code block works as it is printed, or says why it cannot be tried."""

from __future__ import annotations

import ast
import configparser
import io
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from scaler import cli, paths
from scaler.access_token import LEAST
from scaler.assembly import assemble
from scaler.cli.diagram import documentation
from scaler.control import converse
from scaler.documents import read_document
from scaler.events import Change, DecisionMade
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.machine import Decision, Switch
from scaler.notices import Notice, notice_of
from scaler.policy import Policy
from scaler.reloading import Reload
from scaler.serving.openapi import description
from scaler.settings import ServerSettings, load_settings
from scaler.tiers import HardwareTierDetector
from tests.docs.pages import PAGES, README, ROOT, Block, blocks, fences, inline_commands
from tests.llama_server_binary import BINARY, needs_llama_server

NOT_RUN_AT_MOST = 8
"""So many blocks may say that they cannot be tried."""
TRIED = {"console", "sh", "python", "js", "yaml", "json", "ini", "promql", "mermaid"}
"""The languages that a test below is for; a block in another says why it is not run, or is named here by its page."""
TEXTS = {"metrics.md", "notices.md"}
URL = f"http://127.0.0.1:{ServerSettings().port}"
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def of(*languages: str) -> pytest.MarkDecorator:
    """Tries each block of these languages that can be tried."""
    found = [block for block in blocks(*languages) if not block.not_run]
    assert found, f"there is no block of {languages}"
    return pytest.mark.parametrize("block", found, ids=str)


def only(page: str, language: str) -> list[Block]:
    """The blocks of a language on one page."""
    return [block for block in blocks(language) if block.page.name == page]


def test_every_block_is_tried_or_says_why_not(figures: Callable[[str], None]) -> None:
    """As few as possible are not; none is passed over for a fence that is not understood."""
    every = blocks()
    assert sum(fences(page) for page in PAGES) == 2 * len(every)
    not_run = [block for block in every if block.not_run]
    strays = [block for block in every if not block.not_run and block.language not in TRIED]
    assert not [str(block) for block in strays if block.page.name not in TEXTS]
    assert len(not_run) <= NOT_RUN_AT_MOST
    assert all(len(block.not_run.split()) > 1 for block in not_run), "the comment gives the reason"
    reasons = "".join(f"\n  {block}: {block.not_run}" for block in not_run)
    figures(f"{len(every)} code blocks on {len(PAGES)} pages, {len(not_run)} of them not tried{reasons}")


@of("python")
def test_a_python_block_runs(block: Block, newcomer: dict[str, str], tmp_path: Path) -> None:
    """With the demo ladder: it says what a demo model says, and nothing on stderr."""
    program = tmp_path / "example.py"
    program.write_text(block.text, "utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], env=newcomer, cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("model speaks" in done.stdout) == (bool(re.search(r"_response|\.chat\(", block.text)))


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("block", blocks("js"), ids=str)
def test_a_javascript_block_runs(block: Block, newcomer: dict[str, str], tmp_path: Path) -> None:
    """By Node, with the scaler of this checkout."""
    program = tmp_path / "example.mjs"
    program.write_text(block.text, "utf-8")
    done = subprocess.run(
        ["node", str(program)], env=newcomer, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@of("sh")
def test_a_shell_block_runs(block: Block, newcomer: dict[str, str]) -> None:
    """What it writes is what scaler takes: a token that is long enough, which nobody else can read."""
    folder = Path(newcomer["HOME"]) / ".config" / "scaler"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["sh", "-e", "-c", block.text], env=newcomer, check=True, timeout=60)
    token = folder / "token"
    assert len(token.read_text("utf-8").strip()) >= LEAST
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


@of("yaml")
def test_a_yaml_block_is_a_configuration(block: Block, tmp_path: Path) -> None:
    """Of scaler with any tier; or of Prometheus, which finds this scaler and the files that come with it."""
    path = tmp_path / "scaler.yaml"
    path.write_text(block.text, "utf-8")
    data = read_document(path).data
    if "scrape_configs" in data:
        (job,) = data["scrape_configs"]
        assert [f"http://{target}" for one in job["static_configs"] for target in one["targets"]] == [URL]
        assert all((paths.shipped_config() / file).is_file() for file in data["rule_files"])
        return
    settings = load_settings(path)
    for tier in HardwareTierDetector(tmp_path / "none").tiers:
        assert settings.decided(tier)


def test_the_ladder_of_the_readme_can_be_used(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """With the demo models in place of those that it names."""
    (block,) = only(README.name, "yaml")
    text = block.text
    for file, path in zip(re.findall(r"model: (.*)$", text, re.MULTILINE), demo_models.values(), strict=True):
        text = text.replace(file, json.dumps(str(path)))
    config = tmp_path / "scaler.yaml"
    config.write_text(text, "utf-8")
    parts = assemble(config)
    assert parts.ladder.names == tuple(level.name for level in parts.settings.ladder) == ("small", "medium", "large")


@of("json")
def test_a_json_block_is_json(block: Block) -> None:
    """Programs are written after it."""
    assert json.loads(block.text)


def test_json_answers_have_the_keys_of_the_real_ones() -> None:
    """Those of a notice, and of a configuration that was read anew."""
    (notice,) = only("notices.md", "json")
    assert json.loads(notice.text).keys() == {field.name for field in fields(Notice)}
    (reload,) = only("reload.md", "json")
    answer = json.loads(reload.text)
    assert answer.keys() == {field.name for field in fields(Reload)}
    assert all(change.keys() == {field.name for field in fields(Change)} for change in answer["changes"])


def test_the_conversation_of_the_control_page_is_one() -> None:
    """Its hello and its sample are understood, and after five minutes of room the answer is the one that is shown."""
    hello, sample, answer = (json.loads(block.text) for block in only("control.md", "json"))
    samples = [sample | {"t": 2.0 * step} for step in range(151)]
    answers = io.BytesIO()
    converse([json.dumps(line).encode() for line in (hello, *samples)], answers, Policy())
    ready, *answered = map(json.loads, answers.getvalue().splitlines())
    assert ready == {"type": "ready"}
    assert answered[-1].keys() == answer.keys()
    assert (answered[-1]["target"], shape(answered[-1]["reason"])) == (answer["target"], shape(answer["reason"]))


def test_the_notice_that_is_shown_is_worded_like_a_real_one() -> None:
    """But for the suggestion at its end."""
    shown = only("notices.md", "text")[0].text
    reason = re.search(r"medium: (.*); large comes back", shown)
    assert reason is not None
    decision = Decision(1, 0.0, "observe", "large", "medium", "down", reason[1], (), (), {}, None)
    ladder = Ladder(
        [Level(name, {RAM: size * GIB}, 0.5, 1.0) for size, name in enumerate(("small", "medium", "large"))]
    )
    notice = notice_of(DecisionMade(Switch(1, "medium", True, 1.0, 1, decision), 0.0), ladder, Policy().dwell_s)
    assert notice is not None
    assert shown.startswith(notice.text)


def test_the_spans_that_are_shown_are_called_like_real_ones() -> None:
    """Each by words that stand in the code which names spans and steps."""
    (block,) = only("metrics.md", "text")
    shown = [re.split(r"  +", line.lstrip("├└─ "))[0] for line in block.text.splitlines() if line]
    files = [
        *(ROOT / "scaler" / "tracing").glob("*.py"),
        ROOT / "scaler" / "switching.py",
        ROOT / "scaler" / "relaying.py",
    ]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    words = {node.value.strip() for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert len(shown) == 8
    assert not [name for name in shown if name not in words and name.rpartition(" ")[0] not in words]


def shape(sentence: str) -> str:
    """A sentence without its figures."""
    return re.sub(r"\d+(\.\d+)?", "0", sentence)


@of("ini")
def test_a_unit_is_like_the_one_that_is_shipped(block: Block) -> None:
    """What it starts is ours, and what it says is said there too."""
    told, shipped = (configparser.ConfigParser(interpolation=None, strict=False) for _ in range(2))
    told.read_string(block.text)
    shipped.read_string((paths.shipped_config() / "scaler.service").read_text("utf-8"))
    for section in told.sections():
        assert told[section].items() <= shipped[section].items()


@of("promql")
def test_a_query_asks_for_metrics_that_there_are(block: Block) -> None:
    """By the table of the same page, which a test of the metrics holds."""
    known = set(re.findall(r"^\| `(\w+)` \|", block.page.read_text("utf-8"), re.MULTILINE))
    asked = set(re.findall(r"\bscaler_\w+", block.text))
    assert asked
    assert asked <= known


@of("mermaid")
def test_a_diagram_is_generated(block: Block) -> None:
    """From the table that the code runs on."""
    assert block.text in documentation()


def commands() -> list[Any]:
    """Every command of a console, and every one of ours in a sentence, once."""
    found: dict[tuple[str, ...], tuple[str, bool]] = {}
    for block in blocks("console"):
        for words in block.commands:
            found.setdefault(tuple(words), (str(block), bool(block.not_run)))
    for page in PAGES:
        for words in inline_commands(page):
            found.setdefault(tuple(words), (page.name, False))
    return [pytest.param(list(words), foreign, id=f"{at} {' '.join(words)}") for words, (at, foreign) in found.items()]


@pytest.mark.parametrize(("words", "foreign"), commands())
def test_a_command_exists_and_takes_what_it_is_given(words: list[str], foreign: bool) -> None:
    """Ours are parsed, not run. In a block that cannot be tried, other programs' are passed over."""
    while words:
        one, words = _first(words)
        if not foreign or one[0] in ("scaler", "make", "pip"):
            assert one[0] in COMMANDS, f"nothing here looks at {one[0]!r}"
            COMMANDS[one[0]](one[1:])


def _first(words: list[str]) -> tuple[list[str], list[str]]:
    """The first of several commands, without its variables, its folder and where its output goes; and the others."""
    end = words.index("&&") if "&&" in words else len(words)
    one = words[:end]
    if one[0] == "systemd-run":
        one = one[one.index("scaler") :]
    while "=" in one[0]:
        one = one[1:]
    told = next((i for i, word in enumerate(one) if word in (">", "|")), len(one))
    return [one[0].rpartition("/bin/")[2], *one[1:told]], words[end + 1 :]


def _scaler(arguments: list[str]) -> None:
    if arguments == ["--version"] or arguments[1:] == ["--help"]:
        return
    if len(arguments) == 1:  # named, not called: what it needs may be lacking
        assert arguments[0].replace("-", "_") in cli.MODULES
        return
    assert cli._parser(arguments).parse_args(arguments).run


def _make(arguments: list[str]) -> None:
    target, *variables = arguments
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    for variable in variables:
        name = variable.partition("=")[0]
        named = f"$({name})" in MAKEFILE or f"$(or $({name})" in MAKEFILE
        assert named or any(name in path.read_text("utf-8") for path in (ROOT / "tests" / "gpu").glob("*.py"))


def _pip(arguments: list[str]) -> None:
    action, *rest = arguments
    if action == "uninstall":
        assert rest == [PROJECT["name"]]
    for extras in re.findall(r"\[(.*)\]", " ".join(rest)):
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert action in ("install", "uninstall", "upgrade")


def _curl(arguments: list[str]) -> None:
    (url,) = (word for word in arguments if word.startswith("http"))
    assert url.startswith(URL)
    assert url.removeprefix(URL).partition("?")[0] in description(token=False)["paths"]
    if "-d" in arguments:
        assert json.loads(arguments[arguments.index("-d") + 1])


def _python(arguments: list[str]) -> None:
    _, module, *options = arguments
    if module == "venv":
        return
    spec = find_spec(f"{module}.__main__") or find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text("utf-8")
    assert all(f'"{word}"' in text for word in options if word.startswith("--"))


def _systemctl(arguments: list[str]) -> None:
    assert arguments[0] == "--user"
    assert not set(arguments[1:]) - {"daemon-reload", "enable", "disable", "status", "reload", "--now", "scaler"}


@cache
def _llama_server_help() -> str:
    return subprocess.run([BINARY, "--help"], check=True, capture_output=True, text=True, timeout=60).stdout


@needs_llama_server
@pytest.mark.parametrize("block", [one for one in blocks("console") if one.text.startswith("llama-server ")], ids=str)
def test_llama_server_takes_the_arguments_that_it_is_started_with(block: Block) -> None:
    """By its own help."""
    for _, *arguments in block.commands:
        for option in arguments:
            assert not option.startswith("--") or re.search(rf"(^|[\s,]){option}\b", _llama_server_help(), re.MULTILINE)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "scaler": _scaler,
    "make": _make,
    "pip": _pip,
    "curl": _curl,
    "pipx": _pip,
    "uv": lambda arguments: _pip(arguments[1:]),
    "python": _python,
    "python3": _python,
    "systemctl": _systemctl,
    "mkdir": lambda _: None,
    "rm": lambda _: None,
    "llama-server": lambda _: None,  # the test above
}
"""How the commands of a program are looked at."""
