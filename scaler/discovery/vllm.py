"""vLLM, by what it says of itself. Nothing is woken up for it.

Source: https://docs.vllm.ai/en/latest/features/sleep_mode/
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, TypeAdapter

from scaler.discovery.asking import Asking
from scaler.discovery.found import LeftOut, Source, printable
from scaler.discovery.openai import Listed, routed
from scaler.errors import SensorFailed
from scaler.levels import gpu_resource
from scaler.runtimes.listeners import listener
from scaler.sensors.gpu import GpuSensor, held_by_processes
from scaler.sensors.processes import process_tree
from scaler.sensors.watch import within

RUNTIME = "vllm"
CANNOT_SLEEP = (
    "it was started without VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode, so that it cannot be put to sleep: "
    "scaler can only send requests there"
)
SHARE = re.compile(r"--gpu[-_]memory[-_]utilization[= ](0?\.\d+|1(?:\.0*)?)(?= |$)")
DEFAULT_SHARE = 0.92
"""What vLLM takes of a GPU unless told otherwise; 0.9 in older versions. Source: vllm/config/cache.py."""
GPUS_S = 2.0
"""So long a driver may take to tell of its GPUs: one that hangs is as good as none."""
UNSEEN = (
    "how much GPU memory it takes cannot be seen from here, as of one in a container; write its level by hand, with "
    "vram_gib"
)


class _Version(BaseModel):
    version: str


class _Sleeping(BaseModel):
    is_sleeping: bool


_VERSION, _SLEEPING = TypeAdapter(_Version), TypeAdapter(_Sleeping)


async def look(asking: Asking, models: Sequence[Listed] | None) -> Source | None:
    """The place as vLLM; None where it is none."""
    if not models or all(model.owned_by != RUNTIME for model in models):
        return None
    version = await asking.get("/version", _VERSION)
    if version is None:
        return None
    what = f"vLLM {printable(version.version, 20)}"
    sleeping = await asking.get("/is_sleeping", _SLEEPING)
    place = asking.place
    if not place.near:
        return routed(place, what, models, "on another machine: scaler can only send requests there")
    if sleeping is None:
        return routed(place, what, models, CANNOT_SLEEP)
    # One server, one model, under as many names as it was given, or with adapters on top.
    source = routed(place, what, models[:1], "")
    held = await asyncio.to_thread(_held, place.port, asleep=sleeping.is_sleeping)
    if not held:
        return replace(source, models=(), left_out=tuple(LeftOut(one.name, UNSEEN) for one in source.models))
    on, taken = tuple(sorted(held)), max(held.values())
    here = tuple(replace(one, runtime=RUNTIME, url=place.root, serving_bytes=taken, gpus=on) for one in source.models)
    return replace(source, models=here)


def _held(port: int, *, asleep: bool) -> dict[int, int]:
    """The bytes of each GPU that the server on this port takes when awake, by the GPU's number; empty if unknown."""
    pid = listener(port)
    if pid is None:
        return {}
    tree = process_tree(lambda: (pid,)).pids()
    try:
        every = within(GPUS_S, held_by_processes)
        gpus = within(GPUS_S, GpuSensor(process_tree(lambda: ())).read) or ()
    except (SensorFailed, TimeoutError):
        return {}
    sums = {resource: sum(size for one, size in held.items() if one in tree) for resource, held in every.items()}
    # One that sleeps keeps a little, which tells where it is.
    share = _share(pid) if asleep else None
    return {
        gpu.index: sums[gpu_resource(gpu.index)] if share is None else int(share * gpu.total_bytes)
        for gpu in gpus
        if sums.get(gpu_resource(gpu.index))
    }


def _share(pid: int) -> float:
    """The part of a GPU that a server was told to take."""
    import psutil

    try:
        told = SHARE.search(" ".join(psutil.Process(pid).cmdline()))
    except psutil.Error:
        told = None
    return float(told[1]) if told else DEFAULT_SHARE
