"""The daemon's HTTP server: puts the dialects together and serves them from the effects' loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import suppress

from aiohttp import web

from scaler import access_token
from scaler.errors import ConfigError, ScalerError
from scaler.manager import ModelManager
from scaler.serving import connections, openapi
from scaler.serving.address import NO_NAME, url_of
from scaler.serving.answers import Answers
from scaler.serving.connections import Connections, counted, received
from scaler.serving.control_routes import Control
from scaler.serving.door import Door, is_loopback
from scaler.serving.embeddings import EmbeddingsRoute
from scaler.serving.events import Events
from scaler.serving.history_routes import History
from scaler.serving.metrics import Metrics
from scaler.serving.ollama import Ollama
from scaler.serving.openai import OpenAI
from scaler.serving.page import OPEN, Page
from scaler.serving.refusals import in_the_dialect
from scaler.serving.responses import Responses
from scaler.serving.tls import server_context
from scaler.tracing import tracing

MAX_BODY_BYTES = 32 * 1024**2
"""The largest request: a long conversation with a picture or two."""

GRACE_S = 4.0
"""For how long running answers may go on when the endpoint is stopped."""
CUT_OFF_S = 2.0
"""For so long it is waited that those which were cut off then have ended; who counts or traces them must still hear
it."""
IDLE_S = 75.0
"""A connection on which nothing was asked for so long is closed."""
LINGER_S = 5.0
"""For so long what is still sent of a refused request is read and thrown away, so that the refusal is read."""
BACKLOG = 512
"""How many connections may wait to be taken."""


class Endpoint:
    """A listening server; `start` and `stop` may be called from any thread without a loop."""

    def __init__(self, manager: ModelManager, host: str, port: int) -> None:
        """Whom it answers is as the manager's settings say, and the environment.

        Raises ConfigError for an address that other machines reach where there is no token, and for a token or a
        certificate that cannot be used; MissingExtra where the environment asks for traces that cannot be made.
        """
        settings = manager.settings.server
        self.token = access_token.found(settings.token_file)
        if self.token is None and not is_loopback(host):
            raise manager.settings.error(
                ("server", "host"),
                f"other machines reach {host!r}, and there is no token that would keep them out; expected a loopback "
                f"address such as 127.0.0.1, or server.token_file with a file that this makes: "
                f"{access_token.HOW_TO_MAKE}",
            )
        try:
            self._tls = None if settings.tls is None else server_context(settings.tls.certificate, settings.tls.key)
        except ConfigError as error:
            raise manager.settings.error(("server", "tls"), str(error)) from error
        self._settings = settings
        self._manager, self._host, self._port = manager, host, port
        self._tracing = tracing(manager, os.environ)
        self._page = Page()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._connections: Connections | None = None

    @property
    def url(self) -> str:
        """Where this machine reaches it; with port 0, the port that was given."""
        port = self._port
        if self._server is not None and self._server.sockets:
            port = self._server.sockets[0].getsockname()[1]
        return url_of(self._host, port, encrypted=self.encrypts)

    @property
    def traces(self) -> bool:
        """Whether the environment asks for traces, and they are made."""
        return self._tracing is not None

    @property
    def encrypts(self) -> bool:
        """Whether it speaks TLS."""
        return self._tls is not None

    def start(self) -> None:
        """Listen. Raises ScalerError when the address is taken."""
        self._manager.effects.call(self._start())

    async def _start(self) -> None:
        allowed = self._settings
        door = Door(
            self._host, hosts=allowed.allow_hosts, origins=allowed.allow_origins, token=self.token, open_to_all=OPEN
        )
        app = web.Application(
            client_max_size=MAX_BODY_BYTES, middlewares=[in_the_dialect, counted, door.guarded, received]
        )
        app.on_response_prepare.append(door.sign)
        answers = Answers(self._manager)
        app.add_routes(OpenAI(answers, int(time.time())).routes())
        app.add_routes(Ollama(self._manager, answers).routes())
        app.add_routes(Responses(answers).routes())
        app.add_routes(EmbeddingsRoute(self._manager).routes())
        app.add_routes(Control(self._manager).routes())
        app.add_routes([openapi.route(token=self.token is not None)])
        Events(self._manager.scaler, self._manager.notices).add_to(app)
        Metrics(self._manager).add_to(app)
        if self._tracing is not None:
            app.cleanup_ctx.append(self._tracing.lasting)
        History(self._manager).add_to(app)
        app.add_routes(self._page.routes())
        # The last to come is the first to go.
        app.cleanup_ctx.append(self._cut_off)
        # A client that hangs up cancels its handler, and with it the generation that nobody reads any more.
        runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            logger=connections.log,
            # aiohttp waits for so long twice: for the answer, and for its handler.
            shutdown_timeout=GRACE_S / 2,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
        )
        await runner.setup()
        assert runner.server is not None  # as it was set up
        self._connections = Connections(runner.server, most=allowed.max_connections, receive_s=allowed.receive_s)
        handshake_s = None if self._tls is None else allowed.receive_s
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connections,
                self._host,
                self._port,
                ssl=self._tls,
                ssl_handshake_timeout=handshake_s,
                backlog=BACKLOG,
            )
        except (OSError, UnicodeError) as error:
            await runner.cleanup()
            raise ScalerError(
                f"cannot listen on {self._host}:{self._port}: {_cause(error)}; "
                "choose another address with --host or --port, or server.host and server.port in the configuration"
            ) from error
        self._runner = runner

    def stop(self) -> None:
        """Stop listening and end the connections. Safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None and self._manager.effects.running:
            self._manager.effects.call(self._stop(runner))
        if self._tracing is not None:
            self._tracing.close()

    async def _stop(self, runner: web.AppRunner) -> None:
        if self._server is not None:
            self._server.close()
        await runner.cleanup()

    async def _cut_off(self, _: web.Application) -> AsyncGenerator[None, None]:
        """See to it that cancelled answers have ended before those leave who hear of it: aiohttp does not wait."""
        yield
        if self._connections is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CUT_OFF_S):
                    await self._connections.answered()


def _cause(error: OSError | UnicodeError) -> str:
    """The system's word for why nothing can listen there; the loop adds the address again."""
    if isinstance(error, UnicodeError):
        return NO_NAME
    # What kept a name from being looked up has numbers of its own.
    if isinstance(error, socket.gaierror) or error.errno is None:
        return str(error.strerror or error)
    return os.strerror(error.errno)
