"""The journal on a real file system: rotation, rights, power cuts, full disks, and reading it back."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler import journal as journal_module
from scaler.errors import ScalerError
from scaler.events import DecisionMade, Hurried, ModelDied, PinChanged, SwitchDone, SwitchFailed
from scaler.file_lock import locked
from scaler.journal import Journal, JournalError, Writer, read, record_of
from tests.decision.driver import GPU_LADDER, Driver, stalls


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Also with line ends and other scripts in them."""
    records: list[dict[str, Any]] = [
        {"n": 1},
        {"text": "two\nlines\u2028and\x85more"},
        {"level": "größer", "deep": [{"x": None}]},
    ]
    journal = Journal(tmp_path / "deep" / "er" / "journal.jsonl")
    for record in records:
        journal.write(record)
        assert list(read(journal.path))[-1] == record
    journal.close()
    assert list(read(journal.path)) == records


def test_nothing_is_created_before_the_first_record(tmp_path: Path) -> None:
    """A daemon that decides nothing leaves nothing behind; reading what is not there gives nothing."""
    journal = Journal(tmp_path / "state" / "journal.jsonl")
    assert list(read(journal.path)) == []
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_may_read_it_before_and_after_a_rotation(tmp_path: Path) -> None:
    """Decisions tell what a person does all day."""
    before = os.umask(0)
    try:
        journal = Journal(tmp_path / "state" / "journal.jsonl", max_bytes=200, files=3)
        for number in range(30):
            journal.write({"number": number})
        journal.close()
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in journal.path.parent.iterdir()}
    # The fourth is the lock.
    assert (modes, len(list(journal.path.parent.iterdir()))) == ({0o600}, 4)
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(files=st.integers(1, 5), max_bytes=st.integers(60, 400), sizes=st.lists(st.integers(0, 120), max_size=60))
def test_rotation_keeps_the_newest_records_in_order_and_within_bounds(
    tmp_path_factory: pytest.TempPathFactory, files: int, max_bytes: int, sizes: list[int]
) -> None:
    """The disk is never taken for more than was allowed, with one file as with many."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path, max_bytes=max_bytes, files=files)
    records = [{"number": number, "x": "x" * size} for number, size in enumerate(sizes)]
    for record in records:
        journal.write(record)
    journal.close()
    kept = list(read(path, files=files))
    assert kept == records[len(records) - len(kept) :]
    assert len(kept) >= min(1, len(records))
    on_disk = [part for part in path.parent.iterdir() if part.suffix != ".lock"]
    assert len(on_disk) <= files
    longest = max((len(json.dumps(record)) for record in records), default=0) + 1
    assert all(part.stat().st_size <= max(max_bytes, longest) for part in on_disk)


@pytest.mark.parametrize("cut", ['{"number":3,"te', '{"number":3}', "\0\0\0\0\0\0\0\0", '{"text":"\xc3'])
def test_a_last_line_that_a_power_cut_left_unfinished_is_passed_over(tmp_path: Path, cut: str) -> None:
    """The record before it is safe, and those that a later start appends are too."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"number":1}\n{"number":2}\n' + cut.encode("latin-1"))
    whole = [{"number": 1}, {"number": 2}]
    assert list(read(path))[:2] == whole
    assert list(read(path))[2:] in ([], [{"number": 3}])
    journal = Journal(path)
    journal.write({"number": 4})
    journal.close()
    numbers = [record["number"] for record in read(path)]
    assert numbers[0:2] == [1, 2]
    assert numbers[-1] == 4
    assert len(numbers) <= 4


def test_a_file_that_is_one_unfinished_line_is_begun_anew(tmp_path: Path) -> None:
    """A power cut at the very first record."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"numb')
    journal = Journal(path)
    journal.write({"number": 1})
    journal.close()
    assert list(read(path)) == [{"number": 1}]


@pytest.mark.parametrize("line", [b"hello", b"[1]", b"3", b"null", b"\xff\xfe{}", b""])
def test_any_other_line_that_is_no_record_is_told_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    """Somebody edited the file; silence would hide what is lost."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"number":1}\n' + line + b'\n{"number":2}\n')
    records = read(path)
    assert next(records) == {"number": 1}
    with pytest.raises(JournalError, match=r"journal\.jsonl:2: .*expected one (JSON )?object a line"):
        next(records)


def test_a_journal_that_cannot_be_read_or_written_names_the_file_and_the_cause(tmp_path: Path) -> None:
    """Here a folder lies where the file should."""
    (tmp_path / "journal.jsonl").mkdir()
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(JournalError, match=r"journal\.jsonl: Is a directory; free some space or set journal\.path"):
        journal.write({"number": 1})
    with pytest.raises(JournalError, match=r"journal\.jsonl: Is a directory"):
        list(read(journal.path))
    blocked = Journal(tmp_path / "file" / "journal.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"file/journal\.jsonl"):
        blocked.write({"number": 1})
    assert issubclass(JournalError, ScalerError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_with_what_to_do_on_every_write(tmp_path: Path) -> None:
    """`/dev/full` is the disk that is always full. What was told as lost is not tried again at the end."""
    path = tmp_path / "journal.jsonl"
    path.symlink_to("/dev/full")
    journal = Journal(path)
    for number in range(3):
        with pytest.raises(JournalError, match=r"No space left on device; free some space or set journal\.path"):
            journal.write({"number": number})
    journal.close()


LIMITED = """
import resource, signal, sys
from pathlib import Path
from scaler.journal import Journal, JournalError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
failed = 0
for number in range(100):
    if number == 40:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
    if number == 60:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        journal.write({"number": number})
    except JournalError as error:
        assert "File too large" in str(error), error
        failed += 1
journal.close()
print(failed)
"""


def test_after_the_disk_was_full_the_journal_goes_on_and_stays_readable(tmp_path: Path) -> None:
    """A record that was cut in the middle must not take the next one with it."""
    path = tmp_path / "journal.jsonl"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    numbers = [record["number"] for record in read(path)]
    assert int(done.stdout) == 20
    assert numbers == sorted(numbers)
    assert set(range(20)) | set(range(60, 100)) <= set(numbers)


def test_writers_on_many_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    """Also while the file rotates under them."""
    journal = Journal(tmp_path / "journal.jsonl", max_bytes=20_000, files=50)
    threads = [
        threading.Thread(target=lambda who=who: [journal.write({"who": who, "n": n}) for n in range(200)])
        for who in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    records = list(read(journal.path, files=50))
    for who in range(4):
        assert [record["n"] for record in records if record["who"] == who] == list(range(200))


def test_programs_that_share_it_keep_what_each_wrote_last_in_order(tmp_path: Path) -> None:
    """One that seldom writes would else go on in a file that the other's rotations have deleted."""
    path = tmp_path / "journal.jsonl"
    seldom, often = (Journal(path, max_bytes=600, files=3, writer=Writer(name, 7)) for name in ("seldom", "often"))
    number = 0
    for _ in range(5):
        for journal in (seldom, *[often] * 60):
            journal.write({"number": number})
            number += 1
    seldom.write({"number": number})
    kept = list(read(path, files=3))
    assert [record["number"] for record in kept] == list(range(number + 1))[-len(kept) :]
    assert len(kept) > 20
    assert kept[-2:] == [
        {"number": number - 1, "program": "often", "pid": 7},
        {"number": number, "program": "seldom", "pid": 7},
    ]
    for journal in (seldom, often):
        journal.close()


def test_what_another_program_has_just_begun_anew_is_not_begun_anew_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one file only, its first record would be lost to who saw the file full as well."""
    path = tmp_path / "journal.jsonl"
    one, other = (Journal(path, max_bytes=400, files=1, writer=Writer(name, 7)) for name in ("one", "two"))
    for number in range(10):
        (one, other)[number % 2].write({"number": number})

    def when_the_other_has_done(lock: Path, *, wait: bool) -> int | None:
        monkeypatch.setattr(journal_module, "locked", locked)
        other.write({"number": 10})
        return locked(lock, wait=wait)

    monkeypatch.setattr(journal_module, "locked", when_the_other_has_done)
    one.write({"number": 11})
    assert [(record["program"], record["number"]) for record in read(path)] == [("two", 10), ("one", 11)]
    for journal in (one, other):
        journal.close()


def test_where_the_file_system_has_no_locks_it_rotates_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network's disk whose server has none: the journal would end with its first full file."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    journal = Journal(tmp_path / "journal.jsonl", max_bytes=200, files=3)
    for number in range(60):
        journal.write({"number": number})
    journal.close()
    kept = [record["number"] for record in read(journal.path, files=3)]
    assert kept == list(range(60))[-len(kept) :]
    assert sum(part.stat().st_size for part in tmp_path.iterdir()) <= 600


def test_a_file_that_cannot_be_moved_goes_on_and_no_older_one_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows while another program has it open."""
    journal = Journal(tmp_path / "journal.jsonl", max_bytes=400, files=3)
    for number in range(60):
        journal.write({"number": number})
    kept = list(read(journal.path, files=3))
    rename = os.rename

    def refuse(source: str, dest: str) -> None:
        if source == str(journal.path):
            raise PermissionError(13, "used by another process")
        rename(source, dest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        for number in range(60, 120):
            journal.write({"number": number})
    assert list(read(journal.path, files=3)) == [*kept, *({"number": number} for number in range(60, 120))]
    journal.write({"number": 120})
    assert [record["number"] for record in read(journal.path, files=3)][-61:] == list(range(60, 121))
    assert journal.path.stat().st_size < 400
    journal.close()


def test_a_journal_that_somebody_deleted_is_begun_anew(tmp_path: Path) -> None:
    """With its folder, for its owner only, while the daemon goes on."""
    journal = Journal(tmp_path / "state" / "journal.jsonl")
    journal.write({"number": 1})
    journal.path.unlink()
    journal.path.parent.rmdir()
    journal.write({"number": 2})
    assert list(read(journal.path)) == [{"number": 2}]
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700
    journal.close()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["private/my_app.py", "--key", "secret"], "my_app.py"),
        (["-m", "private.package"], "package"),
        (["-m", "private.my_app"], "my_app.py"),
        (["-c", "from scaler.journal import this_program; print(*this_program())"], Path(sys.executable).name),
    ],
    ids=["script", "package", "module", "no script"],
)
def test_a_program_is_named_by_its_script_and_nothing_private(tmp_path: Path, command: list[str], name: str) -> None:
    """Folders have people's names, and arguments secrets."""
    code = "from scaler.journal import this_program; print(*this_program())"
    for file in ("my_app.py", "package/__main__.py"):
        path = tmp_path / "private" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as program:
        said, _ = program.communicate()
    assert said == f"{name} {program.pid}\n"


def test_threads_that_write_the_first_record_together_open_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two handles on one file would rotate it under each other."""
    opened: list[str] = []
    plain = journal_module._Lines._open
    monkeypatch.setattr(journal_module._Lines, "_open", lambda lines: opened.append(lines.baseFilename) or plain(lines))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for attempt in range(100):
            journal = Journal(tmp_path / f"{attempt}.jsonl")
            together = threading.Barrier(4)
            threads = [
                threading.Thread(target=lambda j=journal, b=together: (b.wait(), j.write({"n": 1}))) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            journal.close()
    finally:
        sys.setswitchinterval(before)
    assert len(opened) == len(set(opened)) == 100


def test_a_decision_is_kept_with_all_that_led_to_it() -> None:
    """Reading, projected usage, every guard's sentence, and what the effects were asked."""
    drive = Driver(GPU_LADDER, initial="large")
    drive.read_gpu(4, 1, 10)
    drive.now_s += 1
    drive.observe(drive.reading(15, gpus=drive.gpu(15), pressure=stalls(0.5), wall_s=1.7e9))
    switch = drive.switches[-1]
    record = record_of(DecisionMade(switch, 1_700_000_000.25), 0.0)
    assert record is not None
    record = json.loads(json.dumps(record, allow_nan=False))
    assert record["at"] == "2023-11-14T22:13:20.250+00:00"
    assert record["event"] == "decision"
    assert (record["source"], record["dest"], record["trigger"]) == ("large", "small", "observe")
    assert record["reason"] in record["reasons"]
    assert set(record["projected"]) == set(GPU_LADDER.names)
    reading = drive.machine.evidence.reading
    assert reading is not None
    assert record["reading"] == json.loads(json.dumps(asdict(reading)))
    assert {finding["level"] for finding in record["findings"]} >= {"small", "medium"}
    assert {"guard", "level", "holds", "sentence"} == set(record["findings"][0])
    assert (record["beside"], record["drain_s"], record["drain_tokens"]) == (
        switch.beside,
        switch.drain_s,
        switch.drain_tokens,
    )
    assert (record["ticket"], record["at_s"]) == (switch.ticket, drive.now_s)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (SwitchDone(3, "small", "large", 1.5, None), {"event": "switched", "ticket": 3, "load_s": None}),
        (SwitchFailed(4, "large", "small", "no"), {"event": "switch_failed", "still_serving": "small", "reason": "no"}),
        (ModelDied("large", "killed"), {"event": "died", "level": "large", "reason": "killed"}),
        (PinChanged(None), {"event": "pin", "level": None}),
    ],
)
def test_outcomes_are_kept_too(event: object, expected: dict[str, Any]) -> None:
    """What became of a decision belongs beside it."""
    record = record_of(event, 1.7e9)
    assert record is not None
    assert record["at"].startswith("2023-11-14T22:13:20.000")
    assert expected.items() <= record.items()


def test_a_hurried_switch_is_kept_and_readings_are_not() -> None:
    """Readings come every second; the decisions carry those that mattered."""
    drive = Driver(initial="large", answer=lambda _: False)
    drive.read(8, 5)
    drive.read(11)
    record = record_of(Hurried(drive.hurried[0]), 1.7e9)
    assert record is not None
    assert (record["event"], record["switch"]["drain_s"]) == ("hurried", 2.0)
    assert record_of(drive.machine.evidence.reading, 1.7e9) is None
