"""What the running code works on: which request, which task, which trace. Follows calls and child tasks, ends with its `with` block.

Logs, event headers and outgoing calls read it, so that nobody hands ids around by hand. Nothing here depends on OpenTelemetry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

TRACEPARENT = "traceparent"
REQUEST_ID = "x-request-id"

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C Trace Context: the trace, and the span in it that whatever happens next belongs under."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits
    flags: str = "01"

    @property
    def header(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


@dataclass(frozen=True, slots=True)
class Scope:
    request_id: str = ""
    task_id: str = ""
    trace: TraceContext | None = None

    def fields(self) -> dict[str, str]:
        """What is known, by the names that logs use."""
        found = {"task_id": self.task_id, "request_id": self.request_id}
        if self.trace is not None:
            found |= {"trace_id": self.trace.trace_id, "span_id": self.trace.span_id}
        return {name: value for name, value in found.items() if value}


_current: ContextVar[Scope] = ContextVar("scope", default=Scope())  # noqa: B039  # immutable


def current() -> Scope:
    return _current.get()


@contextmanager
def within(*, request_id: str | None = None, task_id: str | None = None, trace: TraceContext | None = None) -> Iterator[None]:
    """Narrow the scope; what is not given stays."""
    given = {"request_id": request_id, "task_id": task_id, "trace": trace}
    token = _current.set(replace(_current.get(), **{name: value for name, value in given.items() if value is not None}))  # type: ignore[arg-type]
    try:
        yield
    finally:
        _current.reset(token)


def read_traceparent(header: str | None) -> TraceContext | None:
    """None for what is not a valid `traceparent`: such a header is as good as none."""
    match = _FORM.match(header[:64]) if header else None
    if match is None or (match.end() < len(header or "") and (header or "").startswith("00")):
        return None
    return TraceContext(*match.groups())


def trace_of(headers: Mapping[str, str]) -> TraceContext | None:
    return read_traceparent(headers.get(TRACEPARENT))


def outgoing() -> tuple[tuple[str, str], ...]:
    """gRPC metadata of calls made within this scope."""
    scope = _current.get()
    metadata = [(REQUEST_ID, scope.request_id)] if scope.request_id else []
    if scope.trace is not None:
        metadata.append((TRACEPARENT, scope.trace.header))
    return tuple(metadata)


def event_headers() -> dict[str, str]:
    """Headers of events written within this scope."""
    trace = _current.get().trace
    return {} if trace is None else {TRACEPARENT: trace.header}
