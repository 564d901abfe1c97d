"""The command line: one file a command. Each is a `Command`; nothing here decides or loads anything."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from scaler import __version__
from scaler.errors import ConfigError, DaemonUnreachable, ScalerError
from scaler.printable import printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

EXIT_OK, EXIT_NO, EXIT_USAGE, EXIT_FAILED, EXIT_UNREACHABLE = 0, 1, 2, 3, 4
EXIT_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
OF_ALL = ("-h", "--help", "--version")
"""The options that no command has to come before."""
COMPLETING = "_ARGCOMPLETE"
"""The environment variable by which a shell asks how a line could go on, instead of having it done."""


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: ``run`` gets the parsed arguments and returns the exit code."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    yes: str = "done"
    """What exit code 0 means."""
    no: str = ""
    """What exit code 1 means, where the command answers a question; empty where it does not."""
    asks: bool = False
    """Whether it asks a running daemon, which may not be there."""

    @property
    def exit_codes(self) -> dict[int, str]:
        """Every exit code that it can have, and what it means; but for `EXIT_INTERRUPTED`, which all have."""
        return {
            EXIT_OK: self.yes,
            **({EXIT_NO: self.no} if self.no else {}),
            EXIT_USAGE: "wrong usage or configuration",
            EXIT_FAILED: "failed",
            **({EXIT_UNREACHABLE: "no daemon answers"} if self.asks else {}),
        }


MODULES = (
    "init",
    "doctor",
    "run",
    "chat",
    "status",
    "top",
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
    "completion",
    "demo_models",
    "demo",
    "control",
)
"""The commands in the order in which a newcomer needs them; each module has its Command as ``COMMAND``."""


class _Parser(argparse.ArgumentParser):
    """One that tells when the help that was asked for cannot be written, where argparse says nothing."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is sys.stdout:
            print(message, end="")
        else:
            super()._print_message(message, file)


def _parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scaler",
        description="Keeps the best local language model that this machine can sustain, all the time.",
        epilog="Start with `scaler run`. Exit codes: 0 done or yes, 1 no, 2 wrong usage or configuration, 3 failed, "
        "4 no daemon answers; docs/commands.md has those of each command.",
    )
    parser.add_argument("--version", action="version", version=f"scaler {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Only the command that was asked for is imported, so that each starts quickly.
    named = _named(wanted).replace("-", "_")
    for module in (named,) if named in MODULES else MODULES:
        command: Command = importlib.import_module(f"scaler.cli.{module}").COMMAND
        codes = ", ".join(f"{code} {meaning}" for code, meaning in command.exit_codes.items())
        epilog = f"Exit codes: {codes}."
        sub = commands.add_parser(command.name, help=command.summary, description=command.summary, epilog=epilog)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, parser=sub)
    return parser


def _named(words: Sequence[str]) -> str:
    """The command that a line asks for, as it was typed; empty where there is none."""
    return next((word for word in words if not word.startswith("-")), "")


def _check_named(words: Sequence[str]) -> None:
    """Raises ConfigError for a command that there is not, with the one that was perhaps meant, or that comes late."""
    names = [module.replace("_", "-") for module in MODULES]
    word = _named(words)
    if word and words[0] != word and words[0] not in OF_ALL:
        command = next((one for one in words if one in names), "COMMAND")
        at = words.index(command) if command in words else len(words)
        rest = [*words[:at], *words[at + 1 :]]
        raise ConfigError(f"options come after the command: `{shlex.join(['scaler', command, *rest])}`")
    if word and word not in names:
        from scaler.documents import nearest

        raise ConfigError(f"there is no command {word!r}; {nearest(word, names)}; `scaler --help` says what each does")


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; or, by SystemExit, what is wrong with them."""
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        # By the command's own parser, which shows the command's own options.
        told: argparse.ArgumentParser = args.parser
        told.error(f"unrecognized arguments: {' '.join(unknown)}; `{told.prog} --help` lists what it takes")
    return args


def _complete() -> None:
    """Tell a shell how the line can go on, and end."""
    from scaler.cli.completion import before_cursor, complete

    complete(_parser(before_cursor(os.environ)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors of ours are one message on stderr."""
    _prepare_streams()
    try:
        code = _outcome(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough of it, as in `scaler history | head`.
        code = EXIT_OK
    except OSError as error:
        # Of a file it is another fault, and where a line's end can still be written, too.
        if error.filename is not None or _takes(sys.stdout, "\n"):
            raise
        _complain(f"not all could be written to the standard output: {error.strerror or error}")
        code = EXIT_FAILED
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the shell's prompt is not to stand behind what was being said
        code = EXIT_INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        if not _takes(stream, ""):
            # What is still buffered goes nowhere, or the interpreter would fail on it again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _outcome(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code, also of what went wrong, which was told then."""
    try:
        if COMPLETING in os.environ:
            _complete()
        _check_named(arguments)
        parser = _parser(arguments)
        if not arguments:
            # Whoever types the bare name wants to know what there is, not that something is missing.
            parser.print_help(sys.stderr)
            return EXIT_USAGE
        args = _parsed(parser, arguments)
        return int(args.run(args))
    except SystemExit as ended:
        # How argparse ends: after help, and after what is wrong with the arguments.
        return int(ended.code or EXIT_OK)
    except ConfigError as error:
        _complain(str(error))
        return EXIT_USAGE
    except DaemonUnreachable as error:
        _complain(str(error))
        return EXIT_UNREACHABLE
    except ScalerError as error:
        _complain(str(error))
        return EXIT_FAILED


def _complain(text: str) -> None:
    with suppress(OSError):  # the exit code says it, too
        print(f"scaler: {printable(text)}", file=sys.stderr)


def _prepare_streams() -> None:
    """Have the standard streams take every character and give some for every byte, whatever their encoding is; one that
    was closed before we began is as an empty file, and takes all.
    """
    for name, mode, errors in (
        ("stdin", "r", "replace"),
        ("stdout", "w", "backslashreplace"),
        ("stderr", "w", "backslashreplace"),
    ):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for as long as we run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _takes(stream: TextIO, text: str) -> bool:
    """Whether ``text``, and what is buffered before it, can be written."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        return False
    return True
