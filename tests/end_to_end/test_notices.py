"""What the settings name is told of a real step down: a desktop and a webhook, both private to the test."""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from scaler import advising
from scaler.demo.hog import Hog
from scaler.events import Advised, DecisionMade, PersonTold
from scaler.loop_thread import LoopThread
from scaler.notices import Notice
from scaler.serving.app import Endpoint
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine
from tests.end_to_end.test_ladder import settles_at

Running = Callable[..., Any]


@contextmanager
def webhook() -> Iterator[tuple[str, queue.Queue[Any]]]:
    """A server that takes what is posted: its address and what came."""
    taken: queue.Queue[Any] = queue.Queue()

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", taken
        finally:
            server.shutdown()
            thread.join()


def test_a_webhook_is_told_of_a_step_down_also_when_scaler_ends_at_once(running: Running) -> None:
    """What is on its way when scaler ends still arrives; upgrades come where the settings want them."""
    told: list[Notice] = []
    with webhook() as (url, taken):
        with running(notices={"webhook": url, "upgrades": True}) as (manager, watch):
            manager.on_notice(told.append)
            manager.scaler.want(True)
            settles_at(manager, watch, "large")
            manager.scaler.initiate_graceful_degradation()
        came = [taken.get_nowait() for _ in range(taken.qsize())]
    assert [notice["text"] for notice in came] == [notice.text for notice in told]
    assert [notice["kind"] for notice in came][-1] == "downgrade"
    assert "upgrade" in [notice["kind"] for notice in came]


def test_a_downgrades_notice_names_the_program_whose_end_would_make_room(
    running: Running, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real program that holds as much as large lacks; and whoever asks later is told the same."""
    monkeypatch.setattr(advising, "PATIENCE_S", PATIENCE_S)
    told: list[Notice] = []
    with running() as (manager, watch), Hog(900 * MIB) as hog:
        manager.on_notice(told.append)
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        hog.hold(900 * MIB)
        machine.other_bytes = 2900 * MIB
        watch.until(lambda: any(isinstance(event, PersonTold) for event in watch.events), "a notice")
        settles_at(manager, watch, "medium")
        endpoint = Endpoint(manager, "127.0.0.1", 0)
        endpoint.start()
        with urllib.request.urlopen(f"{endpoint.url}/advice", timeout=PATIENCE_S) as answer:
            later = json.load(answer)
        done = subprocess.run(
            [sys.executable, "-m", "scaler", "advise", "--url", endpoint.url], capture_output=True, text=True
        )
        endpoint.stop()
        (advised,) = [event for event in watch.events if isinstance(event, Advised)]
        by_pid = {one.programs[0].pid: one for one in advised.suggestions if len(one.programs) == 1}
        mine = by_pid[hog._process.pid]
        assert (mine.level, mine.programs[0].name) == ("large", "scaler.demo.hog")
        assert 900 * MIB * 0.97 <= mine.freed["ram"] <= 900 * MIB * 1.05
        # Another program of this machine may hold enough as well; the best is at the end of the notice in any case.
        assert told[0].text.endswith(f" s; {advised.suggestions[0].text}")
        assert hog._process.pid in {one["programs"][0]["pid"] for one in later["suggestions"] if one["programs"]}
        assert done.returncode == 0
        assert done.stdout.startswith("medium is the level now\n  large lacks 0.")
        assert "closing scaler.demo.hog" in done.stdout
        order = [type(event) for event in watch.events if isinstance(event, DecisionMade | Advised | PersonTold)]
        assert order[-3:] == [DecisionMade, Advised, PersonTold]
        assert hog._process.poll() is None


def test_a_desktop_is_told_of_a_step_down(
    running: Running, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the scaler's decision to the notification service, with everything real in between."""
    pytest.importorskip("dbus_fast")
    from tests.notices.desktop import Service, message_bus

    with message_bus(tmp_path_factory.mktemp("bus")) as address:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
        loop, service = LoopThread("desktop"), Service()
        try:
            loop.call(service.start(address))
            with running(notices={"desktop": True}) as (manager, watch):
                manager.scaler.want(True)
                settles_at(manager, watch, "large")
                manager.scaler.initiate_graceful_degradation()
                shown = loop.call(asyncio.wait_for(service.shown.get(), PATIENCE_S))
            assert shown[:2] == ("scaler", "scaler: down to medium")
            assert shown[2].startswith("large gives way to medium: a step down was asked for; ")
            loop.call(service.stop())
        finally:
            loop.stop()
