"""`scaler completion`: the script by which a shell completes commands, options, levels and tiers.

The script asks scaler itself at each TAB, with the library argcomplete: it never has to be written anew, and knows the
levels of the configuration that applies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from scaler.cli import EXIT_OK, Command
from scaler.errors import ScalerError
from scaler.levels import OFF

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "scaler"
"""What is typed; also with a path in front of it."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose script to print; docs/commands.md says where it belongs")


def _run(args: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode([PROGRAM], True, args.shell))
    return EXIT_OK


def completed_by(action: argparse.Action, values: Callable[[argparse.Namespace], Iterable[str]]) -> None:
    """Have an argument completed with the values that go with those before it; none where they cannot be had."""

    def completer(parsed_args: argparse.Namespace, **_: object) -> list[str]:
        try:
            return list(values(parsed_args))
        except (ScalerError, OSError):
            # In the middle of a line nobody can be told; the command itself will say it.
            return []

    action.completer = completer  # type: ignore[attr-defined]  # where argcomplete looks for it


def levels(args: argparse.Namespace) -> Iterable[str]:
    """The levels of the configuration that applies, and off. Raises ConfigError."""
    from scaler.settings import load_settings

    config = getattr(args, "config", None)
    return (*(level.name for level in load_settings(config).ladder), OFF)


def tiers(_: argparse.Namespace) -> Iterable[str]:
    """Every tier that there is. Raises ConfigError."""
    from scaler.tiers import HardwareTierDetector

    return (tier.name for tier in HardwareTierDetector().tiers)


def before_cursor(environment: Mapping[str, str]) -> list[str]:
    """The whole words between the program and the cursor: by them is known which command is meant."""
    line = environment.get("COMP_LINE", "")
    words = line[: int(environment.get("COMP_POINT") or len(line))].split(" ")
    return [word for word in words[1:-1] if word]


def complete(parser: argparse.ArgumentParser) -> None:
    """Tell the shell that asks in the environment how its line can go on, and end."""
    import argcomplete
    from argcomplete.completers import FilesCompleter

    class Files(FilesCompleter):
        """Files, for what names one; for a number or an address there is nothing to offer."""

        def __call__(self, prefix: str, **asked: Any) -> list[str]:
            return super().__call__(prefix, **asked) if asked["action"].type is Path else []

    argcomplete.autocomplete(parser, default_completer=Files())


COMMAND = Command("completion", "print the script by which bash, zsh or fish completes scaler", _add_arguments, _run)
