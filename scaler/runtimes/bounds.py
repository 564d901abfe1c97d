"""What keeps a model process behind the person's programs: its priority, its place when memory is out, its limit.

Owns what is permitted here and what each process is told; how a process does it is `tied`, its group `model_cgroup`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from scaler.runtimes.model_cgroup import ModelCgroup, ModelCgroups, NotPermitted
from scaler.settings import ProcessesSettings

OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True, slots=True)
class Bound:
    """What one model process is bound by."""

    nice: int
    oom_score_adj: int | None
    cgroup: ModelCgroup | None

    @property
    def told(self) -> dict[str, int | str | None]:
        """The same as its process is told, in JSON's types."""
        cgroup = None if self.cgroup is None else str(self.cgroup.path)
        return {"nice": self.nice, "oom_score_adj": self.oom_score_adj, "cgroup": cgroup}

    async def lift(self) -> None:
        """Remove its group, when the process is gone. Safe to call twice."""
        if self.cgroup is not None:
            await self.cgroup.remove()


class Bounds:
    """The bounds of all model processes of one scaler, as the configuration has them."""

    def __init__(self, settings: ProcessesSettings | None = None) -> None:
        """The defaults when no settings are given. No group is made until `prepare` was called."""
        self._settings = settings or ProcessesSettings()
        self._cgroups: ModelCgroups | None = None
        self._oom_score_adj: int | None = self._settings.oom_score_adj if sys.platform == "linux" else None

    def prepare(self) -> tuple[str, ...]:
        """Find out what is permitted here; returns what is not, in sentences. Call it once, before any model.

        Where a memory limit is wanted, this process moves into a control group below its own.
        """
        lacking = []
        if self._oom_score_adj is not None and (why := unwritable(OOM_SCORE_ADJ)) is not None:
            self._oom_score_adj = None
            lacking.append(f"processes.oom_score_adj has no effect: {OOM_SCORE_ADJ}: {why}")
        if self._settings.memory_limit_share is not None:
            try:
                self._cgroups = ModelCgroups.below_own()
            except NotPermitted as error:
                lacking.append(
                    f"processes.memory_limit_share has no effect: {error}; "
                    "start scaler with: systemd-run --user --scope -p Delegate=yes scaler run"
                )
        return tuple(lacking)

    async def of(self, name: str, ram_bytes: Callable[[], Awaitable[int | None]]) -> Bound:
        """Those of one process for the level called ``name``, which is to take ``ram_bytes``; asked for a limit only.

        Raises LevelUnavailable, and what ``ram_bytes`` raises.
        """
        cgroup, share = None, self._settings.memory_limit_share
        if self._cgroups is not None and share is not None and (takes := await ram_bytes()) is not None:
            cgroup = self._cgroups.make(name, int(takes * share))
        return Bound(self._settings.nice, self._oom_score_adj, cgroup)


def unwritable(path: Path) -> str | None:
    """Why a file of the kernel cannot be written, found out by writing what stands there; None if it can."""
    try:
        path.write_text(path.read_text())
    except OSError as error:
        return error.strerror or str(error)
    return None
