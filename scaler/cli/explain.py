"""`scaler explain`: why this level, and what each other level lacks, in numbers and minutes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import add_arguments, daemon
from scaler.levels import OFF
from scaler.printable import one_line
from scaler.report import ELSEWHERE
from scaler.words import duration, percent

KEYS = (
    *("state", "serving", "settled", "pinned", "projected", "outlooks", "effective", "failed"),
    *("last_decision", "not_permitted", "why", "next"),
)
"""What is told for programs."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the verdict of every guard, as JSON")


def _run(args: argparse.Namespace) -> int:
    status = daemon(args).status((*KEYS, "policy", "next.then"))
    if args.json:
        print(json.dumps({key: status[key] for key in KEYS}, indent=2))
        return EXIT_OK
    for line in (*_lines(status), *status["not_permitted"]):
        print(one_line(line))
    return EXIT_OK


def _lines(status: dict[str, Any]) -> Iterator[str]:
    state, pinned, policy = status["state"], status["pinned"], status["policy"]
    first, *reasons = status["why"]
    yield first
    yield from _set_in(reasons)
    effective = {level["level"]: level for level in status["effective"]}
    rank = {name: position for position, name in enumerate((OFF, *effective))}
    # What a pin forbids is said with the next upgrade, and the level that is pinned goes by no forecast.
    outlooks = [one for one in status["outlooks"] if pinned is None or rank[one["level"]] <= rank[pinned]]
    if pinned == state:
        outlooks = [one for one in outlooks if one["wait_s"]]
    names = [name for name in effective if name == state or any(one["level"] == name for one in outlooks)]
    if pinned != state:
        yield from _set_in(_foreseen([effective[name] for name in names if rank[name] >= rank[state]], policy))
    yield f"next upgrade: {next_upgrade(status)}"
    for outlook in reversed(outlooks):
        name, wait = outlook["level"], outlook["wait_s"]
        elsewhere = not effective[name]["takes"]
        if rank[name] < rank[state]:
            there = ELSEWHERE if elsewhere else f"usage there would be {percent(status['projected'][name])}"
            yield f"{name}: smaller; {there}"
            if wait:
                yield from _set_in([f"in {duration(wait)} if this lasts", *outlook["lacking"]])
            continue
        if name in status["next"]["then"]:
            yield f"{name}: after {status['next']['level']}, which comes first"
            continue
        if not outlook["lacking"]:
            yield f"{name}: nothing is lacking; it comes with the next reading"
        else:
            yield f"{name}: " + ("not by waiting alone" if wait is None else f"in {duration(wait)} if this lasts")
        yield from _set_in([ELSEWHERE] if elsewhere else [])
        if outlook["lacking"]:
            yield from _set_in([*outlook["lacking"], *_held_back(effective[name], status, policy)])


def _set_in(sentences: Iterable[str]) -> Iterator[str]:
    return (f"  {sentence}" for sentence in sentences)


def next_upgrade(status: dict[str, Any], told: Callable[[float], str] = duration) -> str:
    """To which level it goes next and when at the earliest, or why to none. ``told`` puts seconds into words."""
    level, waits_for = status["next"]["level"], status["next"]["waits_for"]
    if level is None:
        return f"none; {'; '.join(waits_for)}"
    wait = next(outlook["earliest_s"] for outlook in status["outlooks"] if outlook["level"] == level)
    return f"to {level} " + (f"in {told(wait)} at the earliest" if wait else "with the next reading")


def _foreseen(levels: Sequence[dict[str, Any]], policy: dict[str, Any]) -> Iterator[str]:
    """What the forecasts see at these levels: what holds for several of them is said once."""
    forecasts: dict[tuple[float, float] | None, list[str]] = {}
    rises: dict[str, list[str]] = {}
    for level in levels:
        if not level["takes"]:
            continue
        known = level["expected"] is not None
        usage = f"{percent(level['expected'])} at {level['level']}" if known else level["level"]
        forecasts.setdefault((level["seen_s"], level["band"]) if known else None, []).append(usage)
        if (rise := percent(level["rise_per_s"])) != percent(0):
            rises.setdefault(rise, []).append(level["level"])
    for forecast, usages in forecasts.items():
        if forecast is None:
            yield f"forecast: none yet for {', '.join(usages)}; it needs {duration(policy['dwell_s'])} without a gap"
            continue
        seen_s, band = forecast
        yield (
            f"forecast: at most {', '.join(usages)} within {duration(policy['wasted_within_s'])}"
            f" (the peak of the last {duration(seen_s)} and {percent(band)} on top)"
        )
    for rise, names in rises.items():
        yield f"forecast: others have used {rise} more each second lately ({', '.join(names)})"


def _held_back(level: dict[str, Any], status: dict[str, Any], policy: dict[str, Any]) -> list[str]:
    """What failures, wasted climbs and incidents have taught about a level."""
    told = []
    if level["backs_off_s"]:
        why = status["failed"].get(level["level"])
        told.append("backs off" + (f" because it failed: {why}" if why else " because it failed"))
    if level["dwell_s"] > policy["dwell_s"]:
        told.append(
            f"backs off: the last climb had to be undone within {duration(policy['wasted_within_s'])}"
            f" ({level['wasted']} in a row), so the next waits {duration(level['dwell_s'])}"
            f" instead of {duration(policy['dwell_s'])}"
        )
    if level["limit"] < level["scale_at"]:
        told.append(f"gives way above {percent(level['limit'])} instead of {percent(level['scale_at'])} for a while")
    return told


COMMAND = Command("explain", "why this level, and what each higher level lacks", _add_arguments, _run, asks=True)
