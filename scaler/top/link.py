"""What the daemon tells, as it tells it, and what a person has it do.

Owns the threads that wait for the daemon. They are the interpreter's to end, so that nobody who quits waits for a
daemon that hangs. Whatever comes from the daemon is made printable here, before anything else sees it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scaler.cli.daemon import Daemon
from scaler.errors import DaemonUnreachable, ScalerError
from scaler.printable import one_line

SILENCE_S = 40.0
"""The daemon says every 15 s that it is still there; after so long without a word it is taken for gone."""
RETRY_S = 1.0
"""So long after it was gone it is tried again."""
STATUS_S = 0.5
"""Readings that follow each other faster are not all asked about."""
HISTORY_S = 30.0
"""After so long the past is asked for anew, though nothing happened: the picture of an hour has columns of a minute."""
ADVICE_S = 60.0
"""After so long the suggestions are asked for anew: what other programs hold changes without an event."""
STATUS = (
    *("pinned", "tier", "reading", "usage", "effective", "projected", "policy", "performance", "outlooks", "loading"),
    *("settled", "answering", "waiting", "not_permitted", "why", "next.then"),
)
"""What is read of the daemon's answer to ``/status``, beside what every daemon's has."""
CHANGES_ADVICE = {"status", "switched", "advised", "pin", "reconfigured"}
"""The events after which other suggestions may be due."""


@dataclass(frozen=True, slots=True)
class Known:
    """The daemon's answers to ``/status``, ``/history`` and ``/advice``, as of ``at_s``, of the monotonic clock.

    Of the latter two, what the daemon cannot tell at the moment has only ``error``, its words.
    """

    status: dict[str, Any]
    history: dict[str, Any]
    advice: dict[str, Any]
    at_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The daemon does not answer, and why; it is tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon said to a pin, or to its release."""

    text: str


News = Known | Lost | Answer


class Link:
    """Follows a daemon and tells ``tell`` what it learns, on threads of its own."""

    def __init__(self, daemon: Daemon, tell: Callable[[News], object], clock: Callable[[], float] = time.monotonic):
        self._daemon, self._tell, self._clock = daemon, tell, clock
        self._closed, self._telling = threading.Event(), threading.Lock()
        self._history: dict[str, Any] = {}
        self._advice: dict[str, Any] = {}
        self._status_at_s = self._history_at_s = self._advice_at_s = float("-inf")

    def start(self) -> None:
        """Begin to follow."""
        threading.Thread(target=self._follow, name="scaler-top", daemon=True).start()

    def close(self) -> None:
        """Tell nothing any more."""
        with self._telling:
            self._closed.set()

    def pin(self, level: str | None) -> None:
        """Pin ``level``, or unpin with None; what the daemon says to it is told."""
        threading.Thread(target=self._pin, args=(level,), name="scaler-top-pin", daemon=True).start()

    def _pin(self, level: str | None) -> None:
        try:
            if level is None:
                self._daemon.ask("/pin", (), method="DELETE")
                self._say(Answer("unpinned: scaler decides again"))
            else:
                self._daemon.ask("/pin", (), method="PUT", body={"level": level})
                self._say(Answer(f"pinned to {level}; u unpins"))
        except DaemonUnreachable as error:
            self._say(Answer(one_line(str(error))))
        except ScalerError as error:
            self._say(Answer(f"refused: {one_line(str(error))}"))

    def _follow(self) -> None:
        while not self._closed.is_set():
            try:
                for kind in self._daemon.follow("/events?readings=1", SILENCE_S):
                    if self._closed.is_set():
                        return
                    self._take(kind)
                self._say(Lost("the daemon has ended"))
            except ScalerError as error:
                self._say(Lost(one_line(str(error))))
            self._closed.wait(RETRY_S)

    def _take(self, kind: str) -> None:
        now_s = self._clock()
        if kind == "reading" and now_s - self._status_at_s < STATUS_S:
            return
        if kind != "reading" or now_s - self._history_at_s >= HISTORY_S:
            self._history = self._ask("/history?last_s=3600", ("now", "points", "events"))
            self._history_at_s = now_s
        if kind in CHANGES_ADVICE or now_s - self._advice_at_s >= ADVICE_S:
            self._advice = self._ask("/advice", ("suggestions", "reason", "lacking"))
            self._advice_at_s = now_s
        # Last, so that it is the youngest: it has the time that is counted down.
        status = clean(self._daemon.status(STATUS))
        self._status_at_s = self._clock()
        self._say(Known(status, self._history, self._advice, self._status_at_s))

    def _ask(self, path: str, keys: Sequence[str]) -> dict[str, Any]:
        try:
            return dict(clean(self._daemon.ask(path, keys)))
        except DaemonUnreachable:
            raise
        except ScalerError as error:
            # A journal that cannot be read, for one, is no reason to show nothing of the rest.
            return {"error": one_line(str(error))}

    def _say(self, news: News) -> None:
        with self._telling:
            if not self._closed.is_set():
                self._tell(news)


def clean(told: Any) -> Any:
    """A JSON value with every text in it on one line that can be printed."""
    if isinstance(told, str):
        return one_line(told)
    if isinstance(told, list):
        return [clean(one) for one in told]
    if isinstance(told, dict):
        return {one_line(key): clean(value) for key, value in told.items()}
    return told
