"""What the journal and the recording tell of the days before: how long each level answered, and what happened."""

from __future__ import annotations

import itertools
import json
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scaler import past
from scaler.journal import DAEMON, KINDS, Journal, JournalError, Writer
from scaler.readings import Memory, Reading
from scaler.recordings import Recorder

LADDER = ("small", "large")
HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not hasattr(time, "tzset"):
        pytest.skip("the time zone cannot be set here")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> float:
    """A local time of 2026 in seconds since the epoch."""
    return datetime.fromisoformat(f"2026-{text}").astimezone().timestamp()


def record(text: str, event: str, **more: Any) -> dict[str, Any]:
    return {"at": datetime.fromtimestamp(at(text), UTC).isoformat(timespec="milliseconds"), "event": event, **more}


def switch(text: str, ticket: int, source: str, dest: str, direction: str = "") -> list[dict[str, Any]]:
    """A decision that was done at once; its direction is by the ladder of here if no other is told."""
    if not direction:
        order = ("off", *LADDER)
        direction = "up" if order.index(dest) > order.index(source) else "down"
    return [
        record(text, "decision", ticket=ticket, source=source, dest=dest, direction=direction),
        record(text, "switched", ticket=ticket, source=source, level=dest, took_s=0.0, load_s=None),
    ]


ALWAYS = [(float("-inf"), float("inf"))]


def test_what_happened_is_told_as_people_say_it() -> None:
    """A model that was loaded anew has not come from itself, and one answer is no answers."""
    [anew] = past.joined(switch("03-01T12:00:00", 1, "small", "small", "same"))
    anew["reason"] = "small has other settings now"
    assert past.in_words(anew) == "loading small anew: small has other settings now [done after 0.00 s]"
    drained = record("03-01T12:00:00", "drained", level="small", answers=1, handed_over=0, took_s=2.0)
    assert past.in_words(drained) == "1 answer at small ended within 2 s"
    assert past.in_words({**drained, "answers": 2}) == "2 answers at small ended within 2 s"


def test_a_day_is_told_by_the_persons_clock() -> None:
    """From midnight to midnight where they live."""
    records = [
        *switch("11-27T22:00", 1, "off", "small"),
        *switch("11-28T06:00", 2, "small", "large"),
        record("11-28T18:00", "died", level="large", reason="killed"),
        *switch("11-28T19:00", 3, "off", "small"),
        *switch("11-29T01:00", 4, "small", "large"),
        *switch("11-29T02:00", 5, "large", "small"),
        record("11-29T03:00", "switch_failed", ticket=6, level="large", still_serving="small", reason="no file"),
    ]
    days = past.days(records, LADDER, ALWAYS, at("11-29T04:00"), 3)
    assert [day["date"] for day in days] == ["2026-11-27", "2026-11-28", "2026-11-29"]
    assert [day["levels_s"] for day in days] == [
        {"off": 0.0, "small": 2 * HOUR_S, "large": 0.0},
        {"off": HOUR_S, "small": 11 * HOUR_S, "large": 12 * HOUR_S},
        {"off": 0.0, "small": 3 * HOUR_S, "large": HOUR_S},
    ]
    counts = [tuple(day[name] for name in past.COUNTED) for day in days]
    assert counts == [(1, 0, 1, 0, 0), (2, 0, 2, 0, 1), (2, 1, 1, 1, 0)]


def test_a_day_on_which_the_clocks_are_set_has_its_own_length() -> None:
    """25 hours in October, 23 in March."""
    october = past.days(switch("10-20T00:00", 1, "off", "small"), LADDER, ALWAYS, at("10-26T12:00"), 2)
    assert october[0]["levels_s"]["small"] == 25 * HOUR_S
    march = past.days(switch("03-20T00:00", 1, "off", "small"), LADDER, ALWAYS, at("03-30T12:00"), 2)
    assert march[0]["levels_s"]["small"] == 23 * HOUR_S


def test_a_level_that_is_no_longer_on_the_ladder_still_counts() -> None:
    """The ladder changes; what happened does not."""
    records = [
        record("11-28T00:00", "switched", ticket=1, source="off", level="tiny", took_s=1.0, load_s=None),
        *switch("11-28T01:00", 2, "tiny", "large", "up"),
        *switch("11-28T02:00", 3, "large", "tiny", "down"),
        *switch("11-28T02:00", 4, "tiny", "tiny", "same"),
    ]
    (day,) = past.days(records, LADDER, ALWAYS, at("11-28T02:00"), 1)
    assert day["levels_s"] == {"off": 0.0, "small": 0.0, "large": HOUR_S, "tiny": HOUR_S}
    # By the ladder of then, which the decisions tell; nothing is known of the first one's.
    assert (day["switches"], day["upgrades"], day["downgrades"]) == (4, 1, 1)


def test_a_night_in_which_nothing_ran_counts_for_no_level(tmp_path: Path) -> None:
    """The recording knows: nobody read the machine then. Its bound to a day's files is no gap."""
    folder = tmp_path / "recording"
    for first, last in (("11-27T08:00", "11-27T20:00"), ("11-27T20:01", "11-27T22:00"), ("11-28T08:00", "11-28T09:00")):
        recorder = Recorder(folder, wall_clock=lambda: at("11-28T10:00"))
        recorder.take(Reading(0.0, at(first), Memory(2**34, 2**33), 0))
        recorder.close()
        newest = max(folder.iterdir())
        os.utime(newest, (at(last), at(last)))
    stretches = past.watched(folder, at("11-28T10:00"), at("11-28T11:00"))
    assert stretches == [
        (float("-inf"), at("11-27T22:00")),
        (at("11-28T08:00"), at("11-28T09:00")),
        (at("11-28T10:00"), at("11-28T11:00")),
    ]
    records = [*switch("11-27T08:00", 1, "off", "large"), *switch("11-28T08:00", 1, "off", "small")]
    days = past.days(records, LADDER, stretches, at("11-28T11:00"), 2)
    assert days[0]["levels_s"] == {"off": 0.0, "small": 0.0, "large": 14 * HOUR_S}
    assert days[1]["levels_s"] == {"off": 0.0, "small": 2 * HOUR_S, "large": 0.0}
    assert past.watched(tmp_path / "none", 5.0, 9.0) == [(float("-inf"), 9.0)]


def test_a_new_run_begins_with_nothing_loaded() -> None:
    """Its tickets begin anew, and what served before has ended."""
    records = [
        *switch("11-28T00:00", 1, "off", "small"),
        *switch("11-28T01:00", 2, "small", "large"),
        record("11-28T02:00", "decision", ticket=1, source="off", dest="small"),
    ]
    assert list(past.served(records)) == [
        (at("11-28T00:00"), "small"),
        (at("11-28T01:00"), "large"),
        (at("11-28T02:00"), "off"),
    ]


def test_programs_on_one_journal_are_told_apart() -> None:
    """Each has its own tickets; what the daemon did in lives before is its own, and so is what names nobody yet."""

    def by(writer: Writer, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one | writer._asdict() for one in records]

    daemon, program, second = Writer(DAEMON, 7), Writer("my_app.py", 8), Writer(DAEMON, 9)
    unnamed = switch("11-28T00:00", 1, "off", "small")
    before = by(Writer(DAEMON, 5), switch("11-28T01:00", 1, "off", "large"))
    (decided, done), (other, other_done) = (
        by(who, switch("11-28T03:00", 1, "off", level)) for who, level in ((daemon, "small"), (program, "large"))
    )
    hurried = by(daemon, [record("11-28T03:00", "hurried", switch={"ticket": 1})])
    beside = by(second, switch("11-28T04:00", 1, "off", "small"))
    records = [*unnamed, *before, decided, other, *hurried, done, other_done, *beside]
    own = [*unnamed, *before, decided, *hurried, done]
    assert list(past.own(records, daemon, at("11-28T02:00"))) == own
    assert list(past.own(records, program, at("11-28T02:00"))) == [*unnamed, other, other_done]
    events = past.joined(records)
    assert [event["outcome"] for event in events] == [unnamed[1], before[1], done, other_done, beside[1]]
    assert [event["hurried"] for event in events] == [False, False, True, False, False]
    assert [past.other_program(event) for event in events] == [None, None, None, "my_app.py[8]", None]


def test_only_the_files_that_tell_of_the_time_are_read(tmp_path: Path) -> None:
    """A journal may be large, and who asks for an hour waits for it; one file more tells how things stood."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, max_bytes=100, files=6)
    for number in range(6):
        journal.write(record(f"11-2{number}T00:00", "pin", level=str(number)))
    journal.close()
    for number in range(6):
        file = path if number == 0 else path.with_name(f"{path.name}.{number}")
        os.utime(file, (at(f"11-2{5 - number}T00:00"),) * 2)
    assert [one["level"] for one in past.records(path)] == list("012345")
    assert [one["level"] for one in past.records(path, since_s=at("11-23T12:00"))] == list("345")


class Record(dict[str, Any]):
    """A record of which one can tell whether it is still kept."""

    __slots__ = ("__weakref__",)


def test_what_was_long_ago_is_not_kept_in_memory() -> None:
    """A journal takes ten times its size there, and the page asks in the moment in which memory is short."""
    told: list[weakref.ref[Record]] = []

    def coming() -> Iterator[dict[str, Any]]:
        for ticket in range(1, 101):
            for one in switch("11-27T22:00", ticket, *(("off", "small") if ticket % 2 else ("small", "off"))):
                told.append(weakref.ref(passed := Record(one)))
                yield passed
                assert sum(ref() is not None for ref in told) < 10

    (day,) = past.days(coming(), LADDER, ALWAYS, at("11-27T23:00"), 1)
    assert (day["upgrades"], day["downgrades"]) == (50, 50)
    assert past.joined(coming(), since_s=at("11-28T00:00")) == []


def test_an_outcome_whose_decision_was_not_asked_for_is_no_event() -> None:
    """It belongs to a decision, and that was before."""
    decided, done = switch("11-28T00:00", 1, "off", "small")
    done["at"] = record("11-28T00:10", "")["at"]
    died = record("11-28T00:20", "died", level="small", reason="killed")
    assert past.joined([decided, done, died], since_s=at("11-28T00:05")) == [died]


@pytest.mark.parametrize(
    "line",
    [
        {"event": "pin"},
        {"at": "2026-11-28T00:00:00+00:00"},
        {"at": 7, "event": "pin"},
        {"at": "0001-01-01T00:00:00", "event": "pin"},
        {"at": "2026-11-28T00:00:00+00:00", "event": "decision"},
        {"at": "2026-11-28T00:00:00+00:00", "event": ["pin"]},
        {"at": "2026-11-28T00:00:00", "event": "budget_restored", "level": "small"},
        {"at": "9999-12-31T23:59:59+00:00", "event": "budget_restored", "level": "small"},
        {"at": "2026-11-28T00:00:00+00:00", "event": "budget_restored", "level": "small", "program": None, "pid": 7},
        {"at": "2026-11-28T00:00:00+00:00", "event": "budget_restored", "level": "small", "program": "a", "pid": []},
    ],
    ids=str,
)
def test_what_is_no_journal_is_refused(tmp_path: Path, line: dict[str, Any]) -> None:
    """With its name, and not somewhere later as a fault of ours."""
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(JournalError, match="no record of scaler's"):
        list(past.records(path))


RECORDS: dict[str, dict[str, Any]] = {
    "decision": {"ticket": 1, "source": "off", "dest": "small", "direction": "up", "reason": "it fits"},
    "hurried": {"switch": {"ticket": 1}},
    "switched": {"ticket": 1, "source": "off", "level": "small", "took_s": 1.5, "load_s": 1.0},
    "switch_failed": {"ticket": 1, "level": "large", "still_serving": "small", "reason": "no file"},
    "died": {"level": "small", "reason": "killed"},
    "standby_lost": {"level": "small", "reason": "killed"},
    "unload_failed": {"level": "small", "reason": "it hangs"},
    "pin": {"level": None},
    "budget_lowered": {"level": "small", "max_tokens": 256, "reason": "memory is short"},
    "budget_restored": {"level": "small"},
    "drained": {"level": "small", "answers": 2, "handed_over": 1, "took_s": 3.0},
    "handed_over": {"level": "small", "tokens": 7, "reason": None},
    "not_remembered": {"conversation_id": "c", "level": "small", "reason": "no room"},
    "advised": {"level": "small", "lacking": {}, "suggestions": [], "reason": "nothing helps"},
    "embeddings_loaded": {"name": "e", "load_s": 1.0, "reason": "there is room"},
    "embeddings_gone": {"name": "e", "reason": "idle"},
    "told": {"kind": "downgrade", "level": "small", "text": "smaller for now"},
    "reconfigured": {"changes": [{"key": "tier", "before": "a", "after": None}], "restart": ["server.port"]},
}
"""One whole record of each kind that the journal has."""
UNREAD = {"decision": {"direction"}, "switched": {"source"}, "advised": {"level", "lacking"}, "told": {"kind", "level"}}
"""What nobody is told of them, and may be whatever it is."""
LACKING = object()
WRONG: Sequence[Any] = (LACKING, None, 7, 10**400, "seven", [], [None], [{"text": 7}], {}, {"ticket": []})
"""What a field can be in a file that somebody edited, or that another version wrote."""


def test_of_each_kind_one_is_tried() -> None:
    """A new kind is to be told, too."""
    assert RECORDS.keys() == set(KINDS.values())


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_cannot_be_told_is_refused(tmp_path: Path, kind: str) -> None:
    """Whatever it lacks; and one that is not refused can be told, wherever it stands."""
    path = tmp_path / "journal.jsonl"
    decided, done, whole = (record("11-28T12:00", name) | RECORDS[name] for name in ("decision", "switched", kind))

    def told(records: Sequence[dict[str, Any]]) -> None:
        path.write_text("".join(f"{json.dumps(one)}\n" for one in records))
        for event in past.joined(past.records(path)):
            assert past.in_words(event)
        past.days(past.records(path), LADDER, ALWAYS, at("11-28T13:00"), 1)

    told([decided, whole, done])
    refused = set()
    for key, value in itertools.product(RECORDS[kind], WRONG):
        changed = {name: one for name, one in {**whole, key: value}.items() if one is not LACKING}
        for story in ([changed], [decided, changed, done], [changed, decided]):
            try:
                told(story)
            except JournalError:
                refused.add(key)
    assert refused == RECORDS[kind].keys() - UNREAD.get(kind, set())
