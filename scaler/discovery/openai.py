"""Any server with OpenAI's API: what it lists, and no more is known of it. Requests are sent there, nothing is loaded.

Source: https://platform.openai.com/docs/api-reference/models/list
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, TypeAdapter

from scaler.discovery.asking import Asking, each
from scaler.discovery.found import CONTEXT_TOKENS, LEAST_CONTEXT_TOKENS, LeftOut, Model, Source, fault_of, printable
from scaler.discovery.kinds import answers_nobody
from scaler.discovery.places import Place

RUNTIME = "openai"
PATH = "/v1/models"


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> Any:
    return value if isinstance(value, int) and value > 0 else None


Text = Annotated[str, BeforeValidator(_text)]
"""What is a text, or as good as none."""
Count = Annotated[int | None, BeforeValidator(_count)]
"""What is a number above 0, or unknown."""


class Listed(BaseModel):
    """A model in the list; what vLLM and others add to OpenAI's form may be missing."""

    id: str
    owned_by: Text = ""
    max_model_len: Count = None


class _Listing(BaseModel):
    data: list[Any]


LISTING, _LISTED = TypeAdapter(_Listing), TypeAdapter(Listed)


async def listed(asking: Asking) -> list[Listed] | None:
    """The models that a place lists; None where it has no such list."""
    listing = await asking.get(PATH, LISTING)
    return None if listing is None else each(_LISTED, listing.data)


async def look(asking: Asking, models: Sequence[Listed] | None) -> Source | None:
    """The place as any server with OpenAI's API; None where it lists no models."""
    if models is None:
        return None
    note = "scaler can send requests there, and neither load nor unload anything"
    return routed(asking.place, f"a server with OpenAI's API{_owner(models)}", models, note)


def routed(place: Place, what: str, models: Sequence[Listed], note: str) -> Source:
    """A place whose models scaler can only send requests to."""
    usable, left_out = [], []
    for model in models:
        context = CONTEXT_TOKENS if model.max_model_len is None else model.max_model_len
        why = fault_of(model.id) or answers_nobody(model.id)
        if why is None and context < LEAST_CONTEXT_TOKENS:
            why = f"its context window has {context} tokens only"
        if why is not None:
            left_out.append(LeftOut(printable(model.id), why))
            continue
        usable.append(Model(RUNTIME, model.id, url=place.base, context_tokens=context, key_env=place.key_env))
    return Source(what, place.url, tuple(usable), tuple(left_out), note)


def _owner(models: Sequence[Listed]) -> str:
    owners = {model.owned_by for model in models if model.owned_by}
    return f" ({printable(owners.pop(), 30)})" if len(owners) == 1 else ""
