"""A stack of real processes on this machine: `moedge serve ...` for each service, to kill and start again. Kafka and Redis are given.

Starts and ends processes and asks how they are; load and verdicts are the tests' business.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from aiokafka import AIOKafkaConsumer

from moedge.v1 import broker_pb2, broker_pb2_grpc, events_pb2, worker_pb2, worker_pb2_grpc
from services.runtime.clock import SystemClock
from services.runtime.net import channel
from tests.fakes.processes import free_port

MODEL = Path(__file__).resolve().parents[2] / "infra" / "demo-model"
MOEDGE = Path(sys.executable).with_name("moedge")
TASK_EVENTS = "moedge.task-events.v1"
EDGES = ("west", "centre", "east")  # west and centre hold the same version, east a larger one
REGION = "here"
READY_WITHIN_S = 90.0
CALL_S = 2.0
ENDED_WITHIN_S = 10.0

# Slow edges with one slot each: a few tasks a second keep them busy and fill their queues, whatever this machine can do.
EDGE = """
[[edges]]
name = "{name}"
memory_bytes = {memory_bytes}
device = "cpu"
speed = 0.1
max_batch = 1
initial_mix = {{ alternative = 0.2, facts = 0.2, pronoun = 0.2, question = 0.2, sentence = 0.2 }}
regions.here = {{ latency_s = 0.002, uplink_bytes_per_s = 1e7, downlink_bytes_per_s = 1e7 }}
"""


@dataclass(slots=True)
class ServiceProcess:
    """One service: the same command each time it is started, one log file over all its lives."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(MOEDGE), "serve", *self.arguments], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL: it has no last word."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(ENDED_WITHIN_S)

    def tail(self, lines: int = 15) -> str:
        written = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"--- {self.name}", *written[-lines:]])


@dataclass(slots=True)
class LocalStack:
    """Every service has a port of its own and keeps it when it is started again."""

    directory: Path
    kafka_bootstrap: str
    redis_url: str
    services: dict[str, ServiceProcess] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges_file = self.directory / "edges.toml"
        memory = {"west": 1_800_000, "centre": 1_800_000, "east": 2_400_000}
        edges_file.write_text("".join(EDGE.format(name=name, memory_bytes=memory[name]) for name in EDGES))
        merger = ["--model", str(MODEL), "--profiled-items", "32", "--measured-items", "4", "--device", "cpu"]
        self._add("merger", "merger", [*merger, "--cache-dir", str(self.directory / "merger")])
        at_merger = ["--merger-address", self.address("merger")]
        edge = ["--edges-file", str(edges_file), "--cache-dir", str(self.directory / "workers"), "--torch-threads", "1"]
        for name in EDGES:
            self._add(name, "worker", [*edge, "--edge", name, *at_merger])
        self._add("controller", "controller", at_merger)
        self._add("broker", "broker", [*at_merger, "--default-region", REGION])

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def start(self, name: str) -> None:
        self.services[name].start()

    def start_what_is_not_running(self) -> None:
        for service in self.services.values():
            if not service.is_running:
                service.start()

    def kill(self, name: str) -> None:
        self.services[name].kill()

    def kill_all(self) -> None:
        for service in self.services.values():
            if service.is_running:
                service.kill()

    def tails(self) -> str:
        return "\n".join(service.tail() for service in self.services.values())

    async def whole(self) -> dict[str, str]:
        """Start what does not run and wait until the broker has every edge ready; the version of each."""
        self.start_what_is_not_running()
        return await self.ready(EDGES)

    async def ready(self, edges: tuple[str, ...]) -> dict[str, str]:
        """Wait until the broker has these edges ready; the version of each."""
        clock = SystemClock()
        give_up_at_s = clock.now_s() + READY_WITHIN_S
        async with channel(self.address("broker")) as broker:
            stub = broker_pb2_grpc.BrokerServiceStub(broker)
            while True:
                listed = await _edges(stub)
                versions = {name: listed[name].version for name in edges if name in listed and _is_ready(listed[name])}
                if len(versions) == len(edges):
                    return versions
                dead = [name for name in (*edges, "broker") if not self.services[name].is_running]
                if dead or clock.now_s() > give_up_at_s:
                    why = "\n".join(self.services[name].tail(3) for name in dead)
                    raise AssertionError(f"of {edges}, {sorted(versions)} are ready; ended: {dead}\n{why}")
                await clock.sleep(0.1)

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[worker_pb2_grpc.WorkerServiceAsyncStub]:
        async with channel(self.address(name)) as worker:
            yield worker_pb2_grpc.WorkerServiceStub(worker)

    async def ledger(self) -> list[events_pb2.TaskEvent]:
        """Every record of the task events' topic, as any consumer would read it: duplicates included, in no promised order."""
        consumer = AIOKafkaConsumer(
            TASK_EVENTS, bootstrap_servers=self.kafka_bootstrap, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        try:
            partitions = sorted(consumer.assignment())
            assert partitions, f"{TASK_EVENTS} does not exist"
            ends = await consumer.end_offsets(partitions)
            events = []
            while [partition for partition, end in ends.items() if await consumer.position(partition) < end]:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    events += [events_pb2.TaskEvent.FromString(record.value or b"") for record in records]
            return events
        finally:
            await consumer.stop()

    def _add(self, name: str, service: str, arguments: list[str]) -> None:
        self.ports[name] = free_port()
        environment = {variable: value for variable, value in os.environ.items() if not variable.startswith("MOEDGE_")}
        environment |= {
            "MOEDGE_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "MOEDGE_REDIS_URL": self.redis_url,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        command = [service, "--port", str(self.ports[name]), *arguments]
        self.services[name] = ServiceProcess(name, command, environment, self.directory / f"{name}.log")


@contextmanager
def started_stack(directory: Path, kafka_bootstrap: str, redis_url: str) -> Iterator[LocalStack]:
    stack = LocalStack(directory, kafka_bootstrap, redis_url)
    try:
        stack.start_what_is_not_running()
        yield stack
    finally:
        stack.kill_all()


async def _edges(broker: broker_pb2_grpc.BrokerServiceAsyncStub) -> dict[str, broker_pb2.Edge]:
    try:
        listing = await broker.ListEdges(broker_pb2.ListEdgesRequest(), timeout=CALL_S)
    except grpc.aio.AioRpcError:
        return {}
    return {edge.edge_id: edge for edge in listing.edges}


def _is_ready(edge: broker_pb2.Edge) -> bool:
    return edge.state == worker_pb2.EDGE_STATE_READY
