"""`python -m tests.exhaustive [PART OF A NAME ...]`: what was gone through; 1 where an invariant is broken."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.exhaustive.counterexample import steps, write
from tests.exhaustive.figures import HEAD, line, names, search, searched, total
from tests.exhaustive.scopes import scopes


def main() -> int:
    """Go through the scopes; tell of what is broken with the shortest path to it."""
    parser = argparse.ArgumentParser(prog="python -m tests.exhaustive", description="every reachable state")
    parser.add_argument("part", nargs="*", help="only the scopes whose name has this in it")
    parser.add_argument(
        "--first", action="store_true", help="one after the other, up to the first that breaks an invariant"
    )
    args = parser.parse_args()
    by_name = {scope.name: scope for scope in scopes()}
    print(HEAD, flush=True)
    done, broken = [], 0
    chosen = names(*args.part)
    for found in map(search, chosen) if args.first else searched(chosen):
        done.append(found)
        print(line(found), flush=True)
        if found.broken is not None:
            broken += 1
            scope = by_name[found.scope]
            print("\n".join(steps(found.broken, scope)))
            for command in write(found.broken, scope, Path(tempfile.mkdtemp(prefix="counterexample-"))):
                print(f"  {command}", flush=True)
            if args.first:
                break
    print(total(done))
    return 1 if broken or not all(found.complete for found in done) else 0


if __name__ == "__main__":
    sys.exit(main())
