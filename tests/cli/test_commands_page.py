"""The page of commands says what the commands take and how they end: nothing is missing from it, nothing made up."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from pathlib import Path

import pytest

from scaler import cli

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "commands.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## scaler ([a-z-]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NAMES = [module.replace("_", "-") for module in cli.MODULES]


def command(name: str) -> cli.Command:
    """The command called so."""
    found: cli.Command = importlib.import_module(f"scaler.cli.{name.replace('-', '_')}").COMMAND
    return found


def taken(name: str) -> set[str]:
    """The options and arguments that a command's parser takes; of an argument with choices, the choices."""
    parser = argparse.ArgumentParser()
    command(name).add_arguments(parser)
    words: set[str] = set()
    for action in parser._actions:
        if action.option_strings:
            words |= {word for word in action.option_strings if word.startswith("--")}
        else:
            words |= set(action.choices or [action.metavar or action.dest.upper()])
    return words - {"--help"}


def described(section: str) -> set[str]:
    """The options and arguments that a section describes: in its table, and in the line of those that are common."""
    words = set(re.findall(r"^\| `(-*[\w-]+)[^`]*` \|", section, re.MULTILINE))
    also = re.search(r"^Also: (.*)$", section, re.MULTILINE)
    return words | set(re.findall(r"`(--[\w-]+)`", also[1] if also else ""))


def test_every_command_has_its_section_in_the_order_of_the_help() -> None:
    """And there is none of a command that is gone."""
    assert list(SECTIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_and_none_is_made_up(name: str) -> None:
    """In the text as well."""
    assert described(SECTIONS[name]) == taken(name)
    assert set(re.findall(r"(?<=`)--[\w-]+", SECTIONS[name])) <= taken(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_exit_code_is_told_as_the_help_tells_it(name: str) -> None:
    """What 0 and 1 mean is the command's own; the others mean the same everywhere."""
    (told,) = re.findall(r"^Exit codes: (.*)\.$", SECTIONS[name], re.MULTILINE)
    codes = command(name).exit_codes
    assert told == ", ".join(f"{code} {meaning}" if code < 2 else f"{code}" for code, meaning in codes.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_command_has_the_exit_codes_that_it_says_it_has(name: str) -> None:
    """1 if it ever answers no, 4 if it asks a daemon."""
    module = f"scaler.cli.{name.replace('-', '_')}"
    tree = ast.parse(Path(str(importlib.import_module(module).__file__)).read_text("utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "scaler.cli.daemon"
        for alias in node.names
    }
    assert bool(command(name).no) == ("EXIT_NO" in used)
    assert command(name).asks == ("add_arguments" in imported)


def test_the_codes_that_all_share_are_told_once() -> None:
    """With what each means."""
    table = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE)
    codes = [cli.EXIT_OK, cli.EXIT_NO, cli.EXIT_USAGE, cli.EXIT_FAILED, cli.EXIT_UNREACHABLE, cli.EXIT_INTERRUPTED]
    assert [int(code) for code, _ in table] == codes


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGE))))
def test_a_link_leads_somewhere(link: str) -> None:
    """Files beside the page."""
    assert (ROOT / "docs" / link).exists()
