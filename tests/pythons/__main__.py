"""``make pythons``: installs the wheel on every Python that is here, plain and with each extra, and uses it.

Prints the table of docs/install.md. Exit code 1 when something does not work. Takes some minutes a Python.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from email.parser import Parser
from functools import partial
from pathlib import Path

from tests.pythons.environment import Environment, Failed, said
from tests.pythons.installers import INSTALLERS, walk_installer
from tests.pythons.walk import walk

PROGRAM = Path(__file__).parent.parent / "typed_program.py"
DEV = "dev"
OLDEST = 11
"""As in requires-python: 3.11."""


def main() -> int:
    """Go through all of it; 0 where everything works."""
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("--wheel", type=Path, help="this one instead of one that is built of the checkout")
    parser.add_argument("--python", action="append", help="this Python only; may be given again")
    parser.add_argument("--only", help="these extras only, such as llama,server; '' for none")
    parser.add_argument("--no-tools", action="store_true", help="leave pipx, uv and the checkers out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pythons") as folder:
        wheel = args.wheel.absolute() if args.wheel else built(Path(folder) / "dist")
        pythons = {version(python): python for python in args.python or here()}
        extras = brought(wheel)
        rows = [args.only] if args.only is not None else ["", *extras, "llama,server", ",".join(extras)]
        table = {
            row: {name: tried(python, wheel, row, extras, Path(folder)) for name, python in pythons.items()}
            for row in rows
        }
        lines = [] if args.no_tools else tools(wheel, next(iter(pythons.values())), Path(folder))
    for line in [*markdown(table, list(pythons), ",".join(extras)), "", *lines]:
        print(line)
    return int("NO" in " ".join([*(cell for row in table.values() for cell in row.values()), *lines]))


def here() -> list[str]:
    """Every Python on the PATH and in pyenv that scaler may run on, oldest first."""
    names = [f"python3.{minor}" for minor in range(OLDEST, OLDEST + 10)]
    found = [path for name in names if (path := shutil.which(name)) and works(path)]
    found += glob.glob(str(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions/3.*/bin/python")))
    of_minor = {int(version(python).split(".")[1]): python for python in found if works(python)}
    return [python for minor, python in sorted(of_minor.items()) if minor >= OLDEST]


def works(python: str) -> bool:
    """Whether it is a Python that starts; a shim of pyenv's may lead nowhere."""
    try:
        return bool(version(python))
    except Failed:
        return False


def version(python: str) -> str:
    """Such as 3.12."""
    return said(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()


def built(folder: Path) -> Path:
    """The wheel of this checkout."""
    root = Path(__file__).parent.parent.parent
    said(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(root))
    return next(folder.glob("*.whl"))


def brought(wheel: Path) -> dict[str, list[str]]:
    """The requirements of each extra of a wheel, but for the developers' own."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    asked = [re.fullmatch(r"(.*?); .*extra == '(.*)'", line) for line in metadata.get_all("Requires-Dist", [])]
    return {
        extra: [one[1] for one in asked if one and one[2] == extra]
        for extra in metadata.get_all("Provides-Extra", [])
        if extra != DEV
    }


def tried(python: str, wheel: Path, row: str, extras: dict[str, list[str]], folder: Path) -> str:
    """What the table says of one environment."""
    print(f"{version(python)} {row or 'plain'} ...", file=sys.stderr, flush=True)
    chosen = [one for one in row.split(",") if one]
    place = folder / "tried"
    try:
        environment = Environment(python, place)
        environment.pip("install", "--prefer-binary", f"{wheel}[{row}]" if row else str(wheel))
        mib = environment.mib
        walk(environment, chosen, [line for one in chosen for line in extras[one]])
    except Failed as failed:
        print(f"  {failed}", file=sys.stderr, flush=True)
        return "NO"
    else:
        return f"yes, {mib} MiB"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def tools(wheel: Path, python: str, folder: Path) -> list[str]:
    """What installers, checkers of packages and checkers of types say, a line each."""
    place = Environment(python, folder / "tools")
    place.pip("install", "pipx", "uv", "twine", "validate-pyproject[all]", "mypy", "pyright[nodejs]", str(wheel))
    mypy = ("--strict", "--python-executable", str(place.programs / "python"), "--cache-dir", str(folder / "mypy"))
    # Away from the checkout, or a checker would look at that.
    program = shutil.copy(PROGRAM, folder / "program.py")
    config = folder / "pyrightconfig.json"
    config.write_text('{"typeCheckingMode": "strict", "include": ["program.py"]}')
    pyproject = PROGRAM.parent.parent / "pyproject.toml"
    pyright = ("--pythonpath", str(place.programs / "python"))
    steps: dict[str, Callable[[], str]] = {
        **{name: partial(walk_installer, name, place, wheel, folder / name) for name in INSTALLERS},
        "twine": partial(place.run, "twine", "check", "--strict", str(wheel)),
        "validate-pyproject": partial(place.run, "validate-pyproject", str(pyproject)),
        "mypy": partial(said, str(place.programs / "mypy"), *mypy, str(program), folder=folder),
        "pyright": partial(said, str(place.programs / "pyright"), *pyright, folder=folder),
    }
    lines = []
    for name, step in steps.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            lines.append(f"{name}: {' '.join(step().split()[-8:])}")
        except Failed as failed:
            lines.append(f"{name}: NO: {failed}")
    return lines


def markdown(table: dict[str, dict[str, str]], pythons: list[str], everything: str) -> list[str]:
    """The table as docs/install.md has it."""
    names = {"": "nothing more", everything: "all of them"}
    return [
        f"| what is installed | {' | '.join(pythons)} |",
        f"| --- |{' --- |' * len(pythons)}",
        *(
            f"| {names.get(row, f'`[{row}]`')} | {' | '.join(cells[name] for name in pythons)} |"
            for row, cells in table.items()
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
