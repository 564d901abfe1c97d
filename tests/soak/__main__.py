"""``python -m tests.soak [--seconds 3600] [--seed N]``: soaks a ladder, prints the figures; fails on any violation."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from scaler import paths
from scaler.demo.models import make_demo_models
from tests.soak.course import Soak
from tests.soak.daemon import lacking


def main() -> int:
    """Run it; 0 where nothing was wrong, 1 where something was, 2 where it cannot be had here."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="for how long faults befall it")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="decides their order")
    args = parser.parse_args()
    if (why := lacking()) is not None:
        print(f"no soak: {why}", file=sys.stderr)
        return 2
    models = {model.name: model.path for model in make_demo_models(paths.demo_models(), lambda *_: None)}
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        soak = Soak(Path(folder), models, args.seconds, args.seed)
        figures = soak.run()
        print("\n".join(figures.lines()))
        if figures.violations:
            print((Path(folder) / "output.txt").read_text(errors="replace"), file=sys.stderr)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
