"""`scaler pin`: stay at a level until told otherwise."""

from __future__ import annotations

import argparse
import json

from scaler.cli import EXIT_OK, Command
from scaler.cli.completion import completed_by, levels
from scaler.cli.daemon import add_arguments, daemon
from scaler.errors import ConfigError

KEYS = ("pinned",)
"""What is read of the daemon's answer."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    completed_by(parser.add_argument("level", nargs="?", help="the level, or off"), levels)
    parser.add_argument("--release", action="store_true", help="unpin: let scaler decide again")
    parser.add_argument("--json", action="store_true", help="what is pinned now, as JSON")


def _run(args: argparse.Namespace) -> int:
    if args.release == bool(args.level):
        raise ConfigError("pin: expected a level, or --release; `scaler status` lists the levels")
    running = daemon(args)
    if args.release:
        pinned = running.ask("/pin", KEYS, method="DELETE")
    else:
        pinned = running.ask("/pin", KEYS, method="PUT", body={"level": args.level})
    if args.json:
        print(json.dumps(pinned, indent=2))
    else:
        print("unpinned" if args.release else f"pinned to {args.level}")
    return EXIT_OK


COMMAND = Command("pin", "stay at a level until --release", _add_arguments, _run, asks=True)
