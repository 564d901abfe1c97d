"""What scaler may write, and what it may tell the kernel of its models."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaler.cli.examination import Finding, Patient, note, ok, problem
from scaler.words import gib

LEAST_FREE_BYTES = 100 * 1024**2
"""On a disk with less the journal and the recording will soon not be written any more: they may take 25 and 64 MiB as
shipped."""


def examine(patient: Patient) -> Iterator[Finding]:
    """By looking, as far as looking tells."""
    settings = patient.settings
    if settings is None:
        yield note("files", "not looked at, for without a configuration nobody knows where they are")
    else:
        yield _file("journal", settings.journal.path, "journal.path")
        if settings.recording.enabled:
            yield _folder("recording", settings.recording.path, "recording.path")
        if settings.remembered.enabled:
            yield _file("remembered", settings.remembered.path, "remembered.path")
        if settings.conversations.path is not None:
            yield _file("conversations", settings.conversations.path, "conversations.path")
        yield from _room(settings.journal.path)
    yield from _sockets()
    if settings is not None:
        yield from _processes(patient)


def _file(about: str, path: Path, key: str) -> Finding:
    if os.path.isdir(path):
        return problem(about, f"{path} is a folder, and nothing can be kept there", f"name a file: {key}")
    if os.path.exists(path):
        if not os.access(path, os.R_OK | os.W_OK):
            return problem(about, f"{path} may not be written by you", _another(key))
        return ok(about, str(path))
    return _folder(about, path.parent, key, path)


def _folder(about: str, folder: Path, key: str, shown: Path | None = None) -> Finding:
    """Whether something can be made in a folder, which is made itself where it is not there."""
    there = next(one for one in (folder, *folder.parents) if os.path.lexists(one) or one == one.parent)
    if not os.path.isdir(there):
        return problem(about, f"{there} is a file, where {shown or folder} needs a folder", f"name another: {key}")
    if not os.access(there, os.W_OK | os.X_OK):
        return problem(about, f"{shown or folder} cannot be made: {there} may not be written by you", _another(key))
    return ok(about, str(shown or folder))


def _another(key: str) -> str:
    return f"have whoever owns it let you write there, or name another place: {key}"


def _room(path: Path) -> Iterator[Finding]:
    there = next((one for one in path.parents if os.path.isdir(one)), None)
    if there is None:
        return
    disk = shutil.disk_usage(there)
    # What has no size, as the kernel's own file systems, is no disk.
    if disk.total and disk.free < LEAST_FREE_BYTES:
        says = f"{gib(disk.free)} are free on the disk of {there}: decisions will soon not be written down any more"
        yield problem("disk", says, "make room there")


def _sockets() -> Iterator[Finding]:
    """The folder in which each model that scaler starts has its private socket."""
    from scaler.runtimes.model_process import PRIVATE, SOCKET, SOCKET_NAME_BYTES

    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        yield problem("temporary files", f"there is no folder for them ({error.strerror})", "set TMPDIR to one")
        return
    # As tempfile names it: eight characters behind the prefix.
    longest = f"{folder}/{PRIVATE}{'x' * 8}/{SOCKET}"
    if sys.platform != "win32" and len(os.fsencode(longest)) > SOCKET_NAME_BYTES:
        says = f"{folder}: the names of models' sockets there would be too long"
        yield problem("temporary files", says, "set TMPDIR to a shorter one, such as /tmp")
    else:
        yield ok("temporary files", folder)


def _processes(patient: Patient) -> Iterator[Finding]:
    from scaler.runtimes.bounds import OOM_SCORE_ADJ, unwritable

    assert patient.settings is not None
    settings = patient.settings.processes
    yield ok("nice", f"models that scaler starts run at nice {settings.nice}, behind your programs")
    if sys.platform != "linux":
        return
    if (why := unwritable(OOM_SCORE_ADJ)) is None:
        says = f"{settings.oom_score_adj}: when memory is out, the kernel kills a model first"
        yield ok("oom_score_adj", says)
    else:
        says = (
            f"{OOM_SCORE_ADJ} cannot be written ({why}): when memory is out, the kernel may kill another program first"
        )
        yield note("oom_score_adj", says, "see docs/processes.md")
    yield _limits(settings.memory_limit_share)


def _limits(share: float | None) -> Finding:
    from scaler.runtimes.model_cgroup import NotPermitted, shareable

    about = "memory limits"
    try:
        own = shareable()
    except (NotPermitted, OSError) as error:
        if share is None:
            return ok(about, f"not asked for, and not possible from here: {error}")
        return problem(
            about,
            f"processes.memory_limit_share has no effect: {error}",
            "start it with: systemd-run --user --scope -p Delegate=yes scaler run; or as a service, docs/service.md",
        )
    if share is None:
        return ok(about, f"not asked for; possible below {own}")
    return ok(about, f"each model may hold {share:g} times what its level takes, in a control group below {own}")
