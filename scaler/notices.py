"""Notices: what a person should know of the scaler's events, in words, and no more often than they can bear.

Owns the making of a notice, which kinds are told and how often. Knows nothing of how a taker passes one on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from scaler.events import DecisionMade, ModelDied, SwitchFailed, TurnNotRemembered, UnloadFailed
from scaler.levels import OFF, Ladder

log = logging.getLogger(__name__)

QUIET_S = 60.0
"""For so many seconds after a notice, the same (its kind and level) is counted and not told again."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know: ``text`` says what changed, why in numbers, and what would bring it back.

    ``kind`` is a step down, a climb or a fault; ``level`` is where a step leads, ``off`` too, or what failed. ``times``
    is how often it happened since it was last told, or at all.
    """

    kind: Literal["downgrade", "upgrade", "failure"]
    level: str
    text: str
    times: int = 1


def notice_of(event: object, ladder: Ladder, dwell_s: float) -> Notice | None:
    """What a person should know of an event of the scaler; None for most.

    ``dwell_s`` is for how many seconds a level must have fitted before it comes back.
    """
    if isinstance(event, DecisionMade):
        decision = event.switch.decision
        # The step that a failure makes necessary is not told beside the failure, nor a pin to the person who set it.
        if decision.trigger not in ("observe", "degrade"):
            return None
        if decision.direction == "up":
            if decision.source == OFF:
                return None
            what = f"{decision.source} makes way for {decision.dest}"
            return Notice("upgrade", decision.dest, f"{what}: {decision.reason}")
        lowered = any(found.guard == "over_ceiling" and found.holds for found in decision.findings)
        fitted = f"once {'it has been allowed again and' if lowered else 'it has'} fitted for at least {dwell_s:g} s"
        if decision.dest != OFF:
            what = f"{decision.source} gives way to {decision.dest}"
            back = f"{decision.source} comes back {fitted}"
        else:
            what = f"{decision.source} is unloaded and nothing serves"
            back = f"{ladder[0].name} comes back as soon as there is room for it"
            back += f", {decision.source} {fitted}" if ladder.index(decision.source) > 0 else ""
        return Notice("downgrade", decision.dest, f"{what}: {decision.reason}; {back}")
    if isinstance(event, SwitchFailed):
        what = f"{event.level} could not be loaded" if event.level != OFF else "what was loaded could not be unloaded"
        serves = f"{event.still_serving} still serves" if event.still_serving != OFF else "nothing serves"
        return Notice("failure", event.level, f"{what}, {serves}: {event.reason}; {_tried_again(event.level)}")
    if isinstance(event, UnloadFailed):
        what = f"{event.level} will not unload and keeps its memory: {event.reason}"
        return Notice("failure", event.level, f"{what}; unload it by hand, or end the process that holds it")
    if isinstance(event, ModelDied):
        return Notice("failure", event.level, f"{event.level} died: {event.reason}; {_tried_again(event.level)}")
    if isinstance(event, TurnNotRemembered):
        return Notice("failure", event.level, f"an answer of {event.level} will not be remembered: {event.reason}")
    return None


def _tried_again(level: str) -> str:
    it = "that" if level == OFF else level
    return f"{it} is tried again after a pause that doubles with each failure in a row"


class Notices:
    """Tells its takers what a person should know: downgrades and failures, and upgrades if they were asked for.

    The same notice, by its kind and level, is told once a minute at the most; what happened meanwhile is counted.
    """

    def __init__(self, *, upgrades: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: monotonic seconds."""
        self.upgrades, self._clock = upgrades, clock
        self._takers: list[Callable[[Notice], None]] = []
        self._told_s: dict[tuple[str, str], float] = {}
        self._withheld: dict[tuple[str, str], int] = {}

    def subscribe(self, taker: Callable[[Notice], None]) -> Callable[[], None]:
        """Have ``taker`` told; returns the way out. It must not block; one that raises is logged."""
        self._takers.append(taker)
        return lambda: self._takers.remove(taker) if taker in self._takers else None

    def repeats(self, notice: Notice) -> bool:
        """Whether the same was told within the minute, so that it would only be counted now."""
        told_s = self._told_s.get((notice.kind, notice.level))
        return told_s is not None and self._clock() - told_s < QUIET_S

    def tell(self, notice: Notice) -> Notice | None:
        """Tell the takers, unless this kind is not wanted or the same was told within the minute; returns what was.

        From one thread at a time.
        """
        if notice.kind == "upgrade" and not self.upgrades:
            return None
        same, now_s = (notice.kind, notice.level), self._clock()
        if self.repeats(notice):
            self._withheld[same] = self._withheld.get(same, 0) + 1
            return None
        told_s = self._told_s.get(same)
        self._told_s[same] = now_s
        times = self._withheld.pop(same, 0) + 1
        if told_s is not None and times > 1:
            text = f"{notice.text} (again, {times} times within the last {_at_most(now_s - told_s)})"
            notice = replace(notice, text=text, times=times)
        for taker in list(self._takers):
            try:
                taker(notice)
            except Exception:
                # A stranger's taker must not keep the others from knowing.
                log.exception("a taker of notices failed on: %s", notice.text)
        return notice


def _at_most(seconds: float) -> str:
    """A stretch of time, rounded up to whole minutes, or to hours from two of them on."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes <= 120 else f"{math.ceil(seconds / 3600)} h"
