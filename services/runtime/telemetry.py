"""What a service shows of itself, in one object: metrics, traces, and the interceptor that feeds both."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Self

from services.runtime.clock import Clock
from services.runtime.metrics import MetricsServer, ServiceMetrics, methods_of
from services.runtime.net import Network
from services.runtime.observing import Observer
from services.runtime.settings import ServiceSettings
from services.runtime.tracing import Tracer, open_tracer


class Telemetry:
    """`async with`: metrics are served where a port is set; leaving sends the last spans, within a bound."""

    def __init__(
        self, service: str, settings: ServiceSettings, clock: Clock, service_names: Sequence[str] = (), instance: str = ""
    ) -> None:
        self.metrics = ServiceMetrics(service, methods_of(service_names))
        self.tracer: Tracer = open_tracer(settings.otlp_endpoint, service, instance or uuid.uuid4().hex[:8], self.metrics.count_spans)
        self.interceptor = Observer(self.metrics.rpcs, self.tracer, clock)
        self._server = MetricsServer(self.metrics, settings.host, settings.metrics_port)
        self._exit = AsyncExitStack()

    def around(self, network: Network) -> Network:
        """The network, with every call that its servers take observed."""
        return replace(network, interceptors=(self.interceptor, *network.interceptors))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.tracer.close)
            await stack.enter_async_context(self._server)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()
