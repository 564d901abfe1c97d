"""Requests said as every runtime takes them: the same meaning, or a refusal before anything is waited for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.errors import RequestRejected
from scaler.normal_form import GRAMMAR_DEPTH, GRAMMAR_RULES, REFERENCES, normal_form


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


LOOK, SMELL, HEAR = map(function, ("look", "smell", "hear"))
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "tools": [LOOK, SMELL, HEAR]}


def allowed(mode: str, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("choice", "tools", "mode"),
    [
        (LOOK, [LOOK], "required"),
        (allowed("auto", HEAR, LOOK), [LOOK, HEAR], "auto"),
        (allowed("required", SMELL), [SMELL], "required"),
        ("required", [LOOK, SMELL, HEAR], "required"),
        (None, [LOOK, SMELL, HEAR], None),
    ],
)
def test_a_choice_among_tools_leaves_those_that_were_chosen(choice: Any, tools: list[Any], mode: str | None) -> None:
    """llama.cpp takes no notice of names in a choice: the model would call whichever it likes."""
    plain = normal_form({**ASK, "tool_choice": choice})
    assert (plain["tools"], plain.get("tool_choice")) == (tools, mode)


@pytest.mark.parametrize(
    ("prompt", "as_asked"), [(["Once"], "Once"), (["Once", "Twice"], ["Once", "Twice"]), ([7], [7]), ([[7]], [[7]])]
)
def test_a_list_of_one_text_is_that_text(prompt: Any, as_asked: Any) -> None:
    """LangChain sends every prompt so; Ollama takes no list, and of one no level goes on with what another began."""
    assert normal_form({"prompt": prompt}) == {"prompt": as_asked}


def test_a_choice_of_no_tool_offers_none() -> None:
    """There is nothing that could be called."""
    assert normal_form({**ASK, "tool_choice": allowed("auto")}) == {"messages": ASK["messages"]}


@pytest.mark.parametrize(
    ("stop", "left"),
    [("", None), ([""], None), (["", "END"], ["END"]), ("END", "END"), (["a", "b"], ["a", "b"]), (None, None)],
)
def test_an_empty_stop_string_stops_nothing(stop: Any, left: Any) -> None:
    """To llama.cpp every answer begins with it, and ends there."""
    assert normal_form({**ASK, "stop": stop}).get("stop") == left


def chain(length: int) -> dict[str, Any]:
    """A schema whose definitions refer to one another."""
    definitions = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tool_choice": function("taste")}, "'tool_choice' names 'taste', which is none of 'tools'"),
        ({"tool_choice": {"type": "mcp"}}, "of the type 'mcp'; possible are function and allowed_tools"),
        ({"tool_choice": {"type": "function"}}, "must name each function"),
        ({"tool_choice": allowed("maybe", LOOK)}, "must say the 'mode'"),
        ({"tool_choice": allowed("auto", 3)}, "must name each function"),
        ({"tool_choice": "maybe"}, "must be none, auto, required or an object"),
        ({"tool_choice": 3}, "must be none, auto, required or an object"),
        ({"grammar": "root ::= " + "(" * 101 + '"a"' + ")" * 101}, f"more than {GRAMMAR_DEPTH} deep"),
        ({"grammar": 'root ::= "a"\n' * (GRAMMAR_RULES + 1)}, f"more than {GRAMMAR_RULES} rules"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": chain(REFERENCES)}}},
            f"'response_format' must not have more than {REFERENCES} references",
        ),
        ({"tools": [LOOK, {**SMELL, "parameters": chain(REFERENCES)}]}, r"'tools\[1\]' must not have more"),
    ],
)
def test_what_cannot_be_said_otherwise_is_refused(wrong: dict[str, Any], words: str) -> None:
    """By its name: a choice that comes to nothing, and what a runtime's process would die of."""
    with pytest.raises(RequestRejected, match=words):
        normal_form({**ASK, **wrong})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("stop", "tools", "tool_choice", "grammar", "json_schema"), JSON))
)
def test_whatever_comes_is_said_or_refused(request: dict[str, Any]) -> None:
    """A program that embeds scaler has had nothing checked before. What is said once stays as it is."""
    try:
        plain = normal_form(request)
    except RequestRejected:
        return
    assert normal_form(plain) == plain
