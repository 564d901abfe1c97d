"""Where is looked: what people write, what the environment says, and what listens here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scaler.discovery.places import PORTS, Place, listening, merged, named, ollama_host, usual
from scaler.errors import ConfigError

LISTENS = """\
import json, socket, subprocess, sys
below = sys.argv[2:]
here = socket.create_server(("127.0.0.1", 0))
ports = [here.getsockname()[1]]
if below:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, __file__, *below], **pipes)
    ports += json.loads(child.stdout.readline())
print(json.dumps(ports), flush=True)
sys.stdin.read()
if below:
    child.communicate()
"""
"""Listens on a free port, as does the process below it that the further arguments name, and so on; prints the ports."""


@pytest.fixture
def ports_of(tmp_path: Path) -> Iterator[Callable[..., list[int]]]:
    """Starts a process of the first name, below it one of the second and so on; returns their ports."""
    script = tmp_path / "listens.py"
    script.write_text(LISTENS)
    with ExitStack() as running:

        def start(*names: str) -> list[int]:
            command = [sys.executable, str(script), *names]
            started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            running.callback(started.communicate)
            assert started.stdout is not None
            ports: list[int] = json.loads(started.stdout.readline())
            return ports

        yield start


@pytest.mark.parametrize(
    ("written", "url", "root", "base"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://box:8000/", "http://box:8000", "http://box:8000", "http://box:8000"),
        ("https://box/v1", "https://box/v1", "https://box", "https://box"),
        ("https://box/api/v1/", "https://box/api/v1", "https://box/api", "https://box/api/v1"),
        ("http://[::1]:1234", "http://[::1]:1234", "http://[::1]:1234", "http://[::1]:1234"),
    ],
)
def test_an_address_is_taken_as_people_write_it(written: str, url: str, root: str, base: str) -> None:
    """With or without http:// in front and /v1 behind."""
    place = named(written)
    assert (place.url, place.root, place.base, place.named) == (url, root, base, True)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "http://",
        "ftp://box",
        "http://box:99999",
        "http://box:port",
        "http://me:secret@box",
        "http://a b\n",
        "box?x",
    ],
)
def test_what_is_no_address_is_said_to_be_none(written: str) -> None:
    """With an example; a password in an address would end up in a file."""
    with pytest.raises(ConfigError, match=r"--url: .* expected one such as http://127\.0\.0\.1:8080"):
        named(written)


def test_a_key_is_named_by_its_variable_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up when it is shown."""
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="--key-env: the environment variable MY_KEY is not set"):
        named("box", "MY_KEY")
    monkeypatch.setenv("MY_KEY", "one")
    place = named("box", "MY_KEY")
    monkeypatch.setenv("MY_KEY", "two")
    assert place.authorization() == {"Authorization": "Bearer two"}
    assert Place("http://box").authorization() == {}
    monkeypatch.setenv("MY_KEY", "two\n")
    assert place.authorization() == {"Authorization": "Bearer two"}
    monkeypatch.setenv("MY_KEY", "two\nthree")
    with pytest.raises(ConfigError, match="the environment variable MY_KEY holds what no API key can"):
        named("box", "MY_KEY")
    assert place.authorization() == {}


def test_only_this_machine_by_the_names_that_levels_have_for_it_is_near() -> None:
    """Of others the memory cannot be watched."""
    assert all(named(host).near for host in ("127.0.0.1:1", "localhost:1", "LOCALHOST:1", "http://[::1]:1"))
    assert not any(named(host).near for host in ("192.168.1.2:1", "box:1", "127.0.0.2:1"))


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("", None),
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("127.0.0.1:9999", "http://127.0.0.1:9999"),
        (":9999", "http://127.0.0.1:9999"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::]:9999", "http://127.0.0.1:9999"),
        ("[::1]", "http://[::1]:11434"),
        ("box", "http://box:11434"),
        ('"http://box/"', "http://box:80"),
        ("https://box", "https://box:443"),
        ("tcp://box", None),
        ("box:port", None),
        ("[::1", None),
    ],
)
def test_ollamas_variable_means_what_it_means_to_ollama(value: str, url: str | None) -> None:
    """Scheme, host and port may be left out."""
    assert ollama_host(value) == url


def test_the_usual_ports_are_looked_at_whatever_the_environment_says() -> None:
    """OLLAMA_HOST may well lead to scaler itself, and Ollama be where it always is."""
    plain = [place.url for place in usual({})]
    assert plain == [f"http://127.0.0.1:{port}" for port in PORTS]
    assert [place.url for place in usual({"OLLAMA_HOST": "127.0.0.1:8484"})] == ["http://127.0.0.1:8484", *plain]


def test_a_port_of_this_machine_is_looked_at_once_by_whatever_name() -> None:
    """As the person names it, if they do."""
    mine = [named("localhost:1234"), named("box:1234"), named("box:1234/v1")]
    found = merged(mine, [Place("http://[::1]:1234"), Place("http://127.0.0.1:8080")], [Place("http://127.0.0.1:8080")])
    assert [place.url for place in found] == [
        "http://localhost:1234",
        "http://box:1234",
        "http://box:1234/v1",
        "http://127.0.0.1:8080",
    ]


def test_what_listens_here_and_looks_like_a_model_server_is_found(ports_of: Callable[..., list[int]]) -> None:
    """By the words of its command line; anything else that listens is not asked, whoever's home it is in."""
    (server,), (other,) = ports_of("/opt/bin/llama-server"), ports_of("/home/jan/notes")
    urls = {place.url for place in listening()}
    assert f"http://127.0.0.1:{server}" in urls
    assert f"http://127.0.0.1:{other}" not in urls


def test_the_servers_below_a_server_are_parts_of_it(ports_of: Callable[..., list[int]]) -> None:
    """Ollama, LM Studio and routers hold each model in a server of its own, which is not for others to ask."""
    server, part = ports_of("ollama", "llama-server")
    urls = {place.url for place in listening()}
    assert f"http://127.0.0.1:{server}" in urls
    assert f"http://127.0.0.1:{part}" not in urls
