"""What each level takes: declared at first, then learned from what it was seen to take.

Pure: numbers in, numbers out. The learned figure rises at once with what is seen, because a peak is what
must fit, and falls slowly, so that a quiet hour does not make a level look smaller than its next busy
minute.
"""

from __future__ import annotations

from collections.abc import Mapping

from scaler.levels import RAM, Ladder


class Footprints:
    """Footprints of a ladder's levels, by position on the ladder and resource, in bytes.

    Where a level was declared to take no less of a resource than a smaller one, it never counts for less, whatever was
    learned. A level that was declared to take nothing of a resource takes nothing of it.
    """

    def __init__(self, ladder: Ladder, half_life_s: float) -> None:
        """``half_life_s``: after so many seconds at a lower use, half of the excess is forgotten."""
        self.resources = tuple(dict.fromkeys((RAM, *(r for level in ladder for r in level.footprint))))
        self._declared = [[level.footprint.get(resource, 0) for resource in self.resources] for level in ladder]
        self._own = [list(declared) for declared in self._declared]
        self._seen_at: list[list[float | None]] = [[None] * len(self.resources) for _ in ladder]
        self._mapped = [
            level.mapped or any(below.mapped and below.standby for below in ladder[:position])
            for position, level in enumerate(ladder)
        ]
        """Whether a level's weights do not show, or those of one that stands by beside it."""
        self._half_life_s = half_life_s
        self._no_more = [
            [
                [lower for lower in range(position) if self._own[lower][resource] <= size] if size else []
                for resource, size in enumerate(own)
            ]
            for position, own in enumerate(self._own)
        ]
        """The smaller levels that take no more, by position and resource."""
        self._raise_to_ascending()

    def learn(self, position: int, resource: int, seen: int, at_s: float) -> None:
        """Take in that the level was seen, settled, to hold ``seen`` bytes of ``resources[resource]`` at ``at_s``.

        A level that serves takes something: 0 means that nobody could look, and teaches nothing. Where weights do not
        show in RAM, less than what was declared is not believed.
        """
        known, before = self._own[position][resource], self._seen_at[position][resource]
        if not seen or not known:
            return
        if self._mapped[position] and self.resources[resource] == RAM:
            seen = max(seen, self._declared[position][resource])
        self._seen_at[position][resource] = at_s
        if seen == known:
            return
        if before is None or seen > known:
            self._own[position][resource] = seen
        else:
            kept = 0.5 ** ((at_s - before) / self._half_life_s)
            self._own[position][resource] = seen + int((known - seen) * kept)
        self._raise_to_ascending()

    def learned(self, position: int) -> dict[str, int]:
        """Bytes of each resource that the level itself was seen to take; of what was never seen, none."""
        return {
            resource: own
            for resource, own, seen_at in zip(self.resources, self._own[position], self._seen_at[position], strict=True)
            if seen_at is not None
        }

    def recall(self, position: int, learned: Mapping[str, int], at_s: float) -> None:
        """Take in what was learned before; from ``at_s`` on it falls as if it had been seen then."""
        for index, resource in enumerate(self.resources):
            if self._declared[position][index] and (size := learned.get(resource)):
                self._own[position][index], self._seen_at[position][index] = size, at_s
        self._raise_to_ascending()

    def take_over(self, before: Footprints, kept: Mapping[int, int]) -> None:
        """Go on with what was learned of the same levels; ``kept`` has their positions before by those here.

        What a level was declared to take otherwise than before is believed as declared.
        """
        for here, there in kept.items():
            for index, resource in enumerate(self.resources):
                if resource not in before.resources:
                    continue
                was = before.resources.index(resource)
                if self._declared[here][index] == before._declared[there][was]:
                    self._own[here][index] = before._own[there][was]
                    self._seen_at[here][index] = before._seen_at[there][was]
        self._raise_to_ascending()

    def of(self, position: int) -> list[int]:
        """Bytes of each of ``resources`` that the level takes."""
        return self._ascending[position]

    def _raise_to_ascending(self) -> None:
        ascending: list[list[int]] = []
        for own, no_more in zip(self._own, self._no_more, strict=True):
            ascending.append(
                [
                    max([size, *(ascending[lower][resource] for lower in lowers)])
                    for resource, (size, lowers) in enumerate(zip(own, no_more, strict=True))
                ]
            )
        self._ascending = ascending
