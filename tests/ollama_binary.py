"""The real Ollama that tests start: the one that $OLLAMA names. No package index has it, so there may be none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ollama
import psutil
import pytest

from tests.llama_server_binary import free_port
from tests.processes import gone

NAMED = os.environ.get("OLLAMA")
needs_ollama = pytest.mark.skipif(NAMED is None, reason="no Ollama: name the program in OLLAMA")


@contextmanager
def ollama_serves(folder: Path, models: Mapping[str, Path]) -> Iterator[tuple[str, ollama.Client]]:
    """Its address, and somebody who asks it; it has ``models``, and nothing of it is left afterwards."""
    assert NAMED is not None
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{free_port()}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA", "LLAMA_"))}
    environment |= {
        "HOME": str(folder),
        "OLLAMA_HOST": url,
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_MAX_LOADED_MODELS": "3",
        # As docs/ollama.md advises.
        "LLAMA_ARG_CACHE_RAM": "0",
    }
    with (folder / "ollama.log").open("wb") as log:
        process = psutil.Popen([NAMED, "serve"], stdin=log, stdout=log, stderr=log, env=environment)
        try:
            with ollama.Client(url) as client:
                _answers(client, Path(log.name))
                for name, file in models.items():
                    client.create(name, files={file.name: client.create_blob(file)})
                yield url, client
        finally:
            children = process.children(recursive=True) if process.is_running() else []
            for one in (process, *children):
                one.kill()
            process.wait(10)
            assert gone(children)


def _answers(client: ollama.Client, log: Path) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            client.list()
            return
        except ConnectionError:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
