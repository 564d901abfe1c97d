"""The endpoint's description of itself, in OpenAPI's form: every route, and what its requests may hold.

What is passed on to a runtime, which judges it itself, is described as far as it is looked at here.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from scaler import __version__
from scaler.serving.history_routes import DAYS, LAST_S

PATH = "/openapi.json"

TEXT: Mapping[str, Any] = {"type": "string"}
FLAG: Mapping[str, Any] = {"type": "boolean"}
OBJECT: Mapping[str, Any] = {"type": "object"}
COUNT: Mapping[str, Any] = {"type": "integer", "minimum": 1}
NUMBER: Mapping[str, Any] = {"type": "number"}
MODEL: Mapping[str, Any] = {"type": "string", "description": "auto, or a level's name", "default": "auto"}


def _list(items: Mapping[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def _whole(bounds: tuple[int, int, int]) -> dict[str, Any]:
    """A whole number: the least, what is taken for none, the most."""
    least, usual, most = bounds
    return {"type": "integer", "minimum": least, "maximum": most, "default": usual}


def _any(*kinds: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(kinds)}


def _object(required: tuple[str, ...] = (), /, **properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


PART = _object(("type",), type={"enum": ["text", "image_url"]}, text=TEXT, image_url=_object(("url",), url=TEXT))
CALL = _object(("id", "function"), id=TEXT, function=_object(("name", "arguments"), name=TEXT, arguments=TEXT))
MESSAGE = _object(
    ("role",),
    role={"enum": ["system", "user", "assistant", "tool", "developer"]},
    content=_any(TEXT, {"type": "null"}, _list(PART)),
    tool_calls=_list(CALL),
    tool_call_id=TEXT,
)
FUNCTION = _object(("name",), name=TEXT, description=TEXT, parameters=OBJECT)
TOOL = _object(("type", "function"), type={"const": "function"}, function=FUNCTION)
SAMPLING: Mapping[str, Mapping[str, Any]] = {
    "model": MODEL,
    "stream": FLAG,
    "stream_options": _object(include_usage=FLAG),
    "max_tokens": COUNT,
    "max_completion_tokens": COUNT,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "seed": {"type": "integer"},
    "n": COUNT,
    "stop": _any(TEXT, _list(TEXT)),
    "logit_bias": OBJECT,
    "grammar": TEXT,
}
CHAT = _object(
    ("messages",),
    messages=_list(MESSAGE, 1),
    tools=_list(TOOL),
    tool_choice=_any({"enum": ["auto", "none", "required"]}, OBJECT),
    parallel_tool_calls=FLAG,
    response_format=_any(
        _object(("type",), type={"enum": ["text", "json_object"]}),
        _object(
            ("type", "json_schema"), type={"const": "json_schema"}, json_schema=_object(("schema",), schema=OBJECT)
        ),
    ),
    chat_template_kwargs=OBJECT,
    logprobs=FLAG,
    top_logprobs={"type": "integer", "minimum": 0},
    **SAMPLING,
)
COMPLETION = _object(("prompt",), prompt=_any(TEXT, _list(TEXT), _list({"type": "integer"})), **SAMPLING)
ITEM = _object(
    type={"enum": ["message", "function_call", "function_call_output", "reasoning"]},
    role={"enum": ["system", "developer", "user", "assistant"]},
    content=_any(
        TEXT, _list(_object(("type",), type={"enum": ["input_text", "output_text", "input_image"]}, text=TEXT))
    ),
    call_id=TEXT,
    name=TEXT,
    arguments=TEXT,
    output=TEXT,
)
RESPONSE = _object(
    ("input",),
    input=_any(TEXT, _list(ITEM, 1)),
    instructions=TEXT,
    model=MODEL,
    stream=FLAG,
    max_output_tokens=COUNT,
    metadata=OBJECT,
    reasoning=_object(effort=TEXT),
    text=_object(format=_object(("type",), type={"enum": ["text", "json_object", "json_schema"]}, schema=OBJECT)),
    tools=_list(_object(("type", "name"), type={"const": "function"}, name=TEXT, parameters=OBJECT)),
    tool_choice=_any(TEXT, OBJECT),
    temperature=NUMBER,
    top_p=NUMBER,
)
EMBEDDINGS = _object(
    ("input",),
    input=_any(TEXT, _list(TEXT, 1), _list({"type": "integer"}, 1)),
    model=TEXT,
    encoding_format={"enum": ["float", "base64"]},
)
OPTIONS = _object(
    temperature=NUMBER, top_k={"type": "integer"}, top_p=NUMBER, seed={"type": "integer"}, num_predict=COUNT,
    stop=_list(TEXT), num_ctx=COUNT,
)  # fmt: skip
OLLAMA: Mapping[str, Mapping[str, Any]] = {
    "model": MODEL,
    "stream": FLAG,
    "format": _any({"const": "json"}, OBJECT),
    "options": OPTIONS,
    "keep_alive": _any(TEXT, NUMBER),
    "think": FLAG,
}
OLLAMA_CHAT = _object(
    messages=_list(_object(("role",), role={"enum": ["system", "user", "assistant", "tool"]}, content=TEXT)),
    tools=_list(TOOL),
    **OLLAMA,
)
OLLAMA_GENERATE = _object(prompt=TEXT, system=TEXT, raw=FLAG, suffix=TEXT, images=_list(TEXT), **OLLAMA)
SHOW = _object(model=TEXT, name=TEXT, verbose=FLAG)
PIN = _object(("level",), level=TEXT)

_CHANGES = "refused with 501: the ladder is the configuration's"
_ROUTES: Mapping[tuple[str, str], tuple[str, Mapping[str, Any] | None]] = {
    ("post", "/v1/chat/completions"): ("a chat, whole or as server-sent events", CHAT),
    ("post", "/v1/completions"): ("a completion of a prompt, whole or as server-sent events", COMPLETION),
    ("post", "/v1/responses"): ("a chat in the form of OpenAI's Responses API", RESPONSE),
    ("post", "/v1/embeddings"): ("texts to vectors", EMBEDDINGS),
    ("get", "/v1/models"): ("auto, the levels and the embedding model", None),
    ("get", "/v1/models/{model}"): ("one of them", None),
    ("get", "/"): ("the page for people", None),
    ("get", "/page/{name}"): ("a file that the page is made of", None),
    ("head", "/"): ("whether somebody is there", None),
    ("post", "/api/chat"): ("a chat as Ollama has it, as lines of JSON unless stream is false", OLLAMA_CHAT),
    ("post", "/api/generate"): ("a completion as Ollama has it", OLLAMA_GENERATE),
    ("get", "/api/tags"): ("auto and the levels", None),
    ("post", "/api/show"): ("what is known of a model", SHOW),
    ("get", "/api/ps"): ("what is loaded", None),
    ("get", "/api/version"): ("the version of Ollama's API", None),
    **{("post", f"/api/{name}"): (_CHANGES, OBJECT) for name in ("pull", "push", "create", "copy")},
    ("post", "/api/blobs/{digest}"): (_CHANGES, OBJECT),
    ("delete", "/api/delete"): (_CHANGES, OBJECT),
    ("get", "/healthz"): ("whether the machine is watched", None),
    ("get", "/status"): ("everything that a person asks about", None),
    ("get", "/check"): ("whether a request would be answered now", None),
    ("get", "/advice"): ("what would make room for a larger level", None),
    ("put", "/pin"): ("stay at a level", PIN),
    ("delete", "/pin"): ("let the machine decide again", None),
    ("post", "/reload"): ("read the configuration anew", None),
    ("get", "/metrics"): ("figures in Prometheus' text format, or OpenMetrics where that is asked for", None),
    ("get", "/events"): ("what happens, as server-sent events; with readings=1 the readings too", None),
    ("get", "/history"): ("readings and events of the last hours", None),
    ("get", "/history/days"): ("how long each level answered on each of the last days, and what happened", None),
    ("get", PATH): ("this description", None),
}
_QUERIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "/events": {"readings": TEXT},
    "/history": {"last_s": _whole(LAST_S)},
    "/history/days": {"days": _whole(DAYS)},
}
_ANSWERS = {
    "200": "the answer",
    "400": "the request is wrong: the error says how",
    "401": "the token lacks",
    "403": "the host or the origin is not allowed",
    "404": "there is no such model or path",
    "408": "the body did not come in time",
    "409": "it cannot be pinned",
    "413": "the body is too large",
    "422": "the configuration is at fault: the error says where",
    "501": "this is not done here",
    "503": "no level can take it now; Retry-After says when to try again",
}


def description(*, token: bool) -> dict[str, Any]:
    """The whole of it. ``token``: whether one is needed."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), (summary, body) in _ROUTES.items():
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {code: {"description": words} for code, words in _ANSWERS.items()},
        }
        if body is not None:
            operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
        named = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        parameters = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in named]
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in _QUERIES.get(path, {}).items()
        ]
        if parameters:
            operation["parameters"] = parameters
        paths.setdefault(path, {})[method] = operation
    secured = {
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "scaler", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        **(secured if token else {}),
    }


def route(*, token: bool) -> web.RouteDef:
    """Where it is found."""
    told = description(token=token)

    async def describe(_: web.Request) -> web.Response:
        return web.json_response(told)

    return web.get(PATH, describe)
