"""The broker's view of the edges: one channel each, a snapshot for decisions, and who is alive.

The registry says which edges there are; heartbeats to the edges themselves say which of them live. So a flushed or absent Redis takes no
edge away that answers, and an edge whose connection is refused is out at once, whatever its registry entry says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from moedge.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.broker.settings import BrokerSettings
from services.core.offload.engine import OffloadEngine
from services.core.offload.values import EdgeSnapshot, EdgeState, Work
from services.runtime.clock import Clock
from services.runtime.codec import entry_to_snapshot
from services.runtime.net import Cancellable, channel
from services.runtime.status import failure_of, not_found
from services.runtime.store import EdgeRegistry, WaitStore

logger = logging.getLogger(__name__)

CUT_OFF_RATIO = 3  # times as many heartbeats may go unanswered while the registry still hears of the edge


@dataclass(slots=True)
class EdgeLink:
    """One edge as this broker reaches it."""

    entry: worker_pb2.EdgeEntry
    received_at_s: float
    heard_at_s: float  # last time that the registry or the edge itself spoke of it
    channel: grpc.aio.Channel
    reachable: bool = True
    num_missed: int = 0
    calls: set[Cancellable] = field(default_factory=set)
    inference: inference_pb2_grpc.InferenceServiceAsyncStub = field(init=False)
    worker: worker_pb2_grpc.WorkerServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.worker = worker_pb2_grpc.WorkerServiceStub(self.channel)

    @property
    def edge_id(self) -> str:
        return self.entry.edge_id

    @contextmanager
    def calling(self, call: Cancellable) -> Iterator[None]:
        """While it runs, the call ends with the edge."""
        self.calls.add(call)
        try:
            yield
        finally:
            self.calls.discard(call)

    def take(self, entry: worker_pb2.EdgeEntry, now_s: float) -> None:
        """Keep the newer of what is known and what came. A new process of the worker counts its entries anew."""
        self.heard_at_s = now_s
        if entry.epoch != self.entry.epoch:
            self.reachable, self.num_missed = True, 0
        elif entry.sequence <= self.entry.sequence:
            return
        self.entry, self.received_at_s = entry, now_s


class EdgeView:
    def __init__(self, registry: EdgeRegistry, waits: WaitStore, engine: OffloadEngine, clock: Clock, settings: BrokerSettings) -> None:
        self._registry = registry
        self._waits = waits
        self._engine = engine
        self._clock = clock
        self._settings = settings
        self._links: dict[str, EdgeLink] = {}
        self._others: Mapping[str, Work] = {}
        self._snapshots: tuple[EdgeSnapshot, ...] = ()

    @property
    def snapshots(self) -> tuple[EdgeSnapshot, ...]:
        """Every known edge, by id; the same object until something changed."""
        return self._snapshots

    @property
    def links(self) -> tuple[EdgeLink, ...]:
        return tuple(self._links[edge_id] for edge_id in sorted(self._links))

    @property
    def any_ready(self) -> bool:
        return any(edge.state in (EdgeState.READY, EdgeState.UPDATING) for edge in self._snapshots)

    @property
    def max_new_tokens(self) -> int:
        return max((link.entry.max_new_tokens for link in self._links.values()), default=0)

    @property
    def connected(self) -> bool:
        return self._registry.connected and self._waits.connected

    def find(self, edge_id: str) -> EdgeLink | None:
        return self._links.get(edge_id)

    def link(self, edge_id: str) -> EdgeLink:
        """For operators: NOT_FOUND where there is none."""
        found = self._links.get(edge_id)
        if found is None:
            raise not_found("edge", edge_id)
        return found

    def others(self, edge_id: str) -> Work:
        return self._others.get(edge_id, Work())

    def eject(self, link: EdgeLink, why: str) -> None:
        """No task goes there until it answers again; calls that it has end now and are sent elsewhere."""
        if not link.reachable:
            return
        logger.warning("edge %s is unreachable: %s", link.edge_id, why)
        link.reachable = False
        for call in list(link.calls):
            call.cancel()
        self._rebuild()

    async def poll(self) -> None:
        """One look at the registry and at the other brokers' work."""
        entries = await self._registry.all()
        now_s = self._clock.now_s()
        for edge_id, entry in entries.items():
            await self._see(edge_id, entry, now_s)
        silent_s = self._settings.heartbeat_s * (self._settings.heartbeat_misses + 1)
        for edge_id, link in list(self._links.items()):
            if edge_id not in entries and (not link.reachable or now_s - link.heard_at_s > silent_s):
                logger.info("edge %s left", edge_id)
                del self._links[edge_id]
                await link.channel.close(None)
        self._others = await self._waits.others(sorted(self._links))
        self._rebuild()

    async def beat(self) -> None:
        """Heartbeats for ever; an edge that is slow to answer holds up no other."""
        while True:
            async with asyncio.TaskGroup() as group:
                for link in self.links:
                    group.create_task(self._heartbeat(link))
                await self._clock.sleep(self._settings.heartbeat_s)

    async def close(self) -> None:
        for link in self._links.values():
            await link.channel.close(None)
        self._links.clear()

    async def _see(self, edge_id: str, entry: worker_pb2.EdgeEntry, now_s: float) -> None:
        link = self._links.get(edge_id)
        if link is not None and link.entry.address != entry.address:
            self.eject(link, f"moved to {entry.address}")
            await link.channel.close(None)
            link = None
        elif link is not None and not link.reachable and link.entry.epoch != entry.epoch:
            # A new process at the old address: its first tasks do not meet the back-off that the dead one's channel is in.
            await link.channel.close(None)
            link = None
        if link is None:
            logger.info("edge %s at %s serves %s", edge_id, entry.address, entry.version[:12])
            self._links[edge_id] = EdgeLink(entry, now_s, now_s, channel(entry.address))
        else:
            link.take(entry, now_s)

    async def _heartbeat(self, link: EdgeLink) -> None:
        try:
            status = await link.worker.GetStatus(worker_pb2.GetStatusRequest(), timeout=self._settings.heartbeat_s)
        except grpc.aio.AioRpcError as error:
            link.num_missed += 1
            failure = failure_of(error)
            if failure.code is grpc.StatusCode.UNAVAILABLE:
                self.eject(link, failure.message)
            elif self._is_silent(link):
                self.eject(link, f"{link.num_missed} heartbeats in a row were not answered")
            return
        except grpc.aio.UsageError:
            return  # the channel was closed meanwhile: the edge left
        link.num_missed = 0
        if not link.reachable:
            logger.info("edge %s answers again", link.edge_id)
            link.reachable = True
        link.take(status.entry, self._clock.now_s())
        self._rebuild()

    def _is_silent(self, link: EdgeLink) -> bool:
        """An edge that renews its registry entry is busy or cut off from this broker alone: it is given longer."""
        misses = self._settings.heartbeat_misses
        renewed_s = self._clock.now_s() - link.received_at_s
        return link.num_missed >= (misses if renewed_s > misses * self._settings.heartbeat_s else CUT_OFF_RATIO * misses)

    def _rebuild(self) -> None:
        now_s = self._clock.now_s()
        snapshots = tuple(self._snapshot(link, now_s) for link in self.links)
        if snapshots != self._snapshots:
            self._snapshots = snapshots
            self._engine.prepare(snapshots, now_s)

    def _snapshot(self, link: EdgeLink, now_s: float) -> EdgeSnapshot:
        snapshot = entry_to_snapshot(link.entry, self.others(link.edge_id), now_s, received_at_s=link.received_at_s)
        return snapshot if link.reachable else replace(snapshot, state=EdgeState.UNREACHABLE)
