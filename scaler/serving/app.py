"""The daemon's HTTP server: puts the dialects together and serves them from the effects' loop."""

from __future__ import annotations

import ipaddress
import os
import time

from aiohttp import web

from scaler.errors import ConfigError, ScalerError
from scaler.manager import ModelManager
from scaler.serving.answers import Answers
from scaler.serving.control_routes import Control
from scaler.serving.embeddings import EmbeddingsRoute
from scaler.serving.events import Events
from scaler.serving.ollama import Ollama
from scaler.serving.openai import OpenAI
from scaler.serving.refusals import in_the_dialect
from scaler.serving.responses import Responses

MAX_BODY_BYTES = 32 * 1024**2
"""The largest request: a long conversation with a picture or two."""

GRACE_S = 2.0
"""For how long running answers may go on when the endpoint is stopped."""


class Endpoint:
    """A listening server; `start` and `stop` may be called from any thread without a loop."""

    def __init__(self, manager: ModelManager, host: str, port: int) -> None:
        """Raises ConfigError for an address that other machines could reach: there is no lock on the door yet."""
        if not _is_loopback(host):
            raise ConfigError(
                f"server.host: {host!r} can be reached from other machines, and requests are not authenticated; "
                "expected a loopback address such as 127.0.0.1"
            )
        self._manager, self._host, self._port = manager, host, port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it listens; with port 0, the port that was given."""
        port = self._port
        if self._runner is not None and self._runner.addresses:
            port = self._runner.addresses[0][1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}"

    def start(self) -> None:
        """Listen. Raises ScalerError when the address is taken."""
        self._manager.effects.call(self._start())

    async def _start(self) -> None:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[in_the_dialect])
        answers = Answers(self._manager)
        app.add_routes(OpenAI(answers, int(time.time())).routes())
        app.add_routes(Ollama(self._manager, answers).routes())
        app.add_routes(Responses(answers).routes())
        app.add_routes(EmbeddingsRoute(self._manager).routes())
        app.add_routes(Control(self._manager).routes())
        Events(self._manager.scaler, self._manager.notices).add_to(app)
        # A client that hangs up cancels its handler, and with it the generation that nobody reads any more.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=GRACE_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ScalerError(
                f"cannot listen on {self._host}:{self._port}: {os.strerror(error.errno or 0)}; "
                "is another scaler running? Choose another port with --port"
            ) from error
        self._runner = runner

    def stop(self) -> None:
        """Stop listening and end the connections. Safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None and self._manager.effects.running:
            self._manager.effects.call(runner.cleanup())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
