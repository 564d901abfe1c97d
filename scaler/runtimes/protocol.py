"""What scaler asks of a runtime. A new runtime is one new file that fulfils `Runtime` and `LoadedModel`.

A runtime knows nothing of thresholds, ladders or decisions: it loads what it is told to load.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from scaler.descriptions import Description
from scaler.level_settings import LevelSettings
from scaler.levels import Saving
from scaler.readings import ModelLoad
from scaler.settings import EmbeddingSettings

L = TypeVar("L", bound=LevelSettings, contravariant=True)


class LoadedModel(Protocol):
    """A level that is loaded and can answer."""

    @property
    def name(self) -> str:
        """The level's name."""

    def chat(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Stream the answer to an OpenAI chat request as `chat.completion.chunk` objects, in order.

        Messages that end with an assistant's have that one continued: only what comes after it is said.
        Closing the iterator ends the generation. Raises LevelUnavailable when the model dies or
        refuses to answer, RequestRejected when the request itself is at fault.
        """

    def complete(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The same for an OpenAI completion request, which has a ``prompt``: `text_completion` objects."""

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """How many tokens of the context window the prompt of a chat request takes: messages, tools and all."""

    async def health(self) -> bool:
        """Whether the model can take a request now."""

    async def died(self) -> str:
        """Wait until the model's process ends without having been asked to; return why."""

    async def unload(self) -> None:
        """End the model; return when its memory is back. Safe to call twice and on a dead model."""


@runtime_checkable
class TellsItsLoad(Protocol):
    """A loaded model whose server tells how busy it is; not every one does."""

    @property
    def heard(self) -> ModelLoad | None:
        """What the server said last, a second or two ago; None before it has. From any thread."""


class Runtime(Protocol[L]):
    """Loads levels of its kind."""

    def require(self) -> None:
        """Raise MissingExtra when a library that loading takes is not installed."""

    def footprint(self, settings: L) -> Mapping[str, int]:
        """Estimate what serving the level will take, in bytes a resource; raises LevelUnavailable."""

    def describe(self, settings: L) -> Description:
        """What is known of the level's model, without loading it. May take a tenth of a second; raises nothing."""

    def savings(self, settings: L) -> Sequence[Saving]:
        """What other settings would save of the level's estimated footprint, the mildest change first.

        Empty where the footprint does not follow from the settings. Raises LevelUnavailable. May take a second.
        """

    def apart(self, one: L, other: L) -> bool:
        """Whether two levels can be loaded at the same time."""

    def pids(self) -> Collection[int]:
        """The processes of everything that is loaded or being loaded; from any thread."""

    async def release(self, settings: L) -> None:
        """Let go of what the level's server holds from before scaler came, where nobody else can have use of it.

        A server that is off holds nothing. Raises LevelUnavailable when it will not let go, or does not say.
        """

    async def load(self, settings: L, progress: Callable[[float], None]) -> LoadedModel:
        """Load a level and return when it can answer; ``progress`` is told 0..1 on the way.

        Cancelling ends what was started. Raises LevelUnavailable with the level, the file and the cause.
        """

    async def close(self) -> None:
        """Wait for what still goes on in the background when every model was unloaded; half a minute at the most.

        Raises LevelUnavailable that names what it had to leave. Safe to call twice.
        """


class EmbeddingModel(Protocol):
    """A model that is loaded and turns texts into vectors."""

    async def embed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer an OpenAI embeddings request.

        Raises LevelUnavailable when the model dies, RequestRejected when the request itself is at fault.
        """

    async def died(self) -> str:
        """Wait until the model's process ends without having been asked to; return why."""

    async def unload(self) -> None:
        """End the model; return when its memory is back. Safe to call twice and on a dead model."""


class EmbeddingRuntime(Protocol):
    """Loads the embedding model; not every runtime can."""

    def require(self) -> None:
        """Raise MissingExtra when a library that loading takes is not installed."""

    def embedding_bytes(self, settings: EmbeddingSettings) -> int:
        """Estimate what the model will take of RAM; raises LevelUnavailable."""

    def pids(self) -> Collection[int]:
        """The processes of everything that is loaded or being loaded; from any thread."""

    async def load_embedding(self, settings: EmbeddingSettings) -> EmbeddingModel:
        """Load it and return when it can answer. Cancelling ends what was started. Raises LevelUnavailable."""
