"""A replay as a picture that is understood at first sight: who used the memory, which level served, what was decided.

Draws what it is handed; knows nothing of how it came about. The only place that uses matplotlib, when it is asked to.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from scaler import extras
from scaler.errors import ScalerError
from scaler.levels import GIB, OFF
from scaler.policy import Policy
from scaler.replay.closed_loop import Step
from scaler.words import switched

COLUMNS = 1600
"""So many points across: each shows the highest of its readings, so that short peaks stay visible."""
LABELS = 9
"""So many decisions are numbered and told below; the others are ticks."""
APART = 0.03
"""How far apart the numbered ones are at the least, as a share of the width."""
SLEPT_S = 60.0
"""When the wall clock ran ahead by more than this, the machine slept: shown as a gap."""
OTHER, OWN, LIMIT, CRITICAL, NONE = "#9aa5b1", "#0072b2", "#e69f00", "#d55e00", "#333333"
"""Colours that people who see fewer of them can tell apart. Source: Okabe & Ito, Color Universal Design, 2008."""


def require() -> None:
    """Raises MissingExtra when the drawing library is not installed."""
    extras.require("plots", "matplotlib")


class Trail:
    """What the picture needs of a replay; hand `add` to `play` as its ``watch``."""

    def __init__(self) -> None:
        self.at_s, self.other, self.own = array("d"), array("d"), array("d")
        self.total_bytes = 1
        self._shift_s: float | None = None
        self.spans: list[tuple[float, float, str]] = []
        """Stretches of time at one level."""
        self.gaps: list[tuple[float, float]] = []
        self.decided: list[Step] = []
        self.killed: list[Step] = []

    @property
    def dated(self) -> bool:
        """Whether the times are dates, or seconds since whenever."""
        return self._shift_s is not None

    def add(self, step: Step) -> None:
        """Take in one step."""
        if step.wall_s is not None and (self._shift_s is None or step.wall_s - step.at_s > self._shift_s + SLEPT_S):
            self._shift_s = step.wall_s - step.at_s
        # From here on in the time of people, which goes on while a machine sleeps.
        step = step._replace(at_s=step.at_s + (self._shift_s or 0.0))
        self.at_s.append(step.at_s)
        self.other.append(step.other_bytes / GIB)
        self.own.append(step.own_bytes / GIB)
        self.total_bytes = step.total_bytes
        end = step.at_s + step.seconds
        if self.spans and self.spans[-1][2] == step.level and step.at_s - self.spans[-1][1] < 1e-6:
            self.spans[-1] = (self.spans[-1][0], end, step.level)
        else:
            if self.spans and step.at_s - self.spans[-1][1] >= 1e-6:
                self.gaps.append((self.spans[-1][1], step.at_s))
            self.spans.append((step.at_s, end, step.level))
        if step.decision is not None:
            self.decided.append(step)
        if step.killed:
            self.killed.append(step)


def draw(trail: Trail, policy: Policy, names: Sequence[str], headline: str, path: Path) -> None:
    """Write the picture; the name's ending says whether PNG or SVG. Raises ScalerError when it cannot be written."""
    require()
    from matplotlib import dates
    from matplotlib.figure import Figure

    total = trail.total_bytes / GIB
    told = _most_important(trail, names)
    figure = Figure(figsize=(14, 6.4 + 0.24 * len(told)), dpi=110, layout="constrained")
    usage, band = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))

    def x(at_s: float) -> Any:
        if trail.dated:
            return datetime.fromtimestamp(at_s).astimezone().replace(tzinfo=None)
        return (at_s - trail.at_s[0]) / 3600

    times, other, own = _columns(trail)
    xs = [x(at) for at in times]
    usage.fill_between(xs, other, step="mid", color=OTHER, linewidth=0, label="other programs")
    both = [a + b for a, b in zip(other, own, strict=True)]
    usage.fill_between(xs, other, both, step="mid", color=OWN, linewidth=0, alpha=0.85, label="the model")
    for ratio, colour, what in ((policy.scale_at, LIMIT, "gives way"), (policy.critical_at, CRITICAL, "critical")):
        usage.axhline(ratio * total, color=colour, linewidth=1.4)
        usage.annotate(
            f"{what}, {ratio:.0%}",
            (1.0, ratio * total),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    usage.set_ylim(0, total)
    usage.set_ylabel(f"memory in use, of {total:.3g} GiB")
    usage.set_xlim(xs[0], xs[-1])
    usage.legend(loc="upper left", ncols=2, framealpha=0.9)
    served = _shares(trail)
    title = ", ".join(f"{name} {share:.0%}" for name, share in served)
    usage.set_title(f"Served: {title}" + (f"\n{headline}" if headline else ""), loc="left", fontsize=13)
    _draw_levels(band, trail, names, x)
    for begun, ended in trail.gaps:
        for axes in (usage, band):
            axes.axvspan(x(begun), x(ended), facecolor="#f0f0f0", hatch="///", edgecolor="#cccccc", linewidth=0)
    for step in trail.decided:
        usage.axvline(x(step.at_s), ymax=0.02, color="black", linewidth=0.8)
    _number(usage, told, total, x)
    if trail.dated:
        locator = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
        band.xaxis.set_major_locator(locator)
        band.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    else:
        band.set_xlabel("hours")
    if told:
        lines = [f"{number}  {_when(step, trail)}  {_sentence(step)}" for number, step in enumerate(told, 1)]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9, family="monospace")
    try:
        figure.savefig(path)
    except OSError as error:
        raise ScalerError(f"{path}: the picture cannot be written: {error.strerror or error}") from error


def _columns(trail: Trail) -> tuple[list[float], list[float], list[float]]:
    """Time, others and own at so many points as can be seen: of each, the reading with the highest usage."""
    count = len(trail.at_s)
    size = max(1, count // COLUMNS)
    times, other, own = [], [], []
    for begin in range(0, count, size):
        top = max(range(begin, min(count, begin + size)), key=lambda i: trail.other[i] + trail.own[i])
        times.append(trail.at_s[begin])
        other.append(trail.other[top])
        own.append(trail.own[top])
        end = begin + size
        if end < count and any(begun <= trail.at_s[end] and trail.at_s[begin] <= ended for begun, ended in trail.gaps):
            times.append(trail.at_s[begin])
            other.append(float("nan"))
            own.append(float("nan"))
    return times, other, own


def _shares(trail: Trail) -> list[tuple[str, float]]:
    """The part of the time of each level, the longest first."""
    spent: dict[str, float] = {}
    for begun, ended, level in trail.spans:
        spent[level] = spent.get(level, 0.0) + ended - begun
    whole = sum(spent.values()) or 1.0
    named = {"nothing" if level == OFF else level: seconds / whole for level, seconds in spent.items()}
    return sorted(((name, share) for name, share in named.items() if share >= 0.005), key=lambda pair: -pair[1])


def _draw_levels(band: Any, trail: Trail, names: Sequence[str], x: Any) -> None:
    """Which level served when: one row a level, so that a climb goes up."""
    from matplotlib import colormaps

    rows = [OFF, *names]
    colours = [NONE, *(colormaps["viridis"](0.25 + 0.7 * n / max(1, len(names) - 1)) for n in range(len(names)))]
    for row, (name, colour) in enumerate(zip(rows, colours, strict=True)):
        pieces = [(x(begun), x(ended) - x(begun)) for begun, ended, level in trail.spans if level == name]
        band.broken_barh(pieces, (row - 0.42, 0.84), facecolors=colour, linewidth=0)
    band.set_yticks(range(len(rows)), ["nothing", *names])
    band.set_ylim(-0.6, len(rows) - 0.4)
    band.set_ylabel("serves")


def _most_important(trail: Trail, names: Sequence[str]) -> list[Step]:
    """The decisions to number, apart from each other: kills, then off, steps down, climbs, and of each the rarest."""
    if not trail.decided and not trail.killed:
        return []
    changes: dict[tuple[str, str], int] = {}
    for step in trail.decided:
        assert step.decision is not None
        change = step.decision.source, step.decision.dest
        changes[change] = changes.get(change, 0) + 1

    def rank(step: Step) -> tuple[int, int]:
        if step.killed or step.decision is None:
            return 0, 0
        change = step.decision.source, step.decision.dest
        if OFF in change:
            return 1, changes[change]
        return 2 if names.index(change[1]) < names.index(change[0]) else 3, changes[change]

    width = (trail.at_s[-1] - trail.at_s[0]) * APART
    chosen: list[Step] = []
    ranked = sorted([*trail.killed, *trail.decided], key=rank)
    while len(chosen) < LABELS:
        free = [step for step in ranked if all(abs(step.at_s - other.at_s) >= width for other in chosen)]
        if not free:
            break
        best = [step for step in free if rank(step) == rank(free[0])]
        # Of equals the one farthest from those that are numbered already, so that they spread over the picture.
        chosen.append(max(best, key=lambda step: min((abs(step.at_s - other.at_s) for other in chosen), default=0.0)))
    return sorted(chosen, key=lambda step: step.at_s)


def _number(usage: Any, told: Sequence[Step], total: float, x: Any) -> None:
    for number, step in enumerate(told, 1):
        height = (step.other_bytes + step.own_bytes) / GIB
        usage.axvline(x(step.at_s), color="black", linewidth=0.5, linestyle=":")
        usage.annotate(
            str(number),
            (x(step.at_s), min(height + 0.04 * total, 0.965 * total)),
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
        )


def _when(step: Step, trail: Trail) -> str:
    if trail.dated:
        return f"{datetime.fromtimestamp(step.at_s).astimezone():%a %H:%M:%S}"
    hours, seconds = divmod(step.at_s - trail.at_s[0], 3600)
    return f"{hours:.0f} h {seconds / 60:04.1f} min"


def _sentence(step: Step) -> str:
    if step.killed:
        return f"{step.level} was killed: memory was exhausted"
    assert step.decision is not None
    return f"{switched(step.decision.source, step.decision.dest)}: {step.decision.reason}"
