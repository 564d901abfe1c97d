"""What commands say and are told, over streams that are not as one would wish: another encoding, full, closed."""

from __future__ import annotations

import errno
import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scaler.cli import main
from tests.cli.conftest import SCALER, Run
from tests.discovery.servers import answering, response, saying, speaking

FULL = Path("/dev/full")
"""The disk that is always full."""
LOST = "scaler: not all could be written to the standard output: No space left on device\n"
CHECK = {"action": "serve", "level": "small", "max_tokens": None, "reason": "it fits"}

needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
needs_shell = pytest.mark.skipif(sys.platform == "win32", reason="the shell of Windows closes no streams")


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest, places: dict[str, str]) -> dict[str, str]:
    """An environment in which what is said is held back for a while, and one in which it is not."""
    return {**places, "PYTHONUNBUFFERED": request.param}


def test_an_encoding_that_lacks_a_character_loses_nothing(scaler: Run, tmp_path: Path) -> None:
    """The arrow of a decision is in no encoding of Windows."""
    decision = {"ticket": 1, "source": "small", "dest": "größer", "reason": "it fits"}
    journal = tmp_path / "journal.jsonl"
    journal.write_text(json.dumps({"at": "2026-11-23T12:00:00+00:00", "event": "decision", **decision}) + "\n")
    done = scaler("history", "--path", str(journal), env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2026-11-23 12:00:00  small \\u2192 gr\\xf6\\xdfer: it fits [not finished]\n"


def test_a_question_in_another_encoding_is_asked_all_the_same(places: dict[str, str]) -> None:
    """What cannot be read of it is marked; the rest is what was asked for."""
    asked: list[str] = []

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"])
            answer = {"model": "small", "choices": [{"delta": {"content": "Yes."}}]}
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = subprocess.run(
            [*SCALER, "chat", "--url", f"127.0.0.1:{server.server_port}"],
            input=b"gr\xfc\xdfe\n",
            capture_output=True,
            env={**places, "PYTHONIOENCODING": "utf-8"},
            timeout=60,
        )
        thread.join()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Yes.\n", b"")
    assert asked == ["gr\ufffd\ufffde"]


@needs_full
@pytest.mark.parametrize(
    "command",
    [("check",), ("tier",), ("config", "schema"), ("diagram",), ("--help",), ("--version",), ("check", "--help")],
    ids=" ".join,
)
def test_an_answer_that_cannot_be_written_is_a_failure(command: tuple[str, ...], buffering: dict[str, str]) -> None:
    """And no `no`: exit code 3, in one message."""
    with answering({"/check": CHECK}) as server, FULL.open("wb") as full:
        where = ("--url", server.url) if command == ("check",) else ()
        done = subprocess.run(
            [*SCALER, *command, *where], stdout=full, stderr=subprocess.PIPE, env=buffering, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (3, LOST)


@needs_full
@pytest.mark.parametrize("command", [("history", "--last", "0"), ("history", "--nonsense"), ()], ids=" ".join)
def test_an_error_that_cannot_be_written_keeps_its_exit_code(
    command: tuple[str, ...], buffering: dict[str, str]
) -> None:
    """Where nothing can be said, it says all."""
    with FULL.open("wb") as full:
        done = subprocess.run([*SCALER, *command], stdout=full, stderr=full, env=buffering, timeout=60)
    assert done.returncode == 2


@needs_shell
@pytest.mark.parametrize(
    ("closed", "command", "code"),
    [
        (">&-", "config schema", 0),
        ("<&- >&- 2>&-", "tier --list", 0),
        ("2>&-", "history --last 0", 2),
        ("<&-", "chat --url 127.0.0.1:9", 0),
    ],
)
def test_who_closed_a_stream_wants_nothing_of_it(closed: str, command: str, code: int, places: dict[str, str]) -> None:
    """And gets the rest: nothing that was for one stream comes out of another."""
    words = " ".join((*(f"'{word}'" for word in SCALER), command, closed))
    done = subprocess.run(["sh", "-c", words], capture_output=True, env=places, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_fault_of_another_kind_is_not_put_down_to_the_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown whole, for whoever mends it."""

    def fails(_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("scaler.cli.service.unit", fails)
    with pytest.raises(OSError, match="No space left"):
        main(["service"])


def test_what_a_reload_tells_is_no_command_to_the_terminal(scaler: Run) -> None:
    """Files, levels and values are whatever somebody called them."""
    change = {"key": "ladder", "before": "\x1b[31ma", "after": "b\nlarge serves now"}
    done = {"file": "\x1b]0;f\x07", "changes": [], "unpinned": "\x1b[1mx", "restart": ["\x1b[2m"]}

    def talk(handler: socketserver.StreamRequestHandler, line: str) -> None:
        assert line.startswith("POST /reload")
        handler.wfile.write(
            response(json.dumps({**done, "changes": [change] if len(server.asked) > 1 else []}).encode())
        )

    with speaking(talk) as server:
        first, second = (scaler("reload", "--url", server.url) for _ in range(2))
    assert first.stdout == (
        "nothing that applies at once has changed in \\x1b]0;f\\x07\n"
        "unpinned: \\x1b[1mx may not be served any more\nafter a restart only: \\x1b[2m\n"
    )
    assert second.stdout.startswith("ladder: \\x1b[31ma → b\\nlarge serves now\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such terminal on Windows")
def test_why_a_question_was_not_answered_is_no_command_to_the_terminal(places: dict[str, str]) -> None:
    """A model's server says that, and the conversation goes on."""
    events = b'data: {"error": {"message": "\\u001b[2Jno room"}}\n\n'
    with saying(response(events, kind="text/event-stream")) as server:
        ours, theirs = os.openpty()
        with subprocess.Popen(
            [*SCALER, "chat", "--url", server.url], env=places, stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.close(theirs)
            os.write(ours, b"hello\n/quit\n")
            said = b""
            while b"you> " not in said.partition(b"scaler: ")[2]:
                said += os.read(ours, 4096)
            assert process.wait(60) == 0
        os.close(ours)
    assert b"scaler: \\x1b[2Jno room\r\n" in said
    assert b"\x1b" not in said
