"""Has advice made beside everything else, and notices told with the best of it, each in its turn.

Owns the thread that looks who holds memory, so that neither a reading nor an answer waits for it, and the queue of
notices. Knows neither thresholds nor how a notice is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from scaler.advice import Advice, Room, advise
from scaler.errors import LevelUnavailable, ScalerError
from scaler.events import Advised, PersonTold
from scaler.level_settings import LevelSettings
from scaler.levels import RAM, Ladder, Saving
from scaler.notices import Notice, Notices
from scaler.readings import Survey
from scaler.runtimes.protocol import Runtime
from scaler.sensors.programs import ProgramSurvey

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""For so long a notice is held back for its suggestion, which takes some 20 to 300 ms to find."""
ASKED_S = 8.0
"""For so long somebody who asks for advice waits: a machine that swaps may answer late, and still be of help."""

Seen = tuple[Survey, Mapping[str, Sequence[Saving]]]


def in_a_thread(look: Callable[[], None]) -> None:
    """Do ``look`` in a thread that nobody waits for at the end: a look at a process that hangs may hang, too."""
    threading.Thread(target=look, name="scaler-survey", daemon=True).start()


class Adviser:
    """Makes advice from what the scaler knows and a look at the machine; usable on one event loop."""

    def __init__(
        self,
        room: Callable[[], Room],
        survey: ProgramSurvey,
        levels: Mapping[str, tuple[Runtime[Any], LevelSettings]],
        ladder: Ladder,
        in_our_group: Callable[[], bool],
        aside: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        """``in_our_group``: whether it is the memory of this process's control group that is short.

        ``aside`` does what it is given beside everything else, as `in_a_thread` does.
        """
        self._room, self._survey = room, survey
        self._in_our_group, self._aside = in_our_group, aside
        self._looking: Future[Seen] | None = None
        self.reconfigure(levels, ladder)

    def reconfigure(self, levels: Mapping[str, tuple[Runtime[Any], LevelSettings]], ladder: Ladder) -> None:
        """Advise on these levels from the next look on."""
        self._levels = levels
        self._gpus = any(resource != RAM for level in ladder for resource in level.footprint)
        self._savings: dict[str, Sequence[Saving]] = {}

    async def advise(self, patience_s: float = ASKED_S) -> Advice:
        """The advice of this moment.

        Raises ScalerError when the look cannot begin or took longer than ``patience_s``, OSError.
        """
        # One at a time, so that a look that hangs costs one thread and not one each time.
        looking = self._looking
        if looking is None or looking.done():
            looking = self._looking = self._begin()
        try:
            survey, savings = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(looking)), patience_s)
        except TimeoutError:
            raise ScalerError(f"the look at who holds memory took more than {patience_s:g} s; try again") from None
        return advise(self._room(), survey, savings)

    def _begin(self) -> Future[Seen]:
        seen = Future[Seen]()
        try:
            self._aside(partial(self._look, seen))
        except RuntimeError as error:
            # For want of memory, or of processes that this user may have.
            raise ScalerError(
                f"the look at who holds memory cannot begin: {error}; try again, or raise the limit on processes and "
                "threads (ulimit -u)"
            ) from error
        return seen

    def _look(self, seen: Future[Seen]) -> None:
        levels, known = self._levels, self._savings
        try:
            survey = self._survey.take(gpus=self._gpus, in_our_group=self._in_our_group())
            for name, (runtime, settings) in levels.items():
                if name not in known:
                    try:
                        known[name] = runtime.savings(settings)
                    except LevelUnavailable:
                        # Told when it is loaded, and perhaps there the next time; what cannot be read saves nothing.
                        continue
            seen.set_result((survey, known))
        except BaseException as error:  # noqa: BLE001  # not swallowed: it is the answer, and whoever asked gets it
            seen.set_exception(error)


class Telling:
    """Tells notices in the order in which they came, downgrades with the best suggestion at the end."""

    def __init__(self, notices: Notices, adviser: Adviser, note: Callable[[Advised | PersonTold], None]) -> None:
        """``note`` is told what the advice was and what was told. Call `start` on the loop."""
        self._notices, self._adviser, self._note = notices, adviser, note
        self._waiting: asyncio.Queue[Notice | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to tell."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._tell(), name="notices")

    def take(self, notice: Notice) -> None:
        """Have a notice told; from any thread. What comes after the end is dropped."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._waiting.put_nowait, notice)

    async def close(self) -> None:
        """Tell what is left and end."""
        if self._task is not None:
            self._waiting.put_nowait(None)
            await self._task

    async def _tell(self) -> None:
        while (notice := await self._waiting.get()) is not None:
            # Who is spared a repetition is spared the look at every process as well.
            if notice.kind == "downgrade" and not self._notices.repeats(notice):
                notice = await self._advised(notice)
            if (told := self._notices.tell(notice)) is not None:
                self._note(PersonTold(told.kind, told.level, told.text))

    async def _advised(self, notice: Notice) -> Notice:
        """The notice with the best suggestion, if there is any."""
        try:
            advice = await self._adviser.advise(PATIENCE_S)
        except ScalerError as error:
            # A machine that is too busy for the look, as one is where a level has to go, is no fault of ours.
            log.error("no suggestion goes with: %s (%s)", notice.text, error)
            return notice
        except Exception:
            # That a level gave way is told in any case; that the suggestion is missing is for whoever reads the log.
            log.exception("no suggestion goes with: %s", notice.text)
            return notice
        self._note(Advised(advice.state, advice.lacking, advice.suggestions, advice.reason))
        if not advice.suggestions:
            return notice
        return replace(notice, text=f"{notice.text}; {advice.suggestions[0].text}")
