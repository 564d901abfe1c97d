"""`scaler history`: what happened and why, a line an event, from the journal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scaler.cli import EXIT_OK, Command
from scaler.errors import ConfigError
from scaler.past import in_words, joined, other_program, records
from scaler.printable import one_line
from scaler.words import SPAN, span


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--last", type=int, metavar="N", help="the newest N events only")
    parser.add_argument(
        "--since",
        metavar="TIME",
        help="events since then only: 90s, 30m, 2h, 1d ago, or 2026-11-23 or 2026-11-23T18:00",
    )
    parser.add_argument("--json", action="store_true", help="the records as JSON lines, each with its outcome")
    parser.add_argument("--path", metavar="FILE", help="this journal instead of the configuration's")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")


def _run(args: argparse.Namespace) -> int:
    if args.last is not None and args.last < 1:
        raise ConfigError(f"--last: {args.last} cannot be used; expected 1 or more")
    since = None if args.since is None else _time(args.since, datetime.now(UTC))
    path = _configured(args.config) if args.path is None else _file(args.path)
    events = joined(records(path))
    if not events:
        _note(f"no journal yet at {path}; `scaler run` writes it")
        return EXIT_OK
    if since is not None:
        events = [event for event in events if datetime.fromisoformat(event["at"]) >= since]
        if not events:
            _note(f"nothing happened since {since.astimezone():%Y-%m-%d %H:%M:%S}")
    for event in events[-args.last :] if args.last else events:
        print(json.dumps(event) if args.json else one_line(_line(event)))
    return EXIT_OK


def _file(text: str) -> Path:
    """The journal that ``--path`` gives. Raises ConfigError for what can name no file."""
    if not (path := Path(text)).name:
        raise ConfigError(f"--path: {text!r} cannot be used; expected a journal's file")
    return path


def _configured(config: Path | None) -> Path:
    from scaler.settings import load_settings

    return load_settings(config).journal.path


def _note(text: str) -> None:
    """On stderr: what reads our output gets events or nothing."""
    print(text, file=sys.stderr)


def _time(text: str, now: datetime) -> datetime:
    """A time as people give it; local where it says nothing else. Raises ConfigError."""
    try:
        if SPAN.fullmatch(text):
            return now - timedelta(seconds=span("--since", text))
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"--since: {text!r} is no time; expected such as 90s, 30m, 2h, 1d or 2026-11-23T18:00"
        ) from error


def _line(event: Mapping[str, Any]) -> str:
    when = datetime.fromisoformat(event["at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    who = other_program(event)
    return f"{when}  {'' if who is None else f'{who}: '}{in_words(event)}"


COMMAND = Command("history", "what happened, when and why, from the journal", _add_arguments, _run)
