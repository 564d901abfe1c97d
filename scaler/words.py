"""Figures as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from scaler.errors import ConfigError
from scaler.levels import GIB

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*")
"""A stretch of time as people give it, such as 90s, 30m, 2h, 7d."""


def span(option: str, text: str) -> float:
    """The seconds that an option's value means. Raises ConfigError."""
    given = SPAN.fullmatch(text)
    if given is None or not 0 < (seconds := float(given[1]) * UNITS_S[given[2]]) < 1e10:
        raise ConfigError(f"{option}: {text!r} is no stretch of time; expected such as 90s, 30m, 2h, 7d")
    return seconds


def gib(size: float | None) -> str:
    """Bytes as GiB with two digits that matter, or as MiB below a tenth of one."""
    if size is None:
        return "unknown"
    if abs(size) < GIB / 10:
        return f"{size / 1024**2:.0f} MiB"
    return f"{size / GIB:.2f} GiB"


def percent(ratio: float | None) -> str:
    """A ratio as a percentage."""
    return "unknown" if ratio is None else f"{100 * ratio:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def faults(error: ConfigError, most: int) -> str:
    """What is wrong with a configuration as part of one line: the first ``most`` of it."""
    told = str(error).splitlines()
    more = " (and more: `scaler config check` tells all)" if len(told) > most else ""
    return f"{'; '.join(told[:most])}{more}"


def counted(number: int, thing: str) -> str:
    """How many of something whose plural has an s."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def switched(source: str, dest: str) -> str:
    """What a decision does; one whose levels are the same loads the model of a level that had died."""
    return f"loading {dest} anew" if source == dest else f"{source} → {dest}"


def changed(change: Mapping[str, str | None]) -> str:
    """A value of the configuration that is another now; one that is not shown may be secret."""
    if change["before"] is None or change["after"] is None:
        return f"{change['key']} has changed"
    return f"{change['key']}: {change['before']} → {change['after']}"


def reconfigured(changes: Iterable[Mapping[str, str | None]], restart: Iterable[str]) -> str:
    """What a configuration that was read anew brought, as one line."""
    told = [*map(changed, changes)] or ["nothing that applies at once has changed"]
    if waits := ", ".join(restart):
        told.append(f"after a restart only: {waits}")
    return "; ".join(told)
