"""LM Studio's REST API: which models it has, which it holds, and how it is told to load and unload them.

Source: https://lmstudio.ai/docs/developer/rest
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from scaler.errors import LevelUnavailable
from scaler.level_settings import LmStudioLevel
from scaler.runtimes.lmstudio_size import weights_named
from scaler.runtimes.lmstudio_start import START_S, start_server
from scaler.runtimes.steering import ASK_S, Refused, Steering, Unreachable

LIST, LOAD, UNLOAD = "/api/v1/models", "/api/v1/models/load", "/api/v1/models/unload"
LOOK_EVERY_S = 0.2
"""How often LM Studio is asked whether a model is gone, or whether it answers at last."""
UNLOAD_S = 30.0
"""Within this a model that was told to go is gone, or it will not go."""
LOAD_ENDS_S = 3600.0
"""So long the end of a load is waited for, whoever has given it up: LM Studio goes on with it all the same."""
TOO_OLD = "LM Studio 0.4 or newer is needed"


class Quantization(BaseModel):
    """How the weights are kept."""

    name: str | None = None
    bits_per_weight: float | None = None


class Instance(BaseModel):
    """A model that is loaded."""

    id: str


class Capabilities(BaseModel):
    """What a model can do."""

    vision: bool = False
    trained_for_tool_use: bool = False


class Listed(BaseModel):
    """A model that LM Studio has. What it tells of none is None."""

    key: str
    loaded_instances: list[Instance]
    type: str | None = None
    architecture: str | None = None
    capabilities: Capabilities | None = None
    quantization: Quantization | None = None
    size_bytes: int | None = None
    params_string: str | None = None
    max_context_length: int | None = None
    format: str | None = None
    variants: list[str] = []
    """How to name it with its quantization."""

    @property
    def weights(self) -> float | None:
        """How many weights it has, as its name or else its size tells; of experts all."""
        if self.params_string and (named := weights_named(self.params_string)):
            return named
        bits = self.quantization.bits_per_weight if self.quantization else None
        return self.size_bytes * 8 / bits if self.size_bytes and bits else None


class _Models(BaseModel):
    models: list[Listed]

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, answer: Any) -> Any:
        # An unknown path is answered 200 up to 0.4.25.
        if isinstance(answer, dict) and "Unexpected endpoint" in str(answer.get("error")):
            raise PydanticCustomError("too_old", TOO_OLD)
        return answer


class _LoadConfig(BaseModel):
    context_length: int


class Loaded(BaseModel):
    """What LM Studio says of a load that is done."""

    instance_id: str
    load_config: _LoadConfig


class _Unloaded(BaseModel):
    instance_id: str


MODELS, LOADED, UNLOADED = TypeAdapter(_Models), TypeAdapter(Loaded), TypeAdapter(_Unloaded)


@dataclass(frozen=True)
class Rest:
    """Asks the LM Studio of one level. Every failure is a LevelUnavailable that says what to do."""

    settings: LmStudioLevel

    @property
    def where(self) -> str:
        """How messages begin."""
        return self._steering.where

    @property
    def _steering(self) -> Steering:
        command = f"start it with `lms server start --port {self.settings.url.port}`"
        return Steering(
            self.settings,
            "LM Studio",
            command if self.settings.start else f"{command}, or set the level's start to true",
        )

    async def models(self, *, timeout_s: float = ASK_S) -> Sequence[Listed]:
        """What LM Studio has."""
        try:
            return (await self._steering.ask("GET", LIST, MODELS, timeout_s=timeout_s)).models
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                raise LevelUnavailable(
                    f"{self.where}: {LIST} is not known there; {TOO_OLD}; correct the level's url, or bring it up to "
                    "date"
                ) from refused
            raise

    async def model(self, *, timeout_s: float = ASK_S) -> Listed:
        """The level's model."""
        for model in await self.models(timeout_s=timeout_s):
            if self.settings.model in (model.key, *model.variants):
                if model.type == "embedding":
                    raise LevelUnavailable(f"{self.where}: it embeds texts and answers nothing; choose another model")
                return model
        raise self._unknown()

    async def model_once_started(self) -> Listed:
        """The same; LM Studio's server is started where it does not run and the level asks for that."""
        try:
            return await self.model()
        except Unreachable:
            if not self.settings.start:
                raise
        await start_server(self._steering)
        until = time.monotonic() + START_S
        while True:
            try:
                return await self.model()
            except Unreachable:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(LOOK_EVERY_S)

    async def load(self, context_length: int) -> Loaded:
        """Have the model loaded, beside what is loaded of it, and wait for that whatever it takes."""
        asked: dict[str, Any] = {
            "model": self.settings.model,
            "context_length": context_length,
            "echo_load_config": True,
        }
        if self.settings.flash_attention is not None:
            asked["flash_attention"] = self.settings.flash_attention
        try:
            return await self._steering.ask("POST", LOAD, LOADED, asked, timeout_s=LOAD_ENDS_S)
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                raise self._unknown() from refused
            raise

    async def unload(self, instance: str) -> None:
        """Tell LM Studio to unload an instance; one that it does not hold is no failure."""
        try:
            await self._steering.ask("POST", UNLOAD, UNLOADED, {"instance_id": instance}, timeout_s=UNLOAD_S)
        except Refused as refused:
            if refused.status != HTTPStatus.NOT_FOUND:
                raise LevelUnavailable(f"{refused}; try `lms unload {instance}`") from refused

    async def clear(self, instance: str) -> None:
        """Unload an instance until LM Studio does not list it any more, as often as it comes back.

        The first instance's id is the model's key: a request for it that was under way has LM Studio load it again.
        """
        failure: LevelUnavailable | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNLOAD_S):
                while await self.holder(instance) is not None:
                    try:
                        await self.unload(instance)
                    except LevelUnavailable as error:
                        failure = error
                    await asyncio.sleep(LOOK_EVERY_S)
                return
        raise self.stays(instance) from failure

    async def holder(self, instance: str, *, timeout_s: float = ASK_S) -> Listed | None:
        """The model that an instance is of; None where LM Studio does not hold it."""
        for model in await self.models(timeout_s=timeout_s):
            if any(one.id == instance for one in model.loaded_instances):
                return model
        return None

    def stays(self, instance: str) -> LevelUnavailable:
        """What to raise when an instance does not go."""
        return LevelUnavailable(
            f"{self.where}: told to unload it, LM Studio still holds it after {UNLOAD_S:g} s; "
            f"try `lms unload {instance}`"
        )

    def _unknown(self) -> LevelUnavailable:
        return LevelUnavailable(
            f"{self.where}: LM Studio has no such model; get it with `lms get {self.settings.model}`, or name one that "
            "`lms ls` shows"
        )
