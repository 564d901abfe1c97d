"""`scaler replay`: what the decision would have done during a recording, and how near that is to the best."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scaler.cli import EXIT_OK, Command
from scaler.cli.progress import working
from scaler.cli.recorded import Recorded, add_arguments, recorded
from scaler.errors import ConfigError
from scaler.levels import GIB, OFF
from scaler.readings import Reading
from scaler.replay.closed_loop import Outcome, play
from scaler.replay.optimum import Others, best_score
from scaler.words import duration, percent

SUFFIXES = (".png", ".svg")
BAR = 24


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it as well: a .png or .svg")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")


def _run(args: argparse.Namespace) -> int:
    if args.picture is not None and args.picture.suffix not in SUFFIXES:
        raise ConfigError(f"--picture: {args.picture} cannot be drawn; expected a name that ends in .png or .svg")
    trail = None
    if args.picture is not None:
        from scaler.replay.picture import Trail, require

        require()
        trail = Trail()
    given = recorded(args)
    seen = _Seen()
    others = Others(_resources(given), given.policy.stale_after_s)
    outcome = play(
        seen.noting(given.readings("replaying"), others),
        given.ladder,
        given.policy,
        watch=None if trail is None else trail.add,
    )
    with working("looking for the best that could have been had"):
        best = best_score(others, given.ladder, given.policy)
    report = _report(given, outcome, best, seen)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for line in _lines(report):
            print(line)
    if trail is not None:
        from scaler.replay.picture import draw

        # Last: where it cannot be written, the figures were told all the same.
        draw(trail, given.policy, [level.name for level in given.ladder], _headline(outcome, best), args.picture)
        if not args.json:
            print(f"drawn into {args.picture}")
    return EXIT_OK


def _resources(given: Recorded) -> tuple[str, ...]:
    from scaler.footprints import Footprints

    return tuple(Footprints(given.ladder, given.policy.footprint_half_life_s).resources)


class _Seen:
    """When the recording begins and ends, by the wall clock, and the size of its machine."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.total_bytes = 0

    def noting(self, readings: Iterator[Reading], others: Others) -> Iterator[Reading]:
        for reading in readings:
            if self.first_s is None:
                self.first_s = reading.wall_s
            self.last_s = reading.wall_s
            if reading.memory is not None:
                self.total_bytes = reading.memory.total_bytes
            others.add(reading)
            yield reading


def captured(score: float, smallest: float, best: float) -> float | None:
    """Which part of what a clairvoyant gains over the smallest level alone; None where there is nothing to gain."""
    return (score - smallest) / (best - smallest) if best - smallest > 1e-6 * abs(best) + 1e-9 else None


def _headline(outcome: Outcome, best: float) -> str:
    part = captured(outcome.score, outcome.smallest_score, best)
    return "" if part is None else f"{part:.0%} of what could have been gained by knowing the future"


def _report(given: Recorded, outcome: Outcome, best: float, seen: _Seen) -> dict[str, Any]:
    plain = asdict(outcome)
    del plain["blocks"]
    return {
        "source": str(given.recording.source),
        "tier": given.parts.tier.tier.name,
        "from": _iso(seen.first_s),
        "to": _iso(seen.last_s),
        "total_bytes": seen.total_bytes,
        "policy": asdict(given.policy),
        **plain,
        "best_score": best,
        "captured": captured(outcome.score, outcome.smallest_score, best),
        "regret_per_s": (best - outcome.score) / outcome.seconds if outcome.seconds else None,
        "notes": given.recording.notes,
    }


def _iso(wall_s: float | None) -> str | None:
    return None if wall_s is None else datetime.fromtimestamp(wall_s, UTC).astimezone().isoformat(timespec="seconds")


def _lines(report: dict[str, Any]) -> Iterator[str]:
    seconds, policy = report["seconds"], report["policy"]
    gaps = report["gaps"]
    without = "" if not gaps else ", without one gap" if gaps == 1 else f", without {gaps} gaps"
    yield f"played    {duration(seconds)}{without}, of {report['source']}"
    when = f"{_local(report['from'])} to {_local(report['to'])}, " if report["from"] else ""
    yield f"          {when}on {report['total_bytes'] / GIB:.1f} GiB, with tier {report['tier']}"
    for name, at in reversed(report["seconds_at"].items()):
        share = at / seconds if seconds else 0.0
        if name == OFF:
            name = "no level"
        yield f"  {name:<10} {'█' * round(BAR * share):<{BAR}} {share:6.1%}  {duration(at)}"
    yield (
        f"usage     above {percent(policy['scale_at'])} for {duration(report['tight_s'])}, "
        f"above {percent(policy['critical_at'])} for {duration(report['critical_s'])}"
    )
    yield (
        f"switches  {report['switches']}; climbs undone within {duration(policy['wasted_within_s'])}: "
        f"{report['wasted']}; kills for want of memory: {report['kills']}"
    )
    if seconds:
        mean, least, best = (report[key] / seconds for key in ("score", "smallest_score", "best_score"))
        part = report["captured"]
        yield f"score     {mean:.3f} (quality less costs); the smallest level alone {least:.3f}, at best {best:.3f}"
        if part is not None:
            yield f"          {part:.0%} of what could have been gained by knowing the future"
    for note in report["notes"]:
        yield f"note      {note}"


def _local(time: str) -> str:
    return time[:16].replace("T", " ")


COMMAND = Command(
    "replay", "what would have been decided during a recording, and how near the best that is", _add_arguments, _run
)
