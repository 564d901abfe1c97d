"""What is done in each environment, once the wheel is in it."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Callable

from tests.pythons.environment import WINDOWS, Environment, Failed

IMPORTING = """
import importlib, importlib.metadata, re, sys
named = {re.match(r"[\\w.-]+", line)[0] for line in sys.argv[1:]}
for module, owners in importlib.metadata.packages_distributions().items():
    if {re.sub(r"[-_.]+", "-", one).lower() for one in owners} & named and not module.startswith("_"):
        importlib.import_module(module)
"""
"""Imports every module of the distributions that are named, as far as they are installed."""


def walk(here: Environment, extras: list[str], requirements: list[str]) -> None:
    """Use what is installed. Raises Failed, with the command, for what does not work.

    ``requirements`` are those of the extras.
    """
    here.pip("check")
    here.run("python", "-W", "error", "-c", "import scaler; scaler.ModelManager, scaler.ProactiveScaler")
    here.run("python", "-c", IMPORTING, *requirements)
    _expect("scaler ", here.run("scaler", "--version"))
    llama = "llama" in extras
    _expect("ok" if llama else "[llama]", here.run("scaler", "config", "check", code=0 if llama else 2))
    _expect("_", here.run("scaler", "tier"))
    _expect("stateDiagram", here.run("scaler", "diagram"))
    for extra, use in USES.items():
        if extra <= set(extras):
            use(here)


def _answer(here: Environment) -> None:
    """The README's way: demo models, the endpoint, a question."""
    here.run("scaler", "demo-models")
    command = [str(here.programs / "scaler"), "run", "--port", "0"]
    with subprocess.Popen(
        command, env=here.places, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as daemon:
        assert daemon.stdout is not None
        told = []
        try:
            for line in daemon.stdout:
                told.append(line)
                if line.startswith("endpoint"):
                    url = f"{line.split()[1]}/chat/completions"
                    break
            else:
                raise Failed(f"scaler run: {''.join(told[-3:])}")
            question = json.dumps({"messages": [{"role": "user", "content": "Who are you?"}]}).encode()
            request = urllib.request.Request(url, question, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as response:
                answer = json.load(response)["choices"][0]["message"]["content"]
        finally:
            daemon.send_signal(signal.SIGTERM if WINDOWS else signal.SIGINT)
            daemon.communicate(timeout=60)
    _expect("model speaks", answer)
    if daemon.returncode:
        raise Failed(f"scaler run: exit code {daemon.returncode} after Ctrl-C")


def _picture(here: Environment) -> None:
    here.run("scaler", "record", "--for", "6s", "--every", "1")
    picture = here.home / "replay.png"
    here.run("scaler", "replay", "--picture", str(picture))
    if not picture.stat().st_size:
        raise Failed("scaler replay --picture: an empty file")


USES: dict[frozenset[str], Callable[[Environment], None]] = {
    frozenset({"llama", "server"}): _answer,
    frozenset({"plots"}): _picture,
}
"""What a person does with these extras."""


def _expect(words: str, said: str) -> None:
    if words not in said:
        raise Failed(f"{words!r} is not in: {said[-300:]!r}")
