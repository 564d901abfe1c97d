"""What a person is told about a process that ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.runtimes.last_words import LINE_BYTES, LINES, LastWords


@given(st.lists(st.binary(max_size=30) | st.just(b"x" * 3000) | st.just(b"one\ntwo\n"), max_size=60))
def test_the_last_lines_are_the_same_however_the_stream_is_cut(pieces: list[bytes]) -> None:
    """A pipe cuts where it likes, also within a character."""
    words = LastWords()
    for piece in pieces:
        words.feed(piece)
    *whole, begun = b"".join(pieces).split(b"\n")
    lines = [*whole[-LINES:], begun] if begun else whole
    assert words.lines() == [line[:LINE_BYTES].decode(errors="replace").rstrip() for line in lines[-LINES:]]


@given(st.lists(st.integers(1, 400_000), max_size=8))
def test_what_is_kept_is_bounded(sizes: list[int]) -> None:
    """A line without an end must not become our memory."""
    words = LastWords()
    for size in sizes:
        words.feed(b"y" * size)
    assert sum(len(line) for line in words.lines()) <= LINE_BYTES


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        (b"", -9, "it was killed, most likely for want of memory"),
        (b"", -15, "somebody ended it with SIGTERM"),
        (b"", -4, "this processor lacks instructions"),
        (b"ggml.c:12: GGML_ASSERT(x > 0) failed\n", -6, "it crashed (SIGABRT): ggml.c:12: GGML_ASSERT(x > 0) failed"),
        (b"", 3, "it ended with status 3 and said nothing"),
        (b"0.1 I srv: hello\n0.2 E srv: the cause\n0.3 E srv: what follows\n", 1, "it ended with status 1: 0.2 E srv"),
        (
            b"0.1 E x: tensor 'a' data is not within the file bounds\n0.2 E failed to load model\n",
            1,
            "tensor data ends",
        ),
        (
            b"Traceback\nImportError: libgomp.so.1: cannot open shared object file: No such file or directory\n",
            1,
            "xllamacpp takes the library libgomp.so.1, which is not here; install it: apt-get install libgomp1, or dnf",
        ),
        (
            b"ImportError: libstdc++.so.6: cannot open shared object file: No such file or directory\n",
            1,
            "xllamacpp takes a library that is not here (libstdc++.so.6: cannot open shared object file: No such file",
        ),
        (b"0.1 E ggml: unable to allocate CPU buffer\n", 1, "not enough memory (unable to allocate CPU buffer)"),
    ],
)
def test_the_cause_is_told_in_words_that_help(said: bytes, status: int, expected: str) -> None:
    """The first error is the cause; the others only follow from it."""
    words = LastWords()
    words.feed(said)
    assert words.cause(status, None).startswith(expected)


def test_what_was_said_while_loading_is_no_cause_of_a_later_death() -> None:
    """A retried allocation is not why the kernel killed it an hour later."""
    words = LastWords()
    words.feed(b"W ggml: unable to allocate huge pages\n")
    words.forget()
    assert words.cause(-9, None).startswith("it was killed")


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        (b"", -4, "this processor lacks instructions (SIGILL) that /opt/llama-server was built with"),
        (b"0.1 E srv start: couldn't bind HTTP server socket, hostname: /x.sock\n", 1, "it cannot listen on a unix"),
        (
            b"error: invalid argument: --foo\n\n",
            1,
            "it does not know an argument (invalid argument: --foo); correct it",
        ),
        (
            b"0.1 E llama_model_load_from_file_impl: no backends are loaded. hint: use ggml_backend_load()\n"
            b"0.2 E cmn common_init_: failed to load model '/models/x.gguf'\n",
            1,
            "/opt/llama-server finds no backend, a library such as libggml-cpu.so that computes; leave it where it was",
        ),
        (b"0.1 E x: unknown model architecture: 'new'\n", 1, "llama.cpp does not know this kind of model ("),
    ],
)
def test_a_program_of_the_persons_own_is_what_they_update(said: bytes, status: int, expected: str) -> None:
    """Its path is told, where scaler's own llama.cpp would be."""
    words = LastWords("/opt/llama-server")
    words.feed(said)
    cause = words.cause(status, None)
    assert cause.startswith(expected)
    assert "/opt/llama-server" in cause
