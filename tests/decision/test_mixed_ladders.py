"""Ladders whose levels take different resources: RAM, a GPU, or nothing of this machine."""

from __future__ import annotations

import pytest

from scaler.guards import GUARDS, explain
from scaler.levels import GIB, OFF, RAM, Ladder, Level
from tests.decision.driver import Driver

RAM_THEN_GPU = Ladder([Level("small", {RAM: 4 * GIB}, 0.5, 1.0), Level("medium", {"gpu0": 8 * GIB}, 0.8, 3.0)])
RAM_AND_GPU = Ladder(
    [Level("small", {RAM: 2 * GIB}, 0.5, 1.0), Level("both", {RAM: 6 * GIB, "gpu0": 6 * GIB}, 0.8, 3.0)]
)


def test_a_level_that_is_tight_gives_way_upwards_where_that_relieves_it() -> None:
    """small keeps RAM above the limit, and there is nothing smaller; medium takes none of it."""
    drive = Driver(RAM_THEN_GPU, initial="small")
    drive.read_gpu(17, 1, 299)
    assert drive.state == "small"
    outlook = drive.outlook("medium")
    # What is lacking is time, and the reading that ends it is the one that was foretold.
    assert outlook.wait_s == outlook.earliest_s == pytest.approx(2)
    assert all("asked" in sentence for sentence in outlook.lacking)
    drive.read_gpu(17, 1, 1)
    assert drive.state == "small"
    drive.read_gpu(17, 1, 1)
    assert drive.state == "medium"
    decision = drive.machine.last_decision
    assert decision is not None
    assert "what serves has to give way, and medium takes no more of what is tight" in decision.reasons


def test_a_level_elsewhere_relieves_as_well() -> None:
    """It takes nothing of what is tight, nor of anything else."""
    ladder = Ladder([Level("small", {RAM: 4 * GIB}, 0.5, 1.0), Level("cloud", {}, 0.8, 3.0)])
    drive = Driver(ladder, initial="small")
    drive.read(17, 310)
    assert drive.state == "cloud"
    drive.read(17, 3600)
    assert drive.moves == [("observe", "small", "cloud")]


def test_a_larger_level_that_takes_more_of_what_is_tight_is_not_gone_to() -> None:
    """Its GPU has room enough, and RAM has not; the outlook says so in place of "nothing is lacking"."""
    drive = Driver(RAM_AND_GPU, initial="small", scale_at=0.8)
    drive.read_gpu(17.5, 1, 900)
    assert drive.state == "small"
    outlook = drive.outlook("both")
    assert outlook.wait_s is None
    assert any("usage at both would be 97.9 % of 24 GiB" in sentence for sentence in outlook.lacking)


def test_a_step_down_leads_to_no_tighter_level() -> None:
    """The GPU is at 82.5 %, a little over; RAM would be at 94 % with small."""
    drive = Driver(RAM_THEN_GPU, initial="medium")
    drive.read_gpu(18.6, 5.2, 3600)
    assert drive.moves == []
    # Not within the limit either, but lower than 88 %.
    drive.read_gpu(16, 6.1, 60)
    assert drive.moves == [("observe", "medium", "small")]


def test_a_foreseen_figure_is_told_of_the_resource_that_it_is_foreseen_of() -> None:
    """RAM is the tighter one now and stands still; the GPU fills up."""
    drive = Driver(RAM_AND_GPU, initial="both", vram_scale_at=0.9, vram_critical_at=0.97)
    for second in range(30):
        drive.read_gpu(12.9, 0.6 * second)
        if drive.moves:
            break
    decision = drive.machine.last_decision
    assert decision is not None
    assert "of 16 GiB of gpu0 in 8 s if this goes on" in decision.reason


def test_a_gpu_that_cannot_be_read_is_not_told_in_figures_of_ram() -> None:
    """0 % of 24 GiB would be a figure of nothing."""
    drive = Driver(RAM_THEN_GPU, initial="medium")
    drive.read_gpu(20, 7, 1)
    drive.read_gpu(20, None, 5)
    evidence = drive.machine.evidence
    sentence = explain(evidence, 1, GUARDS["over_limit"].test(evidence, 1))
    assert sentence == "usage at medium is unknown of gpu0, which cannot be read now; the limit is 80 %"


def test_a_level_on_its_way_is_left_for_want_of_ram_though_its_gpu_cannot_be_read() -> None:
    """Somebody asked to step down from what takes nothing here; to go on loading would be to wait for the kernel."""
    ladder = Ladder([Level("both", {RAM: 8 * GIB, "gpu0": 2 * GIB}, 0.5, 60.0), Level("cloud", {}, 0.8, 3.0)])
    drive = Driver(ladder, initial="cloud", answer=lambda switch: switch.dest == OFF)
    drive.read_gpu(10, 1, 10)
    assert drive.machine.degrade(drive.now_s)
    drive.read_gpu(10, None, 5)
    assert drive.state == "both"
    drive.read_gpu(20, None, 1)
    assert drive.moves == [("degrade", "cloud", "both"), ("observe", "both", OFF)]


def test_a_level_on_its_way_gives_way_to_a_smaller_one_that_takes_no_more_of_the_unread_gpu() -> None:
    """What was granted to the one is enough for the other: to go off would be to lose everything for one reading."""
    ladder = Ladder(
        [
            Level("tiny", {RAM: 1 * GIB, "gpu0": 1 * GIB}, 0.3, 1.0),
            Level("both", {RAM: 8 * GIB, "gpu0": 2 * GIB}, 0.5, 60.0),
            Level("cloud", {}, 0.8, 3.0),
        ]
    )
    drive = Driver(ladder, initial="cloud", answer=lambda switch: switch.dest == "tiny")
    drive.read_gpu(10, 1, 10)
    assert drive.machine.degrade(drive.now_s)
    drive.read_gpu(10, None, 5)
    drive.read_gpu(16, None, 1)
    assert drive.moves == [("degrade", "cloud", "both"), ("observe", "both", "tiny")]
