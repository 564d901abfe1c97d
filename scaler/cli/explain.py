"""`scaler explain`: why this level, and what each other level lacks, in numbers and minutes."""

from __future__ import annotations

import argparse
import json
from typing import Any

from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import add_arguments, address, ask
from scaler.cli.words import duration, percent


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the verdict of every guard, as JSON")


def _run(args: argparse.Namespace) -> int:
    status = ask(f"{address(args)}/status")
    if args.json:
        keys = ("state", "serving", "settled", "pinned", "projected", "outlooks", "last_decision")
        print(json.dumps({key: status[key] for key in keys}, indent=2))
        return EXIT_OK
    for line in _lines(status):
        print(line)
    return EXIT_OK


def _lines(status: dict[str, Any]) -> list[str]:
    state, decision = status["state"], status["last_decision"]
    lines = [
        f"{state} is the level now" + ("" if status["settled"] else f" (being loaded; {status['serving']} serves)")
    ]
    if decision is not None:
        lines.append(f"  came from {decision['source']} because {decision['reason']}")
    usage = status["projected"].get(state)
    if usage is not None:
        lines.append(f"  usage at {state} is {percent(usage)}")
    names = list(status["projected"])
    rank = {name: position for position, name in enumerate(names)}
    for outlook in reversed(status["outlooks"]):
        name = outlook["level"]
        if state != "off" and rank[name] < rank[state]:
            lines.append(f"{name}: smaller; usage there would be {percent(status['projected'][name])}")
            continue
        if not outlook["lacking"]:
            lines.append(f"{name}: nothing is lacking; it comes with the next reading")
            continue
        wait = outlook["wait_s"]
        lines.append(f"{name}: " + ("not by waiting alone" if wait is None else f"in {duration(wait)} if this lasts"))
        lines.extend(f"  {sentence}" for sentence in outlook["lacking"])
    return lines


COMMAND = Command("explain", "why this level, and what each higher level lacks", _add_arguments, _run)
