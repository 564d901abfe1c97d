"""Who may come in: no page of the web, no name that was made to lead here, and nobody without the token.

Owns what is asked of a request's headers before anything else looks at it. What a browser sends with a page's requests
is described at https://fetch.spec.whatwg.org/#origin-header, https://fetch.spec.whatwg.org/#sec-purpose-header and
https://www.w3.org/TR/fetch-metadata/.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web

from scaler.access_token import AccessToken
from scaler.serving.answers import LEVEL_HEADER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PREFLIGHT_S = "600"
"""For so many seconds a browser may keep what a preflight told it."""
_FOREIGN = ("cross-site", "same-site")


class Door:
    """Asks every request who it is."""

    def __init__(
        self,
        bound: str,
        *,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
        token: AccessToken | None = None,
        open_to_all: Collection[str] = (),
    ) -> None:
        """``bound`` is the address that is listened on, ``hosts`` more names that lead here, ``origins`` the pages and
        programs in browsers that may ask; ``scheme://*`` stands for all of that scheme. ``open_to_all``: the routes
        that may be got without the token, for there is nothing of this machine in them.
        """
        self._hosts = {"localhost", bound.lower(), *(host.lower() for host in hosts)}
        if not is_loopback(bound):
            own = socket.gethostname().lower()
            self._hosts |= {own, f"{own.partition('.')[0]}.local"}
        self._origins, self._token, self._open = frozenset(origins), token, frozenset(open_to_all)

    @web.middleware
    async def guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let ``handler`` answer, or refuse."""
        self._check_host(request)
        _check_purpose(request)
        self._check_origin(request)
        if (
            request.method == "OPTIONS"
            and self._allowed(request)
            and "Access-Control-Request-Method" in request.headers
        ):
            # A browser asks before it sends the request, and brings no token yet.
            return web.Response(status=204, headers=_preflight(request))
        if not self._opens(request):
            raise web.HTTPUnauthorized(
                text="a token is needed: send 'Authorization: Bearer TOKEN', which clients call the API key; "
                "scaler's own commands find it in $SCALER_TOKEN or server.token_file",
                headers={"WWW-Authenticate": 'Bearer realm="scaler"'},
            )
        return await handler(request)

    def _opens(self, request: web.Request) -> bool:
        if self._token is None or self._token.opens(request.headers.get("Authorization", "")):
            return True
        # By the route that will answer, however its path was written.
        resource = request.match_info.route.resource
        return request.method == "GET" and resource is not None and resource.canonical in self._open

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell a browser that its page may read the response. For an application's ``on_response_prepare``."""
        if self._allowed(request):
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = LEVEL_HEADER
            response.headers["Vary"] = "Origin"

    def _check_host(self, request: web.Request) -> None:
        """A foreign page whose name was made to lead here would be of the same origin; its name is not one of ours."""
        named = request.headers.getall("Host", [])
        if len(named) != 1 or not self._is_ours(named[0]):
            raise web.HTTPForbidden(
                text=f"{', '.join(named) or 'a request without a host'} is no name of this server; use its address, "
                "or add the name to server.allow_hosts"
            )

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        # No name server makes an address lead elsewhere.
        return name is not None and (name in self._hosts or _is_address(name))

    def _check_origin(self, request: web.Request) -> None:
        origins = request.headers.getall("Origin", [])
        if not origins and (_fetched(request, "Site", "none") not in _FOREIGN or _follows_link(request)):
            return
        if self._allowed(request) or (len(origins) == 1 and _is_own(origins[0], request.headers.get("Host", ""))):
            return
        raise web.HTTPForbidden(
            text=f"pages of {', '.join(origins) or 'other sites'} may not use this server; "
            "if they should, add their origin to server.allow_origins"
        )

    def _allowed(self, request: web.Request) -> bool:
        origins = request.headers.getall("Origin", [])
        if len(origins) != 1:
            return False
        scheme, separator, _ = origins[0].partition("://")
        return origins[0] in self._origins or (bool(separator) and f"{scheme}://*" in self._origins)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_purpose(request: web.Request) -> None:
    """A browser may fetch ahead, or make a page ready unseen, because another site's page has it do so, and say all the
    same that nobody sent it. Who goes to the page then is let in: for what was refused, a browser asks again.
    """
    if "Sec-Purpose" in request.headers:
        raise web.HTTPForbidden(text="nothing is given ahead of time; ask for it when it is wanted")


def _follows_link(request: web.Request) -> bool:
    """Whether somebody goes to the page, by another site's link or its script: into a tab of its own, in no frame.

    The site that sends them reads nothing of it, and there is nothing of this machine in it.
    """
    return (
        request.method == "GET"
        and request.raw_path == "/"
        and _fetched(request, "Mode") == "navigate"
        and _fetched(request, "Dest") == "document"
    )


def _fetched(request: web.Request, what: str, default: str = "") -> str:
    """What a browser says of how a request came about: no script can set it."""
    return request.headers.get(f"Sec-Fetch-{what}", default).strip().lower()


def _preflight(request: web.Request) -> dict[str, str]:
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "Authorization"),
        "Access-Control-Max-Age": PREFLIGHT_S,
    }
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return headers


def _is_own(origin: str, host: str) -> bool:
    """Whether a page came from this server, under the name that the request gives. Behind a proxy it is https there."""
    scheme, _, authority = origin.partition("://")
    return scheme in ("http", "https") and authority.lower() == host.lower()


def _name(host: str) -> str | None:
    """The name in a ``Host``, without its port and the dot at its end; None for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != host or parts.username is not None:
        return None
    return parts.hostname.removesuffix(".") if parts.hostname else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
