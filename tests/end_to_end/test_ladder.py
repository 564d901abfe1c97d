"""The ladder on real llama.cpp processes: climbs, steps down, failures, deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaler.errors import LevelUnavailable
from scaler.events import DecisionMade, ModelDied, SwitchFailed
from tests.end_to_end.conftest import MIB, Machine, Watch

Running = Callable[..., Any]
LONG = {"ignore_eos": True, "temperature": 0}


def settles_at(manager: Any, watch: Watch, level: str) -> None:
    def there() -> bool:
        status = manager.scaler.status()
        return bool(status.serving == level and status.state == level and status.settled)

    watch.until(there, f"{level} to serve")


def decisions(watch: Watch) -> list[tuple[str, str]]:
    made = [event.switch.decision for event in watch.events if isinstance(event, DecisionMade)]
    return [(decision.source, decision.dest) for decision in made]


def test_nothing_is_loaded_until_somebody_asks(running: Running) -> None:
    """A program that embeds scaler and never asks should not pay for a model."""
    with running() as (manager, watch):
        watch.readings(20)
        assert manager.scaler.status().state == "off"
        assert decisions(watch) == []


def test_a_question_is_answered_by_the_smallest_level_first(running: Running) -> None:
    """The first answer comes as soon as anything can give it."""
    with running() as (manager, _):
        answer = manager.generate_response_sync("Who are you?")
        assert answer.level == "small"
        assert "small" in answer.text


def test_room_that_stays_for_the_dwell_is_climbed_into(running: Running, machine: Machine) -> None:
    """A gradual rise of free memory ends at the largest level, and not before the dwell."""
    machine.other_bytes = 3000 * MIB
    with running() as (manager, watch):
        assert manager.generate_response_sync("Who are you?").level == "small"
        for other in (2900, 2700, 2500, 2300, 2000, 1500, 1000):
            machine.other_bytes = other * MIB
            watch.readings(2)
        settles_at(manager, watch, "large")
        answer = manager.generate_response_sync("Who are you?")
        assert "large" in answer.text
        made = [e.switch.decision for e in watch.events if isinstance(e, DecisionMade)]
        for before, after in pairwise(made):
            assert after.at_s - before.at_s >= 1.0


def test_a_sudden_drop_steps_down_at_once_and_the_running_answer_finishes(running: Running, machine: Machine) -> None:
    """The truth that scaler exists for: down before memory runs out, without cutting the answer off."""
    with running(policy={"drain_tokens": 40, "drain_seconds": 20.0}) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        finished: dict[str, Any] = {}

        async def talk() -> None:
            async for level, data in manager.chat({"messages": [{"role": "user", "content": "Talk."}], **LONG}):
                finished.setdefault("levels", set()).add(level)
                for choice in data.get("choices", ()):
                    finished["text"] = finished.get("text", "") + (choice["delta"].get("content") or "")
                    finished["reason"] = choice["finish_reason"] or finished.get("reason")
                if len(finished.get("text", "")) > 20:
                    machine.other_bytes = 2900 * MIB

        asyncio.run(talk())
        assert finished["levels"] == {"large"}
        assert finished["reason"] == "length"
        assert "large" in finished["text"]
        settles_at(manager, watch, "medium")
        assert decisions(watch)[-1] == ("large", "medium")
        assert "medium" in manager.generate_response_sync("Who are you?").text


def test_an_answer_is_short_when_the_drop_is_critical(running: Running, machine: Machine) -> None:
    """In the critical zone the drain limits shrink to a tenth."""
    with running(policy={"drain_tokens": 300, "drain_seconds": 20.0}) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        after = 0

        async def talk() -> None:
            nonlocal after
            async for _, data in manager.chat({"messages": [{"role": "user", "content": "Talk."}], **LONG}):
                machine.other_bytes = 3800 * MIB
                if watch.told() and decisions(watch)[-1][0] == "large":
                    after += bool(data.get("choices") and data["choices"][0]["delta"].get("content"))

        asyncio.run(talk())
        assert after <= 300 // 10 + 1
        settles_at(manager, watch, "small")


def test_stable_usage_changes_nothing_after_the_climb(running: Running) -> None:
    """No switch without a reason."""
    with running() as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        before = decisions(watch)
        watch.readings(60)
        assert decisions(watch) == before


def test_a_killed_model_is_noticed_at_once_and_another_answer_comes(running: Running, machine: Machine) -> None:
    """kill -9 in the middle of an answer: a clear error there, and the next question is answered."""
    machine.other_bytes = 3000 * MIB
    with running() as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        (pid,) = manager._switcher.pids()

        async def talk() -> None:
            async for _, data in manager.chat({"messages": [{"role": "user", "content": "Talk."}], **LONG}):
                if data["choices"] and data["choices"][0]["delta"].get("content"):
                    os.kill(pid, signal.SIGKILL)

        with pytest.raises(LevelUnavailable, match="small"):
            asyncio.run(talk())
        watch.until(lambda: any(isinstance(e, ModelDied) for e in watch.events), "the death to be told")
        assert "small" in manager.generate_response_sync("Who are you?").text


def test_a_truncated_file_backs_off_and_what_serves_goes_on(
    running: Running, tmp_path: Path, demo_models: dict[str, Path]
) -> None:
    """A level that cannot be loaded must not cost the person the one that can."""
    broken = tmp_path / "medium.gguf"
    broken.write_bytes(demo_models["medium"].read_bytes()[:20_000_000])
    ladder = [
        {"name": "small", "model": str(demo_models["small"]), "ram_gib": 0.08, "context_tokens": 2048, "threads": 1},
        {"name": "medium", "model": str(broken), "ram_gib": 0.24, "context_tokens": 2048, "threads": 1},
    ]
    with running(ladder=ladder) as (manager, watch):
        manager.scaler.want(True)
        watch.until(lambda: any(isinstance(e, SwitchFailed) for e in watch.events), "the failure to be told")
        (failure, *_) = [e for e in watch.events if isinstance(e, SwitchFailed)]
        assert "medium" in failure.reason
        assert str(broken) in failure.reason
        assert failure.still_serving == "small"
        assert manager.generate_response_sync("Who are you?").level == "small"
        settles_at(manager, watch, "small")


def test_many_threads_and_tasks_are_answered_during_switches(running: Running, machine: Machine) -> None:
    """Twenty threads and as many tasks at once, while the level goes up and down: every one gets a whole answer."""
    with running() as (manager, watch):
        stop = threading.Event()
        levels: list[tuple[str, str]] = []
        faults: list[BaseException] = []

        def ask_until_stopped() -> None:
            try:
                while not stop.is_set():
                    answer = manager.generate_response_sync("Who are you?")
                    levels.append((answer.level, answer.text))
            except BaseException as error:
                faults.append(error)

        async def ask() -> None:
            while not stop.is_set():
                answer = await manager.generate_response("Who are you?")
                levels.append((answer.level, answer.text))

        async def twenty() -> None:
            await asyncio.gather(*(ask() for _ in range(20)))

        threads = [threading.Thread(target=ask_until_stopped) for _ in range(20)]
        threads.append(threading.Thread(target=lambda: asyncio.run(twenty())))
        for thread in threads:
            thread.start()
        try:
            settles_at(manager, watch, "large")
            machine.other_bytes = 2900 * MIB
            settles_at(manager, watch, "medium")
            machine.other_bytes = 400 * MIB
            settles_at(manager, watch, "large")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not faults
        assert {level for level, _ in levels} >= {"small", "large"}
        for level, text in levels:
            assert level in text


def test_conversations_survive_switches(running: Running, machine: Machine) -> None:
    """The next level knows what was said to the one before."""
    with running() as (manager, watch):
        first = manager.generate_response_sync("My name is Ada.", system="Be brief.")
        settles_at(manager, watch, "large")
        manager.generate_response_sync("Who am I?", conversation_id=first.conversation_id)
        history = manager.conversations.history(first.conversation_id)
        assert [message["role"] for message in history] == ["system", "user", "assistant", "user", "assistant"]
        assert "small" in history[2]["content"]
        assert "large" in history[4]["content"]
        assert not manager._turns


def test_shutdown_leaves_nothing_behind(running: Running) -> None:
    """No process, no thread, no socket of ours survives."""
    before_threads = set(threading.enumerate())
    with running() as (manager, _):
        manager.generate_response_sync("Who are you?")
        children = psutil.Process().children(recursive=True)
        assert children
        manager.shutdown()
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
        assert set(threading.enumerate()) <= before_threads


def test_a_missing_reading_neither_climbs_nor_steps_down(running: Running, machine: Machine) -> None:
    """A sensor that fails is no reason to change anything."""
    machine.other_bytes = 3000 * MIB
    with running() as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        machine.missing = True
        watch.readings(2)
        machine.other_bytes = 400 * MIB
        before = decisions(watch)
        watch.readings(30)
        assert decisions(watch) == before
        machine.missing = False
        settles_at(manager, watch, "large")
