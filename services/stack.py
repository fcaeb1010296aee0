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
from typing import Any, Self, TypeVar

import torch

from moedge.v1 import broker_pb2, broker_pb2_grpc, worker_pb2
from services.broker.service import Broker
from services.broker.settings import BrokerSettings
from services.controller.service import Controller
from services.controller.settings import ControllerSettings
from services.core import defaults
from services.core.workload.mixes import TaskMix
from services.merger.service import Merger
from services.merger.servicer import weights_of
from services.merger.settings import MergerSettings
from services.runtime.clock import Clock, SystemClock
from services.runtime.edges import EdgeConfig, default_edges, home_region, read_edges
from services.runtime.errors import SettingsError
from services.runtime.eventlog import EventLog
from services.runtime.eventlog_memory import MemoryBroker, MemoryEventLog
from services.runtime.net import channel
from services.runtime.settings import ServiceSettings
from services.runtime.status import no_edge
from services.runtime.store import open_redis
from services.worker.service import Worker
from services.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)

READY_WITHIN_S = 15.0
FIRST_WORKER_PORT = 3  # metrics ports count on from the broker's: controller 1, merger 2, then the workers
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
    policy: str = defaults.POLICY
    trigger: str = defaults.TRIGGER
    quality_scale: float = 1.0
    host: str = "127.0.0.1"
    port: int = 0  # of the broker
    metrics_port: int | None = None  # of the broker's metrics; controller, merger and workers follow with the next ones. 0: any free ones
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

    @property
    def metrics_ports(self) -> dict[str, int | None]:
        """By service; None where no metrics are served."""
        assert self._broker is not None, "the stack is not entered"
        ports = {"broker": self._broker.metrics_port, "controller": self.controller.metrics_port, "merger": self.merger.metrics_port}
        return ports | {name: worker.metrics_port for name, worker in self.workers.items()}

    def description(self) -> dict[str, object]:
        """Where everything listens, JSON-ready."""
        return {
            "broker": self.broker_address,
            "merger": self.merger.address,
            "controller": self.controller.address,
            "workers": {name: worker.address for name, worker in self.workers.items()},
            "metrics": {name: port for name, port in self.metrics_ports.items() if port is not None},
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
        for number, edge in enumerate(self.edges, FIRST_WORKER_PORT):
            self._say(f"edge {edge.name}: merging, loading, timing ({edge.memory_bytes / 1e6:.2f} MB, speed {edge.speed:g})")
            worker_settings = _on_metrics_port(self._worker_settings(self._merger.address), number)
            worker = Worker(worker_settings, edge, self._log, redis, self.clock)
            self.workers[edge.name] = await self._exit.enter_async_context(worker)
        self._say(f"controller: {settings.trigger}")
        self._controller = await self._exit.enter_async_context(
            Controller(_on_metrics_port(self._controller_settings(self._merger.address), 1), self._log, redis, self.clock)
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
            "metrics_port": settings.metrics_port,
        }
        merger_settings = _on_metrics_port(_in_plaintext(MergerSettings.load(**given | dict(settings.merger))), 2)
        return await self._exit.enter_async_context(Merger(merger_settings, self.clock))

    def _chosen_edges(self, merger: Merger) -> tuple[EdgeConfig, ...]:
        sizes = weights_of(merger.builder.base)
        match self.settings.edges:
            case int(num_edges):
                edges = default_edges(num_edges, sizes)
            case tuple(given):
                edges = given
            case path:
                edges = read_edges(path, sizes)
        return tuple(replace(edge, number=number, initial_mix=self._first_mix(edge)) for number, edge in enumerate(edges))

    def _first_mix(self, edge: EdgeConfig) -> Mapping[str, float]:
        """What an edge starts from where anybody says; left open, its worker asks for one that its number leads."""
        regional = self.settings.regional_mixes.get(home_region(edge)) if edge.regions else None
        return edge.initial_mix or regional or self.settings.initial_mix

    def _worker_settings(self, merger_address: str) -> WorkerSettings:
        directory = self._exit.enter_context(tempfile.TemporaryDirectory(prefix="moedge-worker-", ignore_cleanup_errors=True))
        given = {"merger_address": merger_address, "cache_dir": Path(directory), "drain_s": self.settings.drain_s, "port": 0}
        given |= {"metrics_port": self.settings.metrics_port}
        return _in_plaintext(WorkerSettings.load(**given | dict(self.settings.worker)))

    def _controller_settings(self, merger_address: str) -> ControllerSettings:
        given = {"merger_address": merger_address, "trigger": self.settings.trigger, "quality_scale": self.settings.quality_scale}
        given |= {"port": 0, "metrics_port": self.settings.metrics_port}
        return _in_plaintext(ControllerSettings.load(**given | dict(self.settings.controller)))

    def _broker_settings(self, merger_address: str) -> BrokerSettings:
        settings = self.settings
        given: dict[str, Any] = {
            "merger_address": merger_address,
            "policy": settings.policy,
            "quality_scale": settings.quality_scale,
            "host": settings.host,
            "port": settings.port,
            "metrics_port": settings.metrics_port,
            "drain_s": settings.drain_s,
        }
        return _in_plaintext(BrokerSettings.load(**given | dict(settings.broker)))

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


def _in_plaintext(settings: SettingsT) -> SettingsT:
    """What was asked to be secured is not served in the open."""
    if settings.tls_cert is not None:
        raise SettingsError(
            f"{settings.variable('tls_cert')}: a stack in one process speaks plaintext; unset it, or start the services with moedge serve"
        )
    return settings


def _on_metrics_port(settings: SettingsT, number: int) -> SettingsT:
    """Services of one process cannot share a port: each takes the `number`th after the one that is set."""
    return settings.model_copy(update={"metrics_port": settings.metrics_port + number}) if settings.metrics_port else settings
