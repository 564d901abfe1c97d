"""Memory as bars and as an hour of columns, in characters that say without colour what colour says.

Pure: figures and a width in, lines out. Compares nothing with a threshold; it shows where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from textual.content import Content

from scaler.levels import OFF

OWN, OTHER, FREE = "█", "▒", "·"
SCALE_AT, CRITICAL_AT = "│", "┃"
SIGNS: Mapping[str, str] = {OTHER: "ansi_yellow", SCALE_AT: "ansi_red", CRITICAL_AT: "ansi_red bold", FREE: "dim"}
"""How each sign is coloured, where there is colour."""
COLOURS = ("cyan", "green", "magenta", "blue", "bright_cyan")
EIGHTHS = " ▁▂▃▄▅▆▇█"
NOTHING = "·"
"""In the line of levels: nothing was loaded."""
RETIRED = "?"
"""There, for a number: a level that is no longer on the ladder."""


def colour(number: int) -> str:
    """The colour of the level with this number, 1 for the smallest; none for `off`."""
    return f"ansi_{COLOURS[(number - 1) % len(COLOURS)]}" if number > 0 else "dim"


def bar(usage: Mapping[str, int], scale_at: float, critical_at: float, width: int, own: str) -> Content:
    """Others' part from the left, ours upon it, and where the two thresholds lie. ``own`` is our part's colour."""
    total = usage["total_bytes"]
    signs = [FREE] * width
    others = min(_cells(usage["other_bytes"] / total, width), width - 1)
    signs[:others] = OTHER * others
    ours = _cells((usage["other_bytes"] + usage["own_bytes"]) / total, width)
    if usage["own_bytes"]:
        ours = max(ours, others + 1)  # it is seen, however little it is
    signs[others:ours] = OWN * (ours - others)
    signs[_cell(scale_at, width)] = SCALE_AT
    signs[_cell(critical_at, width)] = CRITICAL_AT
    return _coloured("".join(signs), lambda sign: own if sign == OWN else SIGNS[sign])


def ruler(other_bytes: int, total_bytes: int, takes: Sequence[int | None], width: int) -> Content:
    """Under a bar, the number of each level where usage would end there: left of the thresholds it fits.

    ``takes``: what each level takes of it, smallest first; None for one that takes nothing. A level that would end
    beyond the bar has a ``>`` behind it.
    """
    signs = [" "] * width
    # From the largest, so that where two would stand on one place the larger is moved out of it, and not over it.
    free = width
    for number in range(len(takes), 0, -1):
        size = takes[number - 1]
        if size is None:
            continue
        ratio = (other_bytes + size) / total_bytes
        text = f"{number}>" if ratio > 1 else str(number)
        at = min(_cell(ratio, width), free - len(text))
        if at < 0:
            break
        signs[at : at + len(text)] = text
        free = at
    return _coloured("".join(signs), lambda sign: colour(int(sign)) if sign.isdigit() else "")


class Hour:
    """The last hour in ``width`` columns: the most that was in use in each, and what served."""

    def __init__(self, history: Mapping[str, Any], span_s: float, width: int) -> None:
        self._width = width
        self._columns: list[list[Mapping[str, Any]]] = [[] for _ in range(width)]
        for point in history["points"]:
            column = math.floor((point["at"] - history["now"] + span_s) / span_s * width)
            if 0 <= column <= width:
                self._columns[min(column, width - 1)].append(point)

    def usage(self, resource: str, height: int) -> list[Content]:
        """Columns from 0 to 100 %, ``height`` lines high; where nothing was read is nothing."""
        tops = [max(_ratios(column, resource), default=None) for column in self._columns]
        # What was read is seen, however little it was.
        eighths = [0 if top is None else max(1, math.ceil(min(top, 1.0) * height * 8)) for top in tops]
        return [
            Content.styled("".join(EIGHTHS[max(0, min(8, one - 8 * row))] for one in eighths), SIGNS[OTHER])
            for row in range(height - 1, -1, -1)
        ]

    def peak(self, resource: str) -> tuple[float, float] | None:
        """The most that was in use, 0..1, and when, in seconds since the epoch; None if nothing was read."""
        points = [point for column in self._columns for point in column if resource in point["usage"]]
        return max(
            ((next(_ratios([point], resource)), point["at"]) for point in points), key=lambda one: one[0], default=None
        )

    def levels(self, numbers: Mapping[str, int]) -> Content:
        """What served in each column: a level's number where it begins, then a line; gaps where nobody watched."""
        served = [column[-1]["serving"] if column else None for column in self._columns]
        parts: list[tuple[str, str] | str] = []
        for name, run in groupby(served):
            length = len(list(run))
            if name is None or name == OFF:
                parts.append((" " if name is None else NOTHING) * length)
            else:
                number = numbers.get(name)
                text = RETIRED if number is None else str(number)
                parts.append((text[:length] + "─" * (length - len(text)), colour(number or 0)))
        return Content.assemble(*parts)


def _ratios(points: Sequence[Mapping[str, Any]], resource: str) -> Iterator[float]:
    for point in points:
        if (part := point["usage"].get(resource)) is not None:
            yield (part["own_bytes"] + part["other_bytes"]) / part["total_bytes"]


def _cells(ratio: float, width: int) -> int:
    """How many cells a part fills."""
    return min(width, max(0, round(ratio * width)))


def _cell(ratio: float, width: int) -> int:
    """Which cell a ratio falls on."""
    return min(width - 1, max(0, int(ratio * width)))


def _coloured(signs: str, style: Callable[[str], str]) -> Content:
    return Content.assemble(*(("".join(run), style(sign)) for sign, run in groupby(signs)))
