"""The cloud merger put together: reads the base model, does what is done once for it, then builds merged versions and ships their blobs."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from typing import Self

from moedge.v1 import merger_pb2_grpc
from services.core.merging.recipes import FITTED
from services.merger.builds import Builds
from services.merger.metrics import MergerMetrics, view_of
from services.merger.requests import RequestReader
from services.merger.servicer import MergerServicer, Parts
from services.merger.settings import MergerSettings
from services.model.build import Builder, BuildOptions, BuildSettings
from services.model.checkpoint import read_base
from services.model.threads import single_thread
from services.runtime.clock import Clock, SystemClock
from services.runtime.failpoints import MERGER_POINTS, Failpoint
from services.runtime.lifecycle import drain
from services.runtime.net import PLAINTEXT, Network, add_health_and_reflection
from services.runtime.status import draining, starting
from services.runtime.telemetry import Telemetry
from services.tasks.sources import open_tasks

logger = logging.getLogger(__name__)

UNFINISHED_S = 5.0  # what nobody has written to for so long was left by a process that is gone
SERVICE_NAMES = ("moedge.v1.MergerService",)


class Merger:
    """Entering it ends when it is ready to build; a model or task set that cannot be used ends it with the cure."""

    def __init__(self, settings: MergerSettings, clock: Clock, network: Network = PLAINTEXT) -> None:
        self._settings = settings
        self._clock = clock
        self._telemetry = Telemetry("merger", settings, clock, SERVICE_NAMES)
        self._metrics = MergerMetrics(self._telemetry.metrics)
        self._telemetry.metrics.at_scrape(lambda: view_of(self._num_builds))
        self._network = self._telemetry.around(network)
        self._parts: Parts | None = None
        self._leaving = False
        self._stack = AsyncExitStack()
        self._address = ""

    @property
    def address(self) -> str:
        """Where others reach this merger."""
        return self._address

    @property
    def builder(self) -> Builder:
        """What builds, for those in the same process. It has one thread at a time: this merger's."""
        return self._ready().builder

    @property
    def metrics_port(self) -> int | None:
        return self._telemetry.metrics.port

    def _num_builds(self) -> int:
        return 0 if self._parts is None else self._parts.builds.num_running

    def _ready(self) -> Parts:
        if self._parts is None:
            raise draining() if self._leaving else starting("the merger is reading its base model")
        return self._parts

    async def __aenter__(self) -> Self:
        try:
            await self._enter()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leaving = True
        if self._parts is not None:
            self._parts.builds.leave()
        await self._stack.aclose()

    async def _enter(self) -> None:
        settings, stack = self._settings, self._stack
        await stack.enter_async_context(self._telemetry)
        build_thread = single_thread("build", background=True)
        disk_thread = single_thread("blobs")
        for thread in (build_thread, disk_thread):
            # A build that runs cannot be stopped within one of its phases; leaving does not wait for it.
            stack.callback(thread.shutdown, wait=False, cancel_futures=True)
        grpc_server = self._network.server()
        health = add_health_and_reflection(grpc_server, SERVICE_NAMES)
        merger_pb2_grpc.add_MergerServiceServicer_to_server(MergerServicer(self._ready), grpc_server)
        bound = self._network.bind(grpc_server, settings.host, settings.port)
        self._address = settings.advertise or bound
        await grpc_server.start()
        stack.push_async_callback(drain, grpc_server, health, settings.drain_s)
        began_at_s = self._clock.now_s()
        builder = await asyncio.get_running_loop().run_in_executor(build_thread, prepared_builder, settings)
        self._parts = self._put_together(builder, build_thread, disk_thread)
        await health.serving()
        logger.info("base model %s ready after %.1f s at %s", builder.base.base_id, self._clock.now_s() - began_at_s, self._address)

    def _put_together(self, builder: Builder, build_thread: Executor, disk_thread: Executor) -> Parts:
        settings = self._settings
        defaults = BuildOptions(settings.method, settings.allocation, settings.grouping, settings.recovery_steps)
        names = (builder.base.base_id, settings.model)
        num_experts = [layer.num_experts for layer in builder.base.model.shape.layers]
        requests = RequestReader(names, builder.calibration.profiles.task_types, num_experts, defaults)
        failpoint = Failpoint.parse(settings.failpoint, MERGER_POINTS)
        builds = Builds(builder, build_thread, settings.max_waiting_builds, self._metrics, self._clock, failpoint)
        return Parts(builder, builds, requests, disk_thread, self._metrics)


def prepared_builder(settings: MergerSettings) -> Builder:
    """A builder whose base model is read, calibrated and aligned (from its cache where that was done before)."""
    cache_dir = settings.cache_dir.expanduser()
    base = read_base(settings.model, settings.dtype, settings.device, settings.max_prompt_tokens, cache_dir)
    build_settings = BuildSettings(
        profiled_items=settings.profiled_items,
        measured_items=settings.measured_items,
        cache_limit_bytes=settings.cache_limit_bytes,
        reserve_bytes=settings.reserve_bytes,
    )
    builder = Builder(base, open_tasks(settings.tasks, "calibration"), cache_dir / base.base_id, build_settings)
    builder.reclaim(SystemClock().wall().timestamp() - UNFINISHED_S)
    builder.prepare(settings.prepared_budgets_bytes)
    if settings.method == FITTED:
        builder.fitted.prepare()
    return builder
