"""Spans sent to an OTLP/gRPC collector. Needs the extra `otel`; imported only where an endpoint is set.

Spans leave on a thread of their own through a bounded queue. A collector that is away costs spans, which are counted, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from services.runtime.scope import TraceContext, current, within
from services.runtime.tracing import Attributes, Kind, SpanOutcome

logger = logging.getLogger(__name__)

MAX_WAITING = 2048
BATCH = 512
EXPORT_EVERY_S = 1.0
EXPORT_TIMEOUT_S = 5.0
CLOSE_WITHIN_S = 2.0

_KINDS = {kind: SpanKind[kind.upper()] for kind in ("internal", "server", "client", "producer", "consumer")}

Count = Callable[[SpanOutcome, int], None]


class _Exporter(SpanExporter):
    """Counts what became of each batch, and says once that a collector is away or back."""

    def __init__(self, inner: SpanExporter, endpoint: str, count: Count, taken: Callable[[int], None]) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._count = count
        self._taken = taken
        self._reached = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._taken(len(spans))
        result = self._inner.export(spans)
        reached = result is SpanExportResult.SUCCESS
        self._count("exported" if reached else "failed", len(spans))
        if reached is not self._reached:
            self._reached = reached
            logger.warning("traces reach %s again" if reached else "traces do not reach %s; they are dropped", self._endpoint)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class _Bounded(SpanProcessor):
    """Drops and counts what a full queue cannot take; the library would drop it silently."""

    def __init__(self, exporter: SpanExporter, endpoint: str, count: Count) -> None:
        self._count = count
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._batches = BatchSpanProcessor(
            _Exporter(exporter, endpoint, count, self._taken),
            max_queue_size=MAX_WAITING,
            schedule_delay_millis=EXPORT_EVERY_S * 1000,
            max_export_batch_size=BATCH,
            export_timeout_millis=EXPORT_TIMEOUT_S * 1000,
        )

    def on_end(self, span: ReadableSpan) -> None:
        if not span.context.trace_flags.sampled:
            return
        with self._lock:
            full = self._num_waiting >= MAX_WAITING
            self._num_waiting += not full
        if full:
            self._count("dropped", 1)
        else:
            self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._batches.force_flush(timeout_millis)

    def _taken(self, num_spans: int) -> None:
        with self._lock:
            self._num_waiting -= num_spans


class OtelTracer:
    """Each service has its own: no global provider."""

    def __init__(self, endpoint: str, service: str, instance: str, count: Count) -> None:
        url = endpoint if "://" in endpoint else f"http://{endpoint}"
        exporter = OTLPSpanExporter(endpoint=url, insecure=not url.startswith("https://"), timeout=EXPORT_TIMEOUT_S)
        resource = Resource({"service.name": f"moedge-{service}", "service.instance.id": instance})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = exporter
        self._provider.add_span_processor(_Bounded(exporter, url, count))
        self._tracer = self._provider.get_tracer("moedge")

    @contextmanager
    def span(
        self, name: str, *, kind: Kind = "internal", links: Sequence[TraceContext] = (), attributes: Attributes | None = None
    ) -> Iterator[None]:
        span = self._tracer.start_span(
            name,
            _parent(current().trace),
            kind=_KINDS[kind],
            attributes=attributes,
            links=[Link(_context(link)) for link in links],
            record_exception=False,
        )
        try:
            with within(trace=_trace(span)):
                yield
        except BaseException as error:
            # The type, not the text: texts may quote what a user sent.
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            span.end()

    def record(self, name: str, ago_s: float, lasted_s: float, attributes: Attributes | None = None) -> None:
        trace = current().trace
        if trace is None:
            return
        began_ns = time.time_ns() - round(ago_s * 1e9)
        span = self._tracer.start_span(name, _parent(trace), attributes=attributes, start_time=began_ns)
        span.end(began_ns + round(lasted_s * 1e9))

    async def close(self) -> None:
        closing = threading.Thread(target=self._close, name="traces", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_WITHIN_S)

    def _close(self) -> None:
        self._provider.force_flush(round(CLOSE_WITHIN_S * 500))
        self._exporter.shutdown()  # first: ends a batch that is being tried again
        self._provider.shutdown()


def _parent(trace: TraceContext | None) -> Context:
    return Context() if trace is None else set_span_in_context(NonRecordingSpan(_context(trace)), Context())


def _context(trace: TraceContext) -> SpanContext:
    return SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), is_remote=True, trace_flags=TraceFlags(int(trace.flags, 16)))


def _trace(span: Span) -> TraceContext:
    context = span.get_span_context()
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{context.trace_flags:02x}")
