"""What commands say of what answers them and is not the daemon that they are made for: it may be one of another
version, such as one that still runs after an update, or another program, or it breaks off.
"""

from __future__ import annotations

import json
import socketserver
from typing import Any

import pytest

from scaler import __version__
from scaler.cli import advise, check, explain, pin, reload, status
from scaler.cli.daemon import OURS
from tests.cli.conftest import Run
from tests.discovery.servers import Answers, response, saying, speaking

ASKING = {
    "status": ("/status", [*OURS, *status.KEYS]),
    "explain": ("/status", [*OURS, *explain.KEYS, "policy"]),
    "check": ("/check", [*check.KEYS]),
    "advise": ("/advice", [*advise.KEYS]),
    "pin small": ("/pin", [*pin.KEYS]),
    "reload": ("/reload", [*reload.KEYS]),
}
"""Where each command asks, and what it needs of the answer."""
HELP = "give the daemon's address with --url, or start one at a free port with `scaler run --port`\n"


def scripted(answers: Answers) -> Any:
    """A server that answers so, by whichever method it is asked."""

    def talk(handler: socketserver.StreamRequestHandler, line: str) -> None:
        _, path, _ = line.split()
        known = path in answers
        handler.wfile.write(response(json.dumps(answers.get(path, {})).encode(), 200 if known else 404))

    return speaking(talk)


@pytest.mark.parametrize("command", ASKING)
def test_a_daemon_of_another_version_is_to_be_started_anew(scaler: Run, command: str) -> None:
    """It tells which one it is, whatever it was asked."""
    path, keys = ASKING[command]
    *known, lacking = keys
    stands = dict.fromkeys(OURS, "off") | {"version": "0.0.9"}
    with scripted({"/status": stands, path: {**stands, **dict.fromkeys(known)}}) as server:
        done = scaler(*command.split(), "--url", server.url)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(
        f"scaler: what answers at {server.url} is scaler 0.0.9, and this command {__version__} (its answer lacks "
    )
    assert done.stderr.endswith("); start the daemon anew, so that it is what is installed\n")
    assert lacking in done.stderr


def test_a_part_of_an_answer_that_older_daemons_lack_is_named(scaler: Run) -> None:
    """What can come only after the next level was once told nowhere; nor was the version."""
    answer = dict.fromkeys((*OURS, *explain.KEYS, "policy")) | {"next": {"level": None, "waits_for": []}}
    with scripted({"/status": answer}) as server:
        done = scaler("explain", "--url", server.url)
    assert done.returncode == 3
    assert f"is scaler of another version, and this command {__version__} (its answer lacks next.then); start" in (
        done.stderr
    )


@pytest.mark.parametrize("command", ["check", "check --json"])
@pytest.mark.parametrize("action", ["postpone", None, ["wait"]])
def test_a_check_that_says_what_no_check_of_ours_says_is_another_versions(
    scaler: Run, command: str, action: object
) -> None:
    """No yes, and no no: a script is not to take it for either."""
    stands = dict.fromkeys(OURS, "off") | {"version": "9.0.0"}
    check = {"action": action, "level": "small", "max_tokens": None, "reason": "later"}
    with scripted({"/status": stands, "/check": check}) as server:
        done = scaler(*command.split(), "--url", server.url)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"scaler: what answers at {server.url} is scaler 9.0.0, and this command {__version__} (its answer has the "
        f"action {str(action)!r}); start the daemon anew, so that it is what is installed\n"
    )


@pytest.mark.parametrize("command", [*ASKING, "chat hello"])
def test_another_program_is_no_scaler(scaler: Run, command: str) -> None:
    """Whatever it is asked."""
    with saying(response(b'{"hello": 1}')) as server:
        done = scaler(*command.split(), "--url", server.url)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"scaler: what answers at {server.url} is no scaler (its answer is ")
    assert done.stderr.endswith(f"); {HELP}")


@pytest.mark.parametrize("event", [b"nonsense", b"[]", b'{"error": "no"}', b'{"choices": []}'])
def test_a_stream_of_other_events_is_no_scalers(scaler: Run, event: bytes) -> None:
    """Told in a sentence."""
    with saying(response(b"data: " + event + b"\n\n", kind="text/event-stream")) as server:
        done = scaler("chat", "hello", "--url", server.url)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"scaler: what answers at {server.url} is no scaler (its answer is ")


def test_an_answer_that_breaks_off_is_none(scaler: Run) -> None:
    """As where nothing answers: exit code 4."""
    with saying(response(b"{}").replace(b"Length: 2", b"Length: 200")) as server:
        done = scaler("check", "--url", server.url)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"scaler: no daemon answers at {server.url}/check (")


def test_an_error_that_breaks_off_is_no_scalers(scaler: Run) -> None:
    """Its words are not known."""
    with saying(response(b'{"error": ', 500).replace(b"Length: 10", b"Length: 200")) as server:
        done = scaler("status", "--url", server.url)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"scaler: what answers at {server.url} is no scaler (500 X); {HELP}"
