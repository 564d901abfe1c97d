"""What goes wrong, drawn from the seed at every await of the made-up parts."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

from scaler.errors import LevelUnavailable

LATE_S = 5.0
"""What is late is so late at the most."""


class Faults:
    """Draws the faults of one day, and counts them by place and kind."""

    def __init__(self, dice: random.Random, rate: float, say: Callable[[str], None]) -> None:
        """``rate``: the share of awaits at which something goes wrong; of tokens, which are many, a part of that."""
        self.rate = rate
        self._dice, self._say = dice, say
        self.injected: Counter[str] = Counter()
        self.over = False
        """No more of them, at the end of the day, when everything that was let go of must go."""

    def draw(self, place: str, kinds: tuple[str, ...], *, part: float = 1.0) -> str | None:
        """What goes wrong here and now: one of ``kinds``, mostly nothing."""
        if not self.rate or self.over or self._dice.random() >= self.rate * part:
            return None
        kind = self._dice.choice(kinds)
        self.injected[f"{place} {kind}"] += 1
        self._say(f"fault: {place} {kind}")
        return kind

    def note(self, fault: str) -> None:
        """Count one that was drawn elsewhere."""
        self.injected[fault] += 1
        self._say(f"fault: {fault}")

    def lateness_s(self) -> float:
        """How late something is."""
        return self._dice.uniform(0.01, LATE_S)

    async def point(
        self,
        place: str,
        name: str,
        kinds: tuple[str, ...],
        *,
        hang_s: float = 0.0,
        pause: Callable[[float], asyncio.Future[None]] | None = None,
    ) -> str | None:
        """Go on, be late, or fail; a kind that only the caller can act upon is returned.

        What hangs, hangs for ``hang_s``, after which the runtime itself gives it up, as those of scaler do.
        ``pause`` waits for so many seconds, and may be ended by a death.
        """
        kind = self.draw(place, kinds)
        wait = pause or asyncio.sleep
        if kind == "late":
            await wait(self.lateness_s())
        elif kind == "fail":
            raise LevelUnavailable(f"{name}: {place} failed, as drawn")
        elif kind == "odd":
            raise RuntimeError(f"{name}: {place} failed as no runtime should, as drawn")
        elif kind == "hang":
            await wait(hang_s)
            raise LevelUnavailable(f"{name}: {place} did not answer within {hang_s:g} s, as drawn")
        return kind
