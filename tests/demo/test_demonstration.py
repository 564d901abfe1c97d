"""What the demonstration says and draws."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from scaler.demo.count import Count
from scaler.demo.models import NUMBERS
from scaler.demo.picture import HEIGHT, OTHER_LINES, Moment, Picture
from scaler.demo.stage import awaited
from scaler.levels import GIB


@pytest.mark.parametrize(
    ("serves", "spoke", "counting", "told"),
    [
        (False, False, True, "waiting for large to serve"),
        (True, False, True, "large serves: one more question for it"),
        (True, False, False, "large serves: one more question for it"),
        (True, True, True, "waiting for the open answer to end"),
        (True, True, False, None),
    ],
)
def test_what_it_waits_for_at_the_end_is_said(serves: bool, spoke: bool, counting: bool, told: str | None) -> None:
    """It ends only once the largest level was heard and the open answer is over."""
    assert awaited("large", serves=serves, spoke=spoke, counting=counting) == told


def test_a_limit_stands_on_the_row_of_its_figure_and_a_bar_reaches_it_with_the_memory() -> None:
    """3.32 GiB is on the row that says 3.32 GiB, and what is used is drawn there from that byte on."""
    limit, critical = int(3.32 * GIB), int(4.49 * GIB)
    picture = Picture(("small", "medium", "large"), limit, critical, 40)
    picture.add(Moment(limit - 2, 1, "small"))
    picture.add(Moment(limit - 2, 2, "small"))
    console = Console(width=80, color_system=None, height=40)
    with console.capture() as drawn:
        console.print(picture)
    rows = {mark: line for line in drawn.get().splitlines() for mark in (" limit", " critical") if mark in line}
    assert rows[" limit"].lstrip("│ ").startswith("3.32 GiB ╌█╌")
    assert rows[" critical"].lstrip("│ ").startswith("4.49 GiB ╌╌╌")


def test_on_a_small_terminal_the_reason_is_there_in_full_and_so_is_where_the_axis_begins() -> None:
    """In 24 lines of 80 characters there is room for a decision in two lines and for what came of it."""
    picture = Picture(("small", "medium", "large"), 2.4 * GIB, 3.6 * GIB, 54, 24 - OTHER_LINES)
    reason = "usage at large is 10.2 % of 23.5 GiB; the limit is 10.1 %, and it has been above it for 2 s"
    picture.decisions += ["  9.1 s  small serves, after 0.4 s", f" 41.1 s  large → medium: {reason}"]
    picture.decisions += [" 41.9 s  medium serves, after 0.7 s"]
    console = Console(width=80, color_system=None)
    with console.capture() as drawn:
        console.print(picture)
    lines = [line.strip("│ ") for line in drawn.get().splitlines()]
    assert len(lines) == 24
    assert f"41.1 s  large → medium: {reason} 41.9 s  medium serves" in " ".join(lines)
    assert "small serves" not in drawn.get()
    assert lines[HEIGHT] == "1.20 GiB"
    assert lines[HEIGHT + 1].endswith("RAM from 1.20 GiB on")


@contextmanager
def endpoint(words: tuple[str, ...], *, cut: bool = False) -> Iterator[tuple[str, threading.Event]]:
    """An endpoint whose answer says the words, tells so, and then then says nothing new, or that it was ``cut``."""
    said = threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                for word in words:
                    self._say(f" {word}")
                said.set()
                while not cut:
                    self._say("")
                self._say("", "length")
            except OSError:
                return  # the client has gone

        def _say(self, text: str, finish: str | None = None) -> None:
            chunk = '{"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "large", "choices": '
            chunk += f'[{{"index": 0, "delta": {{"content": "{text}"}}, "finish_reason": {json.dumps(finish)}}}]}}'
            self.wfile.write(f"data: {chunk}\n\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", said
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("words", "broken_off", "faults"),
    [(NUMBERS[:612], "large, right up to 612", 0), ((*NUMBERS[:611], "613"), "", 1)],
)
def test_a_count_that_takes_too_long_is_broken_off_and_what_it_said_is_still_looked_at(
    words: tuple[str, ...], broken_off: str, faults: int
) -> None:
    """No fault of the model's, unless a number is missing."""
    with endpoint(words) as (url, said):
        count = Count(url)
        count.start()
        assert said.wait(30)
        while count.now.split()[-1:] != [words[-1]]:
            assert count.is_alive()
        count.break_off()
    assert (count.broken_off, len(count.faults), count.whole.total()) == (broken_off, faults, 0)


def test_a_count_that_says_it_was_cut_is_no_fault() -> None:
    """As an answer is that was begun while its level had to go."""
    with endpoint(NUMBERS[:256], cut=True) as (url, said):
        count = Count(url)
        count.start()
        assert said.wait(30)
        count.end()
    assert count.shortened >= 1
    assert (count.faults, count.whole.total()) == ([], 0)
