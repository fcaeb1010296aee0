"""Activation reports: sums of expert counts over at least so many tasks; one task's choices can give its prompt away and never leave."""

from __future__ import annotations

from services.runtime.clock import Clock
from services.runtime.events import EventWriter
from services.runtime.tracing import Tracer
from services.worker.batch_loop import BatchLoop
from services.worker.metrics import WorkerMetrics


class ActivationReports:
    """`epoch` names this run of the worker, so that readers tell a restart from a gap."""

    def __init__(
        self,
        edge_id: str,
        epoch: str,
        loop: BatchLoop,
        events: EventWriter,
        metrics: WorkerMetrics,
        tracer: Tracer,
        clock: Clock,
        *,
        min_tasks: int,
        interval_s: float,
    ) -> None:
        self._edge_id = edge_id
        self._epoch = epoch
        self._loop = loop
        self._events = events
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._min_tasks = min_tasks
        self._interval_s = interval_s
        self._since_s: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            await self._clock.sleep(self._interval_s)
            await self.report()

    async def report(self) -> None:
        """Publish what has come together. Counts of a version that ends with fewer tasks are dropped with it."""
        now_s = self._clock.now_s()
        self._since_s = {version: self._since_s.get(version, now_s - self._interval_s) for version in self._loop.versions}
        for taken in await self._loop.at_boundary(lambda engine: engine.take_counts(self._min_tasks)):
            window_s = now_s - self._since_s.get(taken.version, now_s)
            self._metrics.reported(taken.counts)
            with self._tracer.span("report activations", kind="producer", attributes={"edge_id": self._edge_id}):
                self._events.activations(
                    self._edge_id,
                    taken.version,
                    taken.counts,
                    num_tasks=taken.num_tasks,
                    tasks_by_region=taken.tasks_by_region,
                    window_s=window_s,
                    epoch=self._epoch,
                )
            self._since_s[taken.version] = now_s
