"""Around every RPC of a server: its scope (request id, trace), its metrics, its span. Changes nothing about the call."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

import grpc
import grpc.aio

from services.runtime.around import around_calls
from services.runtime.clock import Clock
from services.runtime.metrics import RpcMetrics
from services.runtime.scope import REQUEST_ID, TRACEPARENT, read_traceparent, within
from services.runtime.tracing import Tracer

# Calls that begin a trace where their caller brought none. All others only go on with a caller's: heartbeats would drown everything.
TRACED = frozenset({"/moedge.v1.InferenceService/Generate"})
MAX_REQUEST_ID = 64

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Observer(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # any request, any response
    """The outermost interceptor, so that what others refuse is counted too."""

    def __init__(self, metrics: RpcMetrics, tracer: Tracer, clock: Clock) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            self._metrics.refused(method, grpc.StatusCode.UNIMPLEMENTED)
            return None
        return around_calls(handler, lambda context: self._observed(method, context))

    @asynccontextmanager
    async def _observed(self, method: str, context: Any) -> AsyncIterator[None]:
        began_at_s = self._clock.now_s()
        self._metrics.began()
        code = grpc.StatusCode.OK
        try:
            with self._scope(method, context.invocation_metadata() or ()):
                yield
            code = _code(context, code)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            code = _code(context, grpc.StatusCode.UNKNOWN)
            raise
        finally:
            self._metrics.ended(method, code, self._clock.now_s() - began_at_s)

    @contextmanager
    def _scope(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[None]:
        given = {key: value for key, value in metadata if key in (REQUEST_ID, TRACEPARENT) and isinstance(value, str)}
        trace = read_traceparent(given.get(TRACEPARENT))
        request_id = given.get(REQUEST_ID, "")[:MAX_REQUEST_ID] or uuid.uuid4().hex
        about = {"rpc.system.name": "grpc", "rpc.method": method[1:]}
        traced = trace is not None or method in TRACED
        with (
            within(request_id=request_id, trace=trace),
            self._tracer.span(method[1:], kind="server", attributes=about) if traced else nullcontext(),
        ):
            yield


def _code(context: Any, otherwise: grpc.StatusCode) -> grpc.StatusCode:
    said = context.code()
    return said if isinstance(said, grpc.StatusCode) else _CODES.get(said or 0, otherwise) if said else otherwise
