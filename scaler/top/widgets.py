"""The parts of the screen: lines with a label, pictures, lists that show what has room, the page of help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import HorizontalGroup, VerticalScroll
from textual.content import Content
from textual.events import Key
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Label, OptionList, Static

from scaler.top.pictures import CRITICAL_AT, FREE, NOTHING, OTHER, OWN, SCALE_AT
from scaler.top.told import wrapped

HELP = f"""\
 1 to 9    pin the level with this number; 0: off
 ↑ ↓ ⏎     choose a level, and pin it
 u         unpin: scaler decides again
 PgUp PgDn scroll, where not all fits
 q         quit

Memory, from 0 to 100 %:
 {OTHER}  other programs   {OWN}  our model   {FREE}  free
 {SCALE_AT}  above this a level gives way to a smaller one
 {CRITICAL_AT}  critical: from here on people feel it
 1 2 3 below it: where usage would end at that level;
     left of {SCALE_AT} there is room, 3> is beyond the end

The last hour, now on the right:
 ▁▄█ the most that was in use, from 0 to 100 %
 2── level 2 served   {NOTHING}  nothing was loaded
     blank: no reading

Any key goes back."""


class Told(Static):
    """Text that is painted anew only when it is another: every line sent counts where the line is slow."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(markup=False, **kwargs)
        self._told: Content | None = None

    def say(self, content: Content | str) -> None:
        """Show this."""
        content = Content(content) if isinstance(content, str) else content
        if self._told is None or not content.is_same(self._told):
            self._told = content
            self.update(content)


class Sentences(Told):
    """The same in as many lines as it takes, in which a figure and its unit stay together."""

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many lines as are wrapped."""
        return len(self._lines(width))

    def render(self) -> Content:
        """The lines, one below the other."""
        return Content("\n").join(self._lines(self.content_size.width))

    def _lines(self, width: int) -> list[Content]:
        return wrapped(self._told or Content(), width)


class Line(HorizontalGroup):
    """A label, and what it is about."""

    def __init__(self, label: str, told: Widget, **kwargs: Any) -> None:
        super().__init__(Label(label, classes="label", markup=False), told, **kwargs)


class Levels(OptionList):
    """The levels, largest first, to choose one from."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "pin", key_display="0-9, ↑ ↓ ⏎"),
        Binding("pagedown", "app.page(1)", show=False),
        Binding("pageup", "app.page(-1)", show=False),
    ]


class Picture(Widget):
    """Lines that are drawn for the width that there is."""

    def __init__(self, draw: Callable[[int], list[Content]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._draw, self._drawn = draw, Content()

    def draw_anew(self) -> None:
        """Draw what is known now, where it is another picture."""
        drawn = self._lines(self.content_size.width)
        if not drawn.is_same(self._drawn):
            self.refresh(layout=drawn.plain.count("\n") != self._drawn.plain.count("\n"))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many lines as are drawn."""
        return len(self._draw(width))

    def render(self) -> Content:
        """The lines, one below the other."""
        self._drawn = self._lines(self.content_size.width)
        return self._drawn

    def _lines(self, width: int) -> Content:
        return Content("\n").join(self._draw(width))


class Whole(Widget):
    """Entries of which as many are shown as have room whole; the first always is begun."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._entries: list[Content] = []

    def say(self, entries: list[Content]) -> None:
        """Show these, the most important first."""
        if entries != self._entries:
            self._entries = entries
            self.refresh()

    def render(self) -> Content:
        """The entries that fit."""
        shown: list[Content] = []
        for entry in self._entries:
            lines = wrapped(entry, self.content_size.width)
            if shown and len(shown) + len(lines) > self.content_size.height:
                break
            shown += lines
        return Content("\n").join(shown)


class Help(ModalScreen[None]):
    """What the keys and the signs mean."""

    def compose(self) -> ComposeResult:
        """One text."""
        with VerticalScroll():
            yield Static(HELP, markup=False)

    def on_key(self, event: Key) -> None:
        """Any key ends it, but for those that scroll."""
        if event.key not in ("up", "down", "pageup", "pagedown"):
            event.stop()
            self.dismiss()
