"""The private folders of models' sockets: gone with their scaler, also a killed one; nobody else's are touched."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaler.runtimes.model_process import PRIVATE, leave, private_socket, remove_abandoned

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such folders")

HOLDER = """
import sys, tempfile
from pathlib import Path
from scaler.runtimes.model_process import private_socket
tempfile.tempdir = sys.argv[1]
folder, socket = private_socket("small", "move")
Path(socket).touch()
print(folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where they are made; pytest's own folder is asked for first, or it would be made there as well."""
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_the_folder_of_a_scaler_that_lives_stays_and_of_one_that_was_killed_goes(folders: Path) -> None:
    """Its process number may be anybody's by then; the kernel's lock is not."""
    command = [sys.executable, "-c", HOLDER, str(folders)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        remove_abandoned()
        assert (folder / "model.sock").exists()
        process.kill()
        process.wait()
        remove_abandoned()
        assert not folder.exists()


def test_the_folder_of_a_scaler_that_was_killed_as_it_made_it_goes_as_well(folders: Path) -> None:
    """Before it was its own: nothing else would ever take it away."""
    killed = HOLDER.replace(
        "tempfile.tempdir", "import os\nfrom scaler.runtimes import model_process\ntempfile.tempdir"
    ).replace("folder, socket", "model_process._lock = lambda _: os.kill(os.getpid(), 9)\nfolder, socket")
    assert subprocess.run([sys.executable, "-c", killed, str(folders)]).returncode == -9
    assert list(folders.iterdir())
    remove_abandoned()
    assert list(folders.iterdir()) == []


def test_a_program_that_forgets_to_shut_down_leaves_none(folders: Path) -> None:
    """A fork of it that ends first takes none away."""
    forks = (
        "import os\n"
        "if (child := os.fork()) == 0:\n"
        "    sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "print(os.listdir(folder), flush=True)\n"
    )
    command = [sys.executable, "-c", HOLDER.replace("sys.stdin.read()\n", forks), str(folders)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert told[-1] == "['model.sock']"
    assert list(folders.iterdir()) == []


def test_our_own_are_left_to_ourselves(folders: Path) -> None:
    """And can be entered by nobody else."""
    folder, _ = private_socket("small", "move")
    remove_abandoned()
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    leave(folder)
    leave(folder)
    assert list(folders.iterdir()) == []


def test_whatever_is_not_surely_a_killed_scalers_is_left_alone(folders: Path, tmp_path: Path) -> None:
    """Other files in it, other names, links, files, other people's."""
    filled = folders / f"{PRIVATE}filled"
    filled.mkdir()
    (filled / "letter.txt").write_text("Dear Ada")
    older = folders / "scaler-12345678"
    older.mkdir()
    (folders / f"{PRIVATE}file").touch()
    (folders / f"{PRIVATE}link").symlink_to(tmp_path)
    kept = {"filled", "file", "link"}
    if os.geteuid() == 0:
        others = folders / f"{PRIVATE}others"
        others.mkdir()
        os.chown(others, 65534, 65534)
        kept.add("others")
    (folders / f"{PRIVATE}empty").mkdir()
    remove_abandoned()
    assert {path.name for path in folders.iterdir()} == {older.name, *(PRIVATE + name for name in kept)}
    assert (filled / "letter.txt").exists()
    assert tmp_path.exists()


def test_starting_scalers_never_take_each_others_folders(folders: Path) -> None:
    """One makes them while the other removes what is abandoned."""
    done = threading.Event()

    def remove() -> None:
        while not done.is_set():
            remove_abandoned()

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(300):
            folder, _ = private_socket("small", "move")
            assert Path(folder).is_dir()
            leave(folder)
    finally:
        done.set()
        remover.join()
