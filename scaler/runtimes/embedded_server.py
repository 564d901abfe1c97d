"""The child process of one embedded level: a llama.cpp server, and nothing else.

Run as ``python -m scaler.runtimes.embedded_server``. Its one line on stdin is a JSON object of what to load; its one
line on stdout says where it listens. It has no signal handler: the default action of SIGTERM ends it at any moment,
where a handler in Python was seen to lose a signal that came just before a wait (13 of 60), and closing the server in
an orderly way hangs while a request is in flight.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from scaler.runtimes.tied import die_with_parent, give_way

SPARE_THREADS = 4
"""Threads for HTTP beyond one for each slot: for /health and /tokenize while every slot is busy."""
LOG_S = 0.3
"""For so long a process that failed gives llama.cpp's log to be written."""


def main() -> None:
    """Load, say where, and serve until killed."""
    wanted: dict[str, Any] = json.loads(sys.stdin.readline())
    _end_with_parent(wanted["parent"])
    give_way(**wanted["bounds"])
    # Python's own handler would turn it into the orderly end that hangs.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Nobody reads stdout after our line, and a full pipe blocks: whatever native code prints there goes to stderr.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # libgomp's threads spin at barriers by default, which is a collapse as soon as anything else runs: 8 requests took
    # 2 s to 33 s from round to round, and a steady 3 s with this. It is read when the library is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    try:
        server = xllamacpp.Server(parameters(xllamacpp, wanted))
    except RuntimeError:
        # llama.cpp writes what it says from a thread of its own: why it failed would be lost with it if we ended now.
        time.sleep(LOG_S)
        raise
    with answer:
        print(json.dumps({"listening": server.listening_address}), file=answer)
    threading.Event().wait()


def _end_with_parent(parent: int) -> None:
    """As the kernel can have it; where it cannot, a thread waits for the end of stdin instead."""
    if sys.platform == "linux":
        die_with_parent(parent)
        return

    def wait_for_the_end() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()


def parameters(xllamacpp: Any, wanted: dict[str, Any]) -> Any:
    """The server's parameters; whatever would change memory by itself is switched off."""
    params = xllamacpp.CommonParams()
    params.model.path = wanted["model"]
    params.model_alias = {wanted["name"]}
    params.hostnames = [wanted["host"]]
    params.port = wanted["port"]
    params.n_parallel = wanted["parallel"]
    params.n_threads_http = wanted["parallel"] + SPARE_THREADS
    params.n_ctx = wanted["context_tokens"] * wanted["parallel"]
    if wanted["kv_cache"] != "f16":
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type[f"GGML_TYPE_{wanted['kv_cache'].upper()}"].value
        # Values can only be read in a quantised form by flash attention; left to itself, llama.cpp may go without.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted["threads"]
    params.n_gpu_layers = wanted["gpu_layers"]
    params.main_gpu = wanted["gpu"]
    modes = xllamacpp.llama_load_mode
    # Mapped pages do not show as used, and evicting them ruins speed: read the file unless it was asked for.
    params.load_mode = modes.LLAMA_LOAD_MODE_MMAP if wanted["mmap"] else modes.LLAMA_LOAD_MODE_NONE
    # A file with noise for weights loads and answers garbage otherwise.
    params.check_tensors = wanted["check_tensors"]
    params.endpoint_slots = params.endpoint_metrics = True
    params.cache_ram_mib = 0
    params.fit_params = False
    if (pooling := wanted["pooling"]) is not None:
        params.embedding = True
        # A text is computed in one go: one that is longer than a batch is refused.
        params.n_batch = params.n_ubatch = wanted["context_tokens"]
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    return params


if __name__ == "__main__":
    main()
