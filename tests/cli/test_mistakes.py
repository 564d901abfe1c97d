"""What a newcomer gets wrong: one message that helps, and an exit code that says so."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaler import __version__
from scaler.serving.address import check_free
from tests.cli.conftest import Run


@pytest.fixture(params=[b"<html>hello</html>", b'{"hello": 1}', b"[]"])
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a web server that is no scaler, though it may speak JSON."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(request.param)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_bare_name_shows_what_there_is(scaler: Run) -> None:
    """Still wrong usage, for scripts; the version can be asked for."""
    bare = scaler()
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "Start with `scaler run`" in bare.stderr
    assert scaler("--version").stdout == f"scaler {__version__}\n"


def test_an_address_is_taken_as_people_write_it(scaler: Run, stranger: str) -> None:
    """Without a scheme it is http; what is no address is said to be none, and what is no scaler, too."""
    told = scaler("status", "--url", stranger)
    assert told.returncode == 3
    assert f"http://{stranger} is no scaler" in told.stderr
    told = scaler("status", "--url", "ftp://127.0.0.1")
    assert told.returncode == 2
    assert "expected an address such as" in told.stderr
    assert scaler("status", "--url", "127.0.0.1:9").returncode == 4
    told = scaler("explain", "--url", stranger)
    assert told.returncode == 3
    assert "is no scaler" in told.stderr


@pytest.mark.parametrize(
    "url", ["http://a..b:80", "http://127.0.0.1:1/ü", "http://", "127.0.0.1:port", "http://[::1", "a b"]
)
def test_what_is_no_address_is_told_in_one_message(scaler: Run, url: str) -> None:
    """As wrong usage, before anyone is asked."""
    told = scaler("check", "--url", url)
    given = url if "://" in url else f"http://{url}"
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == (
        f"scaler: --url: {given!r} is no address of a web server; expected an address such as http://127.0.0.1:8484\n"
    )


@pytest.mark.parametrize("host", ["nobody.invalid", "a..b"])
def test_a_name_that_no_machine_has_is_told_in_words(
    scaler: Run, own_config: Callable[[str], Path], tmp_path: Path, host: str
) -> None:
    """And not by a number that is none of the system's errors."""
    token = tmp_path / "token"
    token.write_text("x" * 40)
    token.chmod(0o600)
    level = {"name": "a", "runtime": "openai", "url": "http://127.0.0.1:9/v1", "model": "m"}
    own_config(json.dumps({"server": {"token_file": str(token)}, "ladder": [level]}))
    with pytest.raises(socket.gaierror) as unknown:
        check_free(host, 1)
    told = scaler("run", "--host", host, "--port", "1")
    assert (told.returncode, told.stderr.count("\n")) == (3, 1), told.stderr
    assert told.stderr.startswith(f"scaler: cannot listen on {host}:1: {unknown.value.strerror}; choose another")


def test_run_says_who_has_the_port_before_anything_begins(scaler: Run, stranger: str, tmp_path: Path) -> None:
    """One message, and nothing is made or kept."""
    told = scaler("run", "--port", stranger.partition(":")[2])
    assert (told.returncode, told.stdout) == (3, ""), told.stderr
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"scaler: {stranger} is taken by ")
    assert f"(process {os.getpid()}); end that program, or choose another port: --port" in line
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "state").exists()


def test_run_refuses_a_port_that_there_is_not(scaler: Run) -> None:
    """As wrong usage."""
    told = scaler("run", "--port", "99999")
    assert told.returncode == 2
    assert told.stderr == "scaler: --port: 99999 cannot be used; expected a whole number from 0 to 65535\n"


def test_check_tells_models_that_are_not_there_or_none(
    scaler: Run, own_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """All that are absent; a file that is no model; levels in the wrong order."""

    def told(*levels: dict[str, object]) -> str:
        own_config(json.dumps({"ladder": levels}))
        done = scaler("config", "check")
        assert (done.returncode, done.stdout) == (2, "")
        assert json.loads(scaler("config", "check", "--json").stdout)["error"] in done.stderr
        return done.stderr

    absent = told({"name": "a", "model": "a b.gguf", "ram_gib": 1}, {"name": "b", "model": "b.gguf"})
    assert absent.count("no such file") == 2
    assert "a b.gguf" in absent
    other = tmp_path / "other.gguf"
    other.write_text("not a model")
    assert "not a whole GGUF file" in told({"name": "a", "model": str(other)})
    assert "smallest" in told(
        {"name": "a", "model": str(other), "ram_gib": 2}, {"name": "b", "model": str(other), "ram_gib": 1}
    )


def test_a_web_server_that_knows_no_such_page_is_no_scaler(scaler: Run) -> None:
    """Nor does it make a daemon of it that it answers; what to do is said."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        told = scaler("status", "--url", url)
        server.shutdown()
        thread.join()
    assert (told.returncode, told.stdout) == (3, "")
    assert told.stderr == (
        f"scaler: what answers at {url} is no scaler (501 Unsupported method ('GET')); give the daemon's address with "
        "--url, or start one at a free port with `scaler run --port`\n"
    )


def test_a_reload_that_finds_nobody_asks_whether_the_address_was_changed(
    scaler: Run, own_config: Callable[[str], Path]
) -> None:
    """The likely cause, unless the address was given by hand."""
    own_config("server: {port: 9}")
    told = scaler("reload")
    assert told.returncode == 4
    assert "if one runs and `server` was changed since, it listens where it did: give that address" in told.stderr
    assert "was changed" not in scaler("reload", "--url", "127.0.0.1:9").stderr
    assert "was changed" not in scaler("status").stderr
