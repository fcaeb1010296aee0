"""What the cloud merger counts: builds, how long they took, what was shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric

from services.runtime.metrics import UPDATE_S, ServiceMetrics, gauge


class MergerMetrics:
    def __init__(self, metrics: ServiceMetrics) -> None:
        registry = metrics.registry
        builds = Counter("moedge_merger_builds", "Builds that ended.", ["outcome"], registry=registry)
        self._builds = {outcome: builds.labels(outcome) for outcome in ("built", "failed")}
        self._seconds = Histogram(
            "moedge_merger_build_seconds", "Time of builds, cached ones included.", buckets=UPDATE_S, registry=registry
        )
        self._sent = Counter("moedge_merger_sent_bytes", "Bytes of blobs sent to edges.", registry=registry)

    def built(self, lasted_s: float) -> None:
        self._builds["built"].inc()
        self._seconds.observe(lasted_s)

    def failed(self, lasted_s: float) -> None:
        self._builds["failed"].inc()
        self._seconds.observe(lasted_s)

    def sent(self, num_bytes: int) -> None:
        self._sent.inc(num_bytes)


def view_of(num_running: Callable[[], int]) -> Iterable[Metric]:
    yield gauge("moedge_merger_builds_running", "Builds that run or wait.", num_running())
