"""The file that is remembered in: written when something happens, whole whatever happens, one scaler's at a time."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scaler import remembering
from scaler.events import DecisionMade, PinChanged
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.remembered import Remembered
from scaler.remembering import Remembering, boot, marks, parsed
from tests.effects.test_proactive import LADDER, Bench

MARKS = dict.fromkeys(LADDER.names, "m")
PATIENCE_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a folder that is not there yet."""
    return tmp_path / "state" / "remembered.json"


def until(holds: Callable[[], bool]) -> None:
    """Wait for the thread that writes."""
    tick = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if holds():
            return
        tick.wait(0.01)
    raise AssertionError("nothing was written")


def written(path: Path) -> Remembered:
    """What the file says."""
    return parsed(path.read_bytes())


def begun(path: Path, bench: Bench) -> Remembering:
    """One that keeps what the scaler of a bench knows."""
    one = Remembering(path, bench.scaler, MARKS)
    one.begin()
    return one


def test_what_happens_is_in_the_file_before_the_next_thing_happens(path: Path) -> None:
    """A decision, a failure, a pin: a kill at any moment after it costs nothing."""
    bench = Bench()
    kept = begun(path, bench)
    until(path.exists)
    assert (written(path).state, written(path).ended, written(path).boot) == ("off", False, boot())
    bench.read(2.0)
    until(lambda: written(path).state == "small")
    bench.scaler.pin("medium")
    until(lambda: written(path).pinned == "medium")
    bench.scaler.died("medium", "killed")
    until(lambda: written(path).levels["medium"].failed == "killed")
    assert not written(path).ended
    kept.close()
    assert written(path).ended
    kept.close()


def test_the_next_scaler_knows_it(path: Path) -> None:
    """Also why a level failed, which its status tells."""
    first = Bench()
    kept = begun(path, first)
    first.read(2.0)
    first.scaler.pin("medium")
    first.scaler.died("medium", "out of memory")
    kept.close()
    second = Bench()
    again = Remembering(path, second.scaler, MARKS)
    known = again.begin()
    assert known is not None
    assert known.ended
    status = second.scaler.status()
    assert (status.pinned, dict(status.failed)) == ("medium", {"medium": "out of memory"})
    again.close()


def test_a_file_whose_name_is_no_text_is_no_reason_to_forget_everything(path: Path) -> None:
    """As in a folder that an older system has named."""
    bench = Bench()
    kept = begun(path, bench)
    bench.scaler.died("small", "small: /mod\udce8les/größer.gguf: killed")
    kept.close()
    assert written(path).levels["small"].failed == "small: /mod?les/größer.gguf: killed"


@pytest.mark.parametrize("other_gib", [2.0, 10.0])
def test_a_pinned_level_that_served_is_gone_back_to_without_the_dwell(path: Path, other_gib: float) -> None:
    """As soon as anything can be loaded, if it fits as a pin must; else it is climbed to as ever."""
    first = Bench()
    kept = begun(path, first)
    first.read(2.0)
    first.scaler.pin("large")
    kept.close()
    second = Bench()
    again = begun(path, second)
    second.read(other_gib)
    assert second.scaler.status().pinned == "large"
    assert second.scaler.status().state == ("large" if other_gib < 5 else "small")
    reasons = [event.switch.decision.reason for event in second.events if isinstance(event, DecisionMade)]
    assert reasons[1:] == (["a person pinned large"] if other_gib < 5 else [])
    # Nobody has pinned anything now.
    assert not [event for event in second.events if isinstance(event, PinChanged)]
    again.close()


def test_a_pinned_level_that_had_to_give_way_is_not(path: Path) -> None:
    """A restart is no way around the dwell."""
    first = Bench()
    kept = begun(path, first)
    first.read(2.0)
    first.scaler.pin("large")
    first.read(10.0)
    assert first.scaler.status().state == "small"
    kept.close()
    second = Bench()
    again = begun(path, second)
    second.read(2.0)
    assert (second.scaler.status().pinned, second.scaler.status().state) == ("large", "small")
    again.close()


def test_it_is_its_owners_alone(path: Path) -> None:
    """What a person runs, and when it failed."""
    before = os.umask(0)
    try:
        begun(path, Bench()).close()
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"remembered.json": 0o600, "remembered.json.lock": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_torn_file_is_put_aside_with_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of it is believed, and it is there for whoever wants to look."""
    begun(path, Bench()).close()
    whole = path.read_bytes()
    for size in {*range(0, len(whole), 41), *range(len(whole) - 9, len(whole))}:
        caplog.clear()
        path.write_bytes(whole[:size])
        with caplog.at_level(logging.WARNING):
            kept = Remembering(path, Bench().scaler, MARKS)
            assert kept.begin() is None
            kept.close()
        (said,) = caplog.records
        assert "cannot be read" in said.getMessage()
        assert path.with_name("remembered.json.damaged").read_bytes() == whole[:size]
        assert written(path).ended


@pytest.mark.parametrize("text", [b"\0" * 500, b"[]", b"3", b"{}", b'{"version": 2}', b"\xff\xfe", b"[" * 100_000])
def test_a_foreign_file_is_put_aside(path: Path, text: bytes) -> None:
    """A later scaler's among them."""
    path.parent.mkdir()
    path.write_bytes(text)
    begun(path, Bench()).close()
    assert path.with_name("remembered.json.damaged").read_bytes() == text
    assert written(path).ended


def test_a_second_scaler_remembers_nothing_and_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each would undo what the other wrote. When the first has ended, the file is free."""
    first = begun(path, Bench())
    until(path.exists)
    with caplog.at_level(logging.WARNING):
        second = Remembering(path, Bench().scaler, MARKS)
        assert second.begin() is None
    assert "another scaler keeps" in caplog.text
    before = path.read_bytes()
    second.close()
    assert path.read_bytes() == before
    first.close()
    third = Remembering(path, Bench().scaler, MARKS)
    assert third.begin() is not None
    third.close()


FORKED = """
import os, sys
from pathlib import Path
from scaler.file_lock import locked, unlocked

lock = locked(Path(sys.argv[1]))
awaited, ended = os.pipe()
if os.fork() == 0:
    os.close(ended)
    os.read(awaited, 1)
    os._exit(0)
os.close(awaited)
taken = locked(Path(sys.argv[1]))
unlocked(lock)
print(taken, locked(Path(sys.argv[1])) is not None)
os.close(ended)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_process_that_was_forked_meanwhile_does_not_keep_the_file(tmp_path: Path) -> None:
    """A pool's worker of the program that scaler is part of, which outlives the manager."""
    command = [sys.executable, "-c", FORKED, str(tmp_path / "remembered.json.lock")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "None True\n"


def test_where_no_file_can_be_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Serving is worth more."""
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        kept = Remembering(tmp_path / "file" / "remembered.json", Bench().scaler, MARKS)
        assert kept.begin() is None
        kept.close()
    assert len(caplog.records) == 1
    assert "nothing is remembered" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_leaves_the_file_as_it_was_and_is_said_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And that it is over. `/dev/full` is the disk that is always full."""
    bench = Bench()
    kept = begun(path, bench)
    until(path.exists)
    before = path.read_bytes()
    new = path.with_name("remembered.json.new")
    new.symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        bench.read(2.0)
        until(lambda: "No space left on device" in caplog.text)
        bench.scaler.pin("small")
        bench.scaler.unpin()
        assert path.read_bytes() == before
        new.unlink()
        kept.close()
    assert caplog.text.count("No space left on device") == 1
    assert "is remembered again" in caplog.text
    assert written(path).state == "small"


def test_nothing_is_written_where_nothing_has_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may sleep."""
    monkeypatch.setattr(remembering, "EVERY_S", 0.01)
    looked = threading.Semaphore(0)
    bench = Bench()
    plain = bench.scaler.remember

    def remember(*arguments: object, **more: object) -> Remembered:
        looked.release()
        return plain(*arguments, **more)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr(bench.scaler, "remember", remember)
    kept = begun(path, bench)
    until(path.exists)
    before = path.stat().st_ino
    for _ in range(10):
        assert looked.acquire(timeout=PATIENCE_S)
    assert path.stat().st_ino == before
    kept.close()


def level(**changes: object) -> EmbeddedLevel:
    """Settings of a level."""
    values: dict[str, object] = {"name": "a", "model": "a.gguf", "ram_gib": 1, "context_tokens": 2048, **changes}
    return EmbeddedLevel.model_validate(values)


def test_a_level_is_known_by_its_model_and_its_settings(tmp_path: Path) -> None:
    """Whatever changes what it takes or whether it loads makes it another one."""
    model = tmp_path / "a.gguf"
    model.write_bytes(b"one")

    def mark(takes: int = GIB, **changes: object) -> str:
        return marks(Ladder([Level("a", {RAM: takes}, 0.5, 1.0)]), [level(model=model, **changes)])["a"]

    before = mark()
    assert mark() == before
    others = {mark(takes=2 * GIB), mark(context_tokens=4096), mark(gpu_layers=3), mark(parallel=3)}
    model.write_bytes(b"two models")
    others.add(mark())
    model.unlink()
    others.add(mark())
    assert len(others - {before}) == 6


def test_what_stands_by_beside_a_level_is_part_of_it() -> None:
    """What was learned of the two is not true of one of them with another."""
    ladder = Ladder([Level("a", {RAM: GIB}, 0.5, 1.0, standby=True), Level("b", {RAM: 3 * GIB}, 0.5, 1.0)])
    one = marks(ladder, [level(standby=True), level(name="b")])
    other = marks(ladder, [level(standby=True, context_tokens=4096), level(name="b")])
    assert one["a"] != other["a"]
    assert one["b"] != other["b"]


def test_the_file_says_what_it_is(path: Path) -> None:
    """A person may look into it."""
    bench = Bench()
    kept = begun(path, bench)
    bench.read(2.0)
    kept.close()
    told = json.loads(path.read_bytes())
    assert (told["version"], told["state"], told["ended"]) == (1, "small", True)
