"""Takes memory of the first GPU that CUDA sees: for each line so many bytes more, then says "ready", or why it cannot.

It holds them until its input ends. By the driver's own library, which every machine with an NVIDIA GPU has, so that
nothing need be installed. Source: https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
import sys
from typing import NoReturn


def main() -> None:
    """Allocate as many bytes as each line says, and write to all of them."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        # A container may have been given the driver's other libraries only.
        refuse(str(error))

    def call(name: str, *arguments: object) -> None:
        if code := getattr(cuda, name)(*arguments):
            told = ctypes.c_char_p()
            cuda.cuGetErrorName(code, ctypes.byref(told))
            refuse(f"{name}: {(told.value or b'an unknown error').decode()} ({code})")

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


def refuse(why: str) -> NoReturn:
    """Say why it cannot, and end."""
    print(why, flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
