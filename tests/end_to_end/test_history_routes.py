"""What happened lately, asked over HTTP of a daemon that serves a real ladder."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scaler.readings import Memory, Reading
from scaler.recordings import Recorder
from tests.end_to_end.conftest import MIB, PATIENCE_S, TOTAL, Machine
from tests.end_to_end.test_ladder import settles_at

Serving = Callable[..., Any]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return json.load(response)


def refused(url: str, code: int) -> str:
    """What is said to who asks for what cannot be had."""
    with pytest.raises(urllib.error.HTTPError) as raised:
        get(url)
    with raised.value:
        assert raised.value.code == code
        return str(json.load(raised.value)["error"]["message"])


def test_the_last_hour_has_readings_levels_and_why_they_changed(serving: Serving, machine: Machine) -> None:
    """What a picture of the last hour is drawn of."""
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        machine.other_bytes = 2900 * MIB
        settles_at(manager, watch, "medium")
        watch.readings(2)
        told = get(f"{url}/history")
        assert told["interval_s"] == 10
        assert abs(told["now"] - time.time()) < PATIENCE_S
        last = told["points"][-1]
        assert told["now"] - 20 < last["at"] <= told["now"]
        assert last["usage"]["ram"]["total_bytes"] == TOTAL
        # The fullest reading of the ten seconds, which may be the one before the step down.
        assert last["serving"] in ("medium", "large")
        assert last["usage"]["ram"]["other_bytes"] == pytest.approx(2900 * MIB, abs=MIB)
        assert last["usage"]["ram"]["own_bytes"] > 0
        down = [event for event in told["events"] if event["event"] == "decision"][-1]
        assert (down["source"], down["dest"]) == ("large", "medium")
        assert "the limit is" in down["reason"]
        assert down["outcome"]["level"] == "medium"
        assert down["what"] == "large → medium"
        assert down["why"].startswith(f"{down['reason']} [done after ")
        assert [event["at"] for event in told["events"]] == sorted(event["at"] for event in told["events"])
        assert get(f"{url}/history?last_s=86400")["interval_s"] == 120


def test_what_was_recorded_before_a_restart_is_there_after_it(serving: Serving, tmp_path: Path) -> None:
    """With the level that answered then, and a gap where nothing was read."""
    now_s = time.time()
    recorder = Recorder(tmp_path / "recording")
    for second in (*range(100), *range(200, 300)):
        recorder.take(Reading(1000.0 + second, now_s - 1000 + second, Memory(TOTAL, TOTAL // 2), 300 * MIB))
    recorder.close()
    with serving(levels=("small",)) as (url, _, watch):
        watch.readings(2)
        points = get(f"{url}/history?last_s=1800")["points"]
        before = [point for point in points if point["at"] < now_s - 600]
        assert 20 <= len(before) <= 22
        assert {point["serving"] for point in points} == {"off"}
        assert before[0]["usage"] == {
            "ram": {"total_bytes": TOTAL, "own_bytes": 300 * MIB, "other_bytes": TOTAL // 2 - 300 * MIB}
        }
        assert not [point for point in points if now_s - 890 < point["at"] < now_s - 810]
        # The present one's, too, and each once.
        assert points[-1]["at"] >= now_s
        assert [point["at"] for point in points] == sorted({point["at"] for point in points})
        assert len(get(f"{url}/history?last_s=60")["points"]) <= 3


def test_each_day_says_how_long_which_level_answered(serving: Serving) -> None:
    """And how often it changed, and why it failed."""
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        manager.scaler.pin("small")
        settles_at(manager, watch, "small")
        days = get(f"{url}/history/days?days=2")["days"]
        assert len(days) == 2
        assert len(get(f"{url}/history/days")["days"]) == 14
        both = {
            name: sum(day[name] for day in days) for name in ("switches", "downgrades", "upgrades", "failed", "died")
        }
        assert both["downgrades"] == 1
        assert both["upgrades"] == both["switches"] - 1 >= 1
        assert both["failed"] == both["died"] == 0
        assert list(days[1]["levels_s"]) == ["off", "small", "medium", "large"]
        assert days[1]["levels_s"]["large"] + days[0]["levels_s"]["large"] > 0
        assert sum(days[1]["levels_s"].values()) < PATIENCE_S * 3


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("/history?last_s=0", "last_s: '0' cannot be used; expected a whole number, 1 to 86400"),
        ("/history?last_s=86401", "1 to 86400"),
        ("/history?last_s=an%20hour", "'an hour'"),
        ("/history?last_s=", "''"),
        ("/history?last_s=1&last_s=2", "'1', '2'"),
        ("/history/days?days=367", "1 to 366"),
        ("/history/days?days=%D9%A3", "expected a whole number"),
        ("/history/days?days=" + "9" * 5000, "expected a whole number"),
    ],
    ids=lambda value: value[:30],
)
def test_what_cannot_be_asked_is_refused_with_what_can(serving: Serving, asked: str, expected: str) -> None:
    """One clear message."""
    with serving(levels=("small",)) as (url, _, _):
        assert expected in refused(f"{url}{asked}", 400)


@pytest.mark.parametrize("event", ["budget_lowered", "switched"])
def test_a_damaged_journal_is_told_and_nothing_else_fails(serving: Serving, tmp_path: Path, event: str) -> None:
    """With the file and the line, also where only a field is missing; the daemon goes on."""
    record = {"at": datetime.now(UTC).isoformat(), "event": event, "ticket": 1, "level": "small", "took_s": 1.0}
    (tmp_path / "journal.jsonl").write_text(json.dumps(record) + "\n")
    with serving(levels=("small",)) as (url, _, _):
        for path in ("/history", "/history/days"):
            assert "journal.jsonl: a line is no record of scaler's" in refused(f"{url}{path}", 503)
        assert get(f"{url}/healthz")["status"] == "ok"


def test_a_text_that_is_none_is_told_all_the_same(serving: Serving, tmp_path: Path) -> None:
    """Such as the name of a file that was made on another system."""
    record = {"at": datetime.now(UTC).isoformat(), "event": "died", "level": "small", "reason": "gr\udcfc\udcdfe"}
    (tmp_path / "journal.jsonl").write_text(json.dumps(record) + "\n")
    with serving(levels=("small",)) as (url, _, _):
        assert get(f"{url}/history")["events"][0]["why"] == record["reason"]
