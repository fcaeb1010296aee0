"""Prometheus metrics of one service: a registry of its own, what every service has, and the HTTP server that shows them.

Label values come from allow-lists or are bounded, whatever users send. Counters and histograms are bound to their labels once; gauges
are read at the scrape. All of it works with no server.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol, Self

import grpc
from google.protobuf import descriptor_pool
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.runtime.eventlog import EventLog

logger = logging.getLogger(__name__)

OTHER = "other"
OTHER_METHOD = "_OTHER"
MAX_EDGES = 200
MAX_TASK_TYPES = 32
MAX_REASONS = 16
SAMPLE_WITHIN_S = 2.0

FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
SERVING_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
UPDATE_S = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)

Sample = Callable[[], Iterable[Metric]]


class Bounded:
    """Values of one label: those known from the start and the first `limit` others stay themselves, later ones become `other`."""

    def __init__(self, limit: int, known: Iterable[str] = ()) -> None:
        self._seen = set(known)
        self._left = limit

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if self._left == 0 or not value:
            return OTHER
        self._left -= 1
        self._seen.add(value)
        return value


class CountsErrors(Protocol):
    """A store in Redis."""

    @property
    def num_errors(self) -> int: ...

    @property
    def connected(self) -> bool: ...


class _AtScrape(Collector):
    """Runs samples on the service's event loop, whose state they read, though the scrape comes in on another thread."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def on_this_loop(self) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    def on_no_loop(self) -> None:
        self._loop = None

    def collect(self) -> Iterable[Metric]:
        loop = self._loop
        if loop is None or loop.is_closed() or self._thread == threading.get_ident():
            return self._all()
        future: Future[list[Metric]] = Future()
        loop.call_soon_threadsafe(self._into, future)
        try:
            return future.result(SAMPLE_WITHIN_S)
        except LateError:
            logger.warning("the event loop did not come round within %g s: a scrape goes without gauges", SAMPLE_WITHIN_S)
            return []

    def _into(self, future: Future[list[Metric]]) -> None:
        try:
            future.set_result(self._all())
        except Exception as error:  # belongs to the scrape
            future.set_exception(error)

    def _all(self) -> list[Metric]:
        return [metric for sample in self.samples for metric in sample()]


class ServiceMetrics:
    """`port` is where a `MetricsServer` shows them, None while none does."""

    def __init__(self, service: str, methods: Collection[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time stamp for each series would double their number
        self.registry = CollectorRegistry(auto_describe=False)
        self.port: int | None = None
        self.reads = _AtScrape()
        self.registry.register(self.reads)
        ProcessCollector(registry=self.registry)
        build = Gauge("moedge_build_info", "Which build this is; always 1.", ["service", "version"], registry=self.registry)
        build.labels(service, _version()).set(1)
        self.rpcs = RpcMetrics(self.registry, methods)
        spans = Counter("moedge_trace_spans", "Spans by what became of them.", ["outcome"], registry=self.registry)
        self._spans = {outcome: spans.labels(outcome) for outcome in ("exported", "failed", "dropped")}

    def at_scrape(self, sample: Sample) -> None:
        """`sample` runs on the event loop at every scrape; it must only read."""
        self.reads.samples.append(sample)

    def count_spans(self, outcome: str, num_spans: int) -> None:
        self._spans[outcome].inc(num_spans)

    def watch_event_log(self, log: EventLog) -> None:
        self.at_scrape(lambda: _event_log(log))

    def watch_redis(self, *stores: CountsErrors) -> None:
        self.at_scrape(lambda: _redis(stores))


class MetricsServer:
    """`async with MetricsServer(metrics, host, port)`; without a port it does nothing."""

    def __init__(self, metrics: ServiceMetrics, host: str, port: int | None) -> None:
        self._metrics = metrics
        self._host = host
        self._port = port
        self._stop: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        self._metrics.reads.on_this_loop()
        if self._port is not None:
            await asyncio.to_thread(self._start, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stop is not None:
            await asyncio.to_thread(self._stop)
        self._metrics.reads.on_no_loop()
        self._metrics.port = None

    def _start(self, port: int) -> None:
        try:
            server, thread = start_http_server(port, self._host, self._metrics.registry)
        except OSError as error:
            message = f"metrics_port: cannot listen on {self._host}:{port} ({error.strerror}); choose another port"
            raise OSError(message) from error
        self._metrics.port = server.server_port

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop


class RpcMetrics:
    """Calls that a server took. Methods outside the allow-list share one name, whatever a client calls."""

    def __init__(self, registry: CollectorRegistry, methods: Collection[str]) -> None:
        self._methods = frozenset(methods)
        self._calls = Counter("moedge_rpc_calls", "RPCs that ended, by method and status code.", ["method", "code"], registry=registry)
        self._seconds = Histogram("moedge_rpc_seconds", "Duration of RPCs.", ["method"], buckets=SERVING_S, registry=registry)
        self._active = Gauge("moedge_rpc_active", "RPC handlers that run now.", registry=registry)
        self._code = cache(lambda method, code: self._calls.labels(method, code))
        self._duration = cache(self._seconds.labels)

    def began(self) -> None:
        self._active.inc()

    def ended(self, method: str, code: grpc.StatusCode, lasted_s: float) -> None:
        self._active.dec()
        self.refused(method, code)
        self._duration(self._named(method)).observe(lasted_s)

    def refused(self, method: str, code: grpc.StatusCode) -> None:
        """A call that no handler ever saw."""
        self._code(self._named(method), code.name).inc()

    def _named(self, method: str) -> str:
        return method if method in self._methods else OTHER_METHOD


def methods_of(service_names: Iterable[str]) -> frozenset[str]:
    """`/package.Service/Method` of each service, health checks and reflection included."""
    pool = descriptor_pool.Default()
    found = {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
    for name in service_names:
        found |= {f"/{name}/{method.name}" for method in pool.FindServiceByName(name).methods}
    return frozenset(found)


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def gauges(name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for named, value in values:
        family.add_metric(named, value)
    return family


def _event_log(log: EventLog) -> Iterable[Metric]:
    yield gauge("moedge_kafka_connected", "1 while the event log is connected.", float(log.connected))
    yield gauge("moedge_kafka_outbox_depth", "Events that wait for the event log.", log.outbox_depth)
    yield CounterMetricFamily("moedge_kafka_outbox_dropped", "Events lost because the outbox was full.", value=log.num_dropped)
    lags = log.lags
    labels = ("topic", "group")
    yield gauges(
        "moedge_kafka_consumer_lag", "Records not yet handled.", labels, [((lag.topic, lag.group), lag.num_records) for lag in lags]
    )
    yield gauges(
        "moedge_kafka_consumer_behind_seconds",
        "Age of what is handled now, by event time; 0 where nothing waits.",
        labels,
        [((lag.topic, lag.group), lag.behind_s) for lag in lags],
    )


def _redis(stores: Sequence[CountsErrors]) -> Iterable[Metric]:
    yield CounterMetricFamily("moedge_redis_errors", "Calls to Redis that failed.", value=sum(store.num_errors for store in stores))
    yield gauge("moedge_redis_connected", "1 while Redis answers.", float(all(store.connected for store in stores)))


def _version() -> str:
    try:
        return version("moedge")
    except PackageNotFoundError:
        return "unknown"
