"""What a program that embeds scaler may rely on: the names in `scaler.__all__`."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import scaler
from scaler import errors
from scaler.journal import KINDS

ROOT = Path(__file__).parent.parent
PROGRAM = Path(__file__).parent / "typed_program.py"
CLASSES: list[type] = [one for name in scaler.__all__ if isinstance(one := getattr(scaler, name), type)]
FOR_SCALER_ITSELF = {
    "answer", "courses", "effects", "embeddings", "on_step",  # the endpoint's
    "note", "recall", "reconfigure", "remember",  # the manager's
}  # fmt: skip
COUNTS = {"ticket", "times", "tokens"}
"""Bare numbers that no unit belongs to."""
UNITS = ("_s", "_bytes")


def methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The constructor, where it is written out, and every public method and property."""
    for name, member in vars(kind).items():
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function) and (
            not name.startswith("_") or (name == "__init__" and not is_dataclass(kind))
        ):
            yield name, function


def told(text: str, kind: type) -> str:
    """A docstring with those of the methods of the same class that it refers to."""
    referred = [inspect.getdoc(getattr(kind, name, None)) or "" for name in re.findall(r"(?<!`)`(\w+)`(?!`)", text)]
    return "\n".join([text, *referred])


METHODS = [
    pytest.param(kind, name, function, id=f"{kind.__name__}.{name}")
    for kind in CLASSES
    for name, function in methods(kind)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_public_class_says_what_it_is_and_what_its_fields_are(kind: type) -> None:
    """By their names; what is a number has its unit there, or is a count."""
    text = inspect.getdoc(kind)
    assert text
    if is_dataclass(kind):
        for field in fields(kind):
            assert f"``{field.name}``" in text or f"(answer)`` is its ``{field.name}``" in text, field.name
            if field.type in ("int", "float", "int | None", "float | None"):
                assert field.name.endswith(UNITS) or field.name in COUNTS, field.name


@pytest.mark.parametrize(("kind", "name", "function"), METHODS)
def test_a_public_method_says_what_it_takes_and_raises(kind: type, name: str, function: Callable[..., Any]) -> None:
    """Every parameter by its name, numbers with their unit, errors that there are."""
    text = f"{inspect.getdoc(kind) if name == '__init__' else ''}\n{inspect.getdoc(function) or ''}".strip()
    assert text
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        assert f"``{parameter.name}``" in told(text, kind), parameter.name
        if str(parameter.annotation).partition(" ")[0] in ("int", "float"):
            assert parameter.name.endswith(UNITS) or parameter.name in COUNTS, parameter.name
    for sentence in re.findall(r"Raises ([^.]*)\.", text):
        for error in re.findall(r"\b[A-Z]\w+", sentence):
            assert issubclass(getattr(errors, error, None) or getattr(builtins, error), Exception)


def test_the_typed_program_uses_every_public_name() -> None:
    """Or its types would not be looked at."""
    tree = ast.parse(PROGRAM.read_text("utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(scaler.__all__) <= names
    public = {name for kind in CLASSES for name, _ in methods(kind) if name != "__init__"}
    assert public - used == FOR_SCALER_ITSELF


def test_the_public_names_are_those_that_the_page_tells() -> None:
    """No name is a secret, and none is promised that is not there."""
    page = (ROOT / "docs" / "library.md").read_text("utf-8")
    promised = re.findall(r"^\| `(\w+)` \| [^`]", page, re.MULTILINE)
    of_errors = {name for name in promised if hasattr(errors, name)} - set(scaler.__all__)
    assert set(promised) - of_errors == set(scaler.__all__)
    family = {name for name, one in vars(errors).items() if isinstance(one, type)} - {"ScalerError"}
    assert of_errors == family


def test_the_events_are_those_that_the_page_tells() -> None:
    """Their names in the journal, and the classes that a program gets."""
    page = (ROOT / "docs" / "library.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    assert told == {kind: event.__name__ for event, kind in KINDS.items()}
    assert {event.__module__ for event in KINDS} == {"scaler.events"}


def test_everything_public_is_found_by_looking_and_loaded_only_when_used() -> None:
    """`dir(scaler)` and completion know names that are not loaded yet."""
    program = (
        "import sys, scaler\n"
        "loaded = {name for name in sys.modules if name.startswith('scaler.')}\n"
        "assert not loaded, loaded\n"
        "assert set(scaler.__all__) <= set(dir(scaler))\n"
        "from scaler import *\n"
        "assert ModelManager.__module__ == 'scaler.manager'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_configuration_is_named_as_text_or_as_a_path(kind: Callable[[Path], str | Path], tmp_path: Path) -> None:
    """One that is not there is the family's error in either form."""
    with pytest.raises(errors.ConfigError, match=r"nope\.yaml"):
        scaler.ModelManager(kind(tmp_path / "nope.yaml"))
