"""A proposed ladder as the configuration that a person gets: what it says, why, and how to change it, in comments.

Pure: writes no file, and nothing that differs from one day to the next. No secret can be in it, for none is known here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

import yaml

from scaler.discovery.found import Model
from scaler.levels import GIB, RAM
from scaler.proposal import ON_GPU, Proposal, Rung

WIDTH, COLUMN = 116, 44
"""How wide a comment of its own may be, and where one behind a key stands, if the keys are not longer."""
PLAIN = re.compile(r"[A-Za-z_/~][\w./@+~-]*(:[\w./@+~-]+)*", re.ASCII)
"""A text that YAML of any version takes for itself, without quotes; words that may mean something else are not."""
WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "~"}

WHOSE = {
    "ollama": "Ollama's models, which it loads and unloads as scaler tells it: docs/ollama.md",
    "lmstudio": "LM Studio's models, which it loads and unloads as scaler tells it: docs/lmstudio.md",
    "llama-router": "Models of your llama-server, which loads and unloads as scaler tells it: docs/llama-server.md",
    "vllm": "vLLM servers, which scaler puts to sleep and wakes up: docs/vllm.md",
    "embedded": "GGUF files, which scaler loads with its own llama.cpp: docs/serving.md",
    "openai": "A server with OpenAI's API, to which scaler sends requests: docs/openai.md",
}
"""Whose models they are, and where more is said."""
CALLED = {
    "ollama": "as `ollama list` has it",
    "lmstudio": "as `lms ls` has it",
    "llama-router": "as the router lists it",
    "vllm": "as the server lists it",
    "embedded": "~ is your home, a relative path starts at this file's folder",
    "openai": "as the server lists it",
}
"""What stands behind ``model``."""
ESTIMATED = {
    "ollama": "estimated anew at every start, from what Ollama then says of the model",
    "llama-router": "estimated anew at every start, from the file and the window that the router loads it with",
    "embedded": "estimated anew at every start from the file",
}
"""Where the figure comes from that is left out."""
RECKONED = "from its size, as for most models since 2024; `lms load --estimate-only` says better"
"""Where LM Studio's figure comes from: its adapter can only bound it, at several times of that for most models."""
DEFAULT_URLS = {
    "ollama": "http://127.0.0.1:11434",
    "lmstudio": "http://127.0.0.1:1234",
    "llama-router": "http://127.0.0.1:8080",
    "vllm": "http://127.0.0.1:8000",
}
"""Where a level's server is when it does not say."""


def configuration(proposal: Proposal, tier: str, reasons: Sequence[str], version: str, schema: str) -> str:
    """The YAML of a proposal with at least one level. ``reasons`` say why the machine is in ``tier``.

    ``schema`` is the address of the JSON schema, for editors; without a space, at which they would take it to end.
    """
    lines = [f"# yaml-language-server: $schema={schema}", *_head(proposal, tier, reasons, version), *_ladder(proposal)]
    return "\n".join(lines) + "\n"


def scalar(text: str) -> str:
    """A text as YAML; in quotes unless it can be taken for nothing else."""
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


def _head(proposal: Proposal, tier: str, reasons: Sequence[str], version: str) -> Iterator[str]:
    yield f"# scaler's configuration, as `scaler init` of scaler {version} proposed it. It is yours to change:"
    yield "#   scaler config check     tells what is wrong with it, with the line"
    yield "#   scaler config show      tells what applies, also what is not said here"
    yield "#   scaler doctor           tells how all of the installation stands"
    yield "# How the ladder was chosen: docs/init.md."
    yield ""
    yield from _comment(
        "The class of machine, which brings the thresholds: auto tells it from the hardware; or a tier's name (`scaler "
        f"tier --list`). Here it is {tier}: {'; '.join(reasons)}."
    )
    yield "tier: auto"
    yield ""
    yield from _comment("Your levels, the smallest first. scaler serves the largest that the machine can sustain.")
    for resource, room in proposal.rooms.items():
        if any(rung.footprint.get(resource) for rung in proposal.levels):
            what = "RAM" if resource == RAM else f"the memory of {resource}"
            yield from _comment(
                f"Of {_gib(room.total)} of {what}, usage must stay below {_gib(room.limit)} for a climb; "
                f"{_gib(room.kept)} of that are reckoned for other programs, so a level may take {_gib(room.free)}."
            )
    if proposal.tight:
        yield from _comment("The level takes more than that: it is loaded when other programs take less than now.")
    yield from _comment(f"{WHOSE[proposal.runtime or '']}.")


def _ladder(proposal: Proposal) -> Iterator[str]:
    yield "ladder:"
    for position, rung in enumerate(proposal.levels):
        yield from _level(rung, first=position == 0)


def _level(rung: Rung, *, first: bool) -> Iterator[str]:
    """A level's keys; what a key means is said once."""
    keys = list(_keys(rung))
    width = max(len(text) for text, _, _ in keys)
    for position, (text, always, once) in enumerate(keys):
        comment = "; ".join(filter(None, (always, once if first else "")))
        line = f"{text:<{min(width, COLUMN)}}  # {comment}" if comment else text
        yield f"  {'  ' if position else '- '}{line}"
    footprint = rung.footprint
    if not footprint:
        yield from _comment("It takes nothing that scaler could give back, and so always fits.", 4)
    elif rung.model.runtime in ESTIMATED and list(footprint) == [RAM]:
        more = f", {ESTIMATED[rung.model.runtime]}" if first else ""
        yield from _comment(f"Takes about {_gib(footprint[RAM])} of RAM{more}.", 4)


def _keys(rung: Rung) -> Iterator[tuple[str, str, str]]:
    """Each key with its value, what is said of it at every level, and what is said once."""
    model = rung.model
    yield f"name: {scalar(rung.name)}", "", "what programs and notices call it; any name will do"
    if model.runtime != "embedded":
        yield f"runtime: {model.runtime}", "", ""
    if model.url is not None and model.url != DEFAULT_URLS.get(model.runtime):
        yield f"url: {scalar(model.url)}", "", ""
    yield f"model: {scalar(model.name)}", model.about, CALLED[model.runtime]
    if model.key_env is not None:
        yield f"key_env: {scalar(model.key_env)}", "", "the environment variable that holds the API key"
    yield f"quality: {rung.quality}", "", "a guess from the order: say how good you find its answers, 0 to 1"
    longer = "; a longer one takes more memory" if rung.footprint else ""
    yield f"context_tokens: {model.context_tokens}", "", f"the window of one request{longer}"
    if model.runtime not in ESTIMATED and list(rung.footprint) == [RAM]:
        yield f"ram_gib: {rung.footprint[RAM] / GIB:.2f}", "", RECKONED
    gpus = sorted(int(resource.removeprefix("gpu")) for resource in rung.footprint if resource != RAM)
    if gpus:
        yield f"vram_gib: {rung.footprint[f'gpu{gpus[0]}'] / GIB:.2f}", "", _on_gpu(model)
    if gpus and gpus != [0]:
        yield f"gpu: {gpus[0] if len(gpus) == 1 else gpus}", "", ""
    if model.runtime == "vllm":
        yield "sleep: 1", "", "keeps the weights in RAM and wakes up in a moment; 2 reads them anew"


def _on_gpu(model: Model) -> str:
    if model.runtime in ON_GPU:
        return "about, if all of it is on the GPU; corrected once it was seen"
    return "what it holds now, of each GPU"


def _comment(text: str, indent: int = 0) -> Iterator[str]:
    start = f"{' ' * indent}# "
    # What stands in backticks is not to be torn apart.
    whole = re.sub("`[^`]*`", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    for line in textwrap.wrap(
        whole, WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    ):
        yield line.replace("\N{NO-BREAK SPACE}", " ")


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
