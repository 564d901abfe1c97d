"""`scaler top`: what it says of a real daemon, and what its keys do there; in Textual's own pilot and in a terminal."""

from __future__ import annotations

import asyncio
import html
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.content import Content
from textual.pilot import Pilot

from scaler import cli
from scaler.cli.daemon import Daemon
from scaler.events import SwitchFailed
from scaler.serving.app import Endpoint
from scaler.top.app import Top
from scaler.top.link import Link
from scaler.top.told import wrapped
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine, Watch
from tests.end_to_end.test_door import make_certificate
from tests.end_to_end.test_endpoint import MESSAGES, client
from tests.end_to_end.test_ladder import settles_at

Serving = Callable[..., Any]
SCALER = [sys.executable, "-m", "scaler"]
WIDTH, HEIGHT = 80, 24
LEFT, RIGHT = "\x1b[?1049h", "\x1b[?1049l"
"""A terminal's other screen is taken, and left."""


def screen(app: Top) -> str:
    """What stands on the screen, line by line, from the picture that Textual makes of it."""
    lines = [""] * app.size.height
    for x, y, text in re.findall(
        r'<text class="[^"]*-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', app.export_screenshot()
    ):
        row = int(float(y) // 24.4)
        lines[row] = lines[row].ljust(round(float(x) / 12.2)) + html.unescape(text).replace("\xa0", " ")
    return "\n".join(lines)


def seen(url: str, look: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Have ``look`` look at the daemon at ``url``."""

    async def body() -> None:
        app = Top(lambda tell: Link(Daemon(url), tell), url)
        async with app.run_test(size=size) as pilot:
            await look(pilot)

    asyncio.run(body())


async def says(pilot: Pilot[None], *words: str) -> str:
    """Wait until all of ``words`` stand on the screen; returns it."""
    assert isinstance(pilot.app, Top)
    until = time.monotonic() + PATIENCE_S
    while any(word not in (text := screen(pilot.app)) for word in words):
        assert time.monotonic() < until, f"{words} in:\n{text}"
        await pilot.pause(0.05)
    return text


def test_a_person_sees_what_serves_and_why_and_pins_by_key(serving: Serving, machine: Machine) -> None:
    """All at 80 by 24: the level and its reason, every level, memory, the hour, the answers, the events."""
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        assert manager.generate_response_sync("Who are you?", max_tokens=16).level == "large"

        async def look(pilot: Pilot[None]) -> None:
            text = await says(
                pilot, "large is the level now", " → large: usage", "in that hour", "tokens/s", "u unpin ?"
            )
            lines = text.split("\n")
            assert all(len(line) <= WIDTH for line in lines)
            assert not re.search(r"\d\n +(?:%|[GM]iB|s|min|tokens/s)\b", text)
            assert re.search(r"came from \w+ because usage at large would be", " ".join(text.split()))
            assert "none; large is the largest level" in text
            assert any(re.search(r"▶3 large +at [\d.]+ % +serves +\d+ tokens/s", line) for line in lines)
            assert any(re.search(r" 1 small +at [\d.]+ % +smaller", line) for line in lines)
            (ram,) = (number for number, line in enumerate(lines) if line.startswith("ram "))
            assert re.search(r"▒+█+·+│·+┃·* [\d.]+ % of 4\.00 GiB", lines[ram])
            assert re.search(r"^ +1 *2 +3 +█ own .* ▒ other 0\.39 GiB", lines[ram + 1])
            assert re.search(r"last hour +[▁▂▃▄▅▆▇█]+ ram: peak [\d.]+ % at \d\d:\d\d", text)
            assert "0 running, 0 waiting" in text
            assert "large is the largest level already" in text
            assert "pin u unpin ? help q quit" in text
            await pilot.press("1")
            text = await says(pilot, "pinned to small; u unpins", "small is the level now; pinned to small", "▶1 small")
            assert "a person pinned small" in text
            assert manager.scaler.status().pinned == "small"
            await pilot.press("enter")  # the list points at large, which served when it was made
            await says(pilot, "pinned to large; u unpins")
            await pilot.press("u")
            await says(pilot, "unpinned: scaler decides again")
            assert manager.scaler.status().pinned is None

        seen(url, look)


def test_a_pin_that_is_refused_is_told(serving: Serving, machine: Machine) -> None:
    """With the daemon's own words."""
    machine.other_bytes = 3600 * MIB
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")

        async def look(pilot: Pilot[None]) -> None:
            await says(pilot, "small is the level now", "not by waiting alone", "waits for: usage at medium")
            await pilot.press("3")
            text = await says(pilot, "refused: ")
            assert "critical" in text[text.index("refused: ") :]
            await pilot.press("7")
            await says(pilot, "there is no level 7")
            assert manager.scaler.status().pinned is None

        seen(url, look)


def test_while_a_switch_goes_on_it_says_what_answers_and_what_goes(serving: Serving) -> None:
    """The new level as soon as it answers, though an answer of the one before goes on; and off is nothing to load."""
    limits = {"drain_seconds": 300.0, "drain_tokens": 100_000}

    async def cut_over(pilot: Pilot[None]) -> None:
        text = await says(pilot, "small is the level now; pinned to small", "1 running", "▶1 small", " 2 medium")
        assert re.search(r"▶1 small +at [\d.]+ % +serves", text)
        assert re.search(r" 2 medium +at [\d.]+ % +not allowed now", text)

    async def unloading(pilot: Pilot[None]) -> None:
        text = await says(pilot, "off is the level now: small is let go; pinned to off", "▶1 small", " 0 off")
        assert re.search(r"▶1 small +at [\d.]+ % +is being unloaded", text)
        assert re.search(r" 0 off +comes next", text)

    async def unloaded(pilot: Pilot[None]) -> None:
        text = await says(pilot, "off is the level now: nothing is loaded", "▶0 off")
        assert re.search(r"▶0 off +nothing is loaded", text)

    with serving(levels=("small", "medium"), policy=limits) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        for level, look in (("small", cut_over), ("off", unloading)):
            with closing(
                client(url).chat.completions.create(
                    model="auto", messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}
                )
            ) as answer:
                next(iter(answer))
                manager.scaler.pin(level)
                watch.until(lambda: manager.scaler.status().serving == "small", "small to answer")
                assert not manager.scaler.status().settled
                seen(url, look)
            settles_at(manager, watch, level)
        seen(url, unloaded)


def test_it_says_when_the_daemon_is_gone_and_comes_back_with_it(running: Serving, machine: Machine) -> None:
    """Nobody has to start it anew; also while the page of help is open."""
    with running() as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        endpoint = Endpoint(manager, "127.0.0.1", 0)
        endpoint.start()
        url, port = endpoint.url, int(endpoint.url.rpartition(":")[2])

        async def look(pilot: Pilot[None]) -> None:
            await says(pilot, "large is the level now", "live ")
            await pilot.press("question_mark")
            await says(pilot, "Any key goes back.", "above this a level gives way")
            await asyncio.to_thread(endpoint.stop)
            await pilot.press("x")
            await says(pilot, "no answer since ", "large is the level now")
            again = Endpoint(manager, "127.0.0.1", port)
            await asyncio.to_thread(again.start)
            await says(pilot, "the daemon is back", "live ")
            await asyncio.to_thread(again.stop)

        seen(url, look)


def test_what_a_daemon_tells_is_neither_markup_nor_a_command_to_the_terminal(
    serving: Serving, machine: Machine, tmp_path: Path
) -> None:
    """A file's name is one of the texts that others write, and a reason has it in it."""
    model = tmp_path / "[red]a[-red]\x1b]0;owned\x07\u202eb.gguf"
    model.write_bytes(b"nothing")
    level = {"name": "[b]odd[/b]", "model": str(model), "quality": 0.5, "ram_gib": 0.08, "context_tokens": 2048}
    with serving(ladder=[level]) as (url, manager, watch):
        manager.scaler.want(True)
        watch.until(lambda: any(isinstance(event, SwitchFailed) for event in watch.told()), "a failure")

        async def look(pilot: Pilot[None]) -> None:
            text = await says(pilot, "1 [b]odd[/b] ", "not a GGUF file")
            assert r"[red]a[-red]\x1b]0;owned\x07\u202eb.gguf" in re.sub(r"\n *", "", text)
            assert not set(text) & {"\x1b", "\x07", "\u202e"}

        seen(url, look)


@pytest.mark.parametrize("size", [(60, 16), (100, 30), (120, 40)], ids=str)
def test_it_has_a_place_for_all_of_it_in_terminals_of_other_sizes(
    serving: Serving, machine: Machine, size: tuple[int, int]
) -> None:
    """What has no room is scrolled to."""
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")

        async def look(pilot: Pilot[None]) -> None:
            text = await says(pilot, "large is the level now", "▶3 large")
            assert all(len(line) <= size[0] for line in text.split("\n"))
            if "in that hour" not in text:
                await pilot.press("pagedown")
            await says(pilot, "in that hour", "0 running")

        seen(url, look, size)


class Terminal:
    """The real command in a terminal: a pseudo one, whose screen pyte keeps."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        import pty
        import termios

        import pyte

        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = ""
        self._here, there = pty.openpty()
        termios.tcsetwinsize(there, (HEIGHT, WIDTH))
        self.attributes = termios.tcgetattr(there)
        known = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self._there = there
        self.process = subprocess.Popen(
            [*SCALER, "top", *arguments],
            stdin=there,
            stdout=there,
            stderr=there,
            env={**known, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )

    def press(self, key: str) -> None:
        """As a person does."""
        os.write(self._here, key.encode())

    def until(self, holds: Callable[[], bool]) -> None:
        """Take what is written until ``holds()``."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, f"{self.text()}\n{self.raw[-2000:]!r}"
            ready, _, _ = select.select([self._here], [], [], 0.05)
            if ready:
                data = os.read(self._here, 65536)
                self.raw += data.decode(errors="replace")
                self._stream.feed(data)

    def shows(self, *words: str) -> None:
        """Take what is written until all of ``words`` stand on the screen."""
        self.until(lambda: all(word in self.text() for word in words))

    def text(self) -> str:
        """The screen."""
        return "\n".join(self.screen.display)

    def colours(self) -> set[str]:
        """Every colour on the screen, of letters and of what is behind them."""
        cells = [cell for line in self.screen.buffer.values() for cell in line.values()]
        return {cell.fg for cell in cells} | {cell.bg for cell in cells}

    def as_it_was(self) -> bool:
        """Whether the terminal is as it was before."""
        import termios

        return termios.tcgetattr(self._there) == self.attributes

    def ends(self) -> int:
        """Wait for the end, taking what is written; the exit status."""
        self.until(lambda: self.process.poll() is not None)
        self.until(lambda: not select.select([self._here], [], [], 0)[0])
        return self.process.wait()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self._here)
        os.close(self._there)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts the command in a terminal."""
    if sys.platform == "win32":
        pytest.skip("Windows has no pseudo terminals of this kind")
    started: list[Terminal] = []

    def start(*arguments: str, **environment: str) -> Terminal:
        started.append(Terminal(*arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


def pinned(watch: Watch, manager: Any, level: str | None) -> None:
    """Wait until the daemon has it pinned."""
    watch.until(lambda: manager.scaler.status().pinned == level, f"{level} pinned")


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["colours", "none"])
def test_in_a_terminal_it_is_drawn_pins_and_leaves_all_as_it_was(
    serving: Serving, machine: Machine, terminal: Callable[..., Terminal], environment: dict[str, str]
) -> None:
    """The real command. What colours say is said without them, too: no word differs."""
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        top = terminal("--url", url, **environment)
        top.shows(url, "live ", "large is the level now", "▶3 large", "serves", "in that hour", "│80 % ┃95 %")
        assert top.colours() <= {"default"} if environment else len(top.colours()) > 3
        top.press("2")
        pinned(watch, manager, "medium")
        top.shows("medium is the level now; pinned to medium", "▶2 medium")
        top.press("u")
        pinned(watch, manager, None)
        top.press("q")
        assert top.ends() == 0
        assert top.raw.count(LEFT) == top.raw.count(RIGHT) == 1
        assert top.raw.rindex("\x1b[?25h") > top.raw.rindex("\x1b[?25l")  # the cursor is seen again
        assert top.as_it_was()


def test_with_the_token_and_the_certificate_of_the_configuration_it_is_let_in(
    serving: Serving, machine: Machine, terminal: Callable[..., Terminal], demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """It is shown and pins; without them one message says why not. Names that are two cells a letter shift no line."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    certificate, key = make_certificate(tmp_path)
    token = tmp_path / "token"
    token.write_text("correct-horse-battery-staple\n")
    token.chmod(0o600)
    ladder = [
        {"name": "小さい", "model": str(demo_models["small"]), "ram_gib": 0.08, "context_tokens": 2048},
        {"name": "medium 🦙", "model": str(demo_models["medium"]), "ram_gib": 0.24, "context_tokens": 2048},
    ]
    server = {"token_file": str(token), "tls": {"certificate": str(certificate), "key": str(key)}}
    with serving(ladder=ladder, server=server) as (url, manager, watch):
        assert url.startswith("https://")
        manager.scaler.want(True)
        settles_at(manager, watch, "medium 🦙")
        top = terminal("--url", url, "--config", manager.settings.file)
        top.shows(url, "live ", "medium 🦙 is the level now", "▶2 medium 🦙", "in that hour")
        lines = [line for line in top.text().split("\n") if re.search(r"[ ▶][12] .* at +[\d.]+ %", line)]
        assert len({cell_len(line[: line.index(" at ")]) for line in lines}) == 1
        assert len(lines) == len(ladder)
        top.press("1")
        pinned(watch, manager, "小さい")
        top.shows("小さい is the level now; pinned to 小さい", "▶1 小さい")
        top.press("q")
        assert top.ends() == 0
        token.write_text("another-horse-another-battery\n")
        refused = terminal("--url", url, "--config", manager.settings.file)
        assert refused.ends() == 3
        assert "\x1b" not in refused.raw
        assert "token" in refused.raw


def test_a_figure_and_its_unit_are_never_parted() -> None:
    """However wide the line is; nothing else changes, and colours stay where they were."""
    text = (
        "usage at large would be 16.3 % of 23.5 GiB; at most 76 % for 15 of the 60 s asked; 81 MiB, 12 min, 39 tokens/s"
    )
    content = Content.assemble("usage", (text.removeprefix("usage"), "bold"))
    for width in range(12, len(text) + 1):
        lines = wrapped(content, width)
        assert all(line.cell_length <= width for line in lines)
        assert not [line.plain for line in lines if re.match(r"(%|GiB|MiB|s|min|tokens/s)(?!\w)", line.plain)]
        assert " ".join(line.plain.strip() for line in lines) == text
        assert all(span.style == "bold" for line in lines for span in line.spans)


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "words"),
    [
        (["--url", "http://127.0.0.1:9"], {}, 4, "start one with `scaler run`"),
        (["--url", "http://127.0.0.1:9"], {"TERM": "dumb"}, 2, "`scaler status`"),
    ],
    ids=["no daemon", "a terminal that cannot"],
)
def test_where_nothing_can_be_shown_one_message_says_why(
    terminal: Callable[..., Terminal], arguments: Sequence[str], environment: dict[str, str], status: int, words: str
) -> None:
    """And the screen is not touched."""
    top = terminal(*arguments, **environment)
    assert top.ends() == status
    assert words in " ".join(top.raw.split())
    assert "\x1b" not in top.raw
    assert "Traceback" not in top.raw


def test_piped_it_names_the_command_for_that() -> None:
    """A picture is nothing for a pipe."""
    done = subprocess.run([*SCALER, "top", "--url", "http://127.0.0.1:9"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "`scaler status`" in line


def test_without_the_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line to type is in the message."""
    pty = pytest.importorskip("pty")
    here, there = pty.openpty()
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.delitem(sys.modules, "scaler.top.app")
    with os.fdopen(here), open(there, "w") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        assert cli.main(["top"]) == 3
    assert re.search(r"textual is not installed; .*\[tui\]'", capfd.readouterr().err)
