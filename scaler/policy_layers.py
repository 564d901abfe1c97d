"""A policy out of layers: its shipped defaults, a tier's files, and what a person overrides on one machine.

Owns how a layer is checked, alone and on top of the others; knows nothing of where the layers come from.
"""

from __future__ import annotations

from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from scaler.documents import Document, Fault, parse
from scaler.policy import Policy

POLICY = TypeAdapter(Policy)
DEFAULT = "default"
"""The source of a value that no file sets."""
_AT = ("policy",)


def faults(document: Document) -> list[Fault]:
    """What is wrong with the document's ``policy`` by itself: unknown keys, types and ranges.

    Figures that do not go together are told only when all of them stand in this document; a figure of another
    layer may be about to change.
    """
    layer = document.data.get("policy", {})
    try:
        parse(POLICY, layer)
    except ValidationError as error:
        keys = asdict(Policy()).keys()
        for detail in error.errors(include_url=False):
            if detail["type"] == "value_error":
                compared = [word for word in str(detail["ctx"]["error"]).split() if word in keys]
                if any(key not in layer for key in compared):
                    return []
        return document.faults(POLICY, error, _AT)
    return []


def stack(below: Policy, document: Document) -> Policy:
    """The policy with the document's ``policy`` on top of the one below.

    Raises ConfigError when the figures do not go together.
    """
    try:
        return _stacked(below, document)
    except ValidationError as error:
        raise document.error(*misfits(below, document)) from error


def misfits(below: Policy, document: Document) -> list[Fault]:
    """What does not go together in that policy, for a ``policy`` that has no fault by itself."""
    try:
        _stacked(below, document)
    except ValidationError as error:
        return document.faults(POLICY, error, _AT)
    return []


def _stacked(below: Policy, document: Document) -> Policy:
    return parse(POLICY, {**asdict(below), **document.data.get("policy", {})})


def sources(document: Document) -> dict[str, str]:
    """Each value that the document's ``policy`` sets, with the document's name."""
    return {f"policy.{key}": document.name for key in document.data.get("policy", {})}
