"""Goes through the scopes on every processor, and tells what was found as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.exhaustive.scopes import scopes
from tests.exhaustive.search import Found, Search


def names(*parts: str) -> list[str]:
    """The scopes whose name contains any of these, or all of them if none is given."""
    return [scope.name for scope in scopes() if not parts or any(part in scope.name for part in parts)]


def search(name: str) -> Found:
    """Go through one scope."""
    return Search(next(scope for scope in scopes() if scope.name == name)).run()


def searched(chosen: Sequence[str]) -> Iterator[Found]:
    """Go through scopes, as many at once as there are processors; in the order in which they are done."""
    processes = min(
        len(chosen), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if processes == 1:
        yield from map(search, chosen)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        waiting = [pool.submit(search, name) for name in chosen]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def line(found: Found) -> str:
    """One row of the table."""
    return (
        f"{found.scope:<42} {found.letters:>7} {found.states:>8,} {found.edges:>10,} {found.seconds:>8.1f} "
        f"{'yes' if found.complete else 'NO':>9}"
    )


HEAD = (
    f"{'ladder: letters beside readings':<42} {'letters':>7} {'states':>8} {'edges':>10} {'CPU s':>8} {'complete':>9}"
)


def total(found: Iterable[Found]) -> str:
    """The last row."""
    rows = list(found)
    every = Found(
        f"all {len(rows)}",
        0,
        0,
        sum(row.states for row in rows),
        sum(row.edges for row in rows),
        sum(row.seconds for row in rows),
        all(row.complete for row in rows),
        None,
        frozenset(),
    )
    return line(every)
