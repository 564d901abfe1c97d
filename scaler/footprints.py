"""What each level takes: declared at first, then learned from what it was seen to take.

Pure: numbers in, numbers out. The learned figure rises at once with what is seen, because a peak is what
must fit, and falls slowly, so that a quiet hour does not make a level look smaller than its next busy
minute.
"""

from __future__ import annotations

from scaler.levels import RAM, Ladder


class Footprints:
    """Footprints of a ladder's levels, by position on the ladder and resource, in bytes.

    A larger level never counts for less than a smaller one: guards may then rely on "what fits above
    fits below".
    """

    def __init__(self, ladder: Ladder, half_life_s: float) -> None:
        """``half_life_s``: after so many seconds at a lower use, half of the excess is forgotten."""
        self.resources = tuple(dict.fromkeys((RAM, *(r for level in ladder for r in level.footprint))))
        self._own = [[level.footprint.get(resource, 0) for resource in self.resources] for level in ladder]
        self._seen_at: list[list[float | None]] = [[None] * len(self.resources) for _ in ladder]
        self._half_life_s = half_life_s
        self._raise_to_ascending()

    def learn(self, position: int, resource: int, seen: int, at_s: float) -> None:
        """Take in that the level was seen, settled, to hold ``seen`` bytes of ``resources[resource]`` at ``at_s``.

        A level that serves takes something: 0 means that nobody could look, and teaches nothing.
        """
        known, before = self._own[position][resource], self._seen_at[position][resource]
        if not seen:
            return
        self._seen_at[position][resource] = at_s
        if seen == known:
            return
        if before is None or seen > known:
            self._own[position][resource] = seen
        else:
            kept = 0.5 ** ((at_s - before) / self._half_life_s)
            self._own[position][resource] = seen + int((known - seen) * kept)
        self._raise_to_ascending()

    def of(self, position: int) -> list[int]:
        """Bytes of each of ``resources`` that the level takes."""
        return self._ascending[position]

    def _raise_to_ascending(self) -> None:
        floor = [0] * len(self.resources)
        self._ascending: list[list[int]] = []
        for own in self._own:
            floor = [max(a, b) for a, b in zip(own, floor, strict=True)]
            self._ascending.append(floor)
