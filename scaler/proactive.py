"""ProactiveScaler: feeds the machine with readings, and tells what it decides.

The thread-safe face of the decision. Owns the one lock around the machine and the order in which
subscribers hear of things; knows no thresholds (the guards have them) and performs no switch (whoever
subscribes to ``on_enter`` does).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from scaler.advice import Room, Standing
from scaler.effective import Effective, effective
from scaler.errors import PinRefused
from scaler.events import (
    BudgetLowered,
    BudgetRestored,
    DecisionMade,
    Hurried,
    ModelDied,
    PinChanged,
    Reconfigured,
    ScalerEvent,
    SwitchDone,
    SwitchFailed,
)
from scaler.guards import GUARDS, backing_off, explain, room_beside, shortfall
from scaler.journal import Journal, JournalError, record_of
from scaler.levels import OFF, Ladder
from scaler.machine import Decision, LevelMachine, Outlook, Switch
from scaler.monitor import MonitorEvent, ReadingTaken, ResourceMonitor
from scaler.performance import AnswerSample, LevelPerformance, Performance
from scaler.policy import Policy
from scaler.readings import Reading, Usage
from scaler.remembered import Remembered, recall, remember

log = logging.getLogger(__name__)

Event = MonitorEvent | ScalerEvent


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a request may expect now. It is always answered: at worst later, or shorter.

    ``serve``: at once, at ``level``. ``shorten``: at once, with ``max_tokens`` at the most, because the
    level is about to give way. ``wait``: no level serves at the moment; ``level`` is being loaded, or
    ``off`` when none may be loaded yet.
    """

    action: Literal["serve", "shorten", "wait"]
    level: str
    max_tokens: int | None
    reason: str
    reading_age_s: float | None


@dataclass(frozen=True, slots=True)
class RoomBeside:
    """Whether there is room for something beside the ladder: None when nobody knows; with the reason in numbers."""

    enough: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class ResourceTrend:
    """Where everyone else's use of a resource is heading, in bytes and seconds.

    ``other_bytes`` is what they use now, of ``total_bytes``. ``forecast_bytes`` is what all usage will be ``horizon_s``
    from now at the present level, of it ``forecast_other_bytes`` theirs, give or take ``sigma_bytes`` (one standard
    deviation). The times until a limit are 0 when it is passed and None when
    the line never gets there.
    """

    resource: str
    samples: int
    window_s: float
    slope_bytes_per_s: float
    total_bytes: int
    other_bytes: int
    horizon_s: float
    forecast_other_bytes: float
    forecast_bytes: float
    sigma_bytes: float
    scale_at_in_s: float | None
    critical_at_in_s: float | None


@dataclass(frozen=True, slots=True)
class UpgradeAdvice:
    """Whether a climb would be made now, to which level, and how each higher level stands. True when ready."""

    ready: bool
    level: str | None
    outlooks: tuple[Outlook, ...]

    def __bool__(self) -> bool:
        return self.ready


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of everything that a person asks about."""

    state: str
    serving: str
    settled: bool
    pinned: str | None
    tier: str | None
    monitoring: bool
    reading: Reading | None
    usage: Mapping[str, Usage]
    projected: Mapping[str, float | None]
    footprints: Mapping[str, Mapping[str, int]]
    outlooks: tuple[Outlook, ...]
    policy: Policy
    effective: tuple[Effective, ...]
    failed: Mapping[str, str]
    """Why each level that failed did so the last time."""
    last_decision: Decision | None
    performance: Mapping[str, LevelPerformance]
    missing: tuple[str, ...]


class ProactiveScaler:
    """Keeps the state at the best level that the machine can sustain.

    Without arguments it reads the person's configuration, or the shipped one, and detects the tier. Every
    method may be called from any thread and from coroutines; none waits for a switch.
    """

    def __init__(
        self,
        *,
        ladder: Ladder | None = None,
        policy: Policy | None = None,
        monitor: ResourceMonitor | None = None,
        journal: Journal | None = None,
        tier: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """What of ``ladder``, ``policy`` and ``tier`` is left out comes from the configuration.

        ``monitor`` hands in the readings, one that reads this machine if left out. ``journal`` gets every decision.
        ``clock`` measures durations in monotonic seconds, ``wall_clock`` is for people: seconds since 1970.
        Raises ConfigError when the configuration is at fault.
        """
        if ladder is None or policy is None:
            from scaler.assembly import assemble  # here, because reading a configuration imports 200 ms of schema

            parts = assemble()
            ladder, policy, tier = ladder or parts.ladder, policy or parts.policy, tier or parts.tier.tier.name
            monitor = monitor or ResourceMonitor(interval_s=parts.settings.monitor.interval_s)
        self.ladder, self.policy, self.tier = ladder, policy, tier
        self.monitor = monitor or ResourceMonitor()
        self._journal = journal
        self._clock, self._wall_clock = clock, wall_clock
        self._lock = threading.RLock()
        self._machine = LevelMachine(ladder, policy, self._entered, on_hurry=self._hurried)
        self._performance = Performance()
        self._effects: list[Callable[[Switch], None]] = []
        self._subscribers: list[Callable[[Event], None]] = []
        self._pending: deque[Event] = deque()
        self._delivering = threading.Lock()
        self._stop_feeding: Callable[[], None] | None = None
        self._decided_at_s = clock()
        self._failed: dict[str, str] = {}
        self._pin_due = False
        self._unwritten = 0
        self._preflight = Preflight("wait", OFF, None, "no reading yet", None)
        self._read_at_s: float | None = None

    # ---------------------------------------------------------------- monitoring

    def start_continuous_monitoring(self) -> None:
        """Watch the machine and decide with every reading. Does nothing when it runs already."""
        with self._lock:
            if self._stop_feeding is None:
                self._stop_feeding = self.monitor.subscribe(self._on_monitor)
        self.monitor.start()

    def stop_continuous_monitoring(self) -> None:
        """Stop watching; returns when the monitor's thread has ended. What is loaded stays loaded."""
        with self._lock:
            stop, self._stop_feeding = self._stop_feeding, None
        if stop is not None:
            stop()
        self.monitor.stop()

    def _on_monitor(self, event: MonitorEvent) -> None:
        if isinstance(event, ReadingTaken):
            self.observe(event.reading)
        self._publish(event)

    def observe(self, reading: Reading) -> None:
        """Decide on ``reading``. The monitor calls this; call it to feed readings of one's own."""
        with self._lock:
            if self._machine.observe(reading) and self._pin_due:
                self._return_to_pin()
            self._read_at_s = self._machine.evidence.now_s if self._machine.evidence.reading is not None else None
            self._refresh_preflight()
        self._deliver()

    def _return_to_pin(self) -> None:
        """Go to the level that was pinned and served when the scaler before this one ended, as if it were pinned now.

        Where it has no room, or has to be left alone, it is climbed to like any other.
        """
        self._pin_due, machine = False, self._machine
        if machine.pinned is None or backing_off(machine.evidence, self.ladder.index(machine.pinned)).holds:
            return
        with suppress(PinRefused):
            machine.pin(machine.pinned, self._clock())

    # ---------------------------------------------------------------- questions

    def check_preflight_resources(self) -> Preflight:
        """Say what a request may expect now, from the latest reading.

        Takes no lock and touches no sensor, unless monitoring runs and its reading is stale.
        """
        read_at = self._read_at_s
        age = None if read_at is None else self._clock() - read_at
        if (age is None or age > self.policy.stale_after_s) and self.monitor.running:
            # Not left to whoever delivers it: another thread may be at that, and take its time.
            self.observe(self.monitor.read_now())
            read_at = self._read_at_s
            age = None if read_at is None else self._clock() - read_at
        known = self._preflight
        return Preflight(known.action, known.level, known.max_tokens, known.reason, age)

    def room_beside(self, ram_bytes: int) -> RoomBeside:
        """Whether something that is no level may take ``ram_bytes`` of RAM now, or go on to hold what it has with 0.

        Touches no sensor, unless monitoring runs and its reading is stale.
        """
        age = self.check_preflight_resources().reading_age_s
        with self._lock:
            evidence = self._machine.evidence
            verdict = room_beside(evidence, ram_bytes)
            reason = explain(evidence, evidence.highest, verdict)
        if age is None or verdict.measured is None:
            return RoomBeside(None, "no reading yet")
        if age > self.policy.stale_after_s:
            return RoomBeside(None, f"the last reading is {age:.0f} s old")
        return RoomBeside(verdict.holds, reason)

    def analyze_resource_trends(self) -> dict[str, ResourceTrend]:
        """The trend of each resource that the ladder uses; one without enough readings is left out."""
        with self._lock:
            evidence = self._machine.evidence
            position = max(evidence.state, 0)
            horizon = evidence.horizon_s(position)
            trends = {}
            needs = evidence.footprints.of(position) if evidence.state >= 0 else [0] * len(evidence.resources)
            for index, (resource, trend, part, need) in enumerate(
                zip(evidence.resources, evidence.trends, evidence.usage, needs, strict=True)
            ):
                forecast, slope = trend.forecast(evidence.now_s + horizon), trend.slope_per_s
                if part is None or forecast is None or slope is None:
                    continue
                total = part.total_bytes
                scale_at, critical_at = evidence.thresholds(index)
                trends[resource] = ResourceTrend(
                    resource,
                    len(trend),
                    trend.span_s,
                    slope * total,
                    total,
                    part.other_bytes,
                    horizon,
                    forecast.mean * total,
                    forecast.mean * total + need,
                    forecast.sigma * total,
                    trend.reaches_in_s(scale_at - need / total),
                    trend.reaches_in_s(critical_at - need / total),
                )
            return trends

    def should_upgrade_model(self) -> UpgradeAdvice:
        """Whether the conditions of a climb hold now, and what each higher level lacks."""
        with self._lock:
            position = self.ladder.index(self._machine.state)
            higher = [o for o in self._machine.outlooks() if self.ladder.index(o.level) > position]
        ready = [outlook for outlook in higher if not outlook.lacking]
        best = (ready[0] if position < 0 else ready[-1]) if ready else None
        return UpgradeAdvice(best is not None, best.level if best else None, tuple(higher))

    def room(self) -> Room:
        """What each level above the present one lacks, and what everyone else uses; consistent in itself."""
        with self._lock:
            machine, evidence = self._machine, self._machine.evidence
            outlooks = {outlook.level: outlook for outlook in machine.outlooks()}
            standings = []
            for position in range(evidence.state + 1, len(self.ladder)):
                name = self.ladder[position].name
                takes = evidence.footprints.of(position)
                below = evidence.footprints.of(position - 1) if position else [0] * len(takes)
                permitted = GUARDS["allowed"].test(evidence, position)
                standings.append(
                    Standing(
                        name,
                        shortfall(evidence, position),
                        {r: a - b for r, a, b in zip(evidence.resources, takes, below, strict=True)},
                        None if permitted.holds else explain(evidence, position, permitted),
                        outlooks[name].lacking,
                    )
                )
            other = {
                resource: part.other_bytes
                for resource, part in zip(evidence.resources, evidence.usage, strict=True)
                if part is not None
            }
            return Room(machine.state, tuple(standings), other)

    def status(self) -> Status:
        """A snapshot; consistent in itself."""
        with self._lock:
            machine, evidence = self._machine, self._machine.evidence
            return Status(
                machine.state,
                machine.serving,
                machine.settled,
                machine.pinned,
                self.tier,
                self.monitor.running,
                evidence.reading,
                {r: part for r, part in zip(evidence.resources, evidence.usage, strict=True) if part is not None},
                evidence.told(),
                {
                    level.name: dict(zip(evidence.resources, evidence.footprints.of(position), strict=True))
                    for position, level in enumerate(self.ladder)
                },
                machine.outlooks(),
                self.policy,
                effective(evidence),
                dict(self._failed),
                machine.last_decision,
                self._performance.levels(),
                evidence.reading.missing if evidence.reading is not None else (),
            )

    # ---------------------------------------------------------------- requests and reports

    def initiate_graceful_degradation(self) -> Decision | None:
        """Step down by one level now, whatever the usage; None when there is nothing lower to go to.

        Running answers are let finish within the drain limits by whoever performs the switch.
        """
        with self._lock:
            moved = self._machine.degrade(self._clock())
            decision = self._machine.last_decision if moved else None
            self._refresh_preflight()
        self._deliver()
        return decision

    def update_performance_metrics(self, sample: AnswerSample) -> None:
        """Take in ``sample``: how an answer went. If it failed or crept while memory was tight, its level is cautious.

        Raises KeyError for a level that is not on the ladder.
        """
        speed = self._performance.add(sample)
        with self._lock:
            self._machine.answered(sample.level, self._clock(), failed=sample.failed, speed=speed)

    def want(self, wanted: bool) -> None:
        """Say by ``wanted`` whether anybody asks for a model; before that, nothing is loaded from off."""
        with self._lock:
            if self._machine.evidence.wanted != wanted:
                self._machine.want(wanted)
                nudge = wanted and self.monitor.running
            else:
                nudge = False
        if nudge:
            self.monitor.nudge()

    def pin(self, level: str) -> None:
        """Stay at ``level`` until unpinned. Raises PinRefused with the reason."""
        with self._lock:
            self._machine.check_pin(level)
            # Told before what is decided because of it.
            self._pending.append(PinChanged(level))
            self._machine.pin(level, self._clock())
            self._refresh_preflight()
        self._deliver()

    def unpin(self) -> None:
        """Let the machine decide again."""
        with self._lock:
            self._machine.unpin()
            self._pending.append(PinChanged(None))
        self._deliver()

    def serves(self, level: str) -> None:
        """Report which ``level`` answers from now on, or ``off``, while a switch goes on; one not known is passed over.

        What it replaces may have answers still: `switched` is reported when that has gone.
        """
        with self._lock:
            if self._machine.settled or level not in (OFF, *self.ladder.names):
                return
            self._machine.serves(level)
            self._refresh_preflight()
        self._deliver()

    def switched(self, ticket: int, load_s: float | None = None) -> None:
        """Report that the switch with this ``ticket`` is done; one that another has overtaken is passed over.

        ``load_s`` is how many seconds loading took, to learn from; None where nothing was loaded.
        """
        with self._lock:
            switch = self._machine.switch
            if switch is None or switch.ticket != ticket or self._machine.settled:
                return
            now = self._clock()
            self._machine.switched(ticket, now, load_s)
            took = now - self._decided_at_s
            self._pending.append(SwitchDone(ticket, switch.decision.source, switch.dest, took, load_s))
            self._refresh_preflight()
        self._deliver()

    def switch_failed(self, ticket: int, still_serving: str, reason: str) -> None:
        """Report that the switch with this ``ticket`` failed; one that another has overtaken is passed over.

        ``still_serving`` is the level that answers still, or ``off``; ``reason`` is for people.
        """
        with self._lock:
            switch = self._machine.switch
            if switch is None or switch.ticket != ticket or self._machine.settled:
                return
            self._failed[switch.dest] = reason
            self._pending.append(SwitchFailed(ticket, switch.dest, still_serving, reason))
            self._machine.switch_failed(ticket, still_serving, self._clock())
            self._refresh_preflight()
        self._deliver()

    def died(self, level: str, reason: str) -> None:
        """Report that the model of ``level`` ended without having been asked to, and the ``reason``, for people."""
        with self._lock:
            self._failed[level] = reason
            self._pending.append(ModelDied(level, reason))
            self._machine.died(level, self._clock())
            self._refresh_preflight()
        self._deliver()
        if self.monitor.running:
            self.monitor.nudge()

    def note(self, event: ScalerEvent) -> None:
        """Have ``event``, which the effects brought about, told to the subscribers and written into the journal."""
        self._publish(event)

    # ---------------------------------------------------------------- another configuration

    def reconfigure(
        self, ladder: Ladder, policy: Policy, tier: str | None, kept: Collection[str], event: Reconfigured
    ) -> str | None:
        """Decide on ``ladder`` and by ``policy`` from now on, and tell ``event``; returns a level that was unpinned.

        ``tier`` is the name that people are shown. ``kept`` names the levels whose models are the same as before: what
        is known of them stays. Nothing is climbed to sooner than without it. Whoever performs the switches must know
        the new levels already.
        """
        with self._lock:
            before = self._machine
            self.ladder, self.policy, self.tier = ladder, policy, tier
            self._machine = LevelMachine(ladder, policy, self._entered, on_hurry=self._hurried)
            self._performance.keep(kept)
            self._failed = {name: why for name, why in self._failed.items() if name in kept}
            self._pending.append(event)
            self._machine.take_over(before, kept, self._clock())
            unpinned = before.pinned if self._machine.pinned is None else None
            if unpinned is not None:
                self._pending.append(PinChanged(None))
            self._refresh_preflight()
        self._deliver()
        return unpinned

    # ---------------------------------------------------------------- over a restart

    def remember(self, marks: Mapping[str, str], boot: str | None, *, ended: bool = False) -> Remembered:
        """What is to outlive this scaler.

        ``marks`` names the model and settings of each level: what was learned of others is not recalled. ``boot`` names
        the boot, whose monotonic times mean nothing in another; None where boots cannot be told apart. ``ended``: it
        was asked to end.
        """
        with self._lock:
            return remember(self._machine, marks, boot, self._clock(), ended=ended, failed=self._failed)

    def recall(self, remembered: Remembered, marks: Mapping[str, str], boot: str | None) -> None:
        """Know what the scaler before this one did, as `remember` returned it; to be called before the first reading.

        What is ``remembered`` counts for levels whose ``marks`` are the same, and times exactly within one ``boot``.
        """
        with self._lock:
            recall(self._machine, remembered, marks, boot, self._clock())
            # A pinned level that had to give way has to wait for its room again: a restart is no way around that.
            self._pin_due = remembered.pinned == remembered.state
            for name, level in remembered.levels.items():
                if level.failed is not None and marks.get(name) == level.mark:
                    self._failed[name] = level.failed

    # ---------------------------------------------------------------- subscribers

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Have ``callback`` told of every event, in order, on the thread that caused it; returns the way out.

        It must not block. One that raises is logged, and the others are told all the same.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield every event from now on, in order, to a coroutine on any loop. Closing it unsubscribes."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()

        def take(event: Event) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, event)

        unsubscribe = self.subscribe(take)
        try:
            while True:
                yield await queue.get()
        finally:
            unsubscribe()

    def on_enter(self, effect: Callable[[Switch], None]) -> Callable[[], None]:
        """Have ``effect`` perform the switches; returns the way out. It must only note the switch and return.

        It reports back by ``switched``, ``switch_failed`` and ``died``. While nobody has subscribed, there
        is nothing to load and every switch counts as done at once.
        """
        with self._lock:
            self._effects.append(effect)
        return lambda: self._effects.remove(effect) if effect in self._effects else None

    def _entered(self, switch: Switch) -> None:
        self._decided_at_s = self._clock()
        self._pending.append(DecisionMade(switch, self._wall_clock()))
        for effect in list(self._effects):
            effect(switch)
        if not self._effects:
            # transitions would refuse a trigger inside a trigger of the same machine only if queued; it is not.
            self._machine.switched(switch.ticket, self._decided_at_s)
            self._pending.append(SwitchDone(switch.ticket, switch.decision.source, switch.dest, 0.0, None))

    def _hurried(self, switch: Switch) -> None:
        self._pending.append(Hurried(switch))
        for effect in list(self._effects):
            effect(switch)

    def _publish(self, event: Event) -> None:
        self._pending.append(event)
        self._deliver()

    def _deliver(self) -> None:
        """Hand out what is pending, outside of the machine's lock; one thread at a time, so order holds."""
        while self._pending and self._delivering.acquire(blocking=False):
            try:
                while self._pending:
                    event = self._pending.popleft()
                    self._record(event)
                    for callback in list(self._subscribers):
                        try:
                            callback(event)
                        except Exception:
                            # A stranger's callback must not stop the scaler, and the person must hear of it.
                            log.exception("a subscriber failed on %s", type(event).__name__)
            finally:
                self._delivering.release()

    def _record(self, event: Event) -> None:
        if self._journal is None:
            return
        try:
            if (record := record_of(event, self._wall_clock())) is None:
                return
            self._journal.write(record)
        except JournalError as error:
            self._unwritten += 1
            # Once: where the log goes to the same disk, or to a person, a line for each record helps nobody.
            if self._unwritten == 1:
                log.error("the journal is not written, and serving goes on without it: %s", error)
            return
        except Exception:
            # The others have to hear of it all the same, and the person of the fault.
            log.exception("the journal lacks a record of %s", type(event).__name__)
            return
        if self._unwritten:
            log.warning("the journal is written again; up to %d records before this are lost", self._unwritten)
            self._unwritten = 0

    def _refresh_preflight(self) -> None:
        before, now = self._preflight, self._expected()
        self._preflight = now
        # One level's budget; that of another is no news about the one before.
        if now.action == "shorten" and now.max_tokens is not None:
            if (before.action, before.level) != (now.action, now.level):
                self._pending.append(BudgetLowered(now.level, now.max_tokens, now.reason))
        elif now.action == "serve" and (before.action, before.level) == ("shorten", now.level):
            self._pending.append(BudgetRestored(now.level))

    def _expected(self) -> Preflight:
        machine, evidence = self._machine, self._machine.evidence
        serving, switch = evidence.serving, machine.switch
        if serving is None or serving < 0:
            reason = f"{machine.state} is being loaded" if not machine.settled else self._why_off()
            return Preflight("wait", machine.state, None, reason, None)
        level = self.ladder[serving].name
        if not machine.settled and switch is not None and evidence.state < serving:
            return Preflight("shorten", level, switch.drain_tokens, f"{level} gives way to {machine.state}", None)
        verdict = GUARDS["critical"].test(evidence, serving)
        if verdict.holds:
            return Preflight("shorten", level, self.policy.drain_tokens, explain(evidence, serving, verdict), None)
        return Preflight("serve", level, None, f"{level} serves", None)

    def _why_off(self) -> str:
        if self._machine.evidence.reading is None:
            return "no reading yet"
        outlook = self._machine.outlooks()
        return "; ".join(outlook[0].lacking) if outlook and outlook[0].lacking else "the smallest level is loaded next"
