"""`scaler run`'s endpoint with everything on, before a runtime that takes no time.

Run as ``python -m tests.bench.serving.endpoint UPSTREAM FOLDER``; it prints its address. One level, so that nothing
switches; what answers for it is the upstream, spoken to by the embedded runtime's own client.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import psutil

from scaler.cli.record import keep
from scaler.cli.run import collect_seldom
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB, RAM
from scaler.manager import ModelManager
from scaler.recordings import Recorder
from scaler.runtimes.embedded import EmbeddedModel
from scaler.serving.app import Endpoint


class Child:
    """In place of the model's process, for which this one stands."""

    process = psutil.Process()

    async def died(self) -> str:
        await asyncio.Event().wait()
        return ""


class Upstream:
    """A runtime whose every level is the same address."""

    def __init__(self, address: str) -> None:
        self._address = address

    def require(self) -> None:
        """Nothing is needed."""

    def footprint(self, _: EmbeddedLevel) -> Mapping[str, int]:
        return {RAM: GIB // 10}

    def pids(self) -> Collection[int]:
        return ()

    async def release(self, settings: EmbeddedLevel) -> None:
        """Nothing is held from before."""

    async def close(self) -> None:
        """Nothing goes on in the background."""

    async def load(self, settings: EmbeddedLevel, _: Callable[[float], None]) -> EmbeddedModel:
        async def end(_: Any) -> None:
            """There is no process to end."""

        return EmbeddedModel(settings, cast(Any, Child()), self._address, end)


def main(upstream: str, folder: str) -> None:
    config = Path(folder) / "scaler.yaml"
    config.write_text(
        f"ladder: [{{name: level, model: {folder}/none.gguf, parallel: 64}}]\n"
        f"journal: {{path: {folder}/journal.jsonl}}\n"
        "queue: {limit: 1000}\n"
    )
    with mock.patch("scaler.assembly.runtime_called", return_value=Upstream(upstream)), ModelManager(config) as manager:
        endpoint = Endpoint(manager, "127.0.0.1", 0)
        endpoint.start()
        recorder = Recorder(Path(folder) / "recording")
        manager.scaler.monitor.subscribe(partial(keep, recorder))
        collect_seldom()
        manager.scaler.want(True)
        print(endpoint.url, flush=True)
        sys.stdin.read()
        endpoint.stop()
        recorder.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
