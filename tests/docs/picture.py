"""The README's picture: a ladder of real models that gives way and climbs back, and a client whose answers go on.

``python -m tests.docs.picture`` (`make pictures`) has the ladder live through it, a minute and a half, writes down what
happened, and draws it for light and for dark pages; ``--draw`` draws what is written down. Real are the models, their
memory, the decisions, the switches and the answers. What other programs use is played, on a machine of 4 GiB, so that
the picture does not tell what else ran here. It is in a hurry, as the README says: a dwell of 12 s, 2 s of drain;
and the models have all processors and are not nice, as nothing else is to be spared.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from scaler.demo.count import Count
from scaler.levels import GIB, OFF, RAM
from scaler.manager import ModelManager
from scaler.serving.app import Endpoint
from scaler.settings import load_settings
from tests.end_to_end.conftest import TOTAL, Machine

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
RUN = FOLDER / "stepping-down.json"
PLAYED = ((0, 1.5), (26, 1.5), (54, 2.7), (60, 2.7), (70, 3.05), (78, 3.05), (81, 1.5), (120, 1.5))
"""What other programs use: seconds and GiB, in straight lines."""
PICTURES = {"light": FOLDER / "stepping-down-light.svg", "dark": FOLDER / "stepping-down-dark.svg"}
SIZE = 8.5, 4.4
"""In inches: as wide as GitHub shows a README, at 100 pixels an inch."""
COLOURS = {
    "light": {"ink": "#1f2328", "faint": "#656d76", "others": "#c9ced4", "limit": "#bc4c00", "critical": "#cf222e"},
    "dark": {"ink": "#e6edf3", "faint": "#9198a1", "others": "#4a525c", "limit": "#f0883e", "critical": "#ff7b72"},
}
"""Those of GitHub's pages."""
LEVELS = {"light": ("#4fb3a5", "#3a86c8", "#8a63d2"), "dark": ("#4fb3a5", "#4c9be8", "#a17fe0")}
"""Of the levels, the smallest first."""
DWELL_S, DRAIN_S = 12.0, 2.0
THICK_GIB = 0.2
PACE_S = 0.25
SILENCE_S = 1.5
"""A break of so long is drawn."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What was seen at one time."""

    at_s: float
    other_gib: float
    own_gib: float
    serving: str
    answers: int
    """How many answers the client had had by then."""
    level: str
    """That which said more of the present answer since the moment before; empty if none did."""


@dataclass(frozen=True, slots=True)
class Run:
    """What happened; limits in GiB."""

    levels: tuple[str, ...]
    limit_gib: float
    critical_gib: float
    whole: int
    """How many of the answers had every number from 1 to 999, once each."""
    faults: int
    moments: tuple[Moment, ...]


def played_gib(at_s: float) -> float:
    """What other programs use at a time."""
    after = min(bisect(PLAYED, (at_s, 0)), len(PLAYED) - 1)
    (begin_s, begin), (end_s, end) = PLAYED[after - 1], PLAYED[after]
    return begin + (end - begin) * min(1.0, (at_s - begin_s) / (end_s - begin_s))


def live() -> Run:
    """Have the ladder live through it."""
    machine, moments = Machine(), []
    machine.other_bytes = int(played_gib(0) * GIB)
    levels = load_settings(shipped=True).ladder
    ladder = [level.model_dump(mode="json", exclude_defaults=True) | {"threads": os.cpu_count()} for level in levels]
    with TemporaryDirectory(prefix="scaler-picture-") as folder:
        config = {
            "tier": "mid_range",
            "ladder": ladder,
            "monitor": {"interval_s": PACE_S},
            "journal": {"path": f"{folder}/journal.jsonl"},
            "policy": {"dwell_s": DWELL_S, "dwell_max_s": DWELL_S, "drain_seconds": DRAIN_S},
            "processes": {"nice": 0},
        }
        path = Path(folder) / "scaler.yaml"
        path.write_text(yaml.safe_dump(config), "utf-8")
        with ModelManager(path, sensors=machine.sensors) as manager:
            scaler = manager.scaler
            policy = scaler.policy
            endpoint = Endpoint(manager, "127.0.0.1", 0)
            endpoint.start()
            client = Count(endpoint.url)
            client.start()
            began, before = time.monotonic(), client.now
            while (at_s := time.monotonic() - began) < PLAYED[-1][0]:
                machine.other_bytes = int(played_gib(at_s) * GIB)
                status = scaler.status()
                if usage := status.usage.get(RAM):
                    now = client.now
                    said = now.partition(":")[0].rpartition(" ")[2] if now != before else ""
                    before = now
                    other, own = (round(part / GIB, 3) for part in (usage.other_bytes, usage.own_bytes))
                    moments.append(Moment(round(at_s, 2), other, own, status.serving, client.whole.total(), said))
                time.sleep(PACE_S)
            client.end()
            endpoint.stop()
    limits = policy.scale_at * TOTAL / GIB, policy.critical_at * TOTAL / GIB
    return Run(tuple(level.name for level in levels), *limits, client.whole.total(), len(client.faults), tuple(moments))


def read() -> Run:
    """What is written down."""
    plain = json.loads(RUN.read_text("utf-8"))
    return Run(**plain | {"levels": tuple(plain["levels"]), "moments": tuple(Moment(*one) for one in plain["moments"])})


def write(run: Run) -> None:
    """Write it down, a moment a line."""
    plain = asdict(run) | {"moments": []}
    moments = ",\n".join(json.dumps(astuple(moment)) for moment in run.moments)
    RUN.write_text(json.dumps(plain).replace("[]}", f"[\n{moments}\n]}}\n"), "utf-8")


def draw(run: Run, theme: str) -> None:
    """Draw it for light or for dark pages, on no ground of its own."""
    import matplotlib
    from matplotlib.figure import Figure

    colour, levels = COLOURS[theme], dict(zip(run.levels, LEVELS[theme], strict=True))
    inked: Sequence[Any] = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # The salt makes the same run the same file.
    with matplotlib.rc_context({"svg.hashsalt": "scaler", "font.size": 10, **dict.fromkeys(inked, colour["ink"])}):
        figure = Figure(figsize=SIZE, layout="constrained")
        memory, answers = figure.subplots(2, 1, sharex=True, height_ratios=(8, 1))
        _draw_memory(memory, run, colour, levels)
        _draw_answers(answers, run, levels)
        for axes in (memory, answers):
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(length=0)
            axes.set_xlim(0, run.moments[-1].at_s)
        answers.set_xticks(range(0, int(run.moments[-1].at_s) + 1, 20))
        answers.set_xlabel("seconds", labelpad=0)
        figure.savefig(PICTURES[theme], transparent=True, metadata={"Date": None})


def _draw_memory(axes: Any, run: Run, colour: dict[str, str], levels: dict[str, str]) -> None:
    """Who has the memory: others below, the model on top of them, in the colour of the level that serves."""
    at = [moment.at_s for moment in run.moments]
    axes.fill_between(at, [moment.other_gib for moment in run.moments], color=colour["others"], linewidth=0)
    axes.annotate("other programs", (1.5, 0.15))
    for level, begin, end in _spans(run):
        # To the next span's first moment, so that no gap is left.
        there = run.moments[begin : end + 1]
        base = [moment.other_gib for moment in there]
        top = [moment.other_gib + moment.own_gib for moment in there]
        if level != OFF:
            axes.fill_between([moment.at_s for moment in there], base, top, color=levels[level], linewidth=0)
            thick = there[len(there) // 2].own_gib > THICK_GIB
            # On a thin one there is no room for its name. Near the middle nothing falls or rises.
            moment = there[len(there) // 3 if thick else len(there) * 3 // 5]
            above_gib = moment.own_gib / 2 if thick else moment.own_gib + 0.13
            inked = {"color": "white" if thick else levels[level], "weight": "bold"}
            axes.annotate(level, (moment.at_s, moment.other_gib + above_gib), ha="center", va="center", **inked)
    down, up = _told(run)
    arrow = {"arrowprops": {"arrowstyle": "->", "color": colour["ink"]}, "va": "center"}
    axes.annotate("steps down, and the answer goes on", (down, 3.5), (down + 5, 3.5), **arrow)
    axes.annotate(
        "climbs back once\nthe room has stayed", (up, 2.68), (run.moments[-1].at_s - 12, 2.9), **arrow, ha="right"
    )
    for what, gib in (("memory is critical", run.critical_gib), ("limit", run.limit_gib)):
        name = what.rpartition(" ")[2]
        axes.axhline(gib, color=colour[name], linewidth=1.2, linestyle=(0, (5, 3)))
        axes.annotate(what, (1.5, gib - 0.05), color=colour[name], va="top")
    axes.set_ylim(0, TOTAL / GIB)
    axes.set_yticks(range(int(TOTAL / GIB) + 1))
    axes.set_ylabel("memory in use, GiB")


def _told(run: Run) -> tuple[float, float]:
    """When it went down first, and up last."""
    changes = [(run.moments[begin - 1], run.moments[begin]) for _, begin, _ in _spans(run)[1:]]
    ranks = (OFF, *run.levels)
    ups = [ranks.index(before.serving) < ranks.index(after.serving) for before, after in changes]
    down, up = ups.index(False), len(ups) - 1 - ups[::-1].index(True)
    return changes[down][1].at_s, changes[up][1].at_s


def _draw_answers(axes: Any, run: Run, levels: dict[str, str]) -> None:
    """One bar for each answer, in the colours of the levels that said it."""
    for _, moments in groupby(run.moments, key=lambda moment: moment.answers):
        said = [moment for moment in moments if moment.level]
        axes.broken_barh([(said[0].at_s, said[-1].at_s - said[0].at_s)], (0.42, 0.16), color="#8b949e", linewidth=0)
        for level, part in groupby(said, key=lambda moment: moment.level):
            seen = [moment.at_s for moment in part]
            for begin, end in _together(seen):
                axes.broken_barh([(begin, end - begin)], (0.1, 0.8), color=levels[level], linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.5], ["answers"])


def _together(times: Sequence[float]) -> Sequence[tuple[float, float]]:
    """Stretches of time without a silence."""
    begins = [0, *(i for i, (a, b) in enumerate(pairwise(times), 1) if b - a > SILENCE_S), len(times)]
    return [(times[begin], times[end - 1]) for begin, end in pairwise(begins)]


def _spans(run: Run) -> Sequence[tuple[str, int, int]]:
    """Which level served from which moment to before which."""
    begins = [0, *(i for i, (a, b) in enumerate(pairwise(run.moments), 1) if a.serving != b.serving), len(run.moments)]
    return [(run.moments[begin].serving, begin, end) for begin, end in pairwise(begins)]


def main() -> None:
    """Live and draw, or draw only."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs.picture")
    parser.add_argument("--draw", action="store_true", help="draw what is written down")
    if not parser.parse_args().draw:
        write(live())
    for theme in PICTURES:
        draw(read(), theme)


if __name__ == "__main__":
    main()
