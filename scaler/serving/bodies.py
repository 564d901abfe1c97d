"""A request's body as a JSON object, whatever dialect it is in."""

from __future__ import annotations

from typing import Any

import orjson

from scaler.errors import RequestRejected


def json_object(raw: bytes) -> dict[str, Any]:
    """The object that a body is; raises RequestRejected."""
    try:
        # It takes no NaN, no half of a surrogate pair and no nesting without end, which nothing behind it could take.
        body = orjson.loads(raw)
        # What is nested too deeply to be written again could not be passed on.
        orjson.dumps(body)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise RequestRejected(f"the body is not JSON, or not such as can be passed on: {error}") from error
    if not isinstance(body, dict):
        raise RequestRejected("the body must be a JSON object")
    return body
