"""`scaler control`: the same decisions for programs in other languages, as JSON lines on stdin and stdout."""

from __future__ import annotations

import argparse
import sys

from scaler import paths
from scaler.cli import EXIT_OK, Command
from scaler.errors import ScalerError

TIER = "mid_range"
"""Whose thresholds hold when nobody names a tier: as shipped, so that every machine answers the same."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tier", metavar="NAME", help=f"the thresholds of this tier, yours among them; {TIER} as shipped when left out"
    )


def _run(args: argparse.Namespace) -> int:
    from scaler.control import converse
    from scaler.tiers import HardwareTierDetector

    detector = HardwareTierDetector(None if args.tier else paths.shipped_config() / "tiers")
    policy = detector.tier(args.tier or TIER).policy
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # JSON is UTF-8 whatever the locale says
    try:
        converse(sys.stdin, sys.stdout, policy)
    except UnicodeDecodeError as error:
        raise ScalerError(f"stdin: not UTF-8 ({error.reason}); expected JSON lines in UTF-8") from error
    return EXIT_OK


COMMAND = Command(
    "control", "decide for another program: samples in, target levels out, as JSON lines", _add_arguments, _run
)
