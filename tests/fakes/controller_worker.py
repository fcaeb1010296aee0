"""An edge worker as the merge controller sees it: a registry entry, activation reports, LoadVersion over real gRPC. It runs no model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np
from numpy.typing import NDArray

from moedge.v1 import worker_pb2, worker_pb2_grpc
from services.runtime.codec import duration
from services.runtime.events import EventWriter
from services.runtime.net import bind, server
from services.runtime.status import RpcFailure, guarded
from services.runtime.store import EdgeRegistry
from tests.unit.merging_builders import draw_counts

ENTRY_TTL_S = 60.0  # tests on virtual time send no heartbeats


class FakeControllerWorker(worker_pb2_grpc.WorkerServiceServicer):
    """`refuse` and `swap_error` script what LoadVersion does; `profiles` are the expected counts of one task by task type."""

    def __init__(self, edge_id: str, registry: EdgeRegistry, events: EventWriter, profiles: Mapping[str, NDArray[np.float64]]) -> None:
        self._registry = registry
        self._events = events
        self._profiles = profiles
        self._rng = np.random.default_rng(7)
        self.entry = worker_pb2.EdgeEntry(
            edge_id=edge_id, base_model="base-1", state=worker_pb2.EDGE_STATE_READY, memory_bytes=1_000, model_bytes=900
        )
        self.loads: list[str] = []
        self.refuse: RpcFailure | None = None
        self.swap_error = ""
        self.registry_lags = False

    @asynccontextmanager
    async def serving(self, version: str) -> AsyncIterator[FakeControllerWorker]:
        grpc_server = server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, grpc_server)
        self.entry.address = bind(grpc_server, "127.0.0.1", 0)
        self.entry.version = version
        await grpc_server.start()
        await self.register()
        try:
            yield self
        finally:
            await grpc_server.stop(0)

    async def register(self) -> None:
        await self._registry.put(self.entry, ttl_s=ENTRY_TTL_S)

    def report(self, mix: Mapping[str, float], *, reports: int = 6, version: str | None = None, region: str = "") -> None:
        """Publish activation reports of 20 tasks each, drawn from the mix, all from the region if one is given."""
        for _ in range(reports):
            counts = draw_counts(self._rng, self._profiles, mix, 20)
            self._events.activations(
                self.entry.edge_id,
                version or self.entry.version,
                counts,
                num_tasks=20,
                tasks_by_region={region: 20} if region else {},
                window_s=2.0,
                epoch="e1",
            )

    @guarded
    async def LoadVersion(self, request, context):
        self.loads.append(request.version)
        if self.refuse is not None:
            raise self.refuse
        report = worker_pb2.SwapReport(
            edge_id=self.entry.edge_id,
            from_version=self.entry.version,
            to_version=request.version,
            stall=duration(0.004),
            bytes_fetched=100,
            bytes_full=900,
            ok=not self.swap_error,
            error=self.swap_error,
        )
        if report.ok:
            self.entry.previous_version, self.entry.version = self.entry.version, request.version
            if not self.registry_lags:
                await self.register()
        return worker_pb2.LoadVersionResponse(report=report)
