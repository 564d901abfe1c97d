"""What the effects do when the levels change under them, with a runtime that does as the test says."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from scaler.assembly import Parts, assemble, put_together
from scaler.cli.run import reload_as_asked
from scaler.errors import ConfigError, LevelUnavailable, QueueFull
from scaler.events import PinChanged, Reconfigured
from scaler.journal import Journal, read
from scaler.level_settings import EmbeddedLevel, LevelSettings, VllmLevel
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.manager import ModelManager
from scaler.monitor import ReadingTaken, ResourceMonitor
from scaler.performance import AnswerSample
from scaler.policy import Policy
from scaler.reloading import changes
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.runtimes.vllm import VllmRuntime
from scaler.settings import Settings
from scaler.surroundings import Surroundings
from scaler.words import reconfigured
from tests.effects.test_proactive import Bench
from tests.effects.test_switching import Stage, on_stage

with_standby = partial(on_stage, standby=("small",))
NOTHING = Reconfigured((), ())


def change(stage: Stage, names: Collection[str], kept: Collection[str], **more: object) -> None:
    """Have the stage's switcher and scaler know these levels, smallest first."""
    settings = {name: EmbeddedLevel(name=name, model=Path(name), **more) for name in names}  # type: ignore[arg-type]
    stage.switcher.reconfigure({n: (stage.runtime, one) for n, one in settings.items()}, kept, queue_limit=1)
    ladder = Ladder([Level(name, {RAM: GIB * size}, 0.5, 1.0) for size, name in enumerate(names, 1)])
    stage.scaler.reconfigure(ladder, Policy(), None, kept, NOTHING)


async def begun(stage: Stage) -> asyncio.Task[tuple[str, dict[str, object]]]:
    """An answer that has said its first word of four."""
    answer = asyncio.create_task(stage.answer(4))
    model = stage.runtime.models["large"]
    model.more.release()
    while not stage.switcher.answering or model.more._value:
        await asyncio.sleep(0)
    return answer


@on_stage
async def test_the_model_of_a_level_that_is_gone_answers_until_the_next_one_does(stage: Stage) -> None:
    """The running answer ends whole, and its figures are nobody's."""
    large = await stage.serve("large")
    answer = await begun(stage)
    change(stage, ("small",), ("small",))
    assert (stage.switcher.loaded, stage.switcher.former) == ((), "large")
    assert stage.runtime.log == ["load large"]
    another = asyncio.create_task(stage.answer(1))
    for _ in range(4):
        large.more.release()
    assert (await answer)[1]["message"] == {"role": "assistant", "content": "large0 large1 large2 large3 "}
    assert (await another)[0] == "large"
    await stage.serve("small")
    assert stage.runtime.log == ["load large", "load small", "unload large"]
    assert stage.switcher.former is None
    assert stage.scaler.status().performance == {}


@on_stage
async def test_an_answer_of_a_level_that_is_gone_goes_on_at_the_next(stage: Stage) -> None:
    """Where it takes longer than the drain lets it."""
    await stage.serve("large")
    answer = await begun(stage)
    change(stage, ("small",), ("small",))
    ticket = stage.ask("small", drain_s=0.0)
    await stage.told.until("switched", ticket)
    for _ in range(4):
        stage.runtime.models["small"].more.release()
    level, choice = await answer
    assert (level, choice["message"]) == ("small", {"role": "assistant", "content": "large0 small1 small2 small3 "})


@on_stage
async def test_a_level_with_other_settings_is_loaded_though_its_name_serves(stage: Stage) -> None:
    """After the old model where both cannot be loaded at the same time."""
    await stage.serve("large")
    change(stage, ("small", "medium", "large"), ("small", "medium"), context_tokens=1024)
    await stage.serve("large")
    assert stage.runtime.log == ["load large", "unload large", "load large"]
    change(stage, ("small", "medium", "large"), ("small", "medium", "large"), context_tokens=1024)
    await stage.serve("large")
    assert stage.runtime.log[3:] == []


@on_stage
async def test_a_model_of_a_level_that_is_gone_may_die_without_blame(stage: Stage) -> None:
    """The decision knows no such level."""
    large = await stage.serve("large")
    change(stage, ("small",), ("small",))
    large.die()
    await stage.told.until("switched", stage.ask("small"))
    assert not [told for told in stage.told.log if told[0] == "died"]


@on_stage
async def test_an_answer_whose_model_died_before_its_level_went_is_nobodys_either(stage: Stage) -> None:
    """However late its end is heard of; one whose level stays counts."""
    large = await stage.serve("large")
    lease = await stage.switcher.lease(1.0, lambda: "")
    large.die()
    await stage.told.until("died", "large")
    await stage.told.until("switched", stage.ask("small"))
    kept = await stage.switcher.lease(1.0, lambda: "")
    change(stage, ("small",), ("small",))
    assert (lease.level, lease.replaced, kept.level, kept.replaced) == ("large", True, "small", False)
    lease.release()
    kept.release()


@on_stage
async def test_a_load_of_a_level_that_is_gone_is_given_up(stage: Stage) -> None:
    """What serves stays until the next switch, which is not late for it."""
    await stage.serve("small")
    stage.runtime.gate.clear()
    stage.ask("large")
    while "load large" not in stage.runtime.log:
        await asyncio.sleep(0)
    change(stage, ("small",), ("small",))
    ticket = stage.ask("small")
    await stage.told.until("switched", ticket)
    assert stage.switcher.loaded == ("small",)


@on_stage
async def test_a_switch_that_was_decided_on_the_ladder_before_is_passed_over(stage: Stage) -> None:
    """The monitor's thread may ask for one in the very moment of the change."""
    await stage.serve("small")
    stage.ask("large")
    change(stage, ("small",), ("small",))
    for _ in range(20):
        await asyncio.sleep(0)
    assert stage.switcher.loaded == ("small",)
    assert stage.runtime.log == ["load small"]


@with_standby
async def test_a_level_that_stands_by_no_longer_is_unloaded(stage: Stage) -> None:
    """At the switch that the change of it brings."""
    await stage.serve("large")
    assert stage.switcher.loaded == ("large", "small")
    change(stage, ("small", "medium", "large"), ("small", "medium", "large"))
    await stage.serve("large")
    assert "small" not in stage.switcher.loaded
    assert stage.runtime.log[-1] == "unload small"


@on_stage
async def test_who_waits_for_a_level_that_goes_is_told_and_others_wait_on(stage: Stage) -> None:
    """Also how many may wait is another figure from then on."""
    waits = asyncio.create_task(stage.switcher.lease(10, lambda: "it is being loaded"))
    insists = asyncio.create_task(stage.switcher.lease(10, lambda: "it is being loaded", level="large"))
    while stage.switcher.waiting < 2:
        await asyncio.sleep(0)
    change(stage, ("small", "medium"), ("small", "medium"))
    with pytest.raises(LevelUnavailable, match="large: it is not on the ladder any more"):
        await insists
    with pytest.raises(QueueFull):
        await stage.switcher.lease(10, lambda: "it is being loaded")
    await stage.serve("small")
    (await waits).release()


@on_stage
async def test_servers_of_new_levels_let_go_of_what_they_hold(stage: Stage) -> None:
    """Those of levels that scaler knew hold what is its own."""
    await stage.serve("small")
    stage.runtime.released.clear()
    change(stage, ("small", "medium", "huge"), ("small",))
    while "huge" not in stage.runtime.released:
        await asyncio.sleep(0)
    assert stage.runtime.released == {"huge"}


def test_two_levels_of_one_server_or_port_are_not_loaded_beside_each_other() -> None:
    """A level and what comes in its place may be."""
    one = VllmLevel(name="one", runtime="vllm", model="m", vram_gib=1)
    vllm = VllmRuntime()
    assert not vllm.apart(one, one.model_copy(update={"name": "other", "sleep": 2}))
    assert vllm.apart(one, VllmLevel.model_validate({**one.model_dump(), "url": "http://127.0.0.1:8001"}))
    level = EmbeddedLevel(name="one", model=Path("m"), port=5000)
    embedded = EmbeddedRuntime()
    assert not embedded.apart(level, level)
    assert embedded.apart(level, level.model_copy(update={"port": None}))


def test_how_a_level_is_judged_is_nothing_of_what_is_loaded() -> None:
    """So that a model stays where only that changes."""
    level: LevelSettings = EmbeddedLevel(name="one", model=Path("m"))
    judged = {"quality": 0.9, "ram_gib": 2.0, "vram_gib": 1.0, "load_s": 9.0, "load_timeout_s": 9.0, "standby": True}
    assert level.loads_as(level.model_copy(update=judged))
    for another in ({"model": Path("n")}, {"context_tokens": 512}, {"threads": 2}, {"parallel": 1}):
        assert not level.loads_as(level.model_copy(update=another))


def test_a_scaler_decides_on_the_new_ladder_and_tells_it_in_order() -> None:
    """The change, the switch that it brings, the pin that it ends."""
    bench = Bench()
    bench.read(2.0, 303)
    assert bench.scaler.status().serving == "large"
    bench.scaler.update_performance_metrics(AnswerSample("large", 2.0, 20, 0.5))
    bench.scaler.pin("large")
    bench.events.clear()
    ladder = Ladder([Level("small", {RAM: 1 * GIB}, 0.5, 1.0)])
    assert bench.scaler.reconfigure(ladder, Policy(scale_at=0.7), "mine", {"small"}, NOTHING) == "large"
    told = [type(event).__name__ for event in bench.events]
    assert told == ["Reconfigured", "DecisionMade", "SwitchDone", "PinChanged"]
    assert bench.events[-1] == PinChanged(None)
    status = bench.scaler.status()
    assert (status.serving, status.tier, status.policy.scale_at, status.performance) == ("small", "mine", 0.7, {})


def test_another_interval_is_kept_from_the_next_reading_on() -> None:
    """A long one that has begun is not slept out."""
    monitor = ResourceMonitor(interval_s=3600.0, sensors=[])
    seen: list[float] = []

    async def scene() -> None:
        loop, enough = asyncio.get_running_loop(), asyncio.Event()

        def take(event: object) -> None:
            if isinstance(event, ReadingTaken):
                seen.append(event.reading.at_s)
                if len(seen) >= 4:
                    loop.call_soon_threadsafe(enough.set)

        monitor.subscribe(take)
        monitor.start()
        try:
            monitor.set_interval(0.01)
            await asyncio.wait_for(enough.wait(), 30)
        finally:
            monitor.stop()

    asyncio.run(scene())


def test_a_journal_of_another_size_rotates_by_it(tmp_path: Path) -> None:
    """From the next record on."""
    journal = Journal(tmp_path / "journal.jsonl", max_bytes=1_000_000, files=2)
    for number in range(5):
        journal.write({"number": number})
    journal.resize(max_bytes=40, files=3)
    for number in range(5, 12):
        journal.write({"number": number})
    journal.close()
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["journal.jsonl", "journal.jsonl.1", "journal.jsonl.2", "journal.jsonl.lock"]
    assert [record["number"] for record in read(journal.path)][-1] == 11


def test_a_refusal_that_nobody_waits_for_any_more_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log; whoever asked has hung up, and asyncio has no error left that nobody took."""
    (tmp_path / "a.gguf").write_bytes(b"none")
    config = tmp_path / "scaler.yaml"
    config.write_text("ladder: [{name: a, model: a.gguf, ram_gib: 1}]\njournal: {path: journal.jsonl}\n")
    begun, gate = threading.Event(), threading.Event()

    def slow(settings: Settings, running: Parts | None) -> Parts:
        if running is None:
            return put_together(settings)
        begun.set()
        assert gate.wait(30)
        raise LevelUnavailable("a: it cannot be sized")

    async def hang_up(manager: ModelManager) -> None:
        asking = asyncio.create_task(manager.reload())
        await asyncio.to_thread(begun.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    async def answered(manager: ModelManager) -> None:
        gate.set()
        with pytest.raises(ConfigError, match="cannot be sized"):
            # It waits for the one before.
            await manager.reload()

    with ModelManager(config, surroundings=Surroundings(put_together=slow)) as manager:
        asyncio.run(hang_up(manager))
        asyncio.run(answered(manager))
    gc.collect()
    assert caplog.text.count("the configuration is refused, and nothing changes") == 2
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]


def test_a_daemon_outlives_a_reload_that_fails_as_nobody_foresaw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGHUP ended it, and every answer with it. It is told once, with where it came from, and the next one applies."""
    (tmp_path / "a.gguf").write_bytes(b"none")
    config = tmp_path / "scaler.yaml"
    written = "ladder: [{name: a, model: a.gguf, ram_gib: 1}]\njournal: {path: journal.jsonl}\n"
    config.write_text(written)
    failures = [ZeroDivisionError("no reload was ever meant to divide")]

    def failing(settings: Settings, running: Parts | None) -> Parts:
        if running is not None and failures:
            raise failures.pop()
        return put_together(settings, running)

    signals = iter((True, True, False))
    with ModelManager(config, surroundings=Surroundings(put_together=failing)) as manager:
        config.write_text(f"{written}queue: {{limit: 7}}\n")
        reload_as_asked(manager, lambda: next(signals))
        assert manager.settings.queue.limit == 7
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "failed unexpectedly" in told.getMessage()
    assert told.exc_info is not None
    assert told.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"ram_gib": 0.0625}, {"ram_gib": 0.125}, "64 MiB of RAM → 0.12 GiB of RAM"),
        (
            {"ram_gib": 1, "vram_gib": 3},
            {"ram_gib": 1, "vram_gib": 4},
            "1.00 GiB of RAM and 3.00 GiB of gpu0 → 1.00 GiB of RAM and 4.00 GiB of gpu0",
        ),
        (
            {"ram_gib": 1},
            {"ram_gib": 1.0009765625},
            "1,073,741,824 bytes of RAM → 1,074,790,400 bytes of RAM",
        ),
    ],
)
def test_what_a_level_takes_now_is_told_as_people_read_it(
    before: dict[str, float], after: dict[str, float], told: str, tmp_path: Path
) -> None:
    """In bytes only where the difference could not be seen otherwise."""
    path = tmp_path / "scaler.yaml"

    def parts(takes: dict[str, float]) -> Parts:
        level = {"name": "large", "runtime": "ollama", "url": "http://127.0.0.1:9", "model": "m", **takes}
        path.write_text(json.dumps({"tier": "low_end", "ladder": [level]}))
        return assemble(path)

    line = reconfigured(map(asdict, changes(parts(before), parts(after))), ())
    assert f"ladder.large takes: {told}" in line.split("; ")
