"""ProactiveScaler as programs use it: from threads and loops, with and without effects, with a real monitor."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaler.errors import PinRefused
from scaler.events import DecisionMade, SwitchDone, SwitchFailed
from scaler.journal import Journal, read
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.machine import Switch
from scaler.monitor import ResourceMonitor
from scaler.performance import AnswerSample
from scaler.policy import Policy
from scaler.proactive import Event, ProactiveScaler, RoomBeside
from scaler.readings import Memory, ModelLoad, Pressure, Reading, Stall

LADDER = Ladder(
    [
        Level("small", {RAM: 1 * GIB}, 0.5, 1.0),
        Level("medium", {RAM: 4 * GIB}, 0.8, 2.0),
        Level("large", {RAM: 8 * GIB}, 1.0, 4.0),
    ]
)
TOTAL = 16 * GIB


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A scaler without a monitor's loop: readings are handed in, one a second."""

    def __init__(self, journal: Journal | None = None, **policy: float) -> None:
        self.clock = Clock()
        self.scaler = ProactiveScaler(
            ladder=LADDER,
            policy=Policy(**policy),  # type: ignore[arg-type]  # the test names float parameters only
            monitor=ResourceMonitor(sensors=[]),
            journal=journal,
            clock=self.clock,
            wall_clock=lambda: 1.7e9 + self.clock.now_s,
        )
        self.events: list[Event] = []
        self.scaler.subscribe(self.events.append)

    def read(self, other_gib: float, seconds: int = 1, own_gib: float = 0.0) -> None:
        for _ in range(seconds):
            self.clock.now_s += 1.0
            available = TOTAL - int((other_gib + own_gib) * GIB)
            self.scaler.observe(Reading(self.clock.now_s, None, Memory(TOTAL, available), int(own_gib * GIB)))

    def made(self) -> list[tuple[str, str]]:
        decisions = [e.switch.decision for e in self.events if isinstance(e, DecisionMade)]
        return [(d.source, d.dest) for d in decisions]


def test_without_arguments_it_reads_the_configuration_and_watches_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`ProactiveScaler()` just works."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SCALER_CONFIG", raising=False)
    scaler = ProactiveScaler()
    seen = threading.Event()
    scaler.subscribe(lambda _: seen.set())
    scaler.start_continuous_monitoring()
    try:
        assert seen.wait(30)
        assert scaler.status().monitoring
        assert scaler.check_preflight_resources().reading_age_s is not None
    finally:
        scaler.stop_continuous_monitoring()
    assert scaler.status().tier in ("low_end", "mid_range", "high_end")
    # A sensor that is being read at the end is not waited for: its thread ends with the call.
    for thread in [one for one in threading.enumerate() if one.name.startswith("scaler")]:
        thread.join(30)
        assert not thread.is_alive(), thread.name


def test_without_an_effect_every_switch_counts_as_done() -> None:
    """A program that only wants advice gets it."""
    bench = Bench()
    bench.read(2.0)
    assert bench.scaler.status().serving == "small"
    bench.read(2.0, 302)
    assert bench.scaler.status().serving == "large"
    bench.read(7.0, 10)
    assert bench.scaler.status().serving == "medium"


def test_an_effect_is_told_of_every_switch_and_answers() -> None:
    """The state is what we mean to serve; what serves is told by events."""
    bench = Bench()
    asked: list[Switch] = []
    leave = bench.scaler.on_enter(asked.append)
    bench.read(2.0)
    status = bench.scaler.status()
    assert (status.state, status.serving, status.settled) == ("small", "off", False)
    bench.scaler.switched(asked[-1].ticket, 0.5)
    status = bench.scaler.status()
    assert (status.serving, status.settled) == ("small", True)
    assert [type(e) for e in bench.events] == [DecisionMade, SwitchDone]
    leave()


def test_a_failed_switch_is_told_and_goes_back_to_what_serves() -> None:
    """The prototype's third mistake: the idea of the level and the level apart for good."""
    bench = Bench()
    asked: list[Switch] = []
    bench.scaler.on_enter(asked.append)
    bench.read(2.0)
    bench.scaler.switched(asked[-1].ticket)
    bench.read(2.0, 302, own_gib=1.0)
    assert asked[-1].dest == "large"
    bench.scaler.switch_failed(asked[-1].ticket, "small", "large: no such file")
    assert bench.scaler.status().state == "small"
    assert any(isinstance(e, SwitchFailed) and e.reason == "large: no such file" for e in bench.events)
    bench.scaler.switched(asked[-1].ticket)
    assert bench.scaler.status().settled


def test_preflight_serves_shortens_or_waits() -> None:
    """A request is never refused with an error text."""
    bench = Bench()
    asked: list[Switch] = []
    bench.scaler.on_enter(asked.append)
    assert bench.scaler.check_preflight_resources().action == "wait"
    bench.read(2.0)
    assert bench.scaler.check_preflight_resources().action == "wait"
    bench.scaler.switched(asked[-1].ticket)
    bench.read(2.0, own_gib=1.0)
    check = bench.scaler.check_preflight_resources()
    assert (check.action, check.level, check.max_tokens) == ("serve", "small", None)
    bench.read(2.0, 302, own_gib=1.0)
    bench.scaler.switched(asked[-1].ticket)
    bench.read(7.7, own_gib=8.0)
    check = bench.scaler.check_preflight_resources()
    assert (check.action, check.level) == ("shorten", "large")
    assert check.max_tokens == 25


def test_trends_tell_in_seconds_when_a_limit_is_reached() -> None:
    """The prototype's sixth mistake: a trend that was a word."""
    bench = Bench()
    bench.read(2.0)
    for step in range(40):
        bench.read(2.0 + 0.05 * step, own_gib=1.0)
    trend = bench.scaler.analyze_resource_trends()[RAM]
    assert trend.slope_bytes_per_s == pytest.approx(0.05 * GIB, rel=0.02)
    now = 2.0 + 0.05 * 39
    assert trend.scale_at_in_s == pytest.approx((0.8 * 16 - 1.0 - now) / 0.05, rel=0.05)
    assert trend.critical_at_in_s == pytest.approx((0.95 * 16 - 1.0 - now) / 0.05, rel=0.05)
    assert trend.sigma_bytes < 0.05 * GIB


def test_should_upgrade_says_what_is_lacking_in_numbers() -> None:
    """Advice without reasons is not trusted."""
    bench = Bench()
    bench.read(2.0, 100, own_gib=0.0)
    advice = bench.scaler.should_upgrade_model()
    assert not advice
    large = next(outlook for outlook in advice.outlooks if outlook.level == "large")
    assert large.wait_s == pytest.approx(201.0, abs=2.0)
    assert any("300 s" in sentence for sentence in large.lacking)
    assert any("16 GiB" in finding.sentence for finding in large.findings)


def test_graceful_degradation_steps_down_by_one() -> None:
    """A program that knows that load is coming may ask for it."""
    bench = Bench()
    bench.read(2.0, 303)
    assert bench.scaler.status().state == "large"
    decision = bench.scaler.initiate_graceful_degradation()
    assert decision is not None
    assert (decision.source, decision.dest) == ("large", "medium")
    bench.scaler.initiate_graceful_degradation()
    assert bench.scaler.initiate_graceful_degradation() is None
    assert bench.scaler.status().state == "small"


def test_a_pin_holds_until_it_is_released() -> None:
    """A person's override."""
    bench = Bench()
    bench.read(2.0)
    bench.scaler.pin("medium")
    bench.read(2.0, 1000)
    assert bench.scaler.status().state == "medium"
    bench.scaler.unpin()
    bench.read(2.0, 2)
    assert bench.scaler.status().state == "large"
    with pytest.raises(PinRefused, match="no such level"):
        bench.scaler.pin("huge")
    bench.read(10.0)
    with pytest.raises(PinRefused, match=r"112\.5 % of 16 GiB"):
        bench.scaler.pin("large")


def test_a_pin_is_told_before_what_follows_from_it(tmp_path: Path) -> None:
    """A person reads first what was asked and then what came of it; of what was refused there is nothing to tell."""
    journal = Journal(tmp_path / "journal.jsonl")
    bench = Bench(journal)
    bench.read(2.0)
    bench.scaler.pin("medium")
    bench.scaler.pin("medium")
    with pytest.raises(PinRefused):
        bench.scaler.pin("huge")
    bench.scaler.unpin()
    journal.close()
    assert [(told["event"], told.get("dest", told.get("level"))) for told in list(read(journal.path))[2:]] == [
        ("pin", "medium"),
        ("decision", "medium"),
        ("switched", "medium"),
        ("pin", "medium"),
        ("pin", None),
    ]


def test_performance_flows_into_the_status() -> None:
    """How well each level answers."""
    bench = Bench()
    bench.scaler.update_performance_metrics(AnswerSample("small", 2.0, 11, 1.0))
    bench.scaler.update_performance_metrics(AnswerSample("small", 1.0, 0, None, failed=True))
    known = bench.scaler.status().performance["small"]
    assert (known.answers, known.failures, known.tokens_per_s) == (1, 1, 10.0)


def test_every_decision_is_in_the_journal_with_its_context(tmp_path: Path) -> None:
    """Decisions are logged with context."""
    journal = Journal(tmp_path / "journal.jsonl")
    bench = Bench(journal)
    bench.read(2.0, 303)
    journal.close()
    records = list(read(tmp_path / "journal.jsonl"))
    assert [r["event"] for r in records] == ["decision", "switched", "decision", "switched"]
    climb = records[2]
    assert (climb["source"], climb["dest"]) == ("small", "large")
    assert climb["projected"]["large"] == pytest.approx(10 / 16)
    assert climb["reading"]["memory"]["total_bytes"] == TOTAL
    guards = {f["guard"]: f["holds"] for f in climb["findings"] if f["level"] == "large"}
    assert guards["fits_below_band"] is True
    assert records[3]["took_s"] == 0.0
    assert json.dumps(records)


def test_a_figure_that_is_no_number_costs_neither_the_record_nor_the_event(tmp_path: Path) -> None:
    """As of a sensor of one's own; a journal is JSON, which has no word for it."""
    journal = Journal(tmp_path / "journal.jsonl")
    bench = Bench(journal)
    bench.clock.now_s += 1.0
    load = ModelLoad(1, 0, math.nan)
    stall = Pressure(Stall(0.0, math.inf))
    bench.scaler.observe(Reading(bench.clock.now_s, None, Memory(TOTAL, TOTAL), 0, pressure=stall, model=load))
    journal.close()
    assert [type(event) for event in bench.events] == [DecisionMade, SwitchDone]
    decision, _ = read(journal.path)
    assert decision["dest"] == "small"
    assert decision["reading"]["memory"] == {"total_bytes": TOTAL, "available_bytes": TOTAL, "limited_by": "machine"}
    assert decision["reading"]["model"] == {"running": 1, "waiting": 0, "cache_ratio": None}
    assert decision["reading"]["pressure"]["memory"] == {"some_avg10_ratio": 0.0, "full_avg10_ratio": None}
    assert "nan" not in journal.path.read_text().lower()


def test_an_event_that_cannot_be_recorded_is_told_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever loads models has to hear of the decision, whatever the clock of people says."""
    journal = Journal(tmp_path / "journal.jsonl")
    bench = Bench(journal)
    bench.scaler._wall_clock = lambda: 1e18
    bench.read(2.0)
    assert [type(event) for event in bench.events] == [DecisionMade, SwitchDone]
    assert "the journal lacks a record of DecisionMade" in caplog.text
    assert "Traceback" in caplog.text


def test_a_subscriber_that_raises_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's fault is reported and goes no further."""
    bench = Bench()

    def broken(_: Event) -> None:
        raise RuntimeError("mine")

    bench.scaler.subscribe(broken)
    later: list[Event] = []
    bench.scaler.subscribe(later.append)
    bench.read(2.0)
    assert later == bench.events
    assert "a subscriber failed" in caplog.text


def test_subscribers_may_call_back_and_hear_events_in_order() -> None:
    """Reacting to an event by asking for something must not deadlock."""
    bench = Bench()
    heard: list[str] = []

    def react(event: Event) -> None:
        heard.append(type(event).__name__)
        if isinstance(event, SwitchDone) and event.level == "small":
            bench.scaler.pin("medium")

    bench.scaler.subscribe(react)
    bench.read(2.0)
    assert bench.scaler.status().state == "medium"
    assert heard == ["DecisionMade", "SwitchDone", "PinChanged", "DecisionMade", "SwitchDone"]


def test_a_coroutine_may_await_the_events() -> None:
    """For programs that live on an event loop; the readings come from another thread."""
    bench = Bench()

    async def body() -> list[str]:
        heard = []
        events = bench.scaler.events()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await asyncio.to_thread(bench.read, 2.0)
        heard.append(type(await first).__name__)
        heard.append(type(await anext(events)).__name__)
        await events.aclose()
        return heard

    assert asyncio.run(body()) == ["DecisionMade", "SwitchDone"]


@pytest.fixture
def monitored() -> Iterator[ProactiveScaler]:
    """A scaler with a fast real monitor of this machine."""
    scaler = ProactiveScaler(ladder=LADDER, policy=Policy(), monitor=ResourceMonitor(interval_s=0.005))
    scaler.start_continuous_monitoring()
    yield scaler
    scaler.stop_continuous_monitoring()


def test_whoever_asks_first_is_answered_by_a_reading_whoever_is_being_told_of_another() -> None:
    """A request that comes as the daemon starts was told that there was no reading yet."""
    told, go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        told.set()
        go_on.wait(60)

    asked = ProactiveScaler(ladder=LADDER, policy=Policy(), monitor=ResourceMonitor(interval_s=0.005))
    asked.monitor.subscribe(hold)
    asked.start_continuous_monitoring()
    try:
        assert told.wait(60)
        assert asked.check_preflight_resources().reading_age_s is not None
        assert asked.room_beside(0).enough is not None
    finally:
        go_on.set()
        asked.stop_continuous_monitoring()


def test_threads_and_coroutines_may_use_it_all_at_once(monitored: ProactiveScaler) -> None:
    """Twenty threads and as many tasks, while the monitor runs: no error, no deadlock, a state that is a state."""
    faults: list[BaseException] = []
    names = ("off", *LADDER.names)

    def use() -> None:
        for number in range(60):
            monitored.check_preflight_resources()
            monitored.analyze_resource_trends()
            assert monitored.status().state in names
            monitored.should_upgrade_model()
            if number % 20 == 0:
                monitored.initiate_graceful_degradation()
                monitored.unpin()

    def thread() -> None:
        try:
            use()
        except BaseException as error:
            faults.append(error)

    async def twenty() -> None:
        await asyncio.gather(*(asyncio.to_thread(use) for _ in range(20)))

    threads = [threading.Thread(target=thread) for _ in range(20)]
    for one in threads:
        one.start()
    asyncio.run(twenty())
    for one in threads:
        one.join()
    assert not faults


def test_monitoring_can_be_started_and_stopped_again(monitored: ProactiveScaler) -> None:
    """Restartable, and idempotent."""
    monitored.start_continuous_monitoring()
    monitored.stop_continuous_monitoring()
    monitored.stop_continuous_monitoring()
    assert not monitored.status().monitoring
    monitored.start_continuous_monitoring()
    assert monitored.status().monitoring


def test_room_beside_the_ladder_is_told_in_numbers() -> None:
    """At the level that serves, against critical-at; and nobody guesses where nothing was read, or not for long."""
    bench = Bench()
    scaler = bench.scaler
    assert scaler.room_beside(0).enough is None
    bench.read(2.0)
    assert scaler.status().state == "small"
    assert scaler.room_beside(12 * GIB).enough is True
    tight = scaler.room_beside(13 * GIB)
    assert tight.enough is False
    assert tight.reason == "usage at small would be 100 % of 16 GiB with 13 GiB more; 95 % is critical"
    bench.read(15.5)
    assert scaler.room_beside(0).enough is False
    bench.clock.now_s += 60.0
    assert scaler.room_beside(0) == RoomBeside(None, "the last reading is 60 s old")
