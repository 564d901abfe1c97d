"""`scaler top`: the daemon's state, live in a terminal."""

from __future__ import annotations

import argparse
import os
import sys

from scaler import extras
from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import add_arguments, daemon
from scaler.errors import ConfigError
from scaler.printable import one_line


def _run(args: argparse.Namespace) -> int:
    # The picture is written to stderr, and keys come from stdin; stdout is asked because people pipe that.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise ConfigError("top: this is no terminal, and it draws on one; `scaler status` says the same in lines")
    _check_terminal()
    with extras.importing("tui"):
        from scaler.top.app import Top
        from scaler.top.link import Link
    running = daemon(args)
    running.status()  # who has no daemon is told so by a line, and not by an empty picture
    top = Top(lambda tell: Link(running, tell), one_line(running.url))
    top.run(mouse=False)
    return top.return_code or EXIT_OK


def _check_terminal() -> None:
    """See to it that a terminal without colours gets none. Raises ConfigError for one on which nothing can be drawn."""
    try:
        import curses
    except ModuleNotFoundError:
        return  # Windows has one kind of terminal only
    try:
        curses.setupterm()
    except curses.error:
        return  # a kind that this machine has never heard of is often a new one, and can do all
    if curses.tigetstr("cup") is None:
        kind = os.environ.get("TERM", "")
        raise ConfigError(f"top: nothing can be drawn on a terminal of the kind {kind!r}; use `scaler status`")
    if curses.tigetnum("colors") < 8:
        os.environ["NO_COLOR"] = "1"


COMMAND = Command(
    "top", "the daemon's state live in a terminal, with keys to pin a level", add_arguments, _run, asks=True
)
