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
    floor_bytes: float
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
        span = self.critical_bytes * 1.02 - self.floor_bytes
        text = Text()
        rows = [self.floor_bytes + span * row / HEIGHT for row in range(HEIGHT)]
        marks = {self._row(self.limit_bytes, span): "limit", self._row(self.critical_bytes, span): "critical"}
        for row in range(HEIGHT - 1, -1, -1):
            text.append(f"{rows[row] / GIB:5.2f} GiB ", "dim")
            for moment in self.moments:
                text.append(*self._cell(moment, rows[row], span / HEIGHT, row in marks))
            mark = marks.get(row, "")
            text.append(("╌" if mark else " ") * (self.width - len(self.moments)), "red dim")
            text.append(f" {mark}\n", "red")
        return text

    def _cell(self, moment: Moment, bottom: float, step: float, limit: bool) -> tuple[str, str]:
        middle = bottom + step / 2
        if moment.other_bytes > middle:
            return "█", OTHER
        if moment.other_bytes + moment.own_bytes > middle:
            return "█", self._colour(moment.level)
        return ("╌", "red dim") if limit else (" ", "")

    def _row(self, value: float, span: float) -> int:
        return min(HEIGHT - 1, max(0, int((value - self.floor_bytes) / span * HEIGHT)))
