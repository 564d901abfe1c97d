"""`scaler control`: the same decisions for programs in other languages, as JSON lines on stdin and stdout."""

from __future__ import annotations

import argparse
import gc
import sys

from scaler import paths
from scaler.cli import EXIT_OK, Command
from scaler.cli.completion import completed_by, tiers

TIER = "mid_range"
"""Whose thresholds hold when nobody names a tier: as shipped, so that every machine answers the same."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    tier = parser.add_argument(
        "--tier", metavar="NAME", help=f"the thresholds of this tier, yours among them; {TIER} as shipped when left out"
    )
    completed_by(tier, tiers)


def _run(args: argparse.Namespace) -> int:
    from scaler.control import converse
    from scaler.tiers import HardwareTierDetector

    detector = HardwareTierDetector(None if args.tier else paths.shipped_config() / "tiers")
    policy = detector.tier(args.tier or TIER).policy
    # What was imported stays; collecting it again and again would only hold answers up.
    gc.freeze()
    converse(sys.stdin.buffer, sys.stdout.buffer, policy)
    return EXIT_OK


COMMAND = Command(
    "control", "decide for another program: samples in, target levels out, as JSON lines", _add_arguments, _run
)
