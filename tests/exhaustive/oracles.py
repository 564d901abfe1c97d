"""Stand-ins for what looks back over a long history: their answers come with the letter, whatever was before.

A steady rise, the expected peak, whether needles are the rule, and caution depend on histories without end. Each is
replaced by something whose answer at a reading depends on nothing before. Of the answers, those are explored that the
letters of a scope have: other than none in the scopes of forecasts and rises only, and there chosen ones.
"""

from __future__ import annotations

from scaler.peaks import Peak


class Rise:
    """In place of `Trend`: the steady rise of the others' share, a second."""

    def __init__(self) -> None:
        self.steady_rise_per_s = 0.0

    def add(self, at_s: float, value: float) -> None:
        """The letter says how it goes on."""

    def clear(self) -> None:
        """Nothing is kept."""

    def forget_rise(self) -> None:
        """Nothing is kept."""


class ExpectedPeak:
    """In place of `Peaks`: the others' share that is expected at the most; None before anything is expected."""

    def __init__(self) -> None:
        self.at_most: float | None = None

    def add(self, at_s: float, value: float) -> None:
        """The letter says what is expected."""

    def clear(self) -> None:
        """Nothing is kept."""

    def expected(self, at_s: float) -> Peak | None:
        """What the letter says."""
        return None if self.at_most is None else Peak(self.at_most, 0.0, self.at_most, 0.0)


class Trust:
    """In place of `Needles`: whether a rise that begins now is most likely a needle."""

    def __init__(self) -> None:
        self.answer = False

    def ended(self, since_s: float, at_s: float) -> None:
        """Nothing is learned."""

    def trusted(self, at_s: float) -> bool:
        """What the letter says."""
        return self.answer


class Taken:
    """In place of `Caution`: what is taken off a level's limit."""

    def __init__(self) -> None:
        self.ratio = 0.0

    def incident(self, kind: str, at_s: float) -> None:
        """Nothing is learned."""

    def at(self, at_s: float) -> float:
        """What the letter says."""
        return self.ratio
