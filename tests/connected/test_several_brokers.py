"""Three broker processes that share edges through a real Redis: each counts everybody's work, once, also after one is killed."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import pytest
import redis.asyncio

from moedge.v1 import broker_pb2, broker_pb2_grpc, inference_pb2, inference_pb2_grpc, worker_pb2
from services.core.offload.values import StepTimes
from services.runtime.clock import SystemClock
from services.runtime.net import channel, open_stream
from services.runtime.store import WORK_MAX_AGE_S, open_redis, wait_key
from tests.connected.local_stack import ServiceProcess
from tests.fakes.processes import free_port, started_redis
from tests.fakes.waiting import until
from tests.fakes.worker import FakeWorker

pytestmark = [pytest.mark.connected, pytest.mark.timeout(180)]

NUM_BROKERS = 3
EDGES = ("a", "b", "c")
STARTED_WITHIN_S = 60.0
CLOCK = SystemClock()


@dataclass(slots=True)
class Brokers:
    """Processes at fixed ports, and the workers that all of them know."""

    processes: list[ServiceProcess]
    addresses: list[str]
    workers: dict[str, FakeWorker]
    redis: redis.asyncio.Redis

    async def listed(self, number: int) -> dict[str, broker_pb2.Edge]:
        async with channel(self.addresses[number]) as to_broker:
            stub = broker_pb2_grpc.BrokerServiceStub(to_broker)
            try:
                answer = await stub.ListEdges(broker_pb2.ListEdgesRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return {}
            return {edge.edge_id: edge for edge in answer.edges}

    async def outstanding(self, number: int) -> dict[str, int]:
        return {name: edge.outstanding_tasks for name, edge in (await self.listed(number)).items()}

    async def ready(self, *numbers: int) -> None:
        for number in numbers:
            async with asyncio.timeout(STARTED_WITHIN_S):
                while True:
                    states = [edge.state for edge in (await self.listed(number)).values()]
                    if states == [worker_pb2.EDGE_STATE_READY] * len(EDGES):
                        break
                    assert self.processes[number].is_running, self.processes[number].tail()
                    await CLOCK.sleep(0.05)

    async def see(self, numbers, wanted: dict[str, int], within_s: float = 5.0) -> None:
        """Until each of these brokers sees exactly this much outstanding at every edge."""
        began_at_s = CLOCK.now_s()
        seen: dict[int, dict[str, int]] = {}
        while seen != {number: wanted for number in numbers}:
            assert CLOCK.now_s() - began_at_s < within_s, (seen, wanted)
            seen = {number: await self.outstanding(number) for number in numbers}

    async def published(self) -> dict[str, int]:
        """Tasks by edge as the brokers' fields in Redis have it."""
        fields = {name: await self.redis.hvals(wait_key(name)) for name in EDGES}
        return {name: sum(json.loads(value)["num_tasks"] for value in values) for name, values in fields.items()}

    @property
    def held(self) -> dict[str, int]:
        return {name: worker.num_active for name, worker in self.workers.items()}


def ended(process: ServiceProcess) -> None:
    if process.is_running:
        process.kill()


@asynccontextmanager
async def three_brokers(directory, server):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MOEDGE_")} | {"MOEDGE_REDIS_URL": server.url}
    async with AsyncExitStack() as stack:
        client = open_redis(server.url)
        stack.push_async_callback(client.aclose)
        await client.flushall()
        times = StepTimes(0.01, 0.0, 0.01, 0.0)
        workers = {
            name: await stack.enter_async_context(FakeWorker(name, client, max_batch=4, max_queue=400, step_times=times)) for name in EDGES
        }
        processes, addresses = [], []
        for number in range(NUM_BROKERS):
            port = free_port()
            process = ServiceProcess(f"broker-{number}", ["broker", "--port", str(port)], environment, directory / f"broker-{number}.log")
            process.start()
            stack.callback(ended, process)
            processes.append(process)
            addresses.append(f"127.0.0.1:{port}")
        brokers = Brokers(processes, addresses, workers, client)
        await brokers.ready(*range(NUM_BROKERS))
        yield brokers


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started_redis(tmp_path_factory.mktemp("brokers-redis")) as server:
        yield server


@asynccontextmanager
async def held_tasks(brokers: Brokers, by_broker: tuple[int, ...]):
    """So many tasks through each broker that no edge finishes; cancelled on leaving."""
    for worker in brokers.workers.values():
        worker.start_s = 300.0

    async def hold(address: str) -> None:
        async with channel(address) as users:
            request = inference_pb2.GenerateRequest(prompt="hold", task_type="facts")
            try:
                async with open_stream(inference_pb2_grpc.InferenceServiceStub(users).Generate(request, timeout=120)) as stream:
                    async for _ in stream:
                        pass
            except grpc.aio.AioRpcError:
                return  # its broker was killed

    tasks = [asyncio.create_task(hold(brokers.addresses[n])) for n, num in enumerate(by_broker) for _ in range(num)]
    try:
        await until(lambda: sum(brokers.held.values()) == sum(by_broker), 20.0, what="every task at an edge")
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_broker_counts_everybodys_work_once_also_after_a_flush_and_a_kill(tmp_path, server):
    async with three_brokers(tmp_path, server) as brokers, held_tasks(brokers, (5, 4, 3)):
        held = brokers.held
        assert sum(held.values()) == 12
        await brokers.see(range(3), held)
        for _ in range(20):  # and it stays so while the brokers publish and look again
            assert [await brokers.outstanding(n) for n in range(3)] == [held] * 3

        await brokers.redis.flushall()
        flushed_at_s = CLOCK.now_s()
        await brokers.see(range(3), held, within_s=3.0)
        assert CLOCK.now_s() - flushed_at_s < 3.0

        async with asyncio.timeout(5):
            while await brokers.published() != held:  # by every broker again, not as the edges tell
                await CLOCK.sleep(0.02)
        brokers.processes[2].kill()
        killed_at_s = CLOCK.now_s()
        await until(lambda: sum(brokers.held.values()) == 9, 5.0, what="the killed broker's tasks to end at the edges")
        left = brokers.held
        await brokers.see((0, 1), left, within_s=WORK_MAX_AGE_S + 2.0)
        assert CLOCK.now_s() - killed_at_s < WORK_MAX_AGE_S + 2.0

        brokers.processes[2].start()
        await brokers.ready(2)
        await brokers.see(range(3), left)


async def test_the_load_is_even_again_within_ten_seconds_of_a_brokers_restart(tmp_path, server):
    rate, measured_s = 40.0, 5.0
    async with three_brokers(tmp_path, server) as brokers:
        for worker in brokers.workers.values():
            worker.start_s, worker.token_s = 0.05, 0.02
        stopping = asyncio.Event()
        failed = {number: 0 for number in range(NUM_BROKERS)}

        async def one(stub, number: int) -> None:
            request = inference_pb2.GenerateRequest(prompt="q", task_type="facts", max_tokens=6)
            try:
                async with open_stream(stub.Generate(request, timeout=20)) as stream:
                    async for _ in stream:
                        pass
            except grpc.aio.AioRpcError:
                failed[number] += 1

        async def load() -> None:
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
                users = [await stack.enter_async_context(channel(address)) for address in brokers.addresses]
                stubs = [inference_pb2_grpc.InferenceServiceStub(user) for user in users]
                number = 0
                while not stopping.is_set():
                    number = (number + 1) % NUM_BROKERS
                    group.create_task(one(stubs[number], number))
                    await CLOCK.sleep(1.0 / rate)

        loading = asyncio.create_task(load())
        try:
            await until(lambda: sum(len(worker.requests) for worker in brokers.workers.values()) > 100, 20.0)
            brokers.processes[0].kill()
            brokers.processes[0].start()
            await brokers.ready(0)
            ready_at_s = CLOCK.now_s()
            before = {name: len(worker.requests) for name, worker in brokers.workers.items()}
            await CLOCK.sleep(measured_s)
            took = {name: len(worker.requests) - before[name] for name, worker in brokers.workers.items()}
            assert CLOCK.now_s() - ready_at_s < 10.0
        finally:
            stopping.set()
            await loading
        assert sum(took.values()) > 0.8 * rate * measured_s
        assert max(took.values()) / (sum(took.values()) / len(took)) <= 1.3, took
        assert failed[1] == failed[2] == 0, failed
