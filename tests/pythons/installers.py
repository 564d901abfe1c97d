"""pipx and uv: installed, used, upgraded to a newer version, removed, and what is left."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from tests.pythons.environment import DISTRIBUTION, Environment, Failed, said

SCALER = "scaler.exe" if os.name == "nt" else "scaler"
INSTALLERS = {
    "pipx": (("install", f"{DISTRIBUTION}[server]"), ("upgrade", DISTRIBUTION), ("uninstall", DISTRIBUTION)),
    "uv": (
        ("tool", "install", f"{DISTRIBUTION}[server]"),
        ("tool", "upgrade", DISTRIBUTION),
        ("tool", "uninstall", DISTRIBUTION),
    ),
}
"""How each installs, upgrades and removes; the same words in docs/install.md."""


def walk_installer(name: str, tools: Environment, wheel: Path, folder: Path) -> str:
    """Have ``name``, which is in ``tools``, go the whole way; returns the versions it had. Raises Failed.

    A folder stands in for an index that has scaler, first one version of it and then a newer one.
    """
    home, index = folder / "home", folder / "index"
    index.mkdir(parents=True)
    home.mkdir()
    shutil.copy(wheel, index)
    places = {
        **{
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PIPX_", "UV_TOOL", "XDG_", "PYTHON"))
        },
        "HOME": str(home),
        "USERPROFILE": str(home),
        "PATH": os.pathsep.join([str(tools.programs), os.defpath]),
        "PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {index}".strip(),
        "UV_FIND_LINKS": str(index),
        "UV_CACHE_DIR": str(folder / "cache"),
        "PIP_CACHE_DIR": str(folder / "cache-of-pip"),
    }
    program, (install, upgrade, uninstall) = str(tools.programs / name), INSTALLERS[name]
    scaler = str(home / ".local" / "bin" / SCALER)
    said(program, *install, env=places)
    first = said(scaler, "--version", env=places).split()[-1]
    said(scaler, "tier", env=places)
    wheel_of(wheel, f"{first}.post1", index)
    said(program, *upgrade, env=places)
    second = said(scaler, "--version", env=places).split()[-1]
    if second != f"{first}.post1":
        raise Failed(f"{' '.join(upgrade)}: it is {second} still")
    # What the extra brought is to stay over an upgrade.
    if "gguf is not installed" not in (told := said(scaler, "run", "--port", "0", env=places, code=3)):
        raise Failed(f"{' '.join(upgrade)}: {told}")
    said(program, *uninstall, env=places)
    left = [str(path) for path in home.rglob("*") if "scaler" in path.name and not path.name.endswith(".lock")]
    if left:
        raise Failed(f"{' '.join(uninstall)} leaves {', '.join(left)}")
    return f"{first}, then {second}, then removed"


def wheel_of(wheel: Path, version: str, folder: Path) -> None:
    """The same wheel with another version, as the next release would be."""
    old = wheel.name.split("-")[1]
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(folder / wheel.name.replace(old, version, 1), "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("dist-info/METADATA"):
                data = data.replace(f"\nVersion: {old}\n".encode(), f"\nVersion: {version}\n".encode(), 1)
            elif entry.filename == "scaler/__init__.py":
                data = data.replace(f'"{old}"'.encode(), f'"{version}"'.encode(), 1)
            elif entry.filename.endswith("dist-info/RECORD"):
                # Without the sums, which are no longer true; they may be left out.
                names = [line.split(",")[0] for line in data.decode().splitlines()]
                data = "".join(f"{name.replace(old, version)},,\n" for name in names).encode()
            target.writestr(entry.filename.replace(f"-{old}.dist-info", f"-{version}.dist-info"), data)
