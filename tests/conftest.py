"""What all tests share: the demo models, made once and kept between runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaler.demo.models import make_demo_models


@pytest.fixture(scope="session")
def demo_models(request: pytest.FixtureRequest) -> dict[str, Path]:
    """The demo models' files by name."""
    folder = request.config.cache.mkdir("demo-models")
    return {model.name: model.path for model in make_demo_models(folder, lambda *_: None)}
