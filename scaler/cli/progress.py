"""What long work says while it goes on: one line on stderr, on a terminal only, that is gone when the work is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

WIDTH = 30


@contextmanager
def working(what: str) -> Iterator[None]:
    """Tell what takes a while, for as long as it does."""
    line(what)
    try:
        yield
    finally:
        clear()


def watched() -> bool:
    """Whether somebody looks."""
    return sys.stderr.isatty()


def line(text: str) -> None:
    """Draw one line over the last one."""
    if watched():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def bar(doing: str, share: float, passed_s: float) -> None:
    """The same: what is done, how far it is, and how long it will take."""
    full = int(WIDTH * share)
    left = f"{passed_s * (1 - share) / share:.0f} s left" if share > 0.02 else ""
    line(f"{doing} {'█' * full}{'░' * (WIDTH - full)} {share:4.0%} {left}")


def clear() -> None:
    """Take the last line away again."""
    line("")
