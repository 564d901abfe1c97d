"""Ollama's API as programs use it: the official client, unchanged, and what happens when things go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from scaler.descriptions import Description
from scaler.level_settings import EmbeddedLevel
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.serving.app import MAX_BODY_BYTES
from scaler.serving.ollama import API_VERSION
from scaler.serving.ollama_models import NO_TIME, listed
from tests.end_to_end.conftest import PATIENCE_S
from tests.end_to_end.test_ladder import COUNTED, settles_at
from tests.runtimes.ollama_recorded import assert_like, recorded, replayed, told

Running = Callable[..., Any]
MESSAGES = [{"role": "user", "content": "Who are you?"}]
SENTENCE = "The small model speaks : I am made of random weights ."
SMALL = {"max_level": "small"}
OTHERWISE = {
    "A browser that goes there gets scaler's page.": [": GET / "],
    "The machine decides what is loaded, and nothing is unloaded for a program.": ["after it has gone"],
    "The model that is told is the level that answered.": [': POST /api/generate {"model": "small:latest"'],
    "Names are those of the ladder, letter for letter.": [': POST /api/chat {"model": "SMALL"}'],
    "Who names no model means auto.": ["no model is named: POST /api/chat", "no model is named: POST /api/generate"],
    "Whatever is no level is not found, and it is told which there are.": ["an impossible name"],
    "The template is that of the model's file.": ["with a system's text and a template", "a template that is none"],
    "Other runtimes refuse a message without a role.": ["nor asked for"],
    "As people write it for OLLAMA_KEEP_ALIVE, it is understood.": [
        'of the wrong type: POST /api/chat {"model": "small", "keep_alive": "-1"}'
    ],
    "Of options, those that mean nothing to a level are not looked at; the rest is the request's fault, not ours.": [
        "an option of the wrong type",
        "a form that nobody knows",
        "a picture, ",
    ],
    "llama.cpp describes tools to any model, and passes over a wish to think.": ["tools", "to think"],
    "A prompt is not cut in secret.": ["too long a prompt: ", "too long a prompt, raw, is cut"],
    "What of a conversation fits is for scaler to say.": ["earlier messages may not be left out"],
    "Where a model of random weights ends is chance.": ["raw, by a schema"],
}
"""Where scaler answers otherwise than Ollama, and why: by how the exchanges begin to be told."""
OTHER_PATHS = {
    "The ladder is the configuration's.": ["/api/pull", "/api/create", "/api/copy", "/api/delete", "/api/blobs"],
    "Embeddings are asked for at /v1/embeddings.": ["/api/embed"],
}
OTHER_WORDS = (
    *("no such model", "no body", "too long", "a picture to a prompt", "to fill a gap", "raw with"),
    *("a schema of nothing", "a wrong method", "an unknown path", "a foreign name of this machine", "a web page"),
)
"""What is refused with the same status, always in JSON, and in words that say more."""
LOOKED_FOR = ("not found", "exceeds the available context size", "does not support")
"""What programs look for in errors."""
MODELS_WITH_OTHER_TEMPLATES = ("tooled", "thinker")


def ask(url: str, body: bytes | None = None, method: str | None = None) -> tuple[int, dict[str, Any], dict[str, str]]:
    """A request without a word of what kind it is."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=60) as response:
            return response.status, json.loads(response.read() or b"{}"), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


def test_the_official_client_chats_and_generates_whole_and_streamed(serving: Running) -> None:
    """What people have works unchanged, and the figures are there."""
    with serving(policy=SMALL) as (url, _, _), ollama.Client(url) as talk:
        whole = talk.chat("auto", MESSAGES)
        assert (whole.message.content or "").strip() == SENTENCE
        assert (whole.model, whole.done, whole.done_reason) == ("small", True, "stop")
        assert min(whole.prompt_eval_count or 0, whole.eval_count or 0, whole.eval_duration or 0) > 0
        lines = list(talk.chat("small:latest", MESSAGES, stream=True))
        assert "".join(line.message.content or "" for line in lines) == whole.message.content
        assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
        assert lines[-1].eval_count == whole.eval_count
        assert talk.generate("auto", "Who are you?", system="Be brief.").response == whole.message.content
        pieces = talk.generate("auto", "The small", raw=True, options={"num_predict": 3, "temperature": 0}, stream=True)
        assert "".join(piece.response or "" for piece in pieces) == " model speaks :"
        assert talk.generate("auto").done_reason == "load"
        assert talk.chat("auto", keep_alive=0).done_reason == "unload"


def test_the_official_asynchronous_client_chats(serving: Running) -> None:
    """Most servers that are built on Ollama use this one."""
    with serving(policy=SMALL) as (url, _, _):

        async def chat() -> str:
            async with ollama.AsyncClient(url) as talk:
                stream = await talk.chat("auto", MESSAGES, stream=True)
                return "".join([line.message.content or "" async for line in stream])

        assert asyncio.run(chat()).strip() == SENTENCE


def test_the_official_client_sees_which_models_there_are(serving: Running) -> None:
    """Programs fill their menus with it."""
    with serving(policy=SMALL) as (url, manager, watch), ollama.Client(url) as talk:
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        listed = {model.model: model for model in talk.list().models}
        assert list(listed) == ["auto:latest", "small:latest", "medium:latest", "large:latest"]
        small = listed["small:latest"]
        assert small.details is not None
        assert (small.details.family, small.details.parameter_size) == ("llama", "10.95M")
        assert listed["auto:latest"].digest == small.digest
        assert small.size == asyncio.run(manager.descriptions())["small"].file.stat().st_size
        (now,) = talk.ps().models
        assert (now.model, now.context_length, now.size_vram) == ("small:latest", 2048, 0)
        shown = talk.show("auto")
        assert shown.capabilities == ["completion"]
        assert (shown.modelinfo or {})["general.parameter_count"] > 10**7
        assert "im_start" in (shown.template or "")
        assert ask(f"{url}/api/version")[1] == {"version": API_VERSION}
        assert ask(url, method="HEAD")[0] == 200


def without_what_differs(body: Any) -> Any:
    """What is told of an answer or a model besides what both tell.

    Nobody measures how long an answer waited for its model; a context is ignored, and none is sent back. Of its file
    scaler tells no tensors, and Ollama tells no window where none is set.
    """
    if isinstance(body, list):
        return [without_what_differs(line) for line in body]
    known = {key: value for key, value in body.items() if key not in ("load_duration", "context")}
    if "model_info" in known:
        known = {key: value for key, value in known.items() if key not in ("model_info", "tensors", "parameters")}
    if "models" in known:
        known["models"] = [one for one in known["models"] if one["name"] == "small:latest"]
    return known


def is_answered_otherwise(exchange: dict[str, Any]) -> bool:
    """On purpose, or because the model is none that scaler has here."""
    asked, begin, paths = exchange["request"], OTHERWISE.values(), OTHER_PATHS.values()
    named = asked["body"].get("model", asked["body"].get("name", "")) if "body" in asked else ""
    return (
        str(named).partition(":")[0] in MODELS_WITH_OTHER_TEMPLATES
        or told(exchange).startswith(tuple(each for some in begin for each in some))
        or asked["path"].startswith(tuple(each for some in paths for each in some))
    )


def assert_refused_alike(response: httpx.Response, exchange: dict[str, Any]) -> None:
    """With the same status, and with what programs look for."""
    given, due = response.json()["error"], exchange["response"].get("body", {}).get("error", "")
    assert response.status_code == exchange["response"]["status"], told(exchange)
    assert [words for words in LOOKED_FOR if words in due and words not in given] == [], told(exchange)


@pytest.mark.parametrize("name", ["discovery", "loading", "answers", "refusals"])
def test_programs_get_what_a_real_ollama_was_recorded_to_answer(serving: Running, name: str) -> None:
    """Status, type and fields, and of errors what programs look for; except where scaler means something else."""
    with serving(policy=SMALL) as (url, _, _):
        for exchange in recorded(name):
            if is_answered_otherwise(exchange):
                continue
            response = replayed(url, exchange)
            if told(exchange).startswith(OTHER_WORDS):
                assert_refused_alike(response, exchange)
            else:
                assert_like(response, exchange, without_what_differs)


def test_a_list_lacks_nothing_before_anything_serves_and_of_a_model_that_nobody_knows(serving: Running) -> None:
    """Programs in strict languages read no list in which an entry lacks a field."""
    (exchange,) = (
        one for one in recorded("discovery") if one["request"]["path"] == "/api/tags" and "body" in one["response"]
    )
    fields = exchange["response"]["body"]["models"][0]
    with serving(policy=SMALL) as (url, _, _):
        auto, small, *_ = ask(f"{url}/api/tags")[1]["models"]
    assert (auto.keys(), auto["details"].keys()) == (fields.keys(), fields["details"].keys())
    assert auto == {**small, "name": "auto:latest", "model": "auto:latest"}
    unknown = listed("other", Description("other", 4096), ("completion",), 4096)
    assert ollama.ListResponse.model_validate({"models": [unknown]}).models[0].size == 0
    assert unknown.keys() == fields.keys()
    assert unknown["details"].keys() | {"embedding_length"} == fields["details"].keys()
    assert (unknown["size"], unknown["modified_at"], unknown["details"]["families"]) == (0, NO_TIME, None)


def test_a_level_that_has_the_name_of_whatever_serves_is_listed_once(
    serving: Running, demo_models: dict[str, Path]
) -> None:
    """As it is by OpenAI's API."""
    ladder = [{"name": "auto", "model": str(demo_models["small"]), "ram_gib": 0.08, "context_tokens": 512}]
    with serving(ladder=ladder) as (url, _, _):
        assert [one["name"] for one in ask(f"{url}/api/tags")[1]["models"]] == ["auto:latest"]


def test_a_list_is_of_one_configuration_though_another_takes_its_place_meanwhile(
    serving: Running, configure: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that do not answer are waited for while it is made."""
    asked, reloaded, describe = threading.Event(), threading.Event(), EmbeddedRuntime.describe

    def slowly(runtime: EmbeddedRuntime, settings: EmbeddedLevel) -> Description:
        asked.set()
        assert reloaded.wait(PATIENCE_S)
        return describe(runtime, settings)

    monkeypatch.setattr(EmbeddedRuntime, "describe", slowly)
    with (
        serving(levels=("small", "medium"), policy=SMALL) as (url, manager, _),
        ThreadPoolExecutor() as programs,
    ):
        listing = programs.submit(ask, f"{url}/api/tags")
        assert asked.wait(PATIENCE_S)
        assert ask(f"{url}/api/show", b'{"model": "large"}')[0] == 404
        configure(levels=("small", "large"), policy=SMALL)
        manager.reload_sync()
        reloaded.set()
        status, body, _ = listing.result(PATIENCE_S)
        assert status == 200
        assert [one["name"] for one in body["models"]] == ["auto:latest", "small:latest", "medium:latest"]


def test_a_schema_holds_the_answer_and_tools_are_taken(serving: Running) -> None:
    """The model of the test is as likely to say anything else."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    with serving(policy=SMALL) as (url, _, _), ollama.Client(url) as talk:
        answer = talk.chat("auto", MESSAGES, format=schema, options={"temperature": 0, "num_predict": 400})
        assert isinstance(json.loads(answer.message.content or "")["ok"], bool)
        tool = {"type": "function", "function": {"name": "now", "description": "the time"}}
        assert (talk.chat("auto", MESSAGES, tools=[tool]).message.content or "").strip() == SENTENCE


def test_a_stream_goes_on_unbroken_when_its_model_is_killed(serving: Running) -> None:
    """One whole count: nothing is lost and nothing said twice."""
    with serving(policy={"max_level": "medium"}) as (url, manager, watch), ollama.Client(url) as talk:
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        pids = list(manager._switcher.pids())
        text, line = "", None
        for line in talk.chat("auto", [{"role": "user", "content": "Count to a thousand."}], stream=True):
            text += line.message.content or ""
            if len(text) > 100:
                while pids:
                    os.kill(pids.pop(), signal.SIGKILL)
        assert text == COUNTED
        assert line is not None
        assert (line.done, line.done_reason) == (True, "stop")


def test_bad_requests_get_ollamas_error_and_the_server_lives(serving: Running) -> None:
    """Clients show these messages to people; after each, the next request is answered."""
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 30_000}]}).encode()
    picture = b'{"messages": [{"role": "user", "content": "x", "images": ["iVBORw0KGgoAAAA="]}]}'
    cases = [
        ("chat", b"{", 400, "not JSON"),
        ("chat", b"[" * 100_000, 400, "not JSON"),
        ("chat", b"[]", 400, "JSON object"),
        ("chat", b'{"model": "llama3"}', 404, "there are: auto, small, medium, large"),
        ("show", b'{"model": "llama3"}', 404, "there are: auto, small, medium, large"),
        ("chat", b'{"messages": "x"}', 400, "'messages'"),
        ("generate", b'{"prompt": "x", "options": {"temperature": "warm"}}', 400, "'temperature'"),
        ("chat", picture, 400, "vision"),
        ("chat", long, 400, "context size"),
        ("chat", b" " * (MAX_BODY_BYTES + 1), 413, "larger than"),
        ("chat", None, 405, "takes POST"),
        ("pull", b'{"model": "x"}', 501, "ladder"),
        ("nothing", b"{}", 404, "/api/chat"),
    ]
    with serving(policy=SMALL) as (url, _, _):
        for path, body, status, words in cases:
            got, answer, _ = ask(f"{url}/api/{path}", body)
            assert got == status, answer
            assert words in answer["error"]
            got, answer, headers = ask(f"{url}/api/chat", json.dumps({"messages": MESSAGES, "stream": False}).encode())
            assert (got, answer["message"]["content"].strip()) == (200, SENTENCE)
            assert headers["x-scaler-level"] == "small"
        with ollama.Client(url) as talk, pytest.raises(ollama.ResponseError, match="there are: auto"):
            talk.chat("llama3", MESSAGES)
        got, answer, _ = ask(f"{url}/v1/nothing", b"{}")
        assert (got, answer["error"]["type"]) == (404, "invalid_request_error")
