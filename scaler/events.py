"""What the scaler tells its subscribers, beside what the monitor tells.

Data only. Times are monotonic seconds; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scaler.advice import Suggestion
from scaler.machine import Switch


@dataclass(frozen=True, slots=True)
class DecisionMade:
    """The state changed; the effects were asked for ``switch``."""

    switch: Switch
    wall_s: float


@dataclass(frozen=True, slots=True)
class Hurried:
    """Usage turned critical during a switch: its drain limits shrank to those of ``switch``."""

    switch: Switch


@dataclass(frozen=True, slots=True)
class SwitchDone:
    """``level`` serves now. ``took_s`` runs from the decision, ``load_s`` is the loading in it, if any."""

    ticket: int
    source: str
    level: str
    took_s: float
    load_s: float | None


@dataclass(frozen=True, slots=True)
class SwitchFailed:
    """``level`` could not be loaded; ``still_serving`` answers, or ``off``."""

    ticket: int
    level: str
    still_serving: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelDied:
    """The model of ``level`` ended without having been asked to."""

    level: str
    reason: str


@dataclass(frozen=True, slots=True)
class StandbyLost:
    """``level`` does not stand by as it should: it could not be loaded, or died. The next switch tries again."""

    level: str
    reason: str


@dataclass(frozen=True, slots=True)
class UnloadFailed:
    """The model of ``level``, or the embedding model of that name, was told to go and stays.

    A level's is told once more when the scaler ends.
    """

    level: str
    reason: str


@dataclass(frozen=True, slots=True)
class PinChanged:
    """A person pinned ``level``, or unpinned it (None)."""

    level: str | None


@dataclass(frozen=True, slots=True)
class BudgetLowered:
    """From now on a new answer at ``level`` may have ``max_tokens`` at the most, and no thinking before it."""

    level: str
    max_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class BudgetRestored:
    """New answers at ``level`` are no longer shortened."""

    level: str


@dataclass(frozen=True, slots=True)
class Drained:
    """The answers that ran at ``level`` when it had to give way have ended, or were handed over, within ``took_s``."""

    level: str
    answers: int
    handed_over: int
    took_s: float


@dataclass(frozen=True, slots=True)
class AnswerHandedOver:
    """An answer goes on at the next level, after ``tokens`` tokens; ``reason`` where ``level`` died of something."""

    level: str
    tokens: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class TurnNotRemembered:
    """``level`` answered, but neither question nor answer could be added to the conversation, which stays as it was."""

    conversation_id: str
    level: str
    reason: str


@dataclass(frozen=True, slots=True)
class Advised:
    """What would make room for a level above ``level``, found when that was stepped down to: the best first.

    ``lacking`` is how many bytes of each resource each level lacks; ``reason`` says why there is no suggestion.
    """

    level: str
    lacking: Mapping[str, Mapping[str, int]]
    suggestions: tuple[Suggestion, ...]
    reason: str | None


@dataclass(frozen=True, slots=True)
class EmbeddingsLoaded:
    """The embedding model ``name`` was loaded, because it was asked for; ``reason`` is the room that there was."""

    name: str
    load_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class EmbeddingsGone:
    """The embedding model ``name`` was unloaded, died or could not be loaded; the next request tries again."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class PersonTold:
    """A notice went to whoever takes them: ``text``, about a downgrade, an upgrade or a failure of ``level``."""

    kind: str
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """A value of the configuration that is another now, as text; None where it is not shown, as it may be secret."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The configuration was read anew: ``changes`` apply from now on, the keys in ``restart`` after a restart."""

    changes: tuple[Change, ...]
    restart: tuple[str, ...]


ScalerEvent = (
    DecisionMade
    | Hurried
    | SwitchDone
    | SwitchFailed
    | ModelDied
    | StandbyLost
    | UnloadFailed
    | PinChanged
    | BudgetLowered
    | BudgetRestored
    | Drained
    | AnswerHandedOver
    | TurnNotRemembered
    | Advised
    | EmbeddingsLoaded
    | EmbeddingsGone
    | PersonTold
    | Reconfigured
)
