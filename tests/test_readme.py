"""What the README shows works as it is printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scaler import cli
from scaler.assembly import assemble
from scaler.settings import ServerSettings, load_settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[list[str]]:
    """Every command of the console blocks and every inline one of ours, as words."""
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    lines += re.findall(r"`((?:scaler|make|pip) [^`]+)`", README)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def newcomer(tmp_path: Path, demo_models: dict[str, Path]) -> dict[str, str]:
    """The environment of somebody who has made the demo models and configured nothing."""
    made = tmp_path / "cache" / "scaler" / "demo-models"
    made.mkdir(parents=True)
    for path in demo_models.values():
        (made / path.name).symlink_to(path)
    places = {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("CONFIG", "STATE", "CACHE")}
    return {name: value for name, value in os.environ.items() if name != "SCALER_CONFIG"} | places


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_example_runs_as_it_is_printed(code: str, newcomer: dict[str, str], tmp_path: Path) -> None:
    """With the demo ladder: it says what a demo model says, and nothing on stderr."""
    program = tmp_path / "example.py"
    program.write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], env=newcomer, cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("model speaks") == code.count("_response")


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_yaml_example_is_a_configuration(text: str, demo_models: dict[str, Path], tmp_path: Path) -> None:
    """With the demo models in place of those that it names."""
    files = re.findall(r"model: (.*)$", text, re.MULTILINE)
    for file, path in zip(files, demo_models.values(), strict=True):
        text = text.replace(file, json.dumps(str(path)))
    config = tmp_path / "scaler.yaml"
    config.write_text(text, "utf-8")
    parts = assemble(config)
    assert [str(level.model) for level in parts.settings.ladder] == [str(path) for path in demo_models.values()]
    assert parts.ladder.names == tuple(level.name for level in parts.settings.ladder)


@pytest.mark.parametrize("words", shell_lines(), ids=" ".join)
def test_a_command_exists_and_takes_what_it_is_given(words: list[str]) -> None:
    """Ours are parsed, not run."""
    program, *arguments = words
    match program.removeprefix(".venv/bin/"):
        case "scaler":
            assert cli._parser(arguments).parse_args(arguments).run
        case "make":
            assert re.search(rf"^{arguments[0]}:", MAKEFILE, re.MULTILINE)
        case "pip" if arguments[0] == "install":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
            asked = re.search(r"\[(.*)\]", arguments[1])
            assert asked is not None
            assert set(asked[1].split(",")) <= extras.keys()
        case "pip":
            assert arguments == ["uninstall", "capability-scaler"]
        case "curl":
            assert arguments[0] == f"http://127.0.0.1:{ServerSettings().port}/v1/chat/completions"
            assert json.loads(arguments[arguments.index("-d") + 1])["messages"]
        case _:
            pytest.fail(f"the README calls {program!r}, which nothing here looks at")


def test_there_is_something_of_each_kind_to_look_at() -> None:
    """Or the tests above would be empty."""
    assert len(blocks("python")) >= 2
    assert blocks("yaml")
    assert len(shell_lines()) > 10
    assert README.count("```") == 2 * len(re.findall(r"^```[a-z]+$", README, re.MULTILINE))


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)", README))
def test_a_link_leads_somewhere(link: str) -> None:
    """Files of the checkout."""
    assert (ROOT / link).exists()


def test_the_ladder_of_the_serving_page_is_one(tmp_path: Path) -> None:
    """What is copied from it works."""
    text = (ROOT / "docs" / "serving.md").read_text("utf-8")
    path = tmp_path / "scaler.yaml"
    path.write_text("".join(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)), "utf-8")
    settings = load_settings(path)
    assert [level.standby for level in settings.ladder] == [True, False]
    assert settings.embeddings is not None
    assert settings.server.tls is not None
