"""The status as plain JSON, for the endpoint and for `--json`; one form for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from scaler.advice import Advice
from scaler.proactive import Preflight, ResourceTrend, Status
from scaler.reloading import Reload


def status_report(status: Status, trends: Mapping[str, ResourceTrend]) -> dict[str, Any]:
    """Everything about the moment; sizes in bytes, ratios 0..1, times in seconds."""
    return {**asdict(status), "trends": {name: asdict(trend) for name, trend in trends.items()}}


def preflight_report(preflight: Preflight) -> dict[str, Any]:
    """The pre-flight check."""
    return asdict(preflight)


def advice_report(advice: Advice) -> dict[str, Any]:
    """What would make room for a larger level; sizes in bytes."""
    return asdict(advice)


def reload_report(reload: Reload) -> dict[str, Any]:
    """What became of a reload; values as text, null where they are not shown."""
    return asdict(reload)
