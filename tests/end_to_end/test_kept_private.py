"""What `scaler run` writes: for its owner only, without secrets, and a line for each thing that happened."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaler.access_token import VARIABLE
from scaler.conversations.protocol import Said
from scaler.conversations.sqlite import SqliteConversations
from scaler.errors import ConfigError
from scaler.printable import OneLine, one_line, printable
from scaler.settings import load_settings

SCALER = [sys.executable, "-m", "scaler"]
TOKEN = "token-that-nobody-may-see"
SECRETS = {
    "token": TOKEN,
    "webhook": "webhook-path-that-nobody-may-see",
    "password of the webhook": "webhook-password-that-nobody-may-see",
    "key of a runtime": "sk-key-that-nobody-may-see",
    "what a person said": "prompt-that-nobody-may-see",
    "a wrong token": "wrong-token-that-nobody-may-see",
    "another header": "cookie-that-nobody-may-see",
    "key of a receiver of traces": "otlp-key-that-nobody-may-see",
    "trace of a client": "tracestate-that-nobody-may-see",
}
FORGED = "\n12:00:00  large → off: forged\x1b[2J\r\u2028forged\u202e"


class Run:
    """`scaler run` with secrets wherever there is a place for one, under a umask that keeps nothing from anybody."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.config = folder, config
        self.env = {**os.environ, "THE_KEY": SECRETS["key of a runtime"], "PYTHONUNBUFFERED": "1"}
        self.env.pop(VARIABLE, None)
        with (folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [*SCALER, "run", "--config", str(config), "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=self.env,
                umask=0,
            )
        self.said = ""
        self.url = self.until("endpoint").split()[1].removesuffix("/v1")

    def until(self, words: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return line
        raise AssertionError(f"never said {words!r}: {self.said}{(self.folder / 'stderr').read_text()}")

    def command(self, *arguments: str, code: int = 0) -> str:
        """Everything that a command says, which ends with this exit code."""
        done = subprocess.run(
            [*SCALER, *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            env=self.env,
            timeout=60,
        )
        assert done.returncode == code, (arguments, done)
        return done.stdout + done.stderr

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, str]:
        data = json.dumps(body).encode()
        told = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}", **headers}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, told), timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.said += self.process.communicate(timeout=60)[0]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver of traces that is not there, with a key both in its address and in its headers."""
    key = SECRETS["key of a receiver of traces"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:9/{key}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{key}")


@pytest.fixture
def run(configure: Callable[..., Path], tmp_path: Path) -> Iterator[Run]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    state = tmp_path / "state" / "deeper"
    config = configure(
        levels=("small",),
        server={"token_file": str(token)},
        notices={
            "webhook": f"http://me:{SECRETS['password of the webhook']}@127.0.0.1:9/{SECRETS['webhook']}",
            "upgrades": True,
        },
        journal={"path": str(state / "journal" / "journal.jsonl"), "max_mib": 0.0005, "files": 3},
        conversations={"path": str(state / "talk" / "conversations.sqlite")},
        recording={"path": str(state / "recording")},
        # far fails once, and is then left alone for as long as a test takes.
        policy={"backoff_s": 600.0, "backoff_max_s": 600.0},
    )
    text = yaml.safe_load(config.read_text())
    text["ladder"].append(
        {"name": "far", "runtime": "openai", "url": "http://127.0.0.1:9", "model": "m", "key_env": "THE_KEY"}
    )
    config.write_text(yaml.safe_dump(text))
    one = Run(tmp_path, config)
    yield one
    one.end()


@pytest.mark.usefixtures("traced")
def test_whatever_it_writes_is_its_owners_and_holds_no_secret(run: Run, tmp_path: Path) -> None:
    """Files, folders, logs, what commands print, what errors say."""
    talk = {"messages": [{"role": "user", "content": SECRETS["what a person said"]}], "max_tokens": 2}
    run.until("far could not be loaded")
    traced = {"traceparent": f"00-{'1' * 32}-{'1' * 16}-01", "tracestate": SECRETS["trace of a client"]}
    headers = {"Cookie": SECRETS["another header"], **traced}
    asked: list[dict[str, Any]] = [
        {"model": "small"}, {"model": "far"}, {"n": "x"}, {"response_format": {"type": "json_schema"}}
    ]  # fmt: skip
    answers = [run.post("/v1/chat/completions", {**talk, **more}, **headers) for more in asked]
    answers.append(run.post("/v1/chat/completions", talk, Authorization=f"Bearer {SECRETS['a wrong token']}"))
    assert [status for status, _ in answers] == [200, 503, 400, 400, 401]
    told = [text for _, text in answers]
    here = ("--url", run.url)
    for arguments, words in (
        (("status", *here), "level     small\n"),
        (("status", "--json", *here), '"serving": "small"'),
        (("explain", *here), "backs off because it failed: far: m of a server with OpenAI's API"),
        (("check", *here), "a request would be answered now (level small)"),
        (("advise", *here), "nothing to suggest: there is room for far already"),
        (("history",), "far could not be loaded"),
        (("history", "--json"), "far could not be loaded"),
        (("config", "show"), "key_env: THE_KEY"),
        (("config", "show", "--json"), '"value": "THE_KEY"'),
        (("config", "check"), "ok\n"),
    ):
        told.append(run.command(*arguments))
        assert words in told[-1]
    state = tmp_path / "state"
    while_it_runs = modes(state)
    run.end()
    for found in (while_it_runs, modes(state)):
        assert set(found.values()) <= {0o700, 0o600}, found
    names = {path.name for path in while_it_runs}
    assert {"journal.jsonl", "journal.jsonl.1", "conversations.sqlite"} <= names
    assert any(path.name.endswith(".gz") for path in state.rglob("*")), "nothing was recorded"
    told += [run.said, (tmp_path / "stderr").read_text()]
    told += [path.read_bytes().decode(errors="replace") for path in state.rglob("*") if path.is_file()]
    for what, secret in SECRETS.items():
        for text in told:
            assert secret not in text, (what, text)


def test_a_key_in_a_levels_address_is_refused_and_goes_nowhere(run: Run, tmp_path: Path) -> None:
    """No request could be sent with it, so that it never gets to where addresses are shown."""
    whole = run.config.read_text()
    assert "http://127.0.0.1:9" in whole
    run.config.write_text(whole.replace("http://127.0.0.1:9\n", "http://127.0.0.1:9/v1?key=SECRET\n"))
    status, refused = run.post("/reload", {})
    assert (status, "ladder[1].url: holds a name, a password, or what follows a ? or #" in refused) == (422, True)
    commands = {("config", "check"): 2, ("config", "show"): 2, ("doctor",): 1, ("run",): 2}
    told = [refused, *(run.command(*arguments, code=code) for arguments, code in commands.items())]
    assert all("ladder[1].url" in text for text in told), told
    run.end()
    told += [run.said, (tmp_path / "stderr").read_text(), (tmp_path / "state/deeper/journal/journal.jsonl").read_text()]
    assert not [text for text in told if "SECRET" in text]


def test_what_sqlite_makes_beside_the_database_is_its_owners_too(tmp_path: Path) -> None:
    """Its log holds what was said last."""
    before = os.umask(0)
    try:
        kept = SqliteConversations(tmp_path / "a" / "b" / "conversations.sqlite", keep=3)
        kept.extend("one", [Said({"role": "user", "content": "hello"}, datetime.now(UTC), ("small",))])
        found = modes(tmp_path / "a")
        kept.close()
    finally:
        os.umask(before)
    assert "conversations.sqlite-wal" in {path.name for path in found}
    assert set(found.values()) == {0o700, 0o600}


def modes(folder: Path) -> dict[Path, int]:
    """The permissions of everything in a folder, and of the folder."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        try:
            found[path] = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            continue
    return found


def test_no_request_writes_a_line_of_its_own(run: Run, tmp_path: Path) -> None:
    """Whatever a name, a path or a prompt holds: what is printed and logged has no line that somebody else wrote."""
    talk = {"messages": [{"role": "user", "content": FORGED}], "max_tokens": 2}
    assert run.post("/v1/chat/completions", {**talk, "model": FORGED})[0] == 404
    assert run.post("/v1/chat/completions", {**talk, "model": "small"})[0] == 200
    assert run.post("/v1/chat/completions", {**talk, "tools": [FORGED]})[0] == 400
    assert run.post("/api/show", {"model": FORGED})[0] == 404
    connection = http.client.HTTPConnection(run.url.removeprefix("http://"), timeout=30)
    connection.request("GET", "/v1/models/%0a12:00:00%20forged%1b%5b2J", headers={"Authorization": f"Bearer {TOKEN}"})
    assert connection.getresponse().status == 404
    connection.close()
    pin = run.command("pin", FORGED, "--url", run.url, code=3)
    assert "no such level" in pin
    history = run.command("history")
    assert "far could not be loaded" in history
    run.end()
    for text in (run.said, (tmp_path / "stderr").read_text(), pin, history):
        assert not [line for line in text.split("\n") if line.startswith("12:00:00") or "\x1b" in line or "\r" in line]


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    """Ends of lines of every kind, terminal's commands, changes of direction: as Python writes them."""
    line = one_line(FORGED)
    assert line.isprintable()
    assert line == "\\n12:00:00  large → off: forged\\x1b[2J\\r\\u2028forged\\u202e"
    assert len(one_line("a" * 10_000)) < 2100
    assert printable("a\n\tb\x1b[31m\x00\x9b") == "a\n\tb\\x1b[31m\\x00\\x9b"


def test_a_logs_record_cannot_be_forged_by_its_error() -> None:
    """The lines of a traceback are set in, and what an error says is one of them."""
    try:
        raise ValueError(FORGED)
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "a.py", 1, "failed: %s", (FORGED,), sys.exc_info())
    first, *rest = OneLine().format(record).split("\n")
    assert "failed: \\n12:00:00" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert not any("\x1b" in line or "\r" in line for line in rest)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (3, "f:1: wrong; f:2: wrong; f:3: wrong"),
        (4, "f:1: wrong; f:2: wrong; f:3: wrong (and more: `scaler config check` tells all)"),
    ],
)
def test_a_configuration_that_is_refused_is_one_line_for_a_person(found: int, told: str) -> None:
    """A few of its mistakes, and what tells the rest."""
    error = ConfigError("\n".join(f"f:{line}: wrong" for line in range(1, found + 1)))
    record = logging.LogRecord("a", logging.ERROR, "a.py", 1, "refused: %s", (error,), None)
    assert OneLine().format(record).partition("  ")[2] == f"refused: {told}"


WRONG = [
    "notices: {webhook: 'ftp://me:SECRET@h/x'}",
    "notices: {webhook: 'http://SECRET@:99999999/'}",
    "ladder: [{name: a, runtime: ollama, model: m, url: 'http://me:SECRET@127.0.0.1'}]",
    "ladder: [{name: a, runtime: ollama, model: m, url: 'me:SECRET@127.0.0.1'}]",
    "ladder: [{name: a, runtime: openai, model: m, url: 'http://h/v1?key=SECRET'}]",
    "ladder: [{name: a, runtime: openai, model: m, url: 'http://h/v1#SECRET'}]",
    "ladder: [{name: a, runtime: vllm, model: m, vram_gib: 1, url: 'http://elsewhere:8000?key=SECRET'}]",
    "ladder: [{name: a, runtime: openai, model: m, url: 'http://h', key_env: sk-SECRET}]",
    "ladder: [{name: a, runtime: openai, model: m, url: 'http://h', api_key: SECRET}]",
    "server: {token: SECRET}",
    "server: {tls: {certificate: a, key: b, password: SECRET}}",
]


@pytest.mark.parametrize("text", WRONG)
def test_a_secret_in_the_wrong_place_is_not_shown(tmp_path: Path, text: str) -> None:
    """The message of a fault goes into terminals, logs and reports of bugs."""
    path = tmp_path / "scaler.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_settings(path)
    assert "SECRET" not in str(raised.value)
