"""Puts the parts together as the person's configuration and this machine ask for.

The one place that knows them all; it decides and performs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler.level_settings import LevelSettings
from scaler.levels import Ladder, Level
from scaler.policy import Policy
from scaler.runtimes.protocol import EmbeddingRuntime, Runtime
from scaler.settings import EmbeddingSettings, Settings, load_settings
from scaler.tiers import Detection, HardwareTierDetector

if TYPE_CHECKING:
    from scaler.runtimes.embedded import EmbeddedRuntime


@dataclass(frozen=True)
class Parts:
    """What a scaler and a manager are made of."""

    settings: Settings
    tier: Detection
    policy: Policy
    ladder: Ladder
    levels: Mapping[str, tuple[Runtime[Any], LevelSettings]]
    embeddings: tuple[EmbeddingRuntime, EmbeddingSettings] | None


def assemble(config: Path | None = None) -> Parts:
    """Read the configuration, detect the tier, size the ladder. Raises ConfigError, LevelUnavailable."""
    settings = load_settings(config)
    tier = settings.detection(HardwareTierDetector())
    policy = settings.policy_on(tier.tier)
    runtimes: dict[str, Runtime[Any]] = {}
    levels: dict[str, tuple[Runtime[Any], LevelSettings]] = {}
    for level in settings.ladder:
        runtime = runtimes.setdefault(level.runtime, runtime_called(level.runtime))
        levels[level.name] = (runtime, level)
    # A runtime of its own: what the levels' runtimes hold counts as own, and stepping down would not free this.
    embeddings = (_embedded(), settings.embeddings) if settings.embeddings else None
    return Parts(settings, tier, policy, _ladder(levels), levels, embeddings)


def _ladder(levels: Mapping[str, tuple[Runtime[Any], LevelSettings]]) -> Ladder:
    """The ladder with what each level takes: its own footprint, and those of the smaller ones that stand by."""
    rungs, beside = [], Counter[str]()
    for name, (runtime, level) in levels.items():
        alone = runtime.footprint(level)
        footprint = Counter(alone) + beside
        rungs.append(Level(name, footprint, level.quality, level.load_s, level.standby, level.mapped))
        if level.standby:
            beside += Counter(alone)
    return Ladder(rungs)


def runtime_called(name: str) -> Runtime[Any]:
    """The runtime called ``name``; imported when it is used, for each brings libraries of its own."""
    match name:
        case "embedded":
            return _embedded()
        case "ollama":
            from scaler.runtimes.ollama import OllamaRuntime

            return OllamaRuntime()
        case "lmstudio":
            from scaler.runtimes.lmstudio import LmStudioRuntime

            return LmStudioRuntime()
        case "llama-server":
            from scaler.runtimes.llama_server import LlamaServerRuntime

            return LlamaServerRuntime()
        case "llama-router":
            from scaler.runtimes.llama_router import LlamaRouterRuntime

            return LlamaRouterRuntime()
        case "vllm":
            from scaler.runtimes.vllm import VllmRuntime

            return VllmRuntime()
        case "openai":
            from scaler.runtimes.openai import OpenAIRuntime

            return OpenAIRuntime()
    raise AssertionError(f"the schema lets no runtime called {name!r} through")


def _embedded() -> EmbeddedRuntime:
    from scaler.runtimes.embedded import EmbeddedRuntime

    return EmbeddedRuntime()
