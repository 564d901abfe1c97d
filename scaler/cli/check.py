"""`scaler check`: a pre-flight check, for scripts too."""

from __future__ import annotations

import argparse
import json

from scaler.cli import EXIT_NO, EXIT_OK, Command
from scaler.cli.daemon import add_arguments, daemon
from scaler.printable import one_line

KEYS = ("action", "level", "max_tokens", "reason")
"""What is read of the daemon's answer."""
MEANINGS = {
    "serve": "a request would be answered now",
    "shorten": "a request would be answered now, shortened",
    "wait": "a request would wait",
}
"""What each action means."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the check as JSON")


def _run(args: argparse.Namespace) -> int:
    running = daemon(args)
    check = running.ask("/check", KEYS)
    action = str(check["action"])
    if action not in MEANINGS:
        raise running.unknown(f"the action {action!r}")
    if args.json:
        print(json.dumps(check, indent=2))
    else:
        limit = f", at most {check['max_tokens']} tokens" if check["max_tokens"] is not None else ""
        print(one_line(f"{MEANINGS[action]} (level {check['level']}{limit}): {check['reason']}"))
    return EXIT_NO if action == "wait" else EXIT_OK


COMMAND = Command(
    "check",
    "whether a request would be answered now, or would wait",
    _add_arguments,
    _run,
    yes="a request would be answered now",
    no="a request would wait",
    asks=True,
)
