"""The embedded default: merger, edge workers, controller and broker in one process and one event loop; no Kafka, no Redis.

Wiring and order only. The services are the very ones that run as processes; between them lie the same gRPC calls, an event log in
memory and a Redis in memory. Entering ends when every edge serves; leaving drains in the opposite order.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from moedge.v1 import broker_pb2, broker_pb2_grpc, worker_pb2
from services.broker.service import Broker
from services.broker.settings import BrokerSettings
from services.controller.service import Controller
from services.controller.settings import ControllerSettings
from services.core.workload.mixes import TaskMix
from services.merger.service import Merger
from services.merger.settings import MergerSettings
from services.model.memory import budget_for
from services.runtime.clock import Clock, SystemClock
from services.runtime.edges import EdgeConfig, ModelBytes, default_edges, home_region, read_edges
from services.runtime.eventlog import EventLog
from services.runtime.eventlog_memory import MemoryBroker, MemoryEventLog
from services.runtime.net import channel
from services.runtime.status import no_edge
from services.runtime.store import open_redis
from services.worker.service import Worker
from services.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

READY_WITHIN_S = 15.0
FIRST_LEAD = 0.8  # share of the task type that leads an edge's first mix
READY_POLL_S = 0.1
LIST_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What an embedded stack is made of. Settings of single services come from the environment; what stands here wins over it.

    `controller` and the other mappings are further settings of that service by name. Workers keep nothing between runs: every stack
    starts from versions for `initial_mix` (where an edge does not say its own). The merger's builds stay in `cache_dir`.
    """

    model: str
    tasks: str = "toy"
    edges: int | Path | tuple[EdgeConfig, ...] = 3
    policy: str = "onto"
    trigger: str = "jtom"
    quality_scale: float = 1.0
    host: str = "127.0.0.1"
    port: int = 0  # of the broker
    dtype: str = "float32"
    device: str = "cpu"
    torch_threads: int = 1  # several edges share the cores
    cache_dir: Path = Path("~/.cache/moedge")
    drain_s: float = 3.0
    initial_mix: TaskMix = field(default_factory=dict)  # empty: each edge is led by another task type
    regional_mixes: Mapping[str, TaskMix] = field(default_factory=dict)  # what an edge near that region starts from; wins over initial_mix
    broker: Mapping[str, Any] = field(default_factory=dict)
    worker: Mapping[str, Any] = field(default_factory=dict)
    controller: Mapping[str, Any] = field(default_factory=dict)
    merger: Mapping[str, Any] = field(default_factory=dict)


class Stack:
    """`async with Stack(settings) as stack`: then `stack.broker_address` takes tasks."""

    def __init__(self, settings: StackSettings, clock: Clock | None = None, on_phase: Callable[[str], None] | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self._on_phase = on_phase
        self._exit = AsyncExitStack()
        self._log = MemoryEventLog(self.clock, MemoryBroker())
        self._merger: Merger | None = None
        self._controller: Controller | None = None
        self._broker: Broker | None = None
        self.edges: tuple[EdgeConfig, ...] = ()
        self.workers: dict[str, Worker] = {}

    @property
    def merger(self) -> Merger:
        assert self._merger is not None, "the stack is not entered"
        return self._merger

    @property
    def controller(self) -> Controller:
        assert self._controller is not None, "the stack is not entered"
        return self._controller

    @property
    def broker_address(self) -> str:
        assert self._broker is not None, "the stack is not entered"
        return self._broker.address

    @property
    def event_log(self) -> EventLog:
        return self._log

    @property
    def edge_names(self) -> tuple[str, ...]:
        return tuple(edge.name for edge in self.edges)

    @property
    def example(self) -> tuple[str, str]:
        """A prompt that the model was made for, and its task type."""
        builder = self.merger.builder
        task_type = builder.calibration.profiles.task_types[0]
        return builder.items(task_type)[0].prompt, task_type

    def description(self) -> dict[str, object]:
        """Where everything listens, JSON-ready."""
        return {
            "broker": self.broker_address,
            "merger": self.merger.address,
            "controller": self.controller.address,
            "workers": {name: worker.address for name, worker in self.workers.items()},
            "base_model": self.merger.builder.base.base_id,
            "example": dict(zip(("prompt", "task_type"), self.example, strict=True)),
        }

    async def __aenter__(self) -> Self:
        try:
            await self._enter()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._say("draining")
        await self._exit.aclose()

    async def _enter(self) -> None:
        settings, started_at_s = self.settings, self.clock.now_s()
        torch.set_num_threads(settings.torch_threads)
        for checked in (self._broker_settings, self._controller_settings, self._worker_settings):
            checked("not-yet-known:0")  # a mistake in them is said before anything starts
        redis = open_redis(None)
        self._exit.push_async_callback(redis.aclose)
        await self._exit.enter_async_context(self._log)
        self._merger = await self._start_merger()
        self.edges = self._chosen_edges(self._merger)
        for edge in self.edges:
            self._say(f"edge {edge.name}: merging, loading, timing ({edge.memory_bytes} bytes, speed {edge.speed:g})")
            worker = Worker(self._worker_settings(self._merger.address), edge, self._log, redis, self.clock)
            self.workers[edge.name] = await self._exit.enter_async_context(worker)
        self._say(f"controller: {settings.trigger}")
        self._controller = await self._exit.enter_async_context(
            Controller(self._controller_settings(self._merger.address), self._log, redis, self.clock)
        )
        self._say(f"broker: {settings.policy}")
        self._broker = await self._exit.enter_async_context(
            Broker(self._broker_settings(self._merger.address), self._log, redis, self.clock)
        )
        await self._every_edge_listed()
        self._say(f"ready after {self.clock.now_s() - started_at_s:.1f} s")

    async def _start_merger(self) -> Merger:
        settings = self.settings
        self._say(f"merger: reading, calibrating and aligning {settings.model} (cached after the first time)")
        given: dict[str, Any] = {
            "model": settings.model,
            "tasks": settings.tasks,
            "dtype": settings.dtype,
            "device": settings.device,
            "cache_dir": settings.cache_dir.expanduser() / "merger",
            "drain_s": 0.0,
            "port": 0,
        }
        return await self._exit.enter_async_context(Merger(MergerSettings.load(**given | dict(settings.merger)), self.clock))

    def _chosen_edges(self, merger: Merger) -> tuple[EdgeConfig, ...]:
        base = merger.builder.base
        sizes = ModelBytes(
            full=base.full_bytes,
            non_expert=budget_for(base.model, base.full_bytes).non_expert_bytes,
            num_experts=sum(layer.num_experts for layer in base.model.shape.layers),
        )
        match self.settings.edges:
            case int(num_edges):
                edges = default_edges(num_edges, sizes)
            case tuple(given):
                edges = given
            case path:
                edges = read_edges(path, sizes)
        task_types = merger.builder.calibration.profiles.task_types
        return tuple(
            edge if edge.initial_mix else replace(edge, initial_mix=self._first_mix(edge, number, task_types, sizes.full))
            for number, edge in enumerate(edges)
        )

    def _first_mix(self, edge: EdgeConfig, number: int, task_types: tuple[str, ...], full_bytes: int) -> TaskMix:
        """What an edge starts from when its file does not say: with nothing known, every edge is led by a task type of its own (the paper
        draws one at random), since edges that all begin alike would all know the same. Edges that hold everything begin alike."""
        regional = self.settings.regional_mixes.get(home_region(edge)) if edge.regions else None
        if regional or self.settings.initial_mix:
            return regional or self.settings.initial_mix
        if edge.memory_bytes >= full_bytes:
            return dict.fromkeys(task_types, 1 / len(task_types))
        others = len(task_types) - 1
        shares = dict.fromkeys(task_types, (1 - FIRST_LEAD) / others if others else 0.0)
        return shares | {task_types[number % len(task_types)]: FIRST_LEAD if others else 1.0}

    def _worker_settings(self, merger_address: str) -> WorkerSettings:
        directory = self._exit.enter_context(tempfile.TemporaryDirectory(prefix="moedge-worker-", ignore_cleanup_errors=True))
        given = {"merger_address": merger_address, "cache_dir": Path(directory), "drain_s": self.settings.drain_s, "port": 0}
        return WorkerSettings.load(**given | dict(self.settings.worker))

    def _controller_settings(self, merger_address: str) -> ControllerSettings:
        given = {"merger_address": merger_address, "trigger": self.settings.trigger, "port": 0}
        return ControllerSettings.load(**given | dict(self.settings.controller))

    def _broker_settings(self, merger_address: str) -> BrokerSettings:
        settings = self.settings
        given: dict[str, Any] = {
            "merger_address": merger_address,
            "policy": settings.policy,
            "quality_scale": settings.quality_scale,
            "host": settings.host,
            "port": settings.port,
            "drain_s": settings.drain_s,
        }
        return BrokerSettings.load(**given | dict(settings.broker))

    async def _every_edge_listed(self) -> None:
        """The broker knows every edge and finds it ready."""
        give_up_at_s = self.clock.now_s() + READY_WITHIN_S
        async with channel(self.broker_address) as connection:
            stub = broker_pb2_grpc.BrokerServiceStub(connection)
            while True:
                listed = await stub.ListEdges(broker_pb2.ListEdgesRequest(), timeout=LIST_TIMEOUT_S)
                ready = {edge.edge_id for edge in listed.edges if edge.state == worker_pb2.EDGE_STATE_READY}
                missing = sorted(set(self.edge_names) - ready)
                if not missing:
                    return
                if self.clock.now_s() > give_up_at_s:
                    raise no_edge(f"the broker does not find {', '.join(missing)} ready after {READY_WITHIN_S:g} s")
                await self.clock.sleep(READY_POLL_S)

    def _say(self, phase: str) -> None:
        if self._on_phase is not None:
            self._on_phase(phase)
        else:
            logger.info("%s", phase)
