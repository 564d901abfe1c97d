"""The figures of many days, as lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

CLEAN = ("QueueFull", "RequestTimedOut", "LevelUnavailable", "NeverAsked", "RequestRejected")


def told(figures: Counter[str], faults: Counter[str], violations: int) -> Iterator[str]:
    """One line each: what was simulated, what came of the requests, what was injected, what did not hold."""
    outcomes = {key.removeprefix("outcome: "): number for key, number in figures.items() if key.startswith("outcome: ")}
    yield (
        f"{figures['days']:,} days, {figures['lives']:,} lives of a manager, {figures['readings']:,} readings, "
        f"{figures['steps']:,} steps"
    )
    yield (
        f"{figures['decisions']:,} decisions, {figures['switches']:,} switches ({figures['upgrades']:,} climbs), "
        f"{figures['failed switches']:,} that failed, {figures['deaths']:,} deaths, "
        f"{figures['kernel kills']:,} kills by the kernel"
    )
    whole, clean = outcomes.pop("whole", 0), sum(outcomes.pop(name, 0) for name in CLEAN)
    others = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(outcomes.items()))
    yield (
        f"{figures['requests']:,} requests: {whole:,} whole answers ({figures['handed over']:,} hand-overs), "
        f"{clean:,} clean errors, {others}"
    )
    yield (
        f"{figures['reloads']:,} reloads: {figures['reload: applied']:,} applied, "
        f"{figures['reload: refused']:,} refused, {figures['reload: cancelled']:,} hung up on; "
        f"{figures['kills of a manager']:,} managers killed, "
        f"{figures['levels known again']:,} levels known again, {figures['damaged files put aside']:,} damaged files"
    )
    by_kind = Counter[str]()
    for fault, number in faults.items():
        by_kind[fault.rpartition(" ")[2]] += number
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in by_kind.most_common())
    yield f"{faults.total():,} faults injected at {len(faults)} places and kinds: {kinds}"
    yield f"{figures['journals read back']:,} journals read back, {figures['lives replayed']:,} lives replayed"
    yield f"{violations} violations"
