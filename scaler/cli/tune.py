"""`scaler tune`: better parameters for this machine, searched and judged on its own recording."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from scaler import paths
from scaler.cli import EXIT_NO, EXIT_OK, Command
from scaler.cli.progress import bar, clear
from scaler.cli.recorded import Recorded, add_arguments, recorded
from scaler.errors import ConfigError, ScalerError
from scaler.levels import Ladder
from scaler.policy import Policy
from scaler.readings import Reading
from scaler.recordings import Recording
from scaler.replay.closed_loop import Outcome, play
from scaler.replay.tuning import (
    HELD_BACK,
    INTERVAL,
    LEAST_S,
    LEAST_SWITCHES,
    PASSES,
    SEARCHED,
    Found,
    Gain,
    changes,
    gain,
    is_less_safe,
    search,
)
from scaler.words import duration

MOST_S = 4 * 86_400.0
"""No more than this is searched, the newest: a play of it takes ten seconds, and a hundred are needed."""
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a recording, in the recording's own time."""

    source: Path
    since_wall_s: float | None
    total_bytes: int
    begin_s: float
    end_s: float

    def readings(self) -> Iterator[Reading]:
        """Read anew for each play, so that a month needs no more memory than a minute."""
        recording = Recording(self.source, since_wall_s=self.since_wall_s, total_bytes=self.total_bytes)
        within = takewhile(lambda reading: reading.at_s < self.end_s, recording)
        return (reading for reading in within if reading.at_s >= self.begin_s)


@dataclass(frozen=True, slots=True)
class Tried:
    """What the search and the judgement came to."""

    searched_s: float
    held_back_s: float
    found: Found
    gain: Gain
    before: Outcome
    after: Outcome
    pays: bool


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the tier's YAML there; must not exist yet")
    parser.add_argument("--jobs", type=int, metavar="N", help="so many processes; half of the processors if left out")
    parser.add_argument("--json", action="store_true", help="everything as JSON")


def _run(args: argparse.Namespace) -> int:
    if args.output is not None:
        if args.output.exists():
            raise ConfigError(f"--output: {args.output} exists already; expected a name that is free")
        folder = args.output.parent
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            # The search takes minutes, and is not to be for nothing.
            raise ConfigError(f"--output: {folder} is no folder that can be written to; make it, or name another")
    if args.jobs is not None and not 1 <= args.jobs <= 256:
        raise ConfigError(f"--jobs: {args.jobs} cannot be used; expected a whole number from 1 to 256")
    given = recorded(args)
    searched, held_back, whole_s = _split(given)
    if refusal := _too_short(whole_s):
        return _refuse(args, refusal)
    jobs = args.jobs or max(1, (os.cpu_count() or 2) // 2)
    # Ctrl-C on a terminal reaches them, too, and is ours to answer.
    with ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            (present,) = _plays(pool, searched, given.ladder, [given.policy])
            if refusal := _too_calm(present):
                return _refuse(args, refusal)
            tried = _tune(given, pool, searched, held_back, present.seconds)
        except KeyboardInterrupt:
            # A play takes seconds, which nobody waits for any more.
            for worker in active_children():
                worker.terminate()
            raise
    own = sorted(set(given.parts.settings.policy) & set(SEARCHED))
    report = _report(given, tried, own)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for line in _lines(report):
            print(line)
    if not tried.pays:
        return EXIT_NO
    text = _yaml(given, tried)
    if not args.json and args.output is None:
        print(f"\nAs a file for {paths.tiers()} (or give --output):\n\n{text}", end="")
    elif args.output is not None:
        try:
            with args.output.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            if not args.json:
                print(f"\nWhat was to be written:\n\n{text}", end="")
            raise ScalerError(f"{args.output}: cannot be written: {error.strerror or error}") from error
        if not args.json:
            print(f"\nwritten to {args.output}; it applies once it lies in {paths.tiers()}")
    return EXIT_OK


def _split(given: Recorded) -> tuple[Part, Part, float]:
    """The part to search, the part that judges, and how much there is, gaps left out."""
    played_s, before_s = 0.0, None
    hours: list[float] = []
    end_s = 0.0
    for reading in given.readings("reading"):
        if before_s is not None and reading.at_s - before_s <= given.policy.stale_after_s:
            played_s += reading.at_s - before_s
        # When each hour of played time was reached: parts begin and end at whole hours.
        while played_s >= len(hours) * HOUR_S:
            hours.append(reading.at_s)
        before_s = end_s = reading.at_s
    recording = given.recording
    cut = round(len(hours) * (1 - HELD_BACK))
    first = max(0, cut - int(MOST_S / HOUR_S))

    def part(begin_s: float, until_s: float) -> Part:
        return Part(recording.source, recording.since_wall_s, recording.total_bytes, begin_s, until_s)

    middle_s = hours[cut] if cut < len(hours) else end_s
    return part(hours[first], middle_s), part(middle_s, end_s), played_s


def _too_short(whole_s: float) -> str | None:
    if whole_s >= LEAST_S:
        return None
    return (
        f"too little is recorded to recommend anything: {duration(whole_s)}, expected {duration(LEAST_S)} or more; "
        "less shows neither a working day nor a night. Let `scaler run` or `scaler record` go on"
    )


def _too_calm(present: Outcome) -> str | None:
    if present.switches >= LEAST_SWITCHES:
        return None
    return (
        f"too little happened to recommend anything: the searched part has {present.switches} switches in "
        f"{duration(present.seconds)}, expected {LEAST_SWITCHES} or more; on so calm a machine hardly anything depends "
        "on these parameters"
    )


def _refuse(args: argparse.Namespace, why: str) -> int:
    print(json.dumps({"recommended": False, "reason": why}, indent=2) if args.json else why)
    return EXIT_NO


def _play(job: tuple[Part, Ladder, Policy]) -> Outcome:
    part, ladder, policy = job
    return play(part.readings(), ladder, policy)


def _plays(pool: ProcessPoolExecutor, part: Part, ladder: Ladder, policies: Sequence[Policy]) -> list[Outcome]:
    return list(pool.map(_play, [(part, ladder, policy) for policy in policies]))


def _tune(given: Recorded, pool: ProcessPoolExecutor, searched: Part, held_back: Part, searched_s: float) -> Tried:
    expected = 1 + PASSES * sum(len(values) - 1 for values in SEARCHED.values())
    began_s, done = time.monotonic(), 0

    def tell(policies: Sequence[Policy]) -> list[Outcome]:
        nonlocal done
        outcomes = _plays(pool, searched, given.ladder, policies)
        done += len(policies)
        # A last pass that changes nothing ends the search before.
        bar("searching", min(0.99, done / expected), time.monotonic() - began_s)
        return outcomes

    found = search(given.policy, tell, fixed=given.parts.settings.policy)
    clear()
    before, after = _plays(pool, held_back, given.ladder, [given.policy, found.policy])
    judged = gain(before, after)
    changed = found.policy != given.policy
    pays = changed and judged.low > 0 and not is_less_safe(after, before)
    return Tried(searched_s, before.seconds, found, judged, before, after, pays)


def _report(given: Recorded, tried: Tried, own: Sequence[str]) -> dict[str, Any]:
    def figures(outcome: Outcome) -> dict[str, float]:
        days = outcome.seconds / 86_400
        return {
            "quality": outcome.quality_s / outcome.seconds,
            "score": outcome.score / outcome.seconds,
            "tight_ratio": outcome.tight_s / outcome.seconds,
            "critical_s": outcome.critical_s,
            "switches_per_day": outcome.switches / days,
            "wasted_per_day": outcome.wasted / days,
            "kills": outcome.kills,
        }

    return {
        "recommended": tried.pays,
        "source": str(given.recording.source),
        "tier": given.parts.tier.tier.name,
        "searched_s": tried.searched_s,
        "held_back_s": tried.held_back_s,
        "plays": tried.found.plays,
        "changes": {
            name: {"now": now, "proposed": proposed, "gain": tried.found.gains[name]._asdict()}
            for name, (now, proposed) in changes(given.policy, tried.found.policy).items()
        },
        "held_back": {
            "gain": tried.gain._asdict(),
            "interval": INTERVAL,
            "now": figures(tried.before),
            "proposed": figures(tried.after),
        },
        "fixed_by_configuration": list(own),
        "notes": given.recording.notes,
    }


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield (
        f"searched {duration(report['searched_s'])} with {report['plays']} replays, then judged on the "
        f"{duration(report['held_back_s'])} after it, which the search did not see"
    )
    if report["fixed_by_configuration"]:
        yield f"left as your configuration has them: {', '.join(report['fixed_by_configuration'])}"
    for note in report["notes"]:
        yield f"note: {note}"
    if not report["changes"]:
        yield "nothing pays: the present values are as good as any that were tried"
        return
    yield ""
    yield f"{'parameter':<18}{'now':>10}{'proposed':>10}   gain where it was searched"
    for name, change in report["changes"].items():
        yield f"{name:<18}{change['now']:>10g}{change['proposed']:>10g}   {_gain(change['gain'])}"
    held_back = report["held_back"]
    yield ""
    yield f"{'held back':<18}{'now':>10}{'proposed':>10}"
    for key, words in FIGURES.items():
        yield f"{words:<18}{held_back['now'][key]:>10.4g}{held_back['proposed'][key]:>10.4g}"
    yield f"gain {_gain(held_back['gain'])} quality a second, with {held_back['interval']:.0%} probability between"
    yield (
        "recommended: the gain is more than luck, and nothing is less safe"
        if report["recommended"]
        else "not recommended: on what was held back the gain may be luck, or something is less safe"
    )


FIGURES: dict[str, str] = {
    "score": "score",
    "quality": "quality",
    "tight_ratio": "above scale_at",
    "critical_s": "critical, s",
    "switches_per_day": "switches a day",
    "wasted_per_day": "wasted a day",
    "kills": "kills",
}


def _gain(some: dict[str, float]) -> str:
    return f"{some['mean']:+.4f} ({some['low']:+.4f} to {some['high']:+.4f})"


def _yaml(given: Recorded, tried: Tried) -> str:
    tier = given.parts.tier.tier.name
    lines = [
        f"# Found by `scaler tune` on {given.recording.source}:",
        f"# {_gain(tried.gain._asdict())} quality a second on {duration(tried.held_back_s)} that were held back.",
        f"name: {tier}",
        "policy:",
    ]
    for name, (now, proposed) in changes(given.policy, tried.found.policy).items():
        lines.append(f"  {name}: {proposed}  # was {now}; {_gain(tried.found.gains[name]._asdict())}")
    return "\n".join(lines) + "\n"


COMMAND = Command(
    "tune",
    "better parameters for this machine, found and judged on its recording",
    _add_arguments,
    _run,
    yes="recommended",
    no="there is nothing to recommend",
)
