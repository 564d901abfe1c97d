"""`make bench`: what things cost, each beside a peer or a bar, in one run. Exit code 1 when a bar is missed.

Figures are medians of several rounds; peers are run in turn with what they are compared to, so that a busy
machine slows both.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler.control import Controller
from scaler.demo.models import make_demo_models
from scaler.events import SwitchDone
from scaler.levels import GIB, RAM, Ladder, Level
from scaler.manager import ModelManager
from scaler.monitor import ResourceMonitor
from scaler.paths import demo_models
from scaler.policy import Policy
from scaler.proactive import ProactiveScaler
from scaler.readings import Cpu, Memory, Reading
from scaler.recordings import Recorder, Recording
from scaler.replay.closed_loop import play
from scaler.replay.optimum import Others, best_score
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.sensors import default_sensors
from scaler.sensors.gpu import GpuSensor
from scaler.settings import load_settings
from tests.bench.adapters import added as added_by_adapters
from tests.bench.adapters import reaction
from tests.bench.serving.measure import added, compare, ratio
from tests.bench.serving.switches import cut_over, step_down
from tests.sensors.conftest import FakeNvml, compile_nvml

ROUNDS = 5
FORBIDDEN = ("aiohttp", "orjson", "xllamacpp", "gguf", "numpy", "pynvml", "rich")


@dataclass(frozen=True)
class Figure:
    """One measured figure and its bar."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.at_most else self.value >= self.bar)

    def __str__(self) -> str:
        if self.bar is None:
            return f"{self.name:<58} {self.value:>10.4g} {self.unit}"
        bar = f"{'at most' if self.at_most else 'at least'} {self.bar:g}"
        return f"{self.name:<58} {self.value:>10.4g} {self.unit:<12} {bar:<16} {'ok' if self.met else 'MISSED'}"


def hello() -> dict[str, Any]:
    levels = [("off", 0, 0.0), ("small", 2, 0.6), ("medium", 4, 0.8), ("large", 7, 1.0)]
    return {
        "type": "hello",
        "step_s": 2.0,
        "memory_total_bytes": 16 * GIB,
        "thresholds": {"scale_at": 0.8, "critical_at": 0.95, "upgrade_dwell_s": 300.0},
        "levels": [{"name": n, "memory_bytes": g * GIB, "quality": q, "load_s": 4.0} for n, g, q in levels],
    }


def closed_loop(step: Callable[[dict[str, Any]], str], samples: int) -> float:
    """Play a machine whose other usage wanders; the wish is granted at once. Returns the seconds in ``step``."""
    rng = random.Random(7)
    sizes = {level["name"]: level["memory_bytes"] for level in hello()["levels"]}
    level, other, spent = "small", 4.0, 0.0
    event: dict[str, Any] | None = {"type": "switched", "level": level, "ok": True}
    for number in range(samples):
        other = min(14.0, max(1.0, other + rng.gauss(0, 0.05) + 0.02 * math.sin(number / 300)))
        used = min(16 * GIB, int(other * GIB) + sizes[level])
        sample: dict[str, Any] = {
            "type": "sample",
            "t": number * 2.0,
            "memory": {"used_bytes": used, "total_bytes": 16 * GIB},
            "cpu": {"percent": 12.0},
            "model": {"level": level, "loading": None, "rss_bytes": sizes[level], "cpu_percent": 2.0},
            "in_flight": 0,
        }
        if event is not None:
            sample["event"], event = event, None
        began = time.perf_counter()
        target = step(sample)
        spent += time.perf_counter() - began
        if target != level:
            level, event = target, {"type": "switched", "level": target, "ok": True}
    return spent


def target_of(controller: Controller) -> Callable[[dict[str, Any]], str]:
    """The controller as a function from sample to target."""
    return lambda sample: controller.step(sample)[0]


def decisions_in_process() -> list[Figure]:
    """Decisions a second without a pipe."""
    rates = []
    for _ in range(ROUNDS):
        controller = Controller(hello(), Policy())
        rates.append(20_000 / closed_loop(target_of(controller), 20_000))
    return [Figure("decisions in process", statistics.median(rates), "a second", 15_000, at_most=False)]


def pipe_rate(argv: list[str], lines: list[str]) -> float:
    """Lines a second through a controller's stdin and stdout, one at a time."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(hello()) + "\n")
        process.stdout.readline()
        began = time.perf_counter()
        for line in lines:
            process.stdin.write(line)
            process.stdout.readline()
        rate = len(lines) / (time.perf_counter() - began)
        process.stdin.close()
    return rate


def decisions_through_the_pipe() -> list[Figure]:
    """`scaler control` beside a controller that only parses, echoes and flushes."""
    lines: list[str] = []
    controller = Controller(hello(), Policy())

    def step(sample: dict[str, Any]) -> str:
        lines.append(json.dumps(sample) + "\n")
        return controller.step(sample)[0]

    closed_loop(step, 10_000)
    control = [sys.executable, "-m", "scaler", "control"]
    echo = [sys.executable, str(Path(__file__).with_name("echo.py"))]
    pairs = [(pipe_rate(control, lines), pipe_rate(echo, lines)) for _ in range(ROUNDS)]
    return [
        Figure("decisions through the pipe", statistics.median(ours for ours, _ in pairs), "a second"),
        Figure(
            "  beside an echo of the same lines",
            statistics.median(ours / theirs for ours, theirs in pairs),
            "of its rate",
            0.5,
            at_most=False,
        ),
    ]


def importing() -> list[Figure]:
    """`import scaler`, less a bare interpreter, and what it drags in."""
    code = (
        "import json, sys, time; began = time.perf_counter(); import scaler; spent = time.perf_counter() - began; "
        "print(json.dumps([spent, sorted(sys.modules)]))"
    )
    deeper = code.replace("import scaler;", "from scaler import ProactiveScaler;")
    figures = []
    for name, source in (("import scaler", code), ("from scaler import ProactiveScaler", deeper)):
        runs = [json.loads(subprocess.check_output([sys.executable, "-c", source])) for _ in range(ROUNDS)]
        heavy = {module.split(".")[0] for module in runs[0][1]} & set(FORBIDDEN)
        figures.append(Figure(name, 1000 * statistics.median(run[0] for run in runs), "ms", 250))
        figures.append(Figure("  web, llama and GPU libraries imported by it", len(heavy), "", 0))
    return figures


def preflight() -> list[Figure]:
    """The pre-flight check while the monitor runs."""
    ladder = Ladder([Level("small", {RAM: GIB // 10}, 0.5, 1.0), Level("large", {RAM: GIB}, 1.0, 2.0)])
    scaler = ProactiveScaler(ladder=ladder, policy=Policy(), monitor=ResourceMonitor(interval_s=0.1))
    scaler.start_continuous_monitoring()
    try:
        scaler.check_preflight_resources()
        times = []
        for _ in range(50_000):
            began = time.perf_counter()
            scaler.check_preflight_resources()
            times.append(time.perf_counter() - began)
    finally:
        scaler.stop_continuous_monitoring()
    times.sort()
    return [
        Figure("pre-flight check, median", 1e6 * times[len(times) // 2], "µs"),
        Figure("pre-flight check, p99", 1e6 * times[int(len(times) * 0.99)], "µs", 100),
    ]


def reading() -> list[Figure]:
    """A whole reading of this machine."""
    monitor = ResourceMonitor()
    monitor.read_now()
    times = []
    for _ in range(200):
        began = time.perf_counter()
        monitor.read_now()
        times.append(time.perf_counter() - began)
    return [Figure("one reading of every sensor, median", 1e6 * statistics.median(times), "µs")]


def reading_gpus() -> list[Figure]:
    """A reading of eight GPUs, six processes on each, from a fake of NVML's library: in a process that finds it."""
    code = """if True:
        import statistics, time
        from scaler.sensors.gpu import GpuSensor
        from scaler.sensors.processes import process_tree
        sensor, times = GpuSensor(process_tree(lambda: (4_000_000, 4_000_001))), []
        assert [gpu.own_bytes for gpu in sensor.read()] == [3 << 30] * 8
        for _ in range(1000):
            began = time.perf_counter()
            sensor.read()
            times.append(time.perf_counter() - began)
        print(statistics.median(times))
    """
    with tempfile.TemporaryDirectory() as folder:
        library = compile_nvml(Path(folder), 1)
        if library is None:
            print("a reading of 8 GPUs is not measured: no C compiler to build the fake of NVML with, or not Linux")
            return []
        fake = FakeNvml(library.rename(library.with_name("libnvidia-ml.so.1")), Path(folder) / "state")
        for gpu in range(8):
            fake.gpu(f"NVIDIA {gpu}", 80 * GIB, 40 * GIB)
            for process in range(6):
                kind = "graphics" if process % 3 == 0 else "compute"
                fake.process(gpu, kind, 4_000_000 + process, (1 + process) * GIB)
        environment = os.environ | {"LD_LIBRARY_PATH": folder, "FAKE_NVML_STATE": str(fake.state)}
        median = float(subprocess.check_output([sys.executable, "-c", code], env=environment))
    return [Figure("one reading of 8 GPUs from a fake of NVML, median", 1000 * median, "ms", 2)]


def monitoring() -> list[Figure]:
    """What watching the machine costs: processor time of this process beside the time that passed."""
    sensors = default_sensors(lambda: ())
    without = [sensor for sensor in sensors if not isinstance(sensor, GpuSensor)]
    figures = []
    for what, chosen in (("with NVML", sensors), ("without NVML", without)):
        for interval_s, seconds, bar in ((1.0, 20.0, 0.5), (0.1, 10.0, None)):
            monitor = ResourceMonitor(interval_s=interval_s, sensors=chosen)
            monitor.start()
            began, spent = time.perf_counter(), time.process_time()
            threading.Event().wait(seconds)
            share = (time.process_time() - spent) / (time.perf_counter() - began)
            monitor.stop()
            figures.append(Figure(f"monitor at {1 / interval_s:g} Hz, {what}", 100 * share, "% of a core", bar))
    gpus = ResourceMonitor(sensors=sensors).read_now().gpus
    figures.append(Figure("  GPUs that NVML found here", len(gpus or ()), ""))
    return figures


def replaying() -> list[Figure]:
    """A week of readings, one a second: from disk, decided upon, and the clairvoyant optimum; a day is measured."""
    rng, other = random.Random(3), 5.0
    ladder = Ladder([Level(n, {RAM: g * GIB}, q, 4.0) for n, g, q in (("a", 2, 0.6), ("b", 4, 0.8), ("c", 7, 1.0))])
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), wall_clock=lambda: 1.76e9)
        for at_s in range(86_400):
            other = min(13.0, max(1.0, other + rng.gauss(0, 0.05) + 0.01 * math.sin(at_s / 5000)))
            memory = Memory(16 * GIB, int((16 - other) * GIB))
            recorder.take(Reading(float(at_s), 1.76e9 + at_s, memory, 0, cpu=Cpu(8, rng.random(), 0.0)))
        recorder.close()
        size = recorder.size_bytes
        others = Others([RAM], Policy().stale_after_s)

        def tee() -> Iterator[Reading]:
            for reading in Recording(Path(folder)):
                others.add(reading)
                yield reading

        began = time.process_time()
        play(tee(), ladder, Policy())
        best_score(others, ladder, Policy())
        spent = time.process_time() - began
    return [
        Figure("replay of a week at 1 Hz, with its optimum", 7 * spent, "s", 60),
        Figure("recording of a day at 1 Hz, memory and processors", size / 1024**2, "MiB", 2),
    ]


def an_hour_at_ten_a_second() -> list[Figure]:
    """Memory of the decision after 36 000 readings, beside after the first five minutes; in a process of its own."""
    code = """if True:
        import gc, psutil
        from scaler.levels import GIB, RAM, Ladder, Level
        from scaler.monitor import ResourceMonitor
        from scaler.policy import Policy
        from scaler.proactive import ProactiveScaler
        from scaler.readings import Memory, Reading
        ladder = Ladder([Level("a", {RAM: GIB}, 0.5, 1.0), Level("b", {RAM: 4 * GIB}, 1.0, 2.0)])
        now = 0.0
        scaler = ProactiveScaler(ladder=ladder, policy=Policy(), monitor=ResourceMonitor(sensors=[]), clock=lambda: now)
        for number in range(36_000):
            now = number / 10
            used = 4 + (number // 700 % 9) + number % 97 / 100
            own = {"off": 0, "a": GIB, "b": 4 * GIB}[scaler.status().serving]
            free = max(0, int((16 - used) * GIB) - own)
            scaler.observe(Reading(now, 1.7e9 + now, Memory(16 * GIB, free), own))
            if number == 3000:
                gc.collect()
                before = psutil.Process().memory_info().rss
        gc.collect()
        print(psutil.Process().memory_info().rss, before)
    """
    after, before = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    return [
        Figure("memory of the decision after an hour at 10 Hz", after / 1024**2, "MiB"),
        Figure("  more than after five minutes", (after - before) / 1024**2, "MiB", 4),
    ]


def switching() -> list[Figure]:
    """A switch between warm levels with room, beside the bare load of the same level."""
    make_demo_models(demo_models(), lambda *_: None)
    settings = load_settings(None, shipped=True)
    extra: dict[str, list[float]] = {"small": [], "large": []}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "scaler.yaml"
        config.write_text(f"journal: {{path: {folder}/journal.jsonl}}\nmonitor: {{interval_s: 0.1}}\n")
        levels = {level.name: level for level in settings.ladder}
        with ModelManager(config) as manager:
            done = threading.Event()
            manager.scaler.subscribe(lambda event: done.set() if isinstance(event, SwitchDone) else None)
            manager.generate_response_sync("Hello")
            for _ in range(ROUNDS):
                for name in ("large", "small"):
                    bare = asyncio.run(bare_load(levels[name]))
                    done.clear()
                    began = time.perf_counter()
                    manager.scaler.pin(name)
                    done.wait()
                    extra[name].append(time.perf_counter() - began - bare)
    return [
        Figure(f"switch to {name}, beyond the bare load of it", statistics.median(times), "s", 0.5)
        for name, times in extra.items()
    ]


async def bare_load(level: Any) -> float:
    """Seconds to load a level and nothing else."""
    began = time.perf_counter()
    model = await EmbeddedRuntime().load(level, lambda _: None)
    spent = time.perf_counter() - began
    await model.unload()
    return spent


def serving() -> list[Figure]:
    """The endpoint with everything on, beside the same requests sent to the runtime, and to peers before it."""
    by_name, mib = compare(ROUNDS, lambda line: print(line, flush=True))
    direct, bare, ours = by_name["direct"], by_name["bare pass-through"], by_name["scaler"]
    first_ms = added(ours.first_ms("alone"), direct.first_ms("alone"))
    late_ms = added(ours.first_ms("alone", 0.99), direct.first_ms("alone", 0.99))
    figures = [
        Figure("answers through the endpoint that were not whole", ours.broken(), "", 0),
        Figure(
            "time to the first token added, 1 client, median",
            first_ms / added(bare.first_ms("alone"), direct.first_ms("alone")),
            "of bare",
            1.4,
        ),
        Figure("time to the first token added, 1 client, p99", late_ms, "ms", 4),
        Figure(
            "processor time of an answer of 50 chunks", ratio(ours.cpu_ms("many"), bare.cpu_ms("many")), "of bare", 1.5
        ),
        Figure(
            "answers a second, 32 streams, a chunk every 5 ms",
            ratio(ours.rate("many"), direct.rate("many")),
            "of direct",
            0.95,
            at_most=False,
        ),
        Figure(
            "answers a second, 32 streams, chunks back to back",
            ratio(ours.rate("rush"), direct.rate("rush")),
            "of direct",
            0.7,
            at_most=False,
        ),
        Figure("memory of the endpoint's process with 100 open streams", mib, "MiB", 150),
    ]
    if (peer := by_name.get("LiteLLM's proxy")) is not None:
        times = ratio(ours.rate("many"), peer.rate("many"))
        figures.append(
            Figure("  beside LiteLLM's proxy, 32 streams every 5 ms", times, "of its rate", 5, at_most=False)
        )
    return figures


def adapters() -> list[Figure]:
    """What the adapters of other people's runtimes add, and how soon a level is unloaded when its GPU is full."""
    figures = []
    for name, whole, first_ms in added_by_adapters():
        figures.append(Figure(f"an answer through the adapter of {name}", whole, "of bare", 1.02))
        figures.append(Figure("  its first word later by", first_ms, "ms"))
    intervals = reaction()
    if intervals is None:
        print("from reading to unload is not measured: no C compiler to build the fake of NVML with, or not Linux")
        return figures
    return [*figures, Figure("from a GPU's first critical reading to the unload call", intervals, "intervals", 1.5)]


def switches_under_load() -> list[Figure]:
    """What clients see of a cut-over with room, and of a step down to a level that stands by."""
    broken, longest, usual = asyncio.run(cut_over())
    fresh, handed = asyncio.run(step_down())
    return [
        Figure("answers that a cut-over broke, 16 streams", broken, "", 0),
        Figure("longest wait for a token in a cut-over", longest, "s"),
        Figure("  beyond the new level's own first token", longest - usual, "s", 0.25),
        Figure("first token of a standby after the decision, new request", fresh, "s", 0.1),
        Figure("  of an answer that it takes over", handed, "s", 0.1),
    ]


def main() -> int:
    """Measure everything and print it as it comes."""
    missed = 0
    for measure in (
        importing,
        decisions_in_process,
        decisions_through_the_pipe,
        replaying,
        preflight,
        reading,
        reading_gpus,
        monitoring,
        an_hour_at_ten_a_second,
        switching,
        serving,
        switches_under_load,
        adapters,
    ):
        # `make bench ONLY=serving` measures one of them.
        if len(sys.argv) > 1 and measure.__name__ not in sys.argv[1:]:
            continue
        for figure in measure():
            print(figure, flush=True)
            missed += not figure.met
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
