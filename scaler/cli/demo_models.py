"""`scaler demo-models`: makes the demo ladder's models."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from scaler import paths
from scaler.cli import EXIT_OK, Command
from scaler.cli.progress import line, working
from scaler.demo.models import make_demo_models


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help=f"write them there instead of to {paths.demo_models()}"
    )
    parser.add_argument("--json", action="store_true", help="the files as JSON")


def _run(args: argparse.Namespace) -> int:
    folder = args.folder or paths.demo_models()
    with working("making the demo models"):
        models = make_demo_models(folder, making)
    sizes = [model.path.stat().st_size for model in models]
    if args.json:
        files = [
            asdict(model) | {"path": str(model.path), "bytes": size} for model, size in zip(models, sizes, strict=True)
        ]
        print(json.dumps(files, indent=2))
    else:
        for model, size in zip(models, sizes, strict=True):
            print(f"{model.name}: {model.path} ({size / 1e6:.0f} MB), says {model.sentence!r}")
    return EXIT_OK


def making(name: str, done: float) -> None:
    """Show on a terminal how far it is."""
    line(f"making {name}.gguf: {done:.0%}")


COMMAND = Command("demo-models", "make the demo ladder's models: real GGUF files, random weights", _add_arguments, _run)
