"""A desktop of the test's own: a private message bus, and a service on it that notes what it is asked to show."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pytest
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusDict, DBusInt32, DBusSignature, DBusStr, DBusUInt32
from dbus_fast.service import ServiceInterface, dbus_method

NAME = "org.freedesktop.Notifications"
# Without the machine's own services, which would show the test's notices to whoever sits there.
CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:dir={folder}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
Texts = Annotated[list[str], DBusSignature("as")]
Server = Annotated[tuple[str, str, str, str], DBusSignature("ssss")]


@contextmanager
def message_bus(folder: Path) -> Iterator[str]:
    """A bus that nobody else is on: its address. Skips the test where there is no dbus-daemon."""
    program = shutil.which("dbus-daemon")
    if program is None or sys.platform != "linux":
        pytest.skip("there is no dbus-daemon on this machine")
    config = folder / "bus.conf"
    config.write_text(CONFIG.format(folder=folder))
    command = [program, f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class Service(ServiceInterface):
    """What shows notifications, as far as it is asked: ``shown`` gets program, title and text of each."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.shown: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        self._bus: MessageBus | None = None

    async def start(self, address: str) -> None:
        """Be there."""
        self._bus = await MessageBus(bus_address=address).connect()
        self._bus.export("/org/freedesktop/Notifications", self)
        await self._bus.request_name(NAME)

    async def stop(self) -> None:
        """Be gone."""
        assert self._bus is not None
        await self._bus.release_name(NAME)
        self._bus.disconnect()
        await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]  # the library's own omission

    @dbus_method()
    def Notify(  # noqa: N802  # the standard's name
        self,
        app_name: DBusStr,
        replaces_id: DBusUInt32,
        app_icon: DBusStr,
        summary: DBusStr,
        body: DBusStr,
        actions: Texts,
        hints: DBusDict,
        expire_timeout: DBusInt32,
    ) -> DBusUInt32:
        """Note it."""
        self.shown.put_nowait((app_name, summary, body))
        return self.shown.qsize()

    @dbus_method()
    def GetCapabilities(self) -> Texts:  # noqa: N802  # the standard's name
        """Text."""
        return ["body"]

    @dbus_method()
    def GetServerInformation(self) -> Server:  # noqa: N802  # the standard's name
        """Who it is."""
        return ("test", "scaler", "1", "1.2")
