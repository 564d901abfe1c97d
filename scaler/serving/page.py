"""The page at `/`: files that ship with scaler, without data, for which a browser asks the other routes.

Owns which files there are and what a browser may do with them. They are served without a token: what they show is not.
"""

from __future__ import annotations

from importlib import resources

from aiohttp import web

INDEX, FILES = "/", "/page/{name}"
OPEN = frozenset({INDEX, FILES})
"""The routes that anyone may get who gets through the door."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    # Nothing from elsewhere, nothing inline, no frame around it, and no text of anyone's becomes markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # After an update of scaler the page is the new one at once.
    "Cache-Control": "no-cache",
}


class Page:
    """The handlers of the page's files, which are read once."""

    def __init__(self) -> None:
        folder = resources.files(__package__) / "page"
        self._files = {file.name: file.read_bytes() for file in folder.iterdir() if _suffix(file.name) in _TYPES}

    def routes(self) -> list[web.RouteDef]:
        """Where they are found. Whether somebody is there, ``HEAD /``, is Ollama's to answer."""
        return [web.get(INDEX, self.index, allow_head=False), web.get(FILES, self.file, allow_head=False)]

    async def index(self, _: web.Request) -> web.Response:
        """The page itself."""
        return self._sent("index.html")

    async def file(self, request: web.Request) -> web.Response:
        """What it is made of."""
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        return self._sent(name)

    def _sent(self, name: str) -> web.Response:
        kind = _TYPES[_suffix(name)]
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8", headers=_HEADERS)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
