"""Proposes a ladder of the models that were found, which fits this machine beside what its person does with it.

Pure: what was found, how memory stands and the tier's policy in; levels, and why every other model is none, out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scaler.discovery.found import LeftOut, Model
from scaler.levels import GIB, RAM, gpu_resource
from scaler.policy import Policy
from scaler.readings import Usage

ROUTED = "openai"
"""The runtime that only passes requests on."""
RUNTIMES = ("ollama", "lmstudio", "llama-router", "vllm", "embedded", ROUTED)
"""Of two that make ladders of as many levels, the one that comes first here is proposed."""
ON_GPU = frozenset({"ollama", "lmstudio"})
"""These put a model onto the GPU by themselves where there is one."""
NAMES = {0: (), 1: ("main",), 2: ("small", "large"), 3: ("small", "medium", "large")}
"""What the levels are called, by how many there are."""
QUALITIES = (0.5, 0.7, 0.9)
"""The larger, the better: a guess from nothing but the order."""
APART = 1.5
"""A level takes so many times what the one below it takes, at least: less apart, a switch gains too little."""
SMALL_SHARE = 0.25
"""The smallest level takes no more of the room than this, where there is such a model: it nearly always fits."""
KEPT_SHARE, KEPT_MOST = 0.25, 8 * GIB
"""So much of RAM, and no more than that, is kept for the person's programs even if they use less at the moment."""
GPU_KEPT_SHARE, GPU_KEPT_MOST = 0.1, 2 * GIB
"""The same of a GPU: a desktop and a browser take about one GiB."""
LEAST_GPU = 3 * GIB
"""A GPU with less is left to the screen: no model worth a level fits beside that."""
STEP = GIB // 100
"""Footprints are rounded up to this, which is what the configuration has of them."""
PROCESS_BYTES = 4 * STEP
"""The RAM of a model that is on a GPU: a process without weights."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a resource levels may take, in bytes.

    ``limit`` is what usage must stay below for a climb; ``others`` is what other programs use now, ``kept`` what is
    reckoned for them.
    """

    total: int
    limit: int
    others: int
    kept: int

    @property
    def free(self) -> int:
        """What is left for a level."""
        return max(0, self.limit - self.kept)


@dataclass(frozen=True, slots=True)
class Rung:
    """A proposed level; ``footprint`` in bytes a resource, empty where it takes nothing that comes back."""

    name: str
    model: Model
    quality: float
    footprint: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A ladder, smallest level first; empty where no model can be one, and then ``why`` says what is lacking.

    ``rooms`` are the resources that were reckoned with. ``tight``: even the only level fits only when other programs
    take less. ``others`` counts the levels that other runtimes would make.
    """

    runtime: str | None
    levels: tuple[Rung, ...]
    why: str
    left_out: tuple[LeftOut, ...]
    rooms: Mapping[str, Room]
    others: Mapping[str, int]
    tight: bool = False


@dataclass(frozen=True, slots=True)
class _Ladder:
    """What one runtime's models make."""

    levels: tuple[Rung, ...]
    left_out: tuple[LeftOut, ...]
    tight: bool


@dataclass(frozen=True, slots=True)
class _Lack:
    """Why there is no room for a model, and whether there may be when other programs take less."""

    words: str
    now_only: bool


def propose(
    models: Sequence[Model],
    usage: Mapping[str, Usage],
    policy: Policy,
    *,
    ready: Collection[str] = RUNTIMES,
    runtime: str | None = None,
) -> Proposal:
    """The ladder of ``models`` that this machine can sustain.

    ``usage`` is how each resource stands, RAM among them, with the model servers' own part apart; ``ready`` are the
    runtimes whose libraries are installed, ``runtime`` the one that a person insists on.
    """
    rooms = {resource: _room(resource, part, policy) for resource, part in usage.items()}
    ladders = {
        name: _routed(of) if name == ROUTED else _ladder(sorted(of, key=_order), rooms)
        for name in RUNTIMES
        if (of := list({(one.name, one.url): one for one in models if one.runtime == name}.values()))
    }

    def rank(name: str) -> tuple[bool, bool, bool, bool, int, int]:
        one = ladders[name]
        usable = bool(one.levels), name in ready, name != ROUTED
        return *usable, not one.tight, len(one.levels), -RUNTIMES.index(name)

    chosen = max(ladders, key=rank, default=None) if runtime is None else runtime if runtime in ladders else None
    if chosen is None:
        lacking = "no models were found" if runtime is None else f"no models of {runtime} were found"
        return Proposal(None, (), lacking, (), rooms, {name: len(one.levels) for name, one in ladders.items()})
    others = {name: len(one.levels) for name, one in ladders.items() if name != chosen}
    one = ladders[chosen]
    why = _why(chosen, one, others, ready, insisted=runtime is not None)
    return Proposal(chosen, one.levels, why, one.left_out, rooms, others, one.tight)


def _order(model: Model) -> tuple[int, str, str]:
    return _rounded(model.serving_bytes or 0), model.name, model.url or ""


def _rounded(size: int) -> int:
    return -(-size // STEP) * STEP


def _room(resource: str, part: Usage, policy: Policy) -> Room:
    share, most = (KEPT_SHARE, KEPT_MOST) if resource == RAM else (GPU_KEPT_SHARE, GPU_KEPT_MOST)
    at_most, scale = policy.scale_at - policy.band, policy.scale_of(resource)
    limit = math.floor((at_most if scale is None else scale.own(at_most)) * part.total_bytes)
    kept = max(part.other_bytes, min(int(share * part.total_bytes), most))
    return Room(part.total_bytes, limit, part.other_bytes, kept)


def _ladder(models: Sequence[Model], rooms: Mapping[str, Room]) -> _Ladder:
    """The levels of one runtime's models, which come in the order of their sizes."""
    gpu = _gpu_for(models, rooms)
    footprints = {model: _footprint(model, gpu) for model in models}
    lacking = {model: _lacking(footprint, rooms) for model, footprint in footprints.items()}
    fitting = [model for model, lack in lacking.items() if lack is None]
    possible = [model for model, lack in lacking.items() if lack is not None and lack.now_only]
    chosen = _chosen(fitting, footprints, rooms) or possible[:1]
    left_out = [
        LeftOut(model.name, _unneeded(model, chosen) if lack is None else lack.words)
        for model, lack in lacking.items()
        if model not in chosen
    ]
    levels = tuple(
        Rung(name, model, quality, footprints[model])
        for name, model, quality in zip(NAMES[len(chosen)], chosen, QUALITIES, strict=False)
    )
    return _Ladder(levels, tuple(left_out), tight=bool(chosen) and not fitting)


def _routed(models: Sequence[Model]) -> _Ladder:
    """One level: of several that take nothing here, none would ever give way to another."""
    first, *rest = models
    why = f"nothing is loaded or unloaded there, so that {first.name!r} would never give way to it"
    level = Rung(NAMES[1][0], first, QUALITIES[0], {})
    return _Ladder((level,), tuple(LeftOut(model.name, why) for model in rest), tight=False)


def _gpu_for(models: Sequence[Model], rooms: Mapping[str, Room]) -> int | None:
    """The GPU that the models go onto: the largest, if a model fits there; else all are reckoned as RAM."""
    gpus = {resource: room for resource, room in rooms.items() if resource != RAM and room.total >= LEAST_GPU}
    if not gpus or models[0].runtime not in ON_GPU:
        return None
    largest = max(gpus, key=lambda resource: (gpus[resource].total, gpus[resource].free))
    fits = _rounded(models[0].serving_bytes or 0) <= gpus[largest].free
    return int(largest.removeprefix("gpu")) if fits else None


def _footprint(model: Model, gpu: int | None) -> dict[str, int]:
    size = _rounded(model.serving_bytes or 0)
    if model.gpus:
        return {gpu_resource(index): size for index in model.gpus}
    return {RAM: size} if gpu is None else {RAM: PROCESS_BYTES, gpu_resource(gpu): size}


def _lacking(footprint: Mapping[str, int], rooms: Mapping[str, Room]) -> _Lack | None:
    """What is wrong with a footprint here; None where there is room for it."""
    if not all(footprint.values()):
        return _Lack("how much it takes is not known", now_only=False)
    found = None
    for resource, size in footprint.items():
        room, what = rooms.get(resource), "RAM" if resource == RAM else resource
        if room is None:
            return _Lack(f"how much memory {what} has cannot be told", now_only=False)
        if size > room.total:
            return _Lack(f"takes {_gib(size)} of {what}, and there are {_gib(room.total)} in all", now_only=False)
        if size > room.limit:
            return _Lack(
                f"takes {_gib(size)} of {what}, where usage must stay below {_gib(room.limit)}", now_only=False
            )
        if size > room.free:
            words = f"takes {_gib(size)} of {what}, and beside your programs there is room for {_gib(room.free)}"
            found = _Lack(words, now_only=True)
    return found


def _chosen(
    fitting: Sequence[Model], footprints: Mapping[Model, Mapping[str, int]], rooms: Mapping[str, Room]
) -> list[Model]:
    """The largest, a small one, and one between."""
    if not fitting:
        return []
    sizes = {model: max(footprints[model].values()) for model in fitting}
    *below, largest = sorted(fitting, key=lambda model: sizes[model])
    below = [model for model in below if APART * sizes[model] <= sizes[largest]]
    if not below:
        return [largest]
    resource = max(footprints[largest], key=lambda one: footprints[largest][one])
    easy = [model for model in below if sizes[model] <= SMALL_SHARE * rooms[resource].free]

    def between(small: Model) -> list[Model]:
        return [model for model in below if sizes[model] >= APART * sizes[small]]

    # The best of the small ones, but one that leaves a step between where there is such a one.
    smalls = easy[::-1] or below[:1]
    small = next(filter(between, smalls), smalls[0])
    if not (steps := between(small)):
        return [small, largest]
    middle = math.sqrt(sizes[small] * sizes[largest])
    return [small, min(steps, key=lambda model: max(sizes[model] / middle, middle / sizes[model])), largest]


def _unneeded(model: Model, chosen: Sequence[Model]) -> str:
    size = model.serving_bytes or 0
    near = min(chosen, key=lambda one: abs((one.serving_bytes or 0) - size))
    return f"fits, and is not needed beside {near.name!r}"


def _why(chosen: str, one: _Ladder, others: Mapping[str, int], ready: Collection[str], *, insisted: bool) -> str:
    if not one.levels:
        return "none of the models that were found fits this machine"
    if insisted:
        return "as --runtime says"
    if not others:
        return "nothing else was found"
    better = [name for name, count in others.items() if count > len(one.levels)]
    if better:
        unready = [name for name in better if name not in ready]
        return f"what {unready[0]} needs is not installed" if unready else "it can load and unload them"
    equal = any(count == len(one.levels) for count in others.values())
    return "nothing else makes more levels" if equal else "they make the most levels"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
