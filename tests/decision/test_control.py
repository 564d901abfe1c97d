"""The decision over JSON lines: the same one, and clear words for lines that cannot be understood."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.control import converse
from scaler.errors import ConfigError, ScalerError
from scaler.levels import GIB, OFF, RAM, Ladder, Level
from scaler.machine import LevelMachine, Switch
from scaler.policy import Policy
from scaler.readings import Memory, Reading

TOTAL = 24 * GIB
SIZES = {OFF: 0, "small": 2 * GIB, "medium": 6 * GIB, "large": 12 * GIB}
LOADS = {OFF: 0.0, "small": 1.0, "medium": 3.0, "large": 5.0}


def hello(**thresholds: Any) -> dict[str, Any]:
    levels = [{"name": n, "memory_bytes": size, "quality": 0.5, "load_s": LOADS[n]} for n, size in SIZES.items()]
    return {"type": "hello", "step_s": 1.0, "memory_total_bytes": TOTAL, "thresholds": thresholds, "levels": levels}


def sample(
    t: float,
    other_gib: float | None,
    level: str | None = "small",
    *,
    loading: str | None = None,
    event: dict[str, Any] | None = None,
) -> dict[str, Any]:
    own = SIZES[level or OFF]
    memory = None if other_gib is None else {"used_bytes": int(other_gib * GIB) + own, "total_bytes": TOTAL}
    model = {"level": level, "loading": loading, "rss_bytes": own, "cpu_percent": 2.0}
    message = {"type": "sample", "t": t, "memory": memory, "cpu": {"percent": 9.0}, "model": model, "in_flight": 0}
    return message if event is None else {**message, "event": event}


def switched(level: str, ok: bool = True) -> dict[str, Any]:
    return {"type": "switched", "level": level, "ok": ok}


def answers(*messages: Any, policy: Policy | None = None) -> list[dict[str, Any]]:
    """What comes back, a line a message; text is sent as it is."""
    lines = "".join((m if isinstance(m, str) else json.dumps(m)) + "\n" for m in messages)
    out = io.BytesIO()
    converse(io.BytesIO(lines.encode()), out, policy or Policy())
    return [json.loads(line) for line in out.getvalue().splitlines()]


def targets(*messages: Any, **more: Any) -> list[str]:
    return [answer["target"] for answer in answers(*messages, **more)[1:]]


class Plant:
    """The other program: does what it was last told, after a while."""

    def __init__(self, latency: int, level: str = "small") -> None:
        self.level, self.latency = level, latency
        self.loading: str | None = None
        self.left = 0
        self.event: dict[str, Any] | None = switched(level)

    def sample(self, t: float, other_gib: float | None) -> dict[str, Any]:
        message = sample(t, other_gib, None if self.loading else self.level, loading=self.loading, event=self.event)
        self.event = None
        return message

    def obey(self, target: str) -> None:
        if self.loading is not None:
            self.left -= 1
            if self.left <= 0:
                self.level, self.loading = self.loading, None
                self.event = switched(self.level)
        elif target != self.level:
            self.loading, self.left = target, self.latency


def test_a_conversation_climbs_descends_and_says_why() -> None:
    """The whole of the protocol in one go."""
    lines = [sample(t, 4, event=switched("small") if t == 0 else None) for t in range(302)]
    told = answers(hello(), *lines, sample(302, 4, "large", event=switched("large")), sample(303, 11.2, "large"))
    assert told[0] == {"type": "ready"}
    assert told[1] == {"target": "small", "urgent": False, "reason": "settled"}
    assert [a["target"] for a in told[301:303]] == ["large", "large"]
    assert told[301]["reason"].startswith("usage at large would be 66.7 % of 24 GiB; it has been at most 77 %")
    assert told[303]["reason"] == "settled"
    assert told[304]["target"] == "medium"
    assert told[304]["reason"].startswith("usage at large is 96.7 % of 24 GiB; the limit is 80 %")
    assert told[304]["urgent"] is False


def test_urgent_is_said_when_nothing_is_left_and_only_while_the_switch_goes_on() -> None:
    """It kills the answer in flight, so it is the last resort."""
    told = answers(
        hello(),
        sample(0, 4, "large"),
        sample(1, 11.95, "large"),
        sample(2, 11.95, "large"),
        sample(3, 11.95, "large"),
        sample(4, 11.95, None, loading="medium"),
        sample(5, 11.95, "medium", event=switched("medium")),
    )
    assert [a["urgent"] for a in told[1:]] == [False, False, False, True, True, False]


def test_a_conversation_in_a_process_of_its_own_answers_each_line_as_it_comes() -> None:
    """The protocol as another program meets it: `scaler control` behind pipes."""
    command = [sys.executable, "-m", "scaler", "control"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(hello()) + "\n")
        assert json.loads(process.stdout.readline()) == {"type": "ready"}
        plant = Plant(latency=2, level="large")
        seen = []
        for t in range(20):
            process.stdin.write(json.dumps(plant.sample(float(t), 4 if t < 10 else 8)) + "\n")
            answer = json.loads(process.stdout.readline())
            seen.append(answer["target"])
            plant.obey(answer["target"])
        process.stdin.close()
        assert process.wait(30) == 0
    assert seen == ["large"] * 14 + ["medium"] * 6
    assert plant.level == "medium"


def usages() -> st.SearchStrategy[list[float | None]]:
    """Stretches of constant usage, with holes."""
    stretch = st.tuples(st.one_of(st.none(), st.integers(0, 24).map(float), st.floats(0, 24)), st.integers(1, 60))
    return st.lists(stretch, max_size=15).map(lambda parts: [usage for usage, count in parts for _ in range(count)])


@given(usages(), st.integers(0, 4), st.sampled_from(tuple(SIZES)), st.integers(0, 30))
def test_the_decisions_are_those_of_the_machine_fed_with_the_same_readings(
    other: list[float | None], latency: int, initial: str, dwell_s: int
) -> None:
    """One decision core: `scaler control` and the daemon cannot come apart."""
    policy = Policy(dwell_s=float(dwell_s))
    levels = [Level(n, {RAM: size}, 0.5, LOADS[n]) for n, size in SIZES.items() if n != OFF]
    reasons: list[str] = []
    asked: list[Switch] = []

    def entered(switch: Switch) -> None:
        asked.append(switch)
        reasons.append(switch.decision.reason)

    machine = LevelMachine(Ladder(levels), policy, entered, initial=initial)
    plant, lines, expected = Plant(latency, initial), [], []
    for number, other_gib in enumerate(other):
        at_s = number * 2.0
        message = plant.sample(at_s, other_gib)
        lines.append(message)
        if "event" in message and asked and message["event"]["level"] == asked[-1].dest:
            machine.switched(asked[-1].ticket, at_s)
        if message["memory"] is None:
            machine.observe(Reading(at_s))
        else:
            used, own = message["memory"]["used_bytes"], message["model"]["rss_bytes"]
            machine.observe(Reading(at_s, memory=Memory(TOTAL, TOTAL - used), own_bytes=own))
        if not machine.settled and plant.loading is None and plant.level == machine.state:
            machine.switched(asked[-1].ticket, at_s)
        expected.append((machine.state, "settled" if machine.settled else reasons[-1]))
        plant.obey(machine.state)
    told = answers(hello(upgrade_dwell_s=dwell_s), *lines)[1:]
    assert [(answer["target"], answer["reason"]) for answer in told] == expected


def test_the_thresholds_of_hello_go_before_the_tiers() -> None:
    """And what they do not name stays as the tier has it."""
    lines = [sample(float(t), 4) for t in range(20)]
    assert targets(hello(), *lines)[-1] == "small"
    assert targets(hello(upgrade_dwell_s=10), *lines)[-1] == "large"
    assert targets(hello(upgrade_dwell_s=10, scale_at=0.6), *lines)[-1] == "medium"
    assert targets(hello(upgrade_dwell_s=10), *lines, policy=Policy(max_level="medium"))[-1] == "medium"
    assert targets(hello(upgrade_dwell_s=7200.0), *lines)[-1] == "small"
    assert targets(hello(critical_at=0.995), sample(0, 21.7), sample(1, 21.7)) == ["small", "small"]


def test_what_other_programs_leave_out_or_call_otherwise_is_understood() -> None:
    """No thresholds, no `off` among the levels, no level loaded, no memory, unknown keys."""
    greeting = hello()
    del greeting["thresholds"]
    greeting["levels"] = greeting["levels"][1:]
    assert targets(greeting, sample(0, 4, None), sample(1, None, None)) == ["small", "small"]
    assert targets({**hello(), "more": 1}, {**sample(0, 4), "more": [None]}) == ["small"]


def test_off_is_settled_without_an_event() -> None:
    """A program may say that nothing is loaded by null as well as by its name."""
    for nothing in (None, OFF):
        told = targets(
            hello(),
            sample(0, 4),
            sample(1, 21.5),
            *(sample(float(t), 21.5, nothing) for t in range(2, 30)),
            *(sample(float(t), 4, nothing) for t in range(30, 45)),
        )
        assert told[1] == OFF
        assert told[-1] == "small", nothing


def test_a_sample_that_cannot_be_is_a_missing_one() -> None:
    """Figures that are missing or no numbers block upgrades and force nothing."""
    absurd: list[dict[str, Any]] = [
        {"memory": None},
        {"memory": {}},
        {"memory": {"used_bytes": None, "total_bytes": TOTAL}},
        {"memory": {"used_bytes": float("nan"), "total_bytes": TOTAL}},
        {"memory": {"used_bytes": float("inf"), "total_bytes": TOTAL}},
        {"memory": {"used_bytes": 5, "total_bytes": 0}},
        {"memory": {"used_bytes": -5, "total_bytes": TOTAL}},
        {"model": {"level": "large", "loading": None, "rss_bytes": None}},
        {"model": {"level": "large", "loading": None, "rss_bytes": -1}},
        {"model": {"level": "large", "loading": None}},
        {"t": 0.5},
    ]
    lines = [{**sample(float(t), 4, "large"), **change} for t, change in enumerate(absurd, start=1)]
    assert targets(hello(), sample(0, 4, "large"), *lines) == ["large"] * (len(lines) + 1)


def test_news_of_an_overtaken_switch_does_not_count_for_the_present_one() -> None:
    """The machine has changed its mind while the other program loaded; what came up is not what is wanted now."""
    lines = [sample(float(t), 4) for t in range(301)]
    told = targets(
        hello(),
        *lines,
        sample(301, 4, None, loading="large"),
        sample(302, 13.5, None, loading="large"),
        sample(303, 13.5, "large", event=switched("large")),
        sample(304, 13.5, None, loading="small"),
        sample(305, 13.5, "small", event=switched("small")),
        sample(306, 13.5, "small"),
    )
    assert told[300:] == ["large", "large", "small", "small", "small", "small", "small"]


def test_a_failed_switch_returns_to_the_level_that_serves() -> None:
    """And the failed one is left alone for a while."""
    lines = [sample(float(t), 4) for t in range(301)]
    told = answers(
        hello(),
        *lines,
        sample(301, 4, event=switched("small", ok=False)),
        *(sample(float(t), 4) for t in range(302, 320)),
    )
    assert [a["target"] for a in told[301:303]] == ["large", "small"]
    assert {a["target"] for a in told[302:]} == {"small"}


@pytest.mark.parametrize("event", [{"type": "died", "level": OFF, "ok": False}, None])
def test_a_model_that_died_is_noticed_with_or_without_an_event(event: dict[str, Any] | None) -> None:
    """Whoever says that nothing is loaded any more has said it."""
    after = [sample(float(t), 4, OFF) for t in range(2, 11)]
    told = targets(hello(), sample(0, 4, "large"), sample(1, 4, OFF, event=event), *after)
    assert told == ["large", *[OFF] * 9, "small"]


def broken() -> Iterator[tuple[str, Any, str]]:
    """A name, the line after two good ones, and what is said of it."""
    good = sample(1, 4)
    yield "no JSON", "hello?", "one JSON object a line"
    yield "an empty line", "", "one JSON object a line"
    yield "half a line", '{"type": "sam', "one JSON object a line"
    yield "no object", "[1, 2]", "one JSON object a line"
    yield "a bare number", "3", "one JSON object a line"
    yield "no type", {"t": 1}, "'type' is missing"
    yield "another type", {"type": "bye"}, "type 'bye'; expected 'hello' first, then 'sample'"
    yield "no time", {k: v for k, v in good.items() if k != "t"}, "'t' is missing"
    yield "no number", {**good, "t": "soon"}, "t is 'soon'; expected a number"
    yield "no time at all", {**good, "t": float("nan")}, "t is nan; expected a number"
    yield "no end of time", {**good, "t": float("inf")}, "t is inf; expected a number"
    yield "nanoseconds", {**good, "t": 1764000000000000000}, "t is 1.764e+18; expected seconds"
    yield "a huge number", {**good, "t": 10**400}, "one JSON object a line"
    yield "no model", {k: v for k, v in good.items() if k != "model"}, "'model' is missing"
    yield "an unknown level", {**good, "model": {**good["model"], "level": "huge"}}, "there is no level 'huge'"
    yield "an unknown event", {**good, "event": {"type": "smiled"}}, "event.type is 'smiled'"
    yield "an event without type", {**good, "event": {}}, "'type' is missing"
    yield "an event of an unknown level", {**good, "event": switched("huge")}, "there is no level 'huge'"
    yield (
        "a word for a size",
        {**good, "memory": {"used_bytes": "much", "total_bytes": TOTAL}},
        "one JSON object a line",
    )


@pytest.mark.parametrize(("line", "message"), [pytest.param(*case, id=name) for name, *case in broken()])
def test_a_line_that_cannot_be_understood_is_told_by_its_number(line: Any, message: str) -> None:
    """Whoever writes the other program finds the fault without a debugger."""
    with pytest.raises(ScalerError, match=r"^stdin:3: ") as raised:
        answers(hello(), sample(0, 4), line)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_sample_before_hello_is_refused() -> None:
    """Without a ladder there is nothing to decide."""
    with pytest.raises(ScalerError, match=r"^stdin:1: type 'sample'; expected 'hello' first, then 'sample'$"):
        answers(sample(0, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": []}, "ladder: no levels; expected at least one"),
        ({"levels": [hello()["levels"][0]]}, "ladder: no levels; expected at least one"),
        ({"levels": [hello()["levels"][2], hello()["levels"][1]]}, "expected the levels from the smallest"),
        ({"levels": [hello()["levels"][1]] * 2}, "'small' is used twice"),
        ({"levels": [{"name": "small"}]}, "'memory_bytes' is missing"),
        ({"levels": [{**hello()["levels"][1], "memory_bytes": "2G"}]}, "memory_bytes is '2G'; expected a number"),
        ({"levels": [{**hello()["levels"][1], "memory_bytes": -1}]}, "memory_bytes is -1; expected a number of 0"),
        ({"levels": [{**hello()["levels"][1], "load_s": float("nan")}]}, "load_s is nan; expected a number of 0"),
        ({"levels": [{**hello()["levels"][1], "quality": True}]}, "quality is True; expected a number of 0"),
        ({"thresholds": {"scale_at": 80}}, "thresholds.scale_at: Input should be less than 1"),
        ({"thresholds": {"critical_at": 95}}, "thresholds.critical_at: Input should be less than 1"),
        ({"thresholds": {"scale_at": "high"}}, "thresholds.scale_at: "),
        ({"thresholds": {"upgrade_dwell_s": -1}}, "thresholds.upgrade_dwell_s: Input should be greater than or equal"),
        ({"thresholds": {"scale_at": 0.96}}, "critical_at 0.95 must be above scale_at 0.96"),
    ],
)
def test_a_hello_that_cannot_be_used_is_told_by_its_line_and_key(change: dict[str, Any], message: str) -> None:
    """Percent in place of a ratio, above all: 80 is not 0.8."""
    with pytest.raises(ScalerError, match=r"^stdin:1: ") as raised:
        answers({**hello(), **change})
    assert message in str(raised.value)


def test_a_tier_whose_largest_level_is_on_another_ladder_is_refused() -> None:
    """The program's levels have their own names."""
    with pytest.raises(
        ConfigError, match=r"^stdin:1: the tier allows 'qwen' at most, which is none of the levels small,"
    ):
        answers(hello(), policy=Policy(max_level="qwen"))
    for key in ("battery_max_level", "throttled_max_level"):
        with pytest.raises(ConfigError, match=r"the tier allows 'off' at most, which is none of the levels small,"):
            answers(hello(), policy=Policy(**{key: "off"}))  # type: ignore[arg-type]


def test_a_second_hello_begins_anew() -> None:
    """Another machine, another ladder, the same pipe."""
    told = answers(hello(), sample(0, 4, "large"), hello(), sample(0, 4, "small"))
    assert [a.get("target") for a in told] == [None, "large", None, "small"]


def test_the_end_of_the_input_ends_the_conversation() -> None:
    """Also before it began."""
    assert answers() == []
