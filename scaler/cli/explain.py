"""`scaler explain`: why this level, and what each other level lacks, in numbers and minutes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import add_arguments, daemon
from scaler.cli.words import duration, percent
from scaler.printable import one_line

ELSEWHERE = "requests are only sent there: nothing of it is loaded or unloaded here"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the verdict of every guard, as JSON")


def _run(args: argparse.Namespace) -> int:
    status = daemon(args).status()
    if args.json:
        keys = (
            "state",
            "serving",
            "settled",
            "pinned",
            "projected",
            "outlooks",
            "effective",
            "failed",
            "last_decision",
            "not_permitted",
        )
        print(json.dumps({key: status[key] for key in keys}, indent=2))
        return EXIT_OK
    for line in (*_lines(status), *status["not_permitted"]):
        print(one_line(line))
    return EXIT_OK


def _lines(status: dict[str, Any]) -> list[str]:
    state = status["state"]
    first, *reasons = why(status)
    lines = [first, *(f"  {reason}" for reason in reasons)]
    effective = {level["level"]: level for level in status["effective"]}
    rank = {name: position for position, name in enumerate(status["projected"])}
    policy = status["policy"]
    if state in effective:
        lines.extend(f"  {sentence}" for sentence in _foreseen(effective[state], policy))
    lines.append(f"next upgrade: {next_upgrade(status)}")
    for outlook in reversed(status["outlooks"]):
        name = outlook["level"]
        if state != "off" and rank[name] < rank[state]:
            there = f"usage there would be {percent(status['projected'][name])}"
            lines.append(f"{name}: smaller; {there if effective[name]['takes'] else ELSEWHERE}")
            if wait := outlook["wait_s"]:
                lines += [f"  in {duration(wait)} if this lasts", *(f"  {lacks}" for lacks in outlook["lacking"])]
            continue
        elsewhere = [] if effective[name]["takes"] else [f"  {ELSEWHERE}"]
        if not outlook["lacking"]:
            lines += [f"{name}: nothing is lacking; it comes with the next reading", *elsewhere]
            continue
        wait = outlook["wait_s"]
        lines.append(f"{name}: " + ("not by waiting alone" if wait is None else f"in {duration(wait)} if this lasts"))
        lines.extend((*elsewhere, *(f"  {sentence}" for sentence in outlook["lacking"])))
        level = effective[name]
        lines.extend(f"  {sentence}" for sentence in (*_foreseen(level, policy), *_held_back(level, status, policy)))
    return lines


def why(status: dict[str, Any]) -> Iterator[str]:
    """Which level it is, then what made it so, a sentence each."""
    state, decision = status["state"], status["last_decision"]
    yield f"{state} is the level now" + ("" if status["settled"] else f" (being loaded; {status['serving']} serves)")
    if decision is not None:
        yield f"came from {decision['source']} because {decision['reason']}"
    usage = status["projected"].get(state)
    if any(level["level"] == state and not level["takes"] for level in status["effective"]):
        yield ELSEWHERE
    elif usage is not None:
        yield f"usage at {state} is {percent(usage)}"
    # What would have been acted on, had there been anywhere to go.
    findings = [found for outlook in status["outlooks"] for found in outlook["findings"] if found["holds"]]
    if lowered := next((found["sentence"] for found in findings if found["guard"] == "over_ceiling"), None):
        yield f"{lowered}; no smaller level that is allowed fits"


def next_upgrade(status: dict[str, Any], told: Callable[[float], str] = duration) -> str:
    """To which level it goes next and when at the earliest, or why to none. ``told`` puts seconds into words."""
    if (outlook := soonest(status)) is not None:
        wait = outlook["earliest_s"]
        return f"to {outlook['level']} " + (f"in {told(wait)} at the earliest" if wait else "with the next reading")
    if _higher(status):
        return "none; the tier, battery power, heat, a pin or that nobody asks for a model stands in the way"
    return f"none; {status['state']} is the largest level"


def soonest(status: dict[str, Any]) -> dict[str, Any] | None:
    """The outlook of the level that can be climbed to first; None where a person or the tier forbids every one."""
    state = status["state"]
    rank = {name: position for position, name in enumerate(status["projected"])}

    def order(outlook: dict[str, Any]) -> tuple[float, bool, int]:
        """Of levels that can come at the same time the largest does; if room is lacking, the one that needs least."""
        lacks_room, position = outlook["wait_s"] is None, rank[outlook["level"]]
        return outlook["earliest_s"], lacks_room, position if lacks_room or state == "off" else -position

    return min((o for o in _higher(status) if o["earliest_s"] is not None), key=order, default=None)


def _higher(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The outlooks of the levels above the present one."""
    state, names = status["state"], list(status["projected"])
    above = names if state == "off" else names[names.index(state) + 1 :]
    return [outlook for outlook in status["outlooks"] if outlook["level"] in above]


def _foreseen(level: dict[str, Any], policy: dict[str, Any]) -> list[str]:
    """What the forecast sees at a level."""
    if not level["takes"]:
        return []
    told = []
    if level["expected"] is not None:
        told.append(
            f"forecast: at most {percent(level['expected'])} within {duration(policy['wasted_within_s'])}"
            f" (the peak of the last {duration(level['seen_s'])} and {percent(level['band'])} on top)"
        )
    else:
        told.append(f"forecast: none yet; it needs {duration(policy['dwell_s'])} without a gap")
    if level["rise_per_s"]:
        told.append(f"forecast: others have used {percent(level['rise_per_s'])} more each second lately")
    return told


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
