"""``GET /metrics``: the figures of this daemon, for Prometheus to scrape.

Owns the registry, one for each endpoint: two managers in one program do not clash. What there is to tell is
`scaler.metrics`' own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from scaler.manager import ModelManager
from scaler.metrics.happenings import Happenings
from scaler.metrics.snapshot import Snapshot

PATH = "/metrics"
OPENMETRICS = "application/openmetrics-text"


class Metrics:
    """The handler."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        registry = CollectorRegistry()
        self._happenings = Happenings(manager.scaler, registry)
        registry.register(Snapshot(manager))
        ProcessCollector(registry=registry)
        self._shown = _WithoutCreated(registry)

    def add_to(self, app: web.Application) -> None:
        """Have ``app`` serve it, and count for as long as it runs."""
        app.add_routes([web.get(PATH, self.tell)])
        app.cleanup_ctx.append(self._count)

    async def _count(self, _: web.Application) -> AsyncGenerator[None, None]:
        leave = [
            self._manager.scaler.subscribe(self._happenings.take),
            self._manager.courses.subscribe(self._happenings.ended),
        ]
        yield
        for way_out in leave:
            way_out()

    async def tell(self, request: web.Request) -> web.Response:
        """Everything, in the format that is asked for."""
        self._happenings.show_levels()
        # Not by the library's own negotiation, which believes in versions that there are not.
        if _takes_openmetrics(request.headers.getall(hdrs.ACCEPT, [])):
            body = openmetrics.generate_latest(self._shown)  # type: ignore[no-untyped-call]
            kind = openmetrics.CONTENT_TYPE_LATEST
        else:
            body, kind = generate_latest(self._shown), CONTENT_TYPE_PLAIN_0_0_4
        response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: kind})
        response.enable_compression()
        return response


class _WithoutCreated(Collector):
    """Leaves out when each series began, which would double them for a figure that Prometheus keeps by itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _takes_openmetrics(accepted: Iterable[str]) -> bool:
    kinds = [kind.partition(";")[0].strip().lower() for line in accepted for kind in line.split(",")]
    return OPENMETRICS in kinds
