"""`scaler init`: what a newcomer sees, what is written, and what never is."""

from __future__ import annotations

import json
import os
import pty
import re
import socketserver
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from scaler.settings import load_settings
from tests.cli.conftest import PATIENT, Run
from tests.discovery.servers import answering, listing, response, speaking
from tests.runtimes.ollama_server import Model, OllamaServer

MIB = 1024**2
SHAPE = {
    "llama.embedding_length": 256,
    "llama.block_count": 4,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 4,
}
"""What Ollama tells of a model when it is asked for that one; the cache of such a model is small."""


@pytest.fixture
def places(places: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same with a home of its own."""
    return {**places, "HOME": str(tmp_path), "COLUMNS": "100"}


@pytest.fixture
def ollama() -> Iterator[str]:
    """The address of an Ollama with three models that fit any machine, one that fits none and one that embeds."""
    sizes = {"tiny:1b": (60, "10M"), "middle:3b": (150, "30M"), "big:8b": (400, "70M"), "huge:70b": (2**30, "70B")}
    models = {
        name: Model(MIB, file_bytes=size * MIB, parameter_size=count, info=SHAPE)
        for name, (size, count) in sizes.items()
    }
    with OllamaServer({**models, "nomic-embed-text": Model(MIB, family="nomic-bert")}) as server:
        yield server.url
        assert not server.loaded
        server.faults.clear()


@pytest.fixture
def own(places: dict[str, str]) -> Path:
    """Where the person's own configuration is, or would be."""
    return Path(places["XDG_CONFIG_HOME"]) / "scaler" / "scaler.yaml"


def models(path: Path) -> list[str]:
    """What the levels of a configuration are made of."""
    return [str(level.model_dump()["model"]) for level in load_settings(path).ladder]


def on_a_terminal(
    answer: str, environment: Mapping[str, str], *arguments: str, meanwhile: Callable[[], object] = lambda: None
) -> tuple[int, str]:
    """The exit code and the screen of a command on a terminal on which a person types ``answer`` when it asks.

    ``meanwhile``: what is done while it waits for the answer.
    """
    main, screen = pty.openpty()
    with subprocess.Popen(
        [*PATIENT, *arguments], stdin=screen, stdout=screen, stderr=screen, env=environment, start_new_session=True
    ) as running:
        os.close(screen)
        told = b""
        while True:
            try:
                piece = os.read(main, 4096)
            except OSError:  # it ended
                break
            if not piece:
                break
            told += piece
            if told.endswith(b"[y/N] "):
                meanwhile()
                os.write(main, answer.encode())
    os.close(main)
    return running.returncode, told.decode().replace("\r\n", "\n")


def test_without_a_terminal_it_prints_the_configuration_and_writes_nothing(
    scaler: Run, ollama: str, own: Path, tmp_path: Path
) -> None:
    """The YAML alone on standard output, so that it can be kept; what it found, and that it did not write, beside."""
    done = scaler("init", "--only", "--url", ollama)
    assert done.returncode == 0
    kept = tmp_path / "kept.yaml"
    kept.write_text(done.stdout)
    assert models(kept) == ["tiny:1b", "middle:3b", "big:8b"]
    assert f"Nothing was written, for there is nobody to ask: --yes writes {own}." in done.stderr
    assert not own.exists()
    again = scaler("init", "--only", "--url", ollama, "--stdout")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "Nothing was written" not in again.stderr
    assert not own.exists()


def test_the_summary_says_what_is_where_what_is_proposed_and_why_the_rest_is_not(scaler: Run, ollama: str) -> None:
    """In the words of a newcomer, with the figures."""
    told = scaler("init", "--only", "--url", ollama, "--yes").stdout
    assert f"  Ollama 0.13.0 at {ollama}: 4 models, and 1 of no use here\n" in told
    assert "Proposed: Ollama's models (nothing else was found)\n" in told
    assert [line.split()[:3] for line in told.splitlines() if "  takes " in line and "ram" not in line.lower()] == [
        ["small", "tiny:1b", "10M"],
        ["medium", "middle:3b", "30M"],
        ["large", "big:8b", "70M"],
    ]
    assert "  nomic-embed-text:latest: an embedding model" in told
    assert "  huge:70b: takes " in told
    assert "reckoned for other programs" in told


def test_what_it_writes_works_out_at_the_servers_themselves(scaler: Run, ollama: str, own: Path) -> None:
    """With --yes nobody is asked; then the next step that it names is taken."""
    done = scaler("init", "--only", "--url", ollama, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Wrote {own}. Now:\n  scaler config check  # tells" in done.stdout
    assert models(own) == ["tiny:1b", "middle:3b", "big:8b"]
    assert list(own.parent.iterdir()) == [own]
    assert scaler("config", "check").stdout == "ok\n"


def test_a_file_that_is_there_is_never_written_over_unasked(scaler: Run, ollama: str, own: Path) -> None:
    """--yes refuses, and says what to do; --force keeps what was there, each time."""
    own.parent.mkdir(parents=True)
    own.write_text("tier: low_end\n")
    looked = ("init", "--only", "--url", ollama)
    refused = scaler(*looked, "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{own} is there already, and nothing was written; --force replaces it" in refused.stderr
    assert own.read_text() == "tier: low_end\n"
    forced = scaler(*looked, "--force")
    kept = own.with_name("scaler.yaml.bak")
    assert forced.returncode == 0
    assert f"what was there is {kept}" in forced.stdout
    assert kept.read_text() == "tier: low_end\n"
    first = own.read_text()
    assert scaler(*looked, "--force", "--yes").returncode == 0
    assert own.with_name("scaler.yaml.bak2").read_text() == first
    assert kept.read_text() == "tier: low_end\n"


def test_what_writes_nothing_cannot_be_forced_to(scaler: Run, ollama: str, own: Path) -> None:
    """`--stdout` is believed by whoever only wants to look; `--force` with `--yes` says the same twice."""
    own.parent.mkdir(parents=True)
    own.write_text("tier: low_end\n")
    looked = ("init", "--only", "--url", ollama, "--force")
    refused = scaler(*looked, "--stdout")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "scaler: --stdout writes nothing, and --force writes over a file; expected one of them\n"
    assert own.read_text() == "tier: low_end\n"
    assert scaler(*looked, "--yes").returncode == 0
    assert own.with_name("scaler.yaml.bak").read_text() == "tier: low_end\n"


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_file_that_comes_to_be_there_while_it_looks_is_not_written_over(
    scaler: Run, own: Path, more: tuple[str, ...]
) -> None:
    """The search takes seconds, in which a person may save what they have been writing."""

    def talk(handler: socketserver.StreamRequestHandler, line: str) -> None:
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text("tier: low_end\n")
        known = line.split()[1] == "/v1/models"
        handler.wfile.write(response(json.dumps(listing("one")).encode(), 200 if known else 404))

    with speaking(talk) as server:
        refused = scaler("init", "--only", "--url", server.url, "--yes", *more)
        assert refused.returncode == 1
        assert f"scaler: {own} is there already, and nothing was written; --force replaces it" in refused.stderr
        assert (own.read_text(), list(own.parent.iterdir())) == ("tier: low_end\n", [own])
        assert scaler("init", "--only", "--url", server.url, "--yes", "--force", *more).returncode == 0
    assert own.with_name("scaler.yaml.bak").read_text() == "tier: low_end\n"
    assert models(own) == ["one"]


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_comes_to_be_there_while_it_asks_is_not_written_over(
    ollama: str, own: Path, places: dict[str, str], tmp_path: Path, link: bool
) -> None:
    """The person said yes to a new file, and to no other; a dangling link counts as a file."""

    def save() -> None:
        own.parent.mkdir(parents=True)
        if link:
            own.symlink_to(tmp_path / "elsewhere.yaml")
        else:
            own.write_text("tier: low_end\n")

    code, screen = on_a_terminal("y\n", places, "init", "--only", "--url", ollama, meanwhile=save)
    assert code == 1
    assert f"Write {own}? [y/N] " in screen
    assert f"{own} is there already, and nothing was written" in screen
    assert list(own.parent.iterdir()) == [own]
    assert not (tmp_path / "elsewhere.yaml").exists()
    assert link or own.read_text() == "tier: low_end\n"


def test_it_writes_where_it_is_told_to_or_where_scaler_will_read(
    scaler: Run, ollama: str, own: Path, tmp_path: Path
) -> None:
    """Folders are made on the way; the environment's file comes before one's own, as it does everywhere."""
    looked = ("init", "--only", "--url", ollama, "--yes")
    there = tmp_path / "a" / "b" / "mine.yaml"
    done = scaler(*looked, "--output", str(there))
    assert f"  scaler run --config {there}\n" in done.stdout
    assert len(models(there)) == 3
    named = tmp_path / "named.yaml"
    done = scaler(*looked, env={"SCALER_CONFIG": str(named)})
    assert "  scaler run\n" in done.stdout
    assert len(models(named)) == 3
    assert not own.exists()


def test_a_link_to_a_configuration_that_is_kept_elsewhere_stays_one(
    scaler: Run, ollama: str, own: Path, tmp_path: Path
) -> None:
    """A dangling one counts as a file that is there."""
    elsewhere = tmp_path / "dotfiles" / "scaler.yaml"
    own.parent.mkdir(parents=True)
    own.symlink_to(elsewhere)
    looked = ("init", "--only", "--url", ollama)
    assert scaler(*looked, "--yes").returncode == 1
    assert scaler(*looked, "--force").returncode == 0
    assert own.is_symlink()
    assert len(models(elsewhere)) == 3


def test_what_cannot_be_written_is_one_message(scaler: Run, ollama: str, tmp_path: Path) -> None:
    """With the way out; nothing half is left."""
    (tmp_path / "file").touch()
    there = tmp_path / "file" / "scaler.yaml"
    failed = scaler("init", "--only", "--url", ollama, "--yes", "--output", str(there))
    assert failed.returncode == 3
    assert f"{there}: cannot be written (" in failed.stderr
    assert "--output" in failed.stderr


@pytest.mark.parametrize(
    ("answer", "writes"), [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False), ("\x04", False)]
)
def test_on_a_terminal_it_asks_first(answer: str, writes: bool, ollama: str, own: Path, places: dict[str, str]) -> None:
    """Anything but yes is no, also the end of the input."""
    code, screen = on_a_terminal(answer, places, "init", "--only", "--url", ollama)
    assert f"Write {own}? [y/N] " in screen
    assert (code, own.exists()) == ((0, True) if writes else (1, False))
    assert ("Nothing was written; --stdout shows what would have been." in screen) == (not writes)


def test_on_a_terminal_it_asks_whether_to_replace_a_file(ollama: str, own: Path, places: dict[str, str]) -> None:
    """And says where what is there will be."""
    own.parent.mkdir(parents=True)
    own.write_text("tier: low_end\n")
    code, screen = on_a_terminal("n\n", places, "init", "--only", "--url", ollama)
    assert f"{own} is there already. Replace it, and keep it as scaler.yaml.bak? [y/N] " in screen
    assert (code, own.read_text()) == (1, "tier: low_end\n")
    code, _ = on_a_terminal("y\n", places, "init", "--only", "--url", ollama)
    assert code == 0
    assert own.with_name("scaler.yaml.bak").read_text() == "tier: low_end\n"
    assert len(models(own)) == 3


def test_without_models_nothing_is_written_and_it_is_said_how_to_get_some(
    scaler: Run, own: Path, tmp_path: Path
) -> None:
    """Exit code 1, also for scripts that would not ask."""
    for more in ((), ("--yes",)):
        done = scaler("init", "--only", "--models", str(tmp_path / "none"), *more)
        assert done.returncode == 1
        told = done.stdout + done.stderr
        assert "Found\n  no GGUF file in ~/none\n    there is no such folder\n" in told
        assert "Nothing to propose: no models were found." in told
        assert "ollama pull llama3.2:3b" in told
        assert "Nothing was written: the demo ladder applies.\n" in told
        assert not own.exists()
    assert scaler("init", "--only", "--models", str(tmp_path / "none")).stdout == ""
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("{}")
    told = scaler("init", "--only", "--models", str(tmp_path / "none")).stderr
    assert f"Nothing was written: {own} goes on to apply.\n" in told


def test_gguf_files_are_a_ladder_for_scalers_own_llama_cpp(
    scaler: Run, own: Path, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """Named so that they are found from anywhere."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("small", "medium"):
        (folder / f"{name}.gguf").symlink_to(demo_models[name])
    assert scaler("init", "--only", "--models", str(folder), "--yes").returncode == 0
    assert "model: ~/models/small.gguf" in own.read_text()
    assert scaler("config", "check").stdout == "ok\n"


def test_a_person_chooses_whose_models_are_taken(scaler: Run, ollama: str, own: Path) -> None:
    """What else would be possible is said; what there are no models of is a no."""
    with answering({"/v1/models": listing("routed")}) as server:
        looked = ("init", "--only", "--url", ollama, "--url", server.url, "--yes")
        told = scaler(*looked, "--runtime", "openai")
        assert "--runtime ollama (3 levels)" in told.stdout
        assert models(own) == ["routed"]
        none = scaler(*looked, "--force", "--runtime", "vllm")
    assert none.returncode == 1
    assert "Nothing to propose: no models of vllm were found." in none.stdout
    assert models(own) == ["routed"]


def test_programs_get_it_as_json(scaler: Run, ollama: str, own: Path) -> None:
    """What was found, what is proposed and why, what would be written; it is written only if that is asked for."""

    def told(*more: str) -> dict[str, Any]:
        done = scaler("init", "--only", "--url", ollama, "--json", *more)
        assert (done.returncode, done.stderr) == (0, "")
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    report = told()
    assert [source["what"] for source in report["found"]] == ["Ollama 0.13.0"]
    assert [level["model"]["name"] for level in report["proposal"]["levels"]] == ["tiny:1b", "middle:3b", "big:8b"]
    assert [one["name"] for one in report["proposal"]["left_out"]] == ["huge:70b"]
    assert report["rooms"]["ram"]["free"] > 0
    assert (report["written"], report["path"], report["install"]) == (False, str(own), None)
    assert not own.exists()
    assert told("--yes")["written"]
    assert own.read_text() == report["yaml"]
    nothing = scaler("init", "--only", "--url", ollama, "--json", "--runtime", "vllm")
    assert nothing.returncode == 1
    assert json.loads(nothing.stdout)["yaml"] is None


def test_what_is_to_be_installed_first_is_said(scaler: Run, ollama: str, tmp_path: Path) -> None:
    """Here without Ollama's client; the proposal stands, for there is nothing else."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'ollama' else find(name, *more)\n"
    )
    told = scaler("init", "--only", "--url", ollama, "--yes", env={"PYTHONPATH": str(tmp_path)}).stdout
    assert re.search(r"First, ollama is not installed; install it with: .*pip install .*\[ollama\]'\nWrote ", told)


def test_a_key_is_shown_to_whom_it_is_meant_for_and_written_nowhere(scaler: Run, own: Path) -> None:
    """Only the name of its variable is."""
    with answering({"/v1/models": listing("locked")}) as server:
        done = scaler(
            "init", "--only", "--url", server.url, "--key-env", "MY_KEY", "--yes", env={"MY_KEY": "sk-secret"}
        )
    assert done.returncode == 0
    assert "key_env: MY_KEY" in own.read_text()
    assert "secret" not in own.read_text() + done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only",), "--only: there is nothing to look at"),
        (("--key-env", "MY_KEY"), "--key-env: there is nothing to show the key to"),
        (("--url", "ftp://box"), "--url: 'ftp://box' is no address of a server"),
        (("--url", "box", "--key-env", "NO_SUCH_KEY"), "--key-env: the environment variable NO_SUCH_KEY is not set"),
        (("--yes", "--stdout"), "not allowed with argument"),
        (("--runtime", "none"), "invalid choice"),
    ],
)
def test_wrong_usage_is_one_message(scaler: Run, arguments: tuple[str, ...], words: str) -> None:
    """Before anything is looked at."""
    failed = scaler("init", *arguments)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert words in failed.stderr


def test_the_environment_and_the_usual_folders_are_looked_at_unless_told_otherwise(
    scaler: Run, ollama: str, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever else may run on this machine."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "small.gguf").symlink_to(demo_models["small"])
    done = scaler("init", "--json", "--runtime", "ollama", env={"OLLAMA_HOST": ollama})
    found = {(source["what"], source["where"]) for source in json.loads(done.stdout)["found"]}
    assert {("Ollama 0.13.0", ollama), ("GGUF files", "~/models")} <= found
