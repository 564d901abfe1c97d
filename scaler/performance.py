"""How well each level answers: time to the first token, tokens a second, whole time, failures.

Pure bookkeeping; safe to use from many threads.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass

USUAL_AFTER = 5
"""From so many answers on a level's usual speed is known."""
TELLING_TOKENS = 16
"""An answer with fewer tokens tells nothing about speed: reading the prompt and the clock's grain decide."""
RECENT = 0.2
"""Weight of the latest answer in the moving averages: about the last nine answers count."""


@dataclass(frozen=True, slots=True)
class AnswerSample:
    """One finished answer. Times in seconds; ``first_token_s`` is None when no token came."""

    level: str
    total_s: float
    tokens: int
    first_token_s: float | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class LevelPerformance:
    """Moving averages of a level's answers; None until there is one."""

    answers: int = 0
    failures: int = 0
    tokens: int = 0
    first_token_s: float | None = None
    total_s: float | None = None
    tokens_per_s: float | None = None


class Performance:
    """What is known of every level that has answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._levels: dict[str, LevelPerformance] = {}

    def add(self, sample: AnswerSample) -> float | None:
        """Take in one answer; returns its speed relative to the level's usual, None if either is not known."""
        with self._lock:
            now = self._levels.get(sample.level, LevelPerformance())
            if sample.failed:
                self._levels[sample.level] = LevelPerformance(
                    now.answers, now.failures + 1, now.tokens, now.first_token_s, now.total_s, now.tokens_per_s
                )
                return None
            generating_s = sample.total_s - (sample.first_token_s or 0.0)
            rate = (sample.tokens - 1) / generating_s if sample.tokens > 1 and generating_s > 0 else None
            self._levels[sample.level] = LevelPerformance(
                now.answers + 1,
                now.failures,
                now.tokens + sample.tokens,
                _blend(now.first_token_s, sample.first_token_s),
                _blend(now.total_s, sample.total_s),
                _blend(now.tokens_per_s, rate),
            )
        if rate is None or now.tokens_per_s is None or now.answers < USUAL_AFTER or sample.tokens < TELLING_TOKENS:
            return None
        return rate / now.tokens_per_s

    def keep(self, names: Collection[str]) -> None:
        """Forget every level but these."""
        with self._lock:
            self._levels = {name: known for name, known in self._levels.items() if name in names}

    def levels(self) -> dict[str, LevelPerformance]:
        """A copy of what is known, by level."""
        with self._lock:
            return dict(self._levels)


def _blend(before: float | None, now: float | None) -> float | None:
    if before is None or now is None:
        return before if now is None else now
    return before + RECENT * (now - before)
