"""The machine's picture: complete, true to the table, readable for mermaid and Graphviz whatever levels are called."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler import diagram, paths
from scaler.cli.diagram import documentation
from scaler.guards import GUARDS
from scaler.levels import GIB, RAM, Level
from scaler.machine import Row, table
from scaler.policy import Policy
from scaler.settings import load_settings
from scaler.tiers import HardwareTierDetector

DOCS = Path(__file__).parent.parent / "docs"
NAMES = ("small", "medium", "large")
# Neither YAML nor a terminal lets control characters through.
TEXT = st.text(st.characters(exclude_categories=("C", "Z"), max_codepoint=0xFFFF), min_size=1, max_size=12)


def levels(*names: str) -> list[Level]:
    return [Level(name, {RAM: position * GIB}, 0.5, 1.0) for position, name in enumerate(names, start=1)]


def mermaid_arrows(text: str) -> dict[tuple[str, str], str]:
    """The label of each arrow, by the states' ids."""
    return {(a, b): label for a, b, label in re.findall(r"^    (\w+) --> (\w+): (.*)$", text, re.MULTILINE)}


@given(st.integers(1, 6))
def test_every_row_of_the_table_is_told_by_exactly_one_rule(count: int) -> None:
    """A row that no rule tells is a transition that nobody reviews."""
    names = tuple(f"level{number}" for number in range(count))
    told = [(rule.trigger, rule.when, rule.unless) for rule in diagram.rules(names)]
    assert len(told) == len(set(told))
    assert set(told) == {(row.trigger, row.when, row.unless) for row in table(names)}


@given(st.integers(2, 6))
def test_a_rule_says_which_states_it_joins_in_words_that_hold_for_any_ladder(count: int) -> None:
    """The rules of a ladder of six are those of a ladder of two."""
    names = tuple(f"level{number}" for number in range(count))
    ways = [(rule.trigger, rule.when, rule.ways) for rule in diagram.rules(names)]
    assert ways == [(rule.trigger, rule.when, rule.ways) for rule in diagram.rules(("a", "b"))]
    assert not [words for _, _, words in ways if "level0" in words]


def test_rules_stand_in_the_order_in_which_they_are_tried() -> None:
    """The first that agrees is taken, so the order is part of the rule."""
    numbers = {(rule.trigger, rule.when, rule.unless): rule.number for rule in diagram.rules(NAMES)}
    for source in ("off", *NAMES):
        for trigger in {row.trigger for row in table(NAMES)}:
            tried = [
                numbers[row.trigger, row.when, row.unless]
                for row in table(NAMES)
                if row.source == source and row.trigger == trigger
            ]
            assert tried == sorted(tried)


@given(st.integers(1, 6))
def test_there_is_one_arrow_for_each_pair_of_states_that_a_reading_can_join(count: int) -> None:
    """With every rule that leads there, in words or by number."""
    names = tuple(f"level{number}" for number in range(1, count + 1))
    arrows = mermaid_arrows(diagram.mermaid(levels(*names), Policy(), "tier"))
    observed = [row for row in table(names) if row.trigger == "observe"]
    assert set(arrows) == {(row.source, row.dest) for row in observed}
    numbers = {(rule.trigger, rule.when, rule.unless): rule.number for rule in diagram.rules(names)}
    for (source, dest), label in arrows.items():
        told = [int(n) for some in re.findall(r"rules? ([\d, ]+)", label) for n in some.split(",")]
        leading = {numbers["observe", r.when, r.unless] for r in observed if (r.source, r.dest) == (source, dest)}
        assert set(told) == leading


def test_arrows_between_neighbours_say_their_conditions_with_the_policys_figures() -> None:
    """A reviewer reads figures, not names."""
    policy = Policy(scale_at=0.7, band=0.1, critical_at=0.9, dwell_s=120)
    arrows = mermaid_arrows(diagram.mermaid(levels(*NAMES), policy, "tier"))
    climb, descent = arrows["level1", "level2"], arrows["level2", "level1"]
    for row in table(NAMES):
        if (row.trigger, row.source, row.dest) == ("observe", "small", "medium"):
            for name in row.when:
                assert GUARDS[name].sentence.format(**asdict(policy)).replace("%", " %") in html.unescape(
                    re.sub(r"#(\d+);", r"&#\1;", climb)
                )
            told = html.unescape(re.sub(r"#(\d+);", r"&#\1;", climb))
            for name in row.unless:
                assert f"not {GUARDS[name].sentence.format(**asdict(policy))}".replace("%", " %") in told
            assert told.count("not ") == len(row.unless)
    assert "120 s" in climb
    assert "70 %" in descent
    assert "90 %" in descent


def test_conditions_that_differ_in_one_guard_are_joined() -> None:
    """Over the limit or going to be: otherwise the same."""
    text = diagram.mermaid(levels(*NAMES), Policy(), "tier")
    assert (
        "rules 3, 4#58;<br/>usage #62; 80 % for up to 4 s or rising to 99.5 % within 8 s,<br/>usage there ≤ 80 %"
        in text
    )


def test_a_changed_table_changes_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in it is written by hand, so nothing can be out of date."""
    rows = (Row("observe", "a", "b", ("pinned",)), Row("shake", "b", "a", (), ("calm",)), Row("shake", "a", None))
    monkeypatch.setattr(diagram, "table", lambda _: rows)
    text = diagram.mermaid(levels("a", "b"), Policy(), "tier")
    assert mermaid_arrows(text) == {("level1", "level2"): "rule 1#58;<br/>a person asks for it"}
    assert "shake#58; level → lower level, if not memory stalls ≤ 10 %" in text
    assert "shake#58; a → a" in text


def test_states_show_what_they_take() -> None:
    """Of each kind of memory; a size that is not known is left out."""
    ladder = [Level("a", {}, 0.5, 1.0), Level("b", {RAM: 2 * GIB, "gpu1": 3 * GIB // 2}, 0.5, 1.0)]
    text = diagram.mermaid(ladder, Policy(), "tier")
    assert '    state "a" as level1\n' in text
    assert '    state "b<br/>2 GiB<br/>1.5 GiB of gpu1" as level2\n' in text


@given(st.lists(TEXT, min_size=1, max_size=4, unique=True))
def test_a_level_may_have_any_name_without_breaking_mermaid(names: list[str]) -> None:
    """What could be syntax is written as a character's code, and every line is one that mermaid knows."""
    plain = r"(?:[^\"#;:<>{}\[\]|&`\\]|#\d+;|<br/>)*"
    lines = diagram.mermaid(levels(*names), Policy(), "tier").splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    direction BT"]
    for line in lines[2:]:
        assert re.fullmatch(
            rf'    state "{plain}" as \w+|    \w+ --> \w+: {plain}|    note right of \w+|        {plain}|    end note',
            line,
        ), line
    shown = [
        html.unescape(re.sub(r"#(\d+);", r"&#\1;", name)) for name in re.findall(r'state "(.*?)<br/>', "\n".join(lines))
    ]
    assert shown == names


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@settings(max_examples=15)
@given(st.lists(TEXT, min_size=1, max_size=3, unique=True))
def test_a_level_may_have_any_name_without_breaking_graphviz(names: list[str]) -> None:
    """Graphviz itself draws it, and the names come out as they went in."""
    text = diagram.dot(levels(*names), Policy(), "tier")
    drawn = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True).stdout.decode()
    shown = [html.unescape(word) for word in re.findall(r"<text[^>]*>(.*?)</text>", drawn)]
    assert [word for word in shown if word in names]
    assert set(names) <= set(shown)


def test_the_documented_machine_is_the_one_that_the_code_runs_on() -> None:
    """docs/diagram.md is generated; nobody has to trust that somebody kept it up to date."""
    assert (DOCS / "diagram.md").read_text("utf-8") == documentation(), (
        "docs/diagram.md is out of date; write it anew: scaler diagram --format markdown --output docs/diagram.md"
    )


def test_the_documented_figures_are_the_shipped_ones() -> None:
    """In docs/how-it-decides.md, the one page about them that is written by hand."""
    tiers = HardwareTierDetector(paths.shipped_config() / "tiers").tiers
    policies = [asdict(load_settings(shipped=True).policy_on(tier)) for tier in tiers]
    page = (DOCS / "how-it-decides.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+(?: to [\d.]+)?) (%|s) \|$", page, re.MULTILINE)
    assert len(rows) > 10
    for name, documented, unit in rows:
        shipped = sorted({round(policy[name] * (100 if unit == "%" else 1), 6) for policy in policies})
        assert documented == " to ".join(f"{value:g}" for value in dict.fromkeys((shipped[0], shipped[-1]))), name
