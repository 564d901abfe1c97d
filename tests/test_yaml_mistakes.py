"""Slips in the YAML of a configuration: what a person who knows no parser is told about them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler import paths
from scaler.documents import parse_document
from scaler.errors import ConfigError

TAB = "a tab is used for indentation; expected spaces"
ENTRY = "expected a key, a colon, a space and a value"
ALL_OF_IT = "the value has ': ' in it; expected quotes around all of it"
BEHIND = "this stands behind a value that has ended; expected nothing here, or quotes around all of the value"
IN_BRACKETS = "this stands behind an entry that has ended; expected a comma before it, or '}'"
BACKSLASH = "a backslash in double quotes begins an escape, and this is none; expected single quotes around the text"
TWO_COLONS = (
    "a second ': ' stands in one entry; expected a comma between entries, or quotes around a value with ': ' in it"
)


def quote(sign: str) -> str:
    """Of one that is open."""
    return f"the quote {sign} that begins here is not closed; expected another {sign} at the end of the text"


def bracket(sign: str, closing: str) -> str:
    """Likewise."""
    return f"the {sign!r} that begins here is not closed; expected {closing!r} at its end"


def sign(character: str) -> str:
    """Of one that begins no plain text."""
    return f"{character!r} means something of its own in YAML; expected quotes around a text that begins with it"


SLIPS = [
    # text, where, sentence
    ("server:\n\tport: 1\n", "2:1", TAB),
    ("ladder:\n  - name: a\n  \tmodel: b\n", "3:3", TAB),
    ("server:\r\n\tport: 1\r\n", "2:1", TAB),
    ("tier: auto\n\tx: 1\n", "2:1", TAB),
    ("server:\n  port:\t1\n", "2:8", "a tab stands before what follows; expected a space"),
    ("server:\n  port: 1\n   host: x\n", "3:4", "the line is indented by 3 spaces; expected 2, as in line 2"),
    ("server:\n    port: 1\n  host: x\n", "3:3", "the line is indented by 2 spaces; expected 4, as in line 2"),
    ("a:\n    b: 1\n\n# so\n  c: x\n", "5:3", "the line is indented by 2 spaces; expected 4, as in line 2"),
    ("tier: auto\n server: {}\n", "2:2", "the line is indented by 1 space; expected 0, as in line 1"),
    (" tier: auto\nserver: {}\n", "1:2", "the line is indented by 1 space; expected 0, as in line 2"),
    ("tier auto\n# so\nserver: {}\n", "1:1", "'tier auto' has no colon; expected 'tier: auto'"),
    ("a:\n  b: 1\n c: 1\n", "3:2", "the line is indented by 1 space; expected 2, as in line 2"),
    ("a:\n  - b: a\n   c: b\n", "3:4", "the line is indented by 3 spaces; expected 4, to begin below 'b' of line 2"),
    ("a:\n  - b: a\n     c: b\n", "3:6", "the line is indented by 5 spaces; expected 4, to begin below 'b' of line 2"),
    ("a:\n  - b: a\n    c: b\n - b: c\n", "4:2", "the line is indented by 1 space; expected 2, as in line 2"),
    ("a:\n- b: a\n  c: b\n  - b: c\n", "4:3", "the line is indented by 2 spaces; expected 0, as in line 2"),
    ("a:\n  - b: a\n    c: b\n  d: c\n", "4:3", "the line is indented by 2 spaces; expected 4, as in line 3"),
    ("server:\n  port: 1\n  - x\n", "3:3", f"an entry of a list stands among keys; {ENTRY}"),
    ("ladder:\n  -name: a\n   model: b\n", "2:4", "no space stands behind the dash; expected '- name: a'"),
    ("server\n  port: 1\n", "1:1", "'server' has no colon; expected 'server:'"),
    ("tier: auto\nserver\nqueue: {}\n", "2:1", "'server' has no colon; expected 'server:'"),
    ("server:\n  host: x\n  port 1  # mine\n", "3:3", "'port 1' has no colon; expected 'port: 1'"),
    ("ladder:\n  - name a\n    model: b\n", "2:5", "'name a' has no colon; expected 'name: a'"),
    ("tier = auto\nserver: {}\n", "1:1", "'tier = auto' has no colon; expected 'tier: auto'"),
    ("server:\n  port:1\n  host: x\n", "2:3", "no space stands behind the colon of 'port:1'; expected 'port: 1'"),
    ("a:\n  b http://me:sesame@host\n  c: 1\n", "2:3", f"no colon and space stand behind the key; {ENTRY}"),
    ("tier: a: b\n", "1:7", ALL_OF_IT),
    ('tier: "auto\nserver: {}\n', "1:7", quote('"')),
    ("tier: 'auto\nserver: {}\n", "1:7", quote("'")),
    ('server:\n  host: "x\n  port: 1\nnotices:\n  webhook: "http://x"\n', "2:9", quote('"')),
    ('tier: "auto\nserver: {host: "x"}\n', "1:7", quote('"')),
    ('tier: "a" b\n', "1:11", BEHIND),
    ('journal: {path: "C:\\path"}\n', "1:21", BACKSLASH),
    ("server: {\n", "1:9", bracket("{", "}")),
    ("server: {port: 1\nqueue: {}\n", "1:9", bracket("{", "}")),
    ("ladder:\n  - {name: a, model: b\n  - {name: c}\n", "2:5", bracket("{", "}")),
    ("ladder: [a, b\ntier: auto\n", "1:9", bracket("[", "]")),
    ("server: {port: 1]\n", "1:17", "']' stands here, and the '{' of line 1 is not closed; expected '}' first"),
    ("server: {port: 1}}\n", "1:18", "'}' stands here and no bracket is open; expected none"),
    ("server: {port: 1\n         host: x}\n", "2:14", TWO_COLONS),
    ('{"tier": "auto" "server": {}}\n', "1:17", IN_BRACKETS),
    ("a: {b: 1, , c: x}\n", "1:11", "nothing stands before this comma; expected a value, or one comma less"),
    ("a: - b\n", "1:4", "an entry of a list begins in this line; expected it on a line of its own"),
    ("tier: @x\n", "1:7", sign("@")),
    ("server: {allow_hosts: [*]}\n", "1:24", sign("*")),
    ("tier: *x\n", "1:7", "nothing above is marked '&x'; expected quotes around a text that begins with '*'"),
    ("a: 1\n---\nb: 1\n", "2:1", "a second document begins here; expected one only, without '---'"),
]


@pytest.mark.parametrize(("text", "where", "sentence"), SLIPS, ids=[text for text, _, _ in SLIPS])
def test_a_slip_is_told_in_words(text: str, where: str, sentence: str) -> None:
    """With the place, what is there and what to write; nothing that only a parser's author understands."""
    with pytest.raises(ConfigError) as raised:
        parse_document(text.encode(), "mine.yaml")
    assert str(raised.value) == f"mine.yaml:{where}: {sentence}"


LINES = (paths.shipped_config() / "scaler.yaml").read_text().splitlines()
SPOTS = [number for number, line in enumerate(LINES) if line.strip() and not line.startswith("#")]


@settings(deadline=None)  # a shared machine may be slow
@given(
    at=st.sampled_from(SPOTS),
    slip=st.sampled_from(
        [
            lambda line: f"\t{line}",
            lambda line: f" {line}",
            lambda line: line[1:],
            lambda line: line.replace(":", "", 1),
            lambda line: line.replace(": ", ":", 1),
            lambda line: line.replace("- ", "-", 1),
            lambda line: line.replace(": ", ': "', 1),
            lambda line: line.replace(": ", ": {", 1),
            lambda line: line.replace(": ", ": [", 1),
            lambda line: line.replace(": ", ": x: ", 1),
        ]
    ),
)
def test_a_slip_anywhere_in_the_shipped_file_is_told_there_and_without_jargon(
    at: int, slip: Callable[[str], str]
) -> None:
    """Within a line of where it is, or in words about the values; never in those of the parser."""
    lines = [*LINES[:at], slip(LINES[at]), *LINES[at + 1 :]]
    try:
        parse_document("\n".join(lines).encode(), "mine.yaml")
    except ConfigError as error:
        message = str(error)
        line = int(message.split(":")[1])
        assert abs(line - (at + 1)) <= 1, message
        assert not any(word in message for word in ("while ", "scalar", "mapping", "'<", "block")), message
