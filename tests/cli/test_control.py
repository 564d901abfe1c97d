"""`scaler control`: another program's half of the conversation."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.conftest import SCALER, Run

GIB = 1024**3
TOTAL = 16 * GIB
HELLO = {
    "type": "hello",
    "levels": [
        {"name": "off", "memory_bytes": 0, "quality": 0.0, "load_s": 0.1},
        {"name": "small", "memory_bytes": 1 * GIB, "quality": 0.5, "load_s": 1.0},
        {"name": "large", "memory_bytes": 8 * GIB, "quality": 1.0, "load_s": 4.0},
    ],
}


def sample(at_s: float, other_gib: float, level: str = "off", own_gib: float = 0.0) -> dict[str, Any]:
    used = int((other_gib + own_gib) * GIB)
    model = {"level": level, "loading": None, "rss_bytes": int(own_gib * GIB)}
    return {"type": "sample", "t": at_s, "memory": {"used_bytes": used, "total_bytes": TOTAL}, "model": model}


def told(*messages: dict[str, Any]) -> str:
    return "".join(json.dumps(message) + "\n" for message in messages)


def test_it_answers_hello_and_every_sample_with_a_line(scaler: Run) -> None:
    """From off to the smallest level; down from the large one under pressure."""
    done = scaler("control", stdin=told(HELLO, sample(0, 2), sample(1, 2)))
    assert done.returncode == 0
    assert done.stderr == ""
    ready, first, second = map(json.loads, done.stdout.splitlines())
    assert ready == {"type": "ready"}
    assert first["target"] == second["target"] == "small"
    assert first["urgent"] is False
    pressed = scaler("control", stdin=told(HELLO, *(sample(t, 6, "large", 8) for t in range(8))))
    last = json.loads(pressed.stdout.splitlines()[-1])
    assert last["target"] == "small"
    assert "the limit is 80 %" in last["reason"]


def test_it_answers_before_the_next_line_comes(places: dict[str, str]) -> None:
    """A conversation, not a batch: nothing waits in a buffer."""
    process = subprocess.Popen(
        [*SCALER, "control"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=places, encoding="utf-8"
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(told(HELLO))
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"type": "ready"}
        process.stdin.write(told(sample(0, 2)))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["target"] == "small"
    assert process.returncode == 0


def test_a_tier_brings_its_thresholds(scaler: Run, own_tier: Callable[[str, str], Path]) -> None:
    """The person's own tier when it is named; without a name the shipped one, whatever they changed."""
    own_tier(
        "mine",
        "name: mine\nrank: 99\nrequires: [{cores: 9999}]\npolicy: {scale_at: 0.3, critical_at: 0.4, debounce_s: 0}\n",
    )
    own_tier("mid_range", "name: mid_range\npolicy: {scale_at: 0.3, critical_at: 0.4, debounce_s: 0}\n")
    pressed = told(HELLO, sample(0, 3, "large", 8), sample(1, 3, "large", 8))

    def target(*arguments: str) -> str:
        return str(json.loads(scaler("control", *arguments, stdin=pressed).stdout.splitlines()[-1])["target"])

    assert target("--tier", "mine") == target("--tier", "mid_range") == "small"
    assert target() == "large"
    assert scaler("control", "--tier", "none").returncode == 2


def test_what_it_cannot_understand_ends_it_with_the_line(scaler: Run) -> None:
    """Exit code 3, one message."""
    for stdin in ("nonsense\n", '{"type": "sample"}\n', '{"type": "hello"}\n', "[]\n"):
        failed = scaler("control", stdin=stdin)
        assert failed.returncode == 3
        assert failed.stderr.startswith("scaler: stdin:1: ")
        assert failed.stderr.count("\n") == 1


def test_a_ladder_that_cannot_be_is_refused(scaler: Run) -> None:
    """As in a configuration: exit code 2."""
    failed = scaler("control", stdin=told({**HELLO, "levels": HELLO["levels"][:1]}))
    assert failed.returncode == 2
    assert "no levels" in failed.stderr


def test_bytes_that_are_no_text_are_refused(places: dict[str, str]) -> None:
    """JSON is UTF-8, whatever the locale says."""
    failed = subprocess.run([*SCALER, "control"], input=b'{"type": "\xff"}\n', capture_output=True, env=places)
    assert failed.returncode == 3
    assert b"stdin:1: invalid unicode" in failed.stderr
    assert b"Traceback" not in failed.stderr


def test_whoever_asks_may_leave_at_any_time(places: dict[str, str]) -> None:
    """Quietly, also when an answer is on its way."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*SCALER, "control"], input=told(HELLO), stdout=writer, stderr=subprocess.PIPE, env=places, text=True
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
