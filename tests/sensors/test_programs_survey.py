"""Who holds memory: against /proc folders made up for the test, against real processes, and with a fake NVML."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scaler.demo.hog import Hog
from scaler.readings import Program
from scaler.sensors import programs
from scaler.sensors.programs import (
    BUDGET_S,
    LEAST_BYTES,
    ProcfsProcesses,
    ProgramSurvey,
    PsutilProcesses,
    script_of,
)
from tests.sensors.conftest import GIB, MIB, NOBODYS, FakeNvml, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
ME, USER, OTHER_USER = 900, 1000, 33


class Desktop:
    """A /proc in which a shell started this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process(1, 0, "systemd", "/usr/lib/systemd/systemd", user=0)
        self.process(800, 1, "bash", "/bin/bash", arguments="-bash")
        self.process(ME, 800, "python3", "/usr/bin/python3", arguments="python3\0-m\0scaler\0run", mib=200)

    def process(
        self,
        pid: int,
        parent: int,
        name: str,
        executable: str,
        *,
        mib: int = 0,
        shared: int = 0,
        user: int = USER,
        arguments: str = "",
        exact: tuple[int, int] | None = None,
        group: str = "/user.slice/app.slice/x",
    ) -> None:
        """One of so many MiB; ``exact``: what of its own and of the shared is its part, if it may be looked at."""
        folder = self.path / str(pid)
        rss = f"RssAnon:\t{mib * 1024:>8} kB\nRssFile:\t    4000 kB\nRssShmem:\t{shared * 1024:>8} kB"
        write(folder / "status", f"Name:\t{name}\nPPid:\t{parent}\nUid:\t{user}\t{user}\t{user}\t{user}\n{rss}")
        write(folder / "cgroup", f"0::{group}")
        (folder / "cmdline").write_text(f"{arguments}\0")
        if executable:
            (folder / "exe").symlink_to(executable)
        if exact is not None:
            sizes = f"Pss_Anon: {exact[0] * 1024:>8} kB\nPss_File:  99 kB\nPss_Shmem: {exact[1] * 1024:>8} kB"
            write(folder / "smaps_rollup", sizes)

    def survey(self, *own: int, user: int = USER, gpus: bool = False, in_our_group: bool = False) -> list[Program]:
        """What is found; ``own`` are the roots of our model's processes."""
        looks = ProcfsProcesses(self.path, user=user, pid=ME)
        seen = ProgramSurvey(lambda: own, processes=looks).take(gpus=gpus, in_our_group=in_our_group)
        return list(seen.programs)


@pytest.fixture
def desktop(tmp_path: Path) -> Desktop:
    """A /proc with nothing to close."""
    return Desktop(tmp_path / "proc")


def test_a_browser_is_one_program_with_what_it_shares_counted_once(desktop: Desktop) -> None:
    """Whatever its processes call themselves, and also after its file was replaced by an update."""
    desktop.process(10, 1, "firefox", "/usr/lib/firefox/firefox", mib=600, shared=300, exact=(500, 100))
    desktop.process(11, 10, "Isolated Web Co", "/usr/lib/firefox/firefox", mib=900, shared=300, exact=(800, 100))
    desktop.process(12, 10, "Web Content", "/usr/lib/firefox/firefox (deleted)", mib=300, shared=300, exact=(250, 100))
    desktop.process(13, 10, "crashhelper", "/usr/lib/firefox/crashhelper", mib=40, exact=(40, 0))
    assert desktop.survey() == [
        Program("firefox", 10, 3, {"ram": 1850 * MIB}),
        Program("crashhelper", 13, 1, {"ram": 40 * MIB}),
    ]


def test_processes_that_hide_from_their_user_belong_to_their_namesake(desktop: Desktop) -> None:
    """A sandbox hides its executable and its pages; what is its own by the quick look counts."""
    desktop.process(10, 1, "chrome", "/opt/chrome/chrome", mib=100, exact=(90, 0))
    desktop.process(11, 10, "chrome", "", mib=400, shared=50)
    assert desktop.survey() == [Program("chrome", 10, 2, {"ram": 490 * MIB})]


def test_two_scripts_are_two_programs_and_a_worker_is_its_scripts(desktop: Desktop) -> None:
    """Each by the name of the script, and not by that of the interpreter."""
    python = "/usr/bin/python3.11"
    desktop.process(10, 800, "python3", python, mib=700, arguments="python3\0-u\0/home/ada/train.py\0--key\0secret")
    desktop.process(11, 10, "python3", python, mib=300, arguments="python3\0-c\0from multiprocessing.spawn import x")
    desktop.process(12, 10, "python3", python, mib=500, arguments="python3\0-m\0http.server")
    assert desktop.survey() == [
        Program("train.py", 10, 2, {"ram": 1000 * MIB}),
        Program("http.server", 12, 1, {"ram": 500 * MIB}),
    ]


def test_what_nobody_should_or_could_close_is_left_out(desktop: Desktop) -> None:
    """Scaler, its models, the terminal that it runs in, the desktop, other users' services, and what is small."""
    python = "/usr/bin/python3"
    desktop.process(801, 1, "konsole", "/usr/bin/konsole", mib=300)
    (desktop.path / "800" / "exe").unlink()
    desktop.process(800, 801, "bash", "/usr/bin/bash", mib=100)
    desktop.process(901, ME, "python3", python, mib=9000, arguments="python3\0-m\0scaler.runtimes.embedded_server")
    desktop.process(902, 901, "helper", "/usr/bin/helper", mib=500)
    desktop.process(20, 1, "gnome-shell", "/usr/bin/gnome-shell", mib=800)
    desktop.process(21, 1, "panel", "/usr/bin/panel", mib=800, group="/user.slice/user@1000.service/session.slice/p")
    desktop.process(22, 1, "mysqld", "", mib=2000, user=OTHER_USER)
    desktop.process(23, 1, "small", "/usr/bin/small", mib=LEAST_BYTES // MIB - 1)
    write(desktop.path / "2" / "status", "Name:\tkthreadd\nPPid:\t0\nUid:\t0\t0\t0\t0")
    assert desktop.survey(901) == []
    assert [one.name for one in desktop.survey(901, user=0)] == ["mysqld"]


def test_where_a_group_is_short_only_what_is_in_it_counts(desktop: Desktop) -> None:
    """Closing something outside gives a container nothing back."""
    desktop.process(10, 1, "inside", "/usr/bin/inside", mib=100, group="/user.slice/app.slice/x/below")
    desktop.process(11, 1, "outside", "/usr/bin/outside", mib=100, group="/user.slice/app.slice/xy")
    assert [one.name for one in desktop.survey(in_our_group=True)] == ["inside"]
    assert len(desktop.survey()) == 2


def test_names_are_fit_to_be_printed(desktop: Desktop) -> None:
    """A process chooses its name; it must not write to anybody's terminal with it."""
    desktop.process(10, 1, "x", "/usr/bin/evil\x1b[2J\nname", mib=100)
    desktop.process(11, 1, "y", "/usr/bin/" + "y" * 200, mib=90)
    one, other = desktop.survey()
    assert one.name == "evil?[2J?name"
    assert len(other.name) == 40


def test_a_look_that_takes_long_is_cut_short(desktop: Desktop) -> None:
    """Then the quick look counts, which sees what is a process's own."""
    desktop.process(10, 1, "a", "/usr/bin/a", mib=300, exact=(200, 0))
    desktop.process(11, 1, "b", "/usr/bin/b", mib=250, shared=20, exact=(100, 0))
    times: Iterator[float] = iter([0.0, 0.0, BUDGET_S * 2])
    looks = ProcfsProcesses(desktop.path, user=USER, pid=ME)
    seen = ProgramSurvey(lambda: (), processes=looks, clock=lambda: next(times)).take(gpus=False)
    assert [(one.name, one.held["ram"]) for one in seen.programs] == [("b", 250 * MIB), ("a", 200 * MIB)]


def test_a_real_program_is_found_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a few percent, both ways to look; and those that we were started from are not among what is found."""
    # However many larger programs run here, and however long it takes to look at them.
    monkeypatch.setattr(programs, "MEASURED", 10**6)
    held = 256 * MIB
    with Hog(held) as hog:
        hog.hold(held)
        for looks in (ProcfsProcesses(Path("/proc")), PsutilProcesses()):
            survey = ProgramSurvey(lambda: (), processes=looks, clock=lambda: 0.0).take(gpus=False)
            found = {one.pid: one for one in survey.programs}
            mine = found[hog._process.pid]
            assert mine.name == "scaler.demo.hog"
            assert held <= mine.held["ram"] <= held * 1.1
            assert not found.keys() & {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}


def test_graphics_memory_is_told_for_each_gpu(desktop: Desktop, nvml: FakeNvml) -> None:
    """All processes of a program together, however little RAM it holds; our own model's is not among it."""
    nvml.gpu("NVIDIA A", 24 * GIB, 20 * GIB)
    nvml.gpu("NVIDIA B", 24 * GIB, 20 * GIB)
    # Whose threads the driver lists is asked of the real /proc, which must not know them.
    game, another, model, gone = range(NOBODYS, NOBODYS + 4)
    desktop.process(game, 1, "game", "/usr/bin/game", mib=10)
    desktop.process(another, game, "game", "/usr/bin/game", mib=10)
    desktop.process(model, ME, "python3", "/usr/bin/python3", mib=900)
    nvml.process(0, "graphics", game, 2 * GIB)
    nvml.process(0, "compute", another, 1 * GIB)
    nvml.process(1, "compute", another, 4 * GIB)
    nvml.process(1, "compute", model, 8 * GIB)
    nvml.process(1, "compute", gone, 2**64 - 1)
    assert desktop.survey(model, gpus=True) == [Program("game", game, 2, {"gpu0": 3 * GIB, "gpu1": 4 * GIB})]


def test_a_driver_that_fails_is_told_and_ram_all_the_same(desktop: Desktop, nvml: FakeNvml) -> None:
    """Half of the answer is better than none, if it says that it is half."""
    nvml.gpu("NVIDIA A", 24 * GIB, 20 * GIB)
    nvml.fail("compute", 15)
    desktop.process(10, 1, "game", "/usr/bin/game", mib=100)
    looks = ProcfsProcesses(desktop.path, user=USER, pid=ME)
    survey = ProgramSurvey(lambda: (), processes=looks).take(gpus=True)
    assert [one.name for one in survey.programs] == ["game"]
    assert "what programs hold of the GPUs is not known: NVML" in survey.unread[0]


@pytest.mark.parametrize(
    ("words", "script"),
    [
        (["python3", "-W", "ignore", "/a/b.py", "x"], "b.py"),
        (["/venv/bin/python", "-m", "jupyter"], "jupyter"),
        (["python3", "-c", "print(1)", "x.py"], None),
        (["java", "-cp", "/a/b.jar", "com.example.Main"], "com.example.Main"),
        (["java", "-Xmx4g", "-jar", "/opt/idea.jar"], "idea.jar"),
        (["-bash"], None),
        (["gunicorn: master [app]"], "gunicorn"),
        ([], None),
        (["python3"], None),
    ],
)
def test_an_interpreter_is_known_by_what_it_runs(words: list[str], script: str | None) -> None:
    """Arguments are nobody's business: they may hold a password."""
    assert script_of(words) == script
