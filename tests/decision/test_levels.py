"""The ladder as data."""

from __future__ import annotations

from scaler.levels import Ladder, Level


def test_what_a_level_takes_alone_is_told_without_those_that_stand_by() -> None:
    """A footprint is what serving takes all in all; who lists what is loaded would count the standbys twice."""
    ladder = Ladder(
        [
            Level("small", {"ram": 1}, 0.1, 1.0, standby=True),
            Level("medium", {"ram": 3}, 0.5, 1.0, standby=True),
            Level("large", {"ram": 7, "gpu0": 5}, 0.9, 1.0),
        ]
    )
    assert [dict(ladder.alone(name)) for name in ladder.names] == [{"ram": 1}, {"ram": 2}, {"ram": 4, "gpu0": 5}]
