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

from scaler.demo.models import COUNTS_TO
from scaler.events import AnswerHandedOver, DecisionMade, ModelDied, SwitchDone, SwitchFailed
from scaler.manager import Answer
from tests.end_to_end.conftest import MIB, Machine, Watch

Running = Callable[..., Any]
COUNT = {"messages": [{"role": "user", "content": "Count to a thousand."}], "temperature": 0}
COUNTED = "".join(f" {number}" for number in range(1, COUNTS_TO + 1)) + " ."


def settles_at(manager: Any, watch: Watch, level: str) -> None:
    """Wait until it serves and nothing else is under way; and until all that led there has been told, which is later
    by as long as somebody takes who is being told of something else.
    """

    def there() -> bool:
        status = manager.scaler.status()
        if not (status.serving == level and status.state == level and status.settled):
            return False
        ended = {event.ticket for event in watch.events if isinstance(event, SwitchDone | SwitchFailed)}
        return status.last_decision is None or status.last_decision.ticket in ended

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


def test_a_sudden_drop_steps_down_at_once_and_the_next_level_finishes_the_answer(
    running: Running, machine: Machine
) -> None:
    """The truth that scaler exists for: down before memory runs out, and one whole answer all the same."""
    with running(policy={"drain_tokens": 40, "drain_seconds": 20.0}) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        by_level: dict[str, int] = {}
        text, reason = "", None

        async def talk() -> None:
            nonlocal text, reason
            async for level, data in manager.chat(COUNT):
                for choice in data.get("choices", ()):
                    text += choice["delta"].get("content") or ""
                    by_level[level] = by_level.get(level, 0) + bool(choice["delta"].get("content"))
                    reason = choice["finish_reason"] or reason
                if len(text) > 20:
                    machine.other_bytes = 2900 * MIB

        asyncio.run(talk())
        assert text == COUNTED
        assert reason == "stop"
        assert list(by_level) == ["large", "medium"]
        settles_at(manager, watch, "medium")
        assert decisions(watch)[-1] == ("large", "medium")
        told = [event for event in watch.events if isinstance(event, AnswerHandedOver)]
        assert [(event.level, event.reason) for event in told] == [("large", None)]
        assert told[0].tokens == by_level["large"]


def test_an_answer_has_a_tenth_of_the_limits_when_the_drop_is_critical(running: Running, machine: Machine) -> None:
    """The large model is gone soon, and the smallest says the rest."""
    with running(policy={"drain_tokens": 300, "drain_seconds": 20.0}) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        after, text = 0, ""

        async def talk() -> None:
            nonlocal after, text
            async for level, data in manager.chat(COUNT):
                machine.other_bytes = 3800 * MIB
                piece = "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))
                text += piece
                if level == "large" and decisions(watch)[-1][0] == "large":
                    after += bool(piece)

        asyncio.run(talk())
        assert after <= 300 // 10 + 1
        assert text == COUNTED
        settles_at(manager, watch, "small")


def test_stable_usage_changes_nothing_after_the_climb(running: Running) -> None:
    """No switch without a reason."""
    with running() as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        before = decisions(watch)
        watch.readings(60)
        assert decisions(watch) == before


def test_an_answer_whose_model_is_killed_goes_on_where_it_stood(running: Running, machine: Machine) -> None:
    """kill -9 in the middle of it: the client sees one whole answer, and the death is told."""
    machine.other_bytes = 3000 * MIB
    with running() as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        pids = list(manager._switcher.pids())
        text = ""

        async def talk() -> None:
            nonlocal text
            async for _, data in manager.chat(COUNT):
                text += "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))
                if len(text) > 100 and pids:
                    os.kill(pids.pop(), signal.SIGKILL)

        asyncio.run(talk())
        assert text == COUNTED
        watch.until(lambda: any(isinstance(e, ModelDied) for e in watch.events), "the death to be told")
        (over,) = [event for event in watch.events if isinstance(event, AnswerHandedOver)]
        assert "small" in (over.reason or "")
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
        answers: list[Answer] = []
        faults: list[BaseException] = []

        def ask_until_stopped() -> None:
            try:
                while not stop.is_set():
                    answer = manager.generate_response_sync("Who are you?")
                    answers.append(answer)
            except BaseException as error:
                faults.append(error)

        async def ask() -> None:
            while not stop.is_set():
                answer = await manager.generate_response("Who are you?")
                answers.append(answer)

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
        assert {answer.level for answer in answers} >= {"small", "large"}
        # One that gave way with the last word said is ended by the next level.
        assert all(any(level in answer.text for level in answer.levels) for answer in answers)


def test_conversations_survive_switches(running: Running, machine: Machine) -> None:
    """The next level knows what was said to the one before."""
    with running() as (manager, watch):
        first = manager.generate_response_sync("My name is Ada.", system="Be brief.")
        settles_at(manager, watch, "large")
        manager.generate_response_sync("Who am I?", conversation_id=first.conversation_id)
        history = manager.conversations.history(first.conversation_id)
        roles = [said.message["role"] for said in history]
        assert roles == ["system", "user", "assistant", "user", "assistant"]
        assert [said.levels for said in history] == [(), (), ("small",), (), ("large",)]
        assert "small" in history[2].message["content"]
        assert "large" in history[4].message["content"]
        assert not manager._turns


def test_shutdown_leaves_nothing_behind(running: Running) -> None:
    """No process, no thread, no socket of ours survives."""
    before_threads = set(threading.enumerate())
    # Tests of other files, before it in the same process, may have left helpers of Python's own.
    before_children = set(psutil.Process().children(recursive=True))
    with running() as (manager, _):
        manager.generate_response_sync("Who are you?")
        children = set(psutil.Process().children(recursive=True)) - before_children
        assert children
        manager.shutdown()
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
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
