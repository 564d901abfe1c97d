"""The address that the daemon listens at: how it is reached, and whether it is free."""

from __future__ import annotations

import os
import socket

from scaler.settings import EVERYWHERE

NO_NAME = "no machine can have that name"
"""Why a host that is not even looked up cannot be listened at."""


def url_of(host: str, port: int, *, encrypted: bool) -> str:
    """Where this machine reaches what listens at ``host``."""
    host = EVERYWHERE.get(host, host)
    return f"{'https' if encrypted else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def check_free(host: str, port: int) -> None:
    """Take the address as the daemon would, and leave it at once. Raises OSError as listening there would."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, NO_NAME) from error
    with socket.socket(family, kind, protocol) as probe:
        if os.name == "posix":
            # As servers do: what the last one left half closed is no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
