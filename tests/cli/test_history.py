"""`scaler history`: the journal, a line an event."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scaler.advice import Suggestion
from scaler.events import (
    Advised,
    DecisionMade,
    Hurried,
    ModelDied,
    PinChanged,
    ScalerEvent,
    SwitchDone,
    SwitchFailed,
    UnloadFailed,
)
from scaler.journal import DAEMON, Journal, Writer, record_of
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.machine import LevelMachine, Switch
from scaler.policy import Policy
from scaler.readings import Memory, Program, Reading
from tests.cli.conftest import SCALER, Run

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TOTAL = 16 * GIB


class Story:
    """A day of a machine: a real decision machine whose events go into a real journal, one second a reading."""

    def __init__(
        self, path: Path, *, max_bytes: int = 5 * 1024 * 1024, files: int = 5, writer: Writer | None = None
    ) -> None:
        self.journal = Journal(path, max_bytes=max_bytes, files=files, writer=writer)
        self.at_s = 0.0
        self.switch: Switch | None = None
        ladder = Ladder([Level("small", {RAM: 1 * GIB}, 0.5, 1.0), Level("large", {RAM: 8 * GIB}, 1.0, 4.0)])
        self.machine = LevelMachine(
            ladder, Policy(recovery_s=0), self._entered, on_hurry=lambda s: self.tell(Hurried(s))
        )

    def tell(self, event: ScalerEvent) -> None:
        """Write it down as the scaler does."""
        record = record_of(event, self._wall_s())
        assert record is not None
        self.journal.write(record)

    def observe(self, other_gib: float, own_gib: float = 0.0, seconds: int = 1) -> None:
        """Readings for some seconds."""
        for _ in range(seconds):
            self.at_s += 1.0
            free = TOTAL - int((other_gib + own_gib) * GIB)
            self.machine.observe(Reading(self.at_s, None, Memory(TOTAL, free), int(own_gib * GIB)))

    def done(self, took_s: float) -> None:
        """The switch in progress succeeds."""
        assert self.switch is not None
        decision = self.switch.decision
        self.machine.switched(self.switch.ticket, self.at_s, took_s)
        self.tell(SwitchDone(self.switch.ticket, decision.source, self.switch.dest, took_s, took_s / 2))

    def failed(self, reason: str) -> None:
        """The switch in progress fails; what served still does."""
        assert self.switch is not None
        switch, serving = self.switch, self.machine.serving
        self.tell(SwitchFailed(switch.ticket, switch.dest, serving, reason))
        self.machine.switch_failed(switch.ticket, serving, self.at_s)

    def _entered(self, switch: Switch) -> None:
        self.switch = switch
        self.tell(DecisionMade(switch, self._wall_s()))

    def _wall_s(self) -> float:
        return (START + timedelta(seconds=self.at_s)).timestamp()


@pytest.fixture
def path(places: dict[str, str]) -> Path:
    """Where the daemon's journal is by default."""
    return Path(places["XDG_STATE_HOME"]) / "scaler" / "journal.jsonl"


@pytest.fixture
def day(path: Path) -> Story:
    """Loaded, climbed, pressed down critically while the switch was running, died."""
    story = Story(path)
    story.observe(2)
    story.done(0.5)
    story.observe(2, 1, seconds=301)
    story.done(3.25)
    story.observe(5, 8, seconds=5)
    story.observe(7.6, 8)
    story.done(1.5)
    story.tell(ModelDied("small", "killed by signal 9"))
    story.machine.died("small", story.at_s)
    story.tell(PinChanged("small"))
    story.tell(PinChanged(None))
    story.journal.close()
    return story


def test_it_tells_each_event_in_one_line_with_time_reason_and_outcome(scaler: Run, day: Story) -> None:
    """What happened while you were away, without knowing the journal's form."""
    lines = scaler("history").stdout.splitlines()
    assert lines[0].startswith("2026-11-23 12:00:01  off → small: ")
    assert lines[0].endswith("[done after 0.50 s, 0.25 s of it loading]")
    assert lines[1].startswith("2026-11-23 12:05:01  small → large: ")
    assert "usage at large would be 62.5 % of 16 GiB; it has been at most 77 % for all of the 300 s" in lines[1]
    assert lines[1].endswith("[done after 3.25 s, 1.62 s of it loading]")
    assert "large → small: " in lines[2]
    assert "of 16 GiB; the limit is 80 %" in lines[2]
    assert lines[2].endswith("[done after 1.50 s, 0.75 s of it loading, hurried because usage turned critical]")
    assert lines[3].endswith("  small died: killed by signal 9")
    assert "small → off: the model of small died [not finished]" in lines[4]
    assert [line[21:] for line in lines[5:]] == ["pinned to small", "unpinned"]


def test_a_model_that_will_not_go_is_told_with_the_reason(scaler: Run, path: Path) -> None:
    """It holds memory that nobody has use of, and only a person can end it."""
    story = Story(path)
    story.tell(UnloadFailed("large", "large: the server is still awake"))
    story.journal.close()
    assert scaler("history").stdout[21:] == "large was told to go and stays: large: the server is still awake\n"


def test_what_was_suggested_is_told_with_how_much_more_there_was(scaler: Run, path: Path) -> None:
    """Or why there was nothing; every figure is in the JSON."""
    story = Story(path)
    game = Program("game", 7, 2, {RAM: 3 * GIB})
    best = Suggestion("closing game, 3.0 GiB, would make room for large", "large", game.held, (game,))
    story.tell(Advised("small", {"large": {RAM: GIB}}, (best, best, best), None))
    story.tell(Advised("small", {"large": {RAM: GIB}}, (), "no program holds enough"))
    story.journal.close()
    assert [line[21:] for line in scaler("history").stdout.splitlines()] == [
        "suggested: closing game, 3.0 GiB, would make room for large (and 2 more)",
        "nothing to suggest: no program holds enough",
    ]
    record = json.loads(scaler("history", "--json").stdout.splitlines()[0])
    assert record["suggestions"][0]["programs"][0] == {"name": "game", "pid": 7, "processes": 2, "held": {RAM: 3 * GIB}}


def test_times_are_those_of_the_persons_clock(scaler: Run, day: Story) -> None:
    """The journal's are UTC."""
    assert scaler("history", env={"TZ": "XYZ-5:30"}).stdout.startswith("2026-11-23 17:30:01  ")


def test_a_failed_switch_says_what_still_serves_and_why(scaler: Run, path: Path) -> None:
    """And the next decision with the same ticket, after a restart, has its own outcome."""
    story = Story(path)
    story.observe(2)
    story.failed("no such file")
    story.journal.close()
    again = Story(path)
    again.observe(2)
    again.done(0.5)
    again.journal.close()
    lines = scaler("history").stdout.splitlines()
    assert lines[0].endswith("[failed, off serves: no such file]")
    assert lines[-1].endswith("[done after 0.50 s, 0.25 s of it loading]")


def test_what_another_program_decided_says_so(scaler: Run, path: Path) -> None:
    """Where a program embeds scaler beside the daemon: both load a model at once, and each has its own outcome."""
    daemon, program = Story(path, writer=Writer(DAEMON, 7)), Story(path, writer=Writer("my_app.py", 8))
    daemon.observe(2)
    program.observe(2)
    daemon.failed("no such file")
    program.done(0.5)
    for story in (daemon, program):
        story.journal.close()
    lines = [line[21:] for line in scaler("history").stdout.splitlines()]
    assert lines[0].startswith("off → small: ")
    assert lines[0].endswith("[failed, off serves: no such file]")
    assert lines[1].startswith("my_app.py[8]: off → small: ")
    assert lines[1].endswith("[done after 0.50 s, 0.25 s of it loading]")
    assert lines[2] == "small → off: small could not be loaded [not finished]"
    records = [json.loads(line) for line in scaler("history", "--json").stdout.splitlines()]
    assert [(record["program"], record["pid"]) for record in records[:2]] == [("scaler run", 7), ("my_app.py", 8)]


def test_json_is_one_record_a_line_with_its_outcome(scaler: Run, day: Story) -> None:
    """For programs: everything that the journal has, joined."""
    records = [json.loads(line) for line in scaler("history", "--json").stdout.splitlines()]
    assert [record["event"] for record in records] == ["decision"] * 3 + ["died", "decision", "pin", "pin"]
    assert records[0]["outcome"]["took_s"] == 0.5
    assert [record["hurried"] for record in records[:3]] == [False, False, True]
    assert records[4]["outcome"] is None


def test_the_newest_and_the_latest_can_be_asked_for(scaler: Run, day: Story) -> None:
    """By count, by time, by age."""
    every = scaler("history").stdout.splitlines()
    assert scaler("history", "--last", "2").stdout.splitlines() == every[-2:]
    assert scaler("history", "--last", "99").stdout.splitlines() == every
    assert scaler("history", "--since", "2026-11-23T12:05").stdout.splitlines() == every[1:]
    assert scaler("history", "--since", "2026-11-23T12:05", "--last", "1").stdout.splitlines() == every[-1:]
    assert scaler("history", "--since", "2026-11-23T17:35", env={"TZ": "XYZ-5:30"}).stdout.count("\n") == len(every) - 1
    age_s = (datetime.now(UTC) - START).total_seconds()
    assert scaler("history", "--since", f"{age_s + 3600:.0f}s").stdout.splitlines() == every
    none = scaler("history", "--since", "2999-01-01")
    assert (none.returncode, none.stdout) == (0, "")
    assert "nothing happened since 2999-01-01" in none.stderr


def test_rotated_files_are_read_too(scaler: Run, path: Path) -> None:
    """However many there are."""
    story = Story(path, max_bytes=150, files=12)
    for number in range(20):
        story.tell(PinChanged(f"level-{number}"))
    story.journal.close()
    assert len(list(path.parent.glob("journal.jsonl.*"))) > 5
    kept = scaler("history", "--path", str(path)).stdout.splitlines()
    assert kept[-1].endswith("pinned to level-19")
    assert len(kept) > 5


def test_no_journal_yet_is_said_quietly(scaler: Run, path: Path) -> None:
    """Not a failure: nothing has happened."""
    done = scaler("history")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"no journal yet at {path}; `scaler run` writes it\n"


def test_a_journal_elsewhere_is_found_through_the_configuration(
    scaler: Run, own_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same one that the daemon writes."""
    own_config(f"journal: {{path: {tmp_path}/elsewhere.jsonl}}\n")
    story = Story(tmp_path / "elsewhere.jsonl")
    story.tell(PinChanged("small"))
    story.journal.close()
    assert scaler("history").stdout.endswith("pinned to small\n")


@pytest.mark.parametrize(
    "arguments",
    [("--since", "yesterday"), ("--since", "9" * 400 + "d"), ("--last", "0"), ("--path", ""), ("--path", "/")],
)
def test_wrong_use_is_one_message(scaler: Run, arguments: tuple[str, str]) -> None:
    """With what was expected, and exit code 2."""
    failed = scaler("history", *arguments)
    assert failed.returncode == 2
    assert "expected" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_damaged_journal_is_named_with_its_line(scaler: Run, day: Story, path: Path) -> None:
    """Exit code 3."""
    whole = path.read_text()
    path.write_text(f"{whole}nonsense\n")
    failed = scaler("history")
    assert failed.returncode == 3
    assert f"{path}:{whole.count(chr(10)) + 1}" in failed.stderr
    for other in ("{}", '{"event": "pin"}'):
        path.write_text(f"{other}\n")
        failed = scaler("history")
        assert failed.returncode == 3
        assert failed.stderr.startswith(f"scaler: {path}: a line is no record of scaler's")


def test_whoever_reads_it_may_stop_at_any_time(day: Story, places: dict[str, str]) -> None:
    """As in `scaler history | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*SCALER, "history"], stdout=writer, stderr=subprocess.PIPE, env=places, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
