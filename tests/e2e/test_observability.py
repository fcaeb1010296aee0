"""Debian's Prometheus scrapes every container, and every query of the dashboard gets data; names resolve to every replica."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc.aio
import pytest

from moedge.v1 import broker_pb2, broker_pb2_grpc, inference_pb2, inference_pb2_grpc
from tests.fakes import prometheus
from tests.fakes.prometheus import panel_queries, running_prometheus
from tests.harness.compose import NETWORK, SERVICES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

METRICS_PORT = 9464
OURS = tuple(service for service in SERVICES if service not in ("kafka", "redis"))
NUM_TASKS = 60
RATE_S = 0.1
DEADLINE_S = 20.0
# Without a value until an edge was updated; their queries have to find the series all the same.
ONLY_AFTER_AN_UPDATE = ("Pause of an update", "Parts of an update", "Pause for users", "Build time", "Balance of experts")


@pytest.mark.skipif(not prometheus.is_installed(), reason=prometheus.MISSING)
async def test_prometheus_scrapes_every_service_and_answers_every_query_of_the_dashboard(stack, items, tmp_path):
    targets = {service: await asyncio.to_thread(addresses, stack, service) for service in OURS}
    assert all(targets.values()), targets
    async with running_prometheus(tmp_path, targets) as server:
        await server.all_up(sum(map(len, targets.values())))
        edge_ids = await ask(stack, items)
        busiest = max(sorted(set(edge_ids)), key=edge_ids.count)
        missing = {row: await server.without_data(panel_queries(row, busiest), finite=False) for row in ("Fleet", "One edge", "Merges")}
        assert missing == {"Fleet": [], "One edge": [], "Merges": []}
        felt = panel_queries("Fleet", busiest) | panel_queries("One edge", busiest)
        felt = {name: query for name, query in felt.items() if not name.startswith(ONLY_AFTER_AN_UPDATE)}
        assert await server.without_data(felt, finite=True) == []
        assert {health for _, health in await server.rules()} == {"ok"}


async def test_a_name_of_the_stack_resolves_to_every_replica_as_scraping_expects(stack):
    controller = stack.container("controller")
    for service in OURS:
        script = f"import socket; print(*sorted(socket.gethostbyname_ex({service!r})[2]))"
        done = await asyncio.to_thread(controller.exec_run, ["python", "-c", script])
        assert done.exit_code == 0, done.output
        resolved = [f"{address}:{METRICS_PORT}" for address in done.output.decode().split()]
        assert resolved == sorted(await asyncio.to_thread(addresses, stack, service)), service


def addresses(stack, service: str) -> list[str]:
    """Of the metrics of every running container of a service, inside the compose network."""
    running = [container for container in stack.containers(service) if container.status == "running"]
    return [f"{container.attrs['NetworkSettings']['Networks'][NETWORK]['IPAddress']}:{METRICS_PORT}" for container in running]


async def ask(stack, items) -> list[str]:
    """Tasks through the published port, each scored; the edges that served them."""
    async with stack.channel() as channel, asyncio.TaskGroup() as group:
        inference, broker = inference_pb2_grpc.InferenceServiceStub(channel), broker_pb2_grpc.BrokerServiceStub(channel)

        async def one(item) -> str:
            request = inference_pb2.GenerateRequest(prompt=item.prompt, task_type=item.task_type, max_tokens=8)
            *_, last = [response async for response in inference.Generate(request, timeout=DEADLINE_S)]
            with suppress(grpc.aio.AioRpcError):  # among several brokers, the call may reach one that does not know the task
                await broker.ScoreTask(broker_pb2.ScoreTaskRequest(task_id=last.summary.task_id, score=1.0), timeout=DEADLINE_S)
            return str(last.summary.edge_id)

        tasks = []
        for number in range(NUM_TASKS):
            tasks.append(group.create_task(one(items[number % len(items)])))
            await stack.clock.sleep(RATE_S)
        return list(await asyncio.gather(*tasks))
