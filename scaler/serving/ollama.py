"""Ollama's dialect, so that programs written for Ollama work unchanged: the handlers.

Requests become OpenAI's (`ollama_requests`), so that hand-off and budgets are the same in every dialect, and the chunks
Ollama's lines (`ollama_answers`). The level that answered stands in the header ``x-scaler-level`` and in ``model``.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from scaler.descriptions import Description
from scaler.errors import RequestRejected, ScalerError
from scaler.manager import ModelManager
from scaler.serving import ollama_requests
from scaler.serving.answers import LEVEL_HEADER, MODEL, Answers, refuse
from scaler.serving.bodies import json_object
from scaler.serving.ollama_answers import Form, Layout, chat_layout, error_of, generate_layout
from scaler.serving.ollama_models import COMPLETION, VISION, capabilities, listed, loaded, shown, untagged
from scaler.serving.ollama_requests import Asked

PREFIX = "/api/"
"""Where the dialect is spoken."""
API_VERSION = "0.12.11"
"""The version of Ollama whose requests and answers these are: programs ask for it in order to know what they may use.
It is the one that brought ``logprobs``, the latest field that is spoken here."""


class Ollama:
    """The handlers of the dialect."""

    def __init__(self, manager: ModelManager, answers: Answers) -> None:
        self._manager, self._answers = manager, answers

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        return [
            web.head("/", self.alive),
            web.post("/api/chat", self.chat),
            web.post("/api/generate", self.generate),
            web.get("/api/tags", self.tags),
            web.post("/api/show", self.show),
            web.get("/api/ps", self.loaded),
            web.get("/api/version", self.version),
            *(web.post(f"/api/{name}", self.managed) for name in ("pull", "push", "create", "copy")),
            web.delete("/api/delete", self.managed),
            web.post("/api/blobs/{digest}", self.managed),
        ]

    async def alive(self, _: web.Request) -> web.Response:
        """Programs look whether somebody is there."""
        return web.Response(text="Ollama is running")

    async def version(self, _: web.Request) -> web.Response:
        """Of the dialect."""
        return web.json_response({"version": API_VERSION})

    async def managed(self, _: web.Request) -> web.Response:
        """Whatever would change which models there are."""
        ladder = ", ".join(self._manager.scaler.ladder.names)
        message = (
            f"scaler serves the ladder of its configuration ({ladder}) and changes no models; "
            "edit 'ladder' in the file that `scaler config show` names, and run `scaler reload`"
        )
        return web.json_response({"error": message}, status=HTTPStatus.NOT_IMPLEMENTED)

    # ---------------------------------------------------------------- answers

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat, as lines unless the whole is asked for; without messages, load the model."""
        return await self._answer(request, ollama_requests.chat, chat_layout)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer a prompt, as lines unless the whole is asked for; without one, load the model."""
        return await self._answer(request, ollama_requests.generate, generate_layout)

    async def _answer(
        self, request: web.Request, translate: Callable[[dict[str, Any]], Asked], layout: Layout
    ) -> web.StreamResponse:
        try:
            body = json_object(await request.read())
            name = self._name(body.get("model", MODEL))
            level, asked = self._answers.level(name), translate(body)
            if asked.pictured and VISION not in self._sure(name, await self._manager.descriptions())[0]:
                raise RequestRejected(f"{name!r} does not support vision; send the text without 'images'")
        except RequestRejected as error:
            return refuse(error, error_of(error))
        form = Form(layout, alternatives=asked.alternatives)
        if asked.request is not None:
            return await self._answers.answer(request, asked.request, level, form, streamed=asked.streamed)
        if asked.unload:
            # Others use it as well, and whether it stays is a matter of the machine's memory.
            return web.json_response(form.loaded(name, "unload"))
        try:
            ready = await self._manager.load(level)
        except ScalerError as error:
            return refuse(error, error_of(error))
        return web.json_response(form.loaded(ready, "load"), headers={LEVEL_HEADER: ready})

    # ---------------------------------------------------------------- models

    async def tags(self, _: web.Request) -> web.Response:
        """``auto``, and the levels."""
        models = await self._manager.descriptions()
        names = dict.fromkeys((MODEL, *models))
        listing = [listed(name, self._of(name, models), *self._sure(name, models)) for name in names]
        return web.json_response({"models": listing})

    async def loaded(self, _: web.Request) -> web.Response:
        """The level that serves, and those that stand by."""
        models = await self._manager.descriptions()
        held = [name for name in self._manager.loaded if name in models]
        now = [loaded(name, models[name], *self._manager.takes(name)) for name in held]
        return web.json_response({"models": now})

    async def show(self, request: web.Request) -> web.Response:
        """What is known of a model."""
        try:
            body = json_object(await request.read())
            asked = body.get("model") or body.get("name")
            if not asked:
                raise RequestRejected("model is required")
            name = self._name(asked)
            self._answers.level(name)
        except RequestRejected as error:
            return refuse(error, error_of(error))
        models = await self._manager.descriptions()
        return web.json_response(shown(self._of(name, models), *self._sure(name, models)))

    def _name(self, asked: object) -> str:
        """The name as `Answers` knows it: with or without the tag that Ollama's programs add."""
        if not isinstance(asked, str):
            raise RequestRejected("'model' must be a text")
        plain = untagged(asked)
        return plain if plain in self._answers.names and asked not in self._answers.names else asked

    def _of(self, name: str, models: dict[str, Description]) -> Description:
        """The model that a name stands for now; for ``auto``, while nothing serves, the smallest."""
        now = (level for level in self._manager.loaded if level in models)
        return models[next(now, next(iter(models))) if name == MODEL else name]

    @staticmethod
    def _sure(name: str, models: dict[str, Description]) -> tuple[tuple[str, ...], int]:
        """What a level can do, and its context window; for ``auto``, what every level can, and every level has."""
        meant = list(models.values()) if name == MODEL else [models[name]]
        each = [capabilities(model) for model in meant]
        able = tuple(one for one in each[0] if all(one in others for others in each)) or (COMPLETION,)
        return able, min(model.context_tokens for model in meant)
