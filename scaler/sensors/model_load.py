"""How busy the server of the level that serves says that it is."""

from __future__ import annotations

from collections.abc import Callable

from scaler.readings import ModelLoad


class ModelLoadSensor:
    """What the effects heard last; ``None`` where no level serves, or its server does not tell."""

    name = "model"

    def __init__(self, heard: Callable[[], ModelLoad | None]) -> None:
        """``heard`` may be called from any thread and must return at once."""
        self._heard = heard

    def read(self) -> ModelLoad | None:
        """The latest figures."""
        return self._heard()
