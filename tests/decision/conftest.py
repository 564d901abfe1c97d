"""How hard hypothesis looks: ``quick`` for every run, ``thorough`` by HYPOTHESIS_PROFILE."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
settings.register_profile("quick", max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=SLOW)
settings.register_profile(
    "thorough", max_examples=1500, stateful_step_count=250, deadline=None, suppress_health_check=SLOW, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
