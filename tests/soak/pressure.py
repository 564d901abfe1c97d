"""Memory that others take, as it was recorded on a machine at work, and made real by a process that holds it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

from scaler.demo.hog import Hog
from scaler.recordings import Recording

MIB = 1024**2
MOST_BYTES = 1536 * MIB
"""What the process takes at the most, whatever was recorded: others use the machine, too."""
STEP_S = 0.5
RECORDING = Path(__file__).parents[1] / "replay" / "recordings" / "work.csv.gz"


def course(recording: Path, most_bytes: int) -> list[int]:
    """What others used in a recording, second by second, scaled to go from 0 to ``most_bytes``."""
    used = [
        reading.memory.total_bytes - reading.memory.available_bytes - reading.own_bytes
        for reading in Recording(recording)
        if reading.memory is not None and reading.own_bytes is not None
    ]
    low, high = min(used), max(used)
    return [(one - low) * most_bytes // (high - low) for one in used]


class Pressure:
    """Follows the recording again and again, ``speed`` of its seconds at each step, until it is ended."""

    def __init__(self, beyond: Callable[[], int | None], room_bytes: int, speed: int) -> None:
        """``beyond``: what others use now above what they did at the beginning; what is ours of it is not held twice.

        The recording's largest use is ``room_bytes``.
        """
        self._beyond, self._speed = beyond, speed
        self._course = course(RECORDING, room_bytes)
        self.most = 0
        self.paused = False

    async def run(self) -> None:
        """Until cancelled."""
        held = 0
        with Hog(MOST_BYTES) as hog:
            for aim in itertools.cycle(self._course[:: self._speed]):
                beyond = self._beyond()
                strangers = 0 if beyond is None else max(0, beyond - held)
                target = 0 if self.paused else max(0, min(MOST_BYTES, aim - strangers))
                held = await asyncio.to_thread(hog.hold, target)
                self.most = max(self.most, held)
                await asyncio.sleep(STEP_S)
