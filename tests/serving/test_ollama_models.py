"""What programs written for Ollama are told that a level can do."""

from __future__ import annotations

import pytest

from scaler.descriptions import EVERYTHING, Description
from scaler.serving.ollama_models import capabilities


@pytest.mark.parametrize(
    ("model", "able"),
    [
        (Description("m", 1, capabilities=("vision", "completion")), {"completion", "vision"}),
        (Description("m", 1, capabilities=EVERYTHING), {"completion", "tools", "vision", "thinking"}),
        (Description("m", 1, chat_template="{% if tools %}{% endif %}"), {"completion", "tools"}),
        # Its runtime knows better than its template.
        (Description("m", 1, chat_template="{% if tools %}", capabilities=("completion",)), {"completion"}),
        (Description("m", 1), {"completion"}),
    ],
)
def test_what_a_level_can_do_its_runtime_says_or_its_template(model: Description, able: set[str]) -> None:
    """Programs ask before they send tools or pictures."""
    assert set(capabilities(model)) == able
    assert capabilities(model)[0] == "completion"
