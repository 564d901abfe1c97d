"""Puts the parts together as the person's configuration and this machine ask for.

The one place that knows them all; it decides and performs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler import paths
from scaler.absent import no_file
from scaler.documents import Fault, Key
from scaler.errors import ConfigError, LevelUnavailable, MissingExtra
from scaler.level_settings import LevelSettings
from scaler.levels import Ladder, Level, misplaced
from scaler.policy import Policy
from scaler.runtimes.bounds import Bounds
from scaler.runtimes.protocol import EmbeddingRuntime, Runtime
from scaler.settings import EmbeddingSettings, Settings, read_settings
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


def put_together(settings: Settings, running: Parts | None = None) -> Parts:
    """Detect the tier, size the ladder. Raises ConfigError, LevelUnavailable.

    What is ``running`` already is gone on with: runtimes, which own what they have loaded, and their processes' bounds.
    """
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
    return Parts(settings, tier, policy, _ladder(settings, levels), levels, embeddings, bounds, runtimes)


PutTogether = Callable[[Settings, Parts | None], Parts]
"""As `put_together`; somebody who simulates a machine has another."""


def assemble(config: Path | None = None, put_together: PutTogether = put_together) -> Parts:
    """Read the configuration and put the parts together. Raises ConfigError, LevelUnavailable."""
    return put_together(_settings(config), None)


def usable(config: Path | None = None, running: Parts | None = None, put_together: PutTogether = put_together) -> Parts:
    """The same, or ConfigError for all that would keep `scaler run` from starting: files and libraries that lack, too.

    A server that is off does not: what it holds is asked for when a level is loaded. What is ``running`` is gone on
    with.
    """
    # Before the levels are sized, for which it takes the files.
    settings = _settings(config, partial(absent_files, demo=running is not None))
    try:
        parts = put_together(settings, running)
    except LevelUnavailable as error:
        raise ConfigError(str(error)) from error  # it names the file already
    except MissingExtra as error:
        raise ConfigError(f"{settings.file}: {error}") from error
    for position, (runtime, _) in enumerate(parts.levels.values()):
        _check(settings, ("ladder", position, "runtime"), runtime.require)
    if parts.embeddings is not None:
        vectors, embeddings = parts.embeddings
        _check(settings, ("embeddings",), vectors.require)
        _check(settings, ("embeddings", "model"), partial(vectors.embedding_bytes, embeddings))
    return parts


def absent_files(settings: Settings, *, demo: bool) -> Iterator[Fault]:
    """The files that are not there; ``demo``: those of the demo ladder too, which are made when they are wanted."""
    for at, model in settings.models():
        for key, file in model:
            if not isinstance(file, Path) or not (why := no_file(file)):
                continue
            if file.parent != paths.demo_models():
                yield Fault((*at, key), f"{model.name}: {file}: {why}; correct the level's {key}")
            elif demo:
                yield Fault((*at, key), f"{model.name}: {file}: {why}; make it with `scaler demo-models`")


def _settings(config: Path | None, more: Callable[[Settings], Iterable[Fault]] = lambda _: ()) -> Settings:
    """The configuration. Raises ConfigError with all that is wrong with it: by itself, as ``more`` has it, and on this
    machine's tier.
    """
    draft = read_settings(config)
    # A path that is at fault already is that of no file.
    told = {fault.key for fault in draft.faults}
    if faults := [*draft.faults, *(fault for fault in more(draft.settings) if fault.key not in told)]:
        raise draft.settings.refusal(*faults, *draft.misfits(HardwareTierDetector()))
    return draft.settings


def _check(settings: Settings, key: Key, holds: Callable[[], object]) -> None:
    """Raises ConfigError, with the line of ``key``, for what a runtime lacks."""
    try:
        holds()
    except (LevelUnavailable, MissingExtra) as error:
        raise settings.error(key, str(error)) from error


def _ladder(settings: Settings, levels: Mapping[str, tuple[Runtime[Any], LevelSettings]]) -> Ladder:
    """The ladder with what each level takes: its own footprint, and those of the smaller ones that stand by.

    Raises LevelUnavailable for those that cannot be sized, and ConfigError for the order, each with file and line.
    """
    rungs: list[Level] = []
    beside, unsized = Counter[str](), []
    for position, (name, (runtime, level)) in enumerate(levels.items()):
        try:
            alone = runtime.footprint(level)
        except LevelUnavailable as error:
            unsized.append(f"{settings.place(('ladder', position, 'model'))}{error}")
            continue
        footprint = Counter(alone) + beside
        rungs.append(Level(name, footprint, level.quality, level.load_s, level.standby, level.mapped))
        if level.standby:
            beside += Counter(alone)
    if unsized:
        raise LevelUnavailable("\n".join(unsized))
    if faults := [
        Fault(("ladder", position), wrong.sentence)
        for position, (below, above) in enumerate(pairwise(rungs), start=1)
        if (wrong := misplaced(below.name, below.footprint, above.name, above.footprint))
    ]:
        raise settings.refusal(*faults)
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
