"""The pages, and what there is in them: code blocks, commands, links, headings."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"(?:^<!-- not run: (.+?) -->\n\n?)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)|\b(?:src|srcset|href)=\"(?!https?:)([^\"]+)\"")
_INLINE = re.compile(r"(?<!`)`((?:\.venv/bin/)?(?:scaler|make|pip)\s[^`]+)`(?!`)")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block; ``not_run`` is the reason, if the comment before it says that it cannot be."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a console: the lines behind ``$``, or all of them where none has one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        asked = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
        return [words for line in asked if (words := shlex.split(line, comments=True))]


def blocks(*languages: str) -> list[Block]:
    """The code blocks of these languages on all pages; of all languages if none is named."""
    return [block for page in PAGES for block in _blocks(page) if not languages or block.language in languages]


def fences(page: Path) -> int:
    """How many lines begin or end a code block."""
    return len(re.findall(r"^\s*```", page.read_text("utf-8"), re.MULTILINE))


def inline_commands(page: Path) -> list[list[str]]:
    """The words of each command of ours that stands in a sentence."""
    return [shlex.split(command) for command in dict.fromkeys(_INLINE.findall(_prose(page)))]


def links(page: Path) -> list[str]:
    """Where a page leads to in this repository, with the anchor if there is one."""
    return list(dict.fromkeys(one or other for one, other in _LINK.findall(_prose(page))))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", _prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return names


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in _BLOCK.finditer(text):
        reason, language, inside = found.groups()
        yield Block(page, text.count("\n", 0, found.start(2)) + 1, language, inside, reason or "")


def _prose(page: Path) -> str:
    """A page without its code blocks."""
    return _BLOCK.sub("", page.read_text("utf-8"))
