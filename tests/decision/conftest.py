"""How hard hypothesis looks: ``quick`` for every run, ``thorough`` by HYPOTHESIS_PROFILE."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
settings.register_profile("quick", max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=SLOW)
settings.register_profile(
    "thorough", max_examples=500, stateful_step_count=250, deadline=None, suppress_health_check=SLOW, print_blob=True
)
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give hypothesis the time to look, and to shrink what it finds to something readable."""
    for item in items:
        if item.path.name == "test_invariants.py":
            item.add_marker(pytest.mark.timeout(0 if PROFILE == "thorough" else 900))
