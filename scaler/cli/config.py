"""`scaler config`: what is wrong with the configuration, what applies and which file decided it, and its schema."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler.cli import EXIT_OK, EXIT_USAGE, Command
from scaler.errors import ConfigError

if TYPE_CHECKING:
    from scaler.settings import Decided


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("check", "show", "schema"),
        help="check: what is wrong, with file and line (exit code 2), or ok; show: what applies on this machine, "
        "as YAML, and which file decided it; schema: the JSON schema, for an editor",
    )
    parser.add_argument(
        "--of",
        choices=("scaler", "tier"),
        default="scaler",
        help="whose schema: that of scaler.yaml, if left out, or of a tier's file",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")
    which.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the same as --config FILE")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def _run(args: argparse.Namespace) -> int:
    if args.action == "schema":
        print(json.dumps(_schema(args.of), indent=2))
    elif args.action == "check":
        return _check(args.config or args.file, as_json=args.json)
    else:
        decided = _decided(args.config or args.file)
        if args.json:
            print(json.dumps({key: asdict(value) for key, value in decided.items()}, indent=2))
        else:
            for line in _yaml(decided):
                print(line)
    return EXIT_OK


def _schema(of: str) -> dict[str, Any]:
    if of == "tier":
        from scaler.tiers import tier_schema

        return tier_schema()
    from scaler.settings import settings_schema

    return settings_schema()


def _check(config: Path | None, *, as_json: bool) -> int:
    from scaler.assembly import usable

    if not as_json:
        usable(config)
        print("ok")
        return EXIT_OK
    try:
        usable(config)
    except ConfigError as error:
        print(json.dumps({"ok": False, "error": str(error)}, indent=2))
        return EXIT_USAGE
    print(json.dumps({"ok": True}, indent=2))
    return EXIT_OK


def _decided(config: Path | None) -> Mapping[str, Decided]:
    """Every value that applies on this machine, by its dotted key. Raises ConfigError."""
    from scaler.settings import load_settings
    from scaler.tiers import HardwareTierDetector

    settings = load_settings(config)
    return settings.decided(settings.detection(HardwareTierDetector()).tier)


def _yaml(decided: Mapping[str, Decided]) -> Iterator[str]:
    """The values as a configuration that says the same, each with its source as a comment."""
    inside: list[str] = []
    for key, value in decided.items():
        parts = re.findall(r"\[\d+\]|[^.\[\]]+", key)
        shared = 0
        while shared < len(inside) and parts[shared] == inside[shared]:
            shared += 1
        line = ""
        for depth, part in enumerate(parts[shared:], start=shared):
            line = line or "  " * depth
            if part.startswith("["):
                line += "- "
            elif depth < len(parts) - 1:
                yield f"{line}{part}:"
                line = ""
            else:
                line += f"{part}: "
        inside = parts[:-1]
        yield f"{line}{_scalar(value.value)}  # {value.source}"


def _scalar(value: Any) -> str:
    """A plain value as YAML; a text in quotes unless it can be taken for nothing else."""
    if not isinstance(value, str):
        return json.dumps(value)
    if re.fullmatch(r"/?[A-Za-z_][\w/.-]*", value, re.ASCII) and value.lower() not in ("null", "true", "false"):
        return value
    import yaml

    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


COMMAND = Command("config", "check, show or describe the configuration", _add_arguments, _run)
