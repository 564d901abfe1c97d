"""What is wrong with a ladder as a whole, or with what names its levels, that the schema of one level cannot tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scaler.documents import Fault, Key, dotted
from scaler.level_settings import LevelSettings, LlamaRouterLevel, OllamaLevel, OpenAILevel, ServedLevel, VllmLevel
from scaler.levels import OFF, RAM, misplaced
from scaler.policy import LARGEST

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""The hosts of a runtime that runs on this machine."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The name of an environment variable, as shells have it."""


def ladder_faults(
    names: Sequence[Any], levels: Mapping[int, LevelSettings], whole: Mapping[int, LevelSettings]
) -> list[Fault]:
    """What the schema of a single level cannot tell. ``names`` are of all levels, and None or nonsense for some.

    ``levels`` has those that can be used, by their positions, and ``whole`` those of them that are not at fault: only
    these are compared, for what another lacks may be what is misspelt there.
    """
    faults = []
    for position, name in enumerate(names):
        if not isinstance(name, str):
            continue
        if name in (OFF, "") or not name.isprintable():
            faults.append(Fault(("ladder", position, "name"), f"{name!r} cannot be a level's name; expected another"))
        elif name in names[:position]:
            first = dotted(("ladder", names.index(name)))
            faults.append(Fault(("ladder", position, "name"), f"{name!r} is {first} already; expected distinct names"))
    for position, level in levels.items():
        if isinstance(level, ServedLevel):
            faults += _server_faults(level, ("ladder", position))
    return faults + _place_faults(whole) + _ollama_faults(whole) + _order_faults(whole)


def limit_faults(policy: Any, names: Sequence[Any]) -> list[Fault]:
    """The levels that a policy names and that the ladder has not; none where a level's name cannot be read."""
    if not isinstance(policy, dict) or not names or not all(isinstance(name, str) for name in names):
        return []
    named = {key: policy[key] for key in LARGEST if isinstance(policy.get(key), str)}
    return [Fault(("policy", key), no_level(level, names)) for key, level in named.items() if level not in names]


def no_level(level: str, names: Sequence[str]) -> str:
    """That a level which is named is none."""
    return f"{level!r} is no level of the ladder; expected one of {', '.join(dict.fromkeys(names))}"


def _order_faults(levels: Mapping[int, LevelSettings]) -> list[Fault]:
    """The levels that are declared to take no more than the one before them."""
    faults = []
    below: tuple[str, Mapping[str, int]] | None = None
    for position, level in levels.items():
        declared = level.declared
        if RAM not in declared and level.estimates_ram:
            continue
        if below is not None and (wrong := misplaced(*below, level.name, declared)):
            key = "ram_gib" if wrong.resource == RAM else "vram_gib"
            faults.append(Fault(("ladder", position, key), wrong.sentence))
        below = level.name, declared
    return faults


def _server_faults(level: ServedLevel, at: Key) -> list[Fault]:
    """What scaler cannot do with a level that lives in a server."""
    if level.url.username or level.url.password or level.url.query or level.url.fragment:
        # Not shown: this is told in logs and notices.
        sentence = (
            "holds a name, a password, or what follows a ? or #; expected the address alone, and for a key key_env "
            "with the name of an environment variable"
        )
        return [Fault((*at, "url"), sentence)]
    faults = []
    if level.key_env is not None and not VARIABLE.fullmatch(level.key_env):
        # Not shown: it may be the key itself, by mistake.
        sentence = "is not the name of an environment variable; expected one, such as OPENAI_API_KEY"
        faults.append(Fault((*at, "key_env"), sentence))
    if isinstance(level, OpenAILevel):
        for key in ("ram_gib", "vram_gib"):
            if getattr(level, key):
                sentence = "nothing is unloaded there, so that nothing would come back; expected none"
                faults.append(Fault((*at, key), sentence))
    elif level.url.host not in LOOPBACK:
        sentence = (
            f"{str(level.url)!r} is not this machine, whose memory is watched; expected {' or '.join(LOOPBACK)}, "
            "or openai as the runtime, to have requests answered there and nothing loaded"
        )
        faults.append(Fault((*at, "url"), sentence))
    return faults


def _place_faults(levels: Mapping[int, LevelSettings]) -> list[Fault]:
    """The levels that are the same model, where it can be loaded one way only."""
    faults = []
    places: dict[tuple[object, ...], str] = {}
    for position, level in levels.items():
        place = _place(level) if isinstance(level, ServedLevel) else None
        if place is not None and (other := places.setdefault(place, level.name)) != level.name:
            sentence = f"{level.name!r} is the model of {other!r}, which is loaded one way only"
            key = ("ladder", position, "model")
            faults.append(Fault(key, f"{sentence}; expected another model or another server"))
    return faults


def _place(level: ServedLevel) -> tuple[object, ...] | None:
    """What two levels cannot both be; None where one model can be loaded in several ways."""
    match level:
        case VllmLevel():
            return level.runtime, level.url.port
        case LlamaRouterLevel():
            return level.runtime, level.url.port, level.model
        case OpenAILevel():
            return level.runtime, level.address, level.model
    return None


def _ollama_faults(levels: Mapping[int, LevelSettings]) -> list[Fault]:
    """What scaler cannot do with Ollama's levels: it holds a model once."""
    faults = []
    ollamas = [(position, level) for position, level in levels.items() if isinstance(level, OllamaLevel)]
    for position, level in ollamas:
        larger = [other.name for place, other in ollamas if place > position and other.listed == level.listed]
        if level.standby and larger:
            sentence = f"{level.name!r} cannot stand by: {larger[0]!r} is the same model, which Ollama holds once only"
            faults.append(Fault(("ladder", position, "standby"), f"{sentence}; expected another model, or false"))
    return faults
