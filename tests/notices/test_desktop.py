"""Notices on a desktop: a real message bus and a real service on it, both private to the test."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from scaler.errors import MissingExtra
from scaler.notices import Notice
from scaler.notify.desktop import Desktop

if TYPE_CHECKING:
    from tests.notices.desktop import Service

PATIENCE_S = 60.0
DOWN = Notice("downgrade", "medium", "large gives way to medium: why")


@pytest.fixture
def bus(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The session's bus for this test: its address."""
    pytest.importorskip("dbus_fast")
    from tests.notices.desktop import message_bus

    with message_bus(tmp_path_factory.mktemp("bus")) as address:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
        yield address


def service() -> Service:
    """A new one."""
    from tests.notices.desktop import Service

    return Service()


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, PATIENCE_S))


@pytest.mark.parametrize(
    ("notice", "title"),
    [
        (DOWN, "scaler: down to medium"),
        (Notice("upgrade", "large", "medium makes way"), "scaler: up to large"),
        (Notice("downgrade", "off", "small is unloaded"), "scaler: nothing serves now"),
        (Notice("failure", "large", "large died → killed"), "scaler: large failed"),
    ],
)
def test_a_notice_is_shown_with_what_it_is_about(bus: str, notice: Notice, title: str) -> None:
    """The title says it all; the text says why."""

    async def body() -> None:
        there, desktop = service(), Desktop()
        await there.start(bus)
        await desktop.deliver(notice)
        assert there.shown.get_nowait() == ("scaler", title, notice.text)
        await desktop.close()
        await there.stop()

    run(body())


def test_a_desktop_without_a_service_is_told_once_and_used_when_it_is_there(
    bus: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A daemon starts before anybody logs in, and goes on when they log out."""

    async def body() -> None:
        desktop, there = Desktop(), service()
        for _ in range(3):
            await desktop.deliver(DOWN)
        assert len(caplog.records) == 1
        await there.start(bus)
        await desktop.deliver(DOWN)
        await desktop.deliver(DOWN)
        assert there.shown.qsize() == 2
        assert len(caplog.records) == 1
        await there.stop()
        for _ in range(3):
            await desktop.deliver(DOWN)
        assert len(caplog.records) == 2
        await desktop.close()

    with caplog.at_level(logging.WARNING):
        run(body())
    for record in caplog.records:
        assert record.name == "scaler.notify.desktop"
        assert "no notification service answers" in record.getMessage()
        assert record.exc_info is None


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense", ""])
def test_without_a_session_it_is_said_and_no_error(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a server."""
    pytest.importorskip("dbus_fast")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    monkeypatch.delenv("DISPLAY", raising=False)

    async def body() -> None:
        desktop = Desktop()
        await desktop.deliver(DOWN)
        await desktop.deliver(DOWN)
        await desktop.close()

    with caplog.at_level(logging.WARNING):
        run(body())
    (record,) = caplog.records
    assert "no notification service answers" in record.getMessage()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    monkeypatch.setitem(sys.modules, "desktop_notifier", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[desktop\]'"):
        Desktop()
