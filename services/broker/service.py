"""The broker as one async context manager: wires the shell's parts, serves between entering and leaving, drains on leaving.

Health is SERVING while at least one known edge can take tasks, so that a load balancer in front of several brokers avoids one that would
only answer UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, Self

import numpy as np
import redis.asyncio

from moedge.v1 import broker_pb2_grpc, inference_pb2_grpc
from services.broker.dispatcher import Dispatcher, Parts
from services.broker.edges import EdgeView
from services.broker.knowledge import Knowledge, learn_profiles
from services.broker.lag import LagWatch
from services.broker.metrics import BrokerMetrics, view_of
from services.broker.operations import BrokerServicer
from services.broker.publishing import WorkPublisher
from services.broker.servicer import InferenceServicer
from services.broker.settings import BrokerSettings
from services.broker.tasks import TaskBook
from services.core.offload import policies
from services.core.offload.engine import OffloadEngine, offload_engine
from services.runtime.clock import Clock
from services.runtime.eventlog import EventLog
from services.runtime.events import EventWriter
from services.runtime.lifecycle import supervise
from services.runtime.net import PLAINTEXT, Health, Network, add_health_and_reflection
from services.runtime.recording import OFFLOAD, Recording
from services.runtime.status import draining
from services.runtime.store import EdgeRegistry, WaitStore
from services.runtime.telemetry import Telemetry

logger = logging.getLogger(__name__)

SERVICES = ("moedge.v1.InferenceService", "moedge.v1.BrokerService")
CLOSING_S = 0.5  # for calls whose tasks have just ended to say so
FLUSH_S = 2.0
CANCEL_AGAIN_S = 0.1


class Broker:
    """`log` is entered and closed by whoever made it, and so is `redis`."""

    def __init__(
        self, settings: BrokerSettings, log: EventLog, redis: redis.asyncio.Redis, clock: Clock, network: Network = PLAINTEXT
    ) -> None:
        self.broker_id = settings.broker_id or f"broker-{uuid.uuid4().hex[:8]}"
        self._settings = settings
        self._log = log
        self._clock = clock
        self._telemetry = Telemetry("broker", settings, clock, SERVICES, self.broker_id)
        self._network = network = self._telemetry.around(network)
        engine, self._recording = _engine(settings)
        waits = WaitStore(redis, self.broker_id, clock)
        edges = EdgeView(EdgeRegistry(redis, clock), waits, engine, clock, settings, network)
        self._parts = Parts(
            engine=engine,
            edges=edges,
            knowledge=Knowledge(engine),
            book=TaskBook(clock, settings.retention_s, settings.retained_tasks),
            events=EventWriter(log, self.broker_id, clock),
            clock=clock,
            settings=settings,
            broker_id=self.broker_id,
            metrics=BrokerMetrics(self._telemetry.metrics),
            tracer=self._telemetry.tracer,
        )
        self._watch_by_metrics(waits)
        self._lag = LagWatch(log, settings, clock)
        self._publisher = WorkPublisher(engine, edges, waits, clock, settings)
        self._server = network.server()
        self._servicer = InferenceServicer(self._parts, Dispatcher(self._parts), self._spawn)
        self._health = self._add_services()
        self._stop = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._address = ""
        self._told_ready = False
        self._running: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """What others reach the broker at."""
        return self._settings.advertise or self._address

    @property
    def engine(self) -> OffloadEngine:
        return self._parts.engine

    @property
    def metrics_port(self) -> int | None:
        return self._telemetry.metrics.port

    async def __aenter__(self) -> Self:
        await self._telemetry.__aenter__()
        try:
            return await self._enter()
        except BaseException:
            await self._telemetry.__aexit__()
            raise

    async def _enter(self) -> Self:
        self._address = self._network.bind(self._server, self._settings.host, self._settings.port)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run(started), name="broker")
        await asyncio.wait({started, self._running}, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await self._running
        logger.info("broker %s listens on %s, policy %s", self.broker_id, self._address, self._parts.engine.policy_name)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._leave()
        finally:
            await self._telemetry.__aexit__()

    async def _leave(self) -> None:
        """Health, admission, tasks in flight within the grace, calls, own work in Redis, events, channels: in that order."""
        assert self._running is not None
        self._servicer.draining = True
        await self._health.draining()
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self._parts.book.idle()
        except TimeoutError:
            logger.warning("%d tasks did not finish within %g s", self._parts.book.num_running, self._settings.drain_s)
            for record in self._parts.book.running:
                record.end(draining("the broker shut down before the task was done; send it again"))
                if record.runner is not None:
                    record.runner.cancel()
        await self._server.stop(CLOSING_S)
        self._stop.set()
        await self._running
        await self._publisher.withdraw()
        if left := await self._log.flush(FLUSH_S):
            logger.error("%d events were not written", left)
        await self._parts.edges.close()
        if self._recording is not None:
            self._recording.close()

    def _watch_by_metrics(self, waits: WaitStore) -> None:
        parts, metrics = self._parts, self._telemetry.metrics
        metrics.watch_event_log(self._log)
        metrics.watch_redis(waits, parts.edges.registry)
        metrics.at_scrape(lambda: view_of(parts.metrics, parts.edges, parts.engine, parts.clock))

    def _add_services(self) -> Health:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self._servicer, self._server)
        broker_pb2_grpc.add_BrokerServiceServicer_to_server(BrokerServicer(self._parts, self._log, self._lag), self._server)
        return add_health_and_reflection(self._server, SERVICES)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._group.create_task(work)

    async def _run(self, started: asyncio.Future[None]) -> None:
        """Owns every task of the broker: its loops, and the users' tasks."""
        parts = self._parts
        async with self._group as group:
            await self._look()
            await self._server.start()
            loops = [
                group.create_task(supervise("edge view", self._watch, parts.clock)),
                group.create_task(supervise("heartbeats", parts.edges.beat, parts.clock)),
                group.create_task(supervise("work publishing", self._publisher.run, parts.clock)),
                group.create_task(supervise("lag", self._lag.run, parts.clock)),
            ]
            if merger_address := self._settings.merger_address:
                loops.append(group.create_task(supervise("profiles", lambda: self._learn(merger_address), parts.clock)))
            started.set_result(None)
            await self._stop.wait()
            await _cancelled(loops)

    async def _watch(self) -> None:
        while True:
            await self._look()
            await self._clock.sleep(self._settings.poll_s)

    async def _look(self) -> None:
        """Take in the edges, the task types that they name, and whether any can take tasks."""
        edges = self._parts.edges
        await edges.poll()
        self._parts.knowledge.see_edges(edges.snapshots)
        if edges.any_ready is not self._told_ready and not self._servicer.draining:
            self._told_ready = edges.any_ready
            await self._health.serving(self._told_ready)

    async def _learn(self, merger_address: str) -> None:
        await learn_profiles(self._parts.knowledge, merger_address, self._settings.base_model, self._clock, self._network)


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until it is so: a Redis client inside `asyncio.wait_for` (Python 3.11) may swallow a cancellation that meets its answer."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=CANCEL_AGAIN_S)


def _engine(settings: BrokerSettings) -> tuple[OffloadEngine, Recording | None]:
    """The engine, and the recording of its calls where one was asked for."""
    options = {"ties": settings.ties} if "ties" in policies.options(settings.policy) else {}
    seed = np.random.SeedSequence(settings.seed).entropy
    rng = np.random.default_rng(seed)
    engine = offload_engine(settings.policy, quality_scale=settings.quality_scale, rng=rng, policy_options=options)
    if settings.record is None:
        return engine, None
    made_of = {"policy_name": settings.policy, "quality_scale": settings.quality_scale, "seed": seed, "policy_options": options}
    recording = Recording(settings.record, settings.record_limit_bytes, OFFLOAD, made_of)
    return recording.around(engine), recording
