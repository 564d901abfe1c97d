"""`scaler run`: watch the machine, keep the best level loaded, answer on an OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from pathlib import Path

from scaler import __version__
from scaler.cli import EXIT_OK, Command
from scaler.cli.words import gib
from scaler.errors import MissingExtra
from scaler.events import DecisionMade, ModelDied, PinChanged, SwitchDone, SwitchFailed
from scaler.monitor import SensorLost, SensorRecovered
from scaler.proactive import Event


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")
    parser.add_argument("--host", help="listen on this loopback address")
    parser.add_argument("--port", type=int, help="listen on this port; 0 takes a free one")


def _run(args: argparse.Namespace) -> int:
    try:
        from scaler.serving.app import Endpoint
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{error.name} is not installed; install it with: pip install 'capability-scaler[server,llama]'"
        ) from error
    from scaler.manager import ModelManager

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ModelManager(args.config) as manager:
        server = manager.settings.server
        port = server.port if args.port is None else args.port
        endpoint = Endpoint(manager, args.host or server.host, port)
        endpoint.start()
        manager.scaler.subscribe(_say)
        tier = manager.detection
        ladder = "  →  ".join(f"{level.name} ({gib(sum(level.footprint.values()))})" for level in manager.scaler.ladder)
        _line(f"scaler {__version__}")
        _line(f"tier      {tier.tier.name}: {tier.reasons[0]}")
        _line(f"ladder    {ladder}")
        _line(f"endpoint  {endpoint.url}/v1   (model: auto)")
        _line(f"journal   {manager.journal.path}")
        _line("")
        _line("Try, in another terminal:")
        _line(f"  curl {endpoint.url}/v1/chat/completions -H 'Content-Type: application/json' \\")
        _line("""    -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'""")
        _line("  scaler chat     scaler explain     scaler status")
        _line("Ctrl-C stops it.")
        _line("")
        manager.scaler.want(True)
        try:
            while not stop.wait(3600):
                pass
        finally:
            _line("stopping: running answers end, models are unloaded")
            endpoint.stop()
    return EXIT_OK


def _line(text: str) -> None:
    print(text, flush=True)


def _say(event: Event) -> None:
    """One line on the terminal for what a person may want to see go by."""
    text = None
    if isinstance(event, DecisionMade):
        decision = event.switch.decision
        text = f"{decision.source} → {decision.dest}: {decision.reason}"
    elif isinstance(event, SwitchDone):
        loading = "" if event.load_s is None else f", {event.load_s:.2f} s of it loading"
        text = f"{event.level} serves now" if event.level != "off" else "nothing is loaded now"
        text += f" ({event.took_s:.2f} s{loading})"
    elif isinstance(event, SwitchFailed):
        text = f"{event.level} could not be loaded, {event.still_serving} serves: {event.reason}"
    elif isinstance(event, ModelDied):
        text = f"{event.level} died: {event.reason}"
    elif isinstance(event, PinChanged):
        text = "unpinned" if event.level is None else f"pinned to {event.level}"
    elif isinstance(event, SensorLost):
        text = f"sensor {event.sensor} is missing: {event.reason}; tried again in {event.retry_in_s:g} s"
    elif isinstance(event, SensorRecovered):
        text = f"sensor {event.sensor} is back"
    if text is not None:
        _line(f"{time.strftime('%H:%M:%S')}  {text}")


COMMAND = Command(
    "run",
    "watch this machine, keep the best level loaded, and answer on an OpenAI-compatible endpoint",
    _add_arguments,
    _run,
)
