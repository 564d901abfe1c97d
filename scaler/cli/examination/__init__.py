"""What `scaler doctor` looks at: one module a subject, each with an ``examine`` that tells what it found.

They look and change nothing, load no model, and may be as slow as they like: whoever calls them waits no longer than it
wants to. What another part of scaler knows, they ask that part.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaler.settings import Settings


class Verdict(StrEnum):
    """What a finding means for whoever wants scaler to work."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; it works all the same."""
    PROBLEM = "problem"
    """Something that was asked for does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what it is about, how it stands and what that means, and what to do about it."""

    verdict: Verdict
    about: str
    says: str
    do: str = ""


def ok(about: str, says: str) -> Finding:
    """It is as it should be."""
    return Finding(Verdict.OK, about, says)


def note(about: str, says: str, do: str = "") -> Finding:
    """It works, and a person should know this."""
    return Finding(Verdict.NOTE, about, says, do)


def problem(about: str, says: str, do: str = "") -> Finding:
    """It does not work."""
    return Finding(Verdict.PROBLEM, about, says, do)


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined: the configuration at ``config``, or the one that applies.

    ``settings`` are what it says; where ``fault`` says that it cannot be used, those that ship with scaler, or None.
    """

    config: Path | None
    settings: Settings | None
    fault: str = ""
