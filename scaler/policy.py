"""The named parameters of the decision, with their shipped values, units and ranges.

A tier's YAML sets any of them under ``policy:``. Data only, and the one home of these defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from scaler.levels import RAM
from scaler.scales import Scale

Ratio = Annotated[float, Gt(0), Lt(1)]
Seconds = Annotated[float, Ge(0), Lt(1e7)]

LARGEST = ("max_level", "battery_max_level", "throttled_max_level")
"""The parameters that name a level of the ladder, the largest in some circumstance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a tier decides. Ratios are of a resource's total; times are seconds."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "use_attribute_docstrings": True}

    scale_at: Ratio = 0.80
    """Projected usage above this makes a level give way to a smaller one."""
    band: Ratio = 0.03
    """Hysteresis: a larger level must fit under scale_at - band before it is climbed to."""
    band_max: Ratio = 0.15
    """How wide the band grows where usage was seen to rise further; no more than band switches that off."""
    critical_at: Ratio = 0.95
    """Projected usage from here on is felt by people: act at once, and shorten draining."""
    exhausted_at: Annotated[float, Gt(0), Le(1)] = 0.995
    """From here on the kernel is about to kill; a steady rise that leads here is answered before it has come."""
    exhausted_s: Seconds = 2.0
    """For how long usage must have been there before a running answer is ended where it stands, however short."""
    dwell_s: Seconds = 300.0
    """For how long an upgrade's conditions must have held without a break, and since the last change."""
    debounce_s: Seconds = 4.0
    """For how long usage just above scale_at is watched before stepping down; shrinks to 0 at critical_at."""
    needle_s: Seconds = 2.0
    """A rise that is over within this time is a needle; where they are the rule, one is waited for. 0: none are."""
    needle_share: Annotated[float, Gt(0), Lt(1)] = 0.75
    """The share of a level's recent rises above its limit that must have been needles for that."""
    recovery_s: Seconds = 10.0
    """For how long room must last before a level is loaded again from off, and battery power or heat to lower one."""
    recovery_band: Ratio = 0.005
    """The smallest level is loaded again from off under critical_at less this."""
    rise_s: Annotated[float, Ge(0), Lt(1e6)] = 4.0
    """A rise counts as steady when it lasted this long without a pause; 0 switches acting on rises off."""
    switch_margin_s: Seconds = 8.0
    """For how long a steady rise is expected to go on, and for how long after a switch it must not be too much."""
    sureness: Annotated[float, Gt(0), Lt(1)] = 0.88
    """The share of past forecasts of the next peak that must have held for the band to be wide enough."""
    doubt_s: Annotated[float, Gt(0), Lt(1e7)] = 1800.0
    """For as much watching as this the configured band counts against what was seen."""
    memory_s: Annotated[float, Gt(0), Lt(1e7)] = 3600.0
    """What forecasts, needles and incidents taught counts half after this time."""
    caution_step: Annotated[float, Ge(0), Lt(0.5)] = 0.01
    """How much earlier a level gives way after an incident: usage above critical_at, an answer that failed or crept."""
    caution_max: Annotated[float, Ge(0), Lt(0.5)] = 0.05
    """How much earlier at the most; 0 switches that off."""
    slow_at: Annotated[float, Ge(0), Lt(1)] = 0.5
    """An answer crept if it made fewer tokens a second than this part of what its level usually makes."""
    trend_window_s: Annotated[float, Gt(0), Lt(1e6)] = 60.0
    """The stretch of readings of which people are told the trend."""
    stale_after_s: Annotated[float, Gt(0), Lt(1e6)] = 10.0
    """A gap between readings longer than this breaks the evidence for an upgrade."""
    backoff_s: Seconds = 60.0
    """How long a level that failed to load, or died, is left alone; doubles with each failure in a row."""
    backoff_max_s: Seconds = 3600.0
    """The longest such pause."""
    wasted_within_s: Seconds = 600.0
    """An upgrade undone within this time was wasted: the next one waits for longer."""
    dwell_max_s: Seconds = 1800.0
    """The bound of that lengthening; equal to dwell_s switches it off."""
    footprint_half_life_s: Annotated[float, Gt(0), Lt(1e7)] = 600.0
    """A level seen to take less than before is believed half of it after this time; more, at once."""
    stalled_at: Annotated[float, Gt(0), Le(1)] = 0.10
    """Share of the last ten seconds that tasks waited for memory (PSI some) above which nothing is climbed."""
    vram_scale_at: Annotated[float, Gt(0), Lt(1)] | None = None
    """In place of scale_at for the memory of GPUs; none means the same."""
    vram_critical_at: Annotated[float, Gt(0), Lt(1)] | None = None
    """In place of critical_at for the memory of GPUs; none means the same."""
    cache_full_at: Annotated[float, Gt(0), Le(1)] = 0.9
    """The share of a model's KV cache in use above which, while answers wait for it, nothing is climbed."""
    max_level: str | None = None
    """The largest level that this tier may climb to; none means the whole ladder."""
    battery_max_level: str | None = None
    """The largest level while the machine runs on battery; none means that this is no matter."""
    throttled_max_level: str | None = None
    """The largest level while the processors, or a GPU of the ladder, are slowed down for heat; none: no matter."""
    drain_seconds: Seconds = 20.0
    """How long an answer that is running when its level must go may still take; a tenth when critical."""
    drain_tokens: Annotated[int, Ge(0), Lt(1_000_000)] = 256
    """How many tokens such an answer may still have; a tenth when critical."""

    @property
    def largest_levels(self) -> dict[str, str]:
        """The levels that are named as the largest, by the parameter that names them."""
        return {key: level for key in LARGEST if (level := getattr(self, key)) is not None}

    @property
    def vram_thresholds(self) -> tuple[float, float]:
        """Scale-at and critical-at of the memory of GPUs."""
        scale_at = self.scale_at if self.vram_scale_at is None else self.vram_scale_at
        return scale_at, self.critical_at if self.vram_critical_at is None else self.vram_critical_at

    def scale_of(self, resource: str) -> Scale | None:
        """How usage of a resource reads in the terms of scale-at and critical-at; None for as it is."""
        own, read_as = self.vram_thresholds, (self.scale_at, self.critical_at)
        return None if resource == RAM or own == read_as else Scale(own, read_as)

    def __post_init__(self) -> None:
        if self.band >= self.scale_at:
            raise ValueError(f"band {self.band} must be below scale_at {self.scale_at}")
        if self.recovery_band >= self.critical_at:
            raise ValueError(f"recovery_band {self.recovery_band} must be below critical_at {self.critical_at}")
        if self.critical_at <= self.scale_at:
            raise ValueError(f"critical_at {self.critical_at} must be above scale_at {self.scale_at}")
        if self.exhausted_at < self.critical_at:
            raise ValueError(f"exhausted_at {self.exhausted_at} must not be below critical_at {self.critical_at}")
        if self.dwell_max_s < self.dwell_s:
            raise ValueError(f"dwell_max_s {self.dwell_max_s} must not be below dwell_s {self.dwell_s}")
        if self.backoff_max_s < self.backoff_s:
            raise ValueError(f"backoff_max_s {self.backoff_max_s} must not be below backoff_s {self.backoff_s}")
        scale_at, critical_at = self.vram_thresholds
        if critical_at <= scale_at:
            raise ValueError(f"vram_critical_at {critical_at} must be above vram_scale_at {scale_at}")
