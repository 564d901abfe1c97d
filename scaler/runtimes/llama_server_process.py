"""One child process of the llama-server runtime: which program is started, with which arguments, how it comes to serve.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/server
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from scaler.absent import no_file
from scaler.errors import LevelUnavailable
from scaler.level_settings import LlamaServerLevel
from scaler.runtimes import tied
from scaler.runtimes.bounds import Bound
from scaler.runtimes.embedded_server import SPARE_THREADS
from scaler.runtimes.model_process import ModelProcess, check_descriptors, leave, private_socket, unstartable

LOOK_EVERY_S = 0.05
"""How often it is asked whether it serves."""

SETTLED = {"LLAMA_ARG_LOAD_MODE": "none", "LLAMA_ARG_NO_MMAP": "1", "LLAMA_ARG_CACHE_RAM": "0", "LLAMA_ARG_FIT": "0"}
"""What would change memory by itself, or not show, is switched off: mapping the file, the cache of prompts, fitting.

Not every version knows each of them. A variable that it does not know is ignored, where an argument would end it.
"""
FLASH_ATTENTION = {"LLAMA_ARG_FLASH_ATTN": "1"}
"""Values can only be read in a quantised form by flash attention. The argument has no value in older versions."""
OF_THE_PERSON = ("LLAMA_ARG_", "LLAMA_API_KEY")
"""Variables that begin like this are for the servers that a person starts: what a level takes is in its settings."""
SET_BY = {
    **dict.fromkeys(("-m", "--model"), "model"),
    **dict.fromkeys(("-c", "--ctx-size"), "context_tokens"),
    **dict.fromkeys(("-np", "--parallel"), "parallel"),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), "gpu_layers"),
    **dict.fromkeys(("-ctk", "-ctv", "--cache-type-k", "--cache-type-v"), "kv_cache"),
}
"""The setting of a level in place of an argument."""
NOT_OURS = {
    **dict.fromkeys(("--host", "--port", "--api-prefix"), "scaler would not find it"),
    **dict.fromkeys(("--api-key", "--api-key-file", "--ssl-key-file", "--ssl-cert-file"), "its socket is private"),
    **dict.fromkeys(("-lm", "--load-mode", "--mmap"), "pages of a mapped file do not show as used"),
    **dict.fromkeys(("--models-dir", "--models-preset"), "a level is one model"),
}
"""Arguments that a level cannot have, and why."""


class LlamaServerProcess(ModelProcess):
    """A llama-server that loads one level and serves it."""

    address: str
    """Where it listens."""

    @classmethod
    async def start(cls, settings: LlamaServerLevel, bound: Bound) -> LlamaServerProcess:
        """Spawn it; raises LevelUnavailable.

        It is tied to the life of the thread that this runs in, not only of the process: that is how PR_SET_PDEATHSIG
        works. Run it in a thread that lives for as long as the level should.
        """
        folder: str | None = None
        port: int | None = None
        tie: tuple[str, ...] = ()
        try:
            check_descriptors()
            if sys.platform == "win32":
                # It has no unix sockets that we could ask, and a program that cannot take the place of another.
                host, port = "127.0.0.1", _free_port()
            else:
                folder, host = private_socket(settings.name, "set TMPDIR to a shorter path")
                bounds = json.dumps({"parent": os.getpid(), **bound.told})
                tie = (sys.executable, "-I", tied.__file__, bounds)
            process = await asyncio.create_subprocess_exec(
                *tie,
                *command(settings, host, port),
                # Its end is how it learns that we are gone, where the kernel does not tell.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=environment(settings, os.environ),
                # Ctrl-C is for scaler, which lets running answers end; the terminal would send it to the child, too.
                start_new_session=True,
            )
        except BaseException as error:
            await bound.lift()
            if folder is not None:
                leave(folder)
            if isinstance(error, OSError):
                raise unstartable(settings.name, error) from error
            raise
        where = f"{settings.name}: {settings.model} with {settings.binary}"
        child = cls(where, process, program=str(settings.binary), bound=bound, folder=folder, port=port)
        child.address = f"unix://{host}" if port is None else f"http://{host}:{port}"
        return child

    async def serving(
        self, well: Callable[[], Awaitable[bool]], weights_bytes: int, progress: Callable[[float], None]
    ) -> None:
        """Wait until it is ``well``. Raises LevelUnavailable with the cause when it ends instead.

        ``progress`` is told how much of ``weights_bytes`` the process holds, 0..1.
        """

        async def loaded() -> None:
            while True:
                if await well():
                    return
                await asyncio.sleep(LOOK_EVERY_S)

        await self.until(loaded(), weights_bytes, progress)
        self.words.forget()


def command(settings: LlamaServerLevel, host: str, port: int | None) -> list[str]:
    """The program and its arguments, the person's last."""
    return [
        str(settings.binary),
        *("--model", str(settings.model.absolute())),
        *("--alias", settings.name),
        *("--host", host),
        *(() if port is None else ("--port", str(port))),
        *("--ctx-size", str(settings.context_tokens * settings.parallel)),
        *("--parallel", str(settings.parallel)),
        *("--threads", str(settings.threads or max(1, (os.cpu_count() or 2) // 2))),
        *("--threads-http", str(settings.parallel + SPARE_THREADS)),
        *("--cache-type-k", settings.kv_cache),
        *("--cache-type-v", settings.kv_cache),
        # A file with noise for weights loads and answers garbage otherwise.
        "--check-tensors",
        *_devices(settings),
        *settings.arguments,
    ]


def _devices(settings: LlamaServerLevel) -> tuple[str, ...]:
    layers = ("--n-gpu-layers", str(settings.gpu_layers))
    if not settings.gpu_layers:
        # Without layers, a build for GPUs would still compute long prompts there.
        return (*layers, "--device", "none")
    if {"-dev", "--device"} & set(settings.arguments):
        # The person has chosen, by the names that the build gives them.
        return layers
    if isinstance(settings.gpu, int):
        return (*layers, "--split-mode", "none", "--main-gpu", str(settings.gpu))
    shares = ",".join("1" if gpu in settings.gpu else "0" for gpu in range(max(settings.gpu) + 1))
    return (*layers, "--split-mode", "layer", "--tensor-split", shares)


def environment(settings: LlamaServerLevel, ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of the program, given ours."""
    kept = {name: value for name, value in ours.items() if not name.startswith(OF_THE_PERSON)}
    return {
        # libgomp's threads spin at barriers by default, which is a collapse as soon as anything else runs.
        "OMP_WAIT_POLICY": "passive",
        # CUDA counts GPUs by their speed by default, NVML, and with it ``gpu``, by their place on the bus.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **kept,
        **SETTLED,
        **({} if settings.kv_cache == "f16" else FLASH_ATTENTION),
    }


def check(settings: LlamaServerLevel) -> None:
    """Raise LevelUnavailable for a program or arguments that cannot be."""
    binary: Path = settings.binary
    if why := no_file(binary):
        raise LevelUnavailable(f"{settings.name}: {binary}: {why}; correct the level's binary")
    if not os.access(binary, os.X_OK):
        raise LevelUnavailable(f"{settings.name}: {binary}: not a program that may be run; try `chmod +x {binary}`")
    for argument in settings.arguments:
        # llama.cpp takes both.
        name = argument.replace("_", "-") if argument.startswith("--") else argument
        if name in SET_BY:
            raise LevelUnavailable(f"{settings.name}: arguments: leave {argument} out; set {SET_BY[name]} instead")
        if name in NOT_OURS:
            raise LevelUnavailable(f"{settings.name}: arguments: leave {argument} out; {NOT_OURS[name]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
