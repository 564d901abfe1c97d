"""What each mechanism of the decision is worth: the arena with each one switched off in turn, as a table for the docs.

`make ablation` runs it where the arena lies beside this checkout; a quarter of an hour. The recordings are split in two
halves by where they come from, so that no half knows the other's machines.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from scaler.cli.control import TIER
from scaler.paths import shipped_config

ARENA = Path(__file__).parents[3] / "shared" / "arena"
HALVES = {"desktops, laptops B, pools": ("hpa-desktop", "hpa-laptopB", "pool"), "laptops A, servers, training": ()}
"""The sources in the first half; the second has all others that are real."""
SHIPPED = yaml.safe_load((shipped_config() / "tiers" / f"{TIER}.yaml").read_text("utf-8"))["policy"]
OFF: dict[str, dict[str, float]] = {
    "all as shipped": {},
    "no learned band (`band_max` = `band`)": {"band_max": SHIPPED["band"]},
    "no longer dwell after waste (`dwell_max_s` = `dwell_s`)": {"dwell_max_s": SHIPPED["dwell_s"]},
    "no answer to rises (`rise_s` = 0)": {"rise_s": 0.0},
    "no patience when exhausted (`exhausted_s` = 0)": {"exhausted_s": 0.0},
    "no needles (`needle_s` = 0)": {"needle_s": 0.0},
    "no debounce (`debounce_s`, `needle_s` = 0)": {"debounce_s": 0.0, "needle_s": 0.0},
    "no caution (`caution_max` = 0)": {"caution_max": 0.0},
    "recovery as cautious as a climb (`recovery_band` = `band`)": {"recovery_band": SHIPPED["band"]},
}


def play(changes: dict[str, float]) -> list[dict[str, Any]]:
    """The arena's rows with a policy that differs by ``changes``."""
    with tempfile.TemporaryDirectory() as folder:
        tiers = Path(folder) / "scaler" / "tiers"
        tiers.mkdir(parents=True)
        (tiers / f"{TIER}.yaml").write_text(yaml.safe_dump({"name": TIER, "policy": changes}))
        rows = Path(folder) / "rows.json"
        traces = sorted(str(path) for path in (ARENA / "traces").glob("*.csv.gz"))
        command = [sys.executable, str(ARENA / "arena.py"), *traces, "--synthetic", "--baselines", "none"]
        command += ["--json", str(rows), "--command", sys.executable, "-m", "scaler", "control", "--tier", TIER]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"XDG_CONFIG_HOME": folder})
        return list(json.loads(rows.read_text()))


def figures(rows: list[dict[str, Any]]) -> str:
    """Captured, regret, wasted climbs a day, unserved %, killed answers and kills by the kernel, as cells."""
    days = sum(row["hours"] for row in rows) / 24
    captured = sum(row["gain"] for row in rows) / sum(row["possible"] for row in rows)
    regret = statistics.fmean(row["possible"] - row["gain"] for row in rows)
    wasted = sum(row["wasted_upgrades"] for row in rows) / days
    unserved = statistics.fmean(row["unserved_pct"] for row in rows)
    killed, oom = sum(row["killed_tasks"] for row in rows), sum(row["oom_kills"] for row in rows)
    return f"{captured:.3f} | {regret:.4f} | {wasted:.2f} | {unserved:.2f} | {killed} + {oom}"


def half_of(scenario: str) -> str:
    """Which half, or the made-up ones."""
    first, second = HALVES
    return "made up" if scenario.startswith("syn-") else first if scenario.startswith(HALVES[first]) else second


def main() -> None:
    """Print a table for each half, and one for the made-up scenarios."""
    if not ARENA.is_dir():
        sys.exit(f"the arena is not at {ARENA}; nothing was measured")
    parts: dict[str, list[str]] = {}
    for name, changes in OFF.items():
        rows = play({**SHIPPED, **changes})
        for part in (*HALVES, "made up"):
            mine = [row for row in rows if half_of(row["scenario"]) == part]
            parts.setdefault(f"{part} ({len(mine)})", []).append(f"| {name} | {figures(mine)} |")
    for part, lines in parts.items():
        print(f"\n| {part} | captured | regret | wasted a day | unserved % | killed answers + kills |")
        print("| --- | --- | --- | --- | --- | --- |")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
