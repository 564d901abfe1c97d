"""What is decided during a few short recordings of a real machine, as lines that a change of behaviour shows up in.

The recordings are `scaler record`'s, one reading a second, of a machine with 24 GB: ``work`` has programs that open and
close within seconds, ``leak`` one that grows by an eighth of a GiB a second until it ends, ``needles`` peaks of a
second, ``tests`` this project's own tests and type checks. ``python -m tests.replay.journal`` writes the journal anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scaler.levels import GIB, RAM, Ladder, Level
from scaler.paths import shipped_config
from scaler.recordings import Recording
from scaler.replay.closed_loop import Step, play
from scaler.tiers import HardwareTierDetector

RECORDINGS = Path(__file__).with_name("recordings")
JOURNAL = Path(__file__).with_name("journal.jsonl")
LADDER = Ladder(
    [
        Level("small", {RAM: 4 * GIB}, 0.6, 5.0),
        Level("medium", {RAM: 9 * GIB}, 0.8, 10.0),
        Level("large", {RAM: 13 * GIB}, 1.0, 15.0),
    ]
)


def lines() -> Iterator[str]:
    """A line a decision and a line for what came of each recording, with the shipped tier of ordinary machines.

    Only its dwell, and within what time a climb counts as wasted, are shortened: the recordings are minutes long.
    """
    tier = HardwareTierDetector(shipped_config() / "tiers").tier("mid_range")
    policy = replace(tier.policy, dwell_s=60.0, dwell_max_s=240.0, wasted_within_s=120.0)
    for path in sorted(RECORDINGS.glob("*.csv.gz")):
        steps: list[Step] = []
        outcome = play(Recording(path), LADDER, policy, watch=steps.append)
        name = path.name.removesuffix(".csv.gz")
        for step in steps:
            if step.decision is not None:
                yield json.dumps(
                    {
                        "recording": name,
                        "after_s": round(step.at_s - steps[0].at_s, 1),
                        "from": step.decision.source,
                        "to": step.decision.dest,
                        "because": step.decision.reason,
                    }
                )
        yield json.dumps(
            {
                "recording": name,
                "seconds": round(outcome.seconds),
                "score_per_s": round(outcome.score / outcome.seconds, 3),
                "tight_s": round(outcome.tight_s),
                "critical_s": round(outcome.critical_s),
                "switches": outcome.switches,
                "wasted": outcome.wasted,
                "kills": outcome.kills,
            }
        )


if __name__ == "__main__":
    JOURNAL.write_text("".join(f"{line}\n" for line in lines()))
