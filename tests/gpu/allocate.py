"""Takes memory of the first GPU that CUDA sees: for each line so many bytes more, then says "ready".

It holds them until its input ends. By the driver's own library, which every machine with an NVIDIA GPU has, so that
nothing need be installed. Source: https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
import sys


def main() -> None:
    """Allocate as many bytes as each line says, and write to all of them."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            sys.exit(f"{name}: CUDA's error {code}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    for line in sys.stdin:
        size, memory = ctypes.c_size_t(int(line)), ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(memory), size)
        call("cuMemsetD8_v2", memory, ctypes.c_ubyte(1), size)
        call("cuCtxSynchronize")
        print("ready", flush=True)


if __name__ == "__main__":
    main()
