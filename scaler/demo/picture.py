"""The demonstration as a live picture in the terminal: memory over time, limits, level, decisions.

Draws what it is given; decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from scaler.levels import GIB

HEIGHT = 14
"""Rows. The highest is the critical limit's, so that each limit has a row of its very own."""
LIMIT_ROW = 7
"""The other limit's, counted from 0 at the bottom: there is much to see below it."""
COLOURS = ("cyan", "green", "magenta", "blue", "bright_cyan")
OTHER = "yellow"


@dataclass(frozen=True, slots=True)
class Moment:
    """One column of the picture, in bytes; ``level`` is what serves."""

    other_bytes: int
    own_bytes: int
    level: str


@dataclass
class Picture:
    """The moments so far, and the lines below them. Limits are in bytes."""

    levels: Sequence[str]
    limit_bytes: float
    critical_bytes: float
    width: int
    title: str = ""
    answers: str = ""
    latest: str = ""
    stream: str = ""
    moments: deque[Moment] = field(default_factory=deque)
    decisions: deque[str] = field(default_factory=lambda: deque(maxlen=7))

    def add(self, moment: Moment) -> None:
        """Append a column; the oldest leaves when the picture is full."""
        self.moments.append(moment)
        while len(self.moments) > self.width:
            self.moments.popleft()

    def __rich__(self) -> Panel:
        """What rich draws."""
        legend = Text("  ")
        legend.append("██ other programs  ", OTHER)
        for level in self.levels:
            legend.append(f"██ {level}  ", self._colour(level))
        return Panel(
            Group(
                self._plot(),
                legend,
                Text(""),
                *[Text(line, overflow="ellipsis", no_wrap=True) for line in self.decisions],
                Text(""),
                Text(f"chat       {self.answers}"),
                Text(f"latest     {self.latest}", overflow="ellipsis", no_wrap=True),
                Text(f"stream     {self.stream}", overflow="ellipsis", no_wrap=True),
            ),
            title=self.title,
            title_align="left",
        )

    def _colour(self, level: str) -> str:
        return COLOURS[self.levels.index(level) % len(COLOURS)] if level in self.levels else "white"

    def _plot(self) -> Text:
        text = Text()
        step = (self.critical_bytes - self.limit_bytes) / (HEIGHT - 1 - LIMIT_ROW)
        marks = {LIMIT_ROW: "limit", HEIGHT - 1: "critical"}
        for row in range(HEIGHT - 1, -1, -1):
            size = self.limit_bytes + step * (row - LIMIT_ROW)
            text.append(f"{size / GIB:5.2f} GiB ", "dim")
            for moment in self.moments:
                text.append(*self._cell(moment, size, row in marks))
            mark = marks.get(row, "")
            text.append(("╌" if mark else " ") * (self.width - len(self.moments)), "red dim")
            text.append(f" {mark}\n", "red")
        return text

    def _cell(self, moment: Moment, size: float, limit: bool) -> tuple[str, str]:
        """Filled once ``size`` bytes are used, so that the bar reaches a limit's row exactly when it has reached it."""
        if moment.other_bytes >= size:
            return "█", OTHER
        if moment.other_bytes + moment.own_bytes >= size:
            return "█", self._colour(moment.level)
        return ("╌", "red dim") if limit else (" ", "")
