"""`scaler status`: what serves now, and how the machine stands."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from scaler.cli import EXIT_NO, EXIT_OK, Command
from scaler.cli.daemon import add_arguments, daemon
from scaler.printable import one_line
from scaler.words import duration, gib, percent

FORESEEN_WINDOWS = 10
"""How far ahead a trend is told, in its own windows: the line through a minute that swings says nothing of an hour."""

KEYS = (
    *("answers", "pinned", "tier", "usage", "trends", "effective", "projected", "policy", "performance"),
    *("answering", "waiting"),
)
"""What is read of the daemon's answer, beside what every daemon's has."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def _run(args: argparse.Namespace) -> int:
    status = daemon(args).status(KEYS)
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        for line in _lines(status):
            print(one_line(line))
    return EXIT_OK if status["answers"] is not None else EXIT_NO


def _lines(status: dict[str, Any]) -> list[str]:
    pinned = f" (pinned to {status['pinned']})" if status["pinned"] else ""
    lines = [f"level     {_level(status)}{pinned}"]
    lines.append(f"tier      {status['tier']}")
    for resource, part in status["usage"].items():
        used = part["own_bytes"] + part["other_bytes"]
        lines.append(
            f"{resource:<9} {gib(used)} of {gib(part['total_bytes'])} used ({percent(used / part['total_bytes'])}):"
            f" own {gib(part['own_bytes'])}, other {gib(part['other_bytes'])}"
        )
    for resource, trend in status["trends"].items():
        reach = trend["critical_at_in_s"]
        foreseen = reach is not None and reach <= FORESEEN_WINDOWS * trend["window_s"]
        meets = f"; critical in {duration(reach)} if it goes on" if foreseen else ""
        lines.append(f"trend     {resource}: {gib(trend['slope_bytes_per_s'] * 60)} a minute by others{meets}")
    takes = {level["level"]: level["takes"] for level in status["effective"]}
    for name, ratio in status["projected"].items():
        lines.append(f"usage at  {name}: {percent(ratio) if takes[name] else 'takes nothing of this machine'}")
    lines.extend(_limits(status["policy"], status["effective"]))
    for name, known in status["performance"].items():
        rate = known["tokens_per_s"]
        first = known["first_token_s"]
        lines.append(
            f"answers   {name}: {known['answers']}, {known['failures']} failed"
            + (f", {rate:.0f} tokens a second" if rate else "")
            + (f", first after {first:.2f} s" if first is not None else "")
        )
    lines.append(f"requests  {status['answering']} running, {status['waiting']} waiting")
    if status["missing"]:
        lines.append(f"missing   {', '.join(status['missing'])}")
    return lines


def _level(status: dict[str, Any]) -> str:
    """What answers, and the level that it goes to."""
    state, answers = status["state"], status["answers"]
    if answers is None:
        return str(state) if state == "off" else f"{state}, being loaded"
    return str(state) if answers == state else f"{answers}, going to {state}"


def _limits(policy: dict[str, Any], levels: list[dict[str, Any]]) -> Iterator[str]:
    """Today's figures beside the configured ones; levels that have only these are not repeated."""
    of_gpus, within = policy["vram_scale_at"], duration(policy["wasted_within_s"])
    gpus = "" if of_gpus is None else f" ({percent(of_gpus)} of a GPU)"
    yield (
        f"limits    configured: gives way above {percent(policy['scale_at'])}{gpus}, climbs after"
        f" {duration(policy['dwell_s'])}"
    )
    yield f"          expects other programs to use up to {percent(policy['band'])} more of the memory within {within}"
    for level in levels:
        found = []
        if level["limit"] < level["scale_at"]:
            found.append(f"gives way above {percent(level['limit'])} (after {_incidents(level['incidents'])})")
        if level["dwell_s"] > policy["dwell_s"]:
            found.append(f"climbed to after {duration(level['dwell_s'])} (wasted climbs: {level['wasted']})")
        if level["band"] > policy["band"]:
            found.append(f"expects them to use up to {percent(level['band'])} more (past peaks)")
        if level["waits_for_needles"]:
            found.append(f"waits {policy['needle_s']:g} s for needles to pass")
        if level["backs_off_s"]:
            found.append(f"backs off for {duration(level['backs_off_s'])}")
        if found:
            yield f"          {level['level']} today: {', '.join(found)}"


def _incidents(incidents: dict[str, int]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in incidents.items())


COMMAND = Command(
    "status",
    "what serves now, and how the machine stands",
    _add_arguments,
    _run,
    yes="a level serves",
    no="nothing serves",
    asks=True,
)
