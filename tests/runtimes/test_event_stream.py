"""Server-sent events come out the same, however the bytes were cut on the way."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.runtimes.event_stream import EventStream

texts = st.lists(st.text(), max_size=8)
cuts = st.lists(st.integers(0, 400), max_size=20)


@given(texts, cuts, st.sampled_from([b"\n\n", b"\r\n\r\n"]), st.booleans())
def test_any_cut_gives_the_same_events(said: list[str], at: list[int], end: bytes, escaped: bool) -> None:
    """Blocks end in the middle of a character as well as of an event; comments in between mean nothing."""
    events = [json.dumps(text, ensure_ascii=escaped).encode() for text in said]
    whole = b": awake" + end + b"".join(b"data: " + event + end for event in events)
    edges = sorted({0, len(whole), *(min(one, len(whole)) for one in at)})
    stream = EventStream(10_000)
    got = [data for start, stop in pairwise(edges) for data in stream.feed(whole[start:stop])]
    assert got == events


def test_an_event_that_never_ends_is_refused() -> None:
    """It would else fill the memory that scaler is there to keep free."""
    stream = EventStream(100)
    assert list(stream.feed(b"data: " + b"x" * 90)) == []
    with pytest.raises(ValueError, match="more than 100 bytes"):
        list(stream.feed(b"x" * 90))
