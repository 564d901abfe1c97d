"""The figures: nothing is told that was not read, and the documents tell what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from scaler.courses import OUTCOMES, PART_OUTCOMES, Courses
from scaler.errors import LevelUnavailable, QueueFull, RequestRejected
from scaler.events import DecisionMade, ModelDied
from scaler.levels import GIB, OFF, Ladder, Level
from scaler.machine import Switch
from scaler.manager import ModelManager
from scaler.metrics.happenings import Happenings
from scaler.metrics.snapshot import Snapshot
from scaler.monitor import ReadingTaken
from scaler.policy import Policy
from scaler.proactive import ProactiveScaler
from scaler.readings import Gpu, Memory, Pressure, Reading, Stall

ROOT = Path(__file__).parents[2]
LEVELS = ("small", "medium", "large")
LADDER = Ladder(
    [
        Level(name, {"ram": size * GIB, "gpu0": size * GIB}, 0.5, 2.0)
        for name, size in zip(LEVELS, (1, 3, 6), strict=True)
    ]
)


class Clock:
    """Monotonic seconds, as the test has them."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Stage:
    """A decision that is fed with readings, and what its metrics say."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.scaler = ProactiveScaler(ladder=LADDER, policy=Policy(), clock=self.clock)
        self.registry = CollectorRegistry()
        self.happenings = Happenings(self.scaler, self.registry, self.clock)
        self.scaler.subscribe(self.happenings.take)
        manager = SimpleNamespace(scaler=self.scaler, answering=0, waiting=0)
        self.registry.register(Snapshot(cast(ModelManager, manager), self.clock))
        self.courses = Courses(self.clock)
        self.courses.subscribe(self.happenings.ended)

    def read(self, reading: Reading) -> None:
        self.clock.now_s = reading.at_s
        self.scaler._on_monitor(ReadingTaken(reading))

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """The samples of a name, by their labels' values in the order of the labels' names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == name
        }


@pytest.fixture
def stage() -> Stage:
    return Stage()


def reading(at_s: float, other_gib: float = 4.0) -> Reading:
    return Reading(at_s, memory=Memory(16 * GIB, int((16 - other_gib) * GIB)), own_bytes=0)


def documented() -> set[str]:
    """The names in the table of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    return set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))


def exposed(stage: Stage) -> set[str]:
    """The names that are scraped, but for those of the process, which differ from system to system."""
    kinds = {"counter": "_total", "info": "_info"}
    return {metric.name + kinds.get(metric.type, "") for metric in stage.registry.collect()}


READINGS = st.builds(
    lambda memory, own, gpu, stalled: Reading(
        0.0,
        memory=None if memory is None else Memory(16 * GIB, memory),
        own_bytes=own,
        gpus=None if gpu is None else (Gpu(0, "card", 8 * GIB, gpu, 8 * GIB - gpu, 0),),
        pressure=None if stalled is None else Pressure(memory=Stall(stalled)),
    ),
    st.none() | st.integers(0, 16 * GIB),
    st.none() | st.integers(0, GIB),
    st.none() | st.integers(0, 8 * GIB),
    st.none() | st.floats(0, 1),
)


@given(st.lists(READINGS, max_size=12))
def test_what_was_not_read_has_no_series(readings: list[Reading]) -> None:
    """A gap in a graph says that nobody knows; a 0 would say that all is well."""
    stage = Stage()
    last: Reading | None = None
    for number, one in enumerate(readings, 1):
        last = Reading(float(number), None, one.memory, one.own_bytes, pressure=one.pressure, gpus=one.gpus)
        stage.scaler.monitor._latest = last
        stage.read(last)
    ram = last is not None and last.usage("ram") is not None
    gpu = ram and last is not None and last.usage("gpu0") is not None
    known = ({"ram"} if ram else set()) | ({"gpu0"} if gpu else set())
    assert {resource for resource, _ in stage.series("scaler_usage_ratio")} == known
    assert {resource for (resource,) in stage.series("scaler_limit_bytes")} == known
    assert {resource for (resource,) in stage.series("scaler_forecast_usage_ratio")} <= known
    # Every level takes both: where one of them is not known, nor is its usage.
    projected = stage.series("scaler_projected_usage_ratio")
    assert set(projected) == ({(name,) for name in LEVELS} if ram and gpu else set())
    stalled = last is not None and last.pressure is not None
    assert bool(stage.series("scaler_memory_stalled_ratio")) is stalled
    if not any(one.memory is not None and one.own_bytes is not None for one in readings):
        assert not stage.series("scaler_reading_age_seconds")


def test_before_the_first_reading_there_is_no_figure_of_the_machine(stage: Stage) -> None:
    """Only what is known without one: that nothing serves, and what is configured."""
    told = {sample.name for metric in stage.registry.collect() for sample in metric.samples}
    assert not {name for name in told if "usage" in name or "age_seconds" in name or "forecast" in name}
    assert stage.series("scaler_level") == {("off",): 1, **{(name,): 0 for name in LEVELS}}


def test_the_series_of_levels_say_which_serves_and_which_is_meant_to(stage: Stage) -> None:
    """They differ in a switch."""
    asked: list[Switch] = []
    stage.scaler.on_enter(asked.append)
    stage.read(Reading(1.0, memory=Memory(16 * GIB, 12 * GIB), own_bytes=0, gpus=(gpu(),)))
    assert stage.series("scaler_level")["off",] == 1
    assert stage.series("scaler_level_target")["small",] == 1
    assert stage.series("scaler_switching") == {(): 1}
    stage.clock.now_s = 4.0
    stage.scaler.switched(asked[-1].ticket, 2.5)
    assert stage.series("scaler_level") == {("off",): 0, ("small",): 1, ("medium",): 0, ("large",): 0}
    assert stage.series("scaler_switching") == {(): 0}
    assert stage.series("scaler_switch_seconds_sum") == {("up", "done"): 3.0}
    assert stage.series("scaler_switch_load_seconds_sum") == {("up",): 2.5}
    assert stage.series("scaler_decisions_total") == {("up", "observe"): 1}


def test_a_pin_is_told_of_off_as_of_any_level(stage: Stage) -> None:
    """That nothing answers because a person wants it so is no fault, and an alert has to see it."""
    stage.read(Reading(1.0, memory=Memory(16 * GIB, 12 * GIB), own_bytes=0, gpus=(gpu(),)))
    none = {("off",): 0, **{(name,): 0 for name in LEVELS}}
    assert stage.series("scaler_level_pinned") == none
    stage.scaler.pin(OFF)
    assert stage.series("scaler_level_pinned") == {**none, ("off",): 1}
    stage.scaler.unpin()
    assert stage.series("scaler_level_pinned") == none


def gpu() -> Gpu:
    return Gpu(0, "card", 8 * GIB, 0, 8 * GIB, 0)


def test_a_switch_that_fails_and_one_that_is_overtaken_are_told_apart(stage: Stage) -> None:
    """Their times are no loading times."""
    asked: list[Switch] = []
    stage.scaler.on_enter(asked.append)
    stage.read(Reading(1.0, memory=Memory(16 * GIB, 12 * GIB), own_bytes=0, gpus=(gpu(),)))
    stage.clock.now_s = 3.0
    stage.scaler.switch_failed(asked[-1].ticket, OFF, "it is broken")
    assert stage.series("scaler_switch_seconds_sum") == {("up", "failed"): 2.0}
    assert stage.series("scaler_switch_failures_total")["small",] == 1
    decision = DecisionMade(asked[0], 0.0)
    stage.happenings.take(decision)
    stage.clock.now_s = 4.0
    stage.happenings.take(decision)
    assert stage.series("scaler_switch_seconds_sum")["up", "overtaken"] == 1.0


def test_a_death_is_counted_from_nought(stage: Stage) -> None:
    """Prometheus sees no increase in a series that begins with 1: an alert would miss the first."""
    stage.happenings.show_levels()
    assert stage.series("scaler_model_deaths_total") == {(name,): 0 for name in LEVELS}
    stage.happenings.take(ModelDied("large", "killed"))
    assert stage.series("scaler_model_deaths_total")["large",] == 1


def test_a_forecast_is_judged_by_what_was_read_when_its_time_had_come(stage: Stage) -> None:
    """Expected less seen: a line that went on is right, a leap that nobody could foresee counts in full."""
    horizon_s = stage.scaler._machine.evidence.horizon_s(0)
    for second in range(6):
        stage.read(reading(float(second), 4.0 + 0.01 * second))
    (due_s,) = [one.due_s for one in stage.happenings._foresight._expected.values()]
    assert due_s == 4.0 + horizon_s
    for second in range(6, int(due_s) + 1):
        stage.read(reading(float(second), 4.0 + 0.01 * second))
    assert stage.series("scaler_forecast_error_ratio") == {("ram",): pytest.approx(0.0, abs=1e-6)}
    expected = stage.series("scaler_forecast_usage_ratio")["ram",]
    for second in range(int(due_s) + 1, int(due_s + horizon_s) + 1):
        stage.read(reading(float(second), 12.0))
    assert stage.series("scaler_forecast_error_ratio") == {("ram",): pytest.approx(expected - 12 / 16, abs=1e-6)}
    assert stage.series("scaler_forecast_absolute_error_ratio_count") == {("ram",): 2}


def test_a_forecast_whose_time_passed_unread_is_not_judged(stage: Stage) -> None:
    """Nobody knows whether it was right; and the error before it is no news of now."""
    for second in range(30):
        stage.read(reading(float(second)))
    before = stage.series("scaler_forecast_absolute_error_ratio_count")["ram",]
    assert stage.series("scaler_forecast_error_ratio")
    for second in range(1000, 1006):
        stage.read(reading(float(second)))
    assert stage.series("scaler_forecast_absolute_error_ratio_count")["ram",] == before
    assert not stage.series("scaler_forecast_error_ratio")


def test_how_requests_end_is_counted_by_level_and_outcome(stage: Stage) -> None:
    """By the level that made the end of the answer; and tokens by the level that made them."""
    made = SimpleNamespace(tokens=7, first_token_s=0.5)
    with stage.courses.begin("chat", None, {}) as course:
        stage.clock.now_s = 2.0
        course.asks("large", made)
        stage.clock.now_s = 4.0
        course.left("gave_way")
        stage.clock.now_s = 5.0
        course.asks("small", SimpleNamespace(tokens=3, first_token_s=0.1))
        stage.clock.now_s = 6.0
    for error in (QueueFull("full"), RequestRejected("wrong"), LevelUnavailable("dead"), GeneratorExit()):
        with pytest.raises(type(error)), stage.courses.begin("chat", None, {}):
            raise error
    assert {labels: value for labels, value in stage.series("scaler_requests_total").items() if value} == {
        ("small", "completed"): 1,
        **{(OFF, outcome): 1 for outcome in ("queue_full", "rejected", "failed", "abandoned")},
    }
    assert stage.series("scaler_tokens_total") == {("large", "gave_way"): 7, ("small", "completed"): 3}
    assert stage.series("scaler_time_to_first_token_seconds_sum") == {("large",): 2.5}
    assert stage.series("scaler_request_wait_seconds_sum") == {(): 3.0}
    assert stage.series("scaler_request_seconds_sum")["completed",] == 6.0


def test_the_guards_are_those_of_the_next_step_up_and_down(stage: Stage) -> None:
    """As `scaler explain` tells them."""
    stage.read(Reading(1.0, memory=Memory(16 * GIB, 12 * GIB), own_bytes=0, gpus=(gpu(),)))
    guards = stage.series("scaler_guard_open")
    assert {(direction, level) for direction, _, level in guards} == {("up", "medium")}
    assert guards["up", "rested", "medium"] == 0
    assert guards["up", "not_backing_off", "medium"] == 1
    (outlook, _) = stage.scaler.status().outlooks
    assert sum(not met for met in guards.values()) == len(outlook.lacking)


def test_every_metric_is_documented_and_none_that_is_not_there(stage: Stage) -> None:
    """With its unit and meaning, in docs/metrics.md."""
    process = {name for name in documented() if name.startswith("process_")}
    assert documented() - process == exposed(stage)


def test_the_outcomes_are_documented() -> None:
    """They are what people will filter by."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    for outcome, words in (*OUTCOMES.items(), *PART_OUTCOMES.items()):
        assert f"`{outcome}`: {words}" in text


def expressions(of: Any) -> Iterator[str]:
    """Every expression in a dashboard or in a file of rules."""
    if isinstance(of, dict):
        for key, value in of.items():
            if key in ("expr", "query", "definition") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(of, list):
        for value in of:
            yield from expressions(value)


@pytest.mark.parametrize("file", ["grafana-dashboard.json", "prometheus-rules.yaml"])
def test_what_is_shipped_asks_for_metrics_that_there_are(stage: Stage, file: str) -> None:
    """Or a panel would stay empty, and an alert silent, for ever."""
    path = ROOT / "config" / file
    shipped = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else yaml.safe_load(path.read_text("utf-8"))
    names = {name for one in expressions(shipped) for name in re.findall(r"\b(?:scaler|process)_\w+", one)}
    assert names
    known = exposed(stage) | {name for name in documented() if name.startswith("process_")}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} <= known


def test_two_scalers_in_one_program_do_not_clash() -> None:
    """Each has its own figures, and none of them touches what is global."""
    one, other = Stage(), Stage()
    one.happenings.take(ModelDied("large", "killed"))
    assert not other.series("scaler_model_deaths_total")
