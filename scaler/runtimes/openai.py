"""Any server with OpenAI's API: requests are sent there, and nothing is loaded or unloaded.

Owns what can be asked of a server of which no more is known. Knows nothing of thresholds or ladders.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from scaler.descriptions import EVERYTHING, Description
from scaler.errors import LevelUnavailable, NeverAsked, RequestRejected
from scaler.level_settings import OpenAILevel, ServedLevel
from scaler.levels import Saving
from scaler.runtimes.model_server import ModelServer, goes_on, streamed
from scaler.runtimes.openai_chunks import EventReader
from scaler.runtimes.steering import ASK_S, Refused, Steering, Unreachable, authorization, require_client
from scaler.runtimes.token_estimate import estimated_tokens

LOOK_EVERY_S = 2.0
"""How often the server is asked whether it is still there."""
SILENT = 3
"""A server that has failed to answer so many times in a row is gone; one that refuses the connection, at once."""
UNLISTED = (404, 405, 501)
"""What a server answers that lists no models."""
WITHOUT_THINKING = {"enable_thinking": False}
RENAMES_LIMIT = re.compile(r"use '?max_completion_tokens", re.IGNORECASE)
"""What a server says that will not have a chat's limit called ``max_tokens``, as OpenAI's with the newer models.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""


class _Listed(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Listed]


MODELS = TypeAdapter(_Models)


class OpenAIRuntime:
    """Sends requests to servers that others run."""

    def require(self) -> None:
        """Raises MissingExtra when the HTTP client is not installed."""
        require_client()

    def footprint(self, settings: OpenAILevel) -> Mapping[str, int]:
        """Nothing: whatever the server takes, unloading the level gives none of it back."""
        return {}

    def describe(self, settings: OpenAILevel) -> Description:
        """Its name."""
        return Description(settings.model, settings.context_tokens, capabilities=EVERYTHING)

    def savings(self, settings: OpenAILevel) -> Sequence[Saving]:
        """None."""
        return ()

    def apart(self, one: OpenAILevel, other: OpenAILevel) -> bool:
        """Always."""
        return True

    def pids(self) -> Collection[int]:
        """None: the server's memory is there whether the level serves or not, so that it counts as the others'."""
        return ()

    async def release(self, settings: OpenAILevel) -> None:
        """Nothing: what the server holds is not scaler's."""

    async def close(self) -> None:
        """Nothing goes on in the background."""

    async def load(self, settings: OpenAILevel, progress: Callable[[float], None]) -> OpenAIModel:
        """See that the server is there and has the model. Raises LevelUnavailable, MissingExtra."""
        self.require()
        progress(0.0)
        steering = _steering(settings)
        if (names := await _names(steering, settings.load_timeout_s)) is not None and settings.model not in names:
            raise LevelUnavailable(
                f"{steering.where}: the server has no such model; it has {', '.join(names) or 'none at all'}"
            )
        progress(1.0)
        return OpenAIModel(settings, steering)


class OpenAIModel:
    """A level that a server answers for."""

    def __init__(self, settings: OpenAILevel, steering: Steering) -> None:
        self._settings, self._steering = settings, steering
        self._gone: str | None = None
        self._missed = asyncio.Event()
        self._refusals = 0
        """How many answers failed in a row."""
        self._renames_limit = False
        self._server = ModelServer(
            steering.where,
            _base(settings),
            answers=settings.parallel,
            calls=1,
            why_gone=self._why_gone,
            headers=authorization(settings),
        )

    @property
    def name(self) -> str:
        """The level's name."""
        return self._settings.name

    def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream the answer's chunks; raises LevelUnavailable, RequestRejected."""
        return self._stream("/chat/completions", request)

    def complete(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Stream what follows the prompt; raises LevelUnavailable, RequestRejected."""
        return self._stream("/completions", request)

    async def _stream(self, path: str, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        if self._gone is not None:
            # Those who watch it get a turn, so that no more requests come.
            await asyncio.sleep(0)
            raise NeverAsked(self._gone)
        if goes_on(request) and not self._settings.continues:
            raise RequestRejected(
                f"{self.name}: {self._settings.address} may not go on with a message of the assistant; set the level's "
                "continues to true if it knows continue_final_message"
            )
        body = self._body(request)
        try:
            async for chunk in self._server.stream(path, body, EventReader(body)):
                self._refusals = 0
                yield chunk
            return
        except NeverAsked:
            raise
        except RequestRejected as refused:
            if not _limits_chat(body) or not RENAMES_LIMIT.search(str(refused)):
                raise
            self._renames_limit = True
        except LevelUnavailable as error:
            self._refusals += 1
            if self._refusals >= SILENT and self._gone is None:
                # It lists its models, and answers nobody: another level can.
                self._gone = str(error)
                self._missed.set()
            raise
        async for chunk in self._stream(path, request):
            yield chunk

    def _body(self, request: Mapping[str, Any]) -> dict[str, Any]:
        body = streamed(request, model=self._settings.model)
        # scaler adds it where memory is short; a server that does not know it would refuse the request.
        if body.get("chat_template_kwargs") == WITHOUT_THINKING:
            del body["chat_template_kwargs"]
        if self._renames_limit and _limits_chat(body):
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
        return body

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """Estimated from the length of the text: there is no common way to ask."""
        return estimated_tokens(request)

    async def health(self) -> bool:
        """Whether the server answers."""
        try:
            await _names(self._steering)
        except LevelUnavailable:
            return False
        return True

    async def died(self) -> str:
        """Wait until the server does not answer any more, or has the model no more; return why."""
        silent = 0
        while self._gone is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._missed.wait()
                    break
            try:
                names = await _names(self._steering)
            except Refused as refused:
                # Below 500 it is there: what it says is for those to hear who ask it something.
                silent = silent + 1 if refused.status >= 500 else 0
                if silent >= SILENT:
                    self._gone = str(refused)
            except LevelUnavailable as error:
                silent += 1
                if silent >= SILENT or isinstance(error, Unreachable):
                    self._gone = str(error)
            else:
                silent = 0
                if names is not None and self._settings.model not in names:
                    self._gone = f"{self._steering.where}: the server does not have the model any more"
        assert self._gone is not None  # what was missed is gone
        return self._gone

    async def unload(self) -> None:
        """Send no more requests."""
        await self._server.close()

    async def _why_gone(self) -> str | None:
        try:
            await _names(self._steering)
        except Unreachable as error:
            self._gone = str(error)
            self._missed.set()
        except LevelUnavailable as error:
            return str(error)
        return self._gone


def _limits_chat(body: Mapping[str, Any]) -> bool:
    """Whether a chat is limited by the name that not every server takes; of a completion it is the only one."""
    return "messages" in body and "max_tokens" in body


def _base(settings: ServedLevel) -> str:
    """The API's base; ``/v1`` where the URL names no path, as people write it either way."""
    path = settings.url.path
    return settings.address if path and path != "/" else f"{settings.address}/v1"


def _steering(settings: OpenAILevel) -> Steering:
    return Steering(settings, "a server with OpenAI's API", "start it, or correct the level's url")


async def _names(steering: Steering, timeout_s: float = ASK_S) -> list[str] | None:
    """The models that the server lists; None for one that has no list."""
    path = "/models" if _base(steering.settings) == steering.settings.address else "/v1/models"
    try:
        listed = await steering.ask("GET", path, MODELS, timeout_s=timeout_s)
    except Refused as refused:
        if refused.status in UNLISTED:
            return None
        raise
    return [model.id for model in listed.data]
