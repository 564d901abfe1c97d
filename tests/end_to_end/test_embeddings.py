"""Embeddings with a real model beside a real ladder: vectors, room, and what becomes of the memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from scaler.errors import ScalerError
from scaler.events import EmbeddingsGone
from scaler.sensors import programs
from tests.end_to_end.conftest import MIB, Machine, Watch
from tests.end_to_end.test_endpoint import client, post

Running = Callable[..., Any]


@pytest.fixture
def embeddings(demo_models: dict[str, Path]) -> dict[str, Any]:
    """The section of the configuration."""
    return {"model": str(demo_models["small"]), "context_tokens": 256, "threads": 1}


def pids(manager: Any) -> tuple[int, ...]:
    return tuple(manager._embeddings._runtime.pids())


def its_end(watch: Watch) -> None:
    """Wait until it is told for the first time: the process has gone a little earlier."""
    watch.until(lambda: any(isinstance(event, EmbeddingsGone) for event in watch.told()), "its end to be noticed")


def test_the_official_client_gets_vectors(serving: Running, embeddings: dict[str, Any]) -> None:
    """It asks for base64 unless it is told otherwise; both are the same figures, and a text has one vector."""
    with serving(levels=["small"], embeddings=embeddings) as (url, manager, _), client(url) as talk:
        assert [model.id for model in talk.models.list()] == ["auto", "small", "embeddings"]
        assert talk.models.retrieve("embeddings").id == "embeddings"
        texts = ["The small model", "random weights", "The small model"]
        packed = talk.embeddings.create(model="embeddings", input=texts)
        first, second, third = (one.embedding for one in packed.data)
        assert len(first) == len(second) == 256
        assert first == pytest.approx(third, abs=1e-6)
        assert sum(a * b for a, b in zip(first, second, strict=True)) < 0.99
        assert packed.usage.prompt_tokens > 0
        plain = talk.embeddings.create(model="auto", input=texts[0], encoding_format="float")
        assert plain.data[0].embedding == pytest.approx(first, abs=1e-5)
        tokens = talk.embeddings.create(model="embeddings", input=[[1, 300, 301], [1, 302]])
        assert len(tokens.data) == 2
        with pytest.raises(openai.NotFoundError, match="there is: embeddings"):
            talk.embeddings.create(model="text-embedding-3-small", input="x")
        # Not among what stepping down would free.
        (pid,) = pids(manager)
        assert pid not in manager._switcher.pids()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "'input' must be"),
        ({"input": []}, "'input' must be"),
        ({"input": ["x", 3.5]}, "'input' must be"),
        ({"input": "x", "dimensions": 8}, "'dimensions' is not possible"),
        ({"input": "x", "encoding_format": "int8"}, "'encoding_format' must be float or base64"),
        ({"input": [[1, 10**6]]}, "invalid tokens"),
        ({"input": ["x", "y" * 2000]}, "embeddings takes 256 at the most"),
    ],
)
def test_a_bad_request_for_vectors_is_told_why(
    serving: Running, embeddings: dict[str, Any], wrong: dict[str, Any], words: str
) -> None:
    """Also a text that is too long, which llama.cpp takes for its own fault."""
    with serving(embeddings=embeddings) as (url, _, _):
        status, answer, _ = post(f"{url}/v1/embeddings", json.dumps(wrong).encode())
        assert status == 400, answer
        assert words in answer["error"]["message"]


def test_without_an_embedding_model_the_key_to_set_is_told(serving: Running) -> None:
    """And nothing is loaded for it."""
    with serving() as (url, _, _):
        status, answer, _ = post(f"{url}/v1/embeddings", b'{"input": "x", "model": "some"}')
        assert status == 400
        assert "embeddings: {model: FILE.gguf}" in answer["error"]["message"]


def test_without_room_the_reason_is_told_in_numbers(
    serving: Running, machine: Machine, embeddings: dict[str, Any]
) -> None:
    """To load it all the same would be what scaler exists to prevent; once there is room, it is loaded."""
    machine.other_bytes = 3850 * MIB
    with serving(levels=["small"], embeddings={**embeddings, "ram_gib": 0.2}) as (url, manager, watch):
        status, answer, headers = post(f"{url}/v1/embeddings", b'{"input": "x"}')
        assert status == 503
        assert "usage at off would be 99" in answer["error"]["message"]
        assert "95 % is critical" in answer["error"]["message"]
        assert int(headers["Retry-After"]) > 0
        assert not pids(manager)
        machine.other_bytes = 400 * MIB
        watch.readings(2)
        assert post(f"{url}/v1/embeddings", b'{"input": "x"}')[0] == 200


def test_it_is_unloaded_at_once_when_memory_turns_critical(
    serving: Running, machine: Machine, embeddings: dict[str, Any]
) -> None:
    """Also in the middle of a request, which is told so."""
    slow = {"input": ["x" * 250] * 2000}
    with serving(embeddings=embeddings) as (url, manager, watch), ThreadPoolExecutor() as pool:
        assert post(f"{url}/v1/embeddings", b'{"input": "x"}')[0] == 200
        waits = pool.submit(post, f"{url}/v1/embeddings", json.dumps(slow).encode())
        watch.until(lambda: manager._embeddings._running == 1, "the request to run")
        machine.other_bytes = 4050 * MIB
        status, answer, _ = waits.result(60)
        assert status == 503
        assert "it was unloaded, because usage at off is" in answer["error"]["message"]
        watch.until(lambda: not pids(manager), "the process to end")


def test_no_advice_is_to_close_the_embedding_model(
    serving: Running, embeddings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is scaler's own, although it is no level."""
    # However many larger programs run here.
    monkeypatch.setattr(programs, "MEASURED", 10**6)
    with serving(embeddings={**embeddings, "context_tokens": 2048}) as (url, manager, _):
        assert post(f"{url}/v1/embeddings", b'{"input": "x"}')[0] == 200
        (pid,) = pids(manager)
        anybodys = programs.ProgramSurvey(lambda: (), clock=lambda: 0.0).take(gpus=False)
        assert pid in [program.pid for program in anybodys.programs]
        assert pid not in [program.pid for program in manager._adviser._survey.take(gpus=False).programs]


def test_a_load_that_runs_at_the_end_is_given_up(
    running: Running, embeddings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take minutes; who waits for the vectors is told, and no process stays."""
    begun, given_up = threading.Event(), threading.Event()

    async def load(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            given_up.set()

    with running(embeddings=embeddings) as (manager, watch), ThreadPoolExecutor() as pool:
        watch.readings(1)
        monkeypatch.setattr(manager._embeddings._runtime, "load_embedding", load)
        first, second = (pool.submit(asyncio.run, manager.embed(["x"])) for _ in range(2))
        assert begun.wait(10)
        manager.shutdown()
        assert given_up.is_set()
        for asked in (first, second):
            with pytest.raises(ScalerError, match=r"scaler ends|was shut down"):
                asked.result(10)


def test_what_becomes_of_it_stands_in_the_journal(serving: Running, embeddings: dict[str, Any], tmp_path: Path) -> None:
    """Its memory comes and goes by decisions of scaler's, and they are told like any other."""
    with serving(embeddings=embeddings) as (url, manager, watch):
        assert post(f"{url}/v1/embeddings", b'{"input": "x"}')[0] == 200
        os.kill(pids(manager)[0], signal.SIGKILL)
        its_end(watch)
        assert post(f"{url}/v1/embeddings", b'{"input": "x"}')[0] == 200
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["event"].startswith("embeddings")]
    assert [line["event"].removeprefix("embeddings_") for line in told] == ["loaded", "gone", "loaded", "gone"]
    assert "with " in told[0]["reason"]
    assert "it died: embeddings: " in told[1]["reason"]
    assert told[3]["reason"] == "it was unloaded, since scaler ends"


def test_it_is_unloaded_when_nobody_has_asked_for_long(serving: Running, embeddings: dict[str, Any]) -> None:
    """What is not used should be the other programs'."""
    now = [0.0]
    with serving(embeddings={**embeddings, "keep_s": 60}) as (url, manager, watch):
        manager._embeddings._clock = lambda: now[0]
        assert post(f"{url}/v1/embeddings", b'{"input": "x"}')[0] == 200
        before = pids(manager)
        now[0] = 59.0
        watch.readings(3)
        assert pids(manager) == before
        now[0] = 61.0
        watch.until(lambda: not pids(manager), "the process to end")
        assert post(f"{url}/v1/embeddings", b'{"input": "x"}')[0] == 200
        assert pids(manager) != before


def test_one_that_was_killed_comes_back_with_the_next_request(serving: Running, embeddings: dict[str, Any]) -> None:
    """And several that ask at once load it once."""
    with serving(embeddings=embeddings) as (url, manager, watch), ThreadPoolExecutor() as pool:
        ask = f"{url}/v1/embeddings"
        assert {one[0] for one in pool.map(lambda _: post(ask, b'{"input": "x"}'), range(4))} == {200}
        (before,) = pids(manager)
        os.kill(before, signal.SIGKILL)
        its_end(watch)
        assert post(ask, b'{"input": "x"}')[0] == 200
        assert pids(manager) != (before,)


def test_a_program_gets_vectors_without_http(running: Running, embeddings: dict[str, Any]) -> None:
    """For those who embed scaler."""
    with running(embeddings=embeddings) as (manager, _):
        first, second = asyncio.run(manager.embed(["one", "two"]))
        assert len(first) == len(second) == 256
