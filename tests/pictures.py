"""The screenshots of docs/page.md and docs/top.md: `python -m tests.pictures` (`make pictures`) takes them anew, and
with `top` behind it that of docs/top.md alone.

The daemon, its ladder and its decisions are real, and so are the two weeks before: the same decision on made-up
readings, told in the same journal and recording. Made up are the machine, of 16 GiB with one GPU, and its programs.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from playwright.sync_api import Page

from scaler.cli.daemon import Daemon
from scaler.demo.models import make_demo_models
from scaler.events import DecisionMade, Hurried, ModelDied, SwitchDone
from scaler.journal import Journal, record_of
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.machine import LevelMachine, Switch
from scaler.manager import ModelManager
from scaler.policy import Policy
from scaler.readings import Cpu, Gpu, Memory, Power, Pressure, Program, Reading, Stall, Survey, Swap
from scaler.recordings import Recorder
from scaler.sensors import Sensor
from scaler.sensors.programs import ProgramSurvey
from scaler.serving.app import Endpoint
from scaler.surroundings import Surroundings
from scaler.top.app import Top
from scaler.top.link import Link
from tests.end_to_end.browser import CHROMIUM, chromium

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
TOTAL, VRAM = 16 * GIB, 8 * GIB
TAKES = {"small": 2.3, "medium": 5.1, "large": 9.0}
"""In GiB of RAM."""
DAY_S = 86_400
STEP_DOWN_S, ROOM_S = 13 * 60, 100
"""So long ago large gave way, and so long ago there was room for it again."""
PICTURES = (
    ("light", 1240, 880, False, False),
    ("dark", 1240, 880, True, False),
    ("below", 1240, 740, False, True),
    ("narrow-light", 380, 820, False, False),
    ("narrow-dark", 380, 820, True, False),
)
"""Name, width, height, whether dark, whether from the ladder on instead of from the top."""
QUICK = {"dwell_s": 1.0, "dwell_max_s": 1.0, "recovery_s": 0.1, "wasted_within_s": 0.1}


def other_gib(ago_s: float, wall_s: float) -> float:
    """What other programs take: an office's day, with a build or a game now and then."""
    hour = wall_s / 3600 % 24
    used = (
        2.9 + 1.1 * math.exp(-(((hour - 14) / 4.5) ** 2)) + 0.12 * math.sin(wall_s / 67) + 0.07 * math.sin(wall_s / 9.1)
    )
    for each_s, length_s, size in ((11_900, 1500, 3.6), (47_000, 5200, 5.6), (171_000, 2700, 9.0)):
        inside = (wall_s + 700 * math.sin(wall_s // each_s)) % each_s
        used += size * min(1.0, inside / 40, max(0.0, (length_s - inside) / 25)) if inside < length_s else 0.0
    if ago_s < 3700:
        # The hour in the picture is told by hand: quiet, a build, quiet, and a program that grows and goes.
        used = 2.3 + 0.12 * math.sin(wall_s / 67) + 0.05 * math.sin(wall_s / 9.1) + 0.0001 * (3700 - ago_s)
        if 2500 < ago_s < 3100:
            used += 3.1 * min(1.0, (3100 - ago_s) / 90) * min(1.0, (ago_s - 2500) / 15)
        if ROOM_S < ago_s < STEP_DOWN_S + 140:
            used += 2.7 * min(1.0, (STEP_DOWN_S + 140 - ago_s) / 150) * min(1.0, (ago_s - ROOM_S) / 15)
    return used


def gives_way_s() -> float:
    """How long ago large had no room any more."""
    for ago_s in range(STEP_DOWN_S + 140, 0, -1):
        if other_gib(ago_s, time.time()) + TAKES["large"] > 0.806 * TOTAL / GIB:
            return float(ago_s)
    sys.exit("large always had room")


def gpu_used(ago_s: float) -> int:
    """A desktop, and for a while something that draws."""
    return int((1.1 + 0.05 * math.sin(ago_s / 40) + (2.4 if 300 < ago_s < 1900 else 0.0)) * GIB)


def reading(at_s: float, wall_s: float, ago_s: float, level: str) -> Reading:
    own = int(TAKES.get(level, 0.0) * GIB)
    free = max(0, TOTAL - own - int(other_gib(ago_s, wall_s) * GIB))
    gpu = Gpu(0, "GeForce RTX 4060", VRAM, gpu_used(ago_s), VRAM - gpu_used(ago_s), 0, 0.04, 41.0, False)
    return Reading(at_s, wall_s, Memory(TOTAL, free), own, gpus=(gpu,))


def tell_the_past(journal: Journal, recorder: Recorder, now_s: float) -> None:
    """Two weeks of decisions, of which the last day is recorded."""
    serving, began_s = "off", now_s - 14 * DAY_S
    asked: list[Switch] = []
    wall_s = began_s

    def tell(event: object) -> None:
        if (record := record_of(event, wall_s)) is not None:
            journal.write(record)

    def entered(switch: Switch) -> None:
        asked.append(switch)
        tell(DecisionMade(switch, wall_s))

    ladder = Ladder([Level(name, {RAM: int(size * GIB)}, 0.5, 3.0) for name, size in TAKES.items()])
    machine = LevelMachine(ladder, Policy(), entered, on_hurry=lambda switch: tell(Hurried(switch)))
    died = {int(began_s) + 3 * DAY_S, int(began_s) + 9 * DAY_S + 4000}
    while wall_s < time.time():  # also the time that this takes
        ago_s = now_s - wall_s
        machine.observe(taken := reading(wall_s - began_s, wall_s, ago_s, serving))
        if ago_s < DAY_S + 600:
            recorder.take(taken)
        if asked and (took_s := wall_s - began_s - asked[-1].decision.at_s) >= 3:
            switch = asked.pop()
            machine.switched(switch.ticket, wall_s - began_s, took_s)
            tell(SwitchDone(switch.ticket, switch.decision.source, switch.dest, took_s, took_s - 0.4))
            serving = switch.dest
        if any(one <= wall_s < one + 5 for one in died) and serving != "off":
            died = {one for one in died if not one <= wall_s < one + 5}
            tell(ModelDied(serving, "its process was killed by signal 9"))
            level, serving = serving, "off"
            machine.died(level, wall_s - began_s)
        wall_s += 1 if ago_s < DAY_S + 600 else 5


class Quiet(Journal):
    """Writes nothing before it is told to: how the daemon came to where it is, is told of the past already."""

    writes = False

    def write(self, record: Mapping[str, Any]) -> None:
        if self.writes:
            super().write(record)


class Programs(ProgramSurvey):
    """Those of the made-up machine."""

    def take(self, *, gpus: bool, in_our_group: bool = False) -> Survey:
        sizes = {"blender": 2.6, "firefox": 1.9, "code": 0.9}
        return Survey(tuple(Program(name, 4000, 3, {RAM: int(size * GIB)}) for name, size in sizes.items()))


class Machine:
    """The made-up machine as sensors: what others use as `other_gib` says, of whatever time it is there."""

    def __init__(self) -> None:
        self.ago_s = 3600.0
        self.serving: Callable[[], str] = lambda: "off"

    def sensors(self, _: Callable[[], Collection[int]]) -> Sequence[Sensor]:
        def now() -> Reading:
            return reading(0.0, time.time(), self.ago_s, self.serving())

        return (
            _Sensor("memory", lambda: now().memory),
            _Sensor("own_bytes", lambda: now().own_bytes),
            _Sensor("gpus", lambda: now().gpus),
            _Sensor("cpu", lambda: Cpu(8, 0.23, 0.05)),
            _Sensor("swap", lambda: Swap(4 * GIB, int(0.2 * GIB))),
            _Sensor("pressure", lambda: Pressure(Stall(0.0))),
            _Sensor("power", lambda: Power(True)),
        )


class _Sensor:
    def __init__(self, name: str, read: Callable[[], Any]) -> None:
        self.name, self.read = name, read


def configuration(folder: Path, models: Mapping[str, Path], policy: Mapping[str, float]) -> Path:
    ladder = [
        {"name": name, "model": str(models[name]), "quality": quality, "ram_gib": TAKES[name], "threads": 1}
        for name, quality in (("small", 0.6), ("medium", 0.8), ("large", 1.0))
    ]
    told = {
        "tier": "mid_range", "ladder": ladder, "policy": dict(policy), "monitor": {"interval_s": 0.2},
        "journal": {"path": str(folder / "journal.jsonl")}, "recording": {"path": str(folder / "recording")},
        "remembered": {"enabled": False},
    }  # fmt: skip
    path = folder / "scaler.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def until(holds: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 60
    while not holds():
        if time.monotonic() > give_up_s:
            sys.exit("the ladder did not come to where the picture begins")
        time.sleep(0.05)


def shoot(page: Page, name: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"page-{name}.png"
    # Packed tighter than a browser does.
    Image.open(BytesIO(page.screenshot())).save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1024:.0f} KiB")


async def shoot_top(url: str) -> None:
    """`scaler top` as an SVG, without the fonts that it would have a reader fetch from elsewhere."""
    app = Top(lambda tell: Link(Daemon(url), tell), "http://127.0.0.1:8484")
    async with app.run_test(size=(80, 24)) as pilot:
        async with asyncio.timeout(60):
            while "served" not in (picture := app.export_screenshot()):
                await pilot.pause(0.1)
    path = FOLDER / "top.svg"
    path.write_text(re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL), "utf-8")
    print(f"{path}  {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Take all of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {one.name: one.path for one in make_demo_models(folder / "models", lambda *_: None)}
        machine = Machine()
        back_s = STEP_DOWN_S
        surroundings = Surroundings(journal=Quiet, survey=Programs, clock=lambda: time.monotonic() - back_s)
        with ModelManager(
            configuration(folder, models, QUICK), sensors=machine.sensors, surroundings=surroundings
        ) as manager:
            scaler = manager.scaler
            machine.serving = lambda: scaler.status().serving
            scaler.want(True)
            until(lambda: scaler.status().serving == "large" and scaler.status().settled)
            for _ in range(3):
                manager.generate_response_sync("Who are you?")
            machine.ago_s = gives_way_s()
            until(lambda: scaler.status().serving == "medium" and scaler.status().settled)
            for _ in range(4):
                manager.generate_response_sync("Who are you?")
            back_s = 0
            configuration(folder, models, {})
            manager.reload_sync()
            machine.ago_s = ROOM_S - 30
            past = Journal(folder / "journal.jsonl", max_bytes=2**30)
            recorder = Recorder(folder / "recording")
            tell_the_past(past, recorder, time.time())
            recorder.close()
            past.close()
            assert isinstance(manager.journal, Quiet)
            manager.journal.writes = True
            endpoint = Endpoint(manager, "127.0.0.1", 0)
            endpoint.start()
            try:
                asyncio.run(shoot_top(endpoint.url))
                if sys.argv[1:] == ["top"]:
                    return
                if CHROMIUM is None:
                    sys.exit("the page's pictures are taken with Chromium, and there is none on this machine")
                for called, width, height, dark, below in PICTURES:
                    with chromium(folder / called, width=width, height=height, dark=dark) as context:
                        page = context.pages[0]
                        page.goto(endpoint.url)
                        page.locator("#days tr").first.wait_for()
                        page.locator("#advice p, #advice li").first.wait_for()
                        if called == "light":
                            page.locator(".mark").last.hover()
                        if below:
                            page.locator("#ladder-title").evaluate("title => title.closest('section').scrollIntoView()")
                        shoot(page, called)
            finally:
                endpoint.stop()


if __name__ == "__main__":
    main()
