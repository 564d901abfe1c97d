"""What a plain install leaves out: which extra brings it, and the command that installs it here.

Owns the sentence that a person reads when a library is missing; knows no library.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from scaler.errors import MissingExtra

DISTRIBUTION = "capability-scaler"
"""What installers know scaler by."""
PIPX, UV = "pipx_metadata.json", "uv-receipt.toml"
"""The file by which an environment tells that it belongs to an installer."""


def require(extra: str, *modules: str) -> None:
    """Raises MissingExtra when one of ``modules``, which ``extra`` brings, is not installed; imports none of them."""
    for module in modules:
        if find_spec(module) is None:
            raise missing(module, extra)


@contextmanager
def importing(*extras: str) -> Iterator[None]:
    """For a block that imports what ``extras`` bring: raises MissingExtra when one of it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        # A module of scaler's own that is not there is a broken install, which no extra mends.
        if error.name is None or error.name.partition(".")[0] == __package__:
            raise
        raise missing(error.name, *extras) from error


def missing(module: str, *extras: str) -> MissingExtra:
    """What to raise for a module that is not installed: it ends with the command that installs it here."""
    return MissingExtra(f"{module} is not installed; install it with: {_command(extras)}")


def _command(extras: Sequence[str]) -> str:
    """What adds ``extras`` to this very scaler, from where it came from, by whoever installed it."""
    if (receipt := Path(sys.prefix, UV)).exists():
        # What is not named anew, uv takes away.
        return f"uv tool install {_requirement([*_receipt(receipt), *extras])}"
    how = f"pipx runpip {DISTRIBUTION} install" if Path(sys.prefix, PIPX).exists() else _pip()
    return f"{how} {_requirement(extras)}"


def _pip() -> str:
    """The pip of this environment: the one that is found by that name may be another's."""
    if find_spec("pip") is None:
        return f"uv pip install --python {_quoted(sys.executable)}"
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sysconfig.get_path("scripts")):
        return "pip install"
    return f"{_quoted(sys.executable)} -m pip install"


def _receipt(receipt: Path) -> list[str]:
    """The extras that uv has installed scaler with."""
    tool = tomllib.loads(receipt.read_text("utf-8")).get("tool", {})
    return [
        extra for one in tool.get("requirements", ()) if one["name"] == DISTRIBUTION for extra in one.get("extras", ())
    ]


def _requirement(extras: Sequence[str]) -> str:
    """scaler with ``extras``, from where it was installed from: an index knows nothing of a folder or a wheel.

    Source: packaging.python.org, recording the direct URL origin of installed distributions.
    """
    from importlib import metadata

    named = f"[{','.join(dict.fromkeys(extras))}]"
    try:
        direct = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        # It runs from its folder, and was never installed.
        return f"--editable {_quoted(f'{Path(__file__).parent.parent}{named}')}"
    if direct is None:
        return _quoted(f"{DISTRIBUTION}{named}")
    origin = json.loads(direct)
    url = urlsplit(origin["url"])
    if url.scheme == "file":
        path = url2pathname(url.path)
        if not Path(path).exists():
            return f"{_quoted(f'.{named}')} in a folder with scaler's sources ({path} is gone)"
        return f"{'--editable ' if origin.get('dir_info', {}).get('editable') else ''}{_quoted(f'{path}{named}')}"
    vcs = origin.get("vcs_info")
    where = origin["url"] if vcs is None else f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"
    return _quoted(f"{DISTRIBUTION}{named} @ {where}")


def _quoted(word: str) -> str:
    """As a shell has it."""
    return f'"{word}"' if sys.platform == "win32" else shlex.quote(word)
