"""The merge controller: watches activation reports, decides by the merge engine when an edge re-merges, and sees the update through.

A shell around core. Serving never depends on it: without it edges keep the versions they have.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import redis.asyncio

from moedge.v1 import worker_pb2
from services.controller.clients import MergerClient
from services.controller.consumers import ActivationConsumer
from services.controller.edge_states import EdgeStates
from services.controller.merge_events import MergeEvents
from services.controller.metrics import ControllerMetrics
from services.controller.prospects import Prospects
from services.controller.settings import ControllerSettings
from services.controller.updates import Updates
from services.core.merging.engine import MergeEngine
from services.core.merging.fleet import FleetTrigger
from services.runtime import net
from services.runtime.clock import Clock
from services.runtime.eventlog import ACTIVATIONS, EventLog
from services.runtime.events import EventWriter
from services.runtime.lifecycle import drain, supervise
from services.runtime.recording import MERGE, Recording
from services.runtime.store import EdgeRegistry, TriggerStore
from services.runtime.telemetry import Telemetry
from services.runtime.tracing import consuming

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EdgeStatus:
    """What the controller thinks of one edge."""

    edge_id: str
    version: str
    phase: str  # "unknown" (no manifest yet) | "watch" | "build" | "load"
    mix: dict[str, float] = field(default_factory=dict)
    shift: float = 0.0  # at the last check
    interval_s: float = 0.0
    due_in_s: float = 0.0
    num_tasks: int = 0  # counted since the last decision
    action: str = ""  # of the last check
    reason: str = ""
    updates: int = 0
    failures: int = 0  # in a row
    last_error: str = ""


class Controller:
    """`async with Controller(...)`: entering binds the health server and starts watching, leaving ends updates under way (builds stay
    cached at the merger, a rollout under way is the worker's to finish)."""

    def __init__(
        self, settings: ControllerSettings, log: EventLog, redis: redis.asyncio.Redis, clock: Clock, network: net.Network = net.PLAINTEXT
    ) -> None:
        self._settings = settings
        self._log = log
        self._clock = clock
        self._telemetry = Telemetry("controller", settings, clock)
        self._network = network = self._telemetry.around(network)
        self._metrics = ControllerMetrics(self._telemetry.metrics)
        self._registry = EdgeRegistry(redis, clock)
        engine, self._recording = _engine(settings)
        store = TriggerStore(redis, clock)
        self._states = EdgeStates(engine, store, clock)
        self._merger = MergerClient(settings.merger_address, network)
        self._events = MergeEvents(EventWriter(log, f"controller-{uuid.uuid4().hex[:8]}", clock), self._metrics)
        self._updates = Updates(settings, self._states, self._merger, self._events, self._metrics, self._telemetry.tracer, clock, network)
        self._prospects = Prospects(settings, self._merger, engine)
        self._entries: dict[str, worker_pb2.EdgeEntry] = {}
        self._seen_at_s: dict[str, float] = {}
        self._skipped: dict[str, str] = {}
        self._retry_at_s: dict[str, float] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._address = ""
        self._telemetry.metrics.watch_event_log(log)
        self._telemetry.metrics.watch_redis(self._registry, store)
        self._telemetry.metrics.at_scrape(lambda: self._metrics.view(self.status()))

    @property
    def metrics_port(self) -> int | None:
        return self._telemetry.metrics.port

    @property
    def address(self) -> str:
        """Where the health server listens, once entered."""
        return self._settings.advertise or self._address

    @property
    def engine(self) -> MergeEngine:
        return self._states.engine

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._telemetry)
            await stack.enter_async_context(self._merger)
            server = self._network.server()
            health = net.add_health_and_reflection(server, ())
            self._address = self._network.bind(server, self._settings.host, self._settings.port)
            await server.start()
            stack.push_async_callback(drain, server, health, 0.0)
            stack.push_async_callback(self._end_work)
            group = self._settings.consumer_group
            handle = consuming(ActivationConsumer(self._states, self._metrics, self._clock).handle, self._telemetry.tracer, group)
            await stack.enter_async_context(self._log.subscribe(ACTIVATIONS, group, handle))
            if isinstance(self.engine.trigger, FleetTrigger):
                exploring = asyncio.create_task(supervise("prospects", self._explore, self._clock), name="prospects")
                stack.push_async_callback(_ended, exploring)
            watching = asyncio.create_task(supervise("merge controller", self._watch, self._clock), name="merge controller")
            stack.push_async_callback(_ended, watching)
            await health.serving()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._stack.aclose()
        finally:
            if self._recording is not None:
                self._recording.close()

    async def _watch(self) -> None:
        while True:
            await self.tick()
            await self._clock.sleep(self._settings.tick_s)

    async def _explore(self) -> None:
        while True:
            await self._clock.sleep(await self._prospects.look(self._entries))

    async def tick(self) -> None:
        """Look at every edge once: take over new versions, run the checks that are due, start the updates they ask for."""
        now_s = self._clock.now_s()
        self._entries = await self._registry.all()
        for edge_id, entry in sorted(self._entries.items()):
            self._seen_at_s[edge_id] = now_s
            if edge_id not in self._busy and entry.version:
                await self._look_at(entry, now_s)
        for edge_id in sorted(e for e, at_s in self._seen_at_s.items() if now_s - at_s > self._settings.forget_after_s):
            if edge_id not in self._busy:
                self._forget(edge_id)

    async def settled(self) -> None:
        """Wait for the updates under way, however they end."""
        while self._busy:
            await asyncio.wait(list(self._busy.values()))

    def status(self) -> tuple[EdgeStatus, ...]:
        """Every edge of the registry, for people to see."""
        return tuple(self._status(entry) for _, entry in sorted(self._entries.items()))

    async def _look_at(self, entry: worker_pb2.EdgeEntry, now_s: float) -> None:
        edge_id = entry.edge_id
        if not await self._states.known(edge_id) or self.engine.deployed_version(edge_id) != entry.version:
            if not self._updates.just_left(edge_id, entry.version) and now_s >= self._retry_at_s.get(edge_id, now_s):
                self._retry_at_s[edge_id] = now_s + self._settings.backoff_s
                self._start(edge_id, self._updates.adopt(entry))
            return
        self._retry_at_s.pop(edge_id, None)
        if now_s < self.engine.due_at_s(edge_id) or self.engine.pending(edge_id):
            return
        if reason := _reason_to_skip(entry):
            self._skip(edge_id, reason, now_s)
            return
        self._skipped.pop(edge_id, None)
        await self._check(entry, now_s)

    async def _check(self, entry: worker_pb2.EdgeEntry, now_s: float) -> None:
        edge_id = entry.edge_id
        request = self.engine.check(edge_id, now_s)
        decision = self.engine.decision(edge_id)
        assert decision is not None
        if request is not None:
            self._start(edge_id, self._updates.run(request, entry))
            return
        if decision.action == "keep":
            self._events.publish(
                "kept",
                edge_id,
                version=entry.version,
                reason=decision.reason,
                activation_shift=decision.shift,
                mix=dict(self.engine.deployed_mix(edge_id)),
                check_interval=decision.interval_s,
            )
        await self._states.save(edge_id)

    def _skip(self, edge_id: str, reason: str, now_s: float) -> None:
        """No check now. Counts go on, so that a decision is at hand when the edge is free again; said once, not at every look."""
        self.engine.postponed(edge_id, self._settings.backoff_s, now_s)
        if self._skipped.get(edge_id) != reason:
            self._skipped[edge_id] = reason
            self._events.publish("kept", edge_id, version=self.engine.deployed_version(edge_id), reason=reason)

    def _start(self, edge_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._supervised(edge_id, work), name=f"update {edge_id}")
        self._busy[edge_id] = task
        task.add_done_callback(lambda _: self._busy.pop(edge_id, None))

    async def _supervised(self, edge_id: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # the top of one edge's work
            logger.exception("update of %s ended unexpectedly", edge_id)
            if edge_id in self.engine.edges and self.engine.pending(edge_id):
                self.engine.failed(edge_id, self._clock.now_s())

    async def _end_work(self) -> None:
        for task in list(self._busy.values()):
            await _ended(task)

    def _forget(self, edge_id: str) -> None:
        self._states.forget(edge_id)
        for known in (self._seen_at_s, self._skipped, self._retry_at_s):
            known.pop(edge_id, None)

    def _status(self, entry: worker_pb2.EdgeEntry) -> EdgeStatus:
        edge_id, engine, updates = entry.edge_id, self.engine, self._updates
        last_error = updates.last_error.get(edge_id, "")
        if engine.deployed_version(edge_id) is None:
            return EdgeStatus(edge_id, entry.version, "unknown", last_error=last_error)
        decision = engine.decision(edge_id)
        return EdgeStatus(
            edge_id=edge_id,
            version=entry.version,
            phase=updates.phase.get(edge_id, "watch"),
            mix=dict(engine.deployed_mix(edge_id)),
            shift=decision.shift if decision else 0.0,
            interval_s=engine.interval_s(edge_id),
            due_in_s=max(0.0, engine.due_at_s(edge_id) - self._clock.now_s()),
            num_tasks=engine.num_tasks(edge_id),
            action="skip" if edge_id in self._skipped else (decision.action if decision else ""),
            reason=self._skipped.get(edge_id) or (decision.reason if decision else ""),
            updates=updates.num_done.get(edge_id, 0),
            failures=engine.num_failures(edge_id),
            last_error=last_error,
        )


def _engine(settings: ControllerSettings) -> tuple[MergeEngine, Recording | None]:
    """The engine, and the recording of its calls where one was asked for."""
    waits: Any = {"cool_down_s": settings.cool_down_s, "backoff_s": settings.backoff_s, "backoff_cap_s": settings.backoff_cap_s}
    engine = MergeEngine(settings.merge_trigger(), **waits)
    if settings.record is None:
        return engine, None
    made_of = {"trigger": settings.trigger, "trigger_options": settings.trigger_options, **waits}
    recording = Recording(settings.record, settings.record_limit_bytes, MERGE, made_of)
    return recording.around(engine), recording


def _reason_to_skip(entry: worker_pb2.EdgeEntry) -> str:
    if entry.pinned:
        return "pinned"
    if entry.state == worker_pb2.EDGE_STATE_DRAINING:
        return "draining"
    if entry.state == worker_pb2.EDGE_STATE_UPDATING:
        return "updating"
    return "" if entry.state == worker_pb2.EDGE_STATE_READY else "unreachable"


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
