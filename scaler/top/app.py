"""What a person sees of a daemon, and the keys that they have.

Owns the layout. All text is shown as it is: none of it is read as markup.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import HorizontalGroup, Vertical, VerticalGroup, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, OptionList
from textual.widgets.option_list import Option

from scaler.levels import OFF
from scaler.top.link import Answer, Known, Link, Lost, News
from scaler.top.memory import LABEL, memory
from scaler.top.told import clock, events, level_line, model_words, read_at, suggestions, time_of, upgrade, wrapped
from scaler.top.widgets import Help, Levels, Line, Picture, Sentences, Told, Whole

TALL, WIDE = 30, 118
"""From so many lines on a picture is higher than one; from so many columns on events stand beside the rest."""


class Heard(Message):
    """The daemon told something."""

    def __init__(self, news: News) -> None:
        super().__init__()
        self.news = news


class Top(App[None]):
    """The daemon's state, live."""

    TITLE = "scaler top"
    ENABLE_COMMAND_PALETTE = False
    # Textual does not declare them as what they are, of the class.
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (TALL, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(number), f"pin({number})", show=False) for number in range(10)),
        Binding("u", "unpin", "unpin"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q,ctrl+c", "quit", "quit", key_display="q"),
        Binding("ctrl+z", "suspend_process", show=False),
    ]
    CSS = f"""
    #title {{ width: 1fr; text-style: bold; text-wrap: nowrap; text-overflow: ellipsis; }}
    #live {{ width: auto; }}
    #live.lost {{ text-style: bold reverse; }}
    .label {{ width: {LABEL}; text-style: bold; }}
    Line > Sentences {{ width: 1fr; }}
    Levels {{ width: 1fr; height: auto; max-height: 12; border: none; padding: 0; background: ansi_default; }}
    Levels:focus {{ border: none; background-tint: ansi_default 0%; }}
    Levels > .option-list--option {{ padding: 0; }}
    Levels > .option-list--option-highlighted, Levels:focus > .option-list--option-highlighted {{
        text-style: none; color: ansi_default; background: ansi_default;
    }}
    Picture {{ height: auto; }}
    #body {{ height: 1fr; }}
    .-wide #body {{ layout: horizontal; }}
    #now {{ height: auto; }}
    .-wide #now {{ width: 2fr; }}
    #past {{ height: 1fr; min-height: 4; }}
    .-wide #past {{ width: 1fr; height: 100%; padding-left: 2; }}
    #events {{ width: 1fr; height: 1fr; min-height: 2; }}
    Line#events-line {{ height: 1fr; min-height: 2; }}
    .-wide #past Line {{ layout: vertical; }}
    .-wide #past Line > Sentences, .-wide #past Line > Whole {{ width: 100%; }}
    .-tall .apart {{ margin-bottom: 1; }}
    VerticalScroll {{ scrollbar-size-vertical: 1; }}
    #answer {{ text-style: bold; }}
    Help {{ align: center middle; background: ansi_default; }}
    Help VerticalScroll {{ width: 62; height: auto; max-height: 100%; border: ascii ansi_default; padding: 0 1; }}
    """

    def __init__(self, link: Callable[[Callable[[News], object]], Link], url: str) -> None:
        """``link`` makes what asks the daemon at ``url``, for someone to tell."""
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self._url = url
        self._link = link(lambda news: self.post_message(Heard(news)))
        self._known: Known | None = None
        self._lost_since: datetime | None = None
        self._names: list[str] = []

    # ---------------------------------------------------------------- layout

    def compose(self) -> ComposeResult:
        """The title, the state, the past, what was answered, the keys."""
        with HorizontalGroup():
            yield Told(id="title")
            yield Told(id="live")
        with VerticalScroll(id="body", can_focus=False):
            with VerticalGroup(id="now"):
                yield Line("level", Sentences(id="level"))
                yield Line("because", Sentences(id="because"))
                yield Line("upgrade", Sentences(id="upgrade"), classes="apart")
                yield Line("levels", Levels(markup=False, compact=True), classes="apart")
                yield Picture(self._memory, id="memory", classes="apart")
                yield Line("answers", Sentences(id="answers"))
                yield Line("missing", Sentences(id="missing"), classes="apart")
            with Vertical(id="past"):
                yield Line("advice", Sentences(id="advice"), classes="apart")
                yield Line("events", Whole(id="events"), id="events-line")
        yield Sentences(id="answer")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin."""
        self._main.query_one("#title", Told).say(f"scaler top  {self._url}")
        self._main.query_one("#live", Told).say(" waits for the daemon's first answer")
        self._main.query_one("#answer").display = False
        self._link.start()
        self.set_interval(1.0, self._show)
        if sys.platform != "win32":
            # Whoever ends it from outside gets the terminal back as it was, too.
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGTERM, lambda: self.exit(return_code=128 + signal.SIGTERM)
            )

    def on_unmount(self) -> None:
        """End."""
        self._link.close()

    def on_resize(self, _: Resize) -> None:
        """Other sizes, other pictures."""
        self._show()

    # ---------------------------------------------------------------- what is told

    @on(Heard)
    def _take(self, heard: Heard) -> None:
        if not self.is_running:
            return  # it ends, and the screen is taken down already
        match heard.news:
            case Known() as known:
                if self._lost_since is not None:
                    self._answer("the daemon is back")
                self._known, self._lost_since = known, None
            case Lost(reason):
                if self._lost_since is None:
                    # Once; the title says all the while that it is so.
                    self._lost_since = datetime.now(UTC)
                    self._answer(reason)
            case Answer(text):
                self._answer(text)
        self._show()

    def _answer(self, text: str) -> None:
        """Say this at the foot, with the time, as it stays there."""
        answer = self._main.query_one("#answer", Told)
        answer.say(f"{clock(datetime.now(UTC))} {text}")
        answer.display = True

    @property
    def _main(self) -> Screen[object]:
        """The screen below the page of help, if that is shown."""
        return self.screen_stack[0]

    def _show(self) -> None:
        """Everything as it is known, with the time that has passed since."""
        if self._known is None or not self.is_running:
            return
        status, tall = self._known.status, self.size.height >= TALL
        passed_s = time.monotonic() - self._known.at_s
        live = self._main.query_one("#live", Told)
        live.set_class(self._lost_since is not None, "lost")
        if self._lost_since is None:
            live.say(f" live {time_of(read_at(status))}")
        else:
            live.say(f" no answer since {clock(self._lost_since)}; trying again ")
        tier = f"  tier {status['tier']}" if status["tier"] and self._lost_since is None else ""
        self._main.query_one("#title", Told).say(f"scaler top  {self._url}{tier}")
        first, *reasons = status["why"]
        pinned = f"; pinned to {status['pinned']}" if status["pinned"] else ""
        self._main.query_one("#level", Told).say(Content.styled(first + pinned, "bold"))
        self._say("#because", "; ".join(reasons))
        self._say("#upgrade", "\n".join(upgrade(status, passed_s, short=not tall)))
        self._say("#answers", f"{status['answering']} running, {status['waiting']} waiting{model_words(status)}")
        self._say("#missing", "\n".join([*status["missing"], *status["not_permitted"]]))
        self._show_levels(status, passed_s)
        self._main.query_one("#memory", Picture).draw_anew()
        advice = list(suggestions(self._known.advice))
        room = len(advice) if tall else 1
        more = f" (and {len(advice) - room} more: scaler advise)" if len(advice) > room else ""
        self._say("#advice", "\n".join(advice[:room]) + more)
        self._main.query_one("#events", Whole).say(events(self._known.history))

    def _say(self, which: str, text: str) -> None:
        told = self._main.query_one(which, Told)
        told.say(text)
        assert told.parent is not None
        told.parent.display = bool(text)

    def _show_levels(self, status: dict[str, Any], passed_s: float) -> None:
        levels = self._main.query_one(Levels)
        names = [OFF, *status["projected"]]
        width = max(Content(name).cell_length for name in names)
        prompts = [level_line(status, number, name, width, passed_s) for number, name in enumerate(names)][::-1]
        if names != self._names:
            self._names = names
            levels.set_options([Option(prompt) for prompt in prompts])
            levels.highlighted = len(names) - 1 - names.index(status["state"])
            levels.focus()
        for index, prompt in enumerate(prompts):
            prompt = Content("\n").join(wrapped(prompt, levels.content_size.width or self.size.width))
            if index == levels.highlighted:
                # Textual (8.2) gives a list's style no reversed text, which is what is seen without colours, too.
                prompt = prompt.stylize("reverse")
            shown = levels.get_option_at_index(index).prompt
            if not (isinstance(shown, Content) and prompt.is_same(shown)):
                levels.replace_option_prompt_at_index(index, prompt)

    def _memory(self, width: int) -> list[Content]:
        if self._known is None:
            return []
        return memory(self._known.status, self._known.history, width, tall=self.size.height >= TALL)

    # ---------------------------------------------------------------- keys

    @on(OptionList.OptionSelected)
    def _chosen(self, chosen: OptionList.OptionSelected) -> None:
        self.action_pin(len(self._names) - 1 - chosen.option_index)

    @on(OptionList.OptionHighlighted)
    def _pointed_at(self) -> None:
        self._show()

    def action_pin(self, number: int) -> None:
        """Pin the level with this number."""
        if number < len(self._names):
            self._link.pin(self._names[number])
        else:
            self._answer(f"there is no level {number}")

    def action_unpin(self) -> None:
        """Let scaler decide again."""
        self._link.pin(None)

    def action_help(self) -> None:
        """Say what the keys and the signs mean."""
        self.push_screen(Help())

    def action_page(self, pages: int) -> None:
        """Scroll what does not fit."""
        body = self._main.query_one("#body", VerticalScroll)
        body.scroll_relative(y=pages * body.size.height, animate=False)
