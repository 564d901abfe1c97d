"""What was found and what is proposed, as people read it and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from scaler.discovery.found import LeftOut, Source, printable
from scaler.discovery.gguf_files import FILES, NO_FILE
from scaler.levels import RAM
from scaler.proposal import Proposal
from scaler.tiers import Detection
from scaler.words import counted, gib

WIDTH = 100
SHOWN = 12
"""So many models that are left out are told of by name."""
WHOSE = {
    "ollama": "Ollama's models",
    "lmstudio": "LM Studio's models",
    "llama-router": "your llama-server's models",
    "vllm": "vLLM's models",
    "embedded": "GGUF files, with scaler's own llama.cpp",
    "openai": "a server that scaler only sends requests to",
}


def summary(sources: Sequence[Source], proposal: Proposal, detection: Detection) -> Iterator[str]:
    """The lines that a person sees before anything is written."""
    yield f"This machine: {detection.tier.name}"
    yield from (f"  {reason}" for reason in detection.reasons)
    for resource, room in proposal.rooms.items():
        what = "RAM" if resource == RAM else f"the memory of {resource}"
        yield f"  a level may take {gib(room.free)} of {what}: usage must stay below {gib(room.limit)} for a climb,"
        yield f"  and {gib(room.kept)} are reckoned for other programs, which use {gib(room.others)} now"
    yield ""
    yield "Found" if sources else "Found: no model server, and no GGUF file in the usual folders"
    for source in sources:
        joint = "in" if source.what in (FILES, NO_FILE) else "at"
        yield f"  {source.what} {joint} {source.where}{_counted(source)}"
        yield from _wrapped(source.note, 4)
    yield ""
    yield from _proposed(proposal)
    yield from _left_out([*(one for source in sources for one in source.left_out), *proposal.left_out])


def report(sources: Sequence[Source], proposal: Proposal, detection: Detection) -> dict[str, Any]:
    """The same for programs; sizes in bytes."""
    return {
        "tier": detection.tier.name,
        "reasons": detection.reasons,
        "found": [asdict(source) for source in sources],
        "rooms": {resource: {**asdict(room), "free": room.free} for resource, room in proposal.rooms.items()},
        "proposal": {key: value for key, value in asdict(proposal).items() if key != "rooms"},
    }


def _counted(source: Source) -> str:
    usable, others = len(source.models), len(source.left_out)
    if not usable and not others:
        return ""
    models = counted(usable, "model")
    return f": {models}" + (f", and {others} of no use here" if others else "")


def _proposed(proposal: Proposal) -> Iterator[str]:
    if not proposal.levels:
        yield f"Nothing to propose: {proposal.why}."
    else:
        yield f"Proposed: {WHOSE[proposal.runtime or '']} ({proposal.why})"
        rows = [
            (
                rung.name,
                printable(rung.model.name),
                rung.model.about,
                " and ".join(
                    f"{gib(size)}{'' if resource == RAM else f' of {resource}'}"
                    for resource, size in rung.footprint.items()
                    if resource != RAM or len(rung.footprint) == 1
                )
                or "nothing here",
            )
            for rung in proposal.levels
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False) if width)
            yield f"  {'  '.join(cells)}  takes {row[3]}"
        if proposal.tight:
            yield "  More than there is room for now: it is loaded when other programs take less."
    possible = [f"--runtime {name} ({counted(count, 'level')})" for name, count in proposal.others.items() if count]
    if possible:
        yield f"  Other choices: {', '.join(possible)}"
    yield ""


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    if not left_out:
        return
    yield "Left out"
    for one in left_out[:SHOWN]:
        yield from _wrapped(f"{printable(one.name)}: {one.why}", 2)
    if len(left_out) > SHOWN:
        yield f"  and {len(left_out) - SHOWN} more; --json tells them all"
    yield ""


def _wrapped(text: str, indent: int) -> Iterator[str]:
    start = " " * indent
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=f"{start}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
