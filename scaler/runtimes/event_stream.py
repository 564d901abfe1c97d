"""Server-sent events out of blocks of bytes, however they were cut on the way.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, as far as chat APIs use it: one line of data an
event. Knows nothing of what the data mean.
"""

from __future__ import annotations

from collections.abc import Iterator


class LineStream:
    """The lines in a stream, in order."""

    def __init__(self, limit_bytes: int) -> None:
        """``limit_bytes``: the longest line that is kept while its end has not come."""
        self._limit_bytes = limit_bytes
        self._begun = b""

    def feed(self, block: bytes) -> list[bytes]:
        """Each line that ends in this block. Raises ValueError for one that goes on for ever."""
        *lines, self._begun = (self._begun + block).split(b"\n")
        if len(self._begun) > self._limit_bytes:
            raise ValueError(f"a line of more than {self._limit_bytes} bytes")
        return lines


class EventStream:
    """The data of the events in a stream, in order."""

    def __init__(self, limit_bytes: int) -> None:
        """``limit_bytes``: the longest line that is kept while its end has not come."""
        self._lines = LineStream(limit_bytes)

    def feed(self, block: bytes) -> Iterator[bytes]:
        """The data of each event that ends in this block. Raises ValueError for one that goes on for ever."""
        for line in self._lines.feed(block):
            # Other lines are comments that keep the connection awake, or end an event.
            if line.startswith(b"data:"):
                yield line[5:].strip()
