"""How much earlier than configured a level gives way, because of what happened to it lately.

Pure bookkeeping: what counts as an incident is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping


class Caution:
    """A ratio that is taken off a level's limit: ``step`` more with each incident, ``most`` at the most.

    It halves within ``half_life_s``, so that a calm stretch forgives. ``incidents`` counts them by their kind.
    """

    def __init__(self, step: float, most: float, half_life_s: float) -> None:
        self._step = step
        self._most = most
        self._half_life_s = half_life_s
        self._ratio = 0.0
        self._at_s = 0.0
        self.incidents: dict[str, int] = {}

    def incident(self, kind: str, at_s: float) -> None:
        """Something happened to the level that a person noticed, or nearly."""
        self._ratio = min(self._most, self.at(at_s) + self._step)
        self._at_s = at_s
        self.incidents[kind] = self.incidents.get(kind, 0) + 1

    @property
    def kept(self) -> tuple[float, float]:
        """The caution after the last incident, and when that was."""
        return self._ratio, self._at_s

    def recall(self, ratio: float, at_s: float, incidents: Mapping[str, int]) -> None:
        """Take in what was kept before."""
        self._ratio, self._at_s, self.incidents = min(self._most, ratio), at_s, dict(incidents)

    def at(self, at_s: float) -> float:
        """The caution at a time, 0 to ``most``."""
        if not self._ratio:
            return 0.0
        left: float = self._ratio * 0.5 ** ((at_s - self._at_s) / self._half_life_s)
        # Below a thousandth it is noise in what people read.
        if left < 1e-3:
            self._ratio = left = 0.0
        return left
