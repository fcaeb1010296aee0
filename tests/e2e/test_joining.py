"""An edge server in a compose project of its own joins a stack over the addresses that infra/compose.join.yml publishes, and serves."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pytest

from moedge.v1 import inference_pb2, inference_pb2_grpc, worker_pb2
from services.runtime.clock import SystemClock
from services.runtime.net import channel, open_stream
from tests.fakes.looking import edge_seen
from tests.fakes.processes import free_port
from tests.harness.compose import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

PROJECT = "moedge-joining"
HERE = ("-p", PROJECT, "-f", "docker-compose.yml", "-f", "infra/compose.join.yml")
THERE = ("-p", f"{PROJECT}-edge", "-f", "infra/edge.compose.yml")
NETWORK = f"{PROJECT}-uplink"
READY_WITHIN_S = 180.0
CLOCK = SystemClock()


def docker(*words: str, variables: Mapping[str, str] = MappingProxyType({}), check: bool = True) -> str:
    environment = os.environ | {"COMPOSE_PROFILES": ""} | dict(variables)
    done = subprocess.run(
        ["docker", *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=READY_WITHIN_S, check=False
    )
    assert not check or done.returncode == 0, f"docker {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Joined:
    """A stack without workers, published on the gateway of a network of its own: an address that this machine and its containers reach."""

    variables: dict[str, str]

    @property
    def broker(self) -> str:
        return self.variables["JOIN"]


@pytest.fixture
def joined() -> Iterator[Joined]:
    for image in ("moedge/services", "moedge/worker"):
        if not docker("image", "ls", "-q", image, check=False):
            pytest.skip(f"no image {image}: make up")
    docker("network", "create", NETWORK)
    try:
        gateway = docker("network", "inspect", NETWORK, "-f", "{{(index .IPAM.Config 0).Gateway}}")
        broker_port = str(free_port())
        variables = {
            "JOIN_ADDRESS": gateway,
            "JOIN_PORTS": broker_port,
            "BROKER_PORTS": str(free_port()),
            **{name: str(free_port()) for name in ("JOIN_KAFKA_PORT", "JOIN_REDIS_PORT", "JOIN_MERGER_PORT", "EDGE_PORT")},
            "JOIN": f"{gateway}:{broker_port}",
            "ADVERTISE": gateway,
            "EDGE_BIND": gateway,
            "EDGE_NAME": "barn",
            "DEVICE": "cpu",
        }
        try:
            services = ("kafka", "kafka-init", "redis", "merger", "broker")
            docker("compose", *HERE, "up", "-d", "--no-build", "--no-deps", *services, variables=variables)
            yield Joined(variables)
        finally:
            docker("compose", *THERE, "down", "-v", "-t", "2", check=False, variables=variables)
            docker("compose", *HERE, "down", "-v", "-t", "2", check=False, variables=variables)
    finally:
        docker("network", "rm", NETWORK, check=False)


async def test_a_worker_in_a_project_of_its_own_learns_everything_from_the_broker_and_serves(joined):
    variables = joined.variables
    await asyncio.to_thread(lambda: docker("compose", *THERE, "up", "-d", "--no-build", variables=variables))
    try:
        edge = await edge_seen(joined.broker, "barn", worker_pb2.EDGE_STATE_READY, READY_WITHIN_S)
    except TimeoutError:
        pytest.fail(await asyncio.to_thread(lambda: docker("compose", *THERE, "logs", "worker", variables=variables)))
    assert edge.address == f"{variables['ADVERTISE']}:{variables['EDGE_PORT']}"
    assert 0 < edge.model_bytes <= edge.memory_bytes
    async with channel(joined.broker) as users:
        request = inference_pb2.GenerateRequest(prompt="yesterday lipafe gokeva caused which outcome", task_type="alternative")
        stub = inference_pb2_grpc.InferenceServiceStub(users)
        async with open_stream(stub.Generate(request, timeout=60)) as stream:
            responses = [response async for response in stream]
    assert responses[-1].summary.edge_id == "barn"
    logged = await asyncio.to_thread(lambda: docker("compose", *THERE, "logs", "worker", variables=variables))
    assert f"joined at {joined.broker}" in logged
