"""What a llama.cpp process said before it ended, and what that means for a person.

Owns the bounded tail of its stderr and the table of causes. Knows nothing of processes, files or HTTP.
"""

from __future__ import annotations

import signal
from collections import deque

LINES = 40
"""How many lines are kept: a failed load says its cause within the last ten."""
LINE_BYTES = 4096
"""How much of each line is kept. llama.cpp quotes what it cannot parse, and that may be a whole conversation."""

ADVICE = (
    ("data is not within the file bounds", "tensor data ends early (file truncated?); download it again"),
    ("found nan value", "the weights are corrupt ({words}); download it again"),
    ("found inf value", "the weights are corrupt ({words}); download it again"),
    ("invalid data", "the weights are corrupt ({words}); download it again"),
    ("invalid magic characters", "not a GGUF file ({words}); download it again"),
    ("failed to read magic", "not a GGUF file, or an empty one ({words}); download it again"),
    ("failed to read header", "the file's header is cut off or corrupt ({words}); download it again"),
    ("failed to read key-value pairs", "the file's header is cut off or corrupt ({words}); download it again"),
    ("failed to read tensor info", "the file's header is cut off or corrupt ({words}); download it again"),
    ("tensor read error", "tensor data cannot be read ({words}); download it again"),
    ("unknown model architecture", "llama.cpp does not know this kind of model ({words}); update {program}"),
    ("couldn't bind", "{bound}"),
    ("error: invalid argument:", "it does not know an argument ({words}); correct it, or update {program}"),
    ("error while handling argument", "{line}; correct the argument, or update {program}"),
    (
        "libgomp.so.1: cannot open",
        "{program} takes the library libgomp.so.1, which is not here; install it: apt-get install libgomp1, or "
        "dnf install libgomp",
    ),
    ("error while loading shared libraries", "{words}; install it, or name its folder in LD_LIBRARY_PATH"),
    ("cannot open shared object file", "{program} takes a library that is not here ({words}); install it"),
    ("Resource temporarily unavailable", "not enough memory, or too many processes ({words})"),
    ("unable to allocate", "not enough memory ({words}); choose a smaller model or a shorter context"),
    ("failed to allocate", "not enough memory ({words}); choose a smaller model or a shorter context"),
    (
        "no backends are loaded",
        "{program} finds no backend, a library such as libggml-cpu.so that computes; leave it where it was installed, "
        "or install it anew",
    ),
    ("failed to load model", "llama.cpp cannot load it ({words}); is it a whole GGUF file?"),
)
"""What llama.cpp says and what to make of it, the most telling first."""


class LastWords:
    """The end of what a process said, however much it says and however long its lines are."""

    def __init__(self, program: str = "xllamacpp") -> None:
        """``program``: what a person would update."""
        self._program = program
        self._whole: deque[bytes] = deque(maxlen=LINES)
        self._open = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece, cut anywhere."""
        first, *others = data.split(b"\n")
        self._open += first[: LINE_BYTES - len(self._open)]
        for line in others:
            self._whole.append(self._open)
            self._open = line[:LINE_BYTES]

    def forget(self) -> None:
        """Drop what was said so far: it belongs to something that is over."""
        self._whole.clear()

    def lines(self) -> list[str]:
        """The last lines, oldest first; the one that was begun is among them."""
        lines = [*self._whole, self._open] if self._open else list(self._whole)
        return [line.decode(errors="replace").rstrip() for line in lines[-LINES:]]

    def cause(self, status: int | None, port: int | None) -> str:
        """Why the process ended with ``status`` (negative: the signal), and what to do about it."""
        lines = self.lines()
        for mark, advice in ADVICE:
            for line in lines:
                if mark in line:
                    words = line.split(": ", 1)[-1].strip()
                    bound = f"port {port} is in use; choose another or leave it out"
                    if port is None:
                        bound = f"it cannot listen on a unix socket ({words}); update {self._program}"
                    return advice.format(words=words, line=line.strip(), bound=bound, program=self._program)
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            if name in ("SIGTERM", "SIGINT", "SIGHUP"):
                return f"somebody ended it with {name}"
            if name == "SIGKILL":
                return "it was killed, most likely for want of memory; choose a smaller model or a shorter context"
            if name == "SIGILL":
                lacks = f"this processor lacks instructions (SIGILL) that {self._program} was built with"
                return f"{lacks}; build it from source"
            return f"it crashed ({name}){_quoted(lines)}"
        # An error is marked with an E by llama.cpp; the first one is the cause, the others follow from it.
        errors = [line for line in lines if " E " in line]
        return f"it ended with status {status}{_quoted(errors[:1] or lines)}"


def _quoted(lines: list[str]) -> str:
    return f": {lines[-1]}" if lines else " and said nothing"
