"""Model processes within their bounds, under a `scaler run` as a person has it: priority, memory limit, the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.conftest import PATIENCE_S
from tests.end_to_end.test_commands import Daemon
from tests.llama_server_binary import BINARY, needs_llama_server
from tests.processes import gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has what is tested")

OF_A_UNIT = ("systemd-run", "--user", "--scope", "--quiet", "-p", "Delegate=yes")
CGROUP = Path("/sys/fs/cgroup")
BACKS_OFF = {"backoff_s": 60.0, "backoff_max_s": 60.0}
"""Long enough for the test to see it."""


class Watched(Daemon):
    """A `scaler run`, maybe in a control group of its own, with its model processes."""

    def __init__(self, config: Path, before: Sequence[str] = ()) -> None:
        # Both on one pipe, as on a terminal.
        super().__init__(config, before, stderr=subprocess.STDOUT)

    def models(self) -> list[psutil.Process]:
        """Its model processes, and whatever they started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What it answers over HTTP."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return json.load(response)

    def who_speaks(self) -> str:
        """What a chat is answered, whoever serves."""
        asked = {"model": "auto", "messages": [{"role": "user", "content": "Who are you?"}]}
        return str(self.get("/v1/chat/completions", asked)["choices"][0]["message"]["content"])

    def explain(self) -> str:
        """What `scaler explain` says."""
        explained = self.ask("explain")
        explained.check_returncode()
        return explained.stdout


@contextmanager
def running(config: Path, before: Sequence[str] = ()) -> Iterator[Watched]:
    daemon = Watched(config, before)
    try:
        yield daemon
    finally:
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.communicate(timeout=PATIENCE_S)


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def group_of(pid: int) -> Path:
    """The folder of a process's group, of version 2."""
    found = re.search(r"^0::/(.*)$", Path(f"/proc/{pid}/cgroup").read_text(), re.MULTILINE)
    assert found is not None
    return CGROUP / found[1]


@pytest.fixture
def delegated() -> Iterator[list[str]]:
    """What starts a command in a group that it may share out; skips where nobody may make one."""
    controllers = CGROUP / "cgroup.controllers"
    if controllers.exists() and "memory" in controllers.read_text().split() and os.access(CGROUP, os.W_OK):
        (CGROUP / "cgroup.subtree_control").write_text("+memory")
        group = CGROUP / f"test-{os.getpid()}-{time.monotonic_ns()}"
        group.mkdir()
        try:
            yield ["/bin/sh", "-c", f'echo 0 > {group}/cgroup.procs && exec "$@"', "sh"]
        finally:
            for left in sorted(group.rglob("*"), reverse=True):
                if left.is_dir():
                    left.rmdir()
            group.rmdir()
        return
    try:
        tried = subprocess.run([*OF_A_UNIT, "/bin/true"], capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("no control groups of version 2 that can be written, and no systemd-run")
    if tried.returncode:
        pytest.skip(f"no control groups of version 2 that can be written, and systemd-run: {tried.stderr.strip()}")
    yield list(OF_A_UNIT)


def test_models_are_behind_the_persons_programs_and_scaler_is_not(configure: Callable[..., Path]) -> None:
    """Without anything in the configuration."""
    own = psutil.Process().nice(), oom_score_adj(os.getpid())
    with running(configure(levels=("small",))) as daemon:
        daemon.wait_for("small serves now")
        (model,) = daemon.models()
        assert (model.nice(), oom_score_adj(model.pid)) == (max(own[0], 5), max(own[1], 800))
        assert (psutil.Process(daemon.process.pid).nice(), oom_score_adj(daemon.process.pid)) == own


@needs_llama_server
def test_a_scaler_that_is_killed_leaves_no_process_whatever_started_it(
    configure: Callable[..., Path], demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """A level of its own llama.cpp, one whose program a script starts without becoming it, and the embedding model."""
    script = tmp_path / "llama-server"
    script.write_text(f'#!/bin/sh\n{BINARY} "$@"\necho it ended >&2\n')
    script.chmod(0o755)
    shared = {"context_tokens": 2048, "threads": 1}
    small, medium = str(demo_models["small"]), str(demo_models["medium"])
    config = configure(
        ladder=[
            {"name": "small", "model": small, "ram_gib": 0.08, "standby": True, **shared},
            {"name": "medium", "runtime": "llama-server", "binary": str(script), "model": medium, "ram_gib": 0.3}
            | shared,
        ],
        embeddings={"model": small, "threads": 1},
    )
    daemon = Watched(config)
    try:
        daemon.wait_for("medium serves now")
        assert daemon.get("/v1/embeddings", {"input": "x"})["data"]
        models = daemon.models()
        names = [one.name() for one in models]
        # Two of scaler's own, the script, what watches over it, and the program.
        assert (len(names), names.count("llama-server")) == (5, 2), names
    finally:
        daemon.process.kill()
        daemon.process.communicate(timeout=PATIENCE_S)
    assert gone(models)


def test_a_killed_model_is_told_backs_off_and_requests_go_on(configure: Callable[..., Path]) -> None:
    """SIGKILL, as the kernel does it when memory is out."""
    with running(configure(levels=("small", "medium"), policy=BACKS_OFF)) as daemon:
        daemon.wait_for("medium serves now")
        assert "medium" in daemon.who_speaks()
        (model,) = daemon.models()
        model.kill()
        assert "it was killed, most likely for want of memory" in daemon.wait_for("medium died")
        daemon.wait_for("small serves now")
        assert "small" in daemon.who_speaks()
        assert "medium" in daemon.get("/status")["failed"]
        assert "backs off because it failed: " in daemon.explain()


def test_a_limit_that_is_not_permitted_is_told_once_and_it_runs_all_the_same(configure: Callable[..., Path]) -> None:
    """In a terminal that is the rule: the same file serves there and as a unit."""
    code = "from scaler.runtimes.model_cgroup import ModelCgroups; ModelCgroups.below_own()"
    if subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0:
        pytest.skip("here a limit is permitted")
    with running(configure(levels=("small",), processes={"memory_limit_share": 1.5})) as daemon:
        daemon.wait_for("small serves now")
        assert "small" in daemon.who_speaks()
        told = [line for line in daemon.said if "memory_limit_share" in line]
        assert len(told) == 1
        sentence = told[0][told[0].index("processes.memory_limit_share has no effect: ") :]
        assert sentence in daemon.explain()


def test_without_a_limit_nothing_is_told_of_one(configure: Callable[..., Path]) -> None:
    """And scaler stays in the group that it was started in."""
    with running(configure(levels=("small",))) as daemon:
        daemon.wait_for("small serves now")
        assert not [line for line in daemon.said if "no effect" in line]
        assert Path(f"/proc/{daemon.process.pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()


def test_a_model_at_its_limit_is_killed_by_the_kernel_and_the_level_backs_off(
    configure: Callable[..., Path], delegated: list[str], demo_models: dict[str, Path]
) -> None:
    """It was said to take less than half of what it takes; the rest of the ladder serves on."""
    shared = {"context_tokens": 2048, "threads": 1}
    config = configure(
        ladder=[
            {"name": "small", "model": str(demo_models["small"]), "ram_gib": 0.15, **shared},
            {"name": "large", "model": str(demo_models["large"]), "ram_gib": 0.3, **shared},
        ],
        processes={"memory_limit_share": 1.2},
        policy=BACKS_OFF,
    )
    with running(config, delegated) as daemon:
        line = daemon.wait_for("large could not be loaded, small serves")
        assert "the kernel killed it at its memory limit of 0.4 GiB; raise the level's ram_gib" in line
        assert "small" in daemon.who_speaks()
        assert "backs off because it failed: " in daemon.explain()


def test_a_model_that_the_kernel_kills_while_it_serves_is_told_and_requests_go_on(
    configure: Callable[..., Path], delegated: list[str]
) -> None:
    """Its group goes with it, and its memory counts as own in whatever group it is."""
    config = configure(levels=("small", "medium"), processes={"memory_limit_share": 3})
    with running(config, delegated) as daemon:
        daemon.wait_for("medium serves now")
        (model,) = daemon.models()
        group, scalers = group_of(model.pid), group_of(daemon.process.pid)
        assert group.name.endswith("-medium")
        assert scalers.name == f"scaler-{daemon.process.pid}"
        assert group.parent == scalers.parent
        assert int((group / "memory.max").read_text()) == pytest.approx(0.24 * 3 * 1024**3, rel=0.01)
        assert int((group / "memory.current").read_text()) > 100 * 1024**2
        assert daemon.get("/status")["reading"]["own_bytes"] > 100 * 1024**2
        # What it holds cannot be taken from it, so that the kernel kills it.
        (group / "memory.max").write_text("20M")
        assert "the kernel killed it at its memory limit of 0.7 GiB" in daemon.wait_for("medium died")
        daemon.wait_for("small serves now")
        assert "small" in daemon.who_speaks()
        assert gone([model])
        assert not group.exists()


def test_groups_that_a_killed_scaler_left_are_removed_by_the_next(
    configure: Callable[..., Path], delegated: list[str], tmp_path: Path
) -> None:
    """A model's group is not removed by anybody when scaler is killed."""
    config = configure(levels=("small",), processes={"memory_limit_share": 3})
    if delegated[0] != "/bin/sh":
        pytest.skip("systemd removes the groups of a unit that has ended by itself")
    first = Watched(config, delegated)
    first.wait_for("small serves now")
    models = first.models()
    left = group_of(models[0].pid)
    first.process.kill()
    first.process.communicate(timeout=PATIENCE_S)
    assert gone(models)
    assert left.exists()
    # Where memory is handed down, no process may be put beside the groups: the next scaler starts anew.
    (left.parent / "cgroup.subtree_control").write_text("-memory")
    with running(config, delegated) as second:
        second.wait_for("small serves now")
        assert not left.exists()
        assert group_of(second.models()[0].pid).parent == left.parent


def test_a_group_with_others_in_it_cannot_be_shared_out(configure: Callable[..., Path], delegated: list[str]) -> None:
    """The processes of a terminal, say; scaler moves itself only, and back again."""
    code = "import sys, subprocess; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    inside = (
        "from scaler.runtimes.model_cgroup import *\n"
        "try: ModelCgroups.below_own()\n"
        "except NotPermitted as why: print(why, open('/proc/self/cgroup').read())"
    )
    done = subprocess.run(
        [*delegated, sys.executable, "-c", code, sys.executable, "-c", inside], capture_output=True, text=True
    )
    assert "it holds processes that are not scaler's" in done.stdout, done.stderr
    assert "/scaler-" not in done.stdout
