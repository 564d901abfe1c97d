"""What would make room for a larger level: which programs a person could close, and which settings they could change.

Pure: what the decision knows of each level, who holds memory and what settings would save come in; suggestions come
out, ranked by their effect. Compares no usage with a threshold: what a level lacks is told by the guards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scaler.levels import GIB, RAM, Saving
from scaler.readings import Program, Survey

TOGETHER = 3
"""So many programs at the most are named to be closed together: nobody closes more for a larger model."""
MOST = 5
"""So many suggestions at the most are made: who has read the best few has chosen."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a level above the present one stands."""

    level: str
    lacking: Mapping[str, int] | None
    """How many bytes of each resource are too few for it; empty where there is room, None where that is unknown."""
    beyond: Mapping[str, int]
    """How many bytes of each resource it takes more than the level below it."""
    barred: str | None
    """Why it is not gone up to whatever the room is: the tier, battery power, heat or a pin, as a sentence."""
    waits: tuple[str, ...]
    """What stands in its way now, as sentences."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the decision knows of the levels above the present one, smallest first.

    ``other`` is what everyone else uses, in bytes of each resource that could be read; empty before the first reading.
    """

    state: str
    standings: tuple[Standing, ...]
    other: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One thing that a person could do, and the largest level that would have room then.

    Either ``programs`` are closed, or ``setting`` is how a line of the configuration would be; ``freed`` is what comes
    of it, in bytes of each resource.
    """

    text: str
    level: str
    freed: Mapping[str, int]
    programs: tuple[Program, ...] = ()
    setting: str | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """The suggestions, the best first. Without any, ``reason`` says why."""

    state: str
    lacking: Mapping[str, Mapping[str, int]]
    """What each level lacks, in bytes of each resource; only those that lack something."""
    coming: str | None
    """Which level there is room for already, without the figures of what it waits for: those are soon older than what
    is shown beside them."""
    waits: tuple[str, ...]
    """What that level waits for, as sentences."""
    suggestions: tuple[Suggestion, ...]
    reason: str | None
    unread: tuple[str, ...] = ()


def advise(room: Room, survey: Survey, savings: Mapping[str, Sequence[Saving]]) -> Advice:
    """What would make room for a larger level than there is room for now.

    ``savings``: what other settings of each level would save, the mildest change first. The largest level comes first.
    For one level, one program comes before a setting, which needs a restart, and that before several programs; of
    programs, the ones that hold least.
    """
    open_to = [standing for standing in room.standings if standing.barred is None and standing.lacking is not None]
    with_room = [position for position, standing in enumerate(open_to) if not standing.lacking]
    # Above the largest that has room: making it for a smaller one would make no difference.
    short = open_to[with_room[-1] + 1 :] if with_room else open_to
    coming = _coming(open_to[with_room[-1]]) if with_room else None
    waits = open_to[with_room[-1]].waits if with_room else ()
    single = list(_single(short, survey.programs, room.other))
    rank = {standing.level: position for position, standing in enumerate(short)}
    reached = max((rank[suggestion.level] for suggestion in single), default=-1)
    together = _together(short, reached + 1, survey.programs, room.other)

    def order(suggestion: Suggestion) -> tuple[int, int, int]:
        if suggestion.setting is not None:
            # These stay in the order in which the runtime told them, the mildest first.
            return -rank[suggestion.level], 1, 0
        return -rank[suggestion.level], 0 if suggestion in single else 2, sum(suggestion.freed.values())

    suggestions = tuple(sorted([*single, *_settings(short, savings), *together], key=order)[:MOST])
    lacking = {standing.level: standing.lacking for standing in short if standing.lacking}
    reason = None
    if not suggestions:
        reason = _how_far(room, short, survey.programs) if short else coming or _why_nothing_lacks(room)
    return Advice(room.state, lacking, coming, waits, suggestions, reason, survey.unread)


def _opened(short: Sequence[Standing], freed: Mapping[str, int]) -> Standing | None:
    """The largest level that would have room if so much came back."""
    enough = [standing for standing in short if _suffices(freed, standing.lacking or {})]
    return enough[-1] if enough else None


def _suffices(freed: Mapping[str, int], lacking: Mapping[str, int]) -> bool:
    return all(freed.get(resource, 0) >= size for resource, size in lacking.items())


def _freed(programs: Iterable[Program], other: Mapping[str, int]) -> dict[str, int]:
    """What closing programs gives back: never more than everyone else uses."""
    freed: dict[str, int] = {}
    for program in programs:
        for resource, size in program.held.items():
            if resource in other:
                freed[resource] = min(freed.get(resource, 0) + size, other[resource])
    return freed


def _single(short: Sequence[Standing], programs: Sequence[Program], other: Mapping[str, int]) -> Iterator[Suggestion]:
    for program in programs:
        freed = _freed([program], other)
        if (standing := _opened(short, freed)) is not None:
            lacking = standing.lacking or {}
            named = _named(program, programs)
            text = f"closing {named}, {sizes_in_words(program.held, lacking)}, would make room for {standing.level}"
            yield Suggestion(text, standing.level, freed, (program,))


def _settings(short: Sequence[Standing], savings: Mapping[str, Sequence[Saving]]) -> Iterator[Suggestion]:
    for standing in short:
        lacking, told = standing.lacking or {}, set()
        for saving in savings.get(standing.level, ()):
            # The mildest change that does is enough. A level that took no more than the one below it would be none.
            keeps_order = all(size < standing.beyond.get(resource, 0) for resource, size in saving.saved.items())
            if saving.setting not in told and keeps_order and _suffices(saving.saved, lacking):
                told.add(saving.setting)
                line = f"{saving.setting}: {saving.value}"
                instead = f"{line} instead of {saving.instead_of} for {standing.level}"
                text = (
                    f"{instead}, {sizes_in_words(saving.saved, lacking)} less, would make room for it after a restart"
                )
                yield Suggestion(text, standing.level, saving.saved, setting=line)


def _together(
    short: Sequence[Standing], first: int, programs: Sequence[Program], other: Mapping[str, int]
) -> Iterator[Suggestion]:
    """For each level from the position ``first`` on, which no single program makes room for, the few that do."""
    told = set()
    for standing in reversed(short[first:]):
        chosen = _fewest(programs, standing.lacking or {})
        freed = _freed(chosen, other)
        # With more than one resource the choice for a smaller level may happen to do for a larger one.
        opened = _opened(short[first:], freed)
        if opened is not None and opened.level not in told:
            told.add(opened.level)
            parts = [_named(one, programs, sizes_in_words(one.held, opened.lacking or {})) for one in chosen]
            text = f"closing {_listed(parts)} together would make room for {opened.level}"
            yield Suggestion(text, opened.level, freed, tuple(chosen))


def _fewest(programs: Sequence[Program], lacking: Mapping[str, int]) -> list[Program]:
    """The programs that together go furthest towards what is lacking, few and no larger than they must be."""
    chosen: list[Program] = []
    left = dict(lacking)

    def helps(program: Program) -> float:
        return sum(min(program.held.get(resource, 0), size) / lacking[resource] for resource, size in left.items())

    while left and len(chosen) < TOGETHER:
        remaining = [program for program in programs if program not in chosen and helps(program) > 0]
        if not remaining:
            break
        # Of those that help as much, which is all that cover the rest, the one that holds least.
        best = max(remaining, key=lambda program: (helps(program), -sum(program.held.values())))
        chosen.append(best)
        left = {
            resource: size - best.held.get(resource, 0)
            for resource, size in left.items()
            if size > best.held.get(resource, 0)
        }
    if not left:
        # What was chosen first may be needless after what came later.
        for program in tuple(chosen):
            others = [one for one in chosen if one is not program]
            if others and all(sum(one.held.get(r, 0) for one in others) >= size for r, size in lacking.items()):
                chosen = others
    return sorted(chosen, key=lambda program: -sum(program.held.values()))


def _how_far(room: Room, short: Sequence[Standing], programs: Sequence[Program]) -> str:
    """How far it goes, where nothing makes room for any level."""
    nearest = min(short, key=lambda standing: sum((standing.lacking or {}).values()))
    lacking = nearest.lacking or {}
    lacks = f"{nearest.level} lacks {sizes_in_words(lacking, lacking)}"
    closed = _fewest(programs, lacking)
    if not closed:
        return f"{lacks}, and no program that could be closed holds enough of it to matter"
    freed = _freed(closed, room.other)
    left = {resource: size - freed.get(resource, 0) for resource, size in lacking.items()}
    names = _listed([_named(program, programs) for program in closed])
    holding = f"without {names}, which hold{'s' * (len(closed) == 1)} most"
    return (
        f"{lacks}, and would still lack {sizes_in_words(left, [r for r, size in left.items() if size > 0])} {holding}"
    )


def _coming(standing: Standing) -> str:
    what = "it only waits" if standing.waits else "it comes with the next reading"
    return f"there is room for {standing.level} already; {what}"


def _why_nothing_lacks(room: Room) -> str:
    if not room.other:
        return "this machine was not read yet"
    if not room.standings:
        return f"{room.state} is the largest level already"
    open_to = [standing for standing in room.standings if standing.barred is None]
    if open_to:
        return f"what {open_to[0].level} lacks is unknown, since a sensor is missing"
    return str(room.standings[0].barred)


def _named(program: Program, every: Sequence[Program], size: str = "") -> str:
    """The program's name, with its process where the name alone does not tell which is meant, and its size if asked."""
    ambiguous = sum(one.name == program.name for one in every) > 1
    details = [f"process {program.pid}"] * ambiguous + [size] * bool(size)
    return f"{program.name} ({', '.join(details)})" if details else program.name


def _listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def sizes_in_words(held: Mapping[str, int], concerned: Iterable[str]) -> str:
    """How much of each resource that matters: ``3.1 GiB`` of RAM, ``6.2 GiB of gpu0``."""
    return _listed(
        [
            f"{_size(held.get(resource, 0))}{'' if resource == RAM else f' of {resource}'}"
            for resource in concerned
            if held.get(resource, 0)
        ]
    )


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 1024**2:.0f} MiB"
