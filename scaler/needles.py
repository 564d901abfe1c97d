"""Which rises above the limit were needles: over again before a step down could have helped.

Pure. Learns how long such rises last; decides nothing.
"""

from __future__ import annotations


class Needles:
    """The recent rises of one level's usage above its limit, and how many of them were needles.

    A rise is a needle when usage is back within ``needle_s`` seconds; 0 knows no needles. They are ``trusted`` when at
    least ``share`` of the recent rises were needles, one long rise more being supposed than was seen; so four in a
    row are needed for a share of 0.75, three where nothing fades. What was seen counts half after ``half_life_s``.
    """

    def __init__(self, needle_s: float, share: float, half_life_s: float) -> None:
        self.needle_s = needle_s
        self._share = share
        self._half_life_s = half_life_s
        self._rises = self._needles = 0.0
        self._at_s: float | None = None

    def ended(self, since_s: float, at_s: float) -> None:
        """Usage, above the limit since ``since_s``, is back under it at ``at_s``."""
        kept = self._kept(at_s)
        self._rises = self._rises * kept + 1.0
        self._needles = self._needles * kept + (at_s - since_s <= self.needle_s)
        self._at_s = at_s

    def trusted(self, at_s: float) -> bool:
        """Whether a rise that begins now is most likely a needle."""
        kept = self._kept(at_s)
        return self.needle_s > 0 and self._needles * kept >= self._share * (self._rises * kept + 1.0)

    def _kept(self, at_s: float) -> float:
        return 1.0 if self._at_s is None else 0.5 ** ((at_s - self._at_s) / self._half_life_s)
