"""Real memory pressure from a process of its own, for the demonstration and for tests.

Run as ``python -m scaler.demo.hog LIMIT_BYTES``: each line on stdin is a target in bytes, each is answered
on stdout once it is held, and nothing above LIMIT_BYTES is ever taken. It ends when stdin does, so it cannot
outlive whoever started it.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from types import TracebackType
from typing import Self

CHUNK = 16 * 1024**2


class Hog:
    """A child process that holds as much memory as it is told to, up to ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scaler.demo.hog", str(limit_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hold(self, target_bytes: int) -> int:
        """Hold ``target_bytes``, or the limit if that is less; returns what is held, once it is."""
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        self._process.stdin.write(f"{target_bytes}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Give everything back; returns when the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _serve(limit_bytes: int) -> None:
    chunks: list[mmap.mmap] = []
    for line in sys.stdin:
        count = min(int(line), limit_bytes) // CHUNK
        while len(chunks) > count:
            chunks.pop().close()
        while len(chunks) < count:
            chunk = mmap.mmap(-1, CHUNK)
            # A page counts as used only once it was written to.
            for offset in range(0, CHUNK, mmap.PAGESIZE):
                chunk[offset] = 1
            chunks.append(chunk)
        print(len(chunks) * CHUNK, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
