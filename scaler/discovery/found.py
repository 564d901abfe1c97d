"""What was found that could serve models: plain data, from those who look to those who propose.

Knows nothing of how it was found. Names are others' doing: what cannot be printed, or is endless, is no model here.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT_TOKENS, PARALLEL = 4096, 2
"""The context window of one request, and how many are answered at a time: what a level has that does not say."""
LEAST_CONTEXT_TOKENS = 256
"""No level has a shorter window than this."""
LONGEST_NAME = 300
"""A file with longer names is not read as a configuration, and no table can show them."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that could be a level.

    ``serving_bytes`` is what it will take when it serves, about; None where nothing comes back when it does not, as for
    one that only others load. ``gpus`` are the GPUs that it is on, each of which it takes so much of; none where the
    runtime puts it where it likes. ``about`` says its size and quantisation, for people.
    """

    runtime: str
    name: str
    serving_bytes: int | None = None
    url: str | None = None
    context_tokens: int = CONTEXT_TOKENS
    about: str = ""
    gpus: tuple[int, ...] = ()
    key_env: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A model that will be no level, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Source:
    """A server or a folder, what it is, and what it has. ``note`` is what a person should know of it.

    ``pid`` is the process that listens, where that can be told.
    """

    what: str
    where: str
    models: tuple[Model, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    note: str = ""
    pid: int | None = None


def fault_of(name: str) -> str | None:
    """Why a model cannot be written down by this name; None where it can."""
    if not name or not name.isprintable():
        return "its name cannot be printed"
    if len(name) > LONGEST_NAME:
        return f"its name is longer than {LONGEST_NAME} characters"
    return None


def printable(text: str, most: int = 60) -> str:
    """A text of others' that is safe to show."""
    plain = "".join(character if character.isprintable() else "?" for character in text)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
