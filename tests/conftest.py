"""What all tests share: how hard hypothesis looks, the demo models, made once and kept, and figures for the log."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from scaler.demo.models import make_demo_models
from scaler.file_lock import locked, unlocked

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
# How quick a shared machine is says nothing about the code.
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
settings.register_profile("quick", max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=SLOW)
settings.register_profile(
    "thorough", max_examples=500, stateful_step_count=250, deadline=None, suppress_health_check=SLOW, print_blob=True
)
settings.load_profile(PROFILE)


@pytest.fixture(scope="session")
def demo_models(request: pytest.FixtureRequest) -> dict[str, Path]:
    """The demo models' files by name."""
    folder = request.config.cache.mkdir("demo-models")
    # One of the processes that share the tests makes them: what another made anew would change under those that run.
    lock = locked(folder.with_name("demo-models.lock"), wait=True)
    assert lock is not None
    try:
        return {model.name: model.path for model in make_demo_models(folder, lambda *_: None)}
    finally:
        unlocked(lock)


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes lines that are printed at the end of the run: what was measured, whichever process ran the test."""
    return lambda lines: record_property("figures", lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests have handed in."""
    reports = [one for some in terminalreporter.stats.values() for one in some if isinstance(one, pytest.TestReport)]
    told = [(one.nodeid, text) for one in reports for name, text in one.user_properties if name == "figures"]
    if told:
        terminalreporter.section("figures")
    # What fails in the test and after it is reported twice.
    for test, text in dict.fromkeys(told):
        terminalreporter.write_line(f"{test}\n{text}")
