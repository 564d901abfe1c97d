"""Figures as people read them."""

from __future__ import annotations

from scaler.levels import GIB


def gib(size: float | None) -> str:
    """Bytes as GiB with two digits that matter, or as MiB below a tenth of one."""
    if size is None:
        return "unknown"
    if abs(size) < GIB / 10:
        return f"{size / 1024**2:.0f} MiB"
    return f"{size / GIB:.2f} GiB"


def percent(ratio: float | None) -> str:
    """A ratio as a percentage."""
    return "unknown" if ratio is None else f"{100 * ratio:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
