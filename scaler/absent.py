"""Why there is no file at a path, in a few words for a person.

The one place that looks, for `Path.is_file` and its like raise for a path that may not be looked at, or cannot be one.
"""

from __future__ import annotations

import stat
from pathlib import Path

NO_SUCH_FILE = "no such file"


def no_file(path: Path) -> str:
    """Why there is no file at ``path``, such as ``no such file`` or ``permission denied``; empty where there is one."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else NO_SUCH_FILE
    except (FileNotFoundError, ValueError):  # ValueError: a path with a NUL, as other programs may name one
        return NO_SUCH_FILE
    except OSError as error:
        return reason(error)


def reason(error: OSError) -> str:
    """What the operating system says is wrong, without the path: ``file name too long``."""
    told = error.strerror or str(error)
    return f"{told[:1].lower()}{told[1:]}"
