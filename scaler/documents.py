"""One YAML file: read within bounds, checked against a schema, its faults told with file, line and key.

Owns how YAML becomes plain data that remembers its lines, and the form of every message about a fault in it.
Knows nothing of what any key means.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from scaler import schema_words
from scaler.errors import ConfigError
from scaler.yaml_mistakes import mistake

T = TypeVar("T")

Key = tuple[str | int, ...]
"""The way from the top of a document to a value: ``("ladder", 0, "name")``."""

JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
"""The dialect of JSON schema that is written."""
MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_VALUES = 10_000
"""Counted with every alias written out: a file of a few lines can otherwise stand for billions of values."""
MAX_DIGITS = 100
"""Past some thousand digits Python refuses to write a number, in a message too."""
MAX_SHOWN = 60
"""The characters of a value that a message shows."""
MAX_FAULTS = 10
"""So many faults are told at once."""


class Section(BaseModel):
    """A mapping in the YAML: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong in a document: where, and what is wrong and expected instead, in one sentence."""

    key: Key
    sentence: str


@dataclass(frozen=True)
class Document:
    """A YAML mapping as plain data, which knows on which line each of its keys stands."""

    name: str
    data: Mapping[str, Any]
    lines: Mapping[Key, int]
    misread: tuple[Fault, ...] = ()
    """What cannot be used whatever it means, such as a key that stands there twice. It is for whoever checks the data
    to tell, with all else that is wrong."""

    def faults(self, schema: TypeAdapter[T], error: ValidationError, at: Key = ()) -> list[Fault]:
        """What pydantic found wrong, in words for a person; ``at`` is where the checked data stands."""
        described = _described(schema)
        details = error.errors(include_url=False)
        found = dict.fromkeys(_fault(described, detail, at, self.data) for detail in details)
        # Of a list with a fault inside, pydantic also says that it is too short, or no plain value.
        around = {fault.key[:end] for fault in found for end in range(len(fault.key))}
        return [fault for fault in found if fault.key not in around]

    def error(self, *faults: Fault) -> ConfigError:
        """One message for all the faults, in the order of their lines; but for what follows from what was misread."""
        spoilt = {fault.key for fault in self.misread}
        told = {
            fault
            for fault in faults
            if fault in self.misread or not any(fault.key[: len(key)] == key for key in spoilt)
        }
        ordered = sorted(told, key=lambda fault: (self.line(fault.key), dotted(fault.key), fault.sentence))
        lines = [f"{self.place(fault.key)}{fault.sentence}" for fault in ordered[:MAX_FAULTS]]
        if len(ordered) > MAX_FAULTS:
            lines.append(f"{self.name}: and {len(ordered) - MAX_FAULTS} more")
        return ConfigError("\n".join(lines))

    def place(self, key: Key) -> str:
        """What a message about ``key`` begins with: ``scaler.yaml:3: ladder[0].name: ``."""
        return f"{self.name}:{self.line(key)}: {f'{dotted(key)}: ' if key else ''}"

    def line(self, key: Key) -> int:
        """The line of ``key``, or of the nearest mapping around it that is written down."""
        while key not in self.lines:
            key = key[:-1]
        return self.lines[key]


def parse(schema: TypeAdapter[T], data: object) -> T:
    """Plain data as the type of ``schema``; raises pydantic's ValidationError.

    Through JSON, because pydantic then takes paths and tuples from their plain forms and nothing else for another.
    """
    return schema.validate_json(json.dumps(data), strict=True)


def without(data: Mapping[str, Any], keys: Iterable[Key]) -> dict[str, Any]:
    """The data but for what stands at ``keys``; where nothing does, but for the mapping in which it is missing.

    Of a list all goes, for what is behind an entry would move to its place.
    """
    left = copy.deepcopy(dict(data))
    for *around, last in {_written(data, key) for key in keys} - {()}:
        inside: dict[Any, Any] = left
        for part in around:
            inside = inside.get(part, {})
        inside.pop(last, None)
    return left


def _written(data: Any, key: Key) -> Key:
    """As much of a key as stands in the data, down to the first list."""
    there: list[str | int] = []
    for part in key:
        if not isinstance(data, Mapping) or part not in data:
            break
        there.append(part)
        data = data[part]
    return tuple(there)


def dotted(key: Key) -> str:
    """``ladder[0].name``, as messages write it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_word(part)}" for part in key).removeprefix(".")


def read_document(path: Path) -> Document:
    """The mapping in the YAML file at ``path``.

    Raises ConfigError when it cannot be read or is not such a file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({why}); expected a YAML file") from error
    return parse_document(content, str(path))


def parse_document(content: bytes, name: str) -> Document:
    """The mapping in the YAML ``content``; messages call it ``name``. Raises ConfigError."""
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{name}: is larger than {MAX_BYTES // 1024} KiB; expected a configuration file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: is not UTF-8 ({error.reason}); expected YAML in UTF-8") from error
    reader = _Reader(name)
    data = reader.plain(_composed(text, name), (), 0)
    document = Document(name, data if isinstance(data, dict) else {}, reader.lines, tuple(reader.faults))
    if not isinstance(data, dict):
        if reader.faults:
            raise document.error(*reader.faults)
        what = "there is nothing in it" if data is None else f"its top level is {shown(data)}"
        raise document.error(Fault((), f"{what}; expected a mapping of keys to values"))
    return document


def shown(value: object) -> str:
    """A value for a message, in a few words that are safe to print."""
    match value:
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list():
            return "a list" if value else "an empty list"
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _word(key: str) -> str:
    """A key as it is where that is short and safe to print."""
    return key if key and key.isprintable() and len(key) <= MAX_SHOWN else shown(key)


def nearest(word: str, known: Iterable[str]) -> str:
    """What to expect instead of the unknown ``word``, as the end of a message."""
    names = list(known)
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return f"expected {close[0]!r}, the nearest that is known" if close else f"expected one of {', '.join(names)}"


class _Loader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2's core schema, by which ``off`` is a name and ``1e-3`` a number.

    Source: https://yaml.org/spec/1.2.2/#103-core-schema.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Here, because it calls itself for what is inside: Python's own limit is an accident of the caller's depth.
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {}  # those of the class above are YAML 1.1's
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def _composed(text: str, name: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        found = mistake(text, error)
        raise ConfigError(f"{name}:{found.line}:{found.column}: {found.sentence}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}:{line}: {error.reason}; expected printable text") from error
    except (ValueError, OverflowError) as error:
        # PyYAML lets these through for escapes past U+10FFFF and for versions of thousands of digits.
        raise ConfigError(f"{name}:{loader.line + 1}: {error}; expected valid YAML") from error


class _Reader:
    """Turns nodes into plain data; collects lines and faults."""

    def __init__(self, name: str) -> None:
        self.lines: dict[Key, int] = {(): 1}
        self.faults: list[Fault] = []
        self._name = name
        self._values = 0

    def plain(self, node: yaml.Node | None, key: Key, depth: int) -> Any:
        """The value of ``node``, which stands at ``key``."""
        if node is None:
            return None
        self.lines.setdefault(key, node.start_mark.line + 1)
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            # Nesting is bounded where nodes are composed; only an alias inside what it stands for gets deeper.
            what = (
                f"expands to more than {MAX_VALUES} values" if depth <= MAX_DEPTH else "stands for itself by an alias"
            )
            raise ConfigError(f"{self._name}:{self.lines[key]}: {dotted(key[:1])}: {what}; expected fewer aliases")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return dict(self._entries(node, key, depth))
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.plain(item, (*key, position), depth + 1) for position, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        self._report(key, f"the tag {_short(node.tag)} is not understood; expected a plain value")
        return None

    def _entries(self, mapping: yaml.MappingNode, key: Key, depth: int) -> Iterator[tuple[str, Any]]:
        first: dict[str, int] = {}
        for key_node, value_node in mapping.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.lines[(*key, "?")] = line
                self._report((*key, "?"), "the key is not a word; expected one such as 'name'")
                continue
            name = key_node.value
            here = (*key, name)
            self.lines[here] = line
            if name in first:
                # Told at the second, for that is the one that would have won without a word.
                self._report(here, f"stands here and on line {first[name]}; expected it once")
            elif self._text(name, here) == name:
                first[name] = line
                yield name, self.plain(value_node, here, depth + 1)

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        text = self._text(node.value, key)
        try:
            match node.tag.removeprefix(_TAG):
                case "str":
                    return text
                case "null":
                    return None
                case "bool" if text.lower() in ("true", "false"):
                    return text.lower() == "true"
                case "int" | "float" if len(text) > MAX_DIGITS:
                    raise ValueError(text)
                case "int":
                    return int(text, 0 if text[:2] in ("0o", "0x") else 10)
                case "float":
                    return float(re.sub(r"\.(inf|nan)\Z", r"\1", text, flags=re.IGNORECASE))
        except ValueError:
            self._report(key, f"{shown(text)} is not a number that can be used; expected a plain number")
            return None
        self._report(key, f"the tag {_short(node.tag)} is not understood; expected a plain value")
        return None

    def _text(self, text: str, key: Key) -> str:
        # Neither can be part of a file's name or be printed, and an escape in quotes brings either in.
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            self._report(key, f"{shown(text)} holds a character that is none; expected printable text")
            return ""
        return text

    def _report(self, key: Key, sentence: str) -> None:
        self.faults.append(Fault(key, sentence))


def _short(tag: str) -> str:
    return shown(tag.replace(_TAG, "!!"))


@lru_cache(maxsize=8)
def _described(schema: TypeAdapter[Any]) -> dict[str, Any]:
    """What a schema says, kept: making it takes as long as all else that a faulty file does."""
    return schema.json_schema()


def _fault(schema: dict[str, Any], detail: Any, at: Key, data: Any) -> Fault:
    """One of pydantic's findings as a fault."""
    inside, node, around = schema_words.located(schema, detail["loc"])
    key = (*at, *inside)
    match detail["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return Fault(key, f"unknown key; {nearest(str(inside[-1]), schema_words.properties(schema, around))}")
        case "missing" | "missing_argument":
            return Fault(key, f"is missing; expected {schema_words.expected(schema, node)}")
        # The latter for a key with nothing behind it, and also where there is no mapping.
        case "union_tag_invalid" | "union_tag_not_found" if isinstance(detail["input"], dict):
            name, kinds = schema_words.kinds(schema, node)
            return Fault(
                (*key, name), f"{shown(detail['input'][name])} cannot be used; expected one of {', '.join(kinds)}"
            )
        case "value_error":
            sentence = str(detail["ctx"]["error"])
            return Fault(_named(sentence, key, data), f"{sentence}; expected figures that go together")
    # A URL is not shown, for there may be a password in it.
    hidden = isinstance(detail["input"], str) and schema_words.takes_url(schema, node)
    value = "what is there" if hidden else shown(detail["input"])
    expected = schema_words.expected(schema, node)
    if node.get("type") == "array" and isinstance(detail["input"], dict):
        expected = "a list, each entry of which begins with `- `"
    return Fault(key, f"{value} cannot be used; expected {expected}")


def _named(sentence: str, key: Key, data: Any) -> Key:
    """The key inside ``key`` that a sentence about several keys names first, of those that are written down."""
    for part in key:
        data = data[part]
    return next(((*key, word) for word in sentence.split() if isinstance(data, dict) and word in data), key)
