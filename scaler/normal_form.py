"""A request as a runtime takes it: what OpenAI allows and llama.cpp does not know is said in other words.

Pure: requests in, requests out, RequestRejected for what cannot be said otherwise, or would end the runtime. Every
dialect's requests come by here, before anything is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from scaler.errors import RequestRejected

GRAMMAR_DEPTH = 100
"""llama.cpp dies of a grammar whose brackets are nested 25,000 deep (20,000 it took); people's are a few deep."""
GRAMMAR_RULES = 10_000
"""It dies of a chain of 100,000 rules (50,000 it took)."""
REFERENCES = 1000
"""It dies of a JSON schema with a chain of 4,000 references (2,000 it took)."""
CHOICES = ("none", "auto", "required")


def normal_form(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request that means the same. Raises RequestRejected."""
    _check_grammar(request)
    return _with_choice(_without_empty_stops(_with_one_prompt(request)))


def answers_asked(request: Mapping[str, Any]) -> int:
    """How many answers a request asks for: of each prompt so many; a prompt may be a list of tokens as well."""
    number, prompts = request.get("n"), request.get("prompt")
    several = len(prompts) if isinstance(prompts, list) and not all(isinstance(one, int) for one in prompts) else 1
    # Never none: an answer that is cut would be taken for a whole one.
    return several * (max(1, number) if isinstance(number, int) else 1)


def _check_grammar(request: Mapping[str, Any]) -> None:
    grammar = request.get("grammar")
    if isinstance(grammar, str):
        depths = accumulate((character == "(") - (character == ")") for character in grammar)
        if max(depths, default=0) > GRAMMAR_DEPTH:
            raise RequestRejected(f"'grammar' must not nest its brackets more than {GRAMMAR_DEPTH} deep")
        if grammar.count("::=") > GRAMMAR_RULES:
            raise RequestRejected(f"'grammar' must not have more than {GRAMMAR_RULES} rules")
    for key in ("response_format", "json_schema"):
        _check_references(key, request.get(key))
    for number, tool in enumerate(_tools(request)):
        _check_references(f"tools[{number}]", tool)


def _check_references(key: str, schema: Any) -> None:
    if sum(1 for _ in _references(schema)) > REFERENCES:
        raise RequestRejected(f"{key!r} must not have more than {REFERENCES} references ($ref) in its schema")


def _references(schema: Any) -> Iterator[None]:
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            if "$ref" in one:
                yield
            left += one.values()
        elif isinstance(one, list):
            left += one


def _with_one_prompt(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A list of one prompt, as LangChain sends it, as that prompt: of a list no other level can go on with the text."""
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        return {**request, "prompt": prompt[0]}
    return request


def _without_empty_stops(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """An empty stop string would end an answer before it begins; to OpenAI it is none."""
    stop = request.get("stop")
    if stop != "" and not (isinstance(stop, list) and "" in stop):
        return request
    others = {key: value for key, value in request.items() if key != "stop"}
    kept = [one for one in stop if one != ""]
    return {**others, "stop": kept} if kept else others


def _with_choice(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A choice among tools by their names, which llama.cpp takes no notice of, as these tools alone."""
    choice = request.get("tool_choice")
    if choice is None or choice in CHOICES:
        return request
    if not isinstance(choice, Mapping):
        raise RequestRejected(f"'tool_choice' must be {', '.join(CHOICES)} or an object")
    mode, chosen = _chosen(choice)
    named = {_name_of(tool): tool for tool in _tools(request)}
    if unknown := [name for name in chosen if name not in named]:
        raise RequestRejected(f"'tool_choice' names {unknown[0]!r}, which is none of 'tools'")
    others = {key: value for key, value in request.items() if key not in ("tools", "tool_choice")}
    tools = [tool for name, tool in named.items() if name in chosen]
    return {**others, "tools": tools, "tool_choice": mode} if tools else others


def _chosen(choice: Mapping[str, Any]) -> tuple[str, list[str]]:
    """How tools are to be called (`CHOICES`), and which."""
    kind = choice.get("type")
    if kind == "function":
        return "required", [_name_of(choice)]
    if kind != "allowed_tools":
        raise RequestRejected(f"'tool_choice' is of the type {kind!r}; possible are function and allowed_tools")
    allowed = choice.get("allowed_tools")
    tools, mode = (allowed.get("tools"), allowed.get("mode", "auto")) if isinstance(allowed, Mapping) else (None, None)
    if not isinstance(tools, list) or mode not in CHOICES:
        raise RequestRejected("'tool_choice' must say the 'mode' of its 'allowed_tools', and list them as 'tools'")
    return mode, [_name_of(tool) for tool in tools]


def _tools(request: Mapping[str, Any]) -> list[Any]:
    tools = request.get("tools")
    return tools if isinstance(tools, list) else []


def _name_of(tool: Any) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RequestRejected("'tools' and 'tool_choice' must name each function: {function: {name: NAME}}")
    return name
