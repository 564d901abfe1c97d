"""What the daemon tells whoever started it: ready, at which level, still alive, about to end.

Owns the datagrams of systemd's notification protocol and the pulse of the watchdog; where nobody asked to be told,
nothing happens. Source: sd_notify(3) and sd_watchdog_enabled(3), https://www.freedesktop.org/software/systemd/man/.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack

from scaler.events import SwitchDone
from scaler.levels import OFF
from scaler.manager import ModelManager
from scaler.monitor import ReadingTaken
from scaler.proactive import Event

log = logging.getLogger(__name__)

PULSES = 4
"""So many times within the time that the watchdog waits, the daemon looks whether it lives."""

TELL_S = 1.0
"""So long whoever is told may be busy."""


class Supervisor:
    """Whoever waits for the daemon's word, as the environment names them.

    A pulse is sent only when, since the last look but one, a reading was decided on and the effects' loop turned: a
    process whose decision or answers hang has no pulse, though it runs.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s(environment)
        self._decided_s = self._turned_s = time.monotonic()
        self._closing = ExitStack()
        self._ended = threading.Event()

    def ready(self, manager: ModelManager) -> None:
        """Say that requests are answered, and from now on at which level, and that it lives."""
        if not self._address:
            return
        self._closing.callback(manager.scaler.subscribe(self._take))
        self.tell(f"READY=1\nSTATUS={_status(manager.scaler.status().serving)}")
        if self._watchdog_s is not None:
            self._decided_s = self._turned_s = time.monotonic()
            pulse = threading.Thread(target=self._watch, args=(manager,), name="scaler-watchdog", daemon=True)
            pulse.start()
            self._closing.callback(pulse.join)
            self._closing.callback(self._ended.set)

    def stopping(self) -> None:
        """Say that the daemon ends; no pulse is missed from here on."""
        self.tell("STOPPING=1\nSTATUS=stopping: running answers end, models are unloaded")
        self._closing.close()

    def tell(self, words: str) -> None:
        """Send lines of ``NAME=value``. What cannot be sent is logged: only whoever waits is worse off."""
        if not self._address:
            return
        # A name that begins with @ is no file: it begins with a NUL for the kernel.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
                to.settimeout(TELL_S)
                to.sendto(words.encode(), address)
        except OSError as error:
            log.warning("%s cannot be told %r: %s", self._address, words, error.strerror or error)

    def _take(self, event: Event) -> None:
        if isinstance(event, ReadingTaken):
            # It comes here when it was decided on.
            self._decided_s = time.monotonic()
        elif isinstance(event, SwitchDone):
            self.tell(f"STATUS={_status(event.level)}")

    def _watch(self, manager: ModelManager) -> None:
        assert self._watchdog_s is not None  # else nobody watches
        while not self._ended.wait(self._watchdog_s / PULSES):
            now_s = time.monotonic()
            # As long as a reading may be under way, and a person has chosen to wait for the next one.
            patience_s = self._watchdog_s / 2 + manager.settings.monitor.interval_s
            if now_s - self._decided_s <= patience_s and now_s - self._turned_s <= patience_s:
                self.tell("WATCHDOG=1")
            if manager.effects.running:
                manager.effects.submit(self._turn())

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        self._turned_s = time.monotonic()


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """After how many seconds without a pulse the daemon counts as hung; None where nobody watches this process."""
    told, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    return int(told) / 1e6 if told.isdecimal() and int(told) > 0 and pid == str(os.getpid()) else None


def _status(level: str) -> str:
    return "nothing is loaded" if level == OFF else f"{level} serves"
