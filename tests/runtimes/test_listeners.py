"""Which process listens on a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from scaler.runtimes.listeners import listener

CHILD = """
import os, socket, sys
one = socket.socket(fileno=int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_process_that_listens_is_found() -> None:
    """This one does, until it does not."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert listener(port) == os.getpid()
        assert listener(port, "localhost") == os.getpid()
        assert listener(port, "127.0.0.1") == os.getpid()
        # Somebody else's server at another address of the same port is not it.
        assert listener(port, "127.0.0.9") is None
    assert listener(port) is None


def test_of_several_that_share_a_socket_it_is_the_one_they_came_of() -> None:
    """A server's workers inherit the socket; what they hold is below the server's process, and more besides."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.set_inheritable(True)
        program = [sys.executable, "-c", CHILD, str(one.fileno())]
        with subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(one.fileno(),)
        ) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
            assert listener(one.getsockname()[1]) == os.getpid()


def test_one_that_listens_everywhere_is_found_by_any_address() -> None:
    """As servers in a container's image do."""
    with socket.create_server(("0.0.0.0", 0)) as one:
        assert listener(one.getsockname()[1], "127.0.0.1") == os.getpid()
