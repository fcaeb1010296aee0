"""The compose stack as tests see it: its containers through the Docker engine, its services through their ports. Breaks nothing itself."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
from docker.client import DockerClient
from docker.errors import DockerException
from docker.models.containers import Container

from moedge.v1 import broker_pb2, broker_pb2_grpc, worker_pb2
from services.runtime.clock import SystemClock
from tests.harness.recorder import fleet_channel, fleet_target

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = "moedge"
NETWORK = f"{PROJECT}_default"
PORTS = range(50051, 50060)  # that brokers are published at
GRPC_PORT = 50051  # of every service inside its container
COMPOSE_TIMEOUT_S = 300.0
READY_WITHIN_S = 120.0
LIST_S = 3.0
WORKERS = ("worker-small", "worker-medium", "worker-large")
SERVICES = ("kafka", "redis", "merger", "controller", "broker", *WORKERS)  # that run for as long as the stack does

T = TypeVar("T")


class NoStackError(Exception):
    """There is no engine, or no stack on it."""


@dataclass(slots=True)
class ComposeStack:
    engine: Any
    files: Sequence[str] = ()  # overlays; none: docker-compose.yml alone
    clock: SystemClock = field(default_factory=SystemClock)

    @classmethod
    def running(cls) -> ComposeStack:
        """Raises `NoStackError` that says what is missing."""
        try:
            engine = DockerClient.from_env(timeout=int(COMPOSE_TIMEOUT_S))
            engine.ping()
        except DockerException as error:
            raise NoStackError("no Docker engine answers") from error
        stack = cls(engine)
        if not stack.containers("broker"):
            engine.close()
            raise NoStackError("the stack is not up: make up")
        return stack

    def containers(self, service: str) -> list[Container]:
        """Of one service, by number, those that do not run included."""
        labels = [f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}", "com.docker.compose.oneoff=False"]
        found = self.engine.containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda container: int(container.labels["com.docker.compose.container-number"]))

    def container(self, service: str) -> Container:
        return self.containers(service)[0]

    def address(self, container: Container) -> str:
        """Of its gRPC port inside the compose network, which this machine reaches over the bridge."""
        container.reload()
        return f"{container.attrs['NetworkSettings']['Networks'][NETWORK]['IPAddress']}:{GRPC_PORT}"

    def published(self, container: Container) -> str:
        """Where its gRPC port is published on this machine; a restart may move it."""
        container.reload()
        at = container.attrs["NetworkSettings"]["Ports"][f"{GRPC_PORT}/tcp"][0]
        return f"{at['HostIp']}:{at['HostPort']}"

    def compose(self, *arguments: str, timeout_s: float = COMPOSE_TIMEOUT_S) -> str:
        """`docker compose ...`; its output. Raises with it where that fails."""
        files = [part for name in self.files for part in ("-f", name)]
        command = ["docker", "compose", *files, *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def channel(self) -> grpc.aio.Channel:
        """To every broker that is published."""
        return fleet_channel(fleet_target(PORTS))

    async def edges(self) -> dict[str, broker_pb2.Edge]:
        """As a broker lists them; none while no broker answers."""
        async with self.channel() as channel:
            stub = broker_pb2_grpc.BrokerServiceStub(channel)
            try:
                listing = await stub.ListEdges(broker_pb2.ListEdgesRequest(), timeout=LIST_S)
            except grpc.aio.AioRpcError:
                return {}
        return {edge.edge_id: edge for edge in listing.edges}

    async def edge_of(self, container: Container) -> str:
        """The edge that a worker's container serves."""
        from moedge.v1 import worker_pb2_grpc
        from services.runtime.net import channel

        async with channel(self.address(container)) as worker:
            status = await worker_pb2_grpc.WorkerServiceStub(worker).GetStatus(worker_pb2.GetStatusRequest(), timeout=LIST_S)
        return status.entry.edge_id

    async def whole(self, within_s: float = READY_WITHIN_S) -> dict[str, broker_pb2.Edge]:
        """Start what stopped, then wait until every container is healthy and every worker's edge is ready; the edges."""
        await asyncio.to_thread(self._start_what_stopped)
        await self.until(self._is_healthy, "every container is healthy", within_s)

        async def ready() -> dict[str, broker_pb2.Edge]:
            edges = await self.edges()
            num_workers = sum([len(await asyncio.to_thread(self.containers, service)) for service in WORKERS])
            live = {name: edge for name, edge in edges.items() if edge.state == worker_pb2.EDGE_STATE_READY}
            return live if len(live) == len(edges) == num_workers else {}

        return await self.until(ready, "every edge is ready", within_s)

    async def healthy(self, *containers: Container, within_s: float = READY_WITHIN_S) -> None:
        async def all_healthy() -> bool:
            return all([await asyncio.to_thread(is_healthy, container) for container in containers])

        await self.until(all_healthy, f"{', '.join(container.name or '' for container in containers)} healthy", within_s)

    async def until(self, condition: Callable[[], Awaitable[T]], what: str, within_s: float) -> T:
        give_up_at_s = self.clock.now_s() + within_s
        while not (met := await condition()):
            if self.clock.now_s() > give_up_at_s:
                raise AssertionError(f"not within {within_s:g} s: {what}\n{await asyncio.to_thread(self.listing)}")
            await self.clock.sleep(0.2)
        return met

    def listing(self) -> str:
        lines = [f"{container.name}: {container.status}" for service in SERVICES for container in self.containers(service)]
        return "\n".join(lines)

    async def _is_healthy(self) -> bool:
        return await asyncio.to_thread(lambda: all(is_healthy(c) for service in SERVICES for c in self.containers(service)))

    def _start_what_stopped(self) -> None:
        for service in SERVICES:
            for container in self.containers(service):
                if container.status == "paused":
                    container.unpause()
                elif container.status != "running":
                    container.start()


def is_healthy(container: Container) -> bool:
    container.reload()
    state = container.attrs["State"]
    return bool(state["Running"]) and not state["Paused"] and state.get("Health", {}).get("Status", "healthy") == "healthy"
