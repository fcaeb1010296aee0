"""Publishes this broker's work outstanding, so that the other brokers' wait predictions count it, and workers see that the broker lives.

One field an edge, written by nobody else; at most every `publish_s`, at least every `republish_s`.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.broker.edges import EdgeView
from services.broker.settings import BrokerSettings
from services.core.offload.engine import OffloadEngine
from services.core.offload.values import Work
from services.runtime.clock import Clock
from services.runtime.store import WaitStore


class WorkPublisher:
    def __init__(self, engine: OffloadEngine, edges: EdgeView, waits: WaitStore, clock: Clock, settings: BrokerSettings) -> None:
        self._engine = engine
        self._edges = edges
        self._waits = waits
        self._clock = clock
        self._settings = settings
        self._published: Mapping[str, Work] = {}
        self._published_at_s = float("-inf")

    async def run(self) -> None:
        while True:
            await self.publish()
            await self._clock.sleep(self._settings.publish_s)

    async def publish(self) -> None:
        now_s = self._clock.now_s()
        outstanding = self._outstanding(now_s)
        if outstanding == self._published and now_s - self._published_at_s < self._settings.republish_s:
            return
        self._published, self._published_at_s = outstanding, now_s
        waits = {edge.edge_id: self._engine.wait_s(edge, now_s) for edge in self._edges.snapshots if edge.edge_id in outstanding}
        await self._waits.publish(outstanding, waits)

    async def withdraw(self) -> None:
        await self._waits.publish({})

    def _outstanding(self, now_s: float) -> dict[str, Work]:
        """Edges with work, and one without so that an idle broker shows that it lives."""
        outstanding = dict(self._engine.outstanding(now_s))
        if not outstanding and self._edges.snapshots:
            outstanding[self._edges.snapshots[0].edge_id] = Work()
        return outstanding
