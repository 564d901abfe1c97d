"""A process that cannot be started for want of descriptors: told as that, and nothing stays open or behind."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scaler.errors import LevelUnavailable
from scaler.level_settings import EmbeddedLevel
from scaler.loop_thread import LoopThread
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.runtimes.model_process import DESCRIPTORS


@contextmanager
def only(free: int) -> Iterator[None]:
    """So many descriptors are left to this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(free)]
    # The lowest that is free is given next, so that those below the limit are taken and then given back.
    filled = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken, default=2) + 1, hard))
    try:
        while True:
            try:
                filled.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for one in taken:
            os.close(one)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in filled:
            os.close(one)


@pytest.mark.parametrize("free", [1, 4, 7, 10, DESCRIPTORS - 1])
def test_want_of_descriptors_leaves_nothing_open(
    demo_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Each try would cost some for good, until none were left at all."""
    loop = LoopThread("descriptors")
    level = EmbeddedLevel(name="small", model=demo_models["small"], threads=1)
    runtime = EmbeddedRuntime()
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        try:
            # Whatever is opened once and kept.
            loop.call(loop.call(runtime.load(level, lambda _: None)).unload())
            before = psutil.Process().num_fds()
            with only(free), pytest.raises(LevelUnavailable, match=r"small: its process cannot be started \(Too many"):
                loop.call(runtime.load(level, lambda _: None))
            assert psutil.Process().num_fds() == before
            assert not list(Path(folder).iterdir())
            assert not runtime.pids()
            # With enough of them it is as if nothing had been.
            loop.call(loop.call(runtime.load(level, lambda _: None)).unload())
        finally:
            loop.stop()
