"""The transition table as a picture and as words, with a policy's figures in them.

Owns how rows become rules and arrows, and their forms: mermaid, Graphviz' language and Markdown. All of it is derived
from `scaler.machine.table` and the guards' sentences. Pure; knows nothing of files, configurations or readings.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from itertools import combinations, pairwise
from typing import TypeVar

from scaler.guards import GUARDS
from scaler.levels import GIB, OFF, RAM, Level
from scaler.machine import Row, table
from scaler.policy import Policy

OBSERVE = "observe"
"""The trigger whose rows are drawn as arrows; the others, which join nearly all states, are told in words."""

_RELATIONS: Sequence[tuple[str, Callable[[int, int], bool]]] = (
    ("off → level", lambda here, there: here < 0 <= there),
    ("level → off", lambda here, there: there < 0 <= here),
    ("level → lower level", lambda here, there: 0 <= there < here),
    ("level → higher level", lambda here, there: 0 <= here < there),
    ("state → other level", lambda here, there: there >= 0 and here != there),
    ("state stays", lambda here, there: here == there),
)
"""What a rule says in place of pairs of states, where it is exactly those; -1 is off, 0 the smallest level."""

_SUBJECTS = {"from": "the level left", "to": "the level gone to"}


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows that differ in their states only. ``order`` says in which order their destinations are tried."""

    number: int
    trigger: str
    ways: str
    order: str
    when: tuple[str, ...]
    unless: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Rules joined: of each of ``groups`` one guard must hold, and none of ``unless``."""

    numbers: tuple[int, ...]
    groups: tuple[tuple[str, ...], ...]
    unless: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Arrow:
    """All the rows of `OBSERVE` between two states, by their positions; 0 is off."""

    here: int
    there: int
    label: tuple[str, ...]


def rules(names: tuple[str, ...]) -> tuple[Rule, ...]:
    """The table for levels of these names, smallest first; the rules of a trigger in the order of their trial."""
    found: list[Rule] = []
    for trigger, rows in _grouped(table(names), lambda row: row.trigger).items():
        alike = _grouped(rows, _conditions)
        earlier: dict[_Conditions, set[_Conditions]] = {conditions: set() for conditions in alike}
        for tried in _grouped(rows, lambda row: row.source).values():
            ranked = list(_grouped(tried, _conditions))
            for before, after in pairwise(ranked):
                earlier[after].add(before)
        for when, unless in TopologicalSorter(earlier).static_order():
            some = alike[when, unless]
            found.append(Rule(len(found) + 1, trigger, _ways(names, some), _order(names, some), when, unless))
    return tuple(found)


def mermaid(levels: Sequence[Level], policy: Policy, title: str) -> str:
    """The machine as a state diagram of mermaid; ``levels`` smallest first, an empty footprint is not shown."""
    states = _states(levels)
    ids = (OFF, *(f"level{position}" for position in range(1, len(states))))
    lines = ["stateDiagram-v2", "    direction BT"]
    lines += [f'    state "{_mermaid_text(label)}" as {name}' for name, label in zip(ids, states, strict=True)]
    for arrow in _arrows(levels, policy):
        lines.append(f"    {ids[arrow.here]} --> {ids[arrow.there]}: {_mermaid_text(arrow.label)}")
    lines.append(f"    note right of {ids[-1]}")
    lines += [f"        {_mermaid_text([line])}" for line in (title, *_told(levels, policy))]
    lines.append("    end note")
    return "\n".join((*lines, ""))


def dot(levels: Sequence[Level], policy: Policy, title: str) -> str:
    """The machine in the language of Graphviz; ``levels`` smallest first, an empty footprint is not shown."""
    states = _states(levels)
    told = "".join(f'<tr><td align="left">{html.escape(line)}</td></tr>' for line in _told(levels, policy))
    lines = [
        "digraph scaler {",
        "  graph [rankdir=BT nodesep=0.6 ranksep=0.8 labelloc=t fontname=Helvetica];",
        f"  graph [label={_dot_text([title])}];",
        '  node [shape=box style="rounded,filled" fillcolor="#eef3f8" fontname=Helvetica];',
        "  edge [fontname=Helvetica fontsize=10];",
        f'  told [shape=plaintext style="" fontsize=10 label=<<table border="0">{told}</table>>];',
    ]
    lines += [f"  s{position} [label={_dot_text(label)}];" for position, label in enumerate(states)]
    for arrow in _arrows(levels, policy):
        colour = _UP if arrow.here < arrow.there else _DOWN
        # From the lower state to the higher one whichever way the arrow points, so that the ladder stands upright.
        low, high = sorted((arrow.here, arrow.there))
        head = "forward" if low == arrow.here else "back"
        look = f'dir={head} color="{colour}" fontcolor="{colour}"'
        lines.append(f"  s{low} -> s{high} [{look} label={_dot_text(arrow.label, end=_LEFT)}];")
    return "\n".join((*lines, "}", ""))


def markdown_rules(names: tuple[str, ...]) -> str:
    """Every rule of the table, with the guards by their names, as a Markdown table."""
    return _markdown_table(
        ("rule", "trigger", "from → to", "tried", "conditions"),
        (
            (
                str(rule.number),
                f"`{rule.trigger}`",
                rule.ways,
                rule.order,
                ", ".join([f"`{name}`" for name in rule.when] + [f"not `{name}`" for name in rule.unless]),
            )
            for rule in rules(names)
        ),
    )


def markdown_guards(names: tuple[str, ...], policies: Mapping[str, Policy]) -> str:
    """Every guard that the table uses, in words with the figures of each policy, as a Markdown table."""
    used = dict.fromkeys(name for rule in rules(names) for name in (*rule.when, *rule.unless))
    return _markdown_table(
        ("condition", "asked of", *policies),
        (
            (f"`{name}`", _SUBJECTS[GUARDS[name].subject], *(_sentence(name, policy) for policy in policies.values()))
            for name in used
        ),
    )


# ---------------------------------------------------------------------- rows to rules

_Conditions = tuple[tuple[str, ...], tuple[str, ...]]
_Key = TypeVar("_Key")


def _conditions(row: Row) -> _Conditions:
    return row.when, row.unless


def _grouped(rows: Iterable[Row], key: Callable[[Row], _Key]) -> dict[_Key, list[Row]]:
    """The rows by ``key``, groups and rows in the order of the table."""
    groups: dict[_Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _positions(names: tuple[str, ...], row: Row) -> tuple[int, int]:
    states = (OFF, *names)
    here = states.index(row.source)
    return here - 1, (here if row.dest is None else states.index(row.dest)) - 1


def _ways(names: tuple[str, ...], rows: Iterable[Row]) -> str:
    """Which states the rows lead from and to, in words if there are any for exactly these."""
    taken = {_positions(names, row) for row in rows}
    every = range(-1, len(names))
    for words, related in _RELATIONS:
        if taken == {(here, there) for here in every for there in every if related(here, there)}:
            return words
    states = (OFF, *names)
    return ", ".join(f"{states[here + 1]} → {states[there + 1]}" for here, there in sorted(taken))


def _order(names: tuple[str, ...], rows: Iterable[Row]) -> str:
    """In which order the destinations of one source are tried; nothing where there is only one of them."""
    found = set()
    for tried in _grouped(rows, lambda row: row.source).values():
        positions = [_positions(names, row)[1] for row in tried]
        if len(positions) > 1:
            orders = {"smallest first": sorted(positions), "largest first": sorted(positions, reverse=True)}
            found.add(next((words for words, order in orders.items() if order == positions), "as the table has it"))
    return " or ".join(sorted(found))


# ---------------------------------------------------------------------- rules to words


def _sentence(guard: str, policy: Policy) -> str:
    return GUARDS[guard].sentence.format(**asdict(policy)).replace("%", " %")


def _told(levels: Sequence[Level], policy: Policy) -> Iterator[str]:
    """The rules that are no arrows, a line each."""
    for rule in rules(tuple(level.name for level in levels)):
        if rule.trigger != OBSERVE:
            conditions = [_sentence(name, policy) for name in rule.when]
            conditions += [f"not {_sentence(name, policy)}" for name in rule.unless]
            parts = [rule.ways, rule.order, f"if {' and '.join(conditions)}" if conditions else ""]
            yield f"rule {rule.number}, {rule.trigger}: {', '.join(part for part in parts if part)}"


def _arrows(levels: Sequence[Level], policy: Policy) -> list[_Arrow]:
    """Climbs before descents and short ones before long ones: layouts then put the smallest level at one end."""
    names = tuple(level.name for level in levels)
    numbers = {(rule.when, rule.unless): rule.number for rule in rules(names) if rule.trigger == OBSERVE}
    grouped = _grouped(table(names), lambda row: (row.trigger, *_positions(names, row)))
    arrows = []
    for (trigger, here, there), rows in grouped.items():
        if trigger != OBSERVE:
            continue
        choices = _joined(
            [_Choice((numbers[_conditions(row)],), tuple((name,) for name in row.when), row.unless) for row in rows]
        )
        # An arrow that passes over a level says by number what the one between neighbours says in words.
        label = (
            [line for choice in choices for line in _worded(choice, policy)]
            if abs(here - there) == 1
            else [_numbered([number for choice in choices for number in choice.numbers])]
        )
        arrows.append(_Arrow(here + 1, there + 1, tuple(label)))
    return sorted(arrows, key=lambda arrow: (arrow.there < arrow.here, abs(arrow.there - arrow.here), arrow.here))


def _joined(choices: list[_Choice]) -> list[_Choice]:
    """Choices that differ in one guard as one choice, until no two do."""
    for one, other in combinations(choices, 2):
        if one.unless != other.unless or len(one.groups) != len(other.groups):
            continue
        differing = [place for place, (a, b) in enumerate(zip(one.groups, other.groups, strict=True)) if a != b]
        if len(differing) == 1:
            place = differing[0]
            either = one.groups[place] + other.groups[place]
            groups = (*one.groups[:place], either, *one.groups[place + 1 :])
            both = _Choice(one.numbers + other.numbers, groups, one.unless)
            return _joined([both if choice is one else choice for choice in choices if choice is not other])
    return choices


def _worded(choice: _Choice, policy: Policy) -> list[str]:
    """A choice as lines, a condition each."""
    conditions = [" or ".join(_sentence(name, policy) for name in group) for group in choice.groups]
    conditions += [f"not {_sentence(name, policy)}" for name in choice.unless]
    return [f"{_numbered(choice.numbers)}:", *(f"{condition}," for condition in conditions[:-1]), conditions[-1]]


def _numbered(numbers: Sequence[int]) -> str:
    return ("rule " if len(numbers) == 1 else "rules ") + ", ".join(map(str, numbers))


def _states(levels: Sequence[Level]) -> list[list[str]]:
    """The states from off upwards, each as the lines that describe it."""
    return [
        [OFF],
        *([level.name, *(_size(resource, size) for resource, size in level.footprint.items())] for level in levels),
    ]


def _size(resource: str, size: int) -> str:
    return f"{size / GIB:.3g} GiB" + ("" if resource == RAM else f" of {resource}")


# ---------------------------------------------------------------------- words to text


def _mermaid_text(lines: Iterable[str]) -> str:
    """Lines as one text of mermaid, where everything that it or HTML could take for syntax is a character's code."""
    return "<br/>".join(
        re.sub(r"[^\w\s.,=→≤≥%/()-]", lambda match: f"#{ord(match[0])};", " ".join(line.split())) for line in lines
    )


_CENTRED, _LEFT = r"\n", r"\l"
_DOT_CODES = {"\\": r"\\", '"': r"\"", "&": "&amp;"}
_DOT_SYNTAX = re.compile(r'[\\"&]')
_UP, _DOWN = "#2a7a3b", "#b3402a"


def _dot_text(lines: Iterable[str], *, end: str = _CENTRED) -> str:
    """Lines as a quoted text of Graphviz; ``end`` ends and aligns each."""
    plain = (_DOT_SYNTAX.sub(lambda match: _DOT_CODES[match[0]], " ".join(line.split())) for line in lines)
    return f'"{"".join(line + end for line in plain)}"'


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"
