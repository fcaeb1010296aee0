"""An edge worker put together: settings, an edge and the adapters in; a gRPC server that serves merged models out.

Entering it ends when it is ready to serve. Leaving it drains: health first, then what is in flight, then what is still to be said.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any, Self

import redis.asyncio
from prometheus_client.metrics_core import Metric

from moedge.v1 import inference_pb2_grpc, worker_pb2_grpc
from services.model.blob_store import BlobStore
from services.model.device import pick_device
from services.model.generation import BatchEngine
from services.model.recorder import CountingRecorder
from services.model.threads import single_thread
from services.runtime.clock import Clock
from services.runtime.edges import EdgeConfig
from services.runtime.eventlog import EventLog
from services.runtime.events import EventWriter
from services.runtime.failpoints import WORKER_POINTS, Failpoint
from services.runtime.lifecycle import drain, supervise
from services.runtime.net import PLAINTEXT, Health, Network, add_health_and_reflection
from services.runtime.status import draining, starting
from services.runtime.store import EdgeRegistry
from services.runtime.telemetry import Telemetry
from services.worker.batch_loop import BatchLoop
from services.worker.closing import RedisPulse, TaskCloser
from services.worker.committed import VersionDirectory
from services.worker.emulation import Device
from services.worker.fetch import Fetcher
from services.worker.first_version import FirstVersion, Starter
from services.worker.idle_measuring import IdleMeasuring
from services.worker.joining import advertised
from services.worker.loading import Loader, free
from services.worker.metrics import WorkerMetrics
from services.worker.presence import Presence
from services.worker.reports import ActivationReports
from services.worker.servicer import InferenceServicer, Parts, WorkerServicer
from services.worker.settings import WorkerSettings
from services.worker.updates import Updater
from services.worker.warm_up import warm_up

logger = logging.getLogger(__name__)

SERVICE_NAMES = ("moedge.v1.InferenceService", "moedge.v1.WorkerService")
HEALTH_INTERVAL_S = 0.5
FLUSH_S = 2.0


class Worker:
    def __init__(
        self,
        settings: WorkerSettings,
        edge: EdgeConfig,
        log: EventLog,
        redis: redis.asyncio.Redis,
        clock: Clock,
        network: Network = PLAINTEXT,
    ) -> None:
        self._settings = settings
        self._edge = edge
        self._log = log
        self._redis = redis
        self._clock = clock
        self._telemetry = Telemetry("worker", settings, clock, SERVICE_NAMES, edge.name)
        self._metrics = WorkerMetrics(self._telemetry.metrics, edge.name)
        self._telemetry.metrics.watch_event_log(log)
        self._telemetry.metrics.at_scrape(self._view)
        self._network = self._telemetry.around(network)
        self._epoch = uuid.uuid4().hex
        self._device = pick_device(edge.device)
        self._registry = EdgeRegistry(redis, clock)
        self._directory = settings.cache_dir.expanduser() / edge.name
        self._parts: Parts | None = None
        self._leaving = False
        self._stack = AsyncExitStack()
        self._address = ""

    @property
    def address(self) -> str:
        """Where others reach this worker."""
        return self._address

    @property
    def version(self) -> str:
        return self._ready().updater.present.version

    @property
    def metrics_port(self) -> int | None:
        return self._telemetry.metrics.port

    def _view(self) -> Iterable[Metric]:
        parts = self._parts
        return () if parts is None else self._metrics.view(parts.presence.entry(), parts.loop)

    def _ready(self) -> Parts:
        if self._parts is None:
            raise draining() if self._leaving else starting(f"edge {self._edge.name} is starting")
        return self._parts

    async def __aenter__(self) -> Self:
        try:
            await self._enter()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _enter(self) -> None:
        settings, edge, stack = self._settings, self._edge, self._stack
        await stack.enter_async_context(self._telemetry)
        self._telemetry.metrics.watch_redis(self._registry)
        grpc_server = self._network.server()
        health = add_health_and_reflection(grpc_server, SERVICE_NAMES)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(self._ready), grpc_server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(self._ready), grpc_server)
        bound = self._network.bind(grpc_server, settings.host, settings.port)
        self._address = advertised(settings, bound)
        await grpc_server.start()
        stack.push_async_callback(grpc_server.stop, None)

        batch_thread = single_thread(f"batch-{edge.name}")
        load_thread = single_thread(f"load-{edge.name}", background=True, alone=True)
        for thread in (batch_thread, load_thread):
            stack.callback(thread.shutdown, wait=True, cancel_futures=True)

        store = BlobStore(self._directory / "blobs", settings.cache_limit_bytes)
        versions = VersionDirectory(self._directory)
        failpoint = Failpoint.parse(settings.failpoint, WORKER_POINTS)
        fetcher = Fetcher(store, load_thread, self._clock, failpoint)
        loader = Loader(store, load_thread, self._device, settings.max_prompt_tokens, failpoint)
        budget_bytes = edge.memory_bytes - (settings.swap_reserve_bytes or 0)
        starter = Starter(edge, settings.base_model, budget_bytes, store, versions, fetcher, loader, self._clock)
        first = await self._first(starter)

        engine = BatchEngine(
            first.served.model, first.served.tokenizer, first.manifest.version, edge.max_batch, CountingRecorder,
            lambda models: load_thread.submit(free, models),
        )  # fmt: skip
        device = Device(edge.speed, edge.step_times)
        loop = BatchLoop(engine, self._clock, batch_thread, max_batch=edge.max_batch, max_queue=edge.max_queue, device=device)
        max_prompt_tokens = first.served.tokenizer.max_prompt_tokens
        await asyncio.get_running_loop().run_in_executor(
            batch_thread, warm_up, first.served.model, edge.max_batch, max_prompt_tokens, device, loop.step_times
        )
        updater = Updater(
            edge.name,
            budget_bytes,
            settings.swap_reserve_bytes,
            settings.fetch_bytes_per_s,
            loop,
            first,
            store,
            versions,
            fetcher,
            loader,
            load_thread,
            self._metrics,
            self._clock,
            settings.merger_address,
            self._network,
            failpoint,
        )
        presence = Presence(
            edge, self._address, self._epoch, str(self._device), budget_bytes, max_prompt_tokens, settings.max_new_tokens, loop, updater,
            lambda: loop.step_age_s > settings.stuck_after_s,
        )  # fmt: skip
        events = EventWriter(self._log, f"worker:{edge.name}:{self._epoch[:8]}", self._clock)
        closer = TaskCloser(events, RedisPulse(self._redis), self._clock)
        parts = Parts(
            edge.name,
            first.served.model.shape.vocab_size,
            min(settings.default_max_tokens, settings.max_new_tokens),
            settings.max_new_tokens,
            first.served.tokenizer,
            loop,
            updater,
            presence,
            events,
            closer,
            self._metrics,
            self._telemetry.tracer,
            self._clock,
        )
        reports = ActivationReports(
            edge.name,
            self._epoch,
            loop,
            events,
            self._metrics,
            self._telemetry.tracer,
            self._clock,
            min_tasks=settings.report_tasks,
            interval_s=settings.report_interval_s,
        )
        self._run("batch loop", loop.run)
        self._parts = parts  # before anybody is told where it is: tasks come at once
        self._run("registry entry", lambda: presence.run(self._registry, self._clock, settings.entry_interval_s))
        self._run("activation reports", reports.run)
        self._run("task closing", closer.run)
        self._run("measuring", IdleMeasuring(loop, updater, edge.max_batch, max_prompt_tokens, device, self._clock).run)
        self._run("health", lambda: self._tell_health(health, parts))
        await presence.publish(self._registry)
        await health.serving()
        stack.push_async_callback(self._leave, grpc_server, health, parts)
        logger.info("serving %s at %s", first.manifest.version, self._address, extra={"edge_id": edge.name})

    async def _first(self, starter: Starter) -> FirstVersion:
        if self._settings.merger_address is None:
            return await starter.open(None)
        async with self._network.channel(self._settings.merger_address, "merger") as merger:
            if trouble := await self._network.trouble(self._settings.merger_address, "merger"):
                logger.error("%s", trouble)
            return await starter.open(merger)

    def _run(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        """A loop of this worker, restarted after a bug, ended when the worker is left."""
        running: Coroutine[Any, Any, None] = supervise(f"{self._edge.name}: {name}", body, self._clock)
        task = asyncio.create_task(running, name=f"{self._edge.name}: {name}")
        self._stack.push_async_callback(_ended, task)

    async def _tell_health(self, health: Health, parts: Parts) -> None:
        """Serving as long as the batch loop's last step is young; an idle or a busy loop is healthy, a stuck one is not."""
        while True:
            await self._clock.sleep(HEALTH_INTERVAL_S)
            if not self._leaving:
                await health.serving(parts.loop.step_age_s <= self._settings.stuck_after_s)

    async def _leave(self, grpc_server: Any, health: Health, parts: Parts) -> None:
        self._leaving = True
        parts.presence.draining = True
        await parts.presence.publish(self._registry)
        await drain(grpc_server, health, self._settings.drain_s)
        parts.loop.fail_all(draining())
        await parts.updater.close()
        await self._registry.remove(self._edge.name)
        left = await self._log.flush(FLUSH_S)
        if left:
            logger.warning("%d events were not written before the end", left)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
