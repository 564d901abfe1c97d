"""`scaler config`: ok or one message; what applies, and who says so; a schema for editors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from scaler.settings import load_settings, settings_schema
from scaler.tiers import HardwareTierDetector
from tests.cli.conftest import Run

NAMES = ("off-ish", "a b: c # d", "1e-3", "~", "null", 'quo"te\\', "größe", "- x")


def test_a_good_configuration_is_ok(scaler: Run, own_config: Callable[[str], Path]) -> None:
    """One word, exit code 0; the shipped one when there is no other."""
    assert scaler("config", "check").stdout == "ok\n"
    own_config("tier: low_end\npolicy: {dwell_s: 60}\n")
    done = scaler("config", "check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
    assert json.loads(scaler("config", "check", "--json").stdout) == {"ok": True}


def test_a_bad_configuration_is_one_message_with_file_and_line(scaler: Run, own_config: Callable[[str], Path]) -> None:
    """Exit code 2, as text and as JSON; also for figures that only a tier makes wrong."""
    path = own_config("tier: mid_range\nladder:\n  - name: a\n    model: a.gguf\n    qualty: 1\n")
    failed = scaler("config", "check")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert f"{path}:5" in failed.stderr
    assert "quality" in failed.stderr
    told = scaler("config", "check", "--json")
    assert told.returncode == 2
    assert f"{path}:5" in json.loads(told.stdout)["error"]
    own_config("tier: mid_range\npolicy:\n  critical_at: 0.7\n")
    failed = scaler("config", "check")
    assert failed.returncode == 2
    assert f"{path}:3" in failed.stderr
    own_config("tier: enormous\n")
    assert scaler("config", "check").returncode == 2


def test_what_it_shows_is_a_configuration_that_means_the_same(
    scaler: Run, own_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """Whatever levels are called, and lists too: nothing is lost or taken for something else."""
    ladder = [
        {"name": name, "model": f"models/{name}.gguf", "ram_gib": position + 0.5, "parallel": 1}
        for position, name in enumerate(NAMES)
    ]
    arguments = ["--jinja", "-", "a: b # c", "~", "[x]", "1e3", "null"]
    more = {"runtime": "llama-server", "binary": "llama-server", "model": "m.gguf", "arguments": arguments}
    ladder.append({"name": "listed", "ram_gib": 100, "vram_gib": 1, "gpu": [0, 1], **more})
    server = {"allow_hosts": ["scaler.lan", "null"], "allow_origins": ["null", "app://*"]}
    policy = {"max_level": "1e-3", "footprint_half_life_s": 1e-5}
    journal = {"path": str(tmp_path / "journal.jsonl")}
    recording = {"path": str(tmp_path / "recording")}
    remembered = {"path": str(tmp_path / "remembered.json")}
    config = {"tier": "mid_range", "ladder": ladder, "policy": policy, "journal": journal, "recording": recording}
    config |= {"remembered": remembered, "server": server}
    path = own_config(json.dumps(config))
    shown = tmp_path / "shown.yaml"
    shown.write_text(scaler("config", "show").stdout, "utf-8")
    tier = HardwareTierDetector(tmp_path / "none").tier("mid_range")
    before, after = load_settings(path), load_settings(shown)
    assert after.model_dump(exclude={"policy"}) == before.model_dump(exclude={"policy"})
    assert after.policy_on(tier) == before.policy_on(tier)
    assert [level.name for level in after.ladder] == [*NAMES, "listed"]


def test_it_shows_which_file_decided_each_value(scaler: Run, own_config: Callable[[str], Path]) -> None:
    """As a comment, and as JSON."""
    path = own_config("tier: high_end\nqueue: {limit: 3}\npolicy:\n  dwell_s: 60\n")
    lines = [line.strip() for line in scaler("config", "show").stdout.splitlines()]
    assert f"limit: 3  # {path}" in lines
    assert f"dwell_s: 60.0  # {path}" in lines
    assert any(line.startswith("band: ") and line.endswith("config/tiers/high_end.yaml") for line in lines)
    assert "wait_s: 30.0  # default" in lines
    assert any(line.startswith("- name: small  # ") and line.endswith("config/scaler.yaml") for line in lines)
    told = json.loads(scaler("config", "show", "--json").stdout)
    assert told["policy.dwell_s"] == {"value": 60.0, "source": str(path)}
    assert told["queue.wait_s"] == {"value": 30.0, "source": "default"}


def test_the_schema_is_the_one_that_is_checked(scaler: Run) -> None:
    """For an editor, from the same source as the checks."""
    assert json.loads(scaler("config", "schema").stdout) == settings_schema()


def test_check_tells_a_program_that_lacks(scaler: Run, own_config: Callable[[str], Path], tmp_path: Path) -> None:
    """It keeps `scaler run` from starting; a server that is off does not."""
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    own_config(f"ladder: [{{name: a, runtime: llama-server, binary: /no/llama-server, model: {model}}}]")
    failed = scaler("config", "check")
    assert failed.returncode == 2
    assert "a: /no/llama-server: no such file; correct the level's binary" in failed.stderr
    own_config("ladder: [{name: a, runtime: openai, url: 'http://127.0.0.1:9', model: m}]")
    assert scaler("config", "check").stdout == "ok\n"


def test_the_file_can_be_given_as_other_checkers_take_it(scaler: Run, tmp_path: Path) -> None:
    """Instead of --config, and not beside it."""
    path = tmp_path / "other.yaml"
    path.write_text("server: {port: 8001}\n")
    assert scaler("config", "check", str(path)).stdout == "ok\n"
    assert f"  port: 8001  # {path}" in scaler("config", "show", str(path)).stdout
    assert "cannot be read" in scaler("config", "check", str(tmp_path / "absent.yaml")).stderr
    both = scaler("config", "check", str(path), "--config", str(path))
    assert (both.returncode, both.stdout) == (2, "")
    assert "not allowed with argument" in both.stderr
