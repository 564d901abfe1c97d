"""What the daemon is sent reaches it, whichever of its threads the kernel hands it to."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASKED = """
import signal, sys, threading
from scaler.cli.run import Signals

signals = Signals()
for name in sys.argv[1:]:
    # Only once it waits, or the signal would be seen on the way there.
    def send(number=getattr(signal, name)):
        while sys._current_frames()[threading.main_thread().ident].f_code.co_name != "asks_to_reload":
            pass
        signal.pthread_kill(threading.get_ident(), number)
    thread = threading.Thread(target=send)
    thread.start()
    print(name, signals.asks_to_reload(), flush=True)
    thread.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX has signals of threads")
def test_a_signal_that_another_thread_was_handed_is_seen() -> None:
    """It was lost, so that SIGTERM did not end the daemon, when a model's process ended at the same moment."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED, "SIGHUP", "SIGHUP", "SIGTERM", "SIGINT"],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("SIGHUP True\nSIGHUP True\nSIGTERM False\nSIGINT False\n", "")
