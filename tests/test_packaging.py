"""What a person gets who installs the wheel, away from any checkout, and what is left when they remove it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from trove_classifiers import classifiers

from scaler import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EPOCH = 1_700_000_000
"""The time that everything built here is said to be of, in seconds since 1970."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)})
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution's folder, in another place, of another time and for nobody else to read."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (EPOCH // 2, EPOCH // 2))
    return folder / source.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel."""
    python = environment(tmp_path_factory.mktemp("fresh"))
    install(built, python)
    return python


def environment(folder: Path) -> Path:
    """The Python of a new environment, which borrows what scaler depends on from this one."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.check_output(ask, text=True).strip())
    # After the environment's own packages, and without the .pth of an editable install, which only work in place.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(built: Path, python: Path) -> None:
    """The wheel alone, without the network."""
    (wheel,) = built.glob("*.whl")
    pip(python, "install", "--no-deps", "--no-index", str(wheel))


def pip(python: Path, *arguments: str) -> None:
    """Have pip do that to the environment of another Python."""
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *arguments], check=True, capture_output=True)


def everything(folder: Path) -> set[Path]:
    """All files below a folder, by their names there."""
    return {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For temporary files, with a name that a socket's may begin with: those have a limit of some hundred bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


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
    """No tests, nothing that tools leave behind, the licence, and the mark that it is typed."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"scaler", "capability_scaler"}
    assert "scaler/py.typed" in names
    assert f"capability_scaler-{__version__}.dist-info/licenses/LICENSE" in names
    left_behind = ("/.", "__pycache__/", ".pyc", "~", ".swp", ".orig", ".rej")
    assert not [name for name in names if any(one in f"/{name}" for one in left_behind)]
    tiers = {name for name in names if name.startswith("scaler/config/")}
    assert {"scaler/config/scaler.schema.json", "scaler/config/tier.schema.json"} < tiers
    assert {f"scaler/config/tiers/{name}.yaml" for name in ("low_end", "mid_range", "high_end")} < tiers


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built: Path) -> None:
    """Distributions build from it."""
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "config/scaler.yaml", "config/tiers/mid_range.yaml"} <= names
    if (ROOT / ".git").exists():
        tracked = subprocess.check_output(["git", "-C", str(ROOT), "ls-files", "-z"], text=True).split("\0")
        # All that `make test` takes is here; only what a project's own checkout is for is not.
        assert {name for name in tracked if name and (ROOT / name).exists()} - names == {".ci/run"}


def test_it_is_built_to_the_same_bytes_elsewhere_and_later(built: Path, unpacked: Path, tmp_path: Path) -> None:
    """Whoever builds from the source distribution can see that ours holds nothing else."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)],
        cwd=unpacked,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "TZ": "Pacific/Chatham"},
        umask=0o077 if os.name == "posix" else -1,
        check=True,
        capture_output=True,
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in built.iterdir()
    }
    (wheel,) = built.glob("*.whl")
    times = {entry.date_time for entry in zipfile.ZipFile(wheel).infolist()}
    assert times == {datetime.fromtimestamp(EPOCH, UTC).timetuple()[:6]}


def test_the_metadata_is_valid_and_true(built: Path) -> None:
    """What an index and pip read."""
    (wheel,) = built.glob("*.whl")
    text = zipfile.ZipFile(wheel).read(f"capability_scaler-{__version__}.dist-info/METADATA")
    metadata = Metadata.from_email(text, validate=True)
    assert (metadata.name, str(metadata.version)) == ("capability-scaler", __version__)
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description == (ROOT / "README.md").read_text("utf-8")
    assert metadata.classifiers
    assert set(metadata.classifiers) <= classifiers
    assert set(metadata.provides_extra or []) == PROJECT["optional-dependencies"].keys()
    assert BytesParser().parsebytes(text)["Description-Content-Type"] == "text/markdown"


def test_the_pythons_are_those_that_the_table_shows() -> None:
    """A Python is named where the wheel was installed on it and tried (docs/install.md)."""
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    (head,) = [line for line in page.splitlines() if line.startswith("| what is installed |")]
    tried = [cell.strip() for cell in head.split("|")[2:-1]]
    named = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if "Python :: 3." in one]
    assert named == tried
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in tried)


def test_a_typed_program_is_checked_against_the_wheel(
    installed: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Under mypy's strictest rules, away from the checkout: `py.typed` and every annotation are in the wheel."""
    program = tmp_path / "program.py"
    program.write_text((ROOT / "tests" / "typed_program.py").read_text("utf-8"), "utf-8")
    # What was found out about the libraries is kept between runs, or each would take ten seconds.
    cache = request.config.cache.mkdir("mypy")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", str(cache)]
    command = [*mypy, "--python-executable", str(installed), program.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr


def test_uninstalling_leaves_only_what_is_the_persons_own(
    built: Path, demo_models: dict[str, Path], short_folder: Path, tmp_path: Path
) -> None:
    """The places that docs/install.md names, and nothing in the environment or beside them."""
    python = environment(tmp_path / "environment")
    before = everything(tmp_path / "environment")
    install(built, python)
    home = tmp_path / "home"
    models = home / ".cache" / "scaler" / "demo-models"
    models.mkdir(parents=True)
    for path in demo_models.values():
        (models / path.name).symlink_to(path)
    (home / ".config" / "scaler").mkdir(parents=True)
    # At the usual port the developer's own may run, which records already.
    settings = "conversations: {path: ~/talk.sqlite}\nserver: {port: 1}\n"
    (home / ".config" / "scaler" / "scaler.yaml").write_text(settings)
    places = {"HOME": str(home), "TMPDIR": str(short_folder), "PATH": os.defpath}
    program = (
        "from scaler import ModelManager\n"
        "with ModelManager(remember=True) as manager:\n"
        "    print(manager.generate_response_sync('Who are you?').level)\n"
    )
    # In the home, or Python would find the checkout.
    answered = subprocess.run([str(python), "-c", program], cwd=home, env=places, capture_output=True, text=True)
    assert (answered.returncode, answered.stdout, answered.stderr) == (0, "small\n", ""), answered.stderr
    for arguments in (["config", "check"], ["tier"], ["history"], ["record", "--for", "1s"]):
        command = [str(python), "-m", "scaler", *arguments]
        subprocess.run(command, cwd=home, env=places, check=True, capture_output=True)

    pip(python, "uninstall", "--yes", "capability-scaler")
    assert everything(tmp_path / "environment") == before
    assert not everything(short_folder)
    left = {file.parts[:3] for file in everything(home)}
    assert left == {
        (".cache", "scaler", "demo-models"),
        (".config", "scaler", "scaler.yaml"),
        (".local", "state", "scaler"),
        ("talk.sqlite",),
    }
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    for name in {path.name.removesuffix(".lock") for path in (home / ".local" / "state" / "scaler").iterdir()}:
        assert f"`{name}`" in page, name


def test_every_dependency_of_the_core_is_declared() -> None:
    """What is imported without an extra must come with a plain install."""
    declared = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert declared == {"annotated-types", "argcomplete", "nvidia-ml-py", "psutil", "pydantic", "pyyaml", "transitions"}
    extras = {
        name: {Requirement(line).name for line in lines} for name, lines in PROJECT["optional-dependencies"].items()
    }
    assert extras["llama"] == {"aiohttp", "gguf", "orjson", "xllamacpp"}
    assert extras["server"] == {"aiohttp", "orjson", "prometheus-client", "uvloop"}
    assert extras["ollama"] == {"aiohttp", "ollama", "orjson"}
    assert extras["demo"] == {"openai", "rich"}
    assert extras["desktop"] == {"desktop-notifier"}
