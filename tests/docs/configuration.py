"""docs/configuration.md, made of the schema that the configuration is read with.

``python -m tests.docs.configuration`` (`make configuration`) writes it anew. What a key means is its docstring, what it
takes is what the message about any other value says, and what a tier sets is what stands in its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from scaler import paths
from scaler.level_settings import LevelSettings
from scaler.schema_words import expected, kinds, resolved
from scaler.settings import Settings, settings_schema
from scaler.tiers import HardwareTierDetector, tier_schema

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
STATE = "~/.local/state/scaler"
"""What stands in the page for the folder of what scaler keeps, wherever this machine has it."""
MORE = {
    "ladder": ("Ladders of what is there", "init.md"),
    "embeddings": ("Embeddings", "serving.md#embeddings"),
    "server": ("Who may come in", "serving.md#who-may-come-in"),
    "conversations": ("Conversations", "conversations.md"),
    "recording": ("Record, replay, tune", "replay.md"),
    "remembered": ("What a restart remembers", "service.md#what-a-restart-remembers"),
    "processes": ("How models stay behind your programs", "processes.md"),
    "notices": ("Notices", "notices.md"),
    "policy": ("How it decides", "how-it-decides.md"),
    "ollama": ("A ladder of Ollama's models", "ollama.md"),
    "lmstudio": ("A ladder of LM Studio's models", "lmstudio.md"),
    "llama-server": ("A ladder of llama.cpp's own server", "llama-server.md"),
    "llama-router": ("A router that others run", "llama-server.md#a-router-that-others-run"),
    "vllm": ("A ladder of vLLM servers", "vllm.md"),
    "openai": ("A level in another server", "openai.md"),
}
"""The page that has more of a section, or of a runtime, than its keys."""
HEAD = """\
# The configuration

Every key of `scaler.yaml` and of a tier's file: what it takes, what holds when it is left out, what it means. This page
is written by `make configuration` from the schema that the files are read with; `scaler config schema` prints that.

| what | where it is |
| --- | --- |
| yours | `~/.config/scaler/scaler.yaml` |
| on macOS | `~/Library/Application Support/scaler/scaler.yaml` |
| on Windows | `%APPDATA%\\scaler\\scaler.yaml` |
| another in its place | the one that a command is given by `--config`, or else `$SCALER_CONFIG` |
| your tiers | the folder `tiers` beside yours |
| what scaler keeps | `~/.local/state/scaler`; on macOS as above, on Windows `%LOCALAPPDATA%\\scaler` |

`$XDG_CONFIG_HOME` and `$XDG_STATE_HOME` go before these places. Without a file
[the one that ships](../config/scaler.yaml) applies.

Files are YAML 1.2: `off` is a name there and not `false`. An unknown key is a mistake, and so is one that stands there
twice. Paths may begin with `~`; a relative one is relative to the file's folder. `scaler config check` tells what is
wrong with a file, with the line; `scaler config show` what applies and which file says so; `scaler reload` has a
running scaler [read it anew](reload.md).
"""
LEVEL = """\
Whatever loads it, a level has these keys, but that `openai` takes neither `ram_gib` nor `vram_gib`. What each `runtime`
has besides, or otherwise, follows.
"""
POLICY = """\
Also what `policy` of a tier's file takes. Each value comes from the first of these that has it: your `scaler.yaml`,
your file of the tier, the tier that ships, the default. `scaler tier` shows what applies, and which file says so.
Ratios are of a resource's total, 0 to 1; times are seconds. Values that do not go together, such as a `band` as large
as `scale_at`, are refused.
"""
TIERS = """\
What the tiers that ship set; all else is the default there.
"""


def page() -> str:
    """The page as it has to be."""
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    schema = settings_schema()
    made = Settings.model_construct().model_dump(mode="json")
    yield HEAD
    yield "## `scaler.yaml`\n"
    yield from _table(schema, schema, made)
    yield from _ladder(schema)
    for name, node in schema["properties"].items():
        if name != "policy" and (section := _section(schema, node)):
            yield from _described(schema, name, section, made[name] or {})
    yield from _policy(schema)
    yield "\n## A tier's file\n\nSee [mid_range.yaml](../config/tiers/mid_range.yaml).\n"
    schema = tier_schema()
    yield from _table(schema, schema, {})
    yield "\n### `requires`\n\nEach of the alternatives names what a machine must have, all of it.\n"
    yield from _table(schema, schema["$defs"]["Requirement"], {})


def _ladder(schema: Mapping[str, Any]) -> Iterator[str]:
    """The keys of all levels, and those of each runtime that are its own."""
    yield f"\n## `ladder`\n\n{LEVEL}"
    common = TypeAdapter(LevelSettings).json_schema()
    del common["properties"]["runtime"]
    yield from _table(common, common, {})
    of_all = dict(_rows(common, common, {}))
    for runtime, kind in kinds(schema, schema["properties"]["ladder"]["items"])[1].items():
        own = {name: row for name, row in _rows(schema, kind, {}) if name != "runtime" and of_all.get(name) != row}
        meant = " It is meant when `runtime` is left out." if "default" in kind["properties"]["runtime"] else ""
        yield f"\n### `runtime: {runtime}`\n\n{kind['description']}{meant}{_more(runtime)}\n"
        yield from _rendered(own)


def _described(schema: Mapping[str, Any], key: str, node: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """A section and those in it, each with a heading."""
    yield f"\n{'#' * (2 + key.count('.'))} `{key}`\n\n{_prose(node['description'])}{_more(key)}\n"
    # The anchor of `server.tls` is servertls.
    yield from _table(schema, node, made, key.replace(".", ""))
    for name, inner in node["properties"].items():
        if section := _section(schema, inner):
            yield from _described(schema, f"{key}.{name}", section, {})


def _policy(schema: Mapping[str, Any]) -> Iterator[str]:
    node = resolved(schema, schema["properties"]["policy"])
    yield f"\n## `policy`\n\n{_prose(node['description'])}{_more('policy')}\n\n{POLICY}"
    yield from _table(schema, node, {})
    tiers = HardwareTierDetector(paths.shipped_config() / "tiers").tiers  # no tiers of whoever writes the page
    yield f"\n{TIERS}"
    yield f"| key | default | {' | '.join(f'`{tier.name}`' for tier in tiers)} |"
    yield f"| --- | --- |{' --- |' * len(tiers)}"
    for name, inner in node["properties"].items():
        key = f"policy.{name}"
        if any(tier.sources[key] != "default" for tier in tiers):
            said = [_value(getattr(t.policy, name)) if t.sources[key] != "default" else "" for t in tiers]
            yield f"| `{name}` | {_value(inner['default'])} | {' | '.join(said)} |"


def _table(
    schema: Mapping[str, Any], node: Mapping[str, Any], made: Mapping[str, Any], within: str = ""
) -> Iterator[str]:
    return _rendered(dict(_rows(schema, node, made, within)))


def _rendered(rows: Mapping[str, tuple[str, str, str]]) -> Iterator[str]:
    yield "| key | takes | when left out | what it is |"
    yield "| --- | --- | --- | --- |"
    for name, row in rows.items():
        yield f"| `{name}` | {' | '.join(row)} |"


def _rows(
    schema: Mapping[str, Any], node: Mapping[str, Any], made: Mapping[str, Any], within: str = ""
) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Each key with what it takes, its default and its words; ``made`` has defaults that the schema lacks."""
    for name, inner in node["properties"].items():
        inner = resolved(schema, inner)
        is_section = _section(schema, inner) is not None
        takes = _takes(schema, inner)
        if name in node.get("required", ()):
            default = "must be there"
        elif name == "ladder":
            default = "the demo ladder"
        elif is_section and inner.get("default", {}) is not None:
            default = "as there"
        else:
            default = _value(inner["default"] if "default" in inner else made.get(name))
        yield (
            name,
            (f"a mapping: [{name}](#{within}{name})" if is_section else takes, default, _prose(inner["description"])),
        )


def _takes(schema: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """What a message says that it expected, without what is for programs."""
    return re.sub(r"(\d)\.0\b", r"\1", expected(schema, node))


def _section(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The mapping with keys of its own that a key takes, if it does."""
    choices = [resolved(schema, choice) for choice in node.get("anyOf", (node,))]
    return next((choice for choice in choices if "properties" in choice), None)


def _more(name: str) -> str:
    if name not in MORE:
        return ""
    title, link = MORE[name]
    return f" More: [{title}]({link})."


def _prose(docstring: str) -> str:
    words = " ".join(docstring.split()).replace("``", "`")
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", words)


def _value(value: Any) -> str:
    if isinstance(value, str) and (path := Path(value)).is_relative_to(paths.state()):
        value = f"{STATE}/{path.relative_to(paths.state()).as_posix()}"
    plain = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return f"`{plain}`" if plain else "empty"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
