"""What all tests share: the demo models, made once and kept between runs, and figures for the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scaler.demo.models import make_demo_models


@pytest.fixture(scope="session")
def demo_models(request: pytest.FixtureRequest) -> dict[str, Path]:
    """The demo models' files by name."""
    folder = request.config.cache.mkdir("demo-models")
    return {model.name: model.path for model in make_demo_models(folder, lambda *_: None)}


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
