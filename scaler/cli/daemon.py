"""Asking a running daemon, with nothing but the standard library."""

from __future__ import annotations

import argparse
import http.client
import json
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scaler import __version__, access_token
from scaler.access_token import AccessToken
from scaler.errors import ConfigError, DaemonUnreachable, ScalerError
from scaler.printable import printable
from scaler.serving.address import url_of
from scaler.settings import EVERYWHERE, ServerSettings, load_settings, read_settings
from scaler.words import faults

END = "-----END CERTIFICATE-----"
SENT = re.compile(rb"[!-~]+")
"""What an address can have in it where it is sent."""
OURS = ("state", "serving", "missing")
"""What every scaler's status has, of whatever version it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which daemon is meant."""
    parser.add_argument("--url", help="the daemon's address (default: as the configuration says)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration other than your own")


@dataclass(frozen=True, slots=True)
class Misread:
    """A configuration with mistakes, which does not keep anyone from asking a daemon that runs."""

    mistake: str
    """The first of them, with its place."""
    instead: str
    """What says where the daemon is, though."""


@dataclass(frozen=True)
class Daemon:
    """A running daemon, and what it lets one in for."""

    url: str
    """Its address without a slash at the end."""
    token: AccessToken | None = None
    certificate: Path | None = None
    """The only certificate that it is believed to have; None for one that the system's authorities have signed."""
    misread: Misread | None = None
    """Why the configuration did not say plainly that this is its address."""

    def warn(self) -> None:
        """Say on the standard error what is wrong with the configuration, if anything is, and which address is used."""
        if self.misread is not None:
            warning = f"scaler: warning: {self.misread.mistake}\nscaler: asking {self.url}, {self.misread.instead}"
            print(printable(warning), file=sys.stderr)

    def ask(
        self,
        path: str,
        keys: Iterable[str],
        *,
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
        timeout_s: float = 10.0,
    ) -> dict[str, Any]:
        """The daemon's answer, a JSON object that has ``keys``; ``a.b`` is the ``b`` of its ``a``.

        Raises DaemonUnreachable, or ScalerError: with the daemon's own words, or because what answers is no scaler or
        one of another version.
        """
        with self._open(path, method, body, timeout_s) as response:
            answer = self._object(response.read())
        if lacking := [key for key in keys if not _has(answer, key.split("."))]:
            # Which other one, a scaler of any version tells with how it stands.
            status = answer if path == "/status" else self.ask("/status", ())
            raise ScalerError(self._other(status, f"its answer lacks {', '.join(lacking)}"))
        return answer

    def unknown(self, what: str) -> ScalerError:
        """The error to raise where ``what`` an answer has is nothing that this command knows. Raises as `ask` does."""
        return ScalerError(self._other(self.ask("/status", ()), f"its answer has {what}"))

    def status(self, keys: Iterable[str] = (), timeout_s: float = 10.0) -> dict[str, Any]:
        """What ``GET /status`` says. Raises as `ask` does."""
        return self.ask("/status", (*OURS, *keys), timeout_s=timeout_s)

    def stream(
        self, path: str, keys: Iterable[str], body: Mapping[str, Any], timeout_s: float
    ) -> Iterator[dict[str, Any]]:
        """The server-sent events of an answer, JSON objects that have ``keys``, until the daemon says that it is done.

        Raises as `ask` does, and ScalerError where the answer breaks off.
        """
        with self._open(path, "POST", body, timeout_s) as response:
            if response.headers.get_content_type() != "text/event-stream":
                raise ScalerError(self._no_scaler("its answer is no stream of events"))
            for line in response:
                if not line.startswith(b"data: "):
                    continue
                data = line[len(b"data: ") :].strip()
                if data == b"[DONE]":
                    return
                event = self._object(data)
                if _has(event, ("error", "message")):
                    raise ScalerError(str(event["error"]["message"]))
                if not all(_has(event, (key,)) for key in keys):
                    raise ScalerError(self._no_scaler("its answer is another program's"))
                yield event
        raise ScalerError("the answer broke off; `scaler history` may say why")

    def follow(self, path: str, timeout_s: float) -> Iterator[str]:
        """The names of the server-sent events of ``path`` as they come, until the daemon ends them.

        Raises DaemonUnreachable, also after ``timeout_s`` seconds of silence, or ScalerError with the daemon's words.
        """
        with self._open(path, "GET", None, timeout_s) as response:
            for line in response:
                if line.startswith(b"event: "):
                    yield line[len(b"event: ") :].decode(errors="replace").strip()

    @contextmanager
    def _open(
        self, path: str, method: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        if self.token is not None:
            # Not to wherever the request may be redirected.
            request.add_unredirected_header("Authorization", self.token.authorization)
        try:
            # Not through a proxy of the environment: the daemon is on this machine.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Https(self.certificate))
            with opener.open(request, timeout=timeout_s) as response:
                yield response
        except urllib.error.HTTPError as error:
            raise ScalerError(_words_of(error) or self._no_scaler(f"{error.code} {error.reason}")) from error
        except (OSError, http.client.HTTPException) as error:
            # Of the network and of TLS all: on another machine it can also be in the middle of an answer.
            reason = getattr(error, "reason", error)
            do = "start one with `scaler run`"
            if self.misread is not None:
                do = (
                    "the likely cause is a mistake in the configuration; correct it, or give the daemon's address "
                    f"with --url: {self.misread.mistake}"
                )
            raise DaemonUnreachable(f"no daemon answers at {self.url}{path} ({reason}); {do}") from error

    def _object(self, text: bytes) -> dict[str, Any]:
        """A JSON object. Raises ScalerError."""
        try:
            told = json.loads(text)
        except ValueError as error:
            raise ScalerError(self._no_scaler("its answer is no JSON")) from error
        if not isinstance(told, dict):
            raise ScalerError(self._no_scaler("its answer is another program's"))
        return told

    def _other(self, status: dict[str, Any], why: str) -> str:
        """Why an answer that has not what was expected cannot be used."""
        if not all(key in status for key in OURS):
            return self._no_scaler("its answer is another program's")
        version = status.get("version")
        whose = "of another version" if version in (None, __version__) else version
        return (
            f"what answers at {self.url} is scaler {whose}, and this command {__version__} ({why}); start the daemon "
            "anew, so that it is what is installed"
        )

    def _no_scaler(self, why: str) -> str:
        return (
            f"what answers at {self.url} is no scaler ({why}); give the daemon's address with --url, or start one at a "
            "free port with `scaler run --port`"
        )


def daemon(args: argparse.Namespace, *, warns: bool = True) -> Daemon:
    """The daemon that is meant, with a warning if the configuration has mistakes: it may run all the same.

    ``warns`` is False for who tells them otherwise. Raises ConfigError for an address or a token that cannot be used.
    """
    settings, misread = _server(args.config)
    host = EVERYWHERE.get(settings.host, settings.host)
    url, said_by = _url(settings), "server.host"
    if args.url:
        given = str(args.url)
        url, said_by, misread = given if "://" in given else f"http://{given}", "--url", None
    # Another machine's daemon is another one: it has another certificate, and is not told what opens this one.
    own = _host(url, said_by) in (host, "localhost", "127.0.0.1", "::1")
    token = access_token.found(settings.token_file if own else None)
    certificate = settings.tls.certificate if own and settings.tls is not None else None
    meant = Daemon(url.rstrip("/"), token, certificate, misread)
    if warns:
        meant.warn()
    return meant


def _server(config: Path | None) -> tuple[ServerSettings, Misread | None]:
    """Where the daemon is: as the configuration says, as far as it can be read, or else as the one that ships says."""
    try:
        draft = read_settings(config)
    except ConfigError as error:
        fault = error
    else:
        if not draft.faults:
            return draft.settings.server, None
        fault = draft.settings.refusal(*draft.faults)
        if not draft.is_at_fault("server"):
            server = draft.settings.server
            instead = "the usual address" if _url(server) == _url(ServerSettings()) else "as the rest of the file says"
            return server, Misread(faults(fault, 1), instead)
    instead = "the address of the shipped settings; --url gives another"
    return load_settings(shipped=True).server, Misread(faults(fault, 1), instead)


def _url(server: ServerSettings) -> str:
    return url_of(server.host, server.port, encrypted=server.tls is not None)


def _host(url: str, said_by: str) -> str:
    """The machine of an address. Raises ConfigError for one that cannot be asked."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        # A name is looked up in an encoding of its own.
        if parts.scheme in ("http", "https") and host and SENT.fullmatch(host.encode("idna") + _after_host(url)):
            return host
    except ValueError:
        pass
    raise ConfigError(
        f"{said_by}: {url!r} is no address of a web server; expected an address such as http://127.0.0.1:8484"
    )


def _after_host(url: str) -> bytes:
    """As it was given: what takes an address apart leaves out ends of lines."""
    return url.partition("://")[2].partition("/")[2].encode()


class _Https(urllib.request.HTTPSHandler):
    """Believes in one certificate, whatever name it is for; or, without it, in what the system believes in."""

    def __init__(self, certificate: Path | None) -> None:
        super().__init__()
        self._pinned = None if certificate is None else _der(certificate)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Pinned, self._pinned), req)


class _Pinned(http.client.HTTPSConnection):
    def __init__(self, certificate: bytes | None, host: str, **kwargs: Any) -> None:
        context = ssl.create_default_context()
        if certificate is not None:
            # Nothing is sent before it was seen to be the very one.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        super().__init__(host, context=context, **kwargs)
        self._certificate = certificate

    def connect(self) -> None:
        super().connect()
        if self._certificate is not None and self.sock.getpeercert(binary_form=True) != self._certificate:
            self.close()
            raise ConnectionError("what answers there has another certificate than server.tls")


def _der(certificate: Path) -> bytes:
    """The first certificate of a file. Raises ConfigError."""
    try:
        text = certificate.read_text("ascii")
        return ssl.PEM_cert_to_DER_cert(text[: text.index(END) + len(END)].strip())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate} (server.tls): cannot be read; expected a certificate in PEM") from error


def _words_of(error: urllib.error.HTTPError) -> str | None:
    """What a daemon says of it; None where it is none that answers, or breaks off."""
    try:
        return str(json.load(error)["error"]["message"])
    except (http.client.HTTPException, OSError, ValueError, KeyError, TypeError):
        return None


def _has(told: Any, way: Sequence[str]) -> bool:
    """Whether objects within objects lead along these keys."""
    for key in way:
        if not (isinstance(told, dict) and key in told):
            return False
        told = told[key]
    return True
