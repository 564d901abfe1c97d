"""What a manager stands on: time, the loop of its effects, the monitor, the journal, the look at who holds memory.

This machine's, unless somebody who simulates a machine hands in others. Data only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from scaler.advising import in_a_thread
from scaler.assembly import PutTogether, put_together
from scaler.journal import Journal, Writer, this_program
from scaler.loop_thread import LoopThread
from scaler.monitor import ResourceMonitor
from scaler.sensors.programs import ProgramSurvey


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """How each of them is come by."""

    put_together: PutTogether = put_together
    """The tier, the ladder and the runtimes that a configuration asks for."""
    clock: Callable[[], float] = time.monotonic
    """Monotonic seconds; those of the loop as well."""
    wall_clock: Callable[[], float] = time.time
    """Seconds since the epoch, for people."""
    effects: Callable[[str], LoopThread] = LoopThread
    """Runs what loads models and answers; told its name."""
    monitor: Callable[..., ResourceMonitor] = ResourceMonitor
    """Reads the machine; told as `ResourceMonitor` is."""
    journal: Callable[..., Journal] = Journal
    """Keeps decisions; told as `Journal` is."""
    writer: Writer = field(default_factory=this_program)
    """Who the journal says has decided."""
    survey: Callable[[Callable[[], Collection[int]]], ProgramSurvey] = ProgramSurvey
    """Looks who holds memory; told what gives the roots of the models' process trees."""
    aside: Callable[[Callable[[], None]], None] = in_a_thread
    """Does a look, which may hang, beside everything else."""
