"""A program of somebody else's that uses every public name: never run, but checked by type checkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaler import (
    Answer,
    HardwareTierDetector,
    ModelManager,
    Notice,
    ProactiveScaler,
    ResourceMonitor,
    ScalerError,
    __version__,
)
from scaler.errors import (
    ConfigError,
    ConversationError,
    LevelUnavailable,
    MissingExtra,
    PinRefused,
    QueueFull,
    RequestRejected,
    RequestTimedOut,
)
from scaler.machine import Decision, Switch
from scaler.performance import AnswerSample
from scaler.readings import Reading

VERSION: str = __version__
PROMISED: tuple[type[ScalerError], ...] = (
    ConfigError,
    ConversationError,
    LevelUnavailable,
    MissingExtra,
    PinRefused,
    QueueFull,
    RequestRejected,
    RequestTimedOut,
)


def told(notice: Notice) -> None:
    """What a person should know."""
    words: tuple[str, str, str, int] = (notice.kind, notice.level, notice.text, notice.times)
    print(*words)


def looked_at(answer: Answer) -> str:
    """Everything that an answer has."""
    text: str = answer.text
    levels: tuple[str, ...] = answer.levels
    last: str = answer.level
    name: str = answer.conversation_id
    ended: str | None = answer.finish_reason
    tokens: int = answer.tokens
    took_s: float = answer.total_s
    first_s: float | None = answer.first_token_s
    calls: Sequence[Mapping[str, Any]] = answer.tool_calls
    lost: ConversationError | None = answer.not_remembered
    return f"{text} {levels} {last} {name} {ended} {tokens} {took_s} {first_s} {calls} {lost}"


async def asked(config: Path) -> str:
    """The manager on an event loop."""
    async with ModelManager(config, on_notice=told, notify_upgrades=True, remember=False) as manager:
        leave = manager.on_notice(told)
        ready: str = await manager.load("small")
        answer: Answer = await manager.generate_response("Who are you?", conversation_id="a", temperature=0.5)
        async for piece in manager.stream_response([{"role": "user", "content": "Go on."}], system="Be brief."):
            ready += piece
        async for chunk in manager.chat({"messages": [{"role": "user", "content": "Hello"}]}):
            ready += chunk.level
        vectors: list[list[float]] = await manager.embed(["a", "b"]) if manager.embedding_model else []
        counts: tuple[int, int] = (manager.waiting, manager.answering)
        loaded: tuple[str, ...] = manager.loaded
        former: str | None = manager.former
        takes: tuple[int, int] = manager.takes("small")
        advice, changed, described = await manager.advise(), await manager.reload(), await manager.descriptions()
        print(vectors, counts, loaded, former, takes, advice.reason, changed.restart, described)
        leave()
        decided(manager.scaler)
        return ready + looked_at(answer)


def asked_without_a_loop() -> str:
    """The manager in plain code."""
    manager = ModelManager()
    try:
        manager.reload_sync()
        return looked_at(manager.generate_response_sync("Who are you?"))
    except ScalerError as error:
        return str(error)
    finally:
        manager.shutdown()


def decided(scaler: ProactiveScaler) -> None:
    """The decision alone, by a program that switches models itself."""

    def switch(wanted: Switch) -> None:
        scaler.serves("off")
        scaler.switched(wanted.ticket, load_s=1.5)
        scaler.switch_failed(wanted.ticket, "off", f"{wanted.dest}: no such file")
        scaler.died(wanted.dest, "killed")

    leave = scaler.on_enter(switch)
    unsubscribe = scaler.subscribe(lambda event: print(type(event).__name__))
    scaler.start_continuous_monitoring()
    scaler.want(True)
    scaler.pin("small")
    scaler.unpin()
    may: int | None = scaler.check_preflight_resources().max_tokens
    enough: bool | None = scaler.room_beside(1 << 30).enough
    slopes: list[float] = [trend.slope_bytes_per_s for trend in scaler.analyze_resource_trends().values()]
    lower: Decision | None = scaler.initiate_graceful_degradation()
    scaler.update_performance_metrics(AnswerSample("small", total_s=1.0, tokens=20))
    higher: str | None = scaler.should_upgrade_model().level
    state: str = scaler.status().state
    print(may, enough, slopes, lower, higher, state, scaler.room())
    scaler.stop_continuous_monitoring()
    unsubscribe()
    leave()


async def followed(scaler: ProactiveScaler) -> None:
    """Every event."""
    async for event in scaler.events():
        print(event)


def watched(scaler: ProactiveScaler) -> Reading | None:
    """Readings without a decision, and given to one."""
    monitor = ResourceMonitor(interval_s=0.5)
    leave = monitor.subscribe(print)
    monitor.start()
    monitor.set_interval(2.0)
    monitor.nudge()
    reading: Reading = monitor.read_now()
    scaler.observe(reading)
    monitor.stop()
    leave()
    running: bool = monitor.running
    names: tuple[str, ...] = monitor.sensors
    print(running, names)
    return monitor.latest


def classed() -> str:
    """The tier of this machine."""
    detector = HardwareTierDetector()
    found = detector.detect()
    fault: str | None = detector.unknown("huge")
    return (
        f"{found.tier.name} {found.hardware.ram_bytes} {detector.tier('low_end').rank} {fault} {detector.chosen('x')}"
    )
