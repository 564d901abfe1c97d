"""The part of the screen that shows memory: each resource as a bar with the levels below it, and the last hour.

Pure: the daemon's answers and a width in, lines out.
"""

from __future__ import annotations

from typing import Any

from textual.content import Content

from scaler.levels import gpu_resource
from scaler.top.pictures import CRITICAL_AT, OTHER, OWN, SCALE_AT, SIGNS, Hour, bar, colour, ruler
from scaler.top.told import gpu_words, time_of, wrapped
from scaler.words import gib, percent

HOUR_S = 3600.0
LABEL = 10
"""The width of what stands before each line, as in `scaler status`."""
FIGURES = 36
"""The width of what stands behind a bar."""
LEAST_BAR = 10
"""On a screen too narrow for both, the figures behind a bar are what is cut off."""
HIGH = 4
"""How many lines high an hour is where there is room."""


def memory(status: dict[str, Any], history: dict[str, Any], width: int, *, tall: bool) -> list[Content]:
    """Every resource that levels use, GPUs that none uses, and the hour: of each resource if ``tall``, else of the
    fullest, in one line.
    """
    bars = max(LEAST_BAR, width - LABEL - FIGURES - 1)
    hour = None if "error" in history else Hour(history, HOUR_S, bars)
    numbers = {level["level"]: number for number, level in enumerate(status["effective"], 1)}
    own = colour(numbers.get(status["serving"], 0))
    reading = status["reading"] or {}
    gpus = {gpu_resource(gpu["index"]): gpu for gpu in reading.get("gpus") or ()}
    lines: list[Content] = []
    for resource, usage in status["usage"].items():
        lines += _resource(status, resource, usage, bars, own, on_gpu=resource in gpus)
        if resource in gpus:
            lines += _text("", gpu_words(gpus[resource]), width)
        if hour is not None and tall:
            lines += _hour(hour, resource, HIGH)
    for resource, gpu in gpus.items():
        if resource not in status["usage"]:
            used = f"{gib(gpu['used_bytes'])} of {gib(gpu['total_bytes'])} used"
            lines += _text(resource, f"{gpu_words(gpu)}, {used}", width)
    if hour is None:
        return lines
    if not tall:
        fullest = max(status["usage"], key=lambda name: _ratio(status["usage"][name]), default=None)
        lines += [] if fullest is None else _hour(hour, fullest, 1)
    return [*lines, _line("served", hour.levels(numbers), "in that hour, by number")]


def _resource(
    status: dict[str, Any], resource: str, usage: dict[str, int], width: int, own: str, *, on_gpu: bool
) -> list[Content]:
    policy, total = status["policy"], usage["total_bytes"]
    scale_at, critical_at = policy["scale_at"], policy["critical_at"]
    if on_gpu:
        scale_at, critical_at = policy["vram_scale_at"] or scale_at, policy["vram_critical_at"] or critical_at
    takes = [level["takes"].get(resource) for level in status["effective"]]
    used = Content.assemble(
        f"{percent(_ratio(usage))} of {gib(total)}  ",
        *(
            (SCALE_AT, SIGNS[SCALE_AT]),
            f"{100 * scale_at:g} % ",
            (CRITICAL_AT, SIGNS[CRITICAL_AT]),
            f"{100 * critical_at:g} %",
        ),
    )
    parts = Content.assemble(
        *((OWN, own), f" own {gib(usage['own_bytes'])}  "),
        *((OTHER, SIGNS[OTHER]), f" other {gib(usage['other_bytes'])}"),
    )
    return [
        _line(resource, bar(usage, scale_at, critical_at, width, own), used),
        _line("", ruler(usage["other_bytes"], total, takes, width), parts),
    ]


def _hour(hour: Hour, resource: str, height: int) -> list[Content]:
    if (peak := hour.peak(resource)) is None:
        return []
    first, *rest = hour.usage(resource, height)
    told = f"{resource}: peak {percent(peak[0])} at {time_of(peak[1], '%H:%M')}"
    return [_line("last hour", first, told), *(_line("", row) for row in rest)]


def _line(label: str, picture: Content | str, figures: Content | str = "") -> Content:
    start = Content.styled(f"{label:<{LABEL}}", "bold")
    return Content.assemble(start, picture if isinstance(picture, Content) else Content(picture), " ", figures)


def _text(label: str, text: str, width: int) -> list[Content]:
    first, *rest = wrapped(Content(text), width - LABEL)
    return [_line(label, first), *(_line("", row) for row in rest)]


def _ratio(usage: dict[str, int]) -> float:
    return (usage["own_bytes"] + usage["other_bytes"]) / usage["total_bytes"]
