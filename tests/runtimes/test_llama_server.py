"""Levels for which scaler starts a llama-server: the adapter on the real program, and on ones that are broken."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaler.errors import LevelUnavailable, MissingExtra, RequestRejected
from scaler.level_settings import EmbeddedLevel, LlamaServerLevel
from scaler.levels import GIB
from scaler.runtimes import model_process, model_server, tied
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.runtimes.llama_server import LlamaServerModel, LlamaServerRuntime
from tests.llama_server_binary import BINARY, needs_llama_server, needs_quantised_cache
from tests.processes import gone
from tests.runtimes.test_embedded import LIMIT_S, corrupt_weights, empty, header_only, noise, truncated

MIB = 1024**2
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Who are you?"}]}
LONG: dict[str, Any] = {**ASK, "ignore_eos": True, "temperature": 0, "max_tokens": 16000}
Settings = Callable[..., LlamaServerLevel]


@pytest.fixture
def settings(demo_models: dict[str, Path]) -> Settings:
    """Settings of a level on a demo model, changed as asked."""

    def make(name: str = "small", **changes: Any) -> LlamaServerLevel:
        values = {
            "name": name,
            "runtime": "llama-server",
            "binary": BINARY,
            "model": demo_models.get(name, demo_models["small"]),
            "context_tokens": 2048,
            "threads": 1,
        }
        return LlamaServerLevel(**{**values, **changes})

    return make


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the private sockets live: empty again at the end of every test that uses it."""
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
        assert not list(Path(folder).iterdir())


@asynccontextmanager
async def loaded(level: LlamaServerLevel) -> AsyncIterator[tuple[LlamaServerRuntime, LlamaServerModel]]:
    runtime = LlamaServerRuntime()
    model = await runtime.load(level, lambda _: None)
    try:
        yield runtime, model
    finally:
        await model.unload()
        assert not runtime.pids()


def load(level: LlamaServerLevel) -> None:
    """Load it, and nothing more; whatever comes of it, no process is left."""

    async def body() -> None:
        runtime = LlamaServerRuntime()
        try:
            await (await runtime.load(level, lambda _: None)).unload()
        finally:
            assert not runtime.pids()

    asyncio.run(body())


async def text_of(model: LlamaServerModel, request: dict[str, Any]) -> str:
    chunks = [chunk async for chunk in model.chat(request)]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def begun(answer: AsyncGenerator[dict[str, Any], None]) -> None:
    async for chunk in answer:
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            return
    pytest.fail("the answer ended before it began")


def script(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


# ---------------------------------------------------------------- on the real program


@needs_llama_server
@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_each_level_answers_with_its_own_sentence(settings: Settings, name: str) -> None:
    """The file that was named is the one that speaks, and what was said before is gone on with."""

    async def body() -> None:
        async with loaded(settings(name)) as (_, model):
            assert model.name == name
            assert await model.health()
            sentence = f"The {name} model speaks : I am made of random weights ."
            assert (await text_of(model, {**ASK, "temperature": 0})).strip() == sentence
            said = {"role": "assistant", "content": f"The {name} model"}
            rest = await text_of(model, {"messages": [*ASK["messages"], said], "temperature": 0})
            assert f"The {name} model{rest}" == sentence

    asyncio.run(body())


@needs_llama_server
def test_the_count_of_a_prompt_is_what_the_model_reads_of_it(settings: Settings) -> None:
    """And an answer ends with the usage."""

    async def body() -> None:
        async with loaded(settings()) as (_, model):
            chunks = [chunk async for chunk in model.chat(ASK)]
            assert chunks[-1]["usage"]["prompt_tokens"] == await model.count_tokens(ASK)
            assert chunks[-1]["usage"]["completion_tokens"] == 13
            prompt = {"prompt": "one two", "max_tokens": 3, "temperature": 0}
            completed = [chunk async for chunk in model.complete(prompt)]
            assert completed[-1]["usage"]["completion_tokens"] == 3

    asyncio.run(body())


@needs_llama_server
def test_as_many_requests_are_answered_at_once_as_the_level_says_each_with_its_window(settings: Settings) -> None:
    """A prompt beyond it is the request's own fault."""

    async def body() -> None:
        async with loaded(settings(parallel=3, context_tokens=512)) as (_, model):
            texts = await asyncio.gather(*(text_of(model, ASK) for _ in range(6)))
            assert all("small" in text for text in texts)
            whole = {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 10}
            assert [chunk async for chunk in model.chat(whole)]
            with pytest.raises(RequestRejected) as caught:
                await text_of(model, {"messages": [{"role": "user", "content": "x" * 600}]})
            assert caught.value.status == 400
            assert await model.health()

    asyncio.run(body())


@needs_llama_server
def test_unloading_gives_the_memory_back(settings: Settings, folders: Path) -> None:
    """The process is gone when unload returns, with all that it held; nobody else could enter its socket's folder."""

    async def body() -> None:
        async with loaded(settings("medium")) as (runtime, model):
            (pid,) = runtime.pids()
            memory = psutil.Process(pid).memory_info()
            # Read, not mapped: pages of a mapped file would be among the shared ones.
            assert memory.rss - memory.shared > 140 * MIB
            assert psutil.Process(pid).exe() == str(BINARY)
            assert (next(folders.iterdir()).stat().st_mode & 0o777) == 0o700
            await model.unload()
            assert not psutil.pid_exists(pid)
            await model.unload()

    asyncio.run(body())


@needs_llama_server
@pytest.mark.slow
@pytest.mark.parametrize(("name", "words", "above_mib"), [("small", 300, 40), ("medium", 300, 40), ("large", 1, 60)])
def test_the_estimate_is_near_what_is_taken_and_not_below(
    settings: Settings, name: str, words: int, above_mib: int
) -> None:
    """Also after several prompts: llama-server would keep up to 8 GiB of them by itself."""

    async def body() -> None:
        wanted = settings(name)
        async with loaded(wanted) as (runtime, model):
            for number in range(6):
                content = f"{number}" * words
                await text_of(model, {"messages": [{"role": "user", "content": content}], "max_tokens": 1})
            (pid,) = runtime.pids()
            memory = psutil.Process(pid).memory_info()
            taken, estimate = memory.rss - memory.shared, runtime.footprint(wanted)["ram"]
            assert taken <= estimate <= taken + above_mib * MIB, f"{taken / MIB:.0f} of {estimate / MIB:.0f} MiB"

    asyncio.run(body())


@needs_llama_server
@needs_quantised_cache
@pytest.mark.parametrize("kv_cache", ["q8_0", "q4_0"])
def test_a_level_with_a_quantised_cache_answers(settings: Settings, kv_cache: str) -> None:
    """It takes flash attention, which llama-server may go without."""

    async def body() -> None:
        async with loaded(settings(kv_cache=kv_cache)) as (_, model):
            assert "small" in await text_of(model, {**ASK, "temperature": 0})

    asyncio.run(body())


@needs_llama_server
def test_progress_grows_to_one(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read off the child's memory, not invented."""
    # Often enough to be told of, though this process may stand still for a part of the load.
    monkeypatch.setattr(model_process, "PROGRESS_EVERY_S", 0.01)

    async def body() -> None:
        told: list[float] = []
        await (await LlamaServerRuntime().load(settings("large"), told.append)).unload()
        assert (told[0], told[-1]) == (0.0, 1.0)
        assert told == sorted(told)
        assert any(0.0 < ratio < 1.0 for ratio in told)

    asyncio.run(body())


@needs_llama_server
def test_a_killed_model_breaks_its_answer_and_is_noticed(settings: Settings, folders: Path) -> None:
    """kill -9: the answer says so, and so does whoever watches."""

    async def body() -> None:
        async with loaded(settings()) as (runtime, model):
            (pid,) = runtime.pids()
            died = asyncio.create_task(model.died())
            answer = model.chat(LONG)
            await begun(answer)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(LevelUnavailable, match=r"small: .*small\.gguf: the model ended .*: it was killed"):
                [chunk async for chunk in answer]
            async with asyncio.timeout(LIMIT_S):
                assert "killed" in await died
            assert not await model.health()

    asyncio.run(body())


@needs_llama_server
def test_a_model_that_hangs_is_not_healthy_and_can_be_unloaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its tracks, it answers neither requests nor SIGTERM."""
    monkeypatch.setattr(model_server, "HEALTH_S", 0.3)
    monkeypatch.setattr(model_process, "TERM_GRACE_S", 0.3)

    async def body() -> None:
        async with loaded(settings()) as (runtime, model):
            (pid,) = runtime.pids()
            assert os.getpgid(pid) != os.getpgrp(), "Ctrl-C in the terminal would end it"
            os.kill(pid, signal.SIGSTOP)
            while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                await asyncio.sleep(0.01)
            assert not await model.health()
            await model.unload()
            assert not psutil.pid_exists(pid)

    asyncio.run(body())


@needs_llama_server
@pytest.mark.parametrize("cancels", [1, 2])
def test_a_cancelled_load_leaves_nothing(settings: Settings, folders: Path, cancels: int) -> None:
    """A switch that is overtaken cleans up after itself, also when it is overtaken twice."""

    async def body() -> None:
        runtime, memory_seen = LlamaServerRuntime(), asyncio.Event()
        task = asyncio.create_task(runtime.load(settings("large"), lambda ratio: memory_seen.set() if ratio else None))
        await memory_seen.wait()
        pids = runtime.pids()
        assert pids
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(LIMIT_S):
            while runtime.pids() or any(folders.iterdir()):
                await asyncio.sleep(0.01)
        assert not any(psutil.pid_exists(pid) for pid in pids)

    asyncio.run(body())


@needs_llama_server
def test_a_load_that_takes_too_long_is_ended(settings: Settings, folders: Path) -> None:
    """The time limit is the level's own."""
    with pytest.raises(LevelUnavailable, match=r"large: .*not loaded within 0\.02 s; raise load_timeout_s"):
        load(settings("large", load_timeout_s=0.02))


@needs_llama_server
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, r"tensor data ends early \(file truncated\?\); download it again"),
        (header_only, "the file's header is cut off or corrupt .*; download it again"),
        (noise, "not a GGUF file .*; download it again"),
        (empty, "not a GGUF file, or an empty one .*; download it again"),
        (corrupt_weights, "the weights are corrupt .*; download it again"),
    ],
)
def test_a_damaged_file_is_a_clear_error(
    settings: Settings,
    demo_models: dict[str, Path],
    tmp_path: Path,
    folders: Path,
    damage: Callable[[Path, Path], None],
    words: str,
) -> None:
    """The level, the file, the program, the cause; and neither process nor folder is left."""
    path = tmp_path / "damaged.gguf"
    damage(path, demo_models["small"])
    with pytest.raises(LevelUnavailable, match=words) as caught:
        load(settings(model=path))
    assert str(caught.value).startswith(f"small: {path} with {BINARY}: ")


@needs_llama_server
def test_an_argument_that_it_does_not_know_is_a_clear_error(settings: Settings, folders: Path) -> None:
    """Also one that it knows with another value."""
    with pytest.raises(
        LevelUnavailable, match=r"does not know an argument \(invalid argument: --no-such\); correct it"
    ):
        load(settings(arguments=("--no-such",)))
    with pytest.raises(LevelUnavailable, match=r'while handling argument "--ubatch-size".*; correct the argument'):
        load(settings(arguments=("--ubatch-size", "many")))


@needs_llama_server
def test_a_persons_arguments_come_last_and_hold(settings: Settings, tmp_path: Path) -> None:
    """Such as a template of one's own."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")

    async def body() -> None:
        level = settings(arguments=("--chat-template-file", str(template)))
        async with loaded(settings()) as (_, plain), loaded(level) as (_, short):
            assert await short.count_tokens(ASK) < await plain.count_tokens(ASK)

    asyncio.run(body())


@needs_llama_server
def test_what_the_shell_says_to_other_servers_is_not_for_ours(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key would shut us out, another context take other memory, and a router hold no model."""
    monkeypatch.setenv("LLAMA_API_KEY", "secret")
    monkeypatch.setenv("LLAMA_ARG_API_KEY_FILE", "/nowhere")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "256")
    monkeypatch.setenv("LLAMA_ARG_MODELS_DIR", "/nowhere")

    async def body() -> None:
        async with loaded(settings()) as (_, model):
            words = {"messages": [{"role": "user", "content": "x" * 600}], "max_tokens": 10}
            assert [chunk async for chunk in model.chat(words)]

    asyncio.run(body())


@needs_llama_server
def test_a_script_that_becomes_the_program_is_one_process(settings: Settings, tmp_path: Path) -> None:
    """As people write them to set a variable; what it holds is the level's."""
    wrapper = script(tmp_path / "llama-server", f'exec "{BINARY}" "$@"')

    async def body() -> None:
        async with loaded(settings("medium", binary=wrapper)) as (runtime, model):
            (pid,) = runtime.pids()
            assert psutil.Process(pid).memory_info().rss > 140 * MIB
            assert await model.health()

    asyncio.run(body())


@needs_llama_server
def test_a_name_with_anything_in_it_is_only_a_name(settings: Settings) -> None:
    """No shell reads it."""

    async def body() -> None:
        async with loaded(settings(name='--version "b"; $(exit 1), {')) as (_, model):
            assert "small" in await text_of(model, ASK)

    asyncio.run(body())


NARROW = """
import asyncio, resource, sys
from pathlib import Path
from scaler.errors import LevelUnavailable
from scaler.runtimes.llama_server import LlamaServerRuntime
from scaler.level_settings import LlamaServerLevel

resource.setrlimit(resource.RLIMIT_AS, (700 * 1024**2, 700 * 1024**2))
binary, model = map(Path, sys.argv[1:])
try:
    level = LlamaServerLevel(name="large", runtime="llama-server", binary=binary, model=model)
    asyncio.run(LlamaServerRuntime().load(level, lambda _: None))
except LevelUnavailable as error:
    print(error)
"""


@needs_llama_server
def test_too_little_memory_is_a_clear_error(demo_models: dict[str, Path]) -> None:
    """In a process that may have 700 MiB, so that the machine itself is not strained."""
    model = demo_models["large"]
    said = subprocess.check_output([sys.executable, "-c", NARROW, str(BINARY), str(model)], text=True)
    assert said.startswith(f"large: {model} with {BINARY}: not enough memory")


PARENT = """
import asyncio, sys
from pathlib import Path
from scaler.runtimes.llama_server import LlamaServerRuntime
from scaler.level_settings import LlamaServerLevel

async def main():
    runtime = LlamaServerRuntime()
    binary, model = map(Path, sys.argv[1:])
    level = LlamaServerLevel(name="small", runtime="llama-server", binary=binary, model=model)
    loaded = await runtime.load(level, lambda _: None)
    print(*runtime.pids(), flush=True)
    await loaded.died()

asyncio.run(main())
"""


@needs_llama_server
def test_the_model_dies_with_a_parent_that_is_killed(demo_models: dict[str, Path]) -> None:
    """kill -9 of the host leaves no model behind, only the folder of its socket: here not in /tmp."""
    with (
        tempfile.TemporaryDirectory(prefix="s") as folder,
        subprocess.Popen(
            [sys.executable, "-c", PARENT, str(BINARY), str(demo_models["small"])],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": folder},
        ) as parent,
    ):
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert gone([child])


# ---------------------------------------------------------------- what every machine can try

ELSEWHERE = "import sys; sys.platform = 'darwin'; exec(open(sys.argv.pop(1)).read())"


@pytest.mark.parametrize("ends", ["stdin", "program"])
def test_where_the_kernel_does_not_end_a_program_with_its_parent_a_process_beside_it_does(ends: str) -> None:
    """It sees the end of the pipe that only the parent holds; and it goes with the program, however that ends."""
    bounds = json.dumps({"parent": os.getpid(), "nice": 0, "oom_score_adj": None, "cgroup": None})
    command = [sys.executable, "-c", ELSEWHERE, tied.__file__, bounds, "/bin/sleep", "60"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        program = psutil.Process(process.pid)
        while program.name() != "sleep":
            pass
        (watch,) = program.children()
        assert process.stdin is not None
        if ends == "program":
            process.kill()
            process.wait(LIMIT_S)
        process.stdin.close()
        assert process.wait(LIMIT_S) == -signal.SIGKILL
        assert gone([watch])


def recorded(level: LlamaServerLevel, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment that the program is started with."""
    code = f"import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open({str(folder / 'told')!r}, 'w'))"
    recorder = script(folder / "llama-server", f'exec {sys.executable} -c {json.dumps(code)} "$@"')
    with pytest.raises(LevelUnavailable, match="it ended with status 0 and said nothing"):
        load(level.model_copy(update={"binary": recorder}))
    arguments, environment = json.loads((folder / "told").read_text())
    return arguments, environment


def after(arguments: list[str], name: str) -> str:
    assert arguments.count(name) == 1, f"{name} in {arguments}"
    return arguments[arguments.index(name) + 1]


def test_what_would_change_memory_by_itself_is_switched_off(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By variables, which versions that do not know them ignore; the window is that of all slots."""
    monkeypatch.setenv("LLAMA_ARG_CACHE_RAM", "8192")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    arguments, environment = recorded(settings(parallel=4, arguments=("--jinja",)), tmp_path)
    assert after(arguments, "--ctx-size") == "8192"
    assert after(arguments, "--parallel") == "4"
    assert after(arguments, "--n-gpu-layers") == "0"
    assert after(arguments, "--device") == "none"
    assert after(arguments, "--cache-type-v") == "f16"
    assert arguments[-1] == "--jinja"
    assert environment["LLAMA_ARG_CACHE_RAM"] == "0"
    assert environment["LLAMA_ARG_LOAD_MODE"] == "none"
    assert "LLAMA_ARG_FLASH_ATTN" not in environment
    assert environment["OMP_WAIT_POLICY"] == "active"
    arguments, environment = recorded(settings(kv_cache="q8_0"), tmp_path)
    assert after(arguments, "--cache-type-k") == after(arguments, "--cache-type-v") == "q8_0"
    assert environment["LLAMA_ARG_FLASH_ATTN"] == "1"


def test_layers_go_to_the_gpus_that_the_level_names(settings: Settings, tmp_path: Path) -> None:
    """To one as a whole, or to several in equal parts, as ``vram_gib`` counts them."""
    one, environment = recorded(settings(gpu_layers=20, gpu=1), tmp_path)
    assert (after(one, "--n-gpu-layers"), after(one, "--split-mode"), after(one, "--main-gpu")) == ("20", "none", "1")
    assert "--device" not in one
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    several, _ = recorded(settings(gpu_layers=99, gpu=(0, 2)), tmp_path)
    assert (after(several, "--split-mode"), after(several, "--tensor-split")) == ("layer", "1,0,1")
    assert "--main-gpu" not in several
    chosen, _ = recorded(settings(gpu_layers=99, gpu=1, arguments=("--device", "Vulkan0")), tmp_path)
    assert after(chosen, "--device") == "Vulkan0"
    assert "--main-gpu" not in chosen


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("-c", "set context_tokens instead"),
        ("--n-gpu-layers", "set gpu_layers instead"),
        ("--cache_type_k", "set kv_cache instead"),
        ("--port", "scaler would not find it"),
        ("--api-key", "its socket is private"),
        ("--mmap", "pages of a mapped file do not show as used"),
    ],
)
def test_an_argument_that_is_scalers_own_is_refused(settings: Settings, argument: str, words: str) -> None:
    """It would change what the level takes without scaler's knowing, or scaler could not reach it."""
    with pytest.raises(LevelUnavailable, match=rf"^small: arguments: leave {argument} out; {words}"):
        load(settings(binary=Path(sys.executable), arguments=(argument, "1")))


def foreign(path: Path) -> Path:
    path.write_bytes(b"\x7fELF of another kind of machine")
    path.chmod(0o755)
    return path


def locked(path: Path) -> Path:
    path.write_text("#!/bin/sh")
    path.chmod(0o644)
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def without_its_libraries(path: Path) -> Path:
    shutil.copy(BINARY, path)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "llama-server: no such file; correct the level's binary"),
        (lambda path: path.with_name("x" * 300), "file name too long; correct the level's binary"),
        (loop, "llama-server: too many levels of symbolic links; correct the level's binary"),
        (locked, "not a program that may be run; try `chmod"),
        (foreign, "it ended with status 1: .*llama-server: Exec format error"),
        (lambda path: script(path, "exit 0"), "it ended with status 0 and said nothing"),
        (lambda path: script(path, "echo some other words >&2; exit 3"), "it ended with status 3: some other words"),
        (
            lambda path: script(path, "kill -ILL $$"),
            "lacks instructions .* that .*llama-server was built with; build it",
        ),
        (lambda path: script(path, "kill -SEGV $$"), "it crashed"),
        pytest.param(
            without_its_libraries,
            r"error while loading shared libraries: lib.*; install it, or name its folder in LD_LIBRARY_PATH",
            marks=needs_llama_server,
        ),
    ],
)
def test_a_program_that_is_no_llama_server_or_cannot_run_is_a_clear_error(
    settings: Settings, tmp_path: Path, folders: Path, make: Callable[[Path], Path], words: str
) -> None:
    """The level, the program, and what to do."""
    with pytest.raises(LevelUnavailable, match=rf"^small: .*llama-server: .*{words}|^small: .*{words}"):
        load(settings(binary=make(tmp_path / "llama-server")))


def test_a_program_that_only_waits_is_given_up(settings: Settings, tmp_path: Path, folders: Path) -> None:
    """After the level's own limit."""
    waits = script(tmp_path / "llama-server", "exec sleep 60")
    with pytest.raises(LevelUnavailable, match=r"not loaded within 0\.3 s"):
        load(settings(binary=waits, load_timeout_s=0.3))


def test_a_missing_file_starts_nothing(settings: Settings, tmp_path: Path, folders: Path) -> None:
    """Found before a process is spawned."""
    with pytest.raises(LevelUnavailable, match=r"small: .*gone\.gguf: no such file"):
        load(settings(model=tmp_path / "gone.gguf"))


def test_a_folder_too_deep_for_a_socket_is_a_clear_error(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unix socket's name has a limit of some hundred bytes."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(LevelUnavailable, match="set TMPDIR to a shorter path"):
        load(settings(binary=Path(sys.executable)))
    assert not list(deep.iterdir())


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line to type is in the message."""
    level = settings()
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtra, match=r"aiohttp is not installed.*pip install .*\["):
        load(level)


def test_a_footprint_and_its_savings_are_those_of_the_same_file_embedded(
    settings: Settings, demo_models: dict[str, Path]
) -> None:
    """Or as declared, with the GPU that it names."""
    runtime, level = LlamaServerRuntime(), settings("medium", context_tokens=4096)
    embedded = EmbeddedLevel(name="medium", model=demo_models["medium"], context_tokens=4096)
    assert runtime.footprint(level) == EmbeddedRuntime().footprint(embedded)
    assert runtime.savings(level) == EmbeddedRuntime().savings(embedded)
    assert runtime.describe(level) == EmbeddedRuntime().describe(embedded)
    assert runtime.apart(level, settings())
    declared = settings(ram_gib=0.5, vram_gib=2, gpu=(1, 2), gpu_layers=99)
    assert runtime.footprint(declared) == {"ram": GIB // 2, "gpu1": 2 * GIB, "gpu2": 2 * GIB}
    assert not runtime.savings(declared)
