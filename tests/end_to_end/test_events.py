"""Following a daemon over HTTP while a real ladder steps down, fails nobody and comes to its end."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scaler import advising
from scaler.notices import Notice
from scaler.serving.app import Endpoint
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine
from tests.end_to_end.test_ladder import settles_at

Running = Callable[..., Any]


def told(stream: Any) -> Iterator[tuple[str, int, Any]]:
    """The events of a stream: name, number, data; up to its end."""
    lines: list[str] = []
    for line in stream:
        text = line.decode().rstrip("\n")
        if text:
            lines.append(text)
            continue
        said = dict(line.split(": ", 1) for line in lines if not line.startswith(":"))
        lines = []
        if said:
            yield said["event"], int(said["id"]), json.loads(said["data"])


@pytest.mark.parametrize("asked", [False, True], ids=["by memory", "by a program"])
def test_a_step_down_is_told_to_whoever_follows(
    running: Running, machine: Machine, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """What changed, why, and when it is done; and the daemon's end ends the stream without an error."""
    monkeypatch.setattr(advising, "PATIENCE_S", PATIENCE_S)
    notices: list[Notice] = []
    with running() as (manager, watch):
        manager.on_notice(notices.append)
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        endpoint = Endpoint(manager, "127.0.0.1", 0)
        endpoint.start()
        with urllib.request.urlopen(f"{endpoint.url}/events", timeout=PATIENCE_S) as stream:
            assert stream.headers["Content-Type"] == "text/event-stream"
            events = told(stream)
            seen = [next(events)]
            kind, _, status = seen[0]
            assert (kind, status["serving"]) == ("status", "large")
            if asked:
                manager.scaler.initiate_graceful_degradation()
            else:
                machine.other_bytes = 2900 * MIB
            while not {"switched", "notice"} <= {kind for kind, _, _ in seen}:
                seen.append(next(events))
            by_kind = {kind: data for kind, _, data in seen}
            kinds = [kind for kind, _, _ in seen]
            # The suggestion is looked for beside the switch.
            beside = ("advised", "notice")
            assert [kind for kind in kinds if kind not in beside] == [
                "status",
                "decision",
                "budget_lowered",
                "switched",
            ]
            assert [kind for kind in kinds if kind in beside] == ["advised", "notice"]
            assert [number for _, number, _ in seen] == sorted({number for _, number, _ in seen})
            assert (by_kind["decision"]["source"], by_kind["decision"]["dest"]) == ("large", "medium")
            assert by_kind["notice"]["kind"] == "downgrade"
            assert by_kind["decision"]["reason"] in by_kind["notice"]["text"]
            assert by_kind["notice"]["text"] == notices[0].text
            assert by_kind["switched"]["level"] == "medium"
            endpoint.stop()
            assert {kind for kind, _, _ in events} <= {"notice", "advised", "decision", "budget_lowered", "switched"}


def test_a_file_whose_name_is_no_text_is_told_as_well(running: Running) -> None:
    """Why a level failed names it: whoever follows gets the state of now, and what happens, all the same."""
    reasons = [f"small: /mod\udce8les/größer.gguf: killed {time}" for time in ("once", "twice")]
    with running() as (manager, _):
        endpoint = Endpoint(manager, "127.0.0.1", 0)
        endpoint.start()
        manager.scaler.died("small", reasons[0])
        with urllib.request.urlopen(f"{endpoint.url}/events", timeout=PATIENCE_S) as stream:
            events = told(stream)
            assert next(events)[2]["failed"] == {"small": reasons[0]}
            manager.scaler.died("small", reasons[1])
            assert next(data["reason"] for kind, _, data in events if kind == "died") == reasons[1]
            endpoint.stop()
