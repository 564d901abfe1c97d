"""Thresholds of their own for the memory of GPUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.guards import shortfall
from scaler.levels import GIB, RAM
from scaler.policy import Policy
from scaler.scales import Scale
from tests.decision.driver import GPU_LADDER, Driver

RATIOS = st.floats(0, 1.2)


@given(RATIOS, RATIOS)
def test_a_scale_keeps_the_order_and_can_be_read_back(one: float, other: float) -> None:
    """What is tighter reads as tighter, at the thresholds exactly as tight."""
    scale = Scale((0.92, 0.98), (0.80, 0.95))
    assert scale.read(0.92) == pytest.approx(0.80)
    assert scale.read(0.98) == pytest.approx(0.95)
    assert scale.own(scale.read(one)) == pytest.approx(one)
    if one < other:
        assert scale.read(one) <= scale.read(other)


def test_only_a_gpu_with_thresholds_of_its_own_is_put_through_a_scale() -> None:
    """RAM is the measure, and never is; nor is a GPU that has the same."""
    own = Policy(vram_scale_at=0.92, vram_critical_at=0.98)
    scale = own.scale_of("gpu1")
    assert scale is not None
    assert (scale.read(0.92), scale.read(0.98)) == (own.scale_at, own.critical_at)
    assert own.scale_of(RAM) is None
    assert Policy().scale_of("gpu1") is None
    assert Policy(vram_scale_at=0.80, vram_critical_at=0.95).scale_of("gpu1") is None


def test_a_gpu_is_filled_to_its_own_threshold_and_ram_to_its_own() -> None:
    """large takes 10 of 16 GiB there: with 4 GiB of others that is 87.5 %, too much for RAM's 80 %, not for 92 %."""
    driver = Driver(GPU_LADDER, initial="large", vram_scale_at=0.92, vram_critical_at=0.98)
    driver.read_gpu(2, 4, 60)
    assert driver.state == "large"
    said = driver.machine.evidence.told()["large"]
    assert said == pytest.approx(14 / 16)
    driver.read_gpu(2, 4.9, 60)
    assert driver.state == "medium"
    decision = driver.machine.last_decision
    assert decision is not None
    # In the figures of the GPU itself, not in what they read as.
    assert decision.reason.startswith("usage at large is 93.1 % of 16 GiB of gpu0; the limit is 92 %")
    driver.read_gpu(17, 4, 60)
    assert driver.state == "small"
    decision = driver.machine.last_decision
    assert decision is not None
    assert "of 24 GiB; the limit is 80 %" in decision.reason


def test_without_thresholds_of_its_own_a_gpu_has_those_of_ram() -> None:
    """As ever."""
    driver = Driver(GPU_LADDER, initial="large")
    driver.read_gpu(2, 4, 60)
    assert driver.state == "medium"


def test_a_level_that_leaves_a_gpu_critical_is_left_at_once() -> None:
    """At the GPU's own critical-at, not at that of RAM."""
    driver = Driver(GPU_LADDER, initial="large", vram_scale_at=0.92, vram_critical_at=0.98)
    driver.read_gpu(2, 5.5, 1)
    assert driver.state == "large"
    driver = Driver(GPU_LADDER, initial="large", vram_scale_at=0.92, vram_critical_at=0.98)
    driver.read_gpu(2, 5.7, 1)
    assert driver.state == "medium"


def test_what_lacks_is_told_in_the_gpus_own_bytes() -> None:
    """So much would have to be freed there for the level to be climbed to."""
    driver = Driver(GPU_LADDER, initial="medium", vram_scale_at=0.92, vram_critical_at=0.98)
    driver.read_gpu(2, 8, 1)
    lacking = shortfall(driver.machine.evidence, 2)
    band = 0.92 * (0.80 - driver.machine.policy.band) / 0.80
    assert lacking is not None
    assert list(lacking) == ["gpu0"]
    assert lacking["gpu0"] == pytest.approx(18 * GIB - band * 16 * GIB, abs=2)


def test_thresholds_that_do_not_go_together_are_refused() -> None:
    """Also where one of them is RAM's."""
    with pytest.raises(ValueError, match=r"vram_critical_at 0.95 must be above vram_scale_at 0.96"):
        Policy(vram_scale_at=0.96)


@given(st.integers(50, 95), st.integers(50, 98))
def test_a_threshold_is_told_as_it_was_written(scale_at: int, vram_scale_at: int) -> None:
    """Not as "70 % instead of 70 %", for a digit far behind the point."""
    own, read_as = vram_scale_at / 100, scale_at / 100
    scale = Scale((own, (1 + own) / 2), (read_as, (1 + read_as) / 2))
    assert scale.own(read_as) == own
    assert scale.read(own) == read_as
