"""What happened: the journal's records as a person asks for them, and what they and the recording tell of a day.

Owns how records belong together, in which words they are told and what they say of the time between them. Reads files,
so it is not for an event loop; the files' forms are in `journal` and `recordings`.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from scaler.journal import DAEMON, JournalError, Writer, read
from scaler.levels import OFF
from scaler.recent import Point, point_of
from scaler.recordings import Recording
from scaler.recordings.recorder import FLUSH_S, began_s, files_of
from scaler.words import counted, duration, reconfigured, switched

MOST_FILES = 1000
"""How many files of a journal are looked for: as many as the configuration lets there be."""


def records(path: Path, *, since_s: float | None = None) -> Iterator[dict[str, Any]]:
    """What the journal has, oldest first. ``since_s``, of the wall clock: leave out the files that end before it, but
    for one, which tells how things stood then.

    Raises JournalError, also for a file that is something else.
    """
    for record in read(path, files=MOST_FILES if since_s is None else _files_since(path, since_s)):
        if not _is_ours(record):
            raise JournalError(f"{path}: a line is no record of scaler's; expected a journal, give another --path")
        yield record


def own(records: Iterable[dict[str, Any]], writer: Writer, began_s: float) -> Iterator[dict[str, Any]]:
    """What of them ``writer`` has decided, which began at ``began_s``, and did in its lives before that: not what other
    programs on the same journal did. Records of before writers were named name none, and count as its own.
    """
    for record in records:
        program, pid = _writer(record)
        if program in (None, writer.program) and (pid in (None, writer.pid) or at_s(record) < began_s):
            yield record


def other_program(record: Mapping[str, Any]) -> str | None:
    """Which program but the daemon has decided what a record tells, and in which process; None for the daemon's."""
    program, pid = _writer(record)
    return None if program in (None, DAEMON) else f"{program}[{pid}]"


def _writer(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("program"), record.get("pid")


def joined(records: Iterable[dict[str, Any]], *, since_s: float = float("-inf")) -> list[dict[str, Any]]:
    """The records since then that are events of their own, each decision with its ``outcome`` and whether it was
    ``hurried``.

    Tickets begin anew with each run of a program, so an outcome belongs to its latest decision of its ticket.
    """
    events: list[dict[str, Any]] = []
    decisions: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        who = _writer(record)
        if at_s(record) < since_s:
            # Files are much longer than an hour. What becomes of a decision of before is not asked for either.
            if record["event"] == "decision":
                decisions[*who, record["ticket"]] = {}
            continue
        match record["event"]:
            case "decision":
                decisions[*who, record["ticket"]] = event = {**record, "outcome": None, "hurried": False}
                events.append(event)
            case "switched" | "switch_failed" if (key := (*who, record["ticket"])) in decisions:
                decisions[key]["outcome"] = record
            case "hurried" if (key := (*who, record["switch"]["ticket"])) in decisions:
                decisions[key]["hurried"] = True
            case _:
                events.append(record)
    return events


def in_words(event: Mapping[str, Any]) -> str:
    """What an event of `joined` tells, without the time."""
    return ": ".join(filter(None, what_and_why(event)))


def what_and_why(event: Mapping[str, Any]) -> tuple[str, str]:
    """What happened, in a few words, and why or how; empty where the few words say it all."""
    match event["event"]:
        case "decision":
            return switched(event["source"], event["dest"]), f"{event['reason']} [{_outcome(event)}]"
        case "died":
            return f"{event['level']} died", event["reason"]
        case "budget_lowered":
            most = counted(event["max_tokens"], "token")
            return f"new answers at {event['level']} have {most} at the most", event["reason"]
        case "budget_restored":
            return f"new answers at {event['level']} are no longer shortened", ""
        case "drained":
            handed = f", {event['handed_over']} of them to go on elsewhere" if event["handed_over"] else ""
            took = duration(event["took_s"])
            return f"{counted(event['answers'], 'answer')} at {event['level']} ended within {took}{handed}", ""
        case "handed_over":
            done = counted(event["tokens"], "token")
            return f"an answer of {event['level']} goes on at the next level, after {done}", event["reason"] or ""
        case "not_remembered":
            who = event["conversation_id"]
            return f"an answer of {event['level']} in conversation {who} was not remembered", event["reason"]
        case "advised":
            suggestions = event["suggestions"]
            if not suggestions:
                return "nothing to suggest", event["reason"]
            others = f" (and {len(suggestions) - 1} more)" if len(suggestions) > 1 else ""
            return "suggested", f"{suggestions[0]['text']}{others}"
        case "embeddings_loaded":
            return f"{event['name']} loaded in {event['load_s']:.2f} s", event["reason"]
        case "embeddings_gone":
            return f"{event['name']} is gone", event["reason"]
        case "told":
            return "told", event["text"]
        case "standby_lost":
            return f"{event['level']} does not stand by", event["reason"]
        case "unload_failed":
            return f"{event['level']} was told to go and stays", event["reason"]
        case "reconfigured":
            return "configuration read anew", reconfigured(event["changes"], event["restart"])
        case "pin":
            return ("unpinned" if event["level"] is None else f"pinned to {event['level']}"), ""
        case "switched":
            return f"{event['level']} serves, after {duration(event['took_s'])}", ""
        case "switch_failed":
            return f"{event['level']} could not be loaded, {event['still_serving']} serves", event["reason"]
    return str(event["event"]), ""


def _outcome(decision: Mapping[str, Any]) -> str:
    outcome = decision["outcome"]
    hurried = ", hurried because usage turned critical" if decision["hurried"] else ""
    if outcome is None:
        return f"not finished{hurried}"
    if outcome["event"] == "switch_failed":
        return f"failed, {outcome['still_serving']} serves: {outcome['reason']}{hurried}"
    load = "" if outcome["load_s"] is None else f", {outcome['load_s']:.2f} s of it loading"
    return f"done after {outcome['took_s']:.2f} s{load}{hurried}"


def at_s(record: dict[str, Any]) -> float:
    """When it was, in seconds since the epoch. Raises ValueError for a time without a zone."""
    at = datetime.fromisoformat(record["at"])
    if at.tzinfo is None:
        raise ValueError(f"{record['at']} has no zone")
    return at.timestamp()


def served(records: Iterable[dict[str, Any]]) -> Iterator[tuple[float, str]]:
    """From when on which level answered, in seconds since the epoch; nothing is known before the first."""
    serving, last_ticket = None, 0
    for record in records:
        before = serving
        match record["event"]:
            case "decision":
                # A ticket that was had already is of another run of the daemon, which begins with nothing loaded.
                if record["ticket"] <= last_ticket:
                    serving = OFF
                last_ticket = record["ticket"]
            case "switched":
                serving = record["level"]
            case "switch_failed":
                serving = record["still_serving"]
            case "died" if record["level"] == serving:
                serving = OFF
        if serving is not None and serving != before:
            yield at_s(record), serving


def watched(folder: Path, since_s: float, now_s: float) -> list[tuple[float, float]]:
    """The stretches of time in which a daemon ran, as far as the recording in ``folder`` tells, in seconds since the
    epoch: each of its files was begun with its first reading and written last with its last. ``since_s``: since when
    the present one runs. The first stretch reaches back for ever, for nothing is known of what is no longer recorded.
    """
    stretches = [(since_s, now_s)]
    for path, _ in reversed(files_of(folder)):
        try:
            first, last = began_s(path), path.stat().st_mtime
        except FileNotFoundError:
            continue  # deleted meanwhile, as too old
        after = stretches[-1][0]
        if first >= after:
            continue
        if last >= after - FLUSH_S:
            stretches[-1] = (first, stretches[-1][1])
        elif last > first:
            stretches.append((first, last))
    stretches[-1] = (float("-inf"), stretches[-1][1])
    return stretches[::-1]


def days(
    records: Iterable[dict[str, Any]],
    ladder: Sequence[str],
    stretches: Sequence[tuple[float, float]],
    now_s: float,
    count: int,
) -> list[dict[str, Any]]:
    """What each of the last ``count`` local days was like, oldest first, today last: for how long each level answered,
    and how many switches there were of each kind. Time in none of the ``stretches`` counts for no level.

    The records are gone through once, and none is kept: a journal takes ten times its size in memory.
    """
    dates = [_today(now_s) - timedelta(days=back) for back in range(count - 1, -1, -1)]
    starts = [_midnight(day) for day in [*dates, dates[-1] + timedelta(days=1)]]
    told: list[dict[str, Any]] = [
        {"date": day.isoformat(), "levels_s": dict.fromkeys((OFF, *ladder), 0.0), **dict.fromkeys(COUNTED, 0)}
        for day in dates
    ]
    by_date = dict(zip(dates, told, strict=True))
    for (since, level), (until, _) in pairwise([*served(_counting(records, by_date)), (now_s, OFF)]):
        for first, last in stretches[bisect_right(stretches, since, key=_end) :]:
            if first >= until:
                break
            for number in range(max(0, bisect_right(starts, max(since, first)) - 1), count):
                if starts[number] >= min(until, last):
                    break
                length_s = min(until, last, starts[number + 1]) - max(since, first, starts[number])
                levels_s = told[number]["levels_s"]
                levels_s[level] = levels_s.get(level, 0.0) + max(0.0, length_s)
    return told


COUNTED = ("switches", "downgrades", "upgrades", "failed", "died")


def _end(stretch: tuple[float, float]) -> float:
    return stretch[1]


def _counting(records: Iterable[dict[str, Any]], days: Mapping[date, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same records, each added to the counts of its day on the way."""
    directions: dict[int, str] = {}
    for record in records:
        if record["event"] == "decision":
            # Records of before directions were written have none.
            directions[record["ticket"]] = record.get("direction", "")
        elif (of_day := days.get(_today(at_s(record)))) is not None:
            for name in _counted(record, directions):
                of_day[name] += 1
        yield record


def _counted(record: dict[str, Any], directions: Mapping[int, str]) -> Iterator[str]:
    """What a record is counted as."""
    match record["event"]:
        case "switched":
            yield "switches"
            match directions.get(record["ticket"]):
                case "up":
                    yield "upgrades"
                case "down":
                    yield "downgrades"
        case "switch_failed":
            yield "failed"
        case "died":
            yield "died"


def recorded(folder: Path, records: Iterable[dict[str, Any]], since_s: float) -> Iterator[Point]:
    """The readings that were recorded since then, with the level that answered. Raises RecordingError."""
    if not files_of(folder):
        return
    changes = served(records)
    serving, following = OFF, next(changes, None)
    for reading in Recording(folder, since_wall_s=since_s):
        assert reading.wall_s is not None  # a folder's files have dates
        while following is not None and following[0] <= reading.wall_s:
            serving, following = following[1], next(changes, None)
        if (point := point_of(reading, serving)) is not None:
            yield point


def _files_since(path: Path, since_s: float) -> int:
    """How many of a journal's files, the newest first, tell of that time and of how things stood before it."""
    for number in range(1, MOST_FILES):
        try:
            last_s = path.with_name(f"{path.name}.{number}").stat().st_mtime
        except FileNotFoundError:
            return number
        if last_s < since_s:
            return number + 1
    return MOST_FILES


def _is_ours(record: dict[str, Any]) -> bool:
    """Whether everything that is read here of a record of its kind is there: all of it is read once."""
    try:
        _today(at_s(record))
        for event in joined([record]):
            in_words(event)
        if record["event"] in ("switched", "switch_failed"):
            # Told otherwise with its decision than alone.
            _outcome({"outcome": record, "hurried": False})
        for _, level in served([record]):
            hash(level)
        list(_counted(record, {}))
        named = isinstance(record.get("program", DAEMON), str) and isinstance(record.get("pid", 0), int)
        return named and isinstance(record["event"], str)
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
        return False


def _today(wall_s: float) -> date:
    return datetime.fromtimestamp(wall_s, UTC).astimezone().date()


def _midnight(day: date) -> float:
    """When a local day begins; the standard library knows whether its clock was set for summer."""
    return time.mktime((day.year, day.month, day.day, 0, 0, 0, 0, 0, -1))
