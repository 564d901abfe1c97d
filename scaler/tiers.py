"""The classes of machine: which tiers there are, which file decided each of their values, which one a machine is in.

Owns the schema of a tier's YAML and the classification. A machine is told by what it has, never by what is
free: its tier does not change while it works.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, WithJsonSchema

from scaler import paths, policy_layers
from scaler.documents import JSON_SCHEMA, Document, Fault, Section, nearest, parse, read_document
from scaler.errors import ConfigError
from scaler.levels import GIB
from scaler.monitor import ResourceMonitor
from scaler.policy import Policy
from scaler.sensors.gpu import GpuSensor
from scaler.sensors.memory import MemorySensor
from scaler.sensors.processes import process_tree

AUTO = "auto"
"""In place of a tier's name: the one that the hardware is in."""


class Requirement(Section):
    """What a machine must have, all of it."""

    ram_gib: Annotated[float, Field(ge=0)] = 0.0
    """RAM in all, in GiB; a machine sold with 16 GB shows 15.x, or 14 where its graphics has a part of it."""
    cores: Annotated[int, Field(ge=0)] = 0
    """Physical processor cores."""
    vram_gib: Annotated[float, Field(ge=0)] = 0.0
    """GPU memory in all, in GiB, of all GPUs together."""


class TierFile(Section):
    """A tier, or what differs from the shipped tier of that name."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")]
    """What people and programs call this tier; the name of a shipped one overrides that one."""
    description: str = ""
    """The kind of machine, for people."""
    rank: int = 0
    """Of all tiers whose requirements a machine meets, the one with the highest rank counts; no two may share one."""
    requires: tuple[Requirement, ...] = ()
    """Alternatives, one of which a machine must meet; none means that any machine will do."""
    policy: Annotated[Mapping[str, Any], WithJsonSchema(policy_layers.POLICY.json_schema())] = {}
    """How machines of this tier decide; the defaults hold for what is left out."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine has. ``vram_bytes`` is ``None`` where no GPU tells of memory of its own."""

    ram_bytes: int
    cores: int
    vram_bytes: int | None


@dataclass(frozen=True)
class Tier:
    """A class of machine.

    ``sources`` names the file that decided each value, by its dotted key (``policy.band``), or ``default``.
    """

    name: str
    description: str
    rank: int
    requires: tuple[Requirement, ...]
    policy: Policy
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Detection:
    """Which tier a machine is in, and why, in sentences; the first says why this one."""

    tier: Tier
    hardware: Hardware
    reasons: tuple[str, ...]


class HardwareTierDetector:
    """Knows every tier, the shipped ones and the person's, and tells which one a machine is in."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder`` holds the person's tier files: ``tiers`` beside their configuration when left out.

        Raises ConfigError, with file, line and key, when a file is at fault or the tiers do not go together.
        """
        shipped = _read(paths.shipped_config() / "tiers")
        own = _read(paths.tiers() if folder is None else folder)
        tiers: dict[str, Tier] = {}
        written: dict[str, Document] = {}
        for document, file in shipped + own:
            tiers[file.name] = _tier(document, file, tiers.get(file.name))
            written[file.name] = document
        self.tiers: tuple[Tier, ...] = tuple(sorted(tiers.values(), key=lambda tier: tier.rank))
        for below, above in pairwise(self.tiers):
            if below.rank == above.rank:
                raise written[above.name].error(
                    Fault(("rank",), f"{above.rank} is the rank of {below.name!r} too; expected one of its own")
                )
        lowest = self.tiers[0]
        if not _meets(Hardware(0, 0, None), lowest):
            raise written[lowest.name].error(
                Fault(("requires",), "some machines would have no tier; expected [] for the tier with the lowest rank")
            )

    def tier(self, name: str) -> Tier:
        """The tier called ``name``. Raises ConfigError when there is none."""
        if fault := self.unknown(name):
            raise ConfigError(f"tier: {fault}")
        return next(tier for tier in self.tiers if tier.name == name)

    def unknown(self, name: str) -> str | None:
        """What is wrong with ``name`` as the name of a tier and what is expected; ``None`` when there is one."""
        names = [tier.name for tier in self.tiers]
        return None if name in names else f"there is no tier {name!r}; {nearest(name, [AUTO, *names])}"

    def detect(self, hardware: Hardware | None = None) -> Detection:
        """The tier of ``hardware``, or of this machine: the highest rank whose requirements hold.

        Raises SensorFailed and OSError when this machine does not tell its memory.
        """
        hardware = hardware or this_machine()
        position = max(rank for rank, tier in enumerate(self.tiers) if _meets(hardware, tier))
        tier = self.tiers[position]
        met = next((one for one in tier.requires if not _lacking(hardware, one)), None)
        figures = [] if met is None else [figure for _, needed, figure, _ in _figures(hardware, met) if needed]
        reasons = [
            f"{_words(hardware)}; {tier.name} requires "
            + (f"{' and '.join(figures)} at least" if figures else "nothing in particular")
        ]
        if position + 1 < len(self.tiers):
            above = self.tiers[position + 1]
            short = "; or ".join(" and ".join(_lacking(hardware, one)) for one in above.requires)
            reasons.append(f"not {above.name}, which requires {short}")
        return Detection(tier, hardware, tuple(reasons))

    def chosen(self, name: str) -> Detection:
        """The tier called ``name``, whatever this machine has. Raises like `tier` and `detect`."""
        tier = self.tier(name)
        found = self.detect()
        reasons = (f"the configuration says so; {_words(found.hardware)}", f"by its hardware it is {found.tier.name}")
        return Detection(tier, found.hardware, reasons)


def this_machine() -> Hardware:
    """What this machine has, as far as this process may use it: control groups and CPU affinity count.

    Raises SensorFailed and OSError when it does not tell its memory.
    """
    import psutil  # here, because it takes 35 ms and a named hardware does not need it

    ram_bytes = MemorySensor().read().total_bytes
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    # A GPU whose driver is broken or hangs, for which a monitor waits 2 s, is one that nothing can be loaded onto; the
    # monitor of the readings tells of the fault.
    gpus = ResourceMonitor(sensors=[GpuSensor(process_tree(lambda: ()))]).read_now().gpus
    return Hardware(ram_bytes, cores, sum(gpu.total_bytes for gpu in gpus) if gpus else None)


def tier_schema() -> dict[str, Any]:
    """The JSON schema of a tier's YAML, with a description of every key."""
    return {"$schema": JSON_SCHEMA, **_TIER_FILE.json_schema()}


_TIER_FILE = TypeAdapter(TierFile)


def _read(folder: Path) -> list[tuple[Document, TierFile]]:
    """The tier files in a folder, by their file names; no two of them are of the same tier."""
    read: dict[str, tuple[Document, TierFile]] = {}
    # Hidden ones are programs' own: while a file is edited, Emacs keeps a link that leads nowhere beside it.
    for path in sorted(path for path in folder.glob("[!.]*") if path.suffix in (".yaml", ".yml")):
        document = read_document(path)
        faults = [*document.misread, *policy_layers.faults(document)]
        try:
            file = parse(_TIER_FILE, document.data)
        except ValidationError as error:
            raise document.error(*document.faults(_TIER_FILE, error), *faults) from error
        if file.name == AUTO:
            faults.append(Fault(("name",), f"{AUTO!r} means that the hardware decides; expected another name"))
        if file.name in read:
            faults.append(
                Fault(("name",), f"{file.name!r} is the tier of {read[file.name][0].name} too; expected another name")
            )
        if faults:
            raise document.error(*faults)
        read[file.name] = document, file
    return list(read.values())


def _tier(document: Document, file: TierFile, below: Tier | None) -> Tier:
    """The tier with this file on top of what is below it."""
    missing = [key for key in ("rank", "requires") if below is None and key not in document.data]
    if missing:
        raise document.error(
            *(Fault((key,), f"is missing; expected it, for no shipped tier is called {file.name!r}") for key in missing)
        )
    if below is None:
        defaults = {f"policy.{name}": policy_layers.DEFAULT for name in asdict(Policy())}
        sources = {**dict.fromkeys(("name", "description", "rank", "requires"), policy_layers.DEFAULT), **defaults}
        below = Tier(file.name, "", 0, (), Policy(), sources)
    values = {key: getattr(file, key) for key in ("description", "rank", "requires") if key in document.data}
    policy = policy_layers.stack(below.policy, document)
    decided = {key: document.name for key in document.data if key != "policy"} | policy_layers.sources(document)
    return replace(below, **values, policy=policy, sources={**below.sources, **decided})


def _figures(hardware: Hardware, one: Requirement) -> list[tuple[float, float, str, str]]:
    """What is there, what is needed, and both in words, of each thing that a requirement can name."""
    ram, vram = hardware.ram_bytes / GIB, (hardware.vram_bytes or 0) / GIB
    return [
        (ram, one.ram_gib, f"{one.ram_gib:g} GiB of RAM", _gib(ram)),
        (hardware.cores, one.cores, f"{one.cores} cores", str(hardware.cores)),
        (vram, one.vram_gib, f"{one.vram_gib:g} GiB of GPU memory", "none" if not vram else _gib(vram)),
    ]


def _lacking(hardware: Hardware, one: Requirement) -> list[str]:
    """What the hardware lacks of a requirement, in words; empty when it holds."""
    return [f"{figure} ({here} here)" for there, needed, figure, here in _figures(hardware, one) if there < needed]


def _meets(hardware: Hardware, tier: Tier) -> bool:
    return not tier.requires or any(not _lacking(hardware, one) for one in tier.requires)


def _words(hardware: Hardware) -> str:
    gpu = "no GPU memory" if hardware.vram_bytes is None else f"{_gib(hardware.vram_bytes / GIB)} GiB of GPU memory"
    cores = "1 core" if hardware.cores == 1 else f"{hardware.cores} cores"
    return f"{_gib(hardware.ram_bytes / GIB)} GiB of RAM, {cores}, {gpu}"


def _gib(size: float) -> str:
    """Rounded down: what falls short of a requirement must not read as if it met it."""
    return f"{math.floor(size * 10) / 10:g}"
