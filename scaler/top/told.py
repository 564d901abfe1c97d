"""What is said beside the pictures, in the words of `scaler explain` and `scaler history`.

Pure: the daemon's answers in, text out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from textual.content import Content

from scaler.advice import sizes_in_words
from scaler.cli.explain import next_upgrade
from scaler.levels import OFF
from scaler.past import in_words
from scaler.top.pictures import colour
from scaler.words import percent

FIGURE = re.compile(r"(?<=\d) (?=(?:%|°C|[KMGT]iB|tokens/s|ms|s|min|h|d)(?!\w))")
"""The space between a figure and its unit."""
HELD = "\ue000"
"""What stands there while lines are wrapped: at spaces of every kind they are. A character that has no meaning."""


def upgrade(status: dict[str, Any], passed_s: float, *, short: bool) -> Iterator[str]:
    """The next upgrade with what it waits for, ``passed_s`` after the daemon told; if ``short``, the first of it."""
    yield next_upgrade(status, lambda wait_s: countdown(wait_s - passed_s))
    if status["next"]["level"] is not None and (waits_for := status["next"]["waits_for"]):
        if short and len(waits_for) > 1:
            yield f"waits for: {waits_for[0]} (and {len(waits_for) - 1} more: scaler explain)"
        else:
            yield f"waits for: {'; '.join(waits_for)}"


def level_line(status: dict[str, Any], number: int, name: str, width: int, passed_s: float) -> Content:
    """A level's line: its number and name in ``width`` cells, usage there, how it stands, how fast it answers."""
    serves = name == status["serving"]
    usage = status["projected"].get(name)
    rate = status["performance"].get(name, {}).get("tokens_per_s")
    return Content.assemble(
        "▶" if serves else " ",
        (str(number), colour(number)),
        f" {name}{' ' * (width - Content(name).cell_length)}  ",
        f"{'' if usage is None else 'at ' + percent(usage):<9}  ",
        f"{_standing(status, name, passed_s):<22}",
        f"  {rate:.0f} tokens/s" if rate else "",
    )


def _standing(status: dict[str, Any], name: str, passed_s: float) -> str:
    """How a level stands, in a few words."""
    names = [OFF, *status["projected"]]
    if name == status["serving"]:
        if status["state"] == OFF and not status["settled"]:
            return "unloading" if name == OFF else "is being unloaded"
        return "serves" if name != OFF else "nothing is loaded"
    if name == status["state"]:
        if name == OFF:
            return "comes next"
        loaded = status["loading"].get(name)
        return "is being loaded" + ("" if loaded is None else f", {_whole(loaded)}")
    if names.index(name) < names.index(status["state"]):
        return "smaller" if name != OFF else ""
    if name in status["next"]["then"]:
        return f"after {status['next']['level']}"
    outlook = next(one for one in status["outlooks"] if one["level"] == name)
    if outlook["earliest_s"] is None:
        return "not allowed now"
    if outlook["wait_s"] is None:
        return "not by waiting alone"
    return (
        f"in {countdown(outlook['wait_s'] - passed_s)} if this lasts" if outlook["wait_s"] else "with the next reading"
    )


def model_words(status: dict[str, Any]) -> str:
    """What the server of the level tells of itself, where it does."""
    model = status["reading"] and status["reading"]["model"]
    if not model:
        return ""
    return (
        f"; its server: {model['running']} running, {model['waiting']} waiting, cache {percent(model['cache_ratio'])}"
    )


def gpu_words(gpu: dict[str, Any]) -> str:
    told = [] if gpu["utilisation_ratio"] is None else [f"{_whole(gpu['utilisation_ratio'])} busy"]
    told += [] if gpu["temperature_c"] is None else [f"{gpu['temperature_c']:.0f} °C"]
    told += ["slowed down for heat"] if gpu["throttled"] else []
    return f"{gpu['name']}: {', '.join(told)}" if told else str(gpu["name"])


def suggestions(advice: dict[str, Any]) -> Iterator[str]:
    if "error" in advice:
        yield str(advice["error"])
        return
    if not advice["suggestions"]:
        yield f"nothing to suggest: {advice['reason']}"
    for number, one in enumerate(advice["suggestions"], start=1):
        yield f"{number}. {one['text']}"
    for level, lacking in advice["lacking"].items():
        yield f"{level} lacks {sizes_in_words(lacking, lacking)}"


def events(history: dict[str, Any]) -> list[Content]:
    """The events, the newest first."""
    if "error" in history:
        return [Content(str(history["error"]))]
    told = [
        Content.assemble((f"{clock(datetime.fromisoformat(event['at']))} ", "bold"), in_words(event))
        for event in reversed(history["events"])
    ]
    return told or [Content("none in the last hour")]


def wrapped(content: Content, width: int) -> list[Content]:
    """``content`` in lines of at most ``width`` cells, wrapped between words, but not between a figure and its unit."""
    held = Content(FIGURE.sub(HELD, content.plain), spans=list(content.spans)).wrap(max(1, width))
    return [Content(line.plain.replace(HELD, " "), spans=list(line.spans)) for line in held]


def read_at(status: dict[str, Any]) -> float | None:
    return status["reading"]["wall_s"] if status["reading"] else None


def time_of(wall_s: float | None, form: str = "%H:%M:%S") -> str:
    return "without a reading" if wall_s is None else clock(datetime.fromtimestamp(wall_s, UTC), form)


def clock(when: datetime, form: str = "%H:%M:%S") -> str:
    return when.astimezone().strftime(form)


def _whole(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


def countdown(seconds: float) -> str:
    """As a clock counts down: 4:12, 1:02:05."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
