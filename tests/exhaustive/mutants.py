"""`python -m tests.exhaustive.mutants`: plants each fault in a copy of the package, and tells which test catches it.

A copy has the package and the tests, nothing else of the checkout. The search goes through the smallest ladders, the
tests of the decision run, then the search goes on and the slow tests run, until something fails. 1 where fewer than
`LEAST` of the faults are caught, or where one is not and the list does not say why.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.exhaustive.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
LEAST = 0.95
LIMIT_S = 1800
SEARCH = "search: "
SMALLEST = ("1 level: effects and people", "2 levels: people")
SMALL = ("1 level", "2 levels", "3 levels: forecasts", "stands by", "RAM, both")
TESTS = ("test_guards", "test_machine", "test_mixed_ladders", "test_boundaries", "test_ceilings", "test_needles")
SLOW_TESTS = ("test_invariants",)


class Outcome(NamedTuple):
    """What became of a fault. ``caught_by`` names the invariant or the test; None: nothing noticed."""

    fault: Fault
    caught_by: str | None
    seconds: float
    by_search: bool


def planted(fault: Fault, folder: Path) -> Path:
    """A copy of package and tests with the fault.

    Raises ValueError where its place is not found just once, SyntaxError where it makes no Python.
    """
    for name in ("scaler", "config", "tests/decision", "tests/exhaustive"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/__init__.py", "tests/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    path = folder / "scaler" / fault.file
    text = path.read_text("utf-8")
    if text.count(fault.old) != 1 or fault.old == fault.new:
        raise ValueError(f"{fault.what}: found {text.count(fault.old)} times in {fault.file}; expected once")
    changed = text.replace(fault.old, fault.new)
    # What is no Python would be caught by anything.
    compile(changed, path, "exec")
    path.write_text(changed, "utf-8")
    return folder


def run(fault: Fault, folder: Path, *, quick: bool) -> Outcome:
    """Plant one fault and look for what catches it; ``quick`` is the search over the smallest ladders alone."""
    began = time.monotonic()
    try:
        copy = planted(fault, folder)
        found = _searched(copy, SMALLEST)
        if not quick:
            # What is quick comes first.
            found = found or _tested(copy, TESTS) or _searched(copy, SMALL) or _tested(copy, SLOW_TESTS)
        by_search = found is not None and found.startswith(SEARCH)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(fault, found, time.monotonic() - began, by_search)


def _searched(copy: Path, parts: Sequence[str]) -> str | None:
    done = _python(copy, "-m", "tests.exhaustive", "--first", *parts)
    if done.returncode == 0:
        return None
    told = re.search(r"^[^\n:]+(?:: [^\n:]+)?: (\w+): ", done.stdout, re.MULTILINE)
    return SEARCH + (told[1] if told else _last(done))


def _tested(copy: Path, names: Sequence[str]) -> str | None:
    files = [f"tests/decision/{name}.py" for name in names]
    done = _python(copy, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files)
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S+/(\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else _last(done)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip()).splitlines()[-1][:100]


def _python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "quick"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    if done.returncode < 0:
        raise ChildProcessError(f"{' '.join(arguments)} was ended by signal {-done.returncode}; nothing is known of it")
    return done


def run_all(faults: Sequence[Fault], folder: Path, *, quick: bool) -> list[Outcome]:
    """Each fault in a copy of its own, two at once."""
    return list(outcomes(faults, folder, quick=quick))


def outcomes(faults: Sequence[Fault], folder: Path, *, quick: bool) -> Iterator[Outcome]:
    """The same, in the order of the list as they are known."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda pair: run(pair[1], folder / str(pair[0]), quick=quick), enumerate(faults))


def main() -> int:
    """Plant them all; tell of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.exhaustive.mutants", description="planted faults")
    parser.add_argument("part", nargs="*", help="only the faults that have this in their name")
    parser.add_argument("--quick", action="store_true", help="the search over the smallest ladders alone")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if not args.part or any(part in fault.what for part in args.part)]
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in outcomes(chosen, Path(folder), quick=args.quick):
            done.append(outcome)
            told = outcome.caught_by or f"ALIVE {outcome.fault.why_alive or 'and nothing says why'}"
            print(f"{outcome.fault.what:<58} {outcome.seconds:6.1f} s  {told}", flush=True)
    caught = [outcome for outcome in done if outcome.caught_by]
    share = len(caught) / len(done)
    by_search = sum(outcome.by_search for outcome in caught)
    print(f"caught {len(caught)} of {len(done)} ({share:.1%}), {by_search} of them by the search")
    unexplained = any(not outcome.caught_by and not outcome.fault.why_alive for outcome in done)
    return 1 if share < LEAST or unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
