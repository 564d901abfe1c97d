"""What `scaler status` and its kin ask a running daemon: state, health, pins."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from scaler import __version__
from scaler.errors import ConfigError, PinRefused, RequestRejected, ScalerError
from scaler.manager import ModelManager
from scaler.report import advice_report, preflight_report, reload_report, status_report, status_words
from scaler.serving.bodies import json_object
from scaler.serving.errors import error_body


class Control:
    """The handlers that do not answer chats."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        return [
            web.get("/healthz", self.health),
            web.get("/status", self.status),
            web.get("/check", self.check),
            web.get("/advice", self.advice),
            web.put("/pin", self.pin),
            web.delete("/pin", self.unpin),
            web.post("/reload", self.reload),
        ]

    async def health(self, _: web.Request) -> web.Response:
        """Whether the daemon watches the machine; ``serving`` says what a chat would get."""
        status = self._manager.scaler.status()
        ok = status.monitoring
        body = {"status": "ok" if ok else "not monitoring", "serving": status.serving}
        return web.json_response(body, status=HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)

    async def status(self, _: web.Request) -> web.Response:
        """Everything that a person asks about."""
        manager = self._manager
        report = status_report(manager.scaler.status(), manager.scaler.analyze_resource_trends())
        report |= status_words(report, former=manager.former)
        report |= {"answering": manager.answering, "waiting": manager.waiting, "loading": dict(manager.progress)}
        report |= {"not_permitted": manager.not_permitted, "version": __version__, "file": manager.settings.file}
        return web.json_response(report)

    async def check(self, _: web.Request) -> web.Response:
        """A pre-flight check."""
        return web.json_response(preflight_report(self._manager.scaler.check_preflight_resources()))

    async def advice(self, _: web.Request) -> web.Response:
        """What would make room for a larger level."""
        try:
            return web.json_response(advice_report(await self._manager.advise()))
        except (ScalerError, OSError) as error:
            return web.json_response(error_body(str(error)), status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def pin(self, request: web.Request) -> web.Response:
        """Pin ``{"level": NAME}``."""
        try:
            level = json_object(await request.read()).get("level")
        except RequestRejected as error:
            return web.json_response(error_body(str(error)), status=error.status)
        if not isinstance(level, str):
            return web.json_response(error_body('expected {"level": NAME}'), status=HTTPStatus.BAD_REQUEST)
        try:
            self._manager.scaler.pin(level)
        except PinRefused as error:
            return web.json_response(error_body(str(error), code="pin_refused"), status=HTTPStatus.CONFLICT)
        return web.json_response({"pinned": level})

    async def unpin(self, _: web.Request) -> web.Response:
        """Let the machine decide again."""
        self._manager.scaler.unpin()
        return web.json_response({"pinned": None})

    async def reload(self, _: web.Request) -> web.Response:
        """Read the configuration anew; one that is at fault is refused with its faults, and nothing changes."""
        try:
            return web.json_response(reload_report(await self._manager.reload()))
        except ConfigError as error:
            body = error_body(str(error), code="configuration_refused")
            return web.json_response(body, status=HTTPStatus.UNPROCESSABLE_ENTITY)
        except (ScalerError, OSError) as error:
            return web.json_response(error_body(str(error)), status=HTTPStatus.SERVICE_UNAVAILABLE)
