"""scaler keeps the best local language model that a machine can sustain, all the time.

`ModelManager` answers with the level that serves; `ProactiveScaler` is the decision alone;
`ResourceMonitor` and `HardwareTierDetector` are its parts. Importing this package is light: each name is
loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaler.errors import ScalerError
    from scaler.manager import Answer, ModelManager
    from scaler.monitor import ResourceMonitor
    from scaler.notices import Notice
    from scaler.proactive import ProactiveScaler
    from scaler.tiers import HardwareTierDetector

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "HardwareTierDetector",
    "ModelManager",
    "Notice",
    "ProactiveScaler",
    "ResourceMonitor",
    "ScalerError",
    "__version__",
]

_HOMES = {
    "Answer": "manager",
    "HardwareTierDetector": "tiers",
    "ModelManager": "manager",
    "Notice": "notices",
    "ProactiveScaler": "proactive",
    "ResourceMonitor": "monitor",
    "ScalerError": "errors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'scaler' has no attribute {name!r}")
    return getattr(importlib.import_module(f"scaler.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
