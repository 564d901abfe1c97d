"""Other people's words on one line that can be printed: whatever is in them, it is neither a second line nor a command
to the terminal.
"""

from __future__ import annotations

import logging
import time

from scaler.errors import ConfigError
from scaler.words import faults

LONGEST = 2000
"""The characters of a line; a request can be millions long."""
MOST_FAULTS = 3
"""So many of a configuration's are in a line of the log."""


def one_line(text: str) -> str:
    """``text`` with every character that is no plain one (a line's end, an escape, a change of the writing's direction)
    written as Python writes it, and cut where it is too long.
    """
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text) - LONGEST} characters more)"
    return text if text.isprintable() else "".join(map(_shown, text))


def printable(text: str) -> str:
    """The same for a text of several lines, whose ends and tabs stay; nothing is cut."""
    return text if text.isprintable() else "".join(one if one in "\n\t" else _shown(one) for one in text)


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class OneLine(logging.Formatter):
    """A log's record as one line behind the time of day; the lines of a traceback are set in, so that none of them can
    be taken for another record.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        for error in record.args or ():
            if isinstance(error, ConfigError):
                # Of those that are other people's words the ends of lines are to be seen; these are our own.
                message = message.replace(str(error), faults(error, MOST_FAULTS))
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}  {one_line(message)}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            line += "".join(f"\n    {one_line(part)}" for part in traceback.split("\n"))
        return line
