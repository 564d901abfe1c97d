"""Why a text is no YAML, in words for whoever wrote it: what stands there, and what is expected instead.

Owns the common mistakes (tabs, indentation, colons, quotes, brackets); what is none of them keeps the parser's words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import yaml

from scaler.words import counted

LONGEST = 40
"""The characters of a text that a sentence quotes."""
ENTRY = "a key, a colon, a space and a value"
_KEYED = re.compile(r".*?:(\s|$)")
_DASH = re.compile(r"-(\s+|$)")


@dataclass(frozen=True, slots=True)
class Mistake:
    """Where it is, both counted from 1, and what is wrong and expected, in one sentence."""

    line: int
    column: int
    sentence: str


def mistake(text: str, error: yaml.MarkedYAMLError) -> Mistake:
    """What the parser stumbled over in ``text``."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Mistake(1, 1, _in_its_words(error))
    known = _Known(text, error, mark)
    return known.mistake or Mistake(mark.line + 1, mark.column + 1, _in_its_words(error))


def _in_its_words(error: yaml.MarkedYAMLError) -> str:
    return f"{' '.join(part for part in (error.context, error.problem) if part)}; expected valid YAML"


class _Known:
    """The mistake, if it is a common one. Lines and columns are counted from 0 in here, as the parser does."""

    def __init__(self, text: str, error: yaml.MarkedYAMLError, mark: yaml.Mark) -> None:
        self._text = text
        self._lines = text.splitlines() or [""]
        self._problem, self._context = error.problem or "", error.context or ""
        self._mark, self._began = mark, error.context_mark or mark
        self._got = found[1] if (found := re.search(r"(?:found|got)(?: character)? '(.+?)'", self._problem)) else ""
        self.mistake = self._found()

    def _found(self) -> Mistake | None:
        line, column = self._mark.line, self._mark.column
        margin = "".join(takewhile(str.isspace, self._line(line)))
        if "\t" in margin and "quoted" not in self._context:
            return self._at(line, margin.index("\t"), "a tab is used for indentation; expected spaces")
        if self._got == r"\t":
            return self._at(line, column, "a tab stands before what follows; expected a space")
        if self._problem == "mapping values are not allowed here":
            return self._surplus_colon()
        if self._problem == "sequence entries are not allowed here":
            return self._at(line, column, "an entry of a list begins in this line; expected it on a line of its own")
        if self._problem == "could not find expected ':'":
            return self._no_colon(self._began.line)
        if "quoted scalar" in self._context:
            return self._quoted()
        if "flow" in self._context:
            return self._in_brackets()
        if "'<document start>'" in self._problem:
            return self._at_the_top()
        if "block" in self._context:
            return self._in_block()
        if "cannot start any token" in self._problem:
            return self._at(line, column, _sign(self._got))
        if self._context == "while scanning an alias":
            return self._at(self._began.line, self._began.column, _sign("*"))
        if alias := re.fullmatch("found undefined alias '(.+)'", self._problem):
            what = f"nothing above is marked '&{alias[1]}'"
            return self._at(line, column, f"{what}; expected quotes around a text that begins with '*'")
        if "another document" in self._problem:
            return self._at(line, column, "a second document begins here; expected one only, without '---'")
        return None

    # ---------------------------------------------------------------- colons, quotes, brackets

    def _surplus_colon(self) -> Mistake | None:
        """A colon where no key can be: in a value, or the lines before it are not what they were meant to be."""
        line, column = self._mark.line, self._mark.column
        if first := re.search(r":\s", self._line(line)[:column]):
            return self._at(line, first.end(), "the value has ': ' in it; expected quotes around all of it")
        above = next(self._above(line), None)
        if above is None:
            return None
        if dash := re.match(r"\s*-(?=[^\s-])", self._line(above)):
            wanted = _quoted(f"- {self._line(above)[dash.end() :]}")
            return self._at(above, dash.end(), f"no space stands behind the dash; expected {wanted}")
        return self._indented(line) if _KEYED.match(self._content(above)) else self._no_colon(above)

    def _no_colon(self, line: int) -> Mistake:
        content = self._content(line)
        said, wanted = f"{_quoted(content)} has no colon", ENTRY
        if "://" in content:
            said = "no colon and space stand behind the key"  # there may be a password in a URL
        elif joined := re.fullmatch(r"([\w.-]+):(\S.*)", content):
            said = f"no space stands behind the colon of {_quoted(content)}"
            wanted = _quoted(f"{joined[1]}: {joined[2]}")
        elif apart := re.fullmatch(r"([\w.-]+)(?:(?:\s*=\s*|\s+)(.+))?", content):
            wanted = _quoted(f"{apart[1]}: {apart[2]}" if apart[2] else f"{apart[1]}:")
        return self._at(line, self._line(line).index(content), f"{said}; expected {wanted}")

    def _quoted(self) -> Mistake | None:
        began = self._began
        quote = self._line(began.line)[began.column : began.column + 1]
        if "end of stream" in self._problem or "document separator" in self._problem:
            return self._unclosed_quote(began.line, began.column, quote)
        if "escape" in self._problem:
            what = "a backslash in double quotes begins an escape, and this is none"
            return self._at(self._mark.line, self._mark.column, f"{what}; expected single quotes around the text")
        return None

    def _unclosed_quote(self, line: int, column: int, quote: str) -> Mistake:
        what = f"the quote {quote} that begins here is not closed"
        return self._at(line, column, f"{what}; expected another {quote} at the end of the text")

    def _in_brackets(self) -> Mistake | None:
        line, column = self._mark.line, self._mark.column
        still_open, before = self._tokens()
        if not still_open:
            return None
        opening = still_open[-1].start_mark
        bracket, closing = "{}" if isinstance(still_open[-1], yaml.FlowMappingStartToken) else "[]"
        if self._got in ("}", "]"):
            what = f"{self._got!r} stands here, and the {bracket!r} of line {opening.line + 1} is not closed"
            return self._at(line, column, f"{what}; expected {closing!r} first")
        if (line > opening.line and self._indent(line) <= self._indent(opening.line)) or self._got == "<stream end>":
            if swallowed := _over_lines(before):
                return self._unclosed_quote(*swallowed)
            what = f"the {bracket!r} that begins here is not closed; expected {closing!r} at its end"
            return self._at(opening.line, opening.column, what)
        if self._got == ",":
            return self._at(line, column, "nothing stands before this comma; expected a value, or one comma less")
        if self._got == ":":
            what = "a second ': ' stands in one entry"
            wanted = "a comma between entries, or quotes around a value with ': ' in it"
            return self._at(line, column, f"{what}; expected {wanted}")
        if "',' or" in self._problem:
            what = "this stands behind an entry that has ended"
            return self._at(line, column, f"{what}; expected a comma before it, or {closing!r}")
        return None

    def _tokens(self) -> tuple[Sequence[yaml.Token], yaml.Token | None]:
        """Before the place: the brackets that are not closed, and the last token."""
        still_open: list[yaml.Token] = []
        before: yaml.Token | None = None
        try:
            for token in yaml.scan(self._text, yaml.SafeLoader):
                if token.start_mark.index >= self._mark.index:
                    break
                if isinstance(token, yaml.FlowMappingStartToken | yaml.FlowSequenceStartToken):
                    still_open.append(token)
                elif isinstance(token, yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken) and still_open:
                    still_open.pop()
                if token.start_mark.index < token.end_mark.index:
                    before = token
        except yaml.YAMLError:
            pass  # it is what is being explained; what was read before it counts
        return still_open, before

    # ---------------------------------------------------------------- indentation

    def _in_block(self) -> Mistake | None:
        line, column = self._mark.line, self._mark.column
        if column == self._indent(line):
            return self._indented(line)
        if self._got in ("}", "]", ","):
            return self._at(line, column, f"{self._got!r} stands here and no bracket is open; expected none")
        if self._got == "<scalar>":
            if swallowed := _over_lines(self._tokens()[1]):
                return self._unclosed_quote(*swallowed)
            what = "this stands behind a value that has ended"
            return self._at(line, column, f"{what}; expected nothing here, or quotes around all of the value")
        return None

    def _at_the_top(self) -> Mistake | None:
        """What goes on with nothing above it: the first line is indented, or is no key."""
        line, column = self._mark.line, self._mark.column
        above = list(self._above(line))
        if above and self._indent(above[-1]) > column:
            return self._misplaced(above[-1], column, f"as in line {line + 1}")
        if above and not _KEYED.match(self._content(above[0])):
            return self._no_colon(above[0])
        return self._in_block()

    def _indented(self, line: int) -> Mistake | None:
        """A line that begins at a column at which nothing does to which it could belong."""
        here = self._indent(line)
        is_entry = bool(_DASH.match(self._line(line)[here:]))
        places = dict(self._places(line, entries=is_entry))
        if not places and is_entry:
            return self._at(line, here, f"an entry of a list stands among keys; expected {ENTRY}")
        if not places or here in places:
            return None
        column = min(places, key=lambda place: (abs(place - here), -place))
        above = places[column]
        as_there = f"as in line {above + 1}"
        if column != self._indent(above):
            as_there = f"to begin below {_quoted(self._line(above)[column:].partition(':')[0])} of line {above + 1}"
        return self._misplaced(line, column, as_there)

    def _misplaced(self, line: int, column: int, as_there: str) -> Mistake:
        here = self._indent(line)
        indented = f"indented by {counted(here, 'space')}" if here else "not indented"
        return self._at(line, here, f"the line is {indented}; expected {column}, {as_there}")

    def _places(self, line: int, *, entries: bool) -> Iterator[tuple[int, int]]:
        """The columns at which keys, or entries of lists, may begin there, and the line above that has one."""
        limit = len(self._text)
        for above in self._above(line):
            text, column = self._line(above), self._indent(above)
            while dash := _DASH.match(text[column:]):
                if entries and column <= limit:
                    yield column, above
                column += dash.end()
            if not entries and column <= limit:
                yield column, above
            limit = min(limit, self._indent(above) - 1)

    def _above(self, line: int) -> Iterator[int]:
        """The lines above that say something, from the nearest on."""
        for above in reversed(range(line)):
            if self._line(above).strip() and not self._line(above).lstrip().startswith("#"):
                yield above

    def _line(self, line: int) -> str:
        return self._lines[line] if line < len(self._lines) else ""

    def _indent(self, line: int) -> int:
        return len(self._line(line)) - len(self._line(line).lstrip(" "))

    def _content(self, line: int) -> str:
        """A line without its dashes, its comment and the space around it."""
        text = self._line(line).strip()
        while dash := _DASH.match(text):
            text = text[dash.end() :]
        return re.sub(r"(^|\s)#.*", "", text).strip()

    def _at(self, line: int, column: int, sentence: str) -> Mistake:
        return Mistake(line + 1, column + 1, sentence)


def _over_lines(token: yaml.Token | None) -> tuple[int, int, str] | None:
    """Where a text in quotes begins that goes on for lines, and its quote: such a one was meant to end before."""
    if not isinstance(token, yaml.ScalarToken) or token.style not in ("'", '"'):
        return None
    start = token.start_mark
    return (start.line, start.column, token.style) if start.line < token.end_mark.line else None


def _quoted(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")


def _sign(character: str) -> str:
    return f"{character!r} means something of its own in YAML; expected quotes around a text that begins with it"
