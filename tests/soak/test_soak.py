"""Two minutes of the soak; `make soak` has the full hour."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.course import Soak, slope
from tests.soak.daemon import lacking
from tests.soak.pressure import RECORDING, course

SECONDS, SEED = 120.0, 6
SELF_MADE = """\
# scaler recording version=1 wall_s=1795491502.74 at_s=0 unit=1 memory=1000 cores=2
at_s,available,own,swap,cpu,own_cpu,stalled
0,900,0,,,,0
1,700,100,,,,0
2,500,0,,,,0
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(lacking() is not None, reason=f"no soak here: {lacking()}")
def test_nothing_is_lost_leaks_or_lies_whatever_befalls_it(
    demo_models: dict[str, Path], figures: Callable[[str], None]
) -> None:
    """Under memory pressure, deaths, hangs, a full disk, a GPU that is lost, and without descriptors."""
    # Its private sockets' names must be short.
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        counted = Soak(Path(folder), demo_models, SECONDS, SEED).run()
        figures("\n".join(counted.lines()))
        assert counted.violations == []
        # What it is for has happened.
        assert counted.tally.outcomes["whole"] > 0
        assert counted.settled > 0
        assert counted.events["switches"] > 0
        assert counted.events["models died"] > 0


def test_a_recording_is_followed_from_nothing_to_the_most(tmp_path: Path) -> None:
    """Without what was scaler's own in it."""
    recording = tmp_path / "mine.csv"
    recording.write_text(SELF_MADE)
    assert course(recording, 800) == [0, 200, 800]
    committed = course(RECORDING, 1000)
    assert min(committed) == 0
    assert max(committed) == 1000


def test_growth_is_told_from_noise() -> None:
    """A few wild figures are no growth, and a steady one is not hidden by them."""
    flat = [(float(t), 60.0 + (40.0 if t % 17 == 0 else 0.0)) for t in range(600)]
    assert slope(flat) == 0.0
    assert slope([(t, rss + 0.01 * t) for t, rss in flat]) == pytest.approx(0.01, rel=0.05)
