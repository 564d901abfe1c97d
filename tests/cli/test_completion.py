"""What the shells complete, asked of the real ones with the keys that a person presses."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import SCALER, Run

PATIENCE_S = 60.0
"""How long a shell may take; only a failing test waits so long."""
LINES = (
    ("scaler comp", "scaler completion"),
    ("scaler config sch", "scaler config schema"),
    ("scaler status --js", "scaler status --json"),
    ("scaler pin wal", "scaler pin walnut"),
    ("scaler control --tier high", "scaler control --tier high_end"),
    ("scaler run --config only-", "scaler run --config only-here.yaml"),
)
"""What is typed before TAB, and what stands there after it: a command, a choice, an option, a level, a tier, a file."""


@pytest.fixture
def at_home(places: dict[str, str], own_config: Callable[[str], Path], tmp_path: Path) -> dict[str, str]:
    """The environment of somebody with ``scaler`` on the PATH, levels of their own, and a file where they are."""
    program = tmp_path / "bin" / "scaler"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(SCALER)} "$@"\n')
    program.chmod(0o755)
    own_config("ladder: [{name: walnut, model: a.gguf}, {name: oak, model: b.gguf}]")
    (tmp_path / "only-here.yaml").write_text("")
    kept = {name: value for name, value in places.items() if name not in ("EDITOR", "VISUAL")}
    return {**kept, "PATH": f"{program.parent}:{places['PATH']}", "HOME": str(tmp_path), "TERM": "xterm"}


def shell(name: str) -> str:
    """The shell's program, or the reason why it cannot be tried."""
    found = shutil.which(name)
    if found is None or sys.platform == "win32":
        pytest.skip(f"{name} is not installed")
    return found


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = ""

    def types(self, keys: str) -> None:
        """Press keys."""
        os.write(self._descriptor, keys.encode())

    def shows(self, pattern: str) -> str:
        """What it shows that the pattern matches, at last."""
        until = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self._seen)) is None:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"never showed {pattern!r}: {self._seen!r}"
            self._seen += os.read(self._descriptor, 65536).decode(errors="replace")
        self._seen = self._seen[found.end() :]
        return found[0]


@contextmanager
def terminal(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[Terminal]:
    """A program on a terminal; it is ended at the end."""
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            yield Terminal(ours)
        finally:
            process.kill()
            os.close(ours)


def completes(opened: Terminal) -> None:
    """Each of the lines, by the keys that print what stands there: nothing is run."""
    for typed, expected in LINES:
        # Back to the line's begin and end, for the shell to say what it has.
        opened.types(f"{typed}\t\x01echo '<\x05>'\n")
        assert opened.shows(r"[\r\n]<scaler [^\r\n]*>").strip("\r\n<> ") == expected


def test_bash_completes(at_home: dict[str, str], tmp_path: Path) -> None:
    """As its users press TAB."""
    with terminal([shell("bash"), "--norc", "--noprofile", "-i"], at_home, tmp_path) as opened:
        opened.types('eval "$(scaler completion bash)"; echo rea""dy\n')
        opened.shows("ready")
        completes(opened)


def test_zsh_completes(at_home: dict[str, str], tmp_path: Path) -> None:
    """As its users press TAB."""
    with terminal([shell("zsh"), "-f", "-i"], at_home, tmp_path) as opened:
        opened.types("bindkey -e; autoload -U compinit; compinit -u -D\n")
        opened.types('eval "$(scaler completion zsh)"; echo rea""dy\n')
        opened.shows("ready")
        completes(opened)


@pytest.mark.parametrize(("typed", "expected"), LINES)
def test_fish_completes(at_home: dict[str, str], tmp_path: Path, typed: str, expected: str) -> None:
    """Asked of it as it asks itself."""
    code = f"scaler completion fish | source; complete -C '{typed}'"
    command = [shell("fish"), "--no-config", "-c", code]
    done = subprocess.run(command, env=at_home, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stderr == ""
    assert [line.split("\t")[0].strip() for line in done.stdout.splitlines()] == [expected.split()[-1]]


def test_a_configuration_at_fault_is_no_hindrance(scaler: Run, own_config: Callable[[str], Path]) -> None:
    """There is nothing to offer then, and nothing is said in the middle of a line."""
    own_config("ladder: 3\n")
    line = "scaler pin s"
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": os.devnull,
    }
    done = scaler(env=asked)
    assert (done.stdout, done.stderr) == ("", "")


def test_another_shell_is_refused(scaler: Run) -> None:
    """With those that there are."""
    done = scaler("completion", "tcsh")
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr
