"""The configuration changes while answers run: on real llama.cpp processes, over HTTP, and with the real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from scaler.cli.reload import UNCHANGED
from scaler.demo.models import NUMBERS
from scaler.errors import ConfigError, RequestRejected
from scaler.events import DecisionMade, PinChanged, Reconfigured
from scaler.journal import read
from scaler.report import status_report, status_words
from scaler.runtimes.embedded import EmbeddedModel, EmbeddedRuntime
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine, Watch
from tests.end_to_end.test_commands import SCALER, Daemon
from tests.end_to_end.test_ladder import decisions, settles_at
from tests.end_to_end.test_notices import webhook
from tests.processes import gone

Serving = Callable[..., Any]
RELOADS = 20
STREAMS = 4
BOTH = ("small", "medium")


def told_anew(watch: Watch) -> None:
    """Wait until it is told that the configuration was read anew, which is a little later than it is."""
    watch.until(lambda: any(isinstance(event, Reconfigured) for event in watch.events), "a reload to be told")


def test_a_changed_threshold_applies_at_once(running: Serving, configure: Callable[..., Path]) -> None:
    """And what changed is told, in the journal too."""
    with running(levels=BOTH) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        before = decisions(watch)
        configure(levels=BOTH, policy={"scale_at": 0.7}, queue={"limit": 7})
        done = manager.reload_sync()
        told = {change.key: (change.before, change.after) for change in done.changes}
        assert told == {"policy.scale_at": ("0.8", "0.7"), "queue.limit": ("64", "7")}
        assert (done.restart, done.unpinned) == ((), None)
        status = manager.scaler.status()
        assert (status.policy.scale_at, status.serving, status.settled) == (0.7, "medium", True)
        assert decisions(watch) == before
        told_anew(watch)
        (record,) = [one for one in read(manager.journal.path) if one["event"] == "reconfigured"]
        assert {"key": "policy.scale_at", "before": "0.8", "after": "0.7"} in record["changes"]


def test_a_configuration_at_fault_changes_nothing(
    running: Serving, configure: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Half of it that would be right is not applied either; the fault is told with file, line and key."""
    with running(levels=BOTH) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        before, settings = manager.scaler.status(), manager.settings
        for fault, words in (
            ({"policy": {"scale_at": 0.6, "band": 7}}, "policy.band: 7 cannot be used; expected a number"),
            ({"policy": {"scale_at": 0.6}, "queue": {"limits": 1}}, "queue.limits: unknown key; expected 'limit'"),
            ({"tier": "nowhere", "policy": {"scale_at": 0.6}}, "tier: there is no tier 'nowhere'"),
        ):
            path = configure(levels=BOTH, **fault)
            with pytest.raises(ConfigError) as refused:
                manager.reload_sync()
            key = words.partition(":")[0]
            line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if key.rpartition(".")[2] in text)
            assert str(refused.value).startswith(f"{path}:{line}: {words}")
            assert str(refused.value) in caplog.text
        config = yaml.safe_load(configure(levels=BOTH).read_text())
        config["ladder"][1]["model"] = "/nowhere.gguf"
        path.write_text(yaml.safe_dump(config))
        with pytest.raises(ConfigError, match=r"/nowhere\.gguf: no such file"):
            manager.reload_sync()
        after = manager.scaler.status()
        assert (after.policy, after.serving, after.settled) == (before.policy, "medium", True)
        assert manager.settings is settings
        assert not [event for event in watch.told() if isinstance(event, Reconfigured)]


def test_a_level_that_is_gone_gives_way_and_its_pin_goes_with_it(
    running: Serving, configure: Callable[..., Path], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process as well; one that comes is climbed to after the dwell, as ever."""
    with running(levels=BOTH) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        manager.scaler.pin("medium")
        (pid,) = manager._switcher.pids()
        configure(levels=("small", "large"))
        looked, load = threading.Event(), EmbeddedRuntime.load

        async def load_later(*what: Any) -> EmbeddedModel:
            await asyncio.to_thread(looked.wait, PATIENCE_S)
            return await load(*what)

        monkeypatch.setattr(EmbeddedRuntime, "load", load_later)
        done = manager.reload_sync()
        report = status_report(manager.scaler.status(), {})
        told = ["small is the level now (being loaded)", "medium of the configuration before answers until then"]
        assert status_words(report, former=manager.former)["why"][:2] == told
        looked.set()
        assert [(one.key, one.before, one.after) for one in done.changes] == [
            ("ladder", '["small", "medium"]', '["small", "large"]')
        ]
        assert done.unpinned == "medium"
        settles_at(manager, watch, "large")
        assert any(event == PinChanged(None) for event in watch.events)
        assert decisions(watch)[-2:] == [("medium", "small"), ("small", "large")]
        reload, climb = [e.switch.decision for e in watch.events if isinstance(e, DecisionMade)][-2:]
        assert (reload.trigger, reload.reason) == ("reload", "medium is not on the ladder any more")
        assert climb.at_s - reload.at_s >= manager.scaler.policy.dwell_s
        assert not psutil.pid_exists(pid)
        assert manager.former is None
        assert manager.generate_response_sync("Who are you?").level == "large"


def test_a_level_with_other_settings_is_loaded_anew(running: Serving, configure: Callable[..., Path]) -> None:
    """Only where they are those of the model: how it is judged changes without that."""
    with running(levels=BOTH) as (manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        before = manager._switcher.pids()
        path = configure(levels=BOTH)
        config = yaml.safe_load(path.read_text())
        config["ladder"][1] |= {"quality": 0.9, "load_s": 2.0}
        path.write_text(yaml.safe_dump(config))
        assert [one.key for one in manager.reload_sync().changes] == ["ladder.medium.quality", "ladder.medium.load_s"]
        assert manager._switcher.pids() == before
        config["ladder"][1]["context_tokens"] = 1024
        path.write_text(yaml.safe_dump(config))
        manager.reload_sync()
        settles_at(manager, watch, "medium")
        assert decisions(watch)[-1] == ("medium", "medium")
        assert len(manager._switcher.pids()) == 1
        assert manager._switcher.pids() != before


def test_what_waits_for_a_restart_is_named_until_then(running: Serving, configure: Callable[..., Path]) -> None:
    """The rest applies."""
    with running(levels=BOTH) as (manager, _):
        for limit in (5, 6):
            configure(levels=BOTH, server={"port": 1}, queue={"limit": limit})
            done = manager.reload_sync()
            assert done.restart == ("server.port",)
            assert [change.key for change in done.changes] == ["queue.limit"]


def test_who_insists_on_a_level_that_is_gone_is_told_at_once(
    running: Serving, configure: Callable[..., Path], machine: Machine
) -> None:
    """It will never serve; to wait for it would be in vain."""
    machine.other_bytes = 3800 * MIB
    with running(levels=BOTH) as (manager, watch):
        manager.scaler.want(True)

        async def scene() -> BaseException:
            waiting = asyncio.ensure_future(manager.effects.run(manager.load("medium")))
            watched = asyncio.to_thread(watch.until, lambda: manager.waiting == 1, "somebody to wait")
            await watched
            configure(levels=("small",))
            await manager.reload()
            return (await asyncio.gather(waiting, return_exceptions=True))[0]

        assert "medium: it is not on the ladder any more" in str(asyncio.run(scene()))


def test_notices_go_where_the_configuration_says_now(running: Serving, configure: Callable[..., Path]) -> None:
    """And no longer where it said before; its address is not told."""
    with webhook() as (url, taken), webhook() as (other, of_other):
        with running(levels=BOTH, notices={"webhook": url, "upgrades": True}) as (manager, watch):
            manager.scaler.want(True)
            settles_at(manager, watch, "medium")
            assert taken.get(timeout=PATIENCE_S)["kind"] == "upgrade"
            configure(levels=BOTH, notices={"webhook": other})
            done = manager.reload_sync()
            assert [(one.key, one.before, one.after) for one in done.changes] == [
                ("notices.upgrades", "true", "false"),
                ("notices.webhook", None, None),
            ]
            manager.scaler.initiate_graceful_degradation()
            assert of_other.get(timeout=PATIENCE_S)["kind"] == "downgrade"
            settles_at(manager, watch, "medium")
        assert (taken.qsize(), of_other.qsize()) == (0, 0)


def test_an_embedding_model_comes_changes_and_goes(
    running: Serving, configure: Callable[..., Path], demo_models: dict[str, Path]
) -> None:
    """Whoever waits for vectors of the one before gets them."""
    small, medium = ({"model": str(demo_models[name]), "context_tokens": 256, "threads": 1} for name in BOTH)
    with running(levels=("small",)) as (manager, watch):
        watch.readings(1)

        async def scene() -> None:
            configure(levels=("small",), embeddings=small)
            await manager.reload()
            first = len((await manager.embed(["a"]))[0])
            waiting = [asyncio.ensure_future(manager.embed(["text"] * 64)) for _ in range(4)]
            configure(levels=("small",), embeddings=medium)
            await manager.reload()
            second = len((await manager.embed(["a"]))[0])
            assert first != second
            assert {len(one) for vectors in await asyncio.gather(*waiting) for one in vectors} <= {first, second}
            configure(levels=("small",))
            await manager.reload()
            await manager.embed(["a"])

        with pytest.raises(RequestRejected, match="there is no embedding model"):
            asyncio.run(scene())
        watch.until(lambda: manager._pids() == (), "its processes to end")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_answer_is_whole_while_the_configuration_changes_again_and_again(
    serving: Serving, configure: Callable[..., Path], machine: Machine
) -> None:
    """Thresholds, the level that answers gone and back, another window for it: the count shows a word that is lost."""
    drain = {"drain_seconds": 0.3}
    configurations: list[dict[str, Any]] = [
        {"levels": ("small",), "policy": {"scale_at": 0.7, **drain}},
        {"levels": BOTH, "policy": drain, "queue": {"wait_s": 60}},
        {"levels": ("medium",), "policy": drain},
        {"levels": BOTH, "policy": {"dwell_s": 0.1, **drain}},
    ]
    with serving(**configurations[1]) as (url, manager, watch):
        manager.scaler.want(True)
        watch.until(lambda: manager.scaler.status().serving != "off", "a level to serve")
        wrong: list[str] = []
        answers = 0

        async def talk(client: openai.AsyncOpenAI, reloading: asyncio.Task[None], number: int) -> None:
            nonlocal answers
            while not reloading.done():
                tokens, text, reason = 20 + 20 * number, "", None
                async with asyncio.timeout(PATIENCE_S * 2):
                    stream = await client.chat.completions.create(
                        model="auto",
                        messages=[{"role": "user", "content": "Count."}],
                        max_tokens=tokens,
                        stream=True,
                    )
                    async for chunk in stream:
                        for choice in chunk.choices:
                            text, reason = text + (choice.delta.content or ""), choice.finish_reason or reason
                if (text, reason) != ("".join(f" {one}" for one in NUMBERS[:tokens]), "length"):
                    wrong.append(f"{tokens}: {text!r} ({reason})")
                answers += 1

        async def reload() -> None:
            for number in range(RELOADS):
                # No room beside it every third time: the model has to go before the next one comes.
                machine.other_bytes = (3560 if number % 3 == 2 else 400) * MIB
                before = answers
                path = configure(**configurations[number % len(configurations)])
                if number % 2:
                    path.write_text(path.read_text().replace("context_tokens: 2048", "context_tokens: 1024"))
                await manager.reload()
                while answers < before + 2 or not manager.scaler.status().settled:
                    await asyncio.sleep(0.01)

        async def scene() -> None:
            reloading = asyncio.create_task(reload())
            async with openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S * 2
            ) as client:
                await asyncio.gather(reloading, *(talk(client, reloading, number) for number in range(STREAMS)))

        asyncio.run(scene())
        assert wrong == []
        assert answers > RELOADS
        assert sum(isinstance(event, Reconfigured) for event in watch.events) == RELOADS
        reloads = [e.switch.decision for e in watch.events if isinstance(e, DecisionMade)]
        assert sum(decision.trigger == "reload" for decision in reloads) >= RELOADS // 2
        watch.until(lambda: not manager.answering and not manager.waiting, "nothing to be left over")


@pytest.fixture
def daemon(configure: Callable[..., Path]) -> Iterator[Daemon]:
    """The daemon as a person runs it, on the real machine."""
    one = Daemon(configure(levels=BOTH, monitor={"interval_s": 0.1}))
    yield one
    one.process.send_signal(signal.SIGTERM)
    one.process.communicate(timeout=60)


def test_a_person_reloads_by_command_and_by_signal(
    daemon: Daemon, configure: Callable[..., Path], tmp_path: Path
) -> None:
    """Told what changed by the command and by the daemon; a mistake is the one that `scaler config check` tells."""
    daemon.wait_for("medium serves now")
    path = configure(levels=BOTH, monitor={"interval_s": 0.2}, server={"port": 1})
    done = daemon.ask("reload", "--config", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "monitor.interval_s: 0.1 → 0.2\nafter a restart only: server.port\n"
    assert "monitor.interval_s: 0.1 → 0.2; after a restart only: server.port" in daemon.wait_for("read anew")
    configure(levels=("small",), monitor={"interval_s": 0.2})
    daemon.process.send_signal(signal.SIGHUP)
    assert 'ladder: ["small", "medium"] → ["small"]' in daemon.wait_for("read anew")
    daemon.wait_for("small serves now")
    status = json.loads(daemon.ask("status", "--json").stdout)
    assert (status["serving"], list(status["projected"])) == ("small", ["small"])
    configure(levels=BOTH, policy={"scale_at": 2})
    right = tmp_path / "right.yaml"
    right.write_text("{}")
    check = subprocess.run([*SCALER, "config", "check", "--config", str(path)], capture_output=True, text=True)
    refused = daemon.ask("reload", "--config", str(right))
    assert refused.stderr.removeprefix(check.stderr) == f"{UNCHANGED}\n"
    assert refused.returncode == check.returncode == 2
    assert "policy.scale_at: 2 cannot be used" in refused.stderr
    assert json.loads(daemon.ask("status", "--json").stdout)["policy"]["scale_at"] == 0.8
    history = subprocess.run(
        [*SCALER, "history", "--path", str(tmp_path / "journal.jsonl")], capture_output=True, text=True, check=True
    ).stdout
    assert "configuration read anew: monitor.interval_s: 0.1 → 0.2" in history


def test_a_terminal_that_is_closed_ends_the_daemon_as_ever(configure: Callable[..., Path]) -> None:
    """Its SIGHUP asks for no reload, and leaves no daemon that nobody sees."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(SCALER[0], [*SCALER, "run", "--config", str(configure(levels=("small",))), "--port", "0"])
    said = b""
    while b"small serves now" not in said:
        said += os.read(terminal, 4096)
    children = psutil.Process(pid).children(recursive=True)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert gone(children)
