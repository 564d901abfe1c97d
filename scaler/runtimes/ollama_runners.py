"""Which processes hold Ollama's models.

Since 0.30 each is a ``llama-server`` of Ollama's own, before that an ``ollama runner``, as MLX's is. Knows nothing
of which model is whose.

Source: https://github.com/ollama/ollama, llm/llama_server.go and x/mlxrunner/client.go; llm/server.go before 0.30.
"""

from __future__ import annotations

from pathlib import PurePath

import psutil

SERVERS = ("llama-server", "ollama_llama_server")
"""What the processes are called, now and once."""


def runners() -> frozenset[int]:
    """The processes on this machine that hold a model of Ollama's, anybody's."""
    return frozenset(one.pid for one in psutil.process_iter(["cmdline"]) if _is_runner(one.info["cmdline"] or []))


def _is_runner(command: list[str]) -> bool:
    if len(command) < 2:
        return False
    program, first = PurePath(command[0]).stem, command[1]
    # People run a llama-server of their own as well; only Ollama's opens a file of Ollama's store.
    of_store = any("blobs" in argument and "sha256-" in argument for argument in command[1:])
    return (program == "ollama" and first == "runner") or (program in SERVERS and of_store)
