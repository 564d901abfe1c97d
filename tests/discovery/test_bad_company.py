"""Whatever listens at a port where a model server might: it is told apart in a moment, and nobody waits for it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socketserver
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from scaler.discovery import asking
from scaler.discovery.asking import ANSWER_LIMIT_BYTES
from scaler.discovery.found import Source
from scaler.discovery.places import Place, named
from scaler.discovery.searching import QUESTIONS, STRANGER, search
from tests.discovery.servers import Served, answering, listing, response, saying, speaking

NEAR_S = 30.0
"""Longer than in earnest, so that a good server on a busy machine is not taken for a bad one."""
SILENT_NEAR_S = 5.0
"""The same for those who are given up only when it is over."""
Handler = socketserver.StreamRequestHandler
JSON = "application/json"
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "NEAR_S", NEAR_S)


def waits(handler: Handler, _: str) -> None:
    """Accepts, and never answers."""
    handler.rfile.read()


def drips(handler: Handler, _: str) -> None:
    """Sends a header for ever, a piece at a time, so that each piece comes in time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-Slow: 1\r\n")
        time.sleep(0.05)


def floods(handler: Handler, _: str) -> None:
    """Sends an answer without an end."""
    handler.wfile.write(JSON_HEAD + b'{"data": [')
    sent = 0
    while True:
        handler.wfile.write(b'"x",' * 65536)
        sent += 4 * 65536
        # Far beyond the limit, what is sent must not be taken any more.
        assert sent < 16 * ANSWER_LIMIT_BYTES


def breaks_off(handler: Handler, _: str) -> None:
    """Promises more than it sends."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{")


STRANGERS: dict[str, Callable[[], Any]] = {
    "a page": lambda: saying(response(b"<html><body>It works!</body></html>", 200, "text/html")),
    "half of JSON": lambda: saying(response(b'{"data": [{"id": "a"')),
    "JSON of another kind": lambda: answering({path: {"version": 1, "models": "many"} for path in ("/api/version",)}),
    "a list": lambda: saying(response(b"[1, 2]")),
    "a number": lambda: saying(response(b"7")),
    "deep JSON": lambda: saying(response(b"[" * 100_000 + b"]" * 100_000)),
    "no UTF-8": lambda: saying(response(b'{"data": [{"id": "\xff\xfe"}]}')),
    "half a surrogate": lambda: saying(response(b'{"version": "\\ud800", "models": []}')),
    "an error": lambda: saying(response(b'{"detail": "oh"}', 500)),
    "a packed answer": lambda: saying(
        response(zlib.compress(b'{"data": [{"id": "a"}]' + b" " * 10**6 + b"}"), 200, JSON, "Content-Encoding: deflate")
    ),
}
ODD: dict[str, Callable[[], Any]] = {
    "never answers": lambda: speaking(waits),
    "drips": lambda: speaking(drips),
    "floods": lambda: speaking(floods),
    "breaks off": lambda: speaking(breaks_off),
    "another protocol": lambda: saying(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "nothing": lambda: saying(b""),
    "a header without an end": lambda: saying(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"),
}
SILENT = ("never answers", "drips")


def beside_a_good_one(bad: Served) -> tuple[tuple[Source, ...], float]:
    """What is found where a server misbehaves and another one does not, and how long that took."""
    with answering({"/v1/models": listing("good")}) as good:
        began = time.monotonic()
        sources = search([named(bad.url), Place(good.url), Place(bad.url)], [])
        return sources, time.monotonic() - began


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_model_server_is_said_to_be_none(kind: str) -> None:
    """If a person named it; else not a word is lost about it."""
    with STRANGERS[kind]() as bad:
        (named_one, good), took_s = beside_a_good_one(bad)
        assert {line.split()[0] for line in bad.asked} == {"GET"}
    assert (named_one.where, named_one.note, named_one.models) == (bad.url, STRANGER, ())
    assert [model.name for model in good.models] == ["good"]
    # None of its answers was waited for as long as may be.
    assert took_s < NEAR_S


@pytest.mark.parametrize("kind", ODD)
def test_what_does_not_answer_as_it_should_is_given_up_in_a_moment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it does instead is told to whoever named it."""
    if kind in SILENT:
        monkeypatch.setattr(asking, "NEAR_S", SILENT_NEAR_S)
    with ODD[kind]() as bad:
        (named_one, good), took_s = beside_a_good_one(bad)
    assert (named_one.where, named_one.models) == (bad.url, ())
    assert named_one.note
    assert named_one.note.isprintable()
    assert [model.name for model in good.models] == ["good"]
    assert took_s < (QUESTIONS * SILENT_NEAR_S if kind in SILENT else NEAR_S)


def test_a_server_that_answers_everything_slowly_is_given_up_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is in time, all of them together would not be; so says the clock of whoever asks, put on by each."""
    limit_s, ahead_s = 1000.0, 0.0
    monkeypatch.setattr(asking, "NEAR_S", limit_s)
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: time.monotonic() + ahead_s)

    def talk(handler: Handler, _: str) -> None:
        nonlocal ahead_s
        ahead_s += 0.8 * limit_s
        handler.wfile.write(response(b"{}", 404))

    with speaking(talk) as bad:
        (source,) = search([named(bad.url)], [])
    assert source.note == "answers too slowly"
    assert len(bad.asked) == QUESTIONS + 1


def test_where_nothing_listens_is_told_to_whoever_named_it_only() -> None:
    """With the system's own words."""
    with saying(b"") as gone:
        pass
    (source,) = search([named(gone.url), Place(gone.url)], [])
    assert (source.what, source.where) == ("nothing", gone.url)
    assert source.note == f"nothing answers there ({os.strerror(errno.ECONNREFUSED)})"


def test_a_place_that_redirects_is_not_followed_and_says_where_to() -> None:
    """As of an address with http for https; of one that nobody named that is no news."""
    with saying(response(b"", 301, "text/html", "Location: https://box.example/v1/models")) as server:
        (source,) = search([named(server.url)], [])
        assert source.note == "sends whoever asks on to https://box.example/v1/models; name that address"
        assert search([Place(server.url)], []) == ()


def test_a_refusal_of_somebody_unasked_is_no_request_for_a_key() -> None:
    """A Mac's AirPlay answers 403 at port 5000."""
    with saying(response(b"", 403)) as server:
        assert search([Place(server.url)], []) == ()
        (source,) = search([named(server.url)], [])
    assert "--key-env" in source.note


@pytest.mark.parametrize(
    "answer", [response(b"", 302, "text/html", "Location: /login"), response(b"", 403)], ids=["redirected", "forbidden"]
)
def test_a_server_that_lists_its_models_may_forbid_what_it_does_not_have_or_redirect_from_there(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gateways and web pages do: the key is right, and there is no other address to name."""
    monkeypatch.setenv("KEY", "sk-test-right")

    def talk(handler: Handler, line: str) -> None:
        models = response(json.dumps(listing("good")).encode())
        handler.wfile.write(models if line.split()[1] == "/v1/models" else answer)

    with speaking(talk) as server:
        (source,) = search([named(server.url, "KEY")], [])
    assert [(model.runtime, model.name, model.key_env) for model in source.models] == [("openai", "good", "KEY")]
