"""What a level has answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def said(chunks: Iterable[dict[str, Any]]) -> str:
    """The text of an answer's chunks, put together."""
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
