"""Notices on the person's desktop, by the library desktop-notifier.

Owns the connection to the desktop. That there is no desktop is told once, and tried again with the next notice: a
daemon may be there before anybody has logged in.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from scaler import extras
from scaler.levels import OFF
from scaler.notices import Notice

if TYPE_CHECKING:
    from desktop_notifier import DesktopNotifier

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
"""For so many seconds the desktop may take."""


class Desktop:
    """Shows notices."""

    name = "desktop"

    def __init__(self) -> None:
        """Raises MissingExtra when the library is not installed."""
        extras.require("desktop", "desktop_notifier")
        self._notifier: DesktopNotifier | None = None
        self._said = False

    async def deliver(self, notice: Notice) -> None:
        """Show ``notice``; where nothing shows it, that is logged the first time."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                shown = await self._show(notice)
            fault = "the desktop did not take the notice"
        except Exception as error:  # noqa: BLE001  # each platform's backend has errors of its own; it is told below
            shown, fault = False, f"{type(error).__name__}: {error}".removesuffix(": ")
        if shown:
            self._said = False
            return
        # What was connected may be gone: the next notice begins anew.
        await self.close()
        if not self._said:
            self._said = True
            log.warning(
                "no notices are shown on the desktop as long as no notification service answers there (%s); "
                "everything else goes on, and `notices: {desktop: false}` ends the attempts",
                fault,
            )

    async def _show(self, notice: Notice) -> bool:
        from desktop_notifier import DesktopNotifier

        if self._notifier is None:
            # The library tells every failure with a traceback; here it is told once, in a line.
            logging.getLogger("desktop_notifier.backends.base").setLevel(logging.ERROR)
            self._notifier = DesktopNotifier(app_name="scaler", app_icon=None)
        # Sending swallows every error; this connects, and does not.
        await self._notifier.get_capabilities()
        shown: list[bool] = []
        await self._notifier.send(_title(notice), notice.text, on_dispatched=lambda: shown.append(True))
        return bool(shown)

    async def close(self) -> None:
        """Disconnect from the desktop."""
        notifier, self._notifier = self._notifier, None
        # The library has no way to end what it began: on Linux, a connection that our loop reads from.
        bus = getattr(getattr(notifier, "_backend", None), "bus", None)
        if bus is not None:
            bus.disconnect()
            await asyncio.gather(bus.wait_for_disconnect(), return_exceptions=True)


def _title(notice: Notice) -> str:
    if notice.kind == "failure":
        return f"scaler: {notice.level} failed"
    if notice.level == OFF:
        return "scaler: nothing serves now"
    return f"scaler: {'down' if notice.kind == 'downgrade' else 'up'} to {notice.level}"
