"""OpenAI's embeddings: texts to vectors, with the model that the configuration names for it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web

from scaler.errors import RequestRejected, ScalerError
from scaler.manager import ModelManager
from scaler.serving.answers import MODEL, refuse
from scaler.serving.errors import body_of
from scaler.serving.openai import checked


class EmbeddingsRoute:
    """The handler of ``POST /v1/embeddings``."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def routes(self) -> list[web.RouteDef]:
        """Where it is found."""
        return [web.post("/v1/embeddings", self.create)]

    async def create(self, request: web.Request) -> web.Response:
        """Answer with a vector for each text or list of tokens."""
        try:
            body = checked(await request.read())
            answer = await self._manager.embeddings(self._asked(body))
        except ScalerError as error:
            return refuse(error, body_of(error))
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    def _asked(self, body: dict[str, Any]) -> dict[str, Any]:
        name, known = body.get("model", MODEL), self._manager.embedding_model
        # Without one, the manager says which key to set, which helps more than that this name is unknown.
        if known is not None and name not in (MODEL, known):
            raise RequestRejected(f"there is no embedding model {name!r}; there is: {known}", HTTPStatus.NOT_FOUND)
        if body.get("dimensions") is not None:
            raise RequestRejected("'dimensions' is not possible: the vectors are as long as the model makes them")
        form = body.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise RequestRejected("'encoding_format' must be float or base64")
        if not _is_input(body.get("input")):
            raise RequestRejected("'input' must be a text, a list of tokens, or a list of at least one of these")
        return {"input": body["input"], "encoding_format": form}


def _is_input(given: Any) -> bool:
    if isinstance(given, str):
        return True
    return isinstance(given, list) and bool(given) and (_are_tokens(given) or all(map(_is_one, given)))


def _is_one(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, list) and bool(given) and _are_tokens(given))


def _are_tokens(given: list[Any]) -> bool:
    return all(isinstance(one, int) and not isinstance(one, bool) for one in given)
