"""The course of a soak: warm-up, faults one after the other and then several at once, calm; and its figures.

Owns what is measured and what of it is wrong. Each figure is taken from outside: by HTTP, by the process table.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from scaler import journal
from tests.sensors.conftest import FakeNvml, compile_nvml
from tests.soak.clients import Clients, Tally
from tests.soak.daemon import MIB, START_S, Daemon, Held, least
from tests.soak.disk import Disk, small_disk
from tests.soak.disturbances import STARVING, Disturbances
from tests.soak.pressure import Pressure

BEHAVED = 6
SETTLES_S = 60.0
"""Within so long after everything has calmed down a level serves and nothing moves."""
WARM_UP_S = 25.0
STANDS_S = 4.0
"""So long one level has served when what the daemon holds is counted: more than the dwell."""
LOOKS = 8
"""So often it is counted then, a quarter of a second apart."""
AFTER_S = 0.5
"""So long nothing has befallen the daemon when the truth of what it says is looked at."""
GROWTH_MIB = 8.0
"""What the daemon may hold more at the end than after the warm-up, by the robust slope: the noise of an allocator."""
PRESSURE_BYTES = 1536 * MIB
SAID = {
    "switches": " serves now ",
    "models died": " died: ",
    "of them hung": "it hung: ",
    "switches failed": " could not be loaded, ",
}
"""What it prints of the ladder, each in a line of its own."""
SPEED = 6
"""Seconds of the recording in each half second: its twelve minutes take one."""


@dataclass
class Figures:
    """What was counted, and everything that should not have been."""

    seconds: float
    seed: int
    disk: str = ""
    tally: Tally = field(default_factory=Tally)
    faults: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    settled: int = 0
    """Moments at which what the daemon says was compared with what there is."""
    asked: int = 0
    """Those of them at which a question was asked as well."""
    before: Held | None = None
    after: Held | None = None
    growth_mib: float | None = None
    rss_mib: tuple[float, float] | None = None
    rss_tenths: list[float] = field(default_factory=list)
    pressure_mib: float = 0.0
    violations: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The figures as a person reads them."""
        outcomes = self.tally.outcomes
        ended = outcomes["whole"] + outcomes["shortened"]
        rows = {
            "seconds, seed": f"{self.seconds:.0f}, {self.seed}",
            "faults": ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items())) or "none",
            "disk made full": self.disk,
            "memory taken by others, at the most": f"{self.pressure_mib:.0f} MiB",
            "the ladder": ", ".join(f"{self.events[name]} {name}" for name in SAID),
            "requests": str(self.tally.requests),
            "answers complete": f"{ended} ({outcomes['shortened']} of them shortened, as documented)",
            "made by more than one level": str(self.tally.handed_over),
            "clean errors": str(outcomes["error"]),
            "refused for want of descriptors": str(outcomes["refused for want of descriptors"]),
            "left by their clients": str(outcomes["left"]),
            "hangs": str(len(self.tally.hangs)),
            "lost, doubled or broken off": str(len(self.tally.wrong)),
            "longest answer": f"{self.tally.longest_s:.1f} s",
            "settled moments at which the state was true": f"{self.settled} ({self.asked} with a question)",
            "before: processes, threads, descriptors, folders": _held(self.before),
            "after": _held(self.after),
            "memory": "not measured"
            if self.rss_mib is None or self.growth_mib is None
            else f"{self.rss_mib[0]:.1f} MiB after the warm-up, {self.rss_mib[1]:.1f} at the end, "
            f"{self.growth_mib:+.1f} by the slope",
            "memory by tenths of the time": ", ".join(f"{mib:.1f}" for mib in self.rss_tenths),
            "violations": str(len(self.violations)),
        }
        lines = [f"{name:<50} {value}" for name, value in rows.items()]
        lines += [f"  error {count:>5}  {message}" for message, count in self.tally.errors.most_common()]
        return lines + [f"  VIOLATION  {one}" for one in self.violations]


def _held(held: Held | None) -> str:
    if held is None:
        return "not measured"
    return f"{held.processes}, {held.threads}, {held.descriptors}, {held.folders}"


class Soak:
    """One soak, from start to end."""

    def __init__(self, folder: Path, models: Mapping[str, Path], seconds: float, seed: int) -> None:
        """``seconds``: from the end of the warm-up to the calm."""
        self._folder, self._models = folder, models
        self._chance = random.Random(seed)
        self.figures = Figures(seconds, seed)
        self._rss: list[tuple[float, float]] = []
        self._status: dict[str, Any] = {}
        self._began_other: int | None = None

    def run(self) -> Figures:
        """The figures; whatever is wrong stands in them."""
        figures = self.figures
        with small_disk(self._folder / "disk", lambda most: daemon.limit_file_size(most)) as disk:
            figures.disk = disk.kind
            nvml = self._nvml()
            environment = (
                {}
                if nvml is None
                else {"LD_LIBRARY_PATH": str(nvml.library.parent), "FAKE_NVML_STATE": str(nvml.state)}
            )
            daemon = Daemon(self._folder, disk.path, self._models, environment)
            status = None
            try:
                asyncio.run(self._course(daemon, disk, nvml))
            finally:
                with suppress(Exception):
                    daemon.process.resume()
                if daemon.runs:
                    status = daemon.stop()
                if status != 0:
                    self._wrong(f"it ended with status {status}")
                for one in daemon.left():
                    self._wrong(f"left behind: {one}")
            self._read_journal(daemon)
            self._read_output(daemon)
        figures.violations += figures.tally.hangs + figures.tally.wrong
        return figures

    def _nvml(self) -> FakeNvml | None:
        folder = self._folder / "nvml"
        folder.mkdir()
        library = compile_nvml(folder, 1)
        if library is None:
            return None
        fake = FakeNvml(library.rename(folder / "libnvidia-ml.so.1"), folder / "state")
        fake.gpu("Soaked", 8 * 1024 * MIB, 1024 * MIB)
        return fake

    def _wrong(self, what: str) -> None:
        self.figures.violations.append(what)

    # ---------------------------------------------------------------- the course

    async def _course(self, daemon: Daemon, disk: Disk, nvml: FakeNvml | None) -> None:
        url = await self._started(daemon)
        self._url, self._daemon = url, daemon
        figures = self.figures
        disturbances = Disturbances(daemon, url, disk, nvml, random.Random(self._chance.random()))
        pressure = Pressure(self._beyond, PRESSURE_BYTES, SPEED)
        clients = Clients(url, figures.tally, random.Random(self._chance.random()), disturbances.starved)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)
        ) as self._session:
            watching = asyncio.create_task(self._watch(disturbances))
            pressing = asyncio.create_task(pressure.run())
            try:
                clients.start(BEHAVED, others=True)
                await asyncio.sleep(WARM_UP_S)
                figures.before = await self._at_rest(clients, pressure)
                clients.start(BEHAVED, others=True)
                self._rss.clear()
                await self._befall(disturbances, figures.seconds)
                disturbances.calm()
                figures.after = await self._at_rest(clients, pressure)
            finally:
                disturbances.calm()
                for task in (watching, pressing):
                    task.cancel()
                for told in await asyncio.gather(watching, pressing, return_exceptions=True):
                    if isinstance(told, Exception):
                        self._wrong(f"the soak itself failed: {type(told).__name__}: {told}")
        figures.faults, figures.pressure_mib = disturbances.had, pressure.most / MIB
        figures.violations += disturbances.wrong
        self._compare()

    async def _started(self, daemon: Daemon) -> str:
        until = time.monotonic() + START_S
        while (url := daemon.url) is None:
            if not daemon.runs or time.monotonic() > until:
                raise AssertionError(f"it did not start: {daemon.output.read_text()}")
            await asyncio.sleep(0.1)
        return url

    async def _befall(self, disturbances: Disturbances, seconds: float) -> None:
        """Each fault once, one after the other, and then up to two at once."""
        until = time.monotonic() + seconds
        names = sorted(disturbances.kinds)
        in_turn = [*names]
        self._chance.shuffle(in_turn)
        under_way: set[asyncio.Task[None]] = set()
        while time.monotonic() < until:
            if in_turn:
                await disturbances.have(in_turn.pop())
                await asyncio.sleep(self._chance.uniform(1.0, 3.0))
                continue
            under_way = {task for task in under_way if not task.done()}
            if len(under_way) < 2:
                under_way.add(asyncio.create_task(disturbances.have(self._chance.choice(names))))
            # Now and then there is time for it to settle.
            await asyncio.sleep(self._chance.uniform(0.5, 4.0) if self._chance.random() < 0.8 else 10.0)
        await asyncio.gather(*under_way)

    async def _at_rest(self, clients: Clients, pressure: Pressure) -> Held:
        """What it holds when nobody asks, nobody presses and one level serves, whichever: the machine has others."""
        await clients.stop()
        pressure.paused = True
        until, since, last = time.monotonic() + SETTLES_S, time.monotonic(), ""
        while time.monotonic() - since < STANDS_S:
            status = await self._ask_status()
            now = "" if status is None else _moment(status)
            if status is None or not _stands(status) or status["serving"] == "off" or now != last:
                since, last = time.monotonic(), now
            if time.monotonic() > until:
                self._wrong(f"not at rest within {SETTLES_S:.0f} s: {_short(status)}")
                break
            await asyncio.sleep(0.25)
        looks = []
        for _ in range(LOOKS):
            looks.append(self._daemon.held())
            await asyncio.sleep(0.25)
        pressure.paused = False
        return least(looks)

    # ---------------------------------------------------------------- what is seen

    async def _watch(self, disturbances: Disturbances) -> None:
        looks = 0
        while True:
            began = time.monotonic()
            if not self._daemon.runs:
                raise AssertionError("scaler ended")
            before = await self._ask_status()
            if before is not None:
                self._status = before
                self._rss.append((time.monotonic(), self._daemon.rss_mib()))
                if self._is_calm(disturbances) and _stands(before):
                    looks += 1
                    await self._compare_with_truth(disturbances, before, ask=looks % 5 == 0)
            elif not disturbances.starved(began - 5) and not disturbances.under_way["scaler stopped for a moment"]:
                self._wrong("GET /status was not answered")
            await asyncio.sleep(0.5)

    def _is_calm(self, disturbances: Disturbances) -> bool:
        return not disturbances.under_way.total() and time.monotonic() > disturbances.latest_end_s + AFTER_S

    async def _compare_with_truth(self, disturbances: Disturbances, before: Mapping[str, Any], *, ask: bool) -> None:
        """Compare what it says with what there is, if it says the same before and after and nothing befell it."""
        serving = before["serving"]
        processes, served = len(self._daemon.models()), await self._daemon.served()
        said = await self._who() if ask and serving != "off" else None
        after = await self._ask_status()
        if after is None or _moment(after) != _moment(before) or not self._is_calm(disturbances):
            return
        wanted = [] if serving == "off" else [serving]
        self.figures.settled += 1
        if served != wanted or processes != len(wanted):
            self._wrong(f"{serving} is said to serve, but {served} of {processes} processes do: {_short(before)}")
        if said is not None:
            self.figures.asked += 1
            if said != serving:
                self._wrong(f"{serving} is said to serve, but {said!r} answered")

    async def _who(self) -> str | None:
        """The level that answers, in its own words; None where it gives no whole answer."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 3}
        try:
            async with self._session.post(f"{self._url}/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    return None
                words = ((await answer.json())["choices"][0]["message"]["content"] or "").split()
                level = answer.headers["x-scaler-level"]
        except (aiohttp.ClientError, TimeoutError):
            return None
        if words[:1] != ["The"]:
            return f"{level}: {words}"
        return str(words[1]) if words[1:2] == [level] else f"{level}: {words}"

    async def _ask_status(self) -> dict[str, Any] | None:
        try:
            async with self._session.get(f"{self._url}/status") as answer:
                return dict(await answer.json()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    def _beyond(self) -> int | None:
        """What others use now beyond what they did at the beginning, in bytes."""
        ram = self._status.get("usage", {}).get("ram")
        if ram is None:
            return None
        if self._began_other is None:
            self._began_other = ram["other_bytes"]
        return int(ram["other_bytes"] - self._began_other)

    # ---------------------------------------------------------------- the verdict

    def _compare(self) -> None:
        figures = self.figures
        before, after = figures.before, figures.after
        if before is not None and after is not None:
            for name in ("processes", "threads", "descriptors", "folders"):
                was, now = getattr(before, name), getattr(after, name)
                if now > was:
                    self._wrong(f"leaked {name}: {was} after the warm-up, {now} at the end")
            if after.descriptors > before.descriptors:
                self._wrong(f"the descriptors were {before.files} and are {after.files}")
        if len(self._rss) < 10:
            self._wrong(f"only {len(self._rss)} looks at its memory")
            return
        tenth = max(1, len(self._rss) // 10)
        first, last = (statistics.median(rss for _, rss in part) for part in (self._rss[:tenth], self._rss[-tenth:]))
        figures.rss_mib = (first, last)
        figures.rss_tenths = [
            statistics.median(rss for _, rss in self._rss[at : at + tenth]) for at in range(0, len(self._rss), tenth)
        ]
        figures.growth_mib = slope(self._rss) * (self._rss[-1][0] - self._rss[0][0])
        if figures.growth_mib > GROWTH_MIB:
            self._wrong(f"its memory grew by {figures.growth_mib:.1f} MiB, at most {GROWTH_MIB:g} are noise")

    def _read_journal(self, daemon: Daemon) -> None:
        try:
            records = list(journal.read(daemon.journal))
        except journal.JournalError as error:
            self._wrong(f"the journal cannot be read: {error}")
            return
        if not records:
            self._wrong("the journal is empty")

    def _read_output(self, daemon: Daemon) -> None:
        """What it printed: nothing failed unexpectedly, and a full disk is told once each time."""
        output = daemon.output.read_text(errors="replace")
        for name, words in SAID.items():
            self.figures.events[name] = sum(words in line for line in output.splitlines() if line[2:3] == ":")
        if faults := re.findall(r"^\s*Traceback.*", output, re.MULTILINE):
            self._wrong(f"{len(faults)} tracebacks in {daemon.output}")
        told = len(re.findall("the journal is not written", output))
        if told > sum(self.figures.faults[name] for name in ("disk full", *STARVING)):
            self._wrong(f"that the journal cannot be written was told {told} times")


def slope(points: list[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs, by Theil and Sen: a few wild figures do not move it.

    Of many points about two hundred are used. Source: https://doi.org/10.1080/01621459.1968.10480934
    """
    some = points[:: max(1, len(points) // 200)]
    slopes = [(later[1] - early[1]) / (later[0] - early[0]) for n, early in enumerate(some) for later in some[n + 1 :]]
    return statistics.median(slopes)


def _stands(status: Mapping[str, Any]) -> bool:
    return bool(status["settled"] and status["state"] == status["serving"])


def _moment(status: Mapping[str, Any]) -> str:
    """What is the same as long as nothing happened."""
    return json.dumps(
        [status["state"], status["serving"], status["settled"], status["last_decision"], status["failed"]]
    )


def _short(status: Mapping[str, Any] | None) -> str:
    if status is None:
        return "no status"
    return json.dumps({key: status[key] for key in ("state", "serving", "settled", "usage", "failed", "missing")})
