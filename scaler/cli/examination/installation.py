"""Python, scaler itself, and the libraries that its extras bring."""

from __future__ import annotations

import platform
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import scaler
from scaler import extras
from scaler.cli.examination import Finding, Patient, note, ok, problem

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+).*;.*\bextra == ['\"](?P<extra>[\w-]+)['\"]")
"""A library of an extra, as the metadata of an installed package have it."""
FOR = {
    "server": "the endpoint of `scaler run`",
    "llama": "levels that scaler loads itself",
    "ollama": "levels that Ollama loads",
    "desktop": "notices on the desktop",
    "plots": "the picture of `scaler replay`",
    "demo": "`scaler demo`",
    "tui": "`scaler top`",
    "otel": "traces of requests and switches",
}
"""The extras that are for people who use scaler, and what each is for."""
NOT_ON_WINDOWS = {"uvloop"}


def examine(patient: Patient) -> Iterator[Finding]:
    """Whether all is installed that the configuration takes; what the levels' runtimes take is told with the levels."""
    yield ok("Python", f"{platform.python_version()}, {sys.executable}")
    yield ok("scaler", f"{scaler.__version__}, in {Path(scaler.__file__).parent}")
    lacking = _lacking()
    if lacking is None:
        yield note(
            "extras",
            "scaler runs from a folder and was not installed, so that nobody knows which libraries it should have",
            "in the checkout: pip install '.[server,llama]'",
        )
        return
    needed = {"server"}
    if patient.settings is not None and not patient.fault and patient.settings.notices.desktop:
        needed.add("desktop")
    for extra, what in FOR.items():
        if not (missing := lacking.get(extra, [])):
            yield ok(f"extra {extra}", f"installed: {what}")
        elif extra in needed:
            says, _, do = str(extras.missing(missing[0], extra)).partition("; install it with: ")
            yield problem(f"extra {extra}", f"{says}, which {what} takes", do)
        else:
            yield ok(f"extra {extra}", f"not installed, and not asked for: {what}")


def _lacking() -> dict[str, list[str]] | None:
    """The libraries that each extra lacks; None where scaler is not installed as a package."""
    try:
        required = metadata.requires(extras.DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    modules = defaultdict[str, list[str]](list)
    for module, distributions in metadata.packages_distributions().items():
        for name in distributions:
            modules[_canonical(name)].append(module)
    lacking = defaultdict[str, list[str]](list)
    for line in required:
        if (found := REQUIREMENT.match(line)) is None or (sys.platform == "win32" and found["name"] in NOT_ON_WINDOWS):
            continue
        there = modules.get(_canonical(found["name"]), [])
        if not there or any(find_spec(module) is None for module in there):
            lacking[found["extra"]].append(found["name"])
    return lacking


def _canonical(name: str) -> str:
    """A package's name as all its spellings have it. Source: packaging.python.org, name normalization."""
    return re.sub(r"[-_.]+", "-", name).lower()
