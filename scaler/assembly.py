"""Puts the parts together as the person's configuration and this machine ask for.

The one place that knows them all; it decides and performs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler import paths
from scaler.errors import ConfigError, LevelUnavailable, MissingExtra
from scaler.level_settings import LevelSettings
from scaler.levels import Ladder, Level
from scaler.policy import Policy
from scaler.runtimes.bounds import Bounds
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
    bounds: Bounds
    runtimes: Mapping[str, Runtime[Any]]


def assemble(config: Path | None = None, running: Parts | None = None) -> Parts:
    """Read the configuration, detect the tier, size the ladder. Raises ConfigError, LevelUnavailable.

    What is ``running`` already is gone on with: runtimes, which own what they have loaded, and their processes' bounds.
    """
    settings = load_settings(config)
    tier = settings.detection(HardwareTierDetector())
    policy = settings.policy_on(tier.tier)
    bounds = running.bounds if running is not None else Bounds(settings.processes)
    runtimes = dict(running.runtimes) if running is not None else {}
    levels: dict[str, tuple[Runtime[Any], LevelSettings]] = {}
    for level in settings.ladder:
        if level.runtime not in runtimes:
            runtimes[level.runtime] = runtime_called(level.runtime, bounds)
        levels[level.name] = (runtimes[level.runtime], level)
    # A runtime of its own: what the levels' runtimes hold counts as own, and stepping down would not free this.
    embeddings = (_embedded(bounds), settings.embeddings) if settings.embeddings else None
    return Parts(settings, tier, policy, _ladder(levels), levels, embeddings, bounds, runtimes)


def usable(
    config: Path | None = None, running: Parts | None = None, assemble: Callable[..., Parts] = assemble
) -> Parts:
    """The same, or ConfigError for all that would keep `scaler run` from starting: files and libraries that lack, too.

    A server that is off does not: what it holds is asked for when a level is loaded. ``assemble`` puts the parts
    together.
    """
    settings = load_settings(config)
    # Before the levels are sized, for which it takes the files.
    if absent := list(absent_files(settings, demo=running is not None)):
        raise ConfigError("\n".join(absent))
    try:
        parts = assemble(config, running)
        for runtime, _ in parts.levels.values():
            runtime.require()
        if parts.embeddings is not None:
            vectors, embeddings = parts.embeddings
            vectors.require()
            vectors.embedding_bytes(embeddings)
    except (LevelUnavailable, MissingExtra) as error:
        raise ConfigError(f"{settings.file}: {error}") from error
    return parts


def absent_files(settings: Settings, *, demo: bool) -> Iterator[str]:
    """The files that are not there; ``demo``: those of the demo ladder too, which are made when they are wanted."""
    models: list[LevelSettings | EmbeddingSettings] = [*settings.ladder]
    if settings.embeddings is not None:
        models.append(settings.embeddings)
    for model in models:
        for key, file in model:
            if not isinstance(file, Path) or file.is_file():
                continue
            if file.parent != paths.demo_models():
                yield f"{settings.file}: {model.name}: {file}: no such file; correct the level's {key}"
            elif demo:
                yield f"{settings.file}: {model.name}: {file}: no such file; make it with `scaler demo-models`"


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


def runtime_called(name: str, bounds: Bounds | None = None) -> Runtime[Any]:
    """The runtime called ``name``; imported when it is used, for each brings libraries of its own.

    ``bounds`` are those of the processes that it starts.
    """
    match name:
        case "embedded":
            return _embedded(bounds)
        case "ollama":
            from scaler.runtimes.ollama import OllamaRuntime

            return OllamaRuntime()
        case "lmstudio":
            from scaler.runtimes.lmstudio import LmStudioRuntime

            return LmStudioRuntime()
        case "llama-server":
            from scaler.runtimes.llama_server import LlamaServerRuntime

            return LlamaServerRuntime(bounds)
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


def _embedded(bounds: Bounds | None) -> EmbeddedRuntime:
    from scaler.runtimes.embedded import EmbeddedRuntime

    return EmbeddedRuntime(bounds)
