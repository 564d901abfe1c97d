"""What is made by a command is what the command makes now."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from tests.docs import configuration, picture
from tests.docs.pages import README

KIB = 1024


def test_the_configuration_page_tells_every_key_as_the_schema_has_it() -> None:
    """Nobody has to trust that somebody kept it up to date."""
    assert configuration.PAGE.read_text("utf-8") == configuration.page(), (
        "docs/configuration.md is out of date; write it anew: make configuration"
    )


def test_the_picture_shows_what_is_promised() -> None:
    """Memory of others rises, the level goes down before memory is critical, the answers go on, and it climbs back."""
    run = picture.read()
    assert run.faults == 0
    assert run.whole >= max(moment.answers for moment in run.moments) >= 3
    serving = [moment.serving for moment in run.moments]
    changes = [(before, after) for before, after in pairwise(serving) if before != after]
    ranks = ("off", *run.levels)
    up = [ranks.index(before) < ranks.index(after) for before, after in changes]
    assert up[0]
    assert False in up
    assert up[-1]
    assert all(moment.other_gib + moment.own_gib < run.critical_gib for moment in run.moments)


@pytest.mark.parametrize("theme", picture.PICTURES)
def test_the_readme_shows_the_picture_that_is_drawn_of_it(theme: str) -> None:
    """For light and for dark pages, small enough to be there at once."""
    path = picture.PICTURES[theme]
    assert re.search(rf'(src|srcset)="docs/pictures/{path.name}"', README.read_text("utf-8"))
    text = path.read_text("utf-8")
    assert "<svg" in text
    assert len(text) <= 150 * KIB
