"""The published schemas: as fresh as the code, found from every shipped file, right about every YAML that is shown."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from scaler import paths
from scaler.documents import parse_document
from scaler.settings import settings_schema
from scaler.tiers import tier_schema
from tests.cli.conftest import Run

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "config"
SHIPPED = [CONFIG / "scaler.yaml", *sorted((CONFIG / "tiers").glob("*.yaml"))]
OTHERS = {"scrape_configs", "groups"}
"""Keys that tell a file of another program's: Prometheus'."""
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)")
"""How an editor's language server is told the schema. Source: https://github.com/redhat-developer/yaml-language-server."""
WRONG = (
    "serverr: {port: 1}",
    "server: {prot: 1}",
    "server: {port: 99999}",
    "queue: {limit: 0}",
    "queue: {limit: many}",
    "notices: {desktop: 1}",
    "policy: {scale_at: 1.5}",
    "policy: {scaleat: 0.5}",
    "ladder: []",
    "ladder: [{name: a}]",
    "ladder: [{name: a, model: a.gguf, qualty: 1}]",
    "ladder: [{name: a, model: a.gguf, quality: 2}]",
    "ladder: [{name: a, model: a.gguf, kv_cache: q5}]",
    "ladder: [{name: a, model: a, runtime: olama}]",
    "ladder: [{name: a, model: a, runtime: ollama, gpu_layers: 3}]",
)
"""What an editor is to mark: unknown keys, kinds, ranges, choices, what is missing."""


def document(text: str) -> Any:
    """YAML as plain data."""
    return parse_document(text.encode(), "text").data


def schema(text: str) -> dict[str, Any]:
    """The schema of a file of the documentation: a tier's file has a name."""
    file = "tier" if "name" in document(text) else "scaler"
    found: dict[str, Any] = json.loads((CONFIG / f"{file}.schema.json").read_text("utf-8"))
    return found


def documented() -> Iterator[Any]:
    """Every YAML in the documentation."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)):
            if not OTHERS & document(text).keys():
                yield pytest.param(text, id=f"{page.name}-{number}")


@pytest.mark.parametrize(("name", "made"), [("scaler", settings_schema), ("tier", tier_schema)])
def test_a_published_schema_is_what_the_code_checks(name: str, made: Any, scaler: Run) -> None:
    """`make schema` writes it anew."""
    published = (CONFIG / f"{name}.schema.json").read_text("utf-8")
    assert json.loads(published) == made(), "run `make schema`"
    assert published == scaler("config", "schema", "--of", name).stdout
    jsonschema.Draft202012Validator.check_schema(made())


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_a_shipped_file_names_a_schema_that_accepts_it(file: Path) -> None:
    """By a path from where it lies, so in a checkout as in an installed package, and without the network."""
    text = file.read_text("utf-8")
    named = MODELINE.match(text)
    assert named is not None
    assert not urlsplit(named[1]).scheme
    found = json.loads((file.parent / named[1]).read_text("utf-8"))
    jsonschema.Draft202012Validator(found).validate(document(text))
    commented = re.sub(r"(?m)^# ?(?=[a-z]+: [{\[])", "", text)
    jsonschema.Draft202012Validator(found).validate(document(commented))


@pytest.mark.parametrize("text", [*documented()])
def test_a_yaml_of_the_documentation_is_accepted(text: str) -> None:
    """What is copied from there is not marked."""
    jsonschema.Draft202012Validator(schema(text)).validate(document(text))


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_marked(text: str) -> None:
    """Before scaler is started."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema(text)).validate(document(text))


def test_what_init_writes_names_the_schema_of_what_is_installed(
    scaler: Run, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """By a file's address, for it lies in the person's own folder; one with a space in it would end there."""
    folder = tmp_path / "my models"
    folder.mkdir()
    for path in demo_models.values():
        (folder / path.name).symlink_to(path)
    done = scaler("init", "--only", "--models", str(folder), "--stdout")
    assert done.returncode == 0
    named = MODELINE.match(done.stdout)
    assert named is not None
    assert named[1] == (paths.shipped_config() / "scaler.schema.json").as_uri()
    with urllib.request.urlopen(named[1]) as file:
        jsonschema.Draft202012Validator(json.load(file)).validate(document(done.stdout))
