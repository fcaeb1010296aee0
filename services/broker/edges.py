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
from services.core.offload.unclaimed import unclaimed_work
from services.core.offload.values import EdgeSnapshot, EdgeState, Work
from services.runtime.clock import Clock
from services.runtime.codec import entry_to_snapshot
from services.runtime.net import PLAINTEXT, Cancellable, Network
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
    answered: bool = False  # at least once
    num_running: int = 0  # tasks, as the edge said last
    num_queued: int = 0
    num_tasks_by_broker: Mapping[str, int] = field(default_factory=dict)
    calls: set[Cancellable] = field(default_factory=set)
    newest: dict[str, int] = field(default_factory=dict)  # sequence number by process of the worker: its epoch
    snapshot: EdgeSnapshot | None = None  # as last made, of the entry `snapshot_of`
    snapshot_of: worker_pb2.EdgeEntry | None = None
    inference: inference_pb2_grpc.InferenceServiceAsyncStub = field(init=False)
    worker: worker_pb2_grpc.WorkerServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.worker = worker_pb2_grpc.WorkerServiceStub(self.channel)
        self.newest[self.entry.epoch] = self.entry.sequence

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
        if self.is_of_the_past(entry):
            return
        self.heard_at_s = now_s
        if entry.epoch != self.entry.epoch:
            self.reachable, self.num_missed = True, 0
        elif entry.sequence <= self.entry.sequence:
            return
        self.entry, self.received_at_s = entry, now_s
        self.newest[entry.epoch] = entry.sequence

    def is_of_the_past(self, entry: worker_pb2.EdgeEntry) -> bool:
        """Whether it is from a process before this one and was seen already: all that is known of the registry while Redis is away."""
        return entry.epoch != self.entry.epoch and entry.sequence <= self.newest.get(entry.epoch, -1)


class EdgeView:
    def __init__(
        self,
        registry: EdgeRegistry,
        waits: WaitStore,
        engine: OffloadEngine,
        clock: Clock,
        settings: BrokerSettings,
        network: Network = PLAINTEXT,
    ) -> None:
        self.registry = registry
        self._waits = waits
        self._engine = engine
        self._clock = clock
        self._settings = settings
        self._network = network
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
        return self.registry.connected and self._waits.connected

    def find(self, edge_id: str) -> EdgeLink | None:
        return self._links.get(edge_id)

    def link(self, edge_id: str) -> EdgeLink:
        """For operators: NOT_FOUND where there is none."""
        found = self._links.get(edge_id)
        if found is None:
            raise not_found("edge", edge_id, self._links)
        return found

    def others(self, edge_id: str) -> Work:
        """Work there that is not this broker's: as the other brokers publish it, and what the edge has of brokers that do not."""
        link = self._links.get(edge_id)
        published = self._others.get(edge_id, Work())
        if link is None or not link.num_tasks_by_broker:
            return published
        claimed = self._waits.living | {self._waits.broker_id}
        return published + unclaimed_work(link.num_tasks_by_broker, claimed, self._engine.predictors.output_length.usual_tokens)

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
        entries = await self.registry.all()
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
        newest = link.newest if link is not None else {}
        if link is not None and link.is_of_the_past(entry):
            return
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
            self._links[edge_id] = EdgeLink(entry, now_s, now_s, self._network.channel(entry.address, "worker"), newest=newest)
        else:
            link.take(entry, now_s)

    async def _say_tls_trouble(self, link: EdgeLink) -> None:
        if trouble := await self._network.trouble(link.entry.address, "worker", timeout_s=self._settings.heartbeat_s):
            logger.error("%s", trouble, extra={"edge_id": link.edge_id})

    async def _heartbeat(self, link: EdgeLink) -> None:
        try:
            status = await link.worker.GetStatus(worker_pb2.GetStatusRequest(), timeout=self._settings.heartbeat_s)
        except grpc.aio.AioRpcError as error:
            link.num_missed += 1
            failure = failure_of(error)
            if failure.code is grpc.StatusCode.UNAVAILABLE:
                was_reachable = link.reachable
                self.eject(link, failure.message)
                if was_reachable and self._network.is_secure:
                    await self._say_tls_trouble(link)
            elif self._is_silent(link):
                silence = f"{link.num_missed} heartbeats in a row were not answered"
                self.eject(link, silence if link.answered else f"{silence}; does its advertised address {link.entry.address} lead here?")
            return
        except grpc.aio.UsageError:
            return  # the channel was closed meanwhile: the edge left
        if status.entry.edge_id != link.edge_id:
            # Addresses are handed out again, containers' above all; the registry soon says where this edge is.
            link.num_missed += 1
            self.eject(link, f"edge {status.entry.edge_id} answers at its address {link.entry.address}")
            return
        link.num_missed, link.answered = 0, True
        link.num_running, link.num_queued = status.running_tasks, status.queued_tasks
        link.num_tasks_by_broker = dict(status.tasks_by_broker)
        if not link.reachable:
            logger.info("edge %s answers again", link.edge_id)
            link.reachable = True
        link.take(status.entry, self._clock.now_s())
        self._rebuild()

    def _is_silent(self, link: EdgeLink) -> bool:
        """An edge that renews its registry entry is busy or cut off from this broker alone: it is given longer, if it ever answered."""
        misses = self._settings.heartbeat_misses
        if not link.answered:
            return link.num_missed >= misses
        renewed_s = self._clock.now_s() - link.received_at_s
        return link.num_missed >= (misses if renewed_s > misses * self._settings.heartbeat_s else CUT_OFF_RATIO * misses)

    def _rebuild(self) -> None:
        now_s = self._clock.now_s()
        snapshots = tuple(self._snapshot(link, now_s) for link in self.links)
        if snapshots != self._snapshots:
            self._snapshots = snapshots
            self._engine.prepare(snapshots, now_s)

    def _snapshot(self, link: EdgeLink, now_s: float) -> EdgeSnapshot:
        """Made anew only where something changed: every heartbeat of every edge asks for all of them."""
        others, known = self.others(link.edge_id), link.snapshot
        if known is None or link.snapshot_of is not link.entry or known.others != others or link.entry.HasField("unavailable"):
            known = entry_to_snapshot(link.entry, others, now_s, received_at_s=link.received_at_s)
            link.snapshot, link.snapshot_of = known, link.entry
        return known if link.reachable else replace(known, state=EdgeState.UNREACHABLE)
