"""The course of the demonstration: a real ladder, real pressure, a chat that never stops and a stream that counts.

Sets the thresholds just above what the machine uses now, so that little pressure is enough and the machine
is never strained; everything else is as in `scaler run`. Knows nothing of how it is shown.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from scaler.demo.count import Count
from scaler.demo.hog import Hog
from scaler.errors import ScalerError
from scaler.levels import GIB, RAM
from scaler.manager import ModelManager
from scaler.sensors.memory import MemorySensor
from scaler.serving.app import Endpoint
from scaler.settings import load_settings

MIB = 1024**2
SPARE_BYTES = 3 * GIB
"""What must be available before the demonstration begins: the ladder, the pressure and as much again."""
DWELL_S = 12.0
"""In place of five minutes."""


MOST_PRESSURE_BYTES = 1536 * MIB
"""What the other process takes at the most."""
ENDING_S = 30.0
"""How long, after the acts, the largest level's answer and the end of the open one are waited for."""


@dataclass(frozen=True, slots=True)
class Act:
    """A stretch of the demonstration: where the pressure goes, evenly, and what there is to see."""

    title: str
    seconds: float
    keeps: str | None
    """The largest level that still fits at the end of the act; None for no pressure at all."""


ACTS = (
    Act("calm: the smallest level first, the largest that fits after the dwell", 30, None),
    Act("another program grows", 14, "medium"),
    Act("it stays like that", 8, "medium"),
    Act("it grows further", 12, "small"),
    Act("it stays like that", 10, "small"),
    Act("it ends", 6, None),
    Act("the room has to stay for the dwell before the climb", 34, None),
)


@contextmanager
def demo_config() -> Iterator[Path]:
    """A configuration with the demo ladder, thresholds just above the present use and a short dwell.

    Raises ScalerError when the machine has too little to spare.
    """
    memory = MemorySensor().read()
    if memory.available_bytes < SPARE_BYTES:
        raise ScalerError(
            f"only {memory.available_bytes / GIB:.1f} GiB of memory are available; "
            f"the demonstration wants {SPARE_BYTES / GIB:.0f} GiB, so that nothing else suffers"
        )
    used = memory.total_bytes - memory.available_bytes
    ladder = [
        level.model_dump(mode="json", exclude_defaults=True) for level in load_settings(None, shipped=True).ladder
    ]
    room = sum(int(level["ram_gib"] * GIB) for level in ladder[-1:]) + 500 * MIB
    scale_at = (used + room) / memory.total_bytes
    config = {
        "ladder": ladder,
        "monitor": {"interval_s": 0.5},
        "policy": {
            "scale_at": scale_at,
            "band": 60 * MIB / memory.total_bytes,
            "critical_at": scale_at + 1200 * MIB / memory.total_bytes,
            "dwell_s": DWELL_S,
            "dwell_max_s": DWELL_S,
            "debounce_s": 2.0,
            "recovery_s": 3.0,
            "trend_window_s": 10.0,
            "switch_margin_s": 2.0,
            "drain_seconds": 2.0,
            "max_level": None,
            "battery_max_level": None,
            "throttled_max_level": None,
        },
    }
    with TemporaryDirectory(prefix="scaler-demo-") as folder:
        config["journal"] = {"path": str(Path(folder) / "journal.jsonl")}
        path = Path(folder) / "scaler.yaml"
        path.write_text(yaml.safe_dump(config))
        yield path


class Chat(threading.Thread):
    """Somebody who asks one question after the other, and counts what comes back."""

    def __init__(self, manager: ModelManager) -> None:
        super().__init__(name="demo-chat")
        self._manager = manager
        self._enough = threading.Event()
        self.answers: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        """The answers that a level made from the first word to the last."""
        self.errors: list[str] = []
        self.shortened = 0
        self.latest = ""

    def run(self) -> None:
        """Ask until told to stop."""
        while not self._enough.is_set():
            try:
                answer = self._manager.generate_response_sync("Who are you?")
            except ScalerError as error:
                self.errors.append(str(error))
            else:
                self.answers[answer.level] += 1
                self.alone[answer.level] += len(answer.levels) == 1
                self.shortened += answer.finish_reason == "length"
                self.latest = f"{answer.level}: {answer.text.strip()}"
            self._enough.wait(0.3)

    def end(self) -> None:
        """Have the present answer finish and ask no more."""
        self._enough.set()
        self.join()


def play(
    manager: ModelManager, show: Callable[[str, int, Chat, Count], None], *, pace_s: float = 0.5
) -> tuple[Chat, Count]:
    """Run the acts and wait, for a while, for the last answers.

    ``show`` is called every ``pace_s`` seconds with what there is to see, the pressure, the chat and the stream.
    """
    manager.scaler.want(True)
    endpoint = Endpoint(manager, "127.0.0.1", 0)
    endpoint.start()
    chat, count = Chat(manager), Count(endpoint.url)
    largest = manager.scaler.ladder.names[-1]
    before_it_ended = 0
    chat.start()
    count.start()
    try:
        with Hog(MOST_PRESSURE_BYTES) as hog:
            held = 0
            for act in ACTS:
                began, before = time.monotonic(), held
                while (spent := time.monotonic() - began) < act.seconds:
                    share = min(1.0, (spent + pace_s) / act.seconds)
                    aim = _pressure(manager, act, held)
                    held = hog.hold(int(before + share * (aim - before)))
                    if held:
                        before_it_ended = chat.alone[largest]
                    show(act.title, held, chat, count)
                    time.sleep(pace_s)
        count.last()
        began = time.monotonic()
        while time.monotonic() - began < ENDING_S:
            serves = manager.scaler.status().serving == largest
            spoke = chat.alone[largest] > before_it_ended
            what = awaited(largest, serves=serves, spoke=spoke, counting=count.is_alive())
            if what is None:
                break
            show(what, 0, chat, count)
            time.sleep(pace_s)
        spoke = chat.alone[largest] > before_it_ended
        show("the end" if spoke else f"the end; {largest} had no answer of its own by now", 0, chat, count)
    finally:
        chat.end()
        count.break_off()
        endpoint.stop()
    return chat, count


def awaited(largest: str, *, serves: bool, spoke: bool, counting: bool) -> str | None:
    """What the demonstration waits for after the acts, in words; None when it may end.

    ``serves`` and ``spoke``: of the largest level, since the pressure ended; ``counting``: the stream is open.
    """
    if not spoke:
        return f"{largest} serves: one more question for it" if serves else f"waiting for {largest} to serve"
    return "waiting for the open answer to end" if counting else None


def _pressure(manager: ModelManager, act: Act, held: int) -> int:
    """What the other process must hold so that the act's level fits and the next larger one does not.

    Reckoned anew each time, because other programs on this machine come and go meanwhile.
    """
    status = manager.scaler.status()
    usage = status.usage.get(RAM)
    if act.keeps is None or usage is None:
        return 0
    names = manager.scaler.ladder.names
    fits = status.footprints[act.keeps][RAM]
    too_large = status.footprints[names[names.index(act.keeps) + 1]][RAM]
    other = int(manager.scaler.policy.scale_at * usage.total_bytes) - (fits + too_large) // 2
    return max(0, min(MOST_PRESSURE_BYTES, held + other - usage.other_bytes))
