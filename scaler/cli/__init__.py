"""The command line: one file a command. Each is a `Command`; nothing here decides or loads anything."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scaler import __version__
from scaler.errors import ConfigError, DaemonUnreachable, ScalerError
from scaler.printable import printable

EXIT_OK, EXIT_NO, EXIT_USAGE, EXIT_FAILED, EXIT_UNREACHABLE = 0, 1, 2, 3, 4
EXIT_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
EXIT_CODES = "Exit codes: 0 done or yes, 1 no, 2 wrong usage or configuration, 3 failed, 4 no daemon answers."


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: ``run`` gets the parsed arguments and returns the exit code."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


MODULES = (
    "init",
    "run",
    "chat",
    "status",
    "check",
    "explain",
    "advise",
    "pin",
    "reload",
    "history",
    "record",
    "replay",
    "tune",
    "tier",
    "diagram",
    "config",
    "service",
    "demo_models",
    "demo",
    "control",
)
"""The commands in the order in which a newcomer needs them; each module has its Command as ``COMMAND``."""


def _parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scaler",
        description="Keeps the best local language model that this machine can sustain, all the time.",
        epilog=f"Start with `scaler run`. {EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"scaler {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Only the command that was asked for is imported, so that each starts quickly.
    named = next((w.replace("-", "_") for w in wanted if not w.startswith("-")), None)
    for module in (named,) if named in MODULES else MODULES:
        command: Command = importlib.import_module(f"scaler.cli.{module}").COMMAND
        sub = commands.add_parser(command.name, help=command.summary, description=command.summary, epilog=EXIT_CODES)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors of ours are one message on stderr."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        parser = _parser(arguments)
        if not arguments:
            # Whoever types the bare name wants to know what there is, not that something is missing.
            parser.print_help(sys.stderr)
            return EXIT_USAGE
        args = parser.parse_args(arguments)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        print(f"scaler: {printable(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except DaemonUnreachable as error:
        print(f"scaler: {printable(str(error))}", file=sys.stderr)
        return EXIT_UNREACHABLE
    except ScalerError as error:
        print(f"scaler: {printable(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # Whoever read our output has had enough of it, as in `scaler history | head`.
        # What is still buffered goes nowhere, or the interpreter would fail on it again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the shell's prompt is not to stand behind what was being said
        return EXIT_INTERRUPTED
