"""What befalls the daemon, each on its own or several at once, in an order that a seed decides.

Each returns when its cause is over: whoever looks for the truth then waits until the ladder has settled.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import psutil

from tests.sensors.conftest import FakeNvml
from tests.soak.daemon import DESCRIPTORS, HANG_S, LOAD_S, Daemon
from tests.soak.disk import Disk

NOTICED_S = LOAD_S + 3 * HANG_S + 10.0
"""A model that hangs is gone within this, also while it is being loaded, and on a busy machine."""
GPU_IS_LOST, UNKNOWN = 15, 999
STARVING = ("a crowd of connections", "descriptors used up")


class Disturbances:
    """The faults by name, how often each was had, and what of it was wrong."""

    def __init__(self, daemon: Daemon, url: str, disk: Disk, nvml: FakeNvml | None, chance: random.Random) -> None:
        """``nvml``: None where no library can be compiled."""
        self._daemon, self._disk, self._nvml, self._chance = daemon, disk, nvml, chance
        there = urlsplit(url)
        self._host, self._port = str(there.hostname), int(there.port or 0)
        self.had: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.under_way: Counter[str] = Counter()
        self._starved_until_s = 0.0
        self.latest_end_s = 0.0

    @property
    def kinds(self) -> Mapping[str, Callable[[], Awaitable[bool]]]:
        """Those that can be had on this machine."""
        kinds = {
            "model killed": self._kill,
            "model stopped for a moment": self._stop_for_a_moment,
            "model stopped for good": self._stop_for_good,
            "disk full": self._fill_disk,
            "scaler stopped for a moment": self._stop_scaler,
            "a crowd of connections": self._crowd,
            "descriptors used up": self._use_up_descriptors,
        }
        return kinds | ({"NVML fails": self._fail_nvml} if self._nvml is not None else {})

    async def have(self, name: str) -> None:
        """Have one, and note it where there was something for it to befall."""
        self.under_way[name] += 1
        try:
            if await self.kinds[name]():
                self.had[name] += 1
        finally:
            self.under_way[name] -= 1
            self.latest_end_s = time.monotonic()

    def starved(self, since_s: float) -> bool:
        """Whether the daemon lacked descriptors, or sent strangers away, at any moment since then."""
        return any(self.under_way[name] for name in STARVING) or since_s <= self._starved_until_s

    def _model(self) -> psutil.Process | None:
        models = self._daemon.models()
        return self._chance.choice(models) if models else None

    async def _kill(self) -> bool:
        if (model := self._model()) is None:
            return False
        with suppress(psutil.NoSuchProcess):
            model.kill()
        return True

    async def _stop_for_a_moment(self) -> bool:
        """Shorter than counts as a hang."""
        if (model := self._model()) is None:
            return False
        with suppress(psutil.NoSuchProcess):
            model.suspend()
            await asyncio.sleep(self._chance.uniform(0.2, HANG_S / 3))
            model.resume()
        return True

    async def _stop_for_good(self) -> bool:
        if (model := self._model()) is None:
            return False
        with suppress(psutil.NoSuchProcess):
            model.suspend()
            until = time.monotonic() + NOTICED_S
            # It may be retired at this moment, or killed by another fault: gone is gone.
            while model.is_running() and model.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > until:
                    self.wrong.append(f"a model that was stopped is still there after {NOTICED_S:.0f} s")
                    model.kill()
                    break
                await asyncio.sleep(0.1)
        return True

    async def _fill_disk(self) -> bool:
        self._disk.fill()
        # So that there is something to write.
        await self._kill()
        try:
            await asyncio.sleep(self._chance.uniform(3.0, 8.0))
        finally:
            self._disk.free()
        return True

    async def _stop_scaler(self) -> bool:
        self._daemon.process.suspend()
        try:
            await asyncio.sleep(self._chance.uniform(0.5, 4.0))
        finally:
            self._daemon.process.resume()
        return True

    async def _fail_nvml(self) -> bool:
        assert self._nvml is not None
        code = self._chance.choice((GPU_IS_LOST, UNKNOWN))
        if self._chance.random() < 0.3:
            self._nvml.hang("memory", 3000)
        else:
            self._nvml.fail(self._chance.choice(("memory", "init", "count", "utilization")), code)
        try:
            await asyncio.sleep(self._chance.uniform(1.0, 5.0))
        finally:
            self._nvml.heal()
        return True

    async def _crowd(self) -> bool:
        """As many connections as would be more than the daemon may have open, and nothing asked on them."""
        writers: list[asyncio.StreamWriter] = []
        try:
            for _ in range(DESCRIPTORS + 32):
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(2):
                        writers.append((await asyncio.open_connection(self._host, self._port))[1])
            await asyncio.sleep(self._chance.uniform(1.0, 4.0))
        finally:
            for writer in writers:
                writer.transport.abort()
            # What waits to be accepted is taken, and found to be gone, a little later.
            self._starved_until_s = time.monotonic() + 3.0
        return True

    async def _use_up_descriptors(self) -> bool:
        """It may open none or a few more than it has open now, whatever it is about to do."""
        few = self._chance.choice((0, 0, 1, 2, 4, 8))
        self._daemon.limit_files(self._daemon.highest_descriptor() + 1 + few)
        try:
            await asyncio.sleep(self._chance.uniform(1.0, 4.0))
        finally:
            self._daemon.limit_files(DESCRIPTORS)
            self._starved_until_s = time.monotonic() + 3.0
        return True

    def calm(self) -> None:
        """Take every cause back, whatever was under way."""
        self._disk.free()
        if self._nvml is not None:
            self._nvml.heal()
        with suppress(psutil.NoSuchProcess):
            self._daemon.limit_files(DESCRIPTORS)
            self._daemon.process.send_signal(signal.SIGCONT)
