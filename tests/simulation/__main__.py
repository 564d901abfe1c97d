"""`python -m tests.simulation`: many days on all cores, or one day again, to the step."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.day import Outcome, play
from tests.simulation.figures import told
from tests.simulation.invariants import Violation


def _outcome(seed: int) -> Outcome | str:
    try:
        return play(seed)
    except Violation as violation:
        return str(violation)


def outcomes(seeds: Iterable[int], jobs: int) -> Iterator[Outcome | str]:
    """What came of each seed, in their order; a sentence where something did not hold."""
    if jobs == 1:
        yield from map(_outcome, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_outcome, seeds, chunksize=4)


def main() -> int:
    """Returns 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--days", type=int, default=200, help="how many seeds are played")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes play them")
    parser.add_argument("--seed", type=int, help="play this one only")
    parser.add_argument("--until", type=int, help="stop before this step of it, and show what happened last")
    asked = parser.parse_args()
    if asked.seed is not None:
        try:
            day = play(asked.seed, until=asked.until)
        except Violation as violation:
            print(violation)
            return 1
        print(*day.tail, sep="\n")
        print(f"seed {asked.seed}: {day.steps} steps, trace {day.trace}")
        return 0
    began, figures, faults, violations = time.monotonic(), Counter[str](), Counter[str](), 0
    for outcome in outcomes(range(asked.first, asked.first + asked.days), asked.jobs):
        if isinstance(outcome, str):
            violations += 1
            print(outcome, flush=True)
        else:
            figures += outcome.figures
            faults += outcome.faults
            figures["steps"] += outcome.steps
    print(*told(figures, faults, violations), sep="\n")
    print(f"{figures['days'] / (time.monotonic() - began):.1f} days a second in {asked.jobs} processes")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
