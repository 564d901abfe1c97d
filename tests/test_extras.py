"""What somebody is told who uses a part whose extra is not installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scaler import extras
from scaler.errors import MissingExtra

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LADDER = "ladder:\n  - {{name: only, quality: 1, {level}}}\nserver: {{port: 0}}\n{more}"


def config(folder: Path, level: str, more: str = "") -> list[str]:
    """``--config`` with a ladder of one such level."""
    file = folder / "scaler.yaml"
    file.write_text(LADDER.format(level=level, more=more), "utf-8")
    return ["--config", str(file)]


def served(folder: Path, runtime: str) -> list[str]:
    """``--config`` with a ladder that such a runtime serves."""
    return config(folder, f"runtime: {runtime}, model: m")


def embedded(folder: Path, more: str = "") -> list[str]:
    """``--config`` with a ladder that scaler loads itself."""
    (folder / "model.gguf").touch()
    return config(folder, f"model: {folder / 'model.gguf'}, ram_gib: 0.1", more)


@dataclass(frozen=True)
class Use:
    """Something that needs an extra, and how scaler ends without it: 2 where the configuration asks for it, else 3."""

    extra: str
    code: int
    arguments: Callable[[Path], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    terminal: bool = False


USES = [
    Use("llama", 3, lambda folder: ["demo-models", "--folder", str(folder / "models")]),
    Use("llama", 2, lambda folder: ["config", "check", *embedded(folder)]),
    Use("server", 3, lambda folder: ["run", *embedded(folder)]),
    Use("server", 2, lambda folder: ["config", "check", *served(folder, "openai, url: 'http://127.0.0.1:9/v1'")]),
    Use("server", 3, lambda folder: ["init"]),
    Use("ollama", 2, lambda folder: ["config", "check", *served(folder, "ollama, ram_gib: 1")]),
    Use("plots", 3, lambda folder: ["replay", str(folder), "--picture", str(folder / "replay.png")]),
    Use("desktop", 3, lambda folder: ["run", *embedded(folder, "notices: {desktop: true}")]),
    Use("demo", 3, lambda folder: ["demo"]),
    Use("tui", 3, lambda folder: ["top"], terminal=True),
    Use("otel", 3, lambda folder: ["run", *embedded(folder)], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}),
]


def brought_by(extra: str) -> set[str]:
    """The modules that nothing but this extra brings to a plain install."""
    plain, brought = (
        {canonicalize_name(Requirement(line).name) for line in lines}
        for lines in (PROJECT["dependencies"], EXTRAS[extra])
    )
    return {
        module
        for module, names in packages_distributions().items()
        if {canonicalize_name(name) for name in names} & (brought - plain)
    }


def test_every_extra_is_looked_at() -> None:
    """A new one comes with what it says when it is absent."""
    assert {use.extra for use in USES} == EXTRAS.keys() - {"dev"}


@pytest.mark.parametrize("use", [pytest.param(use, id=f"{use.extra}-{use.code}") for use in USES])
def test_what_an_absent_extra_brings_is_asked_for_in_one_line(use: Use, tmp_path: Path) -> None:
    """The library, the extra and the command that installs it; never a traceback."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(brought_by(use.extra))}));"
        "from scaler.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "SCALER_", "OTEL_"))}
    places = {**kept, **use.environment, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    command = [sys.executable, "-c", program, *use.arguments(tmp_path)]
    code, said = on_a_terminal(command, places) if use.terminal else piped(command, places)
    assert code == use.code, said
    (line,) = said.splitlines()
    asked = re.fullmatch(
        r"scaler: (?:.*: )?[\w.]+ is not installed; install it with: .*pip install .*\[(.+)\]['\"]?", line
    )
    assert asked, line
    assert use.extra in asked[1].split(",")


def piped(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code, and what is said on stderr; on stdout there is to be nothing."""
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def on_a_terminal(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code, and what is said on a terminal."""
    openpty = getattr(os, "openpty", None)
    if openpty is None:
        pytest.skip("this system has no pseudo terminals")
    main, terminal = openpty()
    try:
        with subprocess.Popen(command, env=environment, stdin=terminal, stdout=terminal, stderr=terminal) as running:
            code = running.wait(60)
        return code, os.read(main, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(main)


@dataclass(frozen=True)
class Installed:
    """How scaler came to be in an environment, and the command that adds an extra to it there."""

    command: str
    origin: Mapping[str, object] | None = None
    """What the installer wrote into direct_url.json; nothing where it came from an index."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """The files of an installer, by their names."""


RECEIPT = '[tool]\nrequirements = [{ name = "capability-scaler", extras = ["llama", "server"] }]\n'
GIT = {
    "url": "https://example.org/scaler.git",
    "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "0123abc"},
}
WHEEL = "https://example.org/capability_scaler-0.1.0-py3-none-any.whl"
INSTALLED = {
    "an index": Installed("{pip} 'capability-scaler[plots]'"),
    "a folder": Installed("{pip} '{folder}[plots]'", {"url": "{url}", "dir_info": {}}),
    "a checkout": Installed("{pip} --editable '{folder}[plots]'", {"url": "{url}", "dir_info": {"editable": True}}),
    "a wheel": Installed("{pip} '{folder}/s.whl[plots]'", {"url": "{url}/s.whl", "archive_info": {}}),
    "a wheel elsewhere": Installed(f"{{pip}} 'capability-scaler[plots] @ {WHEEL}'", {"url": WHEEL, "archive_info": {}}),
    "git": Installed(
        "{pip} 'capability-scaler[plots] @ git+https://example.org/scaler.git@0123abc'",
        GIT,
    ),
    "pipx": Installed(
        "pipx runpip capability-scaler install '{folder}[plots]'",
        {"url": "{url}", "dir_info": {}},
        {"pipx_metadata.json": ""},
    ),
    "uv": Installed("uv tool install 'capability-scaler[llama,server,plots]'", None, {"uv-receipt.toml": RECEIPT}),
}


@pytest.mark.skipif(sys.platform == "win32", reason="the words are quoted as this system's shell has them")
@pytest.mark.parametrize("installed", [pytest.param(one, id=name) for name, one in INSTALLED.items()])
def test_the_command_installs_it_from_where_scaler_came_from(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index knows of no checkout; in an environment of pipx or uv there is no pip to be called by its name."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "s.whl").touch()
    pretend(installed, folder, monkeypatch)
    expected = installed.command.format(pip=f"{sys.executable} -m pip install", folder=folder)
    with pytest.raises(MissingExtra, match=f"install it with: {re.escape(expected)}$"):
        extras.require("plots", "matplotlib")


def pretend(installed: Installed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this environment look as if scaler had been installed so, from ``folder``; no pip is on the PATH."""
    information = folder.parent / "capability_scaler-0.1.0.dist-info"
    information.mkdir()
    if installed.origin is not None:
        text = json.dumps(installed.origin).replace("{url}", folder.as_uri())
        (information / "direct_url.json").write_text(text, "utf-8")
    for name, text in installed.marks.items():
        (folder.parent / name).write_text(text, "utf-8")
    monkeypatch.setattr(metadata, "distribution", lambda _: metadata.PathDistribution(information))
    monkeypatch.setattr(sys, "prefix", str(folder.parent))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_sources_that_are_gone_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be installed from there."""
    gone = tmp_path / "gone"
    gone.mkdir()
    pretend(INSTALLED["a folder"], gone, monkeypatch)
    gone.rmdir()
    with pytest.raises(MissingExtra, match=re.escape(f"({gone} is gone)")):
        extras.require("plots", "matplotlib")


def test_a_broken_install_is_not_called_a_missing_extra() -> None:
    """No command would bring a module of scaler's own."""
    with pytest.raises(ModuleNotFoundError), extras.importing("server"):
        import scaler.no_such_module  # type: ignore[import-not-found]  # noqa: F401
