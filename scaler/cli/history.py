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
from scaler.cli.words import SPAN, duration, reconfigured, span
from scaler.errors import ConfigError
from scaler.past import joined, records
from scaler.printable import one_line


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
    return f"{when}  {in_words(event)}"


def in_words(event: Mapping[str, Any]) -> str:
    """What a record of the journal tells, a decision with its outcome; without the time."""
    match event["event"]:
        case "decision":
            hurried = ", hurried because usage turned critical" if event["hurried"] else ""
            return f"{event['source']} → {event['dest']}: {event['reason']} [{_outcome(event)}{hurried}]"
        case "died":
            return f"{event['level']} died: {event['reason']}"
        case "budget_lowered":
            return f"new answers at {event['level']} have {event['max_tokens']} tokens at the most: {event['reason']}"
        case "budget_restored":
            return f"new answers at {event['level']} are no longer shortened"
        case "drained":
            handed = f", {event['handed_over']} of them to go on elsewhere" if event["handed_over"] else ""
            return f"{event['answers']} answers at {event['level']} ended within {duration(event['took_s'])}{handed}"
        case "handed_over":
            why = f": {event['reason']}" if event["reason"] else ""
            return f"an answer of {event['level']} goes on at the next level, after {event['tokens']} tokens{why}"
        case "not_remembered":
            who = event["conversation_id"]
            return f"an answer of {event['level']} in conversation {who} was not remembered: {event['reason']}"
        case "advised":
            suggestions = event["suggestions"]
            if not suggestions:
                return f"nothing to suggest: {event['reason']}"
            others = f" (and {len(suggestions) - 1} more)" if len(suggestions) > 1 else ""
            return f"suggested: {suggestions[0]['text']}{others}"
        case "embeddings_loaded":
            return f"{event['name']} loaded in {event['load_s']:.2f} s: {event['reason']}"
        case "embeddings_gone":
            return f"{event['name']} is gone: {event['reason']}"
        case "told":
            return f"told: {event['text']}"
        case "standby_lost":
            return f"{event['level']} does not stand by: {event['reason']}"
        case "unload_failed":
            return f"{event['level']} was told to go and stays: {event['reason']}"
        case "reconfigured":
            return reconfigured(event["changes"], event["restart"])
        case "pin":
            return "unpinned" if event["level"] is None else f"pinned to {event['level']}"
        case "switched":
            return f"{event['level']} serves, after {duration(event['took_s'])}"
        case "switch_failed":
            return f"{event['level']} could not be loaded, {event['still_serving']} serves: {event['reason']}"
    return str(event["event"])


def _outcome(decision: Mapping[str, Any]) -> str:
    outcome = decision["outcome"]
    if outcome is None:
        return "not finished"
    if outcome["event"] == "switch_failed":
        return f"failed, {outcome['still_serving']} serves: {outcome['reason']}"
    took, load = outcome["took_s"], outcome["load_s"]
    return f"done after {took:.2f} s" + ("" if load is None else f", {load:.2f} s of it loading")


COMMAND = Command("history", "what happened, when and why, from the journal", _add_arguments, _run)
