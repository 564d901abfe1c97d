"""Servers that answer whatever a test says, well or badly, and remember what they were asked."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Answers = Mapping[str, Any]
"""What is answered to each path with 200: anything that JSON can say. A pair is a status and such a thing."""


@dataclass
class Served:
    """A server that runs: its address, and the first line of every request."""

    url: str
    asked: list[str] = field(default_factory=list)
    faults: list[AssertionError] = field(default_factory=list)
    """What ``talk`` found wrong with whoever asked."""


@contextmanager
def speaking(talk: Callable[[socketserver.StreamRequestHandler, str], None]) -> Iterator[Served]:
    """A server that has ``talk`` with each connection, once it has sent its request's first line."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline().decode(errors="replace").strip()
            while self.rfile.readline().strip():
                pass
            served.asked.append(line)
            # Whoever asked may have had enough.
            with contextlib.suppress(OSError):
                try:
                    talk(self, line)
                except AssertionError as error:
                    # Nobody would hear of it in this thread.
                    served.faults.append(error)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        served = Served(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
    assert served.faults == []


def response(body: bytes, status: int = 200, kind: str = "application/json", *headers: str) -> bytes:
    """A whole answer of a web server."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def answering(answers: Answers) -> Any:
    """A server that knows these paths, and answers 404 to any other."""

    def talk(handler: socketserver.StreamRequestHandler, line: str) -> None:
        method, path, _ = line.split()
        answer = answers.get(path, (404, {"error": "not found"})) if method == "GET" else (405, {})
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        handler.wfile.write(response(json.dumps(body).encode(), status))

    return speaking(talk)


def saying(content: bytes) -> Any:
    """A server that sends just this, whatever it is asked."""

    def talk(handler: socketserver.StreamRequestHandler, _: str) -> None:
        handler.wfile.write(content)

    return speaking(talk)


def listing(*names: str, owner: str = "somebody", **more: Any) -> dict[str, Any]:
    """OpenAI's list of models."""
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner, **more} for name in names]}
