"""The ladder's levels: what their runtimes take, whether servers answer, whether the models are there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from scaler.absent import no_file
from scaler.cli.examination import Finding, Patient, note, ok, problem
from scaler.errors import ConfigError, LevelUnavailable, MissingExtra
from scaler.level_settings import (
    EmbeddedLevel,
    LevelSettings,
    LlamaServerLevel,
    LmStudioLevel,
    OllamaLevel,
    OpenAILevel,
    ServedLevel,
    listed,
)
from scaler.levels import RAM
from scaler.words import gib

if TYPE_CHECKING:
    from scaler.discovery.found import Source
    from scaler.runtimes.protocol import Runtime
    from scaler.settings import EmbeddingSettings, Settings

SHOWN = 8
"""So many of a server's models are named where the wanted one is not among them."""
GETS = {
    OllamaLevel: "ollama pull {model}",
    LmStudioLevel: "lms get {model}",
}
"""How a runtime is had get a model."""


def examine(patient: Patient) -> Iterator[Finding]:
    """Every level by itself, so that one that is at fault hides no other; then all of them together."""
    settings = patient.settings
    if settings is None or patient.fault:
        yield note("levels", "not looked at before the configuration can be used")
        return
    faults = 0
    for finding in _each(settings):
        faults += finding.verdict == "problem"
        yield finding
    if not faults:
        yield from _together(patient)


def _each(settings: Settings) -> Iterator[Finding]:
    from scaler.assembly import absent_files, runtime_called

    absent = set(absent_files(settings, demo=False))
    for fault in absent_files(settings, demo=True):
        where, _, what = fault.sentence.partition(": ")
        says, _, do = what.rpartition("; ")
        if fault in absent:
            yield problem(f"level {where}", says, do)
        else:
            yield note(f"level {where}", says, "nothing: `scaler run` makes this demo model")
    runtimes: dict[str, Runtime[Any] | None] = {}
    for kind in dict.fromkeys(model.runtime for _, model in settings.models()):
        runtime = runtime_called(kind)
        try:
            runtime.require()
        except MissingExtra as error:
            says, _, do = str(error).partition("; install it with: ")
            yield problem(f"runtime {kind}", says, do)
            runtimes[kind] = None
        else:
            runtimes[kind] = runtime
            if kind == "embedded":
                yield from _loads()
    unset = {level.name: level.key_env for level in settings.ladder if isinstance(level, ServedLevel) and _unset(level)}
    for name, variable in unset.items():
        yield problem(f"level {name}", f"the environment variable {variable} is not set", "set it to the API key")
    served = [level for level in settings.ladder if isinstance(level, ServedLevel) and level.name not in unset]
    # The look takes the HTTP client; that it lacks was told with the runtime.
    there = _looked([level for level in served if runtimes[level.runtime] is not None])
    for level in settings.ladder:
        if (runtime_or_none := runtimes[level.runtime]) is None or level.name in unset:
            continue
        if isinstance(level, ServedLevel):
            yield _served(level, there[level.name], runtime_or_none)
        elif isinstance(level, EmbeddedLevel | LlamaServerLevel) and not no_file(level.model):
            yield _file(level, runtime_or_none)
    vectors = settings.embeddings
    if vectors is not None and not no_file(vectors.model) and runtimes[vectors.runtime] is not None:
        yield _embeddings(vectors)


def _loads() -> Iterator[Finding]:
    """llama.cpp's library may be installed and take another one that is not: every load would fail."""
    from scaler.runtimes.embedded_process import unloadable

    if (why := unloadable()) is not None:
        says, _, do = why.partition("; ")
        yield problem("runtime embedded", f"llama.cpp is installed and does not load: {says}", do)


def _together(patient: Patient) -> Iterator[Finding]:
    """What only the ladder as a whole shows; the last word has what `scaler config check` says."""
    from scaler.assembly import usable

    try:
        parts = usable(patient.config)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield problem("ladder", line, "correct the file that is named")
        return
    yield ok("ladder", f"{' → '.join(parts.ladder.names)}, as `scaler config check` has it")


def _unset(level: ServedLevel) -> bool:
    return level.key_env is not None and not os.environ.get(level.key_env)


def _file(level: EmbeddedLevel | LlamaServerLevel, runtime: Runtime[Any]) -> Finding:
    """A model's file: all of its parts, the header read, the program there."""
    from scaler.runtimes.gguf_size import read_metadata, weights_bytes

    about = f"level {level.name}"
    try:
        if isinstance(level, LlamaServerLevel):
            from scaler.runtimes.llama_server_process import check

            check(level)
        weights_bytes(level.name, level.model)
        read_metadata(level.model)
        takes = runtime.footprint(level)
    except LevelUnavailable as error:
        return _unavailable(level, error)
    except ValueError as error:
        return problem(about, f"{level.model}: not a whole GGUF file ({error})", "download it again")
    except OSError as error:
        return problem(about, f"{level.model}: {error.strerror or error}", "correct the level's model")
    return ok(about, f"{level.model}, takes {_sizes(takes)}")


def _embeddings(settings: EmbeddingSettings) -> Finding:
    from scaler.runtimes.embedded import EmbeddedRuntime

    about = f"embeddings {settings.name}"
    runtime = EmbeddedRuntime()
    try:
        runtime.require()
        takes = runtime.embedding_bytes(settings)
    except (LevelUnavailable, MissingExtra) as error:
        return problem(about, str(error))
    return ok(about, f"{settings.model}, takes {gib(takes)} while it is used")


def _looked(levels: list[ServedLevel]) -> Mapping[str, Source]:
    """What is at each level's address, by the level's name: every address is asked once, all at the same time."""
    if not levels:
        return {}
    from scaler.discovery.places import Place
    from scaler.discovery.searching import search

    places = list(dict.fromkeys(Place(level.address, named=True, key_env=level.key_env) for level in levels))
    found = dict(zip(places, search(places, ()), strict=True))
    return {level.name: found[Place(level.address, named=True, key_env=level.key_env)] for level in levels}


def _served(level: ServedLevel, source: Source, runtime: Runtime[Any]) -> Finding:
    about, where = f"level {level.name}", f"{level.runtime} at {level.address}"
    names = [*(one.name for one in source.models), *(one.name for one in source.left_out)]
    if not names:
        if isinstance(level, LmStudioLevel) and level.start and source.what == "nothing":
            return note(about, f"{where}: nothing answers there yet; it is started when the level is wanted")
        says = source.note or f"{source.what} has no model"
        return problem(
            about, f"{where}: {says}", _gets(level) if not source.note else f"start it, or {_correct(level)}"
        )
    if not _has(level, names):
        known = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        says = f"{where}: {source.what} has no model {level.model!r}; it has {known}"
        return problem(about, says, _gets(level))
    if not isinstance(level, OpenAILevel) and source.models and all(one.runtime == "openai" for one in source.models):
        return problem(
            about, f"{where}: {source.note}", f"mend that, or make the level's runtime openai: {_page(level)}"
        )
    try:
        takes = runtime.footprint(level)
    except (LevelUnavailable, MissingExtra) as error:
        return _unavailable(level, error)
    return ok(about, f"{level.model}, {source.what} at {level.address}, takes {_sizes(takes)}")


def _has(level: ServedLevel, names: list[str]) -> bool:
    if isinstance(level, OllamaLevel):
        return level.listed in map(listed, names)
    return level.model in names


def _gets(level: ServedLevel) -> str:
    how = GETS.get(type(level), "")
    return " or ".join(filter(None, (how.format(model=level.model), f"correct the level's model: {_page(level)}")))


def _correct(level: ServedLevel) -> str:
    return f"correct the level's url: {_page(level)}"


def _page(level: LevelSettings) -> str:
    return f"docs/{'llama-server' if level.runtime == 'llama-router' else level.runtime}.md"


def _unavailable(level: LevelSettings, error: Exception) -> Finding:
    """A runtime's own words, which end with what to do."""
    says, _, do = str(error).removeprefix(f"{level.name}: ").rpartition("; ")
    return problem(f"level {level.name}", says or do, do if says else "")


def _sizes(takes: Mapping[str, int]) -> str:
    sizes = (f"{gib(size)} of {'RAM' if resource == RAM else resource}" for resource, size in takes.items())
    return " and ".join(sizes) or "nothing of this machine"
