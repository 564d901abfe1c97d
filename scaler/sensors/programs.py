"""Who holds memory: the programs that a person could close, and what would come back of each.

Asked for now and then, never with a reading: it looks at every process of the machine. Knows nothing of levels, of
what is lacking or of who asks; it only looks, and touches no process.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scaler.errors import SensorFailed
from scaler.levels import RAM
from scaler.readings import Program, Survey
from scaler.sensors.gpu import held_by_processes
from scaler.sensors.procfs import PROC, read_file

LEAST_BYTES = 32 * 1024**2
"""A program that holds less is not told of: other programs' use goes up and down by more than that."""
MEASURED = 12
"""So many of the programs that seem to hold most are looked at closely."""
BUDGET_S = 0.25
"""For so long programs are looked at closely; the rest counts as the quick look has it.

The kernel walks the page tables of a process for that: 1 GiB in small pages takes it 12 ms.
"""
NAME_LENGTH = 40
"""A longer name is cut: it goes into a sentence."""

INTERPRETERS = re.compile(
    r"(python|pypy|node|nodejs|electron|deno|bun|ruby|perl|php|java|dotnet|mono|julia|R|lua|bash|dash|sh|zsh|fish)[\d.]*"
)
"""Executables that people know by what they run."""
WITH_VALUE = {"-W", "-X", "-cp", "-classpath", "--class-path", "-p", "--module-path", "-r", "--require"}
"""Options of interpreters whose value is the next word, which is no script."""
SESSION = {
    "systemd", "init", "dbus-daemon", "dbus-broker", "Xorg", "Xwayland", "gnome-shell", "gnome-session", "plasmashell",
    "kwin_wayland", "kwin_x11", "ksmserver", "xfce4-session", "xfwm4", "cinnamon", "mutter", "sway", "Hyprland",
    "pipewire", "wireplumber", "pulseaudio",
    "launchd", "WindowServer", "loginwindow", "Finder", "Dock",
    "explorer", "dwm", "csrss", "winlogon", "services", "svchost", "lsass", "System",
}  # fmt: skip
"""Without these there is no desktop, or no machine, to use a model on."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process at a quick look. ``user`` is whoever runs it; what could not be read of the rest is None."""

    pid: int
    parent: int
    name: str
    user: object
    private_bytes: int
    """RAM of its own, where it may still share some with those that it was forked from."""
    shared_bytes: int
    """RAM that it may share with others."""
    executable: str | None
    script: str | None
    """What an interpreter runs; None for anything else, and for an interpreter that was given no file."""

    @property
    def interprets(self) -> bool:
        """Whether it is an interpreter."""
        return INTERPRETERS.fullmatch(os.path.basename(self.executable or self.name)) is not None


class Processes(Protocol):
    """How a platform tells of its processes."""

    def me(self) -> int:
        """This process."""

    def every(self) -> Iterator[Process]:
        """All of them but the kernel's own; those that end meanwhile are left out."""

    def closable(self, process: Process) -> bool:
        """Whether this user may end it."""

    def exact_bytes(self, pid: int) -> int | None:
        """The RAM of its own and its part of what it shares; None if it ended or may not be looked at so closely."""

    def groups(self, pid: int) -> tuple[str, ...]:
        """The control groups that it is in; empty where there are none."""


class ProgramSurvey:
    """Looks who holds memory, whenever it is asked."""

    def __init__(
        self,
        own_pids: Callable[[], Collection[int]],
        *,
        processes: Processes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``own_pids`` returns the roots of our model's process trees; ``clock`` is in monotonic seconds."""
        self._own_pids = own_pids
        self._processes = processes or (PsutilProcesses() if PROC is None else ProcfsProcesses(PROC))
        self._clock = clock

    def take(self, *, gpus: bool, in_our_group: bool = False) -> Survey:
        """The programs now, those that hold most of RAM first; raises OSError.

        ``gpus``: look at the GPUs' memory, too. ``in_our_group``: only programs of this process's control group, since
        it is the group's memory that is short. Left out are our own processes and those that this one was started from,
        other users' that this user cannot end, and what a desktop or a machine cannot do without.
        """
        looks = self._processes
        known = {process.pid: process for process in looks.every()}
        unread: list[str] = []
        vram: Mapping[str, Mapping[int, int]] = {}
        if gpus:
            try:
                vram = held_by_processes()
            except SensorFailed as error:
                # RAM can be told all the same, and that the rest is not is said.
                unread.append(f"what programs hold of the GPUs is not known: {error}")
        members = self._members(known)
        rough = {root: sum(one.private_bytes + one.shared_bytes for one in group) for root, group in members.items()}
        closely = sorted(rough, key=rough.__getitem__, reverse=True)[:MEASURED]
        on_gpus = {pid for sizes in vram.values() for pid in sizes}
        closely += [r for r, group in members.items() if r not in closely and on_gpus & {one.pid for one in group}]
        ours = looks.groups(looks.me()) if in_our_group else ()
        until, found = self._clock() + BUDGET_S, []
        for root in closely:
            groups = looks.groups(root)
            if any("/session.slice/" in group for group in groups) or not _within(groups, ours):
                continue
            held = {RAM: self._held(members[root], until)}
            for resource, sizes in vram.items():
                held[resource] = sum(sizes.get(one.pid, 0) for one in members[root])
            held = {resource: size for resource, size in held.items() if size >= LEAST_BYTES}
            if held:
                found.append(Program(_told(known[root]), root, len(members[root]), held))
        found.sort(key=lambda program: program.held.get(RAM, 0), reverse=True)
        return Survey(tuple(found), tuple(unread))

    def _members(self, known: Mapping[int, Process]) -> dict[int, list[Process]]:
        """The processes of each program that a person could close, by the pid of its first."""
        line = {one.pid for one in _line(self._processes.me(), known)}
        own = set(self._own_pids())
        members: dict[int, list[Process]] = {}
        untouchable = set()
        for pid, process in known.items():
            root = _first(process, known)
            if pid in line:
                untouchable.add(root.pid)
            if own.isdisjoint(one.pid for one in _line(pid, known)):
                members.setdefault(root.pid, []).append(process)
        return {
            root: group
            for root, group in members.items()
            if root not in untouchable and known[root].name not in SESSION and self._processes.closable(known[root])
        }

    def _held(self, group: Iterable[Process], until: float) -> int:
        """What would come back of the RAM that a program's processes hold."""
        total = 0
        for process in sorted(group, key=lambda one: one.private_bytes + one.shared_bytes, reverse=True):
            exact = self._processes.exact_bytes(process.pid) if self._clock() < until else None
            total += process.private_bytes if exact is None else exact
        return total


def _line(pid: int, known: Mapping[int, Process]) -> Iterator[Process]:
    """A process, the one that started it, and so on up."""
    seen = set()
    while pid in known and pid not in seen:
        seen.add(pid)
        yield known[pid]
        pid = known[pid].parent


def _first(process: Process, known: Mapping[int, Process]) -> Process:
    """The first process of the program that ``process`` belongs to: the topmost above it with the same executable.

    Interpreters run many things, so there only an unbroken line of the same script is one program; a worker without a
    script of its own is its parent's.
    """
    first = process
    for above in _line(process.parent, known):
        if _same(first, above):
            first = above
        elif process.interprets:
            break
    return first


def _same(process: Process, above: Process) -> bool:
    if process.user != above.user:
        return False
    if process.executable is None or above.executable is None:
        # A process that hides from its own user, as browsers' do, still tells its name.
        return process.name == above.name
    return process.executable == above.executable and process.script in (None, above.script)


def _within(groups: Collection[str], ours: Collection[str]) -> bool:
    return all(any(f"{group}/".startswith(f"{own.rstrip('/')}/") for group in groups) for own in ours)


def _told(process: Process) -> str:
    """A program's name as a person knows it; names are others' doing, and only what can be printed is passed on."""
    name = process.script or os.path.basename(process.executable or process.name)
    for ending in (".exe", ".bin", "-bin"):
        name = name.removesuffix(ending)
    plain = "".join(character if character.isprintable() else "?" for character in name)
    return plain if len(plain) <= NAME_LENGTH else f"{plain[: NAME_LENGTH - 1]}…"


def script_of(words: list[str]) -> str | None:
    """What an interpreter was asked to run, from its command line; None for a shell, a prompt or a program text."""
    if not words:
        return None
    called = words[0].split(" ")[0].rstrip(":")
    if called and INTERPRETERS.fullmatch(os.path.basename(called).removesuffix(".exe").lstrip("-")) is None:
        # A server that says in place of its command line what it is, such as "gunicorn: master".
        return os.path.basename(called)
    rest = iter(words[1:])
    for word in rest:
        if word == "-c":
            return None
        if word in ("-m", "-jar"):
            return os.path.basename(next(rest, "")) or None
        if word in WITH_VALUE:
            next(rest, None)
        elif word and not word.startswith("-"):
            return os.path.basename(word) or None
    return None


class ProcfsProcesses:
    """Reads /proc. The quick look takes no lock of the process that is looked at: one that swaps holds up nobody."""

    def __init__(self, proc: Path, *, user: int | None = None, pid: int | None = None) -> None:
        """``user`` and ``pid``: whose and which process this is, unless it is us."""
        self._proc = str(proc)
        self._user = os.geteuid() if user is None else user
        self._pid = os.getpid() if pid is None else pid

    def me(self) -> int:
        """This process."""
        return self._pid

    def every(self) -> Iterator[Process]:
        """From status; raises OSError. Source: proc_pid_status(5)."""
        for entry in os.listdir(self._proc):
            if not entry.isdecimal() or (text := self._read(entry, "status")) is None:
                continue
            fields = dict(_STATUS.findall(text))
            # The kernel's own threads, and what has ended already, hold nothing.
            if b"RssAnon" in fields:
                executable = self._executable(entry)
                yield Process(
                    int(entry),
                    int(fields[b"PPid"]),
                    fields[b"Name"].decode(errors="replace"),
                    int(fields[b"Uid"]),
                    int(fields[b"RssAnon"]) * 1024,
                    int(fields.get(b"RssShmem", 0)) * 1024,
                    executable,
                    self._script(entry) if INTERPRETERS.fullmatch(os.path.basename(executable or "")) else None,
                )

    def closable(self, process: Process) -> bool:
        """One's own, or any for the superuser."""
        return self._user in (0, process.user)

    def exact_bytes(self, pid: int) -> int | None:
        """Its proportional share, so that what its processes share counts once; files' pages are left out.

        Those count as available already. Source: proc_pid_smaps(5), and Documentation/ABI/testing/procfs-smaps_rollup.
        """
        text = self._read(pid, "smaps_rollup")
        found = dict(re.findall(rb"^(Pss_Anon|Pss_Shmem):\s+(\d+)", text or b"", re.MULTILINE))
        return sum(int(size) for size in found.values()) * 1024 if len(found) == 2 else None

    def groups(self, pid: int) -> tuple[str, ...]:
        """The paths of its control groups."""
        lines = (self._read(pid, "cgroup") or b"").decode(errors="replace").splitlines()
        return tuple(line.split(":", 2)[-1] for line in lines)

    def _executable(self, pid: str) -> str | None:
        try:
            return os.readlink(f"{self._proc}/{pid}/exe").removesuffix(" (deleted)")
        except OSError:
            # Another user's, or one that hides; or it ended.
            return None

    def _script(self, pid: str) -> str | None:
        text = self._read(pid, "cmdline") or b""
        return script_of(text.decode(errors="replace").rstrip("\0").split("\0"))

    def _read(self, pid: int | str, name: str) -> bytes | None:
        try:
            return read_file(f"{self._proc}/{pid}/{name}")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # It ended, or is not ours to look at.
            return None


_STATUS = re.compile(rb"^(Name|PPid|Uid|RssAnon|RssShmem):\s+([^\s].*?)(?:\s+kB|\t.*)?$", re.MULTILINE)


class PsutilProcesses:
    """Asks psutil, on platforms without /proc."""

    def me(self) -> int:
        """This process."""
        return os.getpid()

    def every(self) -> Iterator[Process]:
        """Those that may be looked at."""
        import psutil  # here, because it takes 35 ms and is of no use on Linux

        for process in psutil.process_iter(["pid", "ppid", "name", "username", "exe", "memory_info"]):
            seen = process.info
            memory, executable = seen["memory_info"], seen["exe"] or None
            if memory is None:
                continue
            shared, script = getattr(memory, "shared", 0), None
            if INTERPRETERS.fullmatch(os.path.basename(executable or "").removesuffix(".exe")):
                try:
                    script = script_of(process.cmdline())
                except psutil.Error:
                    # It ended, or is not ours to look at.
                    script = None
            name = (seen["name"] or "").removesuffix(".exe")
            yield Process(
                seen["pid"], seen["ppid"] or 0, name, seen["username"], memory.rss - shared, shared, executable, script
            )

    def closable(self, process: Process) -> bool:
        """One's own."""
        import psutil

        return process.user is not None and process.user == psutil.Process().username()

    def exact_bytes(self, pid: int) -> int | None:
        """What only it holds."""
        import psutil

        try:
            return int(psutil.Process(pid).memory_full_info().uss)
        except psutil.Error:
            return None

    def groups(self, pid: int) -> tuple[str, ...]:
        """None here."""
        return ()
