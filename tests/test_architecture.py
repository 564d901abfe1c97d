"""The arrows of the house point one way; this holds them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "scaler"
PURE = {
    "levels", "policy", "readings", "footprints", "trends", "evidence", "guards", "machine", "events", "performance",
    "caution", "needles", "peaks", "remembered", "ceilings", "scales", "effective", "handoff", "advice", "normal_form",
}  # fmt: skip
SERVING = {
    "access_token", "answering", "descriptions", "errors", "events", "handoff", "journal", "manager", "metrics",
    "monitor", "notices", "past", "printable", "proactive", "recent", "report", "settings",
    "tracing",
}  # fmt: skip
PURE_OUTSIDE = {
    "__future__", "annotated_types", "bisect", "collections", "dataclasses", "functools", "itertools",
    "math", "threading", "transitions",
    "typing",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from scaler import paths` is of a module, too; its version is of none.
            names = {one.name for one in node.names} - {"__version__"}
            found |= {f"scaler.{name}" for name in names} if node.module == "scaler" else {node.module}
    return found


def ours(path: Path) -> set[str]:
    """The modules of scaler that a file imports, without the leading ``scaler.``."""
    return {name.removeprefix("scaler.") for name in imports(path) if name.startswith("scaler.")}


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_decision_knows_nothing_that_does_input_or_output(name: str) -> None:
    """Same readings and clock, same states: only then can it be replayed and proved."""
    path = PACKAGE / f"{name}.py"
    assert ours(path) <= PURE | {"errors"}
    assert {module.split(".")[0] for module in imports(path)} - {"scaler"} <= PURE_OUTSIDE


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("discovery/found", set()),
        ("proposal", {"discovery.found", "levels", "policy", "readings"}),
        ("ladder_yaml", {"discovery.found", "levels", "proposal"}),
    ],
)
def test_a_ladder_is_proposed_without_input_or_output(name: str, allowed: set[str]) -> None:
    """What was found goes in as plain data: the same machine gets the same proposal."""
    path = PACKAGE / f"{name}.py"
    assert ours(path) <= allowed
    outside = {module.split(".")[0] for module in imports(path)} - {"scaler"}
    assert outside <= PURE_OUTSIDE | {"re", "textwrap", "yaml"}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("sensors", {"cgroup_mounts", "errors", "readings", "levels"}),
        (
            "runtimes",
            {
                *("errors", "extras", "levels", "level_settings", "passed_on", "settings", "paths", "descriptions"),
                *("absent", "cgroup_mounts", "normal_form", "readings"),
            },
        ),
        ("recordings", {"errors", "levels", "private_files", "readings"}),
        ("replay", {"errors", "extras", "levels", "readings", "policy", "machine", "words"}),
        ("notify", {"errors", "extras", "levels", "settings", "notices"}),
        ("conversations", {"errors", "private_files", "settings"}),
        ("serving", SERVING),
        (
            "tracing",
            {"__version__", "courses", "errors", "events", "extras", "manager", "proactive", "switching"},
        ),
        ("metrics", {"__version__", "courses", "events", "levels", "manager", "monitor", "proactive", "readings"}),
        ("discovery", {"absent", "errors", "levels", "paths", "runtimes", "sensors"}),
    ],
)  # fmt: skip
def test_rooms_know_only_what_they_need(folder: str, allowed: set[str]) -> None:
    """Sensors and runtimes know data types; the HTTP face knows the manager, and no thresholds."""
    for path in (PACKAGE / folder).glob("*.py"):
        known = {name.split(".")[0] for name in ours(path)} - {folder}
        assert known <= allowed, f"{path.name} imports {sorted(known - allowed)}"


@pytest.mark.parametrize(
    "name", ["switching", "answering", "relaying", "courses", "embedding", "manager", "loop_thread"]
)
def test_effects_know_nothing_of_thresholds(name: str) -> None:
    """A figure is compared with a threshold in one place only, the guards."""
    assert not ours(PACKAGE / f"{name}.py") & {"guards", "evidence", "policy", "footprints", "trends"}


def test_whoever_looks_around_only_asks() -> None:
    """No request of `scaler init` can load a model, or change anything else, at a server that it does not know."""
    ways = {"post", "put", "patch", "delete", "request", "ask"}
    nodes = [node for path in (PACKAGE / "discovery").glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    called = {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    assert "get" in called
    assert not called & ways


def test_importing_scaler_brings_no_web_llama_or_gpu_library() -> None:
    """A program that embeds scaler pays for a part when it uses it."""
    code = "import sys, scaler; from scaler import ProactiveScaler; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {
        *("aiohttp", "orjson", "xllamacpp", "gguf", "numpy", "pynvml", "rich", "prometheus_client", "opentelemetry"),
    } & {name.split(".")[0] for name in modules}


def test_nothing_ends_or_signals_a_process_but_its_own_children() -> None:
    """It suggests to a person which programs to close, and never closes one."""
    ways = {"kill", "killpg", "terminate", "send_signal", "suspend", "pidfd_send_signal", "TerminateProcess"}
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ways
    }
    # One holds the very process that it started, and no pid; another ends the one that it was started to watch, and the
    # third the workers of its own search.
    assert found == {"runtimes/model_process.py", "runtimes/tied.py", "cli/tune.py"}


def calls(path: Path) -> set[str]:
    """What a file calls, with dots: ``yaml.safe_load``."""
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


def test_no_shell_is_ever_started() -> None:
    """A program gets its arguments one by one: nothing that a request or a file says is read as a command line."""
    ways = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
    ways |= {"asyncio.create_subprocess_shell"}
    started = set()
    for path in PACKAGE.rglob("*.py"):
        assert not calls(path) & ways, path.name
        assert not any(name.startswith(("os.spawn", "os.posix_spawn", "pty.")) for name in calls(path)), path.name
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                plain = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "shell" or plain, f"{path.name}:{node.lineno}"
            if ast.unparse(node.func).startswith("subprocess."):
                started.add(path.name)
                first = node.args[0]
                assert not isinstance(first, ast.JoinedStr | ast.Constant | ast.BinOp), f"{path.name}:{node.lineno}"
    assert started, "nothing was looked at"


def test_nothing_that_is_read_becomes_code() -> None:
    """Files and requests are data."""
    for path in PACKAGE.rglob("*.py"):
        assert not calls(path) & {"eval", "exec", "compile", "__import__"}, path.name
        outside = {name.split(".")[0] for name in imports(path)}
        assert not outside & {"pickle", "marshal", "shelve", "dill", "joblib"}, path.name


def test_yaml_is_read_by_the_safe_loader_only() -> None:
    """No tag makes an object: PyYAML's other loaders run what a file says."""
    dangerous = {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"}
    loaders = set()
    for path in PACKAGE.rglob("*.py"):
        assert not calls(path) & dangerous, path.name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.endswith("Loader") and ast.unparse(node.value) == "yaml":
                loaders.add(node.attr)
    assert loaders == {"SafeLoader"}
