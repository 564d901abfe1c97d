"""Looks at all places at once, and tells what each is: a model server of one kind, scaler itself, or nothing of use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from scaler.discovery import gguf_files, llama_server, lmstudio, ollama, openai, vllm
from scaler.discovery.asking import Absent, Asking, Elsewhere, Forbidden, Locked, Unanswered
from scaler.discovery.found import Source
from scaler.discovery.gguf_files import Folder
from scaler.discovery.places import Place
from scaler.runtimes.listeners import listener

if TYPE_CHECKING:
    import aiohttp

KINDS = (vllm.look, ollama.look, lmstudio.look, llama_server.look, openai.look)
"""First the one that its list of models gives away, last the one that all of them are as well."""
QUESTIONS = 3
"""As long as so many answers may take by themselves, all of one place's may take together."""
SCALER = "scaler itself"
LEFT_ALONE = "left alone; once it is started anew, it reads its configuration anew"
STRANGER = "answers, but is no model server that scaler knows"


def search(places: Sequence[Place], folders: Sequence[Folder]) -> tuple[Source, ...]:
    """What there is, the places first; those where nothing is are told of only if a person named them."""
    return asyncio.run(_search(places, folders))


async def _search(places: Sequence[Place], folders: Sequence[Folder]) -> tuple[Source, ...]:
    import aiohttp

    # Neither a proxy nor a .netrc that the environment names. What comes packed stays packed, and so bounded.
    async with aiohttp.ClientSession(auto_decompress=False, headers={"Accept-Encoding": "identity"}) as session:
        files, servers = await asyncio.gather(
            asyncio.to_thread(gguf_files.look, folders),
            asyncio.gather(*(_recognised(place, session) for place in places)),
        )
    return (*filter(None, servers), *files)


async def _recognised(place: Place, session: aiohttp.ClientSession) -> Source | None:
    asking = Asking(place, session)
    try:
        async with asyncio.timeout(QUESTIONS * asking.limit_s):
            source = await _told(asking)
    except Absent as error:
        return Source("nothing", place.url, note=str(error)) if place.named else None
    except Locked as error:
        return Source("a server", place.url, note=str(error))
    except (Unanswered, TimeoutError) as error:
        return Source("a server", place.url, note=str(error) or "answers too slowly") if place.named else None
    if source is None:
        return Source("a server", place.url, note=STRANGER) if place.named else None
    return replace(source, pid=await asyncio.to_thread(listener, place.port) if place.near else None)


async def _told(asking: Asking) -> Source | None:
    """What the place says that it is. Raises Unanswered."""
    models = await openai.listed(asking)
    if models and all(model.owned_by == "scaler" for model in models):
        return Source(SCALER, asking.place.url, note=LEFT_ALONE)
    for look in KINDS:
        try:
            source = await look(asking, models)
        except (Forbidden, Elsewhere):
            if models is None:
                raise
            # It has shown its models: this is how it answers at a path that another kind has.
            continue
        if source is not None:
            return source
    return None
