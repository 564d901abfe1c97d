"""The search for broken invariants takes its time."""

from __future__ import annotations

import pytest

from tests.conftest import PROFILE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give hypothesis the time to look, and to shrink what it finds to something readable."""
    for item in items:
        if item.path.name == "test_invariants.py":
            item.add_marker(pytest.mark.timeout(0 if PROFILE == "thorough" else 900))
