"""What docs/notices.md shows is what there is."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from scaler.journal import KINDS
from scaler.notices import Notice
from scaler.settings import load_settings

TEXT = (Path(__file__).parents[2] / "docs" / "notices.md").read_text("utf-8")


def block(language: str) -> str:
    """The first code block of a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_configuration_can_be_used_as_it_is_printed(tmp_path: Path) -> None:
    """A person will paste it."""
    path = tmp_path / "scaler.yaml"
    path.write_text(block("yaml"), "utf-8")
    notices = load_settings(path).notices
    assert (notices.upgrades, notices.desktop, str(notices.webhook)) == (False, True, "https://example.org/hooks/mine")


def test_the_json_of_a_webhook_has_the_fields_of_a_notice() -> None:
    """Programs are written after it."""
    assert json.loads(block("json")).keys() == asdict(Notice("failure", "large", "x")).keys()


def test_every_event_is_described() -> None:
    """And none that is not told."""
    rows = re.findall(r"^\| (`.*`) \|", TEXT, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {*KINDS.values()} - {"told"} | {"status", "notice", "reading"}
