"""`scaler advise`: what would make room for a larger level, the most effective first."""

from __future__ import annotations

import argparse
import json
from typing import Any

from scaler.advice import sizes_in_words
from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import add_arguments, daemon
from scaler.printable import one_line

KEYS = ("state", "lacking", "coming", "waits", "unread", "suggestions", "reason")
"""What is read of the daemon's answer."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the suggestions with every figure, as JSON")


def _run(args: argparse.Namespace) -> int:
    advice = daemon(args).ask("/advice", KEYS)
    if args.json:
        print(json.dumps(advice, indent=2))
    else:
        for line in _lines(advice):
            print(one_line(line))
    return EXIT_OK


def _lines(advice: dict[str, Any]) -> list[str]:
    lines = [f"{advice['state']} is the level now"]
    for level, lacking in advice["lacking"].items():
        lines.append(f"  {level} lacks {sizes_in_words(lacking, lacking)}")
    if advice["coming"] and advice["suggestions"]:
        lines.append(f"  {advice['coming']}")
    lines.extend(f"  {sentence}" for sentence in [*advice["waits"], *advice["unread"]])
    if not advice["suggestions"]:
        return [*lines, f"nothing to suggest: {advice['reason']}"]
    lines.extend(f"{number}. {one['text']}" for number, one in enumerate(advice["suggestions"], start=1))
    return [*lines, "scaler closes no program itself; it climbs by itself once the room has stayed"]


COMMAND = Command(
    "advise", "what would make room for a larger level: programs, settings", _add_arguments, _run, asks=True
)
