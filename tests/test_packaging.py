"""What a person gets who installs the wheel, away from any checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel; its dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.check_output(ask, text=True).strip())
    # After the environment's own packages, and without the .pth of an editable install, which only work in place.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def say(python: Path, code: str, folder: Path) -> str:
    """What ``code`` prints in the fresh environment, started in an unrelated folder with nothing of the person's."""
    return subprocess.run(
        [str(python), "-I", "-c", code],
        cwd=folder,
        env={"HOME": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_the_wheel_brings_the_shipped_tiers_and_configuration(installed: Path, tmp_path: Path) -> None:
    """Without them nothing could be decided."""
    code = (
        "import scaler\n"
        "from scaler.settings import load_settings\n"
        "from scaler.tiers import HardwareTierDetector\n"
        "settings, detector = load_settings(), HardwareTierDetector()\n"
        "print(scaler.__file__)\n"
        "print(settings.file)\n"
        "print(*(level.name for level in settings.ladder))\n"
        "print(*(tier.name for tier in detector.tiers))\n"
        "print(*(tier.sources['policy.band'] for tier in detector.tiers))\n"
        "print(settings.policy_on(settings.detection(detector).tier).scale_at)\n"
    )
    package, file, levels, tiers, sources, scale_at = say(installed, code, tmp_path).splitlines()
    home = Path(package).parent
    assert home.is_relative_to(installed.parent.parent)
    assert Path(file) == home / "config" / "scaler.yaml"
    assert levels == "small medium large"
    assert tiers == "low_end mid_range high_end"
    assert all(Path(source).is_relative_to(home / "config" / "tiers") for source in sources.split())
    assert scale_at == "0.8"


def test_the_installed_command_leads_to_the_command_line(installed: Path, tmp_path: Path) -> None:
    """`scaler` is what a person types."""
    assert (installed.parent / ("scaler.exe" if sys.platform == "win32" else "scaler")).is_file()
    code = (
        "from importlib.metadata import distribution\n"
        "(point,) = distribution('capability-scaler').entry_points.select(group='console_scripts')\n"
        "print(point.name, point.load().__module__)\n"
    )
    assert say(installed, code, tmp_path).split() == ["scaler", "scaler.cli"]


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    """No tests, and the mark that it is typed."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"scaler", "capability_scaler"}
    assert "scaler/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]
    tiers = {name for name in names if name.startswith("scaler/config/")}
    assert {f"scaler/config/tiers/{name}.yaml" for name in ("low_end", "mid_range", "high_end")} < tiers


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built: Path) -> None:
    """Distributions build from it."""
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "config/scaler.yaml", "config/tiers/mid_range.yaml"} <= names


def test_every_dependency_of_the_core_is_declared() -> None:
    """What is imported without an extra must come with a plain install."""
    declared = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert declared == {"annotated-types", "nvidia-ml-py", "psutil", "pydantic", "pyyaml", "transitions"}
    extras = {
        name: {Requirement(line).name for line in lines} for name, lines in PROJECT["optional-dependencies"].items()
    }
    assert extras["llama"] == {"aiohttp", "gguf", "orjson", "xllamacpp"}
    assert extras["server"] == {"aiohttp", "orjson", "uvloop"}
    assert extras["ollama"] == {"aiohttp", "ollama", "orjson"}
    assert extras["demo"] == {"openai", "rich"}
    assert extras["desktop"] == {"desktop-notifier"}
