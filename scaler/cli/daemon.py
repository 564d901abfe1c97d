"""Asking a running daemon, with nothing but the standard library."""

from __future__ import annotations

import argparse
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaler.errors import ConfigError, DaemonUnreachable, ScalerError
from scaler.settings import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which daemon is meant."""
    parser.add_argument("--url", help="the daemon's address (default: as the configuration says)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")


def address(args: argparse.Namespace) -> str:
    """The daemon's URL without a slash at the end. Raises ConfigError."""
    if args.url:
        url = str(args.url).rstrip("/")
        return url if "://" in url else f"http://{url}"
    server = load_settings(args.config).server
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"http://{host}:{server.port}"


def ask(url: str, *, method: str = "GET", body: Mapping[str, Any] | None = None, timeout_s: float = 10.0) -> Any:
    """The daemon's JSON answer. Raises DaemonUnreachable, or ScalerError with the daemon's own words."""
    with _open(url, method, body, timeout_s) as response:
        try:
            return json.load(response)
        except ValueError as error:
            raise ScalerError(f"what answers at {url} is no scaler; expected JSON, give another --url") from error


def stream(url: str, body: Mapping[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """The server-sent events of an answer, parsed, until the daemon says that it is done."""
    with _open(url, "POST", body, timeout_s) as response:
        for line in response:
            if not line.startswith(b"data: "):
                continue
            data = line[len(b"data: ") :].strip()
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                raise ScalerError(event["error"]["message"])
            yield event
    raise ScalerError("the answer broke off; `scaler history` may say why")


@contextmanager
def _open(
    url: str, method: str, body: Mapping[str, Any] | None, timeout_s: float
) -> Iterator[http.client.HTTPResponse]:
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        if request.type not in ("http", "https"):
            raise ValueError(f"{url!r} is no address of a web server")
    except ValueError as error:
        raise ConfigError(f"--url: {error}; expected an address such as http://127.0.0.1:8484") from error
    try:
        # Not through a proxy of the environment: the daemon is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout_s) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise ScalerError(_words_of(error)) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DaemonUnreachable(f"no daemon answers at {url} ({reason}); start one with `scaler run`") from error


def _words_of(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered {error.code} {error.reason}"
