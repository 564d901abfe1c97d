"""A newcomer finds every page, and every link leads somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, README, ROOT, anchors, links

INDEX = ROOT / "docs" / "README.md"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    """Within the repository; the rest of the web is not asked."""
    broken = []
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(f"{link}: there is no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: there is no such heading")
    assert not broken


def test_every_page_stands_in_the_index() -> None:
    """And the README leads to that."""
    assert "docs/README.md" in links(README)
    listed = {(INDEX.parent / link).resolve() for link in links(INDEX)}
    assert {page for page in PAGES if page.parent == INDEX.parent} - {INDEX} <= listed
