"""`scaler doctor`: looks at the whole installation, says how each part stands, what that means and what to do."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from scaler import __version__
from scaler.cli import EXIT_NO, EXIT_OK, Command
from scaler.cli.colour import painted
from scaler.cli.examination import Finding, Patient, Verdict, problem
from scaler.cli.progress import working
from scaler.errors import ScalerError
from scaler.printable import one_line
from scaler.words import counted

SUBJECTS = ("installation", "configuration", "levels", "daemon", "service", "sensors", "permissions")
"""What is looked at, each by the module of that name in `scaler.cli.examination`."""
LIMIT_S = 40.0
"""So long all of it may take together: a server that hangs is given up on after some seconds by who asks it."""
COLOURS = {Verdict.OK: "32", Verdict.NOTE: "33", Verdict.PROBLEM: "1;31"}
REPORT = "this is a fault of scaler's own: please report it, with this line"
WIDEST = 110
INDENT = 11
"""How far in the sentences begin, behind the verdicts."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Looks at Python, libraries, the configuration, the levels' models and servers, the daemon and its port, the "
        "service, the sensors and permissions. Changes nothing and loads no model. Each finding is ok, a note or a "
        "problem; exit code 1: there is a problem."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")
    parser.add_argument("--json", action="store_true", help="every finding as JSON")


def _run(args: argparse.Namespace) -> int:
    with working("looking at everything ..."):
        found = _examined(args.config)
    verdicts = Counter(finding.verdict for findings in found.values() for finding in findings)
    if args.json:
        sections = {subject: [asdict(finding) for finding in findings] for subject, findings in found.items()}
        print(json.dumps({"ok": not verdicts[Verdict.PROBLEM], "version": __version__, "found": sections}, indent=2))
    else:
        width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
        for line in _lines(found, max(50, width)):
            print(line)
        print(_counted(verdicts))
    return EXIT_NO if verdicts[Verdict.PROBLEM] else EXIT_OK


def _examined(config: Path | None) -> Mapping[str, Sequence[Finding]]:
    """What was found, by subject. All are looked at at the same time, and none is waited for longer than the limit."""
    deadline = time.monotonic() + LIMIT_S
    found: dict[str, list[Finding]] = {subject: [] for subject in SUBJECTS}
    patients: list[Patient] = []
    _all({"configuration": lambda: patients.append(_patient(config))}, found, deadline)
    patient = patients[0] if patients else Patient(config, None)

    def look(subject: str) -> None:
        module = importlib.import_module(f"scaler.cli.examination.{subject}")
        # One by one, so that what was found before a fault is not lost.
        for finding in module.examine(patient):
            found[subject].append(finding)

    _all({subject: partial(look, subject) for subject in SUBJECTS}, found, deadline)
    # What a thread that hangs may yet find comes too late.
    return {subject: tuple(findings) for subject, findings in found.items()}


def _patient(config: Path | None) -> Patient:
    from scaler.settings import load_settings

    try:
        return Patient(config, load_settings(config))
    except ScalerError as error:
        fault = str(error)
    try:
        return Patient(config, load_settings(shipped=True), fault)
    except ScalerError:
        # What keeps any from being used, such as a home that nobody knows, was told with the first.
        return Patient(config, None, fault)


def _all(looks: Mapping[str, Callable[[], object]], found: Mapping[str, list[Finding]], deadline: float) -> None:
    """Do all of them, each in a thread that keeps nothing from ending, and tell of those that fail or hang."""
    threads = {}
    for subject, look in looks.items():
        arguments = (subject, look, found[subject])
        threads[subject] = threading.Thread(target=_told, args=arguments, name=f"scaler-{subject}", daemon=True)
        threads[subject].start()
    for subject, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            says = f"not all of it was seen within {LIMIT_S:g} s: something that was asked hangs"
            found[subject].append(problem(subject, says, "what is told last here is where to look"))


def _told(subject: str, look: Callable[[], object], findings: list[Finding]) -> None:
    try:
        look()
    except ModuleNotFoundError as error:
        library = f"{error.name} is not installed"
        findings.append(problem(subject, f"{library}, and this takes it", "install scaler anew, with its extras"))
    except (ScalerError, OSError) as error:
        findings.append(problem(subject, str(error)))
    # Whatever is broken here is what the command is there to tell, and no reason to tell nothing else.
    except Exception as error:  # noqa: BLE001
        findings.append(problem(subject, f"could not be looked at: {type(error).__name__}: {error}", REPORT))


def _lines(found: Mapping[str, Sequence[Finding]], width: int) -> Iterator[str]:
    for subject, findings in found.items():
        yield subject
        for finding in findings:
            text = one_line(f"{finding.about}: {finding.says}")
            first, *rest = textwrap.wrap(text, width - INDENT, break_long_words=False, break_on_hyphens=False)
            word = painted(f"{finding.verdict:<{INDENT - 4}}", COLOURS[finding.verdict])
            yield f"  {word}  {first}"
            yield from (f"{'':{INDENT}}{line}" for line in rest)
            if finding.do:
                do = textwrap.wrap(
                    one_line(f"do: {finding.do}"), width - INDENT, break_long_words=False, break_on_hyphens=False
                )
                yield from (f"{'':{INDENT}}{'' if line is do[0] else '    '}{line}" for line in do)
        yield ""


def _counted(verdicts: Mapping[Verdict, int]) -> str:
    problems, notes = verdicts[Verdict.PROBLEM], verdicts[Verdict.NOTE]
    if not (problems or notes):
        return "everything is as it should be"
    return f"{counted(problems, 'problem')}, {counted(notes, 'note')}"


COMMAND = Command(
    "doctor",
    "check the whole installation: what each finding means, and what to do",
    _add_arguments,
    _run,
    yes="no problem",
    no="there is a problem",
)
