"""Whether to use colour, and how. A colour never says what the words do not."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def coloured(stream: TextIO | None = None) -> bool:
    """Whether text on ``stream``, the standard output when left out, is to have colours.

    Sources: https://no-color.org, https://force-color.org and https://bixense.com/clicolors: NO_COLOR goes before
    FORCE_COLOR and CLICOLOR_FORCE, these before CLICOLOR=0, and without any of them a terminal decides.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    if os.environ.get("CLICOLOR") == "0" or os.environ.get("TERM") == "dumb":
        return False
    return (stream or sys.stdout).isatty()


def painted(text: str, code: str) -> str:
    """The text for the standard output, in a colour of ECMA-48, such as 31 for red, where there are to be colours."""
    return f"\x1b[{code}m{text}\x1b[m" if coloured() else text
