"""The systemd unit: whether there is one, whether it starts this scaler, and how it stands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from scaler.cli.examination import Finding, Patient, note, ok, problem

NAME = "scaler.service"
ASK_S = 5.0
"""So long systemd may take to answer."""
ASKED = ("LoadState", "ActiveState", "UnitFileState", "FragmentPath", "NeedDaemonReload")
WRITE = "scaler service > ~/.config/systemd/user/scaler.service && systemctl --user daemon-reload"


def examine(patient: Patient) -> Iterator[Finding]:
    """By asking the person's systemd; there need be none."""
    if sys.platform != "linux" or (systemctl := shutil.which("systemctl")) is None:
        yield ok("unit", "there is no systemd here; docs/service.md says what else can start `scaler run`")
        return
    told = _asked(systemctl)
    file = _file() if told is None else Path(told["FragmentPath"]) if told["FragmentPath"] else None
    if file is None or not file.is_file():
        yield ok("unit", "none is installed; `scaler service` prints one, docs/service.md says how it is installed")
        return
    yield from _unit(file, patient)
    if told is None:
        yield note("systemd", f"{file} is there, and the systemd that would start it does not answer", "log in anew")
        return
    state = f"{told['ActiveState']}, {told['UnitFileState'] or 'not enabled'}"
    if told["ActiveState"] == "failed":
        yield problem("service", f"it failed: {state}", "journalctl --user -u scaler says why")
    elif told["NeedDaemonReload"] == "yes":
        yield note("service", "systemd has not read the unit since it changed", "systemctl --user daemon-reload")
    elif told["UnitFileState"] != "enabled":
        yield note("service", f"it is not started when you log in: {state}", "systemctl --user enable --now scaler")
    else:
        yield ok("service", state)


def _asked(systemctl: str) -> dict[str, str] | None:
    """What systemd says of the unit; None where no systemd of the person's answers."""
    command = [systemctl, "--user", "show", NAME, *(f"--property={name}" for name in ASKED)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return {name: told.get(name, "") for name in ASKED} if done.returncode == 0 and told else None


def _file() -> Path | None:
    """Where a person's unit is, if systemd does not say. Source: systemd.unit(5), unit search paths."""
    named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    try:
        folder = named if named.is_absolute() else Path.home() / ".config"
    except RuntimeError:
        # No home, and so no unit of this person's.
        return None
    return folder / "systemd" / "user" / NAME


def _unit(file: Path, patient: Patient) -> Iterator[Finding]:
    from scaler.cli.service import unit

    try:
        text = file.read_text("utf-8")
        found = re.search(r"(?m)^ExecStart=(.*)$", text)
        program = shlex.split(found[1])[0] if found else ""
    except (OSError, ValueError, IndexError) as error:
        yield problem("unit", f"{file} cannot be read ({error})", WRITE)
        return
    here = Path(program.replace("%h", os.path.expanduser("~")))
    if not os.access(here, os.X_OK):
        yield problem("unit", f"{file} starts {here}, which is no program that is here", WRITE)
    elif text != unit(patient.config):
        yield note("unit", f"{file} is not what `scaler service` prints now: another version, or changed by you", WRITE)
    else:
        yield ok("unit", str(file))
