"""What goes wrong, in the form that OpenAI's clients understand."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from scaler.errors import LevelUnavailable, QueueFull, RequestRejected, RequestTimedOut, ScalerError

RETRY_AFTER_S = 5
"""What a client is told to wait when no level serves: about the time in which a small level loads."""


def status_of(error: ScalerError) -> int:
    """The HTTP status that stands for an error."""
    if isinstance(error, RequestRejected):
        return error.status
    if isinstance(error, QueueFull | RequestTimedOut | LevelUnavailable):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR


def body_of(error: ScalerError) -> dict[str, Any]:
    """The error as OpenAI's error object."""
    if isinstance(error, RequestRejected) and error.body is not None:
        return dict(error.body)
    kind = "invalid_request_error" if isinstance(error, RequestRejected) else "server_error"
    return error_body(str(error), kind, type(error).__name__)


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
