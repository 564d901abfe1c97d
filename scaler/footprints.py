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
        self._seen_at: list[float | None] = [None] * len(ladder)
        self._half_life_s = half_life_s
        self._raise_to_ascending()

    def learn(self, position: int, own_bytes: list[int | None], at_s: float) -> None:
        """Take in what the level at ``position`` was seen to hold of each resource, settled, at ``at_s``."""
        known = self._own[position]
        before = self._seen_at[position]
        changed = False
        for index, seen in enumerate(own_bytes):
            # A level that serves takes something: 0 means that nobody could look, or that it has only just ended.
            if not seen or seen == known[index]:
                continue
            if before is None or seen > known[index]:
                known[index] = seen
            else:
                kept = 0.5 ** ((at_s - before) / self._half_life_s)
                known[index] = seen + int((known[index] - seen) * kept)
            changed = True
        if any(own_bytes):
            self._seen_at[position] = at_s
        if changed:
            self._raise_to_ascending()

    def is_learned(self, position: int) -> bool:
        """Whether the level was ever seen serving."""
        return self._seen_at[position] is not None

    def of(self, position: int) -> list[int]:
        """Bytes of each of ``resources`` that the level takes."""
        return self._ascending[position]

    def _raise_to_ascending(self) -> None:
        floor = [0] * len(self.resources)
        self._ascending: list[list[int]] = []
        for own in self._own:
            floor = [max(a, b) for a, b in zip(own, floor, strict=True)]
            self._ascending.append(floor)
