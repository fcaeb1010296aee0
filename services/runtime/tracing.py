"""Spans, for services that do not care whether anyone collects them. Without a collector nothing is made and a caller's trace is passed on.

OpenTelemetry is imported by `tracing_otel` alone, and only where an endpoint is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

from services.runtime.errors import SettingsError
from services.runtime.eventlog import Handler, Record
from services.runtime.scope import TraceContext, trace_of

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int | float | bool]
SpanOutcome = Literal["exported", "failed", "dropped"]


class Tracer(Protocol):
    def span(
        self, name: str, *, kind: Kind = "internal", links: Sequence[TraceContext] = (), attributes: Attributes | None = None
    ) -> AbstractContextManager[None]:
        """A span under the scope's trace, or of a new one; it is the scope's within the block. What is raised marks it."""
        ...

    def record(self, name: str, ago_s: float, lasted_s: float, attributes: Attributes | None = None) -> None:
        """A span under the scope's trace for something that is over: it began `ago_s` before now. No trace, no span."""
        ...

    async def close(self) -> None:
        """Send what waits, within a bound."""
        ...


class NoTracer:
    """Makes no spans. The scope keeps the trace that came with the call."""

    @contextmanager
    def span(
        self, name: str, *, kind: Kind = "internal", links: Sequence[TraceContext] = (), attributes: Attributes | None = None
    ) -> Iterator[None]:
        yield

    def record(self, name: str, ago_s: float, lasted_s: float, attributes: Attributes | None = None) -> None:
        pass

    async def close(self) -> None:
        pass


def open_tracer(endpoint: str | None, service: str, instance: str, count: Callable[[SpanOutcome, int], None]) -> Tracer:
    """`count` hears what became of spans, from any thread."""
    if not endpoint:
        return NoTracer()
    try:
        from services.runtime.tracing_otel import OtelTracer
    except ImportError as error:
        message = f"MOEDGE_OTLP_ENDPOINT: needs OpenTelemetry ({error.name} is missing); pip install 'moedge[otel]', or unset it"
        raise SettingsError(message) from error
    return OtelTracer(endpoint, service, instance, count)


def consuming(handler: Handler, tracer: Tracer, group: str) -> Handler:
    """The handler in a span of its own for each record. It links to the record's trace: one read of a batch belongs to many traces."""

    async def handle(record: Record) -> None:
        origin = trace_of(record.headers)
        about: dict[str, str | int | float | bool] = {
            "messaging.system": "kafka",
            "messaging.destination.name": record.topic,
            "messaging.consumer.group.name": group,
            "messaging.kafka.offset": record.offset,
        }
        with tracer.span(f"process {record.topic}", kind="consumer", links=[origin] if origin else [], attributes=about):
            await handler(record)

    return handle
