"""`scaler run`: watch the machine, keep the best level loaded, answer on an OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from scaler import __version__, extras, paths
from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import daemon
from scaler.cli.demo_models import making
from scaler.cli.progress import working
from scaler.cli.record import Recording
from scaler.errors import ConfigError, ScalerError
from scaler.events import (
    Advised,
    DecisionMade,
    ModelDied,
    PinChanged,
    Reconfigured,
    SwitchDone,
    SwitchFailed,
    UnloadFailed,
)
from scaler.journal import DAEMON, Writer
from scaler.monitor import SensorLost, SensorRecovered
from scaler.printable import OneLine, one_line
from scaler.proactive import Event
from scaler.serving.address import check_free, url_of
from scaler.settings import read_settings
from scaler.words import duration, gib, reconfigured, switched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scaler.manager import ModelManager
    from scaler.serving.app import Endpoint
    from scaler.settings import NoticesSettings, Settings

log = logging.getLogger(__name__)

UNSAID = ("opentelemetry.exporter", "opentelemetry.trace", "opentelemetry.util")
"""What is not logged of traces: that no receiver is there, which the library says again and again and scaler once; a
client's wrong ``tracestate``, with which anyone could fill the log; the headers for a receiver, which hold its key.
"""
LEAVES_GARBAGE = (SwitchDone, SwitchFailed, ModelDied)
"""With a model, its process, its connections and the answers that it broke off go, which refer to each other."""
ASK_S = 2.0
"""So long who has the port may take to say that it is a scaler."""
HINTS = (
    ("chat", "talk to it"),
    ("explain", "why this level, and what the larger ones lack"),
    ("advise", "what would make room for a larger level"),
    ("status", "how the machine stands"),
    *([("top", "the same live, with keys to pin a level")] if find_spec("textual") else []),
)
"""What to try next, and what it is for."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")
    parser.add_argument(
        "--host", metavar="ADDRESS", help="listen on this address; one that other machines reach needs a token"
    )
    parser.add_argument("--port", type=int, metavar="N", help="listen on this port; 0 takes a free one")


def _run(args: argparse.Namespace) -> int:
    with extras.importing("server", "llama"):
        from scaler.serving.app import Endpoint
    from scaler.manager import ModelManager
    from scaler.supervision import Supervisor
    from scaler.surroundings import Surroundings

    if args.port is not None and not 0 <= args.port <= 65535:
        raise ConfigError(f"--port: {args.port} cannot be used; expected a whole number from 0 to 65535")
    draft = read_settings(args.config)
    server = draft.settings.server
    host, port = args.host or server.host, server.port if args.port is None else args.port
    if not draft.faults:  # with which the manager refuses to start
        _check_port(draft.settings, host, port)
        _make_demo_models(draft.settings)
    _log_in_lines()
    signals = Signals()
    with ExitStack() as closing:
        surroundings = Surroundings(writer=Writer(DAEMON, os.getpid()))
        manager = closing.enter_context(ModelManager(args.config, remember=True, surroundings=surroundings))
        endpoint = Endpoint(manager, host, port)
        endpoint.start()
        recording = Recording(manager.settings.recording)
        closing.callback(recording.close)

        def take(event: Event) -> None:
            if isinstance(event, LEAVES_GARBAGE):
                gc.collect()
            if isinstance(event, Reconfigured):
                recording.change(manager.settings.recording)
            _say(event)

        manager.scaler.subscribe(take)
        tier = manager.detection
        ladder = "  →  ".join(
            f"{level.name} ({gib(taken) if (taken := sum(level.footprint.values())) else 'not here'})"
            for level in manager.scaler.ladder
        )
        _line(f"scaler {__version__}")
        _line(f"tier      {tier.tier.name}: {'; '.join(tier.reasons)}")
        _line(f"ladder    {ladder}")
        _line(f"climbs    once a larger level has fitted for {duration(manager.scaler.policy.dwell_s)}")
        _line(f"endpoint  {endpoint.url}/v1   (model: auto)")
        _line(f"page      {endpoint.url}/   (the level and why, live, in a browser)")
        for told in _admission(endpoint, host):
            _line(told)
        _line(f"journal   {manager.journal.path}")
        if endpoint.traces:
            _line("traces    to the receiver that OpenTelemetry's environment variables name")
        if places := _places(manager.settings.notices):
            _line(f"notices   {', '.join(places)}")
        if (known := manager.remembered) is not None:
            pinned = f"; pinned to {known.pinned}" if known.pinned is not None else ""
            _line(f"remembers {manager.settings.remembered.path}{pinned}")
        if manager.settings.recording.enabled:
            _line(f"recording {manager.settings.recording.path}")
        closing.callback(manager.scaler.monitor.subscribe(recording.take))
        _line("")
        _line("Try, in another terminal:")
        _line(f"  curl {endpoint.url}/v1/chat/completions -H 'Content-Type: application/json' \\")
        if endpoint.token is not None:
            _line('    -H "Authorization: Bearer $SCALER_TOKEN" \\')
        _line("""    -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'""")
        for command, what in HINTS:
            _line(f"  {_program()} {command:<7}{_where(endpoint.url)}  # {what}")
        _line("Ctrl-C stops it.")
        _line("")
        collect_seldom()
        manager.scaler.want(True)
        supervisor = Supervisor()
        supervisor.ready(manager)
        try:
            reload_as_asked(manager, signals.asks_to_reload)
        finally:
            supervisor.stopping()
            _line("stopping: running answers end, models are unloaded")
            endpoint.stop()
    return EXIT_OK


def reload_as_asked(manager: ModelManager, asks_to_reload: Callable[[], bool]) -> None:
    """Have the configuration read anew for as long as ``asks_to_reload`` returns whether to, and not to end."""
    while asks_to_reload():
        # Refused, or failed in a way that nobody foresaw, it was logged, and all goes on as before.
        with suppress(Exception):
            manager.reload_sync()


class Signals:
    """What the daemon was sent: to end, or by SIGHUP to read its configuration anew.

    SIGHUP is also what a terminal leaves behind that was closed: then the daemon ends as it always did, unless it was
    started to outlive that, as with nohup.

    The kernel may hand a signal to any thread, and that wakes only a lock's wait in that very thread: a daemon that
    waited so was deaf to SIGTERM once in a long while. What Python writes into a socket wakes whoever reads it.
    """

    def __init__(self) -> None:
        self._terminals: list[int] = []
        asked = [signal.SIGINT, signal.SIGTERM]
        if sys.platform != "win32":
            asked.append(signal.SIGHUP)
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
        self._asked = frozenset(asked)
        self._sent, self._told = socket.socketpair()
        self._told.setblocking(False)
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for number in asked:
            # What arrives is read as a byte, its number; only that it does not end the process is left to see to.
            signal.signal(number, lambda *_: None)

    def asks_to_reload(self) -> bool:
        """Wait for the next signal; whether it asks to reload, and not to end."""
        while (sent := self._sent.recv(1)[0]) not in self._asked:
            pass
        if sent in (signal.SIGINT, signal.SIGTERM):
            return False
        gone = [number for number in self._terminals if not os.isatty(number)]
        for number in gone:
            # What is still said goes nowhere, instead of failing.
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        return not gone


def _log_in_lines() -> None:
    """Warnings go to stderr, a line each whatever a request put into them."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: not record.name.startswith(UNSAID))
    handler.setFormatter(OneLine())
    logging.getLogger().addHandler(handler)


def collect_seldom() -> None:
    """Have Python look for circular garbage less often, and never in what a daemon makes at its start and keeps.

    Answers leave none behind. With what Python does by itself, looking took a tenth of an answer's processor time.
    What does leave some is looked after when it happens, LEAVES_GARBAGE.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


def _check_port(settings: Settings, host: str, port: int) -> None:
    """Raises ScalerError where another has it: before anything begins, which would only say what follows from that."""
    try:
        check_free(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return  # told by the endpoint, which cannot listen either
        url = url_of(host, port, encrypted=settings.server.tls is not None)
        other = "choose another port: --port, or server.port in the configuration"
        if _answers(url, settings):
            status = f"`{_program()} status{_where(url)}`"
            raise ScalerError(f"a scaler runs at {url} already: {status} tells how it stands. Or {other}") from error
        from scaler.runtimes.listeners import occupant

        raise ScalerError(f"{host}:{port} is taken by {occupant(port)}; end that program, or {other}") from error


def _answers(url: str, settings: Settings) -> bool:
    """Whether a scaler answers there that lets us in."""
    try:
        daemon(argparse.Namespace(url=url, config=Path(settings.file))).status(timeout_s=ASK_S)
    except ScalerError:
        return False
    return True


def _make_demo_models(settings: Settings) -> None:
    """Those that the configuration has and that are not there yet: a newcomer needs no other command first."""
    from scaler.demo.models import absent_demo_models, make_demo_models

    folder = paths.demo_models()
    files = [file for _, model in settings.models() for _, file in model if isinstance(file, Path)]
    wanted = {file.stem for file in files if file.parent == folder}
    if absent := [name for name in absent_demo_models(folder) if name in wanted]:
        _line(f"making the demo models ({', '.join(absent)}) in {folder}, this once")
        _line(f"for a ladder of your own models: {_program()} init")
        with working("making the demo models"):
            make_demo_models(folder, making, absent)


def _admission(endpoint: Endpoint, host: str) -> Iterator[str]:
    """Who may come in, where that is not simply this machine."""
    from scaler.serving.door import is_loopback

    if endpoint.token is not None:
        yield f"token     every request brings the one of {endpoint.token.source}"
    if not is_loopback(host) and not endpoint.encrypts:
        yield "warning   other machines reach this, and nothing is encrypted: set server.tls, or have a proxy do it"


def _places(notices: NoticesSettings) -> list[str]:
    """Where notices go beside this terminal; of a webhook the host only, for the rest is often a secret."""
    webhook = notices.webhook
    return [*(["desktop"] if notices.desktop else []), *([f"webhook {webhook.host}"] if webhook is not None else [])]


def _program() -> str:
    """How a person in the same folder calls this command line: it is not on the PATH of a plain checkout."""
    called = Path(sys.argv[0])
    if called.stem != "scaler":
        return "python -m scaler"
    return "scaler" if shutil.which("scaler") else str(called)


def _where(url: str) -> str:
    """The option that other commands need in order to find this daemon; nothing where they look for it anyway."""
    try:
        found = daemon(argparse.Namespace(url=None, config=None), warns=False)
    except ConfigError:
        found = None
    plain = found is not None and found.misread is None and found.url == url
    return "" if plain else f" --url {url}"


def _line(text: str) -> None:
    """One line, whoever's words are in it; lost where the standard output does not take it, for the daemon goes on."""
    try:
        print(one_line(text), flush=True)
    except OSError as error:
        _warn_once(error.strerror or str(error))


@cache
def _warn_once(why: str) -> None:
    log.warning("the standard output does not take what is said (%s); `scaler history` has what happens", why)


def _say(event: Event) -> None:
    """One line on the terminal for what a person may want to see go by."""
    text = None
    if isinstance(event, DecisionMade):
        decision = event.switch.decision
        text = f"{switched(decision.source, decision.dest)}: {decision.reason}"
    elif isinstance(event, Advised):
        text = event.suggestions[0].text if event.suggestions else None
    elif isinstance(event, SwitchDone):
        loading = "" if event.load_s is None else f", {event.load_s:.2f} s of it loading"
        text = f"{event.level} serves now" if event.level != "off" else "nothing is loaded now"
        text += f" ({event.took_s:.2f} s{loading})"
    elif isinstance(event, SwitchFailed):
        text = f"{event.level} could not be loaded, {event.still_serving} serves: {event.reason}"
    elif isinstance(event, UnloadFailed):
        text = f"{event.level} will not unload and keeps its memory: {event.reason}"
    elif isinstance(event, ModelDied):
        text = f"{event.level} died: {event.reason}"
    elif isinstance(event, Reconfigured):
        text = f"configuration read anew: {reconfigured(map(asdict, event.changes), event.restart)}"
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
