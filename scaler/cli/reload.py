"""`scaler reload`: have the daemon read its configuration anew."""

from __future__ import annotations

import argparse
import json
import urllib.error
from http import HTTPStatus

from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import add_arguments, daemon
from scaler.errors import ConfigError, DaemonUnreachable, ScalerError
from scaler.printable import one_line
from scaler.words import changed

PATIENCE_S = 120.0
"""So long the daemon may take: it asks the servers in which levels live, and one that hangs is given its time."""

KEYS = ("file", "changes", "unpinned", "restart")
"""What is read of the daemon's answer."""

UNCHANGED = "nothing was changed: the daemon goes on with the configuration that it has"

ELSEWHERE = "if one runs and `server` was changed since, it listens where it did: give that address with --url"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="what changed, as JSON")


def _run(args: argparse.Namespace) -> int:
    # A mistake is told by the daemon, which refuses it.
    running = daemon(args, warns=False)
    try:
        done = running.ask("/reload", KEYS, method="POST", timeout_s=PATIENCE_S)
    except DaemonUnreachable as error:
        if args.url or running.misread is not None:
            raise
        raise DaemonUnreachable(f"{error}; {ELSEWHERE}") from error
    except ScalerError as error:
        refused = error.__cause__
        if isinstance(refused, urllib.error.HTTPError) and refused.code == HTTPStatus.UNPROCESSABLE_ENTITY:
            # As `scaler config check` has it: the fault is in a file, and not in the daemon.
            raise ConfigError(f"{error}\n{UNCHANGED}") from error
        raise
    # It runs with another file than the one that was looked into for its address.
    running.warn()
    if args.json:
        print(json.dumps(done, indent=2))
        return EXIT_OK
    if not done["changes"]:
        print(one_line(f"nothing that applies at once has changed in {done['file']}"))
    for change in done["changes"]:
        print(one_line(changed(change)))
    if done["unpinned"] is not None:
        print(one_line(f"unpinned: {done['unpinned']} may not be served any more"))
    if done["restart"]:
        print(one_line(f"after a restart only: {', '.join(done['restart'])}"))
    return EXIT_OK


COMMAND = Command(
    "reload",
    "have the daemon read its configuration anew, without dropping a request",
    _add_arguments,
    _run,
    asks=True,
)
