"""What goes wrong, in the form that OpenAI's clients understand."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from scaler.errors import RequestRejected, ScalerError


def body_of(error: ScalerError) -> dict[str, Any]:
    """The error as OpenAI's error object."""
    if not isinstance(error, RequestRejected):
        return error_body(str(error), "server_error", type(error).__name__)
    if error.body is not None:
        return dict(error.body)
    return error_body(str(error), code="model_not_found" if error.status == HTTPStatus.NOT_FOUND else None)


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
