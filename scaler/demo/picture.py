"""The demonstration as a live picture in the terminal: memory over time, limits, level, decisions.

Draws what it is given; decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import wrap

from rich.console import Console, ConsoleOptions, Group
from rich.panel import Panel
from rich.text import Text

from scaler.levels import GIB

HEIGHT = 13
"""Rows. The highest is the critical limit's, so that each limit has a row of its very own."""
LIMIT_ROW = 6
"""The other limit's, counted from 0 at the bottom: there is much to see below it."""
OTHER_LINES = HEIGHT + 8
"""How high the picture is without the decisions, in lines."""
FRAME = 4
"""How much wider than its lines it is."""
INDENT = " " * len("100.0 s  ")
"""Before what does not fit on a decision's first line."""
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
    """The moments so far, and the lines below them. Limits are in bytes; ``decision_lines`` is how many lines the
    latest decisions may take.
    """

    levels: Sequence[str]
    limit_bytes: float
    critical_bytes: float
    width: int
    decision_lines: int = 7
    title: str = ""
    answers: str = ""
    latest: str = ""
    stream: str = ""
    moments: deque[Moment] = field(default_factory=deque)
    decisions: list[str] = field(default_factory=list)

    def add(self, moment: Moment) -> None:
        """Append a column; the oldest leaves when the picture is full."""
        self.moments.append(moment)
        while len(self.moments) > self.width:
            self.moments.popleft()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Panel]:
        """What rich draws."""
        legend = Text("  ")
        legend.append("██ other programs  ", OTHER)
        for level in self.levels:
            legend.append(f"██ {level}  ", self._colour(level))
        legend.append(f"RAM from {self._size(0) / GIB:.2f} GiB on", "dim")
        yield Panel(
            Group(
                self._plot(),
                legend,
                Text(""),
                *[Text(line, no_wrap=True) for line in self._told(options.max_width - FRAME)],
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

    def _told(self, width: int) -> list[str]:
        """The lines of the latest decisions: as many as there is room for, each in full if it can be."""
        lines: list[str] = []
        for decision in reversed(self.decisions):
            own = wrap(decision, width, subsequent_indent=INDENT, max_lines=self.decision_lines, placeholder="…")
            if len(own) + len(lines) > self.decision_lines:
                break
            lines = own + lines
        return lines

    def _size(self, row: int) -> float:
        """From how many bytes on a row is filled."""
        step = (self.critical_bytes - self.limit_bytes) / (HEIGHT - 1 - LIMIT_ROW)
        return self.limit_bytes + step * (row - LIMIT_ROW)

    def _plot(self) -> Text:
        text = Text()
        marks = {LIMIT_ROW: "limit", HEIGHT - 1: "critical"}
        for row in range(HEIGHT - 1, -1, -1):
            size = self._size(row)
            text.append(f"{size / GIB:5.2f} GiB ", "dim")
            for moment in self.moments:
                text.append(*self._cell(moment, size, row in marks))
            mark = marks.get(row, "")
            text.append(("╌" if mark else " ") * (self.width - len(self.moments)), "red dim")
            text.append(f" {mark}\n", "red")
        text.right_crop()
        return text

    def _cell(self, moment: Moment, size: float, limit: bool) -> tuple[str, str]:
        """Filled once ``size`` bytes are used, so that the bar reaches a limit's row exactly when it has reached it."""
        if moment.other_bytes >= size:
            return "█", OTHER
        if moment.other_bytes + moment.own_bytes >= size:
            return "█", self._colour(moment.level)
        return ("╌", "red dim") if limit else (" ", "")
