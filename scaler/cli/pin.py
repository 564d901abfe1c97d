"""`scaler pin`: stay at a level until told otherwise."""

from __future__ import annotations

import argparse

from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import add_arguments, daemon
from scaler.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("level", nargs="?", help="the level, or off")
    parser.add_argument("--release", action="store_true", help="unpin: let scaler decide again")


def _run(args: argparse.Namespace) -> int:
    if args.release == bool(args.level):
        raise ConfigError("pin: expected a level, or --release")
    running = daemon(args)
    if args.release:
        running.ask("/pin", method="DELETE")
        print("unpinned")
    else:
        running.ask("/pin", method="PUT", body={"level": args.level})
        print(f"pinned to {args.level}")
    return EXIT_OK


COMMAND = Command("pin", "stay at a level until --release", _add_arguments, _run)
