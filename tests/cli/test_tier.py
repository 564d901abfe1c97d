"""`scaler tier`: which class of machine this is, why, why not a higher one, and who says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from scaler.policy import Policy
from scaler.tiers import HardwareTierDetector
from tests.cli.conftest import Run


def test_it_says_which_tier_why_and_why_not_the_next(scaler: Run) -> None:
    """The same words as the detector's, with this machine's figures."""
    found = HardwareTierDetector(Path("/nowhere")).detect()
    lines = scaler("tier").stdout.splitlines()
    assert lines[0] == f"{found.tier.name}: {found.tier.description}"
    assert [line.strip() for line in lines[1 : lines.index("policy")]] == list(found.reasons)


def test_it_says_which_file_decided_each_value(
    scaler: Run, own_config: Callable[[str], Path], own_tier: Callable[[str, str], Path]
) -> None:
    """The person's configuration before their tier file, that before the shipped one, the defaults last."""
    tier = own_tier("mid_range", "name: mid_range\npolicy: {band: 0.07, debounce_s: 3}\n")
    config = own_config("tier: mid_range\npolicy: {debounce_s: 2, battery_max_level: medium}\n")
    lines = {
        line.split()[0]: line.split(maxsplit=2)[1:] for line in scaler("tier").stdout.splitlines() if line[:2] == "  "
    }
    assert lines["band"] == ["0.07", str(tier)]
    assert lines["debounce_s"] == ["2", str(config)]
    assert lines["dwell_s"][1].endswith("config/tiers/mid_range.yaml")
    assert lines["backoff_max_s"] == ["3600", "default"]
    assert lines["max_level"] == ["none", "default"]
    assert lines["battery_max_level"] == ["medium", str(config)]
    told = json.loads(scaler("tier", "--json").stdout)
    assert told["tier"] == "mid_range"
    assert told["policy"]["debounce_s"] == {"value": 2.0, "source": str(config)}
    assert set(told["policy"]) == {field.name for field in fields(Policy)}
    assert told["hardware"]["ram_bytes"] > 0


def test_it_lists_every_tier_and_marks_the_one_that_applies(scaler: Run, own_tier: Callable[[str, str], Path]) -> None:
    """The highest rank first, as they are tried."""
    own_tier("vast", "name: vast\nrank: 99\ndescription: one of mine\nrequires: [{ram_gib: 99999, cores: 3}]\n")
    lines = scaler("tier", "--list").stdout.splitlines()
    assert lines[:2] == ["vast: one of mine", "  rank 99; requires 99999 GiB of RAM and 3 cores"]
    assert lines[-1] == "  rank 10; requires nothing in particular"
    here = scaler("tier").stdout.split(":")[0]
    assert [line.split()[0] for line in lines if "(applies here)" in line] == [here]
    told = json.loads(scaler("tier", "--list", "--json").stdout)
    assert [tier["tier"] for tier in told] == ["low_end", "mid_range", "high_end", "vast"]
    assert [tier["tier"] for tier in told if tier["applies"]] == [here]


def test_a_faulty_tier_file_is_one_message_with_its_line(scaler: Run, own_tier: Callable[[str, str], Path]) -> None:
    """Exit code 2."""
    path = own_tier("mid_range", "name: mid_range\npolicy:\n  bend: 0.1\n")
    failed = scaler("tier")
    assert failed.returncode == 2
    assert f"{path}:3" in failed.stderr
    assert "band" in failed.stderr
