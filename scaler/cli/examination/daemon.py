"""The daemon and its port: whether it runs, which one it is, and who has the port if it does not."""

from __future__ import annotations

import argparse
import errno
import urllib.error
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler import __version__
from scaler.cli.examination import Finding, Patient, note, ok, problem
from scaler.errors import ConfigError, DaemonUnreachable, ScalerError
from scaler.runtimes.listeners import occupant
from scaler.serving.address import check_free

if TYPE_CHECKING:
    from scaler.settings import Settings

ASK_S = 5.0
"""So long the daemon may take; one that swaps is slow, and one that hangs is a fault."""
OTHER_PORT = "end that program, or give scaler another port: server.port in the configuration, or --port"


def examine(patient: Patient) -> Iterator[Finding]:
    """Who answers where the configuration has the daemon answer, and what would keep one from starting there."""
    settings = patient.settings
    if settings is None:
        yield note("daemon", "not looked for, for without a configuration nobody knows where it is")
        return
    yield from _admission(settings)
    server = settings.server
    if server.port == 0:
        says = "server.port is 0, so that the daemon takes a free port each time: commands do not find it by themselves"
        yield note("port", says, "give commands its address with --url, or set server.port")
        return
    from scaler.cli.daemon import daemon

    # With a configuration at fault, the one that ships.
    config = Path(settings.file) if patient.fault else patient.config
    try:
        running = daemon(argparse.Namespace(url=None, config=config))
    except ConfigError as error:
        yield problem("daemon", str(error))
        return
    try:
        status = running.status(timeout_s=ASK_S)
    except DaemonUnreachable as error:
        yield from _nobody(settings, str(error))
    except ScalerError as error:
        yield _other(server.port, error)
    else:
        yield from _ours(settings, running.url, status, fault=patient.fault)


def _admission(settings: Settings) -> Iterator[Finding]:
    """What would have `scaler run` refuse to listen."""
    from scaler import access_token

    server = settings.server
    try:
        token = access_token.found(server.token_file)
    except ConfigError as error:
        says, _, do = str(error).rpartition("; ")
        yield problem("token", says, do)
        return
    if token is not None:
        yield ok("token", f"every request must bring the one of {token.source}")
    try:
        from scaler.serving.door import is_loopback
        from scaler.serving.tls import server_context
    except ModuleNotFoundError:
        # That the extra lacks is told with the installation.
        return
    if token is None and not is_loopback(server.host):
        yield problem(
            "token",
            f"other machines reach {server.host}, and there is no token that would keep them out",
            f"set server.token_file to a file that this makes: {access_token.HOW_TO_MAKE}",
        )
    if server.tls is None:
        return
    try:
        server_context(server.tls.certificate, server.tls.key)
    except ConfigError as error:
        yield problem("certificate", str(error), "see docs/SECURITY.md")
    else:
        yield ok("certificate", str(server.tls.certificate))


def _ours(settings: Settings, url: str, status: dict[str, Any], *, fault: str) -> Iterator[Finding]:
    # Daemons from before told neither.
    version, file = status.get("version"), status.get("file")
    pinned = f", pinned to {status['pinned']}" if status.get("pinned") else ""
    yield ok(
        "daemon", f"scaler {version or 'of an older version'} answers at {url}, {status['serving']} serves{pinned}"
    )
    if version != __version__:
        says = f"the daemon is scaler {version or 'of an older version'}, and this command {__version__}"
        yield note("version", says, "start the daemon anew, so that it is what is installed")
    if file is not None and file != settings.file and not fault:
        says = f"the daemon runs with {file}, and this command reads {settings.file}"
        yield note("configuration", says, "give this command the daemon's with --config, or start the daemon anew")
    elif not fault and (theirs := [one["level"] for one in status["effective"]]) != (
        here := [level.name for level in settings.ladder]
    ):
        says = f"the daemon's ladder is {', '.join(theirs)}; the file has {', '.join(here)} now"
        yield note("configuration", says, "scaler reload")
    elif file is not None:
        yield ok("configuration", f"the daemon runs with {file}")
    for sensor in status["missing"]:
        yield note("reading", f"the daemon reads no {sensor} at this moment", "see sensors, above")
    for level, why in status.get("failed", {}).items():
        yield problem(f"level {level}", f"could not be loaded, and backs off: {why}", "scaler history says when")
    for sentence in status.get("not_permitted", ()):
        yield note("permission", sentence)


def _nobody(settings: Settings, why: str) -> Iterator[Finding]:
    """Nothing answers as a web server does: is the port free, or has somebody it who does not answer?"""
    host, port = settings.server.host, settings.server.port
    try:
        check_free(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            yield problem("port", f"{port} is taken by {occupant(port)}, which does not answer ({why})", OTHER_PORT)
        elif error.errno == errno.EACCES:
            yield problem("port", f"{port} may not be listened on by you", "choose one above 1023: server.port")
        else:
            says = f"{host}:{port} cannot be listened on ({error.strerror or error})"
            yield problem("port", says, "choose an address of this machine: server.host")
        return
    yield ok("port", f"{port} is free")
    yield note("daemon", "none runs", "scaler run; or have it run whenever you are logged in: docs/service.md")


def _other(port: int, error: ScalerError) -> Finding:
    refused = error.__cause__
    answers = "it answers what no scaler does"
    if isinstance(refused, urllib.error.HTTPError):
        if refused.code == HTTPStatus.UNAUTHORIZED:
            do = "set SCALER_TOKEN, or server.token_file, to what the daemon was started with"
            return problem("daemon", f"what answers does not let this command in: {error}", do)
        answers = f"it answers {refused.code}"
    return problem("port", f"{port} is taken by {occupant(port)}, which is no scaler ({answers})", OTHER_PORT)
