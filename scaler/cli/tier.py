"""`scaler tier`: which class of machine this is, why, and which file decided each of its values."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler.cli import EXIT_OK, Command

if TYPE_CHECKING:
    from scaler.tiers import Requirement, Tier


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="every tier there is, and what it requires")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")


def _run(args: argparse.Namespace) -> int:
    from scaler.settings import load_settings
    from scaler.tiers import HardwareTierDetector

    settings = load_settings(args.config)
    detector = HardwareTierDetector()
    detection = settings.detection(detector)
    tier = detection.tier
    if args.list:
        if args.json:
            print(json.dumps([_report(one, applies=one is tier) for one in detector.tiers], indent=2))
        else:
            for one in reversed(detector.tiers):
                print(f"{one.name}{' (applies here)' if one is tier else ''}: {one.description}")
                print(f"  rank {one.rank}; requires {_requires(one)}")
        return EXIT_OK
    decided = {
        key.removeprefix("policy."): value for key, value in settings.decided(tier).items() if key.startswith("policy.")
    }
    if args.json:
        report = {
            "tier": tier.name,
            "description": tier.description,
            "hardware": asdict(detection.hardware),
            "reasons": detection.reasons,
            "policy": {name: asdict(value) for name, value in decided.items()},
        }
        print(json.dumps(report, indent=2))
        return EXIT_OK
    print(f"{tier.name}: {tier.description}" if tier.description else tier.name)
    for reason in detection.reasons:
        print(f"  {reason}")
    print("policy")
    width = max(map(len, decided))
    for name, value in decided.items():
        figure = f"{value.value:.10g}" if isinstance(value.value, int | float) else value.value or "none"
        print(f"  {name:<{width}}  {figure:<6}  {value.source}")
    return EXIT_OK


def _report(tier: Tier, *, applies: bool) -> dict[str, Any]:
    return {
        "tier": tier.name,
        "description": tier.description,
        "rank": tier.rank,
        "requires": [one.model_dump() for one in tier.requires],
        "applies": applies,
    }


def _requires(tier: Tier) -> str:
    return "; or ".join(_words(one) for one in tier.requires) or "nothing in particular"


def _words(one: Requirement) -> str:
    parts = (
        f"{one.ram_gib:g} GiB of RAM" if one.ram_gib else "",
        f"{one.cores} cores" if one.cores else "",
        f"{one.vram_gib:g} GiB of GPU memory" if one.vram_gib else "",
    )
    return " and ".join(part for part in parts if part) or "nothing in particular"


COMMAND = Command("tier", "which class of machine this is, and which file says so", _add_arguments, _run)
