"""A policy out of layers: its shipped defaults, a tier's files, and what a person overrides on one machine.

Owns how a layer is checked, alone and on top of the others; knows nothing of where the layers come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from scaler.documents import Document, parse
from scaler.policy import Policy

POLICY = TypeAdapter(Policy)
DEFAULT = "default"
"""The source of a value that no file sets."""


def check(document: Document) -> None:
    """Check the document's ``policy`` alone: its keys, their types and ranges.

    Figures that do not go together are told here only when all of them stand in this document; a figure of
    another layer may be about to change. Raises ConfigError.
    """
    layer = document.data.get("policy", {})
    try:
        parse(POLICY, layer)
    except ValidationError as error:
        defaults = asdict(Policy())
        told = [
            detail
            for detail in error.errors(include_url=False)
            if detail["type"] != "value_error"
            or all(word in layer for word in str(detail["ctx"]["error"]).split() if word in defaults)
        ]
        if told:
            raise document.error(*document.faults(POLICY, error, ("policy",))) from error


def stack(below: Policy | Mapping[str, Any], document: Document) -> Policy:
    """The policy with the document's ``policy`` on top of what is below. Raises ConfigError."""
    layers = asdict(below) if isinstance(below, Policy) else dict(below)
    return document.validate(POLICY, {**layers, **document.data.get("policy", {})}, at=("policy",))


def sources(document: Document) -> dict[str, str]:
    """Each value that the document's ``policy`` sets, with the document's name."""
    return {f"policy.{key}": document.name for key in document.data.get("policy", {})}
