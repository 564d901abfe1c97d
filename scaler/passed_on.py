"""The headers that go with one answer to a runtime's HTTP server, such as W3C's ``traceparent``.

They travel beside the request in the task that reads the answer: only some runtimes speak HTTP, and no request body is
theirs to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context, ContextVar, copy_context
from types import MappingProxyType

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_HEADERS: ContextVar[Mapping[str, str]] = ContextVar("headers passed on", default=NO_HEADERS)


def passed_on() -> Mapping[str, str]:
    """The headers of the answer that this task reads; none by default."""
    return _HEADERS.get()


def with_headers(headers: Mapping[str, str]) -> Context:
    """A context for a task in which these are passed on."""
    context = copy_context()
    context.run(_HEADERS.set, headers)
    return context
