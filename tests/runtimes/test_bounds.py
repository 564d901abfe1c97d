"""What keeps model processes behind the person's programs, and has them end with scaler: on real processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from scaler.errors import LevelUnavailable
from scaler.level_settings import EmbeddedLevel, LlamaServerLevel
from scaler.runtimes import tied
from scaler.runtimes.bounds import Bounds
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.runtimes.llama_server import LlamaServerRuntime
from scaler.runtimes.model_cgroup import ModelCgroup, ModelCgroups, NotPermitted
from scaler.settings import ProcessesSettings
from tests.llama_server_binary import BINARY, needs_llama_server
from tests.processes import gone

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has what is tested")
BEHIND = ProcessesSettings(nice=7, oom_score_adj=900)
SLEEP = ("/bin/sleep", "60")


def oom_score_adj(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def threads_nice(pid: int) -> set[int]:
    """The priority of each thread, for it is the thread's."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {int(stat[stat.rindex(")") + 2 :].split()[16]) for stat in stats}


def session_nice(pid: int) -> int | None:
    """The priority of its session, where the scheduler has one.

    The file is missing in a kernel without autogroups, and empty for a process that is in none.
    """
    try:
        told = Path(f"/proc/{pid}/autogroup").read_text().split()
    except FileNotFoundError:
        return None
    return int(told[-1]) if told else None


def bounds(parent: int | None = None, nice: int = 0, oom: int | None = None, cgroup: Path | None = None) -> str:
    wanted = {"parent": parent or os.getpid(), "nice": nice, "oom_score_adj": oom}
    return json.dumps({**wanted, "cgroup": None if cgroup is None else str(cgroup)})


def tie(told: str, *program: str) -> list[str]:
    return [sys.executable, "-I", tied.__file__, told, *program]


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def named(pid: int, name: str) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).name() == name
    return False


# ---------------------------------------------------------------- priority


@LINUX
def test_a_program_is_put_behind_and_whoever_started_it_is_not() -> None:
    """Both figures are the program's, and those of its session."""
    before = psutil.Process().nice(), oom_score_adj("self"), session_nice(os.getpid())
    with subprocess.Popen(tie(bounds(nice=7, oom=900), *SLEEP), start_new_session=True) as process:
        until(lambda: named(process.pid, "sleep"), "it becomes the program")
        assert (psutil.Process(process.pid).nice(), oom_score_adj(process.pid)) == (7, 900)
        assert session_nice(process.pid) in (7, None)
        process.kill()
    assert (psutil.Process().nice(), oom_score_adj("self"), session_nice(os.getpid())) == before


@LINUX
def test_what_stands_higher_already_stays() -> None:
    """As when scaler itself was started with nice, or as a service that is to be killed first."""
    set_first = (
        "import os, sys; open('/proc/self/oom_score_adj', 'w').write('950'); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", set_first, *tie(bounds(nice=7, oom=900), *SLEEP)]
    with subprocess.Popen(["nice", "-n", "12", *command], start_new_session=True) as process:
        until(lambda: named(process.pid, "sleep"), "it becomes the program")
        assert (psutil.Process(process.pid).nice(), oom_score_adj(process.pid)) == (12, 950)
        process.kill()


@LINUX
def test_a_session_that_is_not_its_own_keeps_its_priority() -> None:
    """Else a person's terminal would be slowed with the model."""
    shell = "import subprocess, sys; subprocess.run(sys.argv[1:]); print(open('/proc/self/autogroup').read())"
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this kernel has no scheduling by sessions")
    inside = "import os, sys; from scaler.runtimes.tied import give_way; give_way(7, None, None)"
    told = subprocess.check_output(
        [sys.executable, "-c", shell, sys.executable, "-c", inside], text=True, start_new_session=True
    )
    if not told.strip():
        pytest.skip("this kernel does not schedule by sessions")
    assert told.split()[-1] == "0"


@LINUX
@pytest.mark.parametrize("runtime", ["embedded", pytest.param("llama-server", marks=needs_llama_server)])
def test_every_thread_of_a_model_is_behind_and_scaler_is_not(runtime: str, demo_models: dict[str, Path]) -> None:
    """Those of the library included, which reads weights and computes."""
    before = psutil.Process().nice(), oom_score_adj("self")

    async def body() -> None:
        hands = Bounds(BEHIND)
        assert hands.prepare() == ()
        if runtime == "embedded":
            here: EmbeddedRuntime | LlamaServerRuntime = EmbeddedRuntime(hands)
            level = EmbeddedLevel(name="small", model=demo_models["small"], threads=2)
            model = await here.load(level, lambda _: None)  # type: ignore[arg-type]
        else:
            here = LlamaServerRuntime(hands)
            own = LlamaServerLevel(
                name="small", runtime="llama-server", binary=BINARY, model=demo_models["small"], threads=2
            )
            model = await here.load(own, lambda _: None)
        try:
            async for _ in model.chat({"messages": [{"role": "user", "content": "Who are you?"}]}):
                pass
            (pid,) = here.pids()
            assert threads_nice(pid) == {7}
            assert oom_score_adj(pid) == 900
        finally:
            await model.unload()

    asyncio.run(body())
    assert (psutil.Process().nice(), oom_score_adj("self")) == before


@LINUX
def test_by_default_a_model_is_behind_a_browsers_tabs() -> None:
    """Chromium's have 300, services of a desktop 200, programs 0."""
    default = ProcessesSettings()
    assert default.oom_score_adj > 300
    assert default.nice > 0
    assert default.memory_limit_share is None


# ---------------------------------------------------------------- the end with scaler


@LINUX
def test_a_parent_that_died_before_the_kernel_was_told_is_noticed(tmp_path: Path) -> None:
    """The process has another parent by then, and the program never runs."""
    ran = tmp_path / "ran"
    done = subprocess.run(tie(bounds(parent=os.getppid()), "/bin/sh", "-c", f"touch {ran}"), start_new_session=True)
    assert done.returncode == 1
    assert not ran.exists()
    order = json.dumps({"parent": os.getppid(), "bounds": {"nice": 0, "oom_score_adj": None, "cgroup": None}})
    child = [sys.executable, "-m", "scaler.runtimes.embedded_server"]
    assert subprocess.run(child, input=order, text=True, capture_output=True, timeout=20).returncode == 1


WITHOUT_EXEC = "#!/bin/sh\n/bin/sleep 60 &\necho $! > {told}\nwait\n"


def script(folder: Path) -> tuple[Path, Path]:
    """A script that starts a program instead of becoming it, and the file that it writes the program's number to."""
    path, told = folder / "llama-server", folder / "pid"
    path.write_text(WITHOUT_EXEC.format(told=told))
    path.chmod(0o755)
    return path, told


def started(told: Path) -> psutil.Process:
    until(lambda: told.exists() and told.read_text().endswith("\n"), "the script starts the program")
    return psutil.Process(int(told.read_text()))


@LINUX
def test_what_a_script_started_dies_with_a_scaler_that_is_killed(tmp_path: Path) -> None:
    """It does not end in exec, so that the kernel's tie holds the script only."""
    path, told = script(tmp_path)
    code = (
        "import json, os, subprocess, sys, time\n"
        "told = json.dumps({'parent': os.getpid(), 'nice': 0, 'oom_score_adj': None, 'cgroup': None})\n"
        "command = [sys.executable, '-I', sys.argv[1], told, sys.argv[2]]\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tied.__file__, str(path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        program = started(told)
        family = [child, *child.children(recursive=True)]
        assert program in family
        parent.kill()
    assert gone(family)


@LINUX
def test_what_a_script_started_goes_with_its_level(tmp_path: Path, demo_models: dict[str, Path]) -> None:
    """A load that is given up ends the program too, not the script alone."""
    path, told = script(tmp_path)

    async def body() -> list[psutil.Process]:
        runtime = LlamaServerRuntime()
        level = LlamaServerLevel(name="small", runtime="llama-server", binary=path, model=demo_models["small"])
        load = asyncio.create_task(runtime.load(level, lambda _: None))
        while not (told.exists() and told.read_text().endswith("\n")):
            await asyncio.sleep(0.01)
        (pid,) = runtime.pids()
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        return family

    assert gone(asyncio.run(body()))


# ---------------------------------------------------------------- control groups, laid out in a folder


@pytest.fixture
def laid_out(tmp_path: Path) -> tuple[Path, Path]:
    """A /proc that says that we are in a group of version 2, and the group's folder."""
    proc, top = tmp_path / "proc", tmp_path / "cgroup"
    own = top / "mine"
    own.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("4:memory:/elsewhere\n0::/user.slice/mine\n")
    (proc / "self" / "mountinfo").write_text(
        "30 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        f"31 24 0:26 /user.slice {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )
    (own / "cgroup.controllers").write_text("cpu memory pids\n")
    (own / "cgroup.procs").write_text("")
    (own / "cgroup.subtree_control").write_text("")
    return proc, own


def test_scaler_moves_into_a_group_of_its_own_and_hands_memory_down(laid_out: tuple[Path, Path]) -> None:
    """A group that holds processes may not share memory out."""
    proc, own = laid_out
    groups = ModelCgroups.below_own(proc)
    assert (own / f"scaler-{os.getpid()}" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory"
    made = groups.make("qwen 3/8b", 3 * 1024**3)
    assert made.path.parent == own
    assert made.path.name.startswith(f"scaler-{os.getpid()}-")
    assert made.path.name.endswith("-qwen_3_8b")
    assert (made.path / "memory.max").read_text() == str(3 * 1024**3)
    assert (made.path / "memory.oom.group").read_text() == "1"
    assert groups.make("qwen 3/8b", 1).path != made.path
    # The next manager of this process finds it moved already.
    (proc / "self" / "cgroup").write_text(f"0::/user.slice/mine/scaler-{os.getpid()}\n")
    assert ModelCgroups.below_own(proc).make("a", 1).path.parent == own


def test_empty_groups_of_scalers_that_are_gone_are_removed(laid_out: tuple[Path, Path]) -> None:
    """No others: neither those that hold something, nor those of a scaler that runs, nor anybody else's."""
    proc, own = laid_out
    (proc / "4711").mkdir()
    kept = ["scaler-4711", "scaler-4711-1-small", "scaler-4712-2-full/inside", "scaler-notes", "other"]
    for name in [*kept, "scaler-4712", "scaler-4712-1-small", f"scaler-{os.getpid()}-1-small"]:
        (own / name).mkdir(parents=True)
    ModelCgroups.below_own(proc)
    left = {path.name for path in own.iterdir() if path.is_dir()} - {f"scaler-{os.getpid()}"}
    assert left == {"scaler-4711", "scaler-4711-1-small", "scaler-4712-2-full", "scaler-notes", "other"}


def test_a_disk_whose_name_is_no_utf_8_is_no_hindrance(laid_out: tuple[Path, Path]) -> None:
    """It is in the same list as the groups' mount."""
    proc, own = laid_out
    mountinfo = proc / "self" / "mountinfo"
    disk = b"29 24 8:17 / /media/M\xfcs\xc2\xa0\xc2\x85ik rw - vfat /dev/sdb1 rw\n"
    mountinfo.write_bytes(disk + mountinfo.read_bytes())
    assert ModelCgroups.below_own(proc).make("a", 1).path.parent == own


def test_a_mount_point_with_a_blank_is_found(laid_out: tuple[Path, Path]) -> None:
    """The kernel lists it with an octal escape."""
    proc, own = laid_out
    top = own.parent.rename(own.parent.with_name("control groups"))
    mountinfo = proc / "self" / "mountinfo"
    mountinfo.write_text(mountinfo.read_text().replace(str(own.parent), str(top).replace(" ", r"\040")))
    assert ModelCgroups.below_own(proc).make("a", 1).path.parent == top / "mine"


@LINUX
def test_a_unit_of_systemds_is_left_alone_unless_it_was_handed_over(laid_out: tuple[Path, Path]) -> None:
    """Else systemd could start nothing more in it, such as what a reload runs."""
    proc, own = laid_out
    unit = own.rename(own.with_name("scaler.service"))
    (proc / "self" / "cgroup").write_text("0::/user.slice/scaler.service\n")
    with pytest.raises(NotPermitted, match=r"scaler\.service: systemd has not handed it over; that takes Delegate=yes"):
        ModelCgroups.below_own(proc)
    assert not list(unit.glob("scaler-*"))
    try:
        os.setxattr(unit, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"folders cannot be marked here: {error.strerror}")
    ModelCgroups.below_own(proc)
    assert (unit / "cgroup.subtree_control").read_text() == "+memory"


def no_memory(proc: Path, own: Path) -> None:
    (own / "cgroup.controllers").write_text("cpu pids\n")


def not_shown(proc: Path, own: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/../elsewhere\n")


def version_1(proc: Path, own: Path) -> None:
    (proc / "self" / "mountinfo").write_text("30 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")


def no_cgroups(proc: Path, own: Path) -> None:
    (proc / "self" / "cgroup").unlink()


def not_shared_out(proc: Path, own: Path) -> None:
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").mkdir()


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        (no_memory, "memory is not among the controllers that were handed down to it"),
        (not_shown, "is not to be seen from here"),
        (version_1, "is not to be seen from here"),
        (no_cgroups, "this kernel has no control groups"),
        (not_shared_out, "Is a directory"),
    ],
)
def test_why_there_can_be_no_groups_is_told(
    laid_out: tuple[Path, Path], lacks: Callable[[Path, Path], None], words: str
) -> None:
    """And scaler is where it was."""
    proc, own = laid_out
    lacks(proc, own)
    with pytest.raises(NotPermitted, match=words):
        ModelCgroups.below_own(proc)
    assert (own / "cgroup.procs").read_text() == (str(os.getpid()) if lacks is not_shared_out else "")


@pytest.mark.parametrize(
    ("at_limit", "killed", "words"),
    [
        (1, 1, "the kernel killed it at its memory limit of 2.0 GiB; raise the level's ram_gib"),
        (0, 1, "the kernel killed it for want of memory; choose a smaller model"),
        (3, 0, None),
        (0, 0, None),
    ],
)
def test_whose_limit_it_was_is_told(tmp_path: Path, at_limit: int, killed: int, words: str | None) -> None:
    """Its own, or that of the machine or of a group above; what somebody else killed is not the kernel's."""
    (tmp_path / "memory.events.local").write_text(f"low 0\nhigh 0\nmax 9\noom {at_limit}\noom_kill 0\n")
    (tmp_path / "memory.events").write_text(f"low 0\nhigh 0\nmax 9\noom {at_limit}\noom_kill {killed}\n")
    group = ModelCgroup(tmp_path, 2 * 1024**3)
    why = group.why_killed()
    assert why is None if words is None else why is not None and why.startswith(words)
    for file in tmp_path.iterdir():
        file.unlink()
    asyncio.run(group.remove())
    assert not tmp_path.exists()
    # Whoever waits for an answer asks when the model was unloaded.
    assert group.why_killed() == why


@LINUX
def test_a_group_that_cannot_be_entered_is_told_by_the_level_and_nothing_is_left(
    tmp_path: Path, laid_out: tuple[Path, Path]
) -> None:
    """As when somebody removed it in between."""
    done = subprocess.run(
        tie(bounds(cgroup=tmp_path / "gone"), *SLEEP), capture_output=True, text=True, start_new_session=True
    )
    assert (done.returncode, done.stderr) == (1, f"{tmp_path}/gone: it cannot be entered: No such file or directory\n")
    proc, own = laid_out
    groups = ModelCgroups.below_own(proc)
    shutil.rmtree(own)
    with pytest.raises(LevelUnavailable, match=r"small: .*: No such file or directory; leave processes\."):
        groups.make("small", 1)
