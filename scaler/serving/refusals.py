"""What no handler answers, in the dialect that was spoken: unknown paths, bodies too large, faults of our own."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from scaler.printable import one_line
from scaler.serving.errors import error_body
from scaler.serving.ollama import PREFIX

log = logging.getLogger(__name__)

PASSED_ON = ("Allow", "Retry-After", "WWW-Authenticate")
"""The headers of an error that say what to do about it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def in_the_dialect(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with a handler, or with an error in the form that the program understands."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        headers = {name: error.headers[name] for name in PASSED_ON if name in error.headers}
        return _refusal(request, error.status, _told(request, error), headers)
    except ConnectionResetError:
        # The program hung up in the middle of its answer, and hears nothing any more.
        raise
    except Exception as error:
        log.exception("%s %s failed unexpectedly", request.method, one_line(request.path))
        if request.writer.output_size > 0:
            # Part of the answer has gone out: only breaking it off tells that it is not whole.
            raise
        message = f"scaler failed unexpectedly ({type(error).__name__}); its log says more"
        return _refusal(request, HTTPStatus.INTERNAL_SERVER_ERROR, message, {})


def _told(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return f"the body is larger than {request.client_max_size} bytes; send less of the conversation"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path} takes {', '.join(sorted(error.allowed_methods))}, not {request.method}"
    if isinstance(error, web.HTTPNotFound):
        paths = sorted({resource.canonical for resource in request.app.router.resources()})
        return f"there is nothing at {request.path}; there are: {', '.join(paths)}"
    return error.text or error.reason


def _refusal(request: web.Request, status: int, message: str, headers: dict[str, str]) -> web.Response:
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    body: dict[str, Any] = {"error": message} if _is_ollama(request.path) else error_body(message, kind)
    return web.json_response(body, status=status, headers=headers)


def _is_ollama(path: str) -> bool:
    return path.startswith(PREFIX)
