"""What a JSON schema says: the part of it that describes a value, and in words what that takes.

The messages about a fault are made of it, and the page of the configuration. Knows nothing of what any key means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Node = Mapping[str, Any]
"""A part of a JSON schema, or all of it."""

_TYPES = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_LEAST = {"exclusiveMinimum": "above", "minimum": "from", "minItems": "of at least", "minLength": "of at least"}
_MOST = {"exclusiveMaximum": "below", "maximum": "up to"}
_NOT_EMPTY = {"minItems": "a list of at least one", "minLength": "some text"}


def expected(schema: Node, node: Node) -> str:
    """What a part of a JSON schema takes."""
    if "anyOf" in node:
        return " or ".join(expected(schema, resolved(schema, choice)) for choice in node["anyOf"])
    if "oneOf" in node:
        return "a mapping"
    if "const" in node:
        return repr(node["const"])
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    if node.get("format") == "uri":
        return "an http or https URL"
    if "pattern" in node:
        return f"text that matches {node['pattern']}"
    for bound, words in _NOT_EMPTY.items():
        if node.get(bound) == 1:
            return words
    kind = "a path" if node.get("format") == "path" else _TYPES[node["type"]]
    bounds = [f"{words} {node[bound]:,}" for bound, words in {**_LEAST, **_MOST}.items() if bound in node]
    return f"{kind} {' and '.join(bounds)}".rstrip()


def located(schema: Node, where: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], Node, Node]:
    """The key that pydantic means by ``where``, and the parts of a JSON schema that describe it and what is around it.

    Empty where the schema says nothing. Where a value may be of several kinds, pydantic names the kind that it tried.
    """
    key: list[str | int] = []
    around = node = resolved(schema, schema)
    for part in where:
        if (kind := kinds(schema, node)[1].get(part)) is not None:
            node = kind
            continue
        if "anyOf" in node and isinstance(part, str) and not properties(schema, node):
            continue
        around = node
        node = _items(schema, node) if isinstance(part, int) else properties(schema, node).get(part, {})
        node = resolved(schema, node)
        key.append(part)
    return tuple(key), node, around


def kinds(schema: Node, node: Node) -> tuple[str, Mapping[Any, Node]]:
    """The key that tells several kinds of a mapping apart, and the kinds by its value; none for a plain mapping."""
    choices = [resolved(schema, choice) for choice in node.get("oneOf", ())]
    told = [
        (name, one["const"], kind) for kind in choices for name, one in kind["properties"].items() if "const" in one
    ]
    return told[0][0] if told else "", {value: kind for _, value, kind in told}


def properties(schema: Node, node: Node) -> Mapping[str, Node]:
    """The keys of a mapping, also of one that may be left out."""
    return {name: value for choice in _choices(schema, node) for name, value in choice.get("properties", {}).items()}


def takes_url(schema: Node, node: Node) -> bool:
    """Whether a URL may stand there."""
    return any(choice.get("format") == "uri" for choice in _choices(schema, node))


def resolved(schema: Node, node: Node) -> Node:
    """A part of a JSON schema with what it refers to in its place."""
    if "$ref" in node:
        described = {name: value for name, value in node.items() if name != "$ref"}
        return {**schema["$defs"][node["$ref"].rpartition("/")[2]], **described}
    return node


def _items(schema: Node, node: Node) -> Node:
    return next((choice["items"] for choice in _choices(schema, node) if "items" in choice), {})


def _choices(schema: Node, node: Node) -> list[Node]:
    return [resolved(schema, choice) for choice in node.get("anyOf", (node,))]
