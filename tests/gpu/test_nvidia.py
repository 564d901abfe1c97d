"""What is read of a real NVIDIA GPU: `make test-gpu`. Skipped where there is none; nothing else need be installed."""

from __future__ import annotations

import os
import statistics
import time

from tests.gpu.conftest import LARGE, MIB, SMALL, Device, holder, look, own_bytes, sensor

MOST_WRONG = 0.05
BACK_WITHIN_S = 1.0
MONITOR_WAITS_S = 2.0
"""The monitor's own limit, after which a reading goes on without the GPUs."""


def wrong_by(found: int) -> float:
    """How far what was found more with a large allocation than with a small one is from the truth, of the large one."""
    return abs(found - (LARGE - SMALL)) / LARGE


def test_a_reading_is_quick(device: Device) -> None:
    """With a process of ours to be looked for; the monitor asks once a second."""
    reader, times = sensor(os.getpid()), []
    count = len(reader.read() or ())
    for _ in range(200):
        began = time.perf_counter()
        reader.read()
        times.append(time.perf_counter() - began)
    print(
        f"\n{device.name}: a reading of all GPUs, {count} here, takes {1000 * statistics.median(times):.2f} ms,"
        f" at most {1000 * max(times):.2f} ms of 200"
    )
    assert max(times) < MONITOR_WAITS_S


def test_what_our_process_holds_is_own(device: Device) -> None:
    """Less what CUDA takes for itself, which is measured with a small allocation."""
    with holder(device, SMALL) as held:
        overhead = own_bytes(device, held)
    with holder(device, LARGE) as held:
        own = own_bytes(device, held)
    error = wrong_by(own - overhead)
    print(
        f"\n{device.name}: {(LARGE - SMALL) // MIB} MiB of our process are read as {(own - overhead) / MIB:.1f} MiB own"
        f" beside {overhead / MIB:.1f} MiB for CUDA itself, wrong by {error:.2%}"
    )
    assert error <= MOST_WRONG


def test_what_another_process_holds_is_other(device: Device) -> None:
    """Nothing of it is own; on a GPU that others use meanwhile this may be off."""
    used = {}
    for size in (SMALL, LARGE):
        with holder(device, size):
            gpu = look(device)
            assert gpu.own_bytes == 0
            used[size] = gpu.used_bytes
    error = wrong_by(used[LARGE] - used[SMALL])
    print(
        f"\n{device.name}: {(LARGE - SMALL) // MIB} MiB of another process are read as"
        f" {(used[LARGE] - used[SMALL]) / MIB:.1f} MiB other, wrong by {error:.2%}"
    )
    assert error <= MOST_WRONG


def test_memory_is_back_soon_after_its_process_has_ended(device: Device) -> None:
    """Else a switch that waits for the room would wait for nothing."""
    before = look(device).used_bytes
    with holder(device, LARGE) as held:
        assert look(device).used_bytes >= before + LARGE // 2
    ended = time.monotonic()
    while (gpu := look(device, [held.pid])).used_bytes > before + LARGE // 20 or gpu.own_bytes:
        assert time.monotonic() < ended + BACK_WITHIN_S, f"{(gpu.used_bytes - before) / MIB:.1f} MiB are not back"
    print(f"\n{device.name}: {LARGE // MIB} MiB are back {1000 * (time.monotonic() - ended):.0f} ms after the end")
