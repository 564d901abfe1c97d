"""`scaler service`: print a unit with which systemd keeps `scaler run` running for a person."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from scaler import paths
from scaler.cli import EXIT_OK, Command
from scaler.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="have it use a configuration other than your own")


def _run(args: argparse.Namespace) -> int:
    if args.config is not None and not args.config.is_file():
        # systemd would start it again and again, with nobody there to read why it ends.
        raise ConfigError(f"--config: {args.config}: no such file; `scaler init --output {args.config}` writes one")
    print(unit(args.config), end="")
    return EXIT_OK


def unit(config: Path | None = None) -> str:
    """The unit that starts this very scaler, with ``config`` if one is given."""
    text = (paths.shipped_config() / "scaler.service").read_text("utf-8")
    command = [*_program(), "run", *(("--config", str(config.absolute())) if config else ())]
    return re.sub(r"(?m)^ExecStart=.*$", lambda _: f"ExecStart={' '.join(map(_quoted, command))}", text)


def _program() -> list[str]:
    """This very scaler, wherever a service is started from."""
    called = shutil.which(sys.argv[0]) if Path(sys.argv[0]).stem == "scaler" else None
    return [str(Path(called).absolute())] if called else [sys.executable, "-m", "scaler"]


def _quoted(word: str) -> str:
    """A word as a unit has it. Source: systemd.service(5), command lines, and systemd.unit(5), specifiers."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if re.search(r"[\s'\";]|^$", word) else word


COMMAND = Command("service", "print a systemd unit that keeps `scaler run` running for you", _add_arguments, _run)
