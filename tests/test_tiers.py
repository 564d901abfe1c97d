"""The classes of machine: every machine has one, and each of its values says where it comes from."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scaler import paths
from scaler.errors import ConfigError, SensorFailed
from scaler.levels import GIB
from scaler.policy import Policy
from scaler.readings import Memory
from scaler.sensors.gpu import GpuSensor
from scaler.sensors.memory import MemorySensor
from scaler.tiers import Hardware, HardwareTierDetector, Tier, this_machine, tier_schema
from tests.sensors.conftest import FakeNvml, nvml, nvml_library

__all__ = ["nvml", "nvml_library"]

SHIPPED = HardwareTierDetector(Path("/nonexistent"))
MIB = 1024**2

hardware = st.builds(
    Hardware,
    ram_bytes=st.integers(0, 2048 * GIB) | st.sampled_from([7, 14, 28, 32]).map(lambda size: size * GIB),
    cores=st.integers(0, 256) | st.sampled_from([4, 6, 8]),
    vram_bytes=st.none() | st.integers(0, 640 * GIB) | st.sampled_from([8, 14, 16]).map(lambda size: size * GIB),
)
requirement = st.fixed_dictionaries(
    {}, optional={"ram_gib": st.integers(0, 64), "cores": st.integers(0, 16), "vram_gib": st.integers(0, 32)}
)


def has(machine: Hardware, tier: Tier) -> bool:
    """Whether a machine has all of one alternative that a tier requires."""
    return not tier.requires or any(
        machine.ram_bytes >= one.ram_gib * GIB
        and machine.cores >= one.cores
        and (machine.vram_bytes or 0) >= one.vram_gib * GIB
        for one in tier.requires
    )


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., HardwareTierDetector]:
    """Tier files of the person's, by file name; their detector."""

    def write(**files: str) -> HardwareTierDetector:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return HardwareTierDetector(tmp_path)

    return write


# ------------------------------------------------------------------------------------------------ classification


@pytest.mark.parametrize(
    ("name", "ram_bytes", "cores", "vram_bytes"),
    [
        # What real machines of these sizes report: below the nominal, by what firmware and graphics keep.
        ("low_end", int(3.7 * GIB), 4, None),
        ("low_end", int(7.6 * GIB), 4, None),
        ("low_end", int(11.5 * GIB), 6, None),
        ("low_end", int(15.5 * GIB), 2, None),
        ("low_end", int(7.6 * GIB), 8, int(5.8 * GIB)),
        ("mid_range", int(15.5 * GIB), 4, None),
        ("mid_range", int(13.6 * GIB), 8, None),
        ("mid_range", 16 * GIB, 8, None),
        ("mid_range", int(7.6 * GIB), 6, 8188 * MIB),
        ("mid_range", int(15.5 * GIB), 8, 8188 * MIB),
        ("mid_range", int(31.2 * GIB), 6, None),
        ("high_end", int(31.2 * GIB), 8, None),
        ("high_end", int(28.6 * GIB), 8, None),
        ("high_end", int(15.5 * GIB), 6, 15102 * MIB),
        ("high_end", int(15.5 * GIB), 8, 16376 * MIB),
        ("high_end", int(125.7 * GIB), 16, 141 * GIB),
    ],
)
def test_real_machines_get_the_tier_of_their_nominal_size(
    name: str, ram_bytes: int, cores: int, vram_bytes: int | None
) -> None:
    """A machine sold with 16 GB is a 16 GB machine, though it shows less."""
    assert SHIPPED.detect(Hardware(ram_bytes, cores, vram_bytes)).tier.name == name


@given(hardware)
def test_any_hardware_gets_exactly_one_tier(machine: Hardware) -> None:
    """No gaps and no overlaps: it has what the tier found requires, and what no tier above it does."""
    found = SHIPPED.detect(machine).tier
    assert has(machine, found)
    assert not [tier.name for tier in SHIPPED.tiers if tier.rank > found.rank and has(machine, tier)]


@given(hardware, st.integers(0, 64 * GIB), st.integers(0, 64), st.integers(0, 64 * GIB))
def test_more_hardware_never_gets_a_lower_tier(machine: Hardware, ram: int, cores: int, vram: int) -> None:
    """Nobody is punished for buying memory."""
    more = Hardware(machine.ram_bytes + ram, machine.cores + cores, (machine.vram_bytes or 0) + vram)
    assert SHIPPED.detect(more).tier.rank >= SHIPPED.detect(machine).tier.rank


@given(st.lists(st.lists(requirement, min_size=1, max_size=3), max_size=3), hardware, st.integers(0, 64 * GIB))
def test_ones_own_tiers_leave_no_gap_either(
    tmp_path_factory: pytest.TempPathFactory, requires: list[list[dict[str, int]]], machine: Hardware, more: int
) -> None:
    """Whatever the tiers require: one tier a machine, and never a lower one for more."""
    folder = tmp_path_factory.mktemp("tiers")
    for rank, alternatives in enumerate(requires, start=100):
        file = {"name": f"t{rank}", "rank": rank, "requires": alternatives}
        (folder / f"{rank}.yaml").write_text(yaml.safe_dump(file))
    detector = HardwareTierDetector(folder)
    found = detector.detect(machine).tier
    larger = replace(machine, ram_bytes=machine.ram_bytes + more)
    assert detector.detect(larger).tier.rank >= found.rank
    for tier, alternatives in zip(detector.tiers[3:], requires, strict=True):
        met = any(
            machine.ram_bytes >= one.get("ram_gib", 0) * GIB
            and machine.cores >= one.get("cores", 0)
            and (machine.vram_bytes or 0) >= one.get("vram_gib", 0) * GIB
            for one in alternatives
        )
        assert not met or found.rank >= tier.rank
        assert met or found != tier


def test_the_reasons_give_the_numbers_and_what_the_next_tier_lacks() -> None:
    """A person who expected another tier sees at once what was missing."""
    detection = SHIPPED.detect(Hardware(int(13.49 * GIB), 6, 8 * GIB))
    assert detection.reasons == (
        "13.4 GiB of RAM, 6 cores, 8 GiB of GPU memory; "
        "mid_range requires 7 GiB of RAM and 4 cores and 7.5 GiB of GPU memory at least",
        "not high_end, which requires 28 GiB of RAM (13.4 here) and 8 cores (6 here); "
        "or 13.5 GiB of RAM (13.4 here) and 14 GiB of GPU memory (8 here)",
    )
    highest = SHIPPED.detect(Hardware(64 * GIB, 16, None))
    assert highest.reasons == (
        "64 GiB of RAM, 16 cores, no GPU memory; high_end requires 28 GiB of RAM and 8 cores at least",
    )
    lowest = SHIPPED.detect(Hardware(2 * GIB, 1, None))
    assert lowest.reasons[0] == "2 GiB of RAM, 1 core, no GPU memory; low_end requires nothing in particular"


@given(hardware)
def test_there_is_a_reason_for_every_machine(machine: Hardware) -> None:
    """One sentence for the tier, one for the next higher where there is one."""
    detection = SHIPPED.detect(machine)
    assert len(detection.reasons) == 1 + (detection.tier != SHIPPED.tiers[-1])


def test_a_chosen_tier_says_so_and_what_the_hardware_would_get() -> None:
    """The person's word counts, and they see what it overrules."""
    detection = SHIPPED.chosen("high_end")
    assert detection.tier.name == "high_end"
    assert detection.hardware == this_machine()
    assert detection.reasons[0].startswith("the configuration says so; ")
    assert detection.reasons[1] == f"by its hardware it is {SHIPPED.detect().tier.name}"


def test_an_unknown_tier_is_refused_with_the_nearest_name() -> None:
    """A slip of the finger is answered with what was meant."""
    with pytest.raises(ConfigError, match=r"^tier: there is no tier 'midrange'; expected 'mid_range'"):
        SHIPPED.tier("midrange")
    with pytest.raises(ConfigError, match="expected one of auto, low_end, mid_range, high_end"):
        SHIPPED.chosen("xxx")


# --------------------------------------------------------------------------------------------------- this machine


def test_this_machine_is_told_by_what_it_has() -> None:
    """Totals, not what is free; within the machine's own."""
    machine = this_machine()
    assert 0 < machine.ram_bytes <= psutil.virtual_memory().total
    assert 1 <= machine.cores <= len(os.sched_getaffinity(0))
    assert machine.vram_bytes is None or machine.vram_bytes > 0


def test_a_control_groups_limit_counts_as_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container of 8 GiB on a host of 64, the tier is that of 8 GiB."""
    monkeypatch.setattr(MemorySensor, "read", lambda self: Memory(8 * GIB, 5 * GIB, "cgroup"))
    assert this_machine().ram_bytes == 8 * GIB


def test_a_gpu_whose_driver_is_broken_is_none_and_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder can still serve from RAM."""

    def broken(self: GpuSensor) -> None:
        raise SensorFailed("NVML: Unknown Error")

    monkeypatch.setattr(GpuSensor, "read", broken)
    assert this_machine().vram_bytes is None


def test_a_gpu_whose_driver_hangs_does_not_keep_scaler_from_starting(nvml: FakeNvml) -> None:
    """Its memory counts again as soon as it answers."""
    nvml.gpu("Fake GPU", 24 * GIB, 0)
    nvml.hang("memory", 10**9)
    assert this_machine().vram_bytes is None
    nvml.heal()
    for thread in threading.enumerate():
        if thread.name == "scaler-sensors":
            thread.join(10)
    assert this_machine().vram_bytes == 24 * GIB


# ------------------------------------------------------------------------------------------------ the shipped tiers


def test_the_shipped_tiers_hold_what_the_design_promises() -> None:
    """80 % and 95 %, five minutes, and a band that narrows as machines grow."""
    assert [tier.name for tier in SHIPPED.tiers] == ["low_end", "mid_range", "high_end"]
    for tier in SHIPPED.tiers:
        assert (tier.policy.scale_at, tier.policy.critical_at, tier.policy.dwell_s) == (0.80, 0.95, 300)
        assert tier.description
    assert [tier.policy.band for tier in SHIPPED.tiers] == [0.04, 0.035, 0.03]
    assert SHIPPED.tiers[0].requires == ()


@pytest.mark.parametrize("name", ["low_end", "mid_range", "high_end"])
def test_a_shipped_file_shows_the_headline_figures_and_else_what_differs(name: str) -> None:
    """People see the thresholds where they look for them; every other default has one home."""
    text = (paths.shipped_config() / "tiers" / f"{name}.yaml").read_text()
    assert text.startswith("#")
    policy = yaml.safe_load(text)["policy"]
    headline = {"scale_at", "band", "critical_at", "dwell_s"}
    assert headline <= policy.keys()
    defaults = asdict(Policy())
    assert all(policy[key] != defaults[key] for key in policy.keys() - headline)


def test_each_value_of_a_shipped_tier_names_its_file_or_the_default() -> None:
    """Nothing applies without a source."""
    for tier in SHIPPED.tiers:
        file = str(paths.shipped_config() / "tiers" / f"{tier.name}.yaml")
        assert tier.sources["policy.band"] == tier.sources["rank"] == tier.sources["requires"] == file
        assert tier.sources["policy.debounce_s"] == "default"
        keys = {"name", "description", "rank", "requires", *(f"policy.{key}" for key in asdict(Policy()))}
        assert tier.sources.keys() == keys


# ---------------------------------------------------------------------------------------------- the person's tiers


def test_ones_own_file_overrides_single_keys_of_a_shipped_tier(
    own: Callable[..., HardwareTierDetector], tmp_path: Path
) -> None:
    """Two lines change one figure; the rest stays as shipped, and each says who decided it."""
    tier = own(mine="name: mid_range\npolicy: {band: 0.07}\n").tier("mid_range")
    shipped = SHIPPED.tier("mid_range")
    assert tier.policy == replace(shipped.policy, band=0.07)
    assert (tier.rank, tier.requires, tier.description) == (shipped.rank, shipped.requires, shipped.description)
    file = str(tmp_path / "mine.yaml")
    assert {key for key, source in tier.sources.items() if source == file} == {"name", "policy.band"}
    assert tier.sources["policy.dwell_s"] == shipped.sources["policy.dwell_s"]


def test_ones_own_file_adds_a_tier(own: Callable[..., HardwareTierDetector]) -> None:
    """It takes its place by its rank."""
    detector = own(server="name: server\nrank: 25\nrequires: [{ram_gib: 20}]\npolicy: {scale_at: 0.9}\n")
    assert [tier.name for tier in detector.tiers] == ["low_end", "mid_range", "server", "high_end"]
    found = detector.detect(Hardware(24 * GIB, 2, None)).tier
    assert found.name == "server"
    assert found.policy == replace(Policy(), scale_at=0.9)
    assert found.sources["description"] == "default"


def test_files_of_both_endings_count_and_others_do_not(tmp_path: Path) -> None:
    """An editor's backup is not a tier, nor is the link with which Emacs marks a file that is being edited."""
    (tmp_path / "a.yml").write_text("name: a\nrank: 50\nrequires: []\n")
    (tmp_path / "b.yaml~").write_text("nonsense")
    (tmp_path / "notes.txt").write_text("nonsense")
    (tmp_path / ".#a.yml").symlink_to("ada@host.4711:1700000000")
    (tmp_path / ".hidden.yaml").write_text("nonsense")
    assert HardwareTierDetector(tmp_path).tiers[-1].name == "a"


def test_ones_own_folder_is_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without being told, it is found where scaler.yaml is."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "scaler" / "tiers").mkdir(parents=True)
    (tmp_path / "scaler" / "tiers" / "a.yaml").write_text("name: a\nrank: 50\nrequires: []\n")
    assert HardwareTierDetector().tiers[-1].name == "a"


NEW = "name: new\nrank: 50\nrequires: []\n"


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("rank: 5\n", 1, "name", "is missing; expected text"),
        ("name: a b\nrank: 5\nrequires: []\n", 1, "name", "cannot be used; expected text"),
        ("name: new\nrequires: []\n", 1, "rank", "is missing; expected it, for no shipped tier is called 'new'"),
        ("name: new\nrank: 5\n", 1, "requires", "is missing"),
        (NEW + "polcy: {}\n", 4, "polcy", "unknown key; expected 'policy'"),
        (NEW + "policy:\n  bnad: 1\n", 5, "policy.bnad", "expected 'band'"),
        (NEW + "policy:\n  band: 5\n", 5, "policy.band", "expected a number above 0 and below 1"),
        (NEW + "policy:\n  band: 0.9\n", 5, "policy.band", "band 0.9 must be below scale_at 0.8"),
        (NEW + "policy: 3\n", 4, "policy", "3 cannot be used; expected a mapping"),
        (NEW.replace("[]", "\n  - ram_gib: 1\n  - rma_gib: 2"), 5, "requires[1].rma_gib", "expected 'ram_gib'"),
        (NEW.replace("[]", "{ram_gib: 4}"), 3, "requires", "a mapping cannot be used; expected a list"),
        (NEW.replace("[]", "[{cores: 1.5}]"), 3, "requires[0].cores", "expected a whole number from 0"),
        (NEW.replace("[]", "[{ram_gib: -1}]"), 3, "requires[0].ram_gib", "expected a number from 0"),
        (NEW.replace("[]", "[{ram_gib: .inf}]"), 3, "requires[0].ram_gib", "inf cannot be used"),
        (NEW.replace("50", "high"), 2, "rank", "expected a whole number"),
        (NEW.replace("50", "20"), 2, "rank", "20 is the rank of 'mid_range' too; expected one of its own"),
        (NEW.replace("50", "1").replace("[]", "[{cores: 1}]"), 3, "requires", "some machines would have no tier"),
        ("name: low_end\nrequires: [{cores: 1}]\n", 2, "requires", "some machines would have no tier"),
        ("name: low_end\nrank: 30\n", 2, "rank", "is the rank of"),
        ("name: mid_range\npolicy: {critical_at: 0.5}\n", 2, "policy.critical_at", "must be above scale_at 0.8"),
        ("name: auto\nrank: 50\nrequires: []\n", 1, "name", "'auto' means that the hardware decides"),
        (NEW + "name: other\n", 4, "name", "stands here and on line 1"),
    ],
)
def test_a_fault_in_ones_own_tier_is_told_with_file_line_and_key(
    own: Callable[..., HardwareTierDetector], tmp_path: Path, text: str, line: int, key: str, words: str
) -> None:
    """The same care as for the main file."""
    with pytest.raises(ConfigError) as raised:
        own(mine=text)
    message = str(raised.value).splitlines()[0]
    assert message.startswith(f"{tmp_path / 'mine.yaml'}:{line}: {key}: ")
    assert words in message
    assert "expected" in message


def test_two_files_of_ones_own_for_the_same_tier_are_refused(
    own: Callable[..., HardwareTierDetector], tmp_path: Path
) -> None:
    """Which of them counts would depend on their file names."""
    told = f"{tmp_path / 'b.yaml'}:1: name: 'new' is the tier of {tmp_path / 'a.yaml'} too"
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        own(a=NEW, b=NEW)


def test_the_schema_describes_a_tier_file() -> None:
    """An editor shows what a value is for, and marks what is not known."""
    schema: dict[str, Any] = tier_schema()
    assert schema["required"] == ["name"]
    assert schema["properties"].keys() == {"name", "description", "rank", "requires", "policy"}
    assert all(node["description"] for node in schema["properties"].values())
    assert schema["properties"]["policy"]["properties"].keys() == asdict(Policy()).keys()
