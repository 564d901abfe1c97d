"""The embedded runtime on real llama.cpp processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest
from gguf import GGUFReader

from scaler.errors import LevelUnavailable, MissingExtra, NeverAsked, RequestRejected
from scaler.level_settings import EmbeddedLevel
from scaler.levels import GIB
from scaler.loop_thread import LoopThread
from scaler.runtimes import model_process, model_server
from scaler.runtimes.embedded import EmbeddedModel, EmbeddedRuntime
from tests.processes import gone
from tests.runtimes.test_gguf_size import a_file

MIB = 1024**2
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Who are you?"}]}
LONG: dict[str, Any] = {**ASK, "ignore_eos": True, "temperature": 0}
LIMIT_S = 60.0
"""For what comes at once, on a machine that may be busy."""


@pytest.fixture
def settings(demo_models: dict[str, Path]) -> Callable[..., EmbeddedLevel]:
    """Settings of a demo level, changed as asked."""

    def make(name: str = "small", **changes: Any) -> EmbeddedLevel:
        values = {"name": name, "model": demo_models[name], "context_tokens": 2048, "threads": 1, **changes}
        return EmbeddedLevel(**values)

    return make


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the private sockets live: empty again at the end of every test that uses it."""
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
        assert not list(Path(folder).iterdir())


@asynccontextmanager
async def loaded(settings: EmbeddedLevel) -> AsyncIterator[tuple[EmbeddedRuntime, EmbeddedModel]]:
    runtime = EmbeddedRuntime()
    model = await runtime.load(settings, lambda _: None)
    try:
        yield runtime, model
    finally:
        await model.unload()
        assert not runtime.pids()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def said(chunks: AsyncGenerator[dict[str, Any], None]) -> None:
    """Return when the answer has begun."""
    async for chunk in chunks:
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            return
    pytest.fail("the answer ended before it began")


async def text_of(model: EmbeddedModel, request: dict[str, Any]) -> str:
    chunks = [chunk async for chunk in model.chat(request)]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_each_level_answers_with_its_own_sentence(settings: Callable[..., EmbeddedLevel], name: str) -> None:
    """So that a test knows who spoke, whatever the temperature."""

    async def body() -> None:
        async with loaded(settings(name)) as (_, model):
            for temperature in (0, 0.7):
                text = await text_of(model, {**ASK, "temperature": temperature})
                assert text.strip() == f"The {name} model speaks : I am made of random weights ."

    asyncio.run(body())


def test_several_requests_are_answered_at_once_in_any_alphabet(settings: Callable[..., EmbeddedLevel]) -> None:
    """Slots, and a prompt beyond ASCII."""

    async def body() -> None:
        async with loaded(settings()) as (_, model):
            ask = {"messages": [{"role": "user", "content": "Žluťoučký kůň 你好 🦙"}]}
            texts = await asyncio.gather(*(text_of(model, ask) for _ in range(6)))
            assert all("small" in text for text in texts)

    asyncio.run(body())


def test_an_answer_comes_word_by_word_and_ends_with_the_usage(settings: Callable[..., EmbeddedLevel]) -> None:
    """Whoever reads along can, and whoever counts tokens, too."""

    async def body() -> None:
        async with loaded(settings()) as (_, model):
            chunks = [chunk async for chunk in model.chat(ASK)]
            words = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
            assert "".join(words[:4] if words[0] else words[1:4]).startswith(" The small")
            assert len([word for word in words if word]) >= 10
            usage = chunks[-1]["usage"]
            assert usage["prompt_tokens"] == await model.count_tokens(ASK)
            assert usage["completion_tokens"] == 13

    asyncio.run(body())


def test_the_count_of_a_prompt_is_what_the_model_reads_of_it(
    settings: Callable[..., EmbeddedLevel], demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """With its tools, and with what goes into the template: else a conversation would be fitted to too large a room."""
    parameters = {"type": "object", "properties": {"where": {"type": "string", "description": "a place " * 20}}}
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": parameters}}
    template = (
        "{{ tools | tojson if tools }}{{ enable_thinking }}"
        "{% for message in messages %}{{ message.role + message.content }}{% endfor %}"
    )
    told = tmp_path / "told.gguf"
    write = (sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template", template)
    subprocess.run([*write, demo_models["small"], told], check=True, capture_output=True)

    async def body() -> None:
        async with loaded(settings(model=told)) as (_, model):
            plain = await model.count_tokens(ASK)
            for more in ({"tools": [tool]}, {"chat_template_kwargs": {"enable_thinking": True}}):
                ask = {**ASK, "max_tokens": 1, **more}
                chunks = [chunk async for chunk in model.chat(ask)]
                assert await model.count_tokens(ask) == chunks[-1]["usage"]["prompt_tokens"]
            assert await model.count_tokens({**ASK, "tools": [tool]}) > plain + 100

    asyncio.run(body())


def test_unloading_gives_the_memory_back(settings: Callable[..., EmbeddedLevel], folders: Path) -> None:
    """The process is gone when unload returns, with all that it held."""

    async def body() -> None:
        async with loaded(settings("medium")) as (runtime, model):
            (pid,) = runtime.pids()
            assert psutil.Process(pid).memory_info().rss > 140 * MIB
            assert (next(folders.iterdir()).stat().st_mode & 0o777) == 0o700
            await model.unload()
            assert not psutil.pid_exists(pid)
            await model.unload()

    asyncio.run(body())


def test_progress_grows_to_one(settings: Callable[..., EmbeddedLevel], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read off the child's memory, not invented."""
    # Often enough to be told of, though this process may stand still for a part of the load.
    monkeypatch.setattr(model_process, "PROGRESS_EVERY_S", 0.01)

    async def body() -> None:
        told: list[float] = []
        model = await EmbeddedRuntime().load(settings("large"), told.append)
        await model.unload()
        assert told[0] == 0.0
        assert told[-1] == 1.0
        assert told == sorted(told)
        assert any(0.0 < ratio < 1.0 for ratio in told)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("name", "words", "above_mib", "kv_cache"),
    [
        ("small", 600, 25, "f16"),
        ("medium", 600, 25, "f16"),
        ("medium", 600, 25, "q8_0"),
        ("medium", 600, 25, "q4_0"),
        ("large", 10, 55, "f16"),
    ],
)
def test_the_estimate_is_near_what_is_taken_and_not_below(
    settings: Callable[..., EmbeddedLevel], name: str, words: int, above_mib: int, kv_cache: str
) -> None:
    """What a level is thought to take before it was ever loaded. A short prompt uses only part of the buffers."""

    async def body() -> None:
        wanted = settings(name, kv_cache=kv_cache)
        async with loaded(wanted) as (runtime, model):
            await text_of(model, {"messages": [{"role": "user", "content": "x" * words}]})
            (pid,) = runtime.pids()
            memory = psutil.Process(pid).memory_info()
            taken, estimate = memory.rss - memory.shared, runtime.footprint(wanted)["ram"]
            assert taken <= estimate <= taken + above_mib * MIB, f"{taken / MIB:.0f} of {estimate / MIB:.0f} MiB"

    asyncio.run(body())


@pytest.mark.parametrize("kv_cache", ["q8_0", "q4_0"])
def test_a_level_with_a_quantised_cache_answers_and_remembers(
    settings: Callable[..., EmbeddedLevel], kv_cache: str
) -> None:
    """The same words as with the full cache, of both slots at once, and from where a shared beginning ends."""

    async def body() -> None:
        async with loaded(settings(kv_cache=kv_cache)) as (_, model):
            begun = {"role": "assistant", "content": "The small model"}
            whole, again = await asyncio.gather(text_of(model, ASK), text_of(model, ASK))
            rest = await text_of(model, {"messages": [*ASK["messages"], begun], "temperature": 0})
            assert whole == again
            assert "I am made of random weights" in whole
            assert whole.strip() == f"The small model{rest}"

    asyncio.run(body())


@pytest.mark.parametrize("kv_cache", ["f16", "q8_0", "q4_0"])
def test_what_other_settings_would_save_is_what_the_level_would_take_less(
    settings: Callable[..., EmbeddedLevel], kv_cache: str
) -> None:
    """By the same estimate as the footprint; and only settings that save anything are named."""
    runtime, now = EmbeddedRuntime(), settings("medium", context_tokens=4096, kv_cache=kv_cache)
    savings = runtime.savings(now)
    named = {(saving.setting, saving.value) for saving in savings}
    milder = {"f16": {"q8_0", "q4_0"}, "q8_0": {"q4_0"}, "q4_0": set()}[kv_cache]
    shorter = {("context_tokens", "2048"), ("context_tokens", "1024")}
    assert named == shorter | {("kv_cache", value) for value in milder}
    for saving in savings:
        assert saving.instead_of == str(getattr(now, saving.setting))
        changed = EmbeddedLevel(**{**now.model_dump(), saving.setting: saving.value})
        less = runtime.footprint(now)["ram"] - runtime.footprint(changed)["ram"]
        assert saving.saved == {"ram": less}
        assert less > 0


def test_settings_that_are_of_no_use_are_not_proposed(settings: Callable[..., EmbeddedLevel], tmp_path: Path) -> None:
    """A context too short to talk in, a cache that llama.cpp would refuse, and what is declared by hand."""
    runtime = EmbeddedRuntime()
    assert {saving.setting for saving in runtime.savings(settings(context_tokens=1500))} == {"kv_cache"}
    for changes in ({"ram_gib": 0.5}, {"gpu_layers": 99}):
        assert list(runtime.savings(settings(**changes))) == []
    narrow = a_file(tmp_path / "narrow.gguf", 10, head_count=256)
    heads_of_16 = settings().model_copy(update={"model": narrow})
    assert {saving.setting for saving in runtime.savings(heads_of_16)} == {"context_tokens"}
    with pytest.raises(LevelUnavailable, match=r"small: .*gone\.gguf"):
        runtime.savings(settings().model_copy(update={"model": tmp_path / "gone.gguf"}))


def test_a_declared_footprint_is_taken_at_its_word(settings: Callable[..., EmbeddedLevel]) -> None:
    """With the GPU that it names."""
    declared = settings(ram_gib=0.5, vram_gib=2, gpu=1)
    assert EmbeddedRuntime().footprint(declared) == {"ram": GIB // 2, "gpu1": 2 * GIB}


def test_a_killed_model_breaks_its_answer_and_is_noticed(settings: Callable[..., EmbeddedLevel], folders: Path) -> None:
    """kill -9: the answer says so, and so does whoever watches."""

    async def body() -> None:
        async with loaded(settings()) as (runtime, model):
            (pid,) = runtime.pids()
            died = asyncio.create_task(model.died())

            async def talk() -> None:
                async for chunk in model.chat(LONG):
                    if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                        os.kill(pid, signal.SIGKILL)

            with pytest.raises(
                LevelUnavailable,
                match=r"small: .*small\.gguf: the model ended in the middle of the answer: it was killed",
            ):
                await talk()
            async with asyncio.timeout(LIMIT_S):
                assert "killed" in await died
            assert not runtime.pids()
            assert not await model.health()

    asyncio.run(body())


def test_who_waits_for_a_slot_of_a_killed_model_was_never_asked(settings: Callable[..., EmbeddedLevel]) -> None:
    """The request cannot be what killed it, and may be tried elsewhere as often as it takes."""

    async def body() -> None:
        async with loaded(settings(parallel=1)) as (runtime, model):
            (pid,) = runtime.pids()

            async def talk() -> None:
                async for chunk in model.chat(LONG):
                    if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                        os.kill(pid, signal.SIGKILL)

            served, waiting = await asyncio.gather(talk(), talk(), return_exceptions=True)
            assert type(served) is LevelUnavailable
            assert type(waiting) is NeverAsked

    asyncio.run(body())


def test_leaving_an_answer_frees_its_slot(settings: Callable[..., EmbeddedLevel]) -> None:
    """Nobody reads it any more, so nobody generates the thousands of tokens that are left of it."""
    port = free_port()

    async def generated(session: aiohttp.ClientSession) -> int | None:
        """The tokens of the answer that it generates; None while there is none."""
        async with session.get(f"http://127.0.0.1:{port}/slots") as response:
            (slot,) = await response.json()
        return int(slot["next_token"][0]["n_decoded"]) if slot["is_processing"] else None

    async def body() -> None:
        level = settings(port=port, parallel=1, context_tokens=16384)
        async with loaded(level) as (_, model), aiohttp.ClientSession() as session:
            chunks = model.chat({**LONG, "max_tokens": 16000})
            await said(chunks)
            assert await generated(session) is not None
            await chunks.aclose()
            last = 0
            while (now := await generated(session)) is not None:
                last = now
                await asyncio.sleep(0.02)
            assert last < 2000
            assert "small" in await text_of(model, ASK)

    asyncio.run(body())


def test_streams_do_not_keep_the_server_from_being_asked(
    settings: Callable[..., EmbeddedLevel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More streams than llama.cpp has threads for took them all: health and token counts waited for their ends."""
    monkeypatch.setattr(model_server, "HEALTH_S", LIMIT_S)

    async def body() -> None:
        async with loaded(settings(context_tokens=16384)) as (_, model):
            answers = [model.chat({**LONG, "max_tokens": 16000}) for _ in range(16)]
            begun = [asyncio.create_task(said(answer)) for answer in answers]
            try:
                async with asyncio.timeout(LIMIT_S):
                    await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
                async with asyncio.timeout(LIMIT_S):
                    assert await model.health()
                    assert await model.count_tokens(ASK) > 0
                # As many as there are slots; the others wait, for none of these has ended meanwhile.
                assert sum(task.done() for task in begun) <= 2
            finally:
                for task in begun:
                    task.cancel()
                await asyncio.gather(*begun, return_exceptions=True)
                for answer in answers:
                    await answer.aclose()

    asyncio.run(body())


def test_an_unloaded_model_says_so(settings: Callable[..., EmbeddedLevel]) -> None:
    """Whoever reads, waits for a slot or comes too late is told at once; nobody is told that it died."""

    async def rest(answer: AsyncGenerator[dict[str, Any], None]) -> None:
        async for _ in answer:
            pass

    async def body() -> None:
        async with loaded(settings(context_tokens=16384)) as (runtime, model):
            (pid,) = runtime.pids()
            died = asyncio.create_task(model.died())
            pausing, reading = (model.chat({**LONG, "max_tokens": 16000}) for _ in range(2))
            await said(pausing)
            await said(reading)
            os.kill(pid, signal.SIGSTOP)
            told = [asyncio.create_task(work) for work in (rest(reading), text_of(model, ASK))]
            # Whatever was on its way arrives, and then there is nothing more to read.
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in told)
            unloading = asyncio.create_task(model.unload())
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGCONT)
            async with asyncio.timeout(LIMIT_S):
                await unloading
                late = (rest(pausing), text_of(model, ASK), model.count_tokens(ASK))
                errors = await asyncio.gather(*told, *late, return_exceptions=True)
            begun, waiting = LevelUnavailable, NeverAsked
            assert [type(error) for error in errors] == [begun, waiting, begun, waiting, waiting]
            assert all("it was unloaded" in str(error) for error in errors)
            assert not await model.health()
            assert not (await asyncio.wait([died], timeout=0.1))[0]
            died.cancel()

    asyncio.run(body())


def test_a_model_that_hangs_is_not_healthy_and_can_be_unloaded(
    settings: Callable[..., EmbeddedLevel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its tracks, it answers neither requests nor SIGTERM."""
    monkeypatch.setattr(model_server, "HEALTH_S", 0.3)
    monkeypatch.setattr(model_process, "TERM_GRACE_S", 0.3)

    async def body() -> None:
        async with loaded(settings()) as (runtime, model):
            (pid,) = runtime.pids()
            os.kill(pid, signal.SIGSTOP)
            while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                await asyncio.sleep(0.01)
            assert not await model.health()
            await model.unload()
            assert not psutil.pid_exists(pid)

    asyncio.run(body())


def test_ctrl_c_in_the_terminal_does_not_reach_the_model(settings: Callable[..., EmbeddedLevel]) -> None:
    """The terminal sends it to scaler's process group; scaler lets the running answers end first."""

    async def body() -> None:
        async with loaded(settings()) as (runtime, _):
            (pid,) = runtime.pids()
            assert os.getpgid(pid) != os.getpgrp()

    asyncio.run(body())


def test_a_folder_with_namesakes_of_modules_does_no_harm(
    settings: Callable[..., EmbeddedLevel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would look for the child's modules where the person happens to be."""
    for name in ("json.py", "xllamacpp.py"):
        (tmp_path / name).write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)

    async def body() -> None:
        async with loaded(settings()) as (_, model):
            assert await model.health()

    asyncio.run(body())


@pytest.mark.parametrize("module", ["xllamacpp", "aiohttp"])
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    settings: Callable[..., EmbeddedLevel], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """The line to type is in the message."""
    level = settings()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"{module} is not installed.*pip install .*\[llama\]'"):
        asyncio.run(EmbeddedRuntime().load(level, lambda _: None))


def test_a_folder_too_deep_for_a_socket_is_a_clear_error(
    settings: Callable[..., EmbeddedLevel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unix socket's name has a limit of some hundred bytes."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(LevelUnavailable, match="set TMPDIR to a shorter path"):
        asyncio.run(EmbeddedRuntime().load(settings(), lambda _: None))
    assert not list(deep.iterdir())


def test_a_prompt_beyond_the_context_is_the_requests_own_fault(settings: Callable[..., EmbeddedLevel]) -> None:
    """The level is not to blame, and does not back off for it."""

    async def body() -> None:
        async with loaded(settings()) as (_, model):
            with pytest.raises(RequestRejected) as caught:
                await text_of(model, {"messages": [{"role": "user", "content": "x" * 5000}]})
            assert caught.value.status == 400
            assert caught.value.body is not None
            assert await model.health()

    asyncio.run(body())


def truncated(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:9_000_000])


def header_only(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:1000])


def noise(path: Path, source: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(100_000))


def empty(path: Path, source: Path) -> None:
    path.touch()


def corrupt_weights(path: Path, source: Path) -> None:
    shutil.copy(source, path)
    (tensor,) = [t for t in GGUFReader(path).tensors if t.name == "blk.5.ffn_up.weight"]
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(np.full(10_000, np.nan, dtype=np.float16).tobytes())


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
    settings: Callable[..., EmbeddedLevel],
    demo_models: dict[str, Path],
    tmp_path: Path,
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path, Path], None],
    words: str,
) -> None:
    """The level, the file, the cause; and neither process nor folder is left."""
    # Often enough to be asked for progress before it fails.
    monkeypatch.setattr(model_process, "PROGRESS_EVERY_S", 0.001)
    path = tmp_path / "damaged.gguf"
    damage(path, demo_models["small"])

    async def body() -> None:
        runtime = EmbeddedRuntime()
        with pytest.raises(LevelUnavailable, match=words) as caught:
            await runtime.load(settings(model=path), lambda _: None)
        assert str(caught.value).startswith(f"small: {path}: ")
        assert not runtime.pids()

    asyncio.run(body())


def test_a_missing_file_starts_nothing(settings: Callable[..., EmbeddedLevel], tmp_path: Path, folders: Path) -> None:
    """Found before a process is spawned."""

    async def body() -> None:
        with pytest.raises(LevelUnavailable, match=r"small: .*gone\.gguf: no such file"):
            await EmbeddedRuntime().load(settings(model=tmp_path / "gone.gguf"), lambda _: None)

    asyncio.run(body())


NARROW = """
import asyncio, resource, sys
from pathlib import Path
from scaler.errors import LevelUnavailable
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.level_settings import EmbeddedLevel

resource.setrlimit(resource.RLIMIT_AS, (700 * 1024**2, 700 * 1024**2))
try:
    level = EmbeddedLevel(name="large", model=Path(sys.argv[1]))
    asyncio.run(EmbeddedRuntime().load(level, lambda _: None))
except LevelUnavailable as error:
    print(error)
"""


def test_too_little_memory_is_a_clear_error(demo_models: dict[str, Path]) -> None:
    """In a process that may have 700 MiB, so that the machine itself is not strained."""
    said = subprocess.check_output([sys.executable, "-c", NARROW, str(demo_models["large"])], text=True)
    assert said.startswith(f"large: {demo_models['large']}: not enough memory")


def test_a_port_in_use_is_a_clear_error(settings: Callable[..., EmbeddedLevel]) -> None:
    """It names the port."""

    async def body() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(LevelUnavailable, match=f"small: .*port {port} is in use"):
                await EmbeddedRuntime().load(settings(port=port), lambda _: None)

    asyncio.run(body())


def test_a_port_of_ones_own_serves_on_loopback(settings: Callable[..., EmbeddedLevel]) -> None:
    """For those who want to look at llama.cpp itself."""
    port = free_port()

    async def body() -> None:
        async with loaded(settings(port=port)) as (_, model):
            assert "small" in await text_of(model, ASK)
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S):
                pass

    asyncio.run(body())


def test_a_load_that_takes_too_long_is_ended(settings: Callable[..., EmbeddedLevel], folders: Path) -> None:
    """The time limit is the level's own."""

    async def body() -> None:
        runtime = EmbeddedRuntime()
        with pytest.raises(LevelUnavailable, match=r"not loaded within 0\.01 s"):
            await runtime.load(settings("large", load_timeout_s=0.01), lambda _: None)
        assert not runtime.pids()

    asyncio.run(body())


def test_a_cancelled_load_leaves_nothing(settings: Callable[..., EmbeddedLevel], folders: Path) -> None:
    """A switch that is overtaken cleans up after itself."""

    async def body() -> None:
        runtime = EmbeddedRuntime()
        begun = asyncio.Event()
        task = asyncio.create_task(runtime.load(settings("large"), lambda ratio: begun.set() if ratio else None))
        await begun.wait()
        pids = runtime.pids()
        assert pids
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not runtime.pids()
        assert not any(psutil.pid_exists(pid) for pid in pids)

    asyncio.run(body())


def test_a_load_cancelled_twice_leaves_nothing_either(settings: Callable[..., EmbeddedLevel], folders: Path) -> None:
    """The second one comes while the child is being ended; its end goes on."""

    async def body() -> None:
        runtime = EmbeddedRuntime()
        begun = asyncio.Event()
        task = asyncio.create_task(runtime.load(settings("large"), lambda ratio: begun.set() if ratio else None))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(LIMIT_S):
            while runtime.pids() or any(folders.iterdir()):
                await asyncio.sleep(0.01)

    asyncio.run(body())


def test_it_works_on_a_loop_in_another_thread(settings: Callable[..., EmbeddedLevel]) -> None:
    """Where the manager runs it."""
    thread = LoopThread("test")

    async def body() -> str:
        async with loaded(settings()) as (_, model):
            return await text_of(model, ASK)

    try:
        assert "small" in thread.call(body())
    finally:
        thread.stop()


PARENT = """
import asyncio, sys
from pathlib import Path
from scaler.runtimes.embedded import EmbeddedRuntime
from scaler.level_settings import EmbeddedLevel

async def main():
    runtime = EmbeddedRuntime()
    model = await runtime.load(EmbeddedLevel(name="small", model=Path(sys.argv[1])), lambda _: None)
    print(*runtime.pids(), flush=True)
    await model.died()

asyncio.run(main())
"""


def test_the_model_dies_with_a_parent_that_is_killed(demo_models: dict[str, Path]) -> None:
    """kill -9 of the host leaves no model behind, only the folder of its socket: here not in /tmp."""
    with (
        tempfile.TemporaryDirectory(prefix="s") as folder,
        subprocess.Popen(
            [sys.executable, "-c", PARENT, str(demo_models["small"])],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": folder},
        ) as parent,
    ):
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert gone([child])


def test_what_the_child_is_told_is_json_on_one_line(settings: Callable[..., EmbeddedLevel]) -> None:
    """A name with quotes and line feeds in it must not become parameters."""

    async def body() -> None:
        name = 'a "b"\n{"c": 1}'
        async with loaded(settings().model_copy(update={"name": name})) as (_, model):
            assert model.name == name
            assert "small" in await text_of(model, ASK)

    asyncio.run(body())
