"""Who may come in, and what it costs those inside when strangers knock: over real sockets, on a real endpoint."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai
import psutil
import pytest

from scaler.errors import ConfigError
from scaler.serving.app import MAX_BODY_BYTES, Endpoint
from tests.end_to_end.test_endpoint import MESSAGES, client
from tests.end_to_end.test_processes import running as scaler_run
from tests.processes import gone

Running = Callable[..., Any]
TOKEN = "correct-horse-battery-staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
CHAT = json.dumps({"messages": MESSAGES, "max_tokens": 4}).encode()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCALER_TOKEN", raising=False)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A token, as a person makes one."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@contextmanager
def asked(
    url: str, path: str, headers: dict[str, str] | None = None, *, method: str = "GET", body: bytes | None = None
) -> Iterator[HTTPResponse]:
    """The answer to a request with these headers only; a Host among them is the only one."""
    connection = HTTPConnection(*address(url), timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        yield connection.getresponse()
    finally:
        connection.close()


def status(url: str, path: str, headers: dict[str, str] | None = None, **besides: Any) -> int:
    with asked(url, path, headers, **besides) as answer:
        return answer.status


# ---------------------------------------------------------------- the token


def test_without_the_token_nothing_is_answered_in_either_dialect(serving: Running, token_file: Path) -> None:
    """Not the state, not the models, not the health: each in the form that its clients understand."""
    with serving(server={"token_file": str(token_file)}) as (url, _, _):
        for path in (
            "/status",
            "/v1/models",
            "/healthz",
            "/events",
            "/openapi.json",
            "/nowhere",
            "/api/tags",
            "/history",
        ):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                with asked(url, path, headers) as answer:
                    assert (answer.status, answer.getheader("WWW-Authenticate")) == (401, 'Bearer realm="scaler"')
                    error = json.load(answer)["error"]
                    message = error if path.startswith("/api") else error["message"]
                    assert "Authorization: Bearer" in message
                    assert TOKEN not in message
        # The page has nothing of this machine in it; what it asks for has.
        assert status(url, "/") == 200
        assert status(url, "/", method="HEAD") == status(url, "/", method="POST", body=b"") == 401
        assert status(url, "/status", BEARER) == 200
        assert status(url, "/api/tags", {"Authorization": f"bearer {TOKEN}"}) == 200
        assert status(url, "/status", {"Authorization": "Bearer \xff\xfe"}) == 401


def test_the_official_client_brings_the_token_as_its_api_key(serving: Running, token_file: Path) -> None:
    """What people have works with no more than the key set."""
    with serving(server={"token_file": str(token_file)}) as (url, _, _):
        talk = openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0)
        assert "auto" in [model.id for model in talk.models.list()]
        with pytest.raises(openai.AuthenticationError):
            client(url).models.list()


def test_the_environments_token_goes_before_the_files(
    serving: Running, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container."""
    monkeypatch.setenv("SCALER_TOKEN", "another-one-of-24-letters")
    with serving(server={"token_file": str(token_file)}) as (url, _, _):
        assert status(url, "/status", BEARER) == 401
        assert status(url, "/status", {"Authorization": "Bearer another-one-of-24-letters"}) == 200


def test_off_loopback_it_does_not_start_without_a_token(running: Running, token_file: Path) -> None:
    """And says where, why, and how to make one."""
    with running() as (manager, _), pytest.raises(ConfigError) as raised:
        Endpoint(manager, "0.0.0.0", 0)
    said = str(raised.value)
    assert re.match(r".*scaler\.yaml:\d+: server\.host: ", said)
    assert "server.token_file" in said
    assert "secrets.token_urlsafe" in said
    with running(server={"token_file": str(token_file)}) as (manager, _):
        endpoint = Endpoint(manager, "0.0.0.0", 0)
        endpoint.start()
        try:
            assert status(endpoint.url, "/status", BEARER) == 200
            assert status(endpoint.url, "/status", BEARER | {"Host": socket.gethostname()}) == 200
        finally:
            endpoint.stop()


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"short", 0o600, "expected 16 or more"),
        (b"", 0o600, "expected 16 or more"),
        (b"with a space in the middle of it", 0o600, "without a space"),
        ("für-immer-und-immer-wieder".encode(), 0o600, "expected 16 or more"),
        (b"a" * 10_000, 0o644, "others may read"),
        (TOKEN.encode(), 0o640, "others may read or write it (its mode is 0640); chmod 600 it"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_a_token_that_is_none_is_refused_without_being_shown(
    running: Running, tmp_path: Path, content: bytes | None, mode: int, words: str
) -> None:
    """The message names the file."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with running(server={"token_file": str(path)}) as (manager, _), pytest.raises(ConfigError) as raised:
        Endpoint(manager, "127.0.0.1", 0)
    said = str(raised.value)
    assert words in said
    assert f"{path} (server.token_file)" in said
    assert not content or content.decode() not in said


# ---------------------------------------------------------------- names and pages


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8484", 200),
        ("localhost", 200),
        ("LOCALHOST.:80", 200),
        ("[::1]:8484", 200),
        ("192.168.1.5:8484", 200),
        ("scaler.lan", 200),
        ("evil.example", 403),
        ("evil.example:8484", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("evil.example/localhost", 403),
        ("localhost:port", 403),
        ("", 403),
    ],
)
def test_only_its_own_names_lead_here(serving: Running, host: str, expected: int) -> None:
    """A page whose name was made to lead here (DNS rebinding) has its own name in Host, and is refused."""
    with serving(server={"allow_hosts": ["scaler.lan"]}) as (url, _, _), asked(url, "/status", {"Host": host}) as got:
        assert got.status == expected
        assert expected == 200 or "server.allow_hosts" in json.load(got)["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_foreign_page_can_neither_ask_nor_change_anything(serving: Running, headers: dict[str, str]) -> None:
    """Not even in the ways for which a browser asks no leave: a plain text that is posted, a picture's address."""
    with serving() as (url, manager, _):
        plain = {"Content-Type": "text/plain"}
        assert status(url, "/v1/chat/completions", headers | plain, method="POST", body=CHAT) == 403
        assert status(url, "/api/chat", headers | plain, method="POST", body=CHAT) == 403
        assert status(url, "/pin", headers | plain, method="PUT", body=b'{"level": "small"}') == 403
        for path in ("/status", "/events", "/api/tags"):
            with asked(url, path, headers) as answer:
                assert answer.status == 403
                assert answer.getheader("Access-Control-Allow-Origin") is None
        with asked(url, "/pin", headers | {"Access-Control-Request-Method": "PUT"}, method="OPTIONS") as answer:
            assert answer.status == 403
        assert manager.scaler.status().pinned is None


FOLLOWED = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
"""What a browser sends when somebody follows a link of another site."""


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_whoever_follows_another_sites_link_gets_the_page(serving: Running, token_file: Path, site: str) -> None:
    """From a README, a wiki, Grafana: its words, and with a token as without one nothing of the machine."""
    for server in ({}, {"token_file": str(token_file)}):
        with (
            serving(server=server) as (url, _, _),
            asked(url, "/", FOLLOWED | {"Sec-Fetch-Site": site, "Sec-Fetch-User": "?1"}) as answer,
        ):
            assert (answer.status, answer.getheader("Content-Type")) == (200, "text/html; charset=utf-8")
            assert "frame-ancestors 'none'" in str(answer.getheader("Content-Security-Policy"))
            assert answer.getheader("Cross-Origin-Opener-Policy") == "same-origin"
            assert answer.getheader("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {"Sec-Fetch-Dest": "iframe"}),
        ("GET", "/", {"Sec-Fetch-Dest": "object"}),
        ("GET", "/", {"Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "no-cors", "Sec-Purpose": "prefetch"}),
        ("GET", "/", {"Sec-Fetch-Mode": "cors"}),
        ("GET", "/", {"Origin": "null"}),
        ("GET", "/", {"Origin": "https://evil.example"}),
        ("GET", "/", {"Host": "evil.example"}),
        ("GET", "/?level=small", {}),
        ("GET", "//", {}),
        ("GET", "/status", {}),
        ("GET", "/v1/models", {}),
        ("GET", "/api/tags", {}),
        ("GET", "/events", {}),
        ("GET", "/history", {}),
        ("GET", "/metrics", {}),
        ("GET", "/page/page.js", {}),
        ("HEAD", "/", {}),
        ("POST", "/", {}),
        ("POST", "/reload", {}),
        ("DELETE", "/pin", {}),
    ],
)
def test_a_link_leads_to_the_page_and_nowhere_else(
    serving: Running, method: str, path: str, headers: dict[str, str]
) -> None:
    """No frame, no fetching ahead, no form that is sent, no other route, and no name that was made to lead here."""
    with serving() as (url, _, _):
        assert status(url, path, FOLLOWED | headers, method=method) == 403


@pytest.mark.parametrize("purpose", ["prefetch", "prefetch;prerender", "prefetch;anonymous-client-ip"])
@pytest.mark.parametrize("site", ["none", "cross-site", "same-origin"])
def test_nothing_is_given_to_a_browser_that_fetches_ahead(serving: Running, purpose: str, site: str) -> None:
    """Another site's page may have it do that, and it may not say so; whoever goes there by themselves is let in."""
    gone = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    with serving() as (url, _, _):
        for path in ("/", "/status", "/check", "/advice", "/events", "/v1/models"):
            assert status(url, path, gone | {"Sec-Purpose": purpose}) == 403
        assert status(url, "/", gone) == 200


def test_its_own_pages_and_plain_programs_come_in(serving: Running) -> None:
    """A page of the same origin, a person who types the address, curl without a header."""
    with serving() as (url, _, watch):
        # Before the first reading a pin is refused.
        watch.readings(1)
        own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
        assert status(url, "/pin", own | JSON, method="PUT", body=b'{"level": "small"}') == 200
        assert status(url, "/status", {"Sec-Fetch-Site": "none"}) == 200
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert status(url, "/api/show", form, method="POST", body=b'{"model": "auto"}') == 200


def test_origins_that_the_person_allows_may_ask_and_read(serving: Running, token_file: Path) -> None:
    """With the leave that a browser asks for first, which brings no token; the request itself must."""
    origins = ["http://localhost:3000", "chrome-extension://*", "null"]
    with serving(server={"allow_origins": origins, "token_file": str(token_file)}) as (url, _, _):
        for origin in ("http://localhost:3000", "chrome-extension://abc", "null"):
            page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            wants = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization,x-a"}
            with asked(url, "/pin", page | wants, method="OPTIONS") as answer:
                assert answer.status == 204
                assert answer.getheader("Access-Control-Allow-Origin") == origin
                assert answer.getheader("Access-Control-Allow-Headers") == "authorization,x-a"
            with asked(url, "/v1/models", page) as answer:
                assert answer.status == 401
            with asked(url, "/events", page | BEARER) as answer:
                assert (answer.status, answer.getheader("Access-Control-Allow-Origin")) == (200, origin)
                assert answer.getheader("Vary") == "Origin"
        assert status(url, "/v1/models", BEARER | {"Origin": "http://localhost:3001"}) == 403
        assert status(url, "/v1/models", BEARER | {"Origin": "moz-extension://abc"}) == 403


# ---------------------------------------------------------------- bounds


def until_closed(sockets: list[socket.socket], limit_s: float) -> float:
    """Seconds until the other side has closed them all."""
    began = time.monotonic()
    for one in sockets:
        one.settimeout(limit_s)
        try:
            while one.recv(4096):
                pass
        except ConnectionError:
            pass
    return time.monotonic() - began


def test_two_hundred_slow_connections_keep_nobody_out(serving: Running) -> None:
    """Each has begun a request and never ends it; an honest client is answered, and they are closed in time."""
    receive_s = 2.0
    with serving(server={"receive_s": receive_s, "max_connections": 256}) as (url, _, _):
        begun = time.monotonic()
        slow = [socket.create_connection(address(url)) for _ in range(200)]
        for number, one in enumerate(slow):
            body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            # On a machine that has more to do, the time of the first is over before the last has come.
            with suppress(ConnectionError):
                one.sendall(body + (b"Content-Length: 100\r\n\r\n{" if number % 2 else b"X-A: b\r\n"))
        assert status(url, "/status") == 200
        assert client(url).chat.completions.create(model="auto", messages=MESSAGES, max_tokens=4).choices
        took = until_closed(slow, 30.0)
        assert time.monotonic() - begun < receive_s + 20
        assert took < 20
        for one in slow:
            one.close()


def test_bytes_that_trickle_in_do_not_buy_more_time(serving: Running) -> None:
    """The time is for the whole head, not from one byte to the next; also on a connection that was answered before."""
    with serving(server={"receive_s": 1.0}) as (url, _, _), socket.create_connection(address(url)) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert one.recv(4096).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        one.settimeout(0.2)
        with pytest.raises(ConnectionError):  # noqa: PT012  # whichever of them it is that fails
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ")
            while time.monotonic() - began < 20:
                one.sendall(b"a")
                try:
                    if not one.recv(4096):
                        raise ConnectionResetError
                except TimeoutError:
                    pass
        assert time.monotonic() - began < 10


def test_when_all_places_are_taken_one_that_asks_for_nothing_makes_room(serving: Running) -> None:
    """The honest client comes in at once, and not after the strangers' time is over."""
    with serving(server={"max_connections": 8, "receive_s": 60}) as (url, _, _):
        idle = [socket.create_connection(address(url)) for _ in range(40)]
        try:
            assert status(url, "/status") == 200
            gone = [one for one in idle if closed(one)]
            assert len(gone) >= 32
        finally:
            for one in idle:
                one.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lowers another process's limits")
def test_strangers_leave_the_descriptors_that_a_model_takes(configure: Callable[..., Path]) -> None:
    """More of them than files may be open: the model dies, another is started, and it answers."""
    with scaler_run(configure()) as daemon:
        psutil.Process(daemon.process.pid).rlimit(psutil.RLIMIT_NOFILE, (128, 1024))
        daemon.who_speaks()
        crowd = [socket.create_connection(address(daemon.url)) for _ in range(300)]
        try:
            assert daemon.get("/status")["serving"] != "off"
            for _ in range(3):
                models = daemon.models()
                assert models
                for model in models:
                    # One that gives way to the next just now may have ended.
                    with suppress(psutil.NoSuchProcess):
                        model.kill()
                assert gone(models)
                assert daemon.who_speaks().split()[0] == "The"
        finally:
            for one in crowd:
                one.close()


def closed(one: socket.socket) -> bool:
    one.settimeout(0.05)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_when_every_place_is_taken_by_an_answer_one_more_is_told_so(serving: Running) -> None:
    """What is being answered is not broken off for a newcomer."""

    async def fill(url: str) -> tuple[list[int], int]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            held = [await session.get(f"{url}/events") for _ in range(4)]
            async with session.get(f"{url}/status") as refused:
                text = await refused.text()
                assert "too many connections" in text
            told = [len(await one.content.readany()) for one in held]
            for one in held:
                one.close()
            return told, refused.status

    with serving(server={"max_connections": 4}) as (url, _, _):
        told, refused = asyncio.run(fill(url))
        assert refused == 503
        assert all(told)


def test_a_body_that_does_not_come_is_given_up(serving: Running) -> None:
    """With a word, for there is somebody who may listen."""
    with serving(server={"receive_s": 0.5}) as (url, _, _), socket.create_connection(address(url)) as one:
        one.settimeout(30)
        one.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = one.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come within 0.5 s" in answer


@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (400,)),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", (400,)),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 2000 + b"\r\n", (400,)),
        (
            f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(),
            (413,),
        ),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", (400,)),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e9\r\n\r\n", (400,)),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (400,)),
        (
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc",
            (400,),
        ),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", (400,)),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", (400, 403)),
        (b"GET / HTTP/1.1\r\n\r\n", (400, 403)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400,)),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\nINFO forged\r\n\r\n", (200, 400)),
        (b"GET /%0d%0aINFO%20forged HTTP/1.1\r\nHost: localhost\r\n\r\n", (404,)),
    ],
)
def test_what_is_no_request_is_refused_and_leaves_no_trace_in_the_log(
    serving: Running, caplog: pytest.LogCaptureFixture, head: bytes, statuses: tuple[int, ...]
) -> None:
    """Anybody can send it: it must not fill the log, nor write into it."""
    with serving(server={"receive_s": 5}) as (url, _, _):
        with socket.create_connection(address(url)) as one:
            one.settimeout(30)
            one.sendall(head)
            answer = one.recv(4096)
        assert int(answer.split()[1]) in statuses
        assert status(url, "/healthz") == 200
    assert not caplog.records


# ---------------------------------------------------------------- TLS and our own commands


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that nobody has signed, for a name that nobody has."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    return make_certificate(tmp_path)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """The certificate and its key."""
    files = folder / "cert.pem", folder / "key.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=scaler.lan"]
    line = ["openssl", "req", *kind, "-keyout", str(files[1]), "-out", str(files[0])]
    subprocess.run(line, check=True, capture_output=True)
    return files


def command(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scaler", *arguments, "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_our_own_commands_find_the_token_and_the_certificate(
    serving: Running, configure: Callable[..., Path], token_file: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    """What the configuration says opens the door; another certificate than that one is not believed."""
    tls = {"certificate": str(certificate[0]), "key": str(certificate[1])}
    with serving(server={"token_file": str(token_file), "tls": tls}) as (url, manager, _):
        assert url.startswith("https://")
        config = Path(manager.settings.file)
        told = command(config, "status", "--url", url, "--json")
        assert json.loads(told.stdout)["tier"] == "mid_range", told.stderr
        told = command(config, "chat", "--url", url, "--max-tokens", "4", "Who are you?")
        assert told.returncode == 0, told.stderr
        assert command(config, "pin", "--url", url, "small").returncode == 0
        with pytest.raises(ssl.SSLError), socket.create_connection(address(url)) as plain:
            ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
        other = tmp_path / "other"
        other.mkdir()
        text = config.read_text()
        wrong = other / "scaler.yaml"
        wrong.write_text(text.replace(str(certificate[0]), str(other / "cert.pem")))
        make_certificate(other)
        told = command(wrong, "status", "--url", url)
        assert told.returncode == 4
        assert "another certificate than server.tls" in told.stderr


def test_a_certificate_that_cannot_be_used_is_told(running: Running, certificate: tuple[Path, Path]) -> None:
    """With file and line; also a key that a password protects: nobody is asked for it."""
    cert, key = certificate
    locked = key.with_name("locked.pem")
    subprocess.run(
        ["openssl", "ec", "-in", str(key), "-aes128", "-passout", "pass:secret", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    for wrong in (locked, cert, key.with_name("none.pem")):
        with (
            running(server={"tls": {"certificate": str(cert), "key": str(wrong)}}) as (manager, _),
            pytest.raises(ConfigError) as raised,
        ):
            Endpoint(manager, "127.0.0.1", 0)
        lines = Path(manager.settings.file).read_text().splitlines()
        line = next(number for number, text in enumerate(lines, start=1) if "tls:" in text)
        assert str(raised.value).startswith(f"{manager.settings.file}:{line}: server.tls: {cert} and {wrong} cannot be")
