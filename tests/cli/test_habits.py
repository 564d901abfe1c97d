"""What all commands have in common: what a slip of the finger gets, colours, progress, JSON."""

from __future__ import annotations

import io
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from scaler.cli.colour import coloured
from tests.cli.conftest import SCALER, Run

OFFLINE = (("config", "check"), ("config", "show"), ("config", "schema"), ("tier",), ("tier", "--list"), ("doctor",))
"""Commands that answer without a daemon and have ``--json``."""


class Terminal(io.StringIO):
    """What says that it is one."""

    def isatty(self) -> bool:
        return True


def test_a_command_that_there_is_not_gets_the_nearest_one(scaler: Run) -> None:
    """In one line; of what is near to none, all."""
    done = scaler("statsu", "--json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "expected 'status', the nearest that is known; `scaler --help`" in done.stderr
    assert "'demo-models'" in scaler("demo_models").stderr
    assert "expected one of init, doctor, run" in scaler("xyzzy").stderr


def test_an_option_that_there_is_not_shows_those_that_the_command_takes(scaler: Run) -> None:
    """And not those of the whole."""
    done = scaler("status", "--jsn")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: scaler status ")
    assert "unrecognized arguments: --jsn; `scaler status --help` lists what it takes" in done.stderr


@pytest.mark.parametrize(
    ("environment", "terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"CLICOLOR_FORCE": "0"}, False, False),
        ({"CLICOLOR": "0"}, True, False),
        ({"CLICOLOR": "1"}, False, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_are_as_the_environment_has_them(
    environment: Mapping[str, str], terminal: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rules that other programs have."""
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    assert coloured(Terminal() if terminal else io.StringIO()) is expected


def test_a_colour_says_nothing_that_the_words_do_not(scaler: Run, own_config: Callable[[str], Path]) -> None:
    """Without its escapes a page is the same."""
    own_config("ladder: [{name: a, model: a.gguf}]\nserver: {port: 0}\n")
    plain = scaler("doctor", env={"NO_COLOR": "1", "FORCE_COLOR": "1"}).stdout
    painted = scaler("doctor", env={"NO_COLOR": "", "FORCE_COLOR": "1"}).stdout
    assert "\x1b[1;31mproblem" in painted
    moving = re.compile(r"(memory|swap): .*|last 10 s|\d+\.\d %")
    assert moving.sub("", re.sub(r"\x1b\[[\d;]*m", "", painted)) == moving.sub("", plain)


@pytest.mark.parametrize("command", OFFLINE, ids=" ".join)
def test_with_json_there_is_nothing_else_on_the_standard_output(scaler: Run, command: tuple[str, ...]) -> None:
    """Nor anything on the standard error, where nothing is wrong."""
    done = scaler(*command, "--json")
    assert json.loads(done.stdout)
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such terminal on Windows")
def test_progress_is_drawn_on_a_terminal_and_taken_away_again(places: dict[str, str]) -> None:
    """On the standard error, so that a pipe gets the answer alone."""
    ours, theirs = os.openpty()
    with subprocess.Popen([*SCALER, "doctor", "--json"], env=places, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        answer, _ = process.communicate(timeout=60)
    drawn = b""
    while select.select([ours], [], [], 0)[0]:
        try:
            drawn += os.read(ours, 4096)
        except OSError:
            break  # what Linux has for the end
    os.close(ours)
    assert json.loads(answer)
    assert drawn.startswith(b"\rlooking at everything ...")
    assert drawn.endswith(b"\r\x1b[K")


def test_options_before_the_command_get_the_line_that_was_meant(scaler: Run) -> None:
    """To be copied as it is; what is a command nowhere in the line is left open."""
    for typed, meant in (
        (("--config", "/no such.yaml", "status", "--json"), "scaler status --config '/no such.yaml' --json"),
        (("--url", "127.0.0.1:1", "stauts"), "scaler COMMAND --url 127.0.0.1:1 stauts"),
    ):
        done = scaler(*typed)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"scaler: options come after the command: `{meant}`\n"
    assert scaler("--help", "status").returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such terminal on Windows")
@pytest.mark.parametrize("end", ["/quit", "/exit", "\x04"])
def test_a_conversation_ends_by_the_words_that_people_try(end: str, places: dict[str, str]) -> None:
    """They and the question for help are no questions for a model: no daemon is there to take any."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*SCALER, "chat", "--url", "127.0.0.1:9"], env=places, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        os.write(ours, f"/help\n{end}\n".encode())
        said = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break  # what Linux has for the end
            if not piece:
                break
            said += piece
    os.close(ours)
    assert process.returncode == 0
    assert b"Ctrl-D or /quit ends the conversation; /help tells the keys." in said
    assert b"Ctrl-C         breaks off an answer" in said
    assert b"scaler: " not in said
