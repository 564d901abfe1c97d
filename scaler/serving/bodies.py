"""A request's body as a JSON object, whatever dialect it is in."""

from __future__ import annotations

import json
from typing import Any

from scaler.errors import RequestRejected


def json_object(raw: bytes) -> dict[str, Any]:
    """The object that a body is; raises RequestRejected."""
    try:
        body = json.loads(raw, parse_constant=_no_number)
    except ValueError as error:
        raise RequestRejected(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise RequestRejected("the body is not JSON that can be read: it is nested too deeply") from error
    if not isinstance(body, dict):
        raise RequestRejected("the body must be a JSON object")
    return body


def _no_number(text: str) -> None:
    # Python's reader lets these through, and no runtime does.
    raise ValueError(f"{text} is no number")
