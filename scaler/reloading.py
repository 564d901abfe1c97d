"""A configuration that takes the place of another while scaler runs: what differs, what applies, what has to wait.

Pure: reads no file and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scaler.assembly import Parts
from scaler.events import Change
from scaler.levels import RAM
from scaler.settings import Settings
from scaler.words import gib

LIVE = {
    *("tier", "ladder", "embeddings", "queue", "monitor", "recording", "notices", "policy"),
    *("journal.max_mib", "journal.files"),
}
"""What applies at once: a section, or a single key. All else is bound to what was opened or begun at the start."""
SECRET = ("webhook", "arguments")
"""Keys whose values may hold a secret: that they changed is told, and not what they are."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What became of a reload: what applies from now on, which keys wait for a restart, which level was unpinned."""

    file: str
    changes: tuple[Change, ...]
    restart: tuple[str, ...]
    unpinned: str | None


def changes(before: Parts, after: Parts) -> tuple[Change, ...]:
    """What applies at once and differs, in the order of the configuration."""
    both = set(before.ladder.names) & set(after.ladder.names)
    was, now = dict(_values(before, both)), dict(_values(after, both))
    return tuple(
        Change(key, *((None, None) if key.rpartition(".")[2] in SECRET else _texts(old, new)))
        for key in {**now, **was}
        if _is_live(key) and (old := was.get(key)) != (new := now.get(key))
    )


def waiting(started: Settings, after: Settings) -> tuple[str, ...]:
    """The keys that differ from those at the start and apply after a restart only."""
    was, now = dict(_plain(started)), dict(_plain(after))
    return tuple(key for key in {**now, **was} if not _is_live(key) and was.get(key) != now.get(key))


def kept(before: Parts, after: Parts) -> frozenset[str]:
    """The levels whose models may stay loaded: those of the same name that are loaded in the same way."""
    return frozenset(
        name
        for name, (runtime, settings) in after.levels.items()
        if name in before.levels and before.levels[name][0] is runtime and settings.loads_as(before.levels[name][1])
    )


def _is_live(key: str) -> bool:
    return key in LIVE or key.partition(".")[0] in LIVE


def _values(parts: Parts, levels: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Everything that decides, by its key; a level's keys by its name, since its place may change."""
    yield "tier", parts.tier.tier.name
    yield "ladder", parts.ladder.names
    for level in (one for one in parts.settings.ladder if one.name in levels):
        yield from _leaves(f"ladder.{level.name}", level.model_dump(exclude={"name"}))
        # In bytes: a file may be another one under the same name.
        yield f"ladder.{level.name} takes", parts.ladder.alone(level.name)
    yield from _plain(parts.settings)
    yield from _leaves("policy", asdict(parts.policy))


def _plain(settings: Settings) -> Iterator[tuple[str, Any]]:
    for section, values in settings.model_dump(exclude={"tier", "ladder", "policy"}).items():
        yield from _leaves(section, values)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _texts(old: Any, new: Any) -> tuple[str, str]:
    was, now = _text(old), _text(new)
    return (was, now) if was != now else (_text(old, _exactly), _text(new, _exactly))


def _text(value: Any, size: Callable[[int], str] = gib) -> str:
    if isinstance(value, Mapping):
        taken = [f"{size(part)} of {'RAM' if resource == RAM else resource}" for resource, part in value.items()]
        return " and ".join(taken) or "nothing"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _exactly(size: int) -> str:
    return f"{size:,} bytes"
