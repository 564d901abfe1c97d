"""The configuration of a day: what people change in its file, where they make mistakes, and what is read of it."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

from scaler.assembly import Parts, _ladder
from scaler.errors import LevelUnavailable, MissingExtra
from scaler.levels import GIB, RAM
from scaler.policy import Policy
from scaler.runtimes.bounds import Bounds
from scaler.settings import Settings
from scaler.tiers import Detection, Hardware, Tier
from tests.simulation.faults import Faults
from tests.simulation.machine import GPU
from tests.simulation.runtime import SimulatedRuntime

Document = dict[str, Any]
MODELS = ("one.gguf", "two.gguf")
MOST_LEVELS = 5
POLICIES: dict[str, tuple[Any, ...]] = {
    "dwell_s": (30.0, 60.0, 300.0),
    "scale_at": (0.7, 0.8, 0.85),
    "band": (0.035, 0.1),
    "drain_seconds": (0.0, 5.0, 20.0),
    "drain_tokens": (0, 8, 256),
    "recovery_s": (0.0, 10.0),
    "backoff_s": (30.0, 60.0),
    "wasted_within_s": (60.0, 600.0),
}
"""What people try out, among values that go together whatever the others are."""
LARGEST = ("max_level", "battery_max_level", "throttled_max_level")


class Configuration:
    """One file, read by every manager of the day."""

    def __init__(self, dice: random.Random, folder: Path, total: dict[str, int], faults: Faults) -> None:
        """``total``: how much there is of each resource."""
        self.path = folder / "scaler.yaml"
        self.written: list[bool] = []
        """Whether each content that the file has had could be used."""
        self.read: list[Parts] = []
        """What was read of it and put together."""
        self.runtime: SimulatedRuntime
        self._dice, self._total, self._faults = dice, total, faults
        self._numbers = 0
        self._document: Document = {}
        for name in MODELS:
            (folder / name).write_bytes(name.encode())
            os.utime(folder / name, (0, 0))

    # ---------------------------------------------------------------- what people do to it

    def begin(self, document: Document) -> None:
        """Write the first one."""
        self._document = document
        self.mend()

    def mend(self) -> None:
        """Have it be as it was when it could be used the last time."""
        self._write(json.dumps(self._document), usable=True)

    @property
    def wants_standby(self) -> bool:
        """Whether a level of it is to stand by."""
        return any(level["standby"] for level in self._document["ladder"])

    def edit(self) -> None:
        """Change something in it, or a few things; it can be used."""
        self._document = self._changed()
        self.mend()

    def spoil(self) -> str:
        """Change something and make a mistake; returns which."""
        document, dice = self._changed(), self._dice
        ladder, policy = document["ladder"], document["policy"]
        mistake = dice.choice(
            ["no YAML", "half", "gone", "unknown key", "range", "apart", "no levels", "twice", "order", "file", "level"]
        )
        text: str | None = None
        match mistake:
            case "no YAML":
                text = "ladder: ["
            case "half":
                text = json.dumps(document)
                text = text[: dice.randrange(1, len(text))]
            case "unknown key":
                policy["dwel_s"] = 30.0
            case "range":
                policy["dwell_s"] = -1.0
            case "apart":
                policy |= {"band": 0.9, "scale_at": 0.8}
            case "no levels":
                document["ladder"] = []
            case "twice":
                ladder.append({**ladder[-1], "ram_gib": ladder[-1]["ram_gib"] * 1.1})
            case "order":
                ladder.append({**ladder[-1], "name": "late", "ram_gib": ladder[-1]["ram_gib"] / 2, "vram_gib": 0.0})
            case "file":
                dice.choice(ladder)["model"] = "none.gguf"
            case "level":
                policy[dice.choice(LARGEST)] = "nobody"
        if mistake == "gone":
            self.path.unlink(missing_ok=True)
            self.written.append(False)
        else:
            self._write(json.dumps(document) if text is None else text, usable=False)
        return mistake

    def _write(self, text: str, *, usable: bool) -> None:
        self.path.write_text(text)
        self.written.append(usable)

    def _changed(self) -> Document:
        document = copy.deepcopy(self._document)
        for _ in range(self._dice.choice([1, 1, 1, 2, 3])):
            self._change(document)
        names = [level["name"] for level in document["ladder"]]
        for key in LARGEST:
            if document["policy"].get(key) not in (None, *names):
                document["policy"][key] = self._dice.choice([None, *names])
        return document

    def _change(self, document: Document) -> None:
        dice, ladder, policy = self._dice, document["ladder"], document["policy"]
        place = dice.randrange(len(ladder))
        level = ladder[place]
        kinds = ["remove", "rename", "order", "footprint", "footprint", "model", "context", "judged", "standby"]
        match dice.choice(["add", "add", "add", *kinds, "policy", "policy", "largest", "queue", "journal"]):
            case "add" if len(ladder) < MOST_LEVELS:
                place = dice.choice([len(ladder), dice.randint(0, len(ladder))])
                new = {**level, "name": self._new_name(), "standby": False, "load_s": dice.uniform(1.0, 30.0)}
                ladder.insert(place, new)
                self._resize(ladder, place)
            case "remove" if len(ladder) > 1:
                del ladder[place]
            case "rename":
                before, level["name"] = level["name"], self._new_name()
                policy |= {key: level["name"] for key in LARGEST if policy.get(key) == before}
            case "order" if len(ladder) > 1:
                # Two models change their places, and are said to take what their places allow.
                one, other = dice.sample(ladder, 2)
                one["name"], other["name"] = other["name"], one["name"]
                one["model"], other["model"] = other["model"], one["model"]
            case "footprint":
                self._resize(ladder, place)
            case "model":
                level["model"] = dice.choice(MODELS)
            case "context":
                level["parallel"] = dice.randint(1, 4)
            case "judged":
                level |= {"quality": dice.random(), "load_s": dice.uniform(1.0, 30.0)}
            case "standby" if self.runtime.can_stand_by and len(ladder) > 1:
                ladder[0]["standby"] = not ladder[0]["standby"]
            case "policy":
                key = dice.choice(list(POLICIES))
                policy[key] = dice.choice(POLICIES[key])
            case "largest":
                policy[dice.choice(LARGEST)] = dice.choice([None, *(one["name"] for one in ladder)])
            case "queue":
                document["queue"] = {"limit": dice.randint(2, 32), "wait_s": dice.choice([5.0, 30.0, 120.0])}
            case _:
                document["journal"]["max_mib"] = dice.choice([0.05, 5.0])

    def _new_name(self) -> str:
        self._numbers += 1
        return f"new{self._numbers}"

    def _resize(self, ladder: list[Document], place: int) -> None:
        """Have a level take something between what its neighbours take."""
        part = self._dice.random()
        for key, resource in (("ram_gib", RAM), ("vram_gib", GPU)):
            if resource in self._total:
                below = ladder[place - 1][key] if place else 0.0
                above = ladder[place + 1][key] if place + 1 < len(ladder) else below + 0.4 * self._total[resource] / GIB
                ladder[place][key] = below + (0.1 + 0.8 * part) * (above - below)

    # ---------------------------------------------------------------- how it is read

    def put_together(self, settings: Settings, running: Parts | None) -> Parts:
        """With a tier, and a runtime in place of those of the levels. To size them may fail."""
        if running is not None:
            kind = self._faults.draw("reload", ("fail", "odd", "missing"))
            if kind == "fail":
                raise LevelUnavailable("the model cannot be sized, as drawn")
            if kind == "missing":
                raise MissingExtra("a library lacks, as drawn")
            if kind == "odd":
                raise OSError("this machine does not tell its memory, as drawn")
        tier = Tier("simulated", "", 0, (), Policy(), {})
        levels = {level.name: (self.runtime, level) for level in settings.ladder}
        parts = Parts(
            settings=settings,
            tier=Detection(tier, Hardware(self._total[RAM], 8, None), ("simulated",)),
            policy=settings.policy_on(tier),
            ladder=_ladder(settings, levels),
            levels=levels,
            embeddings=None,
            bounds=running.bounds if running is not None else Bounds(settings.processes),
            runtimes={"simulated": self.runtime},
        )
        self.read.append(parts)
        return parts


def known_as(name: str, before: Parts, after: Parts) -> bool:
    """Whether a level has the same settings, and what stands by beside it as well, so that it counts as the same."""

    def facts(parts: Parts) -> list[object]:
        below = parts.ladder[: parts.ladder.index(name) + 1]
        return [
            (level.footprint, parts.levels[level.name][1]) for level in below if level.standby or level.name == name
        ]

    return name in before.levels and name in after.levels and facts(before) == facts(after)


def alike(name: str, before: Parts, after: Parts) -> bool:
    """Whether a level's model may stay loaded."""
    return name in before.levels and name in after.levels and before.levels[name][1].loads_as(after.levels[name][1])
